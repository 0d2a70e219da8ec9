"""Norms and activations: compiled where that is possible, else those of `ops`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np

from batchgauge.core import ops
from batchgauge.core.ops import Floats


def swiglu(gate_up: Floats) -> Floats:
    """As `ops.swiglu`: [T, 2F] -> [T, F]."""
    return _gated("swiglu", gate_up)


def geglu(gate_up: Floats) -> Floats:
    """As `ops.geglu`: [T, 2F] -> [T, F]."""
    return _gated("geglu", gate_up)


def _gated(name: str, gate_up: Floats) -> Floats:
    T, width = gate_up.shape
    kernel = compiled()
    if kernel is None or width % (2 * kernel.LANES):
        plain: Floats = getattr(ops, name)(gate_up)
        return plain
    out = np.empty((T, width // 2), np.float32)
    getattr(kernel, name)(gate_up, out)
    return out


def rms_norm(x: Floats, epsilon: float) -> Floats:
    """As `ops.rms_norm`: [T, D] -> [T, D]."""
    kernel = compiled()
    if kernel is None:
        return ops.rms_norm(x, epsilon)
    out = np.empty_like(x)
    kernel.rms_norm(x, epsilon, out)
    return out


@cache
def compiled() -> ModuleType | None:
    """The compiled forms; None without Numba, or where nothing multiplies and adds at once."""
    try:
        return import_module("batchgauge.core.kernels.activation_kernel")
    except ImportError:
        return None
