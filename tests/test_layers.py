"""All layers in one compiled call: the same bits with any number of threads, in any batch."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from tests.tiny_model import write_tiny_model
from threadpoolctl import threadpool_limits

from batchgauge.core.kernels import products
from batchgauge.core.model import LlamaModel

needs_tiles = pytest.mark.skipif(products.compiled() is None, reason="no compiled tiles here")
LENGTHS = (1, 17, 64, 7, 30, 2, 25, 49, 5, 24)  # whole pieces of prompts, and parts of them


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model whose heads and layers compiled code takes, untied, of two groups of heads."""
    shape: dict[str, Any] = {"d_model": 256, "heads": 4, "kv_heads": 2, "d_ff": 512}
    folder = tmp_path_factory.mktemp("layers")
    return write_tiny_model(folder / "m.gguf", **shape, quantisation="Q8_0", tied=False)


def scores(model, lengths=LENGTHS, rows=None):
    """Scores after a prefill in two parts, and after decode steps while rows leave."""
    rng = np.random.default_rng(2)
    prompts = [rng.integers(3, 150, length).tolist() for length in lengths]
    prompts = [prompts[row] for row in rows or range(len(prompts))]
    cache = model.new_cache([len(prompt) + 6 for prompt in prompts])
    found = [model.prefill(prompts, cache)]
    found.append(model.prefill([[9, 8]] * len(prompts), cache))  # behind what rows hold
    found += [model.decode(np.full(len(prompts), token), cache) for token in (5, 6)]
    if len(prompts) > 1:
        kept = cache.keep(set(range(0, len(prompts), 2)))
        found.append(model.decode(np.arange(len(kept)), cache))
    return found


@needs_tiles
@pytest.mark.parametrize("weights", ["float32", "file", "bfloat16"])
def test_any_number_of_threads_gives_the_same_bits(path, weights, monkeypatch):
    """One to four threads, more than there are processors too, on a ragged batch."""
    monkeypatch.setattr(products, "usable_processors", lambda: set(range(4)))
    model = LlamaModel.load(path, weights)
    assert model.layers is not None
    with threadpool_limits(1, user_api="blas"):
        alone = scores(model)
    for threads in (2, 3, 4):
        with threadpool_limits(threads, user_api="blas"):
            for one, other in zip(alone, scores(model), strict=True):
                np.testing.assert_array_equal(one, other)


@needs_tiles
@pytest.mark.parametrize("weights", ["float32", "file"])
def test_a_row_does_not_depend_on_its_neighbours(path, weights):
    """Each row of a ragged batch gets the bits that it gets alone."""
    model = LlamaModel.load(path, weights)
    together = scores(model)
    for row in range(len(LENGTHS)):
        for alone, all_rows in zip(scores(model, rows=[row])[:4], together[:4], strict=True):
            np.testing.assert_array_equal(alone[0], all_rows[row])


@needs_tiles
@pytest.mark.parametrize("weights", ["float32", "file"])
def test_it_gives_what_the_layers_give_step_by_step(path, weights):
    """One compiled call and NumPy's operations agree up to rounding."""
    model, plain = (LlamaModel.load(path, weights) for _ in range(2))
    plain.layers = None
    for one, other in zip(scores(model), scores(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("shape", [{"heads": 8}, {"heads": 1, "kv_heads": 1, "d_ff": 98}])
def test_what_compiled_layers_do_not_fit_goes_step_by_step(tmp_path, shape):
    """Narrow heads and odd widths."""
    shape = {"heads": 1, "kv_heads": 1, "d_model": 64, "d_ff": 96} | shape
    path = write_tiny_model(tmp_path / "m.gguf", **shape)
    model = LlamaModel.load(path)
    assert model.layers is None
    assert all(np.isfinite(found).all() for found in scores(model))


def test_without_compiled_code_layers_go_step_by_step(path, monkeypatch):
    """No Numba, or a processor that it has nothing for."""
    monkeypatch.setitem(sys.modules, "batchgauge.core.kernels.layers_kernel", None)
    assert LlamaModel.load(path).layers is None
