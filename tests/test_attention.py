"""Attention over a cache: compiled and plain agree, whatever the lengths; rows stay alone."""

from __future__ import annotations

import sys
from importlib import import_module

import numpy as np
import pytest

from batchgauge.core.kernels.attention import CompiledAttention, PlainAttention, best_attention
from batchgauge.core.kv_cache import KVCache
from batchgauge.core.model import CUT, LlamaModel

LAYERS, J, G = 2, 2, 3
ALL = [0] * LAYERS  # what the layers see
compiled = best_attention(64, ALL)
needs_kernel = pytest.mark.skipif(
    not isinstance(compiled, CompiledAttention), reason="no compiled attention here"
)
SIGHTS = pytest.mark.parametrize(
    ("sights", "cap"), [(ALL, 0.0), ([7, 7], 0.0), ([64, 64], 1.5), (ALL, 0.5)]
)


def held_by(lengths, capacity, width, seed=0):
    """A cache of one group that holds random positions, so many in each row."""
    made = KVCache((LAYERS, J, width), [capacity] * len(lengths))
    keys, values = held_in(made)
    rng = np.random.default_rng(seed)
    for row, length in enumerate(lengths):
        keys[:, row, :, :length] = rng.standard_normal((LAYERS, J, length, width))
        values[:, row, :, :length] = rng.standard_normal((LAYERS, J, length, width))
    made.lengths[: len(lengths)] = lengths
    return made


def held_in(cache):
    """Keys and values [layers, R, J, C, E] of its only group."""
    group, _ = cache.find(0)
    return group.together


def new_positions(count, width, seed=1):
    """Queries, keys and values of so many positions, queries scaled."""
    rng = np.random.default_rng(seed)
    qkv = rng.standard_normal((count, (G + 2) * J, width), dtype=np.float32)
    qkv[:, : G * J] /= np.sqrt(width)
    return qkv[:, : G * J], qkv[:, G * J : (G + 1) * J], qkv[:, (G + 1) * J :]


@needs_kernel
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("lengths", [[0], [1, 0, 7], [62, 63, 64, 65], [127, 3, 130, 129]])
@SIGHTS
def test_a_step_gives_what_the_plain_way_gives(width, lengths, sights, cap):
    """Rows of unequal length, empty ones and full ones too; the new position is stored."""
    capacity = max(lengths) + 1
    queries, keys, values = new_positions(len(lengths), width)
    found = []
    for way in (best_attention(64, sights, cap), PlainAttention(sights, cap)):
        cache = held_by(lengths, capacity, width)
        out = np.empty((len(lengths), G * J * width), np.float32)
        way.step(cache, 1, cache.rows, queries, keys, values, out)
        found.append((out, *held_in(cache)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=2e-6)
    for ours, plain in zip(found[0][1:], found[1][1:], strict=True):
        np.testing.assert_array_equal(ours, plain)


@needs_kernel
@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 5), (0, 70), (3, 64), (61, 7), (64, 130)])
@SIGHTS
def test_a_prompt_gives_what_the_plain_way_gives(start, count, sights, cap):
    """Every position sees those before it and itself, behind what the row held already."""
    queries, keys, values = new_positions(count, 64)
    found = []
    for way in (best_attention(64, sights, cap), PlainAttention(sights, cap)):
        cache = held_by([2, start], start + count + 2, 64)
        out = np.full((count, G * J, 64), np.nan, np.float32)
        way.read(cache, 0, 1, queries, keys, values, out)
        found.append(out)
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2e-6)


@needs_kernel
@SIGHTS
def test_where_a_prompt_is_cut_changes_no_bit(sights, cap):
    """Whole, or in parts that end at multiples of `CUT`: windows and caps too."""
    queries, keys, values = new_positions(150, 64)
    way = best_attention(64, sights, cap)
    found = []
    for ends in ([150], [24, 150], [48, 72, 96, 150], [24, 48, 144, 150]):
        cache = KVCache((LAYERS, J, 64), [150])
        out = np.empty((150, G * J, 64), np.float32)
        for first, last in zip([0, *ends], ends, strict=False):
            assert last in {150, *range(0, 150, CUT)}
            span = slice(first, last)
            way.read(cache, 0, 0, queries[span], keys[span], values[span], out[span])
            cache.lengths[0] = last
        found.append(out)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@needs_kernel
def test_a_row_does_not_depend_on_its_neighbours():
    """The same bits alone and beside longer rows."""
    queries, keys, values = new_positions(3, 64)
    together = np.empty((3, G * J * 64), np.float32)
    beside = held_by([5, 40, 17], 41, 64)
    compiled.step(beside, 0, beside.rows, queries, keys, values, together)
    alone = KVCache((LAYERS, J, 64), [18])
    for mine, theirs in zip(held_in(alone), held_in(beside), strict=True):
        mine[:, 0, :, :17] = theirs[:, 2, :, :17]
    alone.lengths[0] = 17
    out = np.empty((1, G * J * 64), np.float32)
    compiled.step(alone, 0, alone.rows, queries[2:], keys[2:], values[2:], out)
    np.testing.assert_array_equal(out[0], together[2])


@needs_kernel
@pytest.mark.parametrize("seen", [1, 63, 64, 65])
def test_a_prompts_last_tile_is_filled_with_zeros(seen):
    """Behind the transposed keys a tile meets nothing that memory held before."""
    kernel = import_module("batchgauge.core.kernels.attention_kernel")
    width = -(-seen // kernel.FEATURES) * kernel.FEATURES
    keys = np.random.default_rng(seen).standard_normal((seen, 64)).astype(np.float32)
    turned = np.full((64, 144), np.float32(1e-40))
    kernel._turn(keys, seen, turned)
    np.testing.assert_array_equal(turned[:, :seen], keys.T)
    assert not turned[:, seen:width].any()


@needs_kernel
def test_what_no_position_has_written_never_counts():
    """Old content behind a row's end, infinite or not, changes nothing."""
    queries, keys, values = new_positions(2, 64)
    clean, dirty = held_by([9, 30], 40, 64), held_by([9, 30], 40, 64)
    dirty_keys, dirty_values = held_in(dirty)
    dirty_keys[:, 0, :, 10:] = np.inf
    dirty_values[:, 0, :, 11:] = 1e30
    out, out_dirty = np.empty((2, 2, G * J * 64), np.float32)
    compiled.step(clean, 0, clean.rows, queries, keys, values, out)
    compiled.step(dirty, 0, dirty.rows, queries, keys, values, out_dirty)
    np.testing.assert_array_equal(out, out_dirty)


@needs_kernel
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 3e4])
def test_weights_are_a_softmax(scale):
    """Flat, ordinary and one-sided scores give weights that add up to one."""
    queries, keys, values = new_positions(1, 64)
    queries = queries * np.float32(scale)
    cache = held_by([50], 51, 64)
    held_keys, held_values = held_in(cache)
    out = np.empty((1, G * J * 64), np.float32)
    compiled.step(cache, 0, cache.rows, queries, keys, values, out)
    scores = np.einsum(
        "jge,jce->jgc", queries[0].reshape(J, G, 64).astype(np.float64), held_keys[0, 0]
    )
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("jgc,jce->jge", weights, held_values[0, 0]).reshape(1, -1)
    np.testing.assert_allclose(out, mixed, rtol=0, atol=1e-5 if scale < 100 else 2e-2)


def test_the_plain_way_serves_what_tiles_do_not_fit(monkeypatch):
    """Narrow heads, and machines without the compiled code, attend by NumPy."""
    assert isinstance(best_attention(6, ALL), PlainAttention)
    monkeypatch.setitem(sys.modules, "batchgauge.core.kernels.attention_kernel", None)
    assert isinstance(best_attention(64, ALL), PlainAttention)


@needs_kernel
def test_the_default_model_gives_the_same_bits_in_any_batch():
    """Scores after a prefill and two decode steps do not depend on the neighbours at all."""
    model = LlamaModel.load()
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 40_000, n).tolist() for n in (1, 17, 64, 7, 2, 90, 33, 5, 3)]

    def scores(chosen):
        cache = model.new_cache([len(prompt) + 2 for prompt in chosen])
        found = [model.prefill(chosen, cache)]
        found += [model.decode(np.full(len(chosen), step), cache) for step in (11, 12)]
        return np.stack(found)

    together = scores(prompts)
    for row in (0, 3, 5, 8):
        np.testing.assert_array_equal(scores([prompts[row]])[:, 0], together[:, row])
