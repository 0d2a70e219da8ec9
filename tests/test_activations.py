"""Norms and activations: the compiled forms give the plain ones' numbers, extremes included."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from batchgauge.core import ops
from batchgauge.core.kernels import activations


@pytest.fixture
def nothing_compiled(monkeypatch):
    """As on a machine without Numba."""
    monkeypatch.setitem(sys.modules, "batchgauge.core.kernels.activation_kernel", None)
    activations.compiled.cache_clear()
    yield
    activations.compiled.cache_clear()


@pytest.mark.parametrize("gate", ["swiglu", "geglu"])
@pytest.mark.parametrize("width", [16, 64, 1536, 6])
def test_a_gate_is_the_plain_one(width, gate):
    """From far below zero to far above, with rows that are a slice of wider ones."""
    rng = np.random.default_rng(width)
    gate_up = rng.normal(scale=20.0, size=(5, 2 * width + 3)).astype(np.float32)
    gate_up[0, :6] = [-1e30, -200.0, -0.0, 0.0, 200.0, 1e30]
    with np.errstate(over="ignore"):
        found = getattr(activations, gate)(gate_up[:, : 2 * width])
        plain = getattr(ops, gate)(gate_up[:, : 2 * width])
    # Far below zero 1 + tanh(x) has no digits left, where x / (1 + exp(-2x)) still has all.
    least = 1e-30 if gate == "swiglu" else 1e-4
    np.testing.assert_allclose(found, plain, rtol=2e-6, atol=least)


@pytest.mark.parametrize("width", [1, 6, 576])
def test_the_norm_is_the_plain_one(width):
    """Rows of any width, and a row of zeros, which stays one."""
    x = np.random.default_rng(width).normal(scale=3.0, size=(4, width)).astype(np.float32)
    x[1] = 0.0
    np.testing.assert_allclose(activations.rms_norm(x, 1e-5), ops.rms_norm(x, 1e-5), rtol=2e-6)


@pytest.mark.usefixtures("nothing_compiled")
def test_the_plain_ones_take_over_where_nothing_is_compiled():
    """Without the compiled module both are those of `ops`, to the last bit."""
    x = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    assert activations.compiled() is None
    np.testing.assert_array_equal(activations.swiglu(x), ops.swiglu(x))
    np.testing.assert_array_equal(activations.geglu(x), ops.geglu(x))
    np.testing.assert_array_equal(activations.rms_norm(x, 1e-5), ops.rms_norm(x, 1e-5))
