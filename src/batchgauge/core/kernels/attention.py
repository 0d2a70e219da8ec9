"""Attention over a KV cache: store new positions, then attend to all; compiled, or by NumPy.

Letters as in `ops`. `read` is for the positions of one prompt in a prefill, `step` for one
new position of each of some rows. Both ways give the same numbers up to rounding, and
know how many positions each layer's queries see (0: all) and the soft cap of scores (0: none).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import numpy as np

from batchgauge.core.kernels.products import together
from batchgauge.core.kv_cache import KVCache, Numbers
from batchgauge.core.ops import Floats, Ints, attend_causal, attend_step, unseen

NO_PIECES: Numbers = np.empty((0, 2), np.int64)


class PlainAttention:
    """By NumPy; a step takes neighbours in a group together, as long as the longest, and masks.

    Queries are scaled, their last axis contiguous, as in keys, values and `out`.
    """

    def __init__(self, windows: Sequence[int], cap: float = 0.0) -> None:
        self._windows, self._cap = windows, cap

    def read(
        self, cache: KVCache, layer: int, row: int, queries: Floats, keys: Floats, values: Floats,
        out: Floats,
    ) -> None:  # fmt: skip
        """Keys and values [T, J, E] behind those of a row; queries [T, H, E] to `out` [T, H, E]."""
        (group, place), start = cache.find(row), int(cache.lengths[row])
        group.store(layer, place, start, keys, values)
        seen, J = start + len(keys), keys.shape[1]
        held_keys = group.rooms[place][0, layer, :J, :seen].swapaxes(1, 2)  # [J, E, C]
        held_values = group.rooms[place][1, layer, :J, :seen]  # [J, C, E]
        attend_causal(queries, held_keys, held_values, out, self._windows[layer], self._cap)

    def step(
        self, cache: KVCache, layer: int, rows: Ints, queries: Floats, keys: Floats,
        values: Floats, out: Floats,
    ) -> None:  # fmt: skip
        """Keys and values [B, J, E], one for each of rows; queries [B, H, E], `out` [B, H * E]."""
        J, every = keys.shape[1], cache.lengths[rows]
        for span, group, first in cache.runs(rows):
            lengths = every[span]
            places = slice(first, first + len(lengths))
            numbers = np.arange(first, first + len(lengths))
            all_keys, all_values = group.together
            all_keys[layer, numbers, :J, lengths] = keys[span]
            all_values[layer, numbers, :J, lengths] = values[span]
            seen = int(lengths.max()) + 1
            held_keys = all_keys[layer, places, :J, :seen].swapaxes(2, 3)  # [R, J, E, C]
            held_values = all_values[layer, places, :J, :seen]  # [R, J, C, E]
            mask = unseen(lengths + 1, self._windows[layer])
            attend_step(queries[span], held_keys, held_values, mask, out[span], self._cap)


class CompiledAttention:
    """By `attention_kernel`: every row at its own length, in one call for all."""

    def __init__(self, kernel: ModuleType, windows: Sequence[int], cap: float = 0.0) -> None:
        self._kernel = kernel
        self._sights = [
            np.array([window or kernel.ENDLESS, np.float32(cap).view(np.int32)], np.int64)
            for window in windows
        ]

    def read(
        self, cache: KVCache, layer: int, row: int, queries: Floats, keys: Floats, values: Floats,
        out: Floats,
    ) -> None:  # fmt: skip
        """Attend from the positions of a prompt, six queries of a head at a time."""
        spans = spans_of(cache.places([row]), [len(keys)])
        flat = out.reshape(len(keys), -1)
        with together(out.size * (int(cache.lengths[row]) + len(out))) as team:
            self._kernel.attend_once(
                queries, keys, values, flat, spans, pieces_of([len(keys)], self._kernel.PIECE),
                layer, self._sights[layer], self._kernel.WORKS, team,
            )  # fmt: skip

    def step(
        self, cache: KVCache, layer: int, rows: Ints, queries: Floats, keys: Floats,
        values: Floats, out: Floats,
    ) -> None:  # fmt: skip
        """Attend from one position of every row, the heads that share keys together."""
        places = cache.places(rows)
        spans = spans_of(places, [1] * len(places))
        with together(2 * out.shape[1] * int(places[:, 4].sum() + len(places))) as team:
            self._kernel.attend_once(
                queries, keys, values, out, spans, NO_PIECES, layer, self._sights[layer],
                self._kernel.WORKS, team,
            )  # fmt: skip


Attention = PlainAttention | CompiledAttention


def spans_of(places: Numbers, counts: Sequence[int]) -> Numbers:
    """Spans of so many positions, end to end, for `attention_kernel.attend`: [S, 8]."""
    spans = np.zeros((len(places), places.shape[1] + 3), np.int64)
    spans[:, :-3] = places
    spans[:, -2] = counts
    spans[1:, -3] = np.cumsum(counts)[:-1]
    return spans


def pieces_of(counts: Sequence[int], size: int, steps: int = 0) -> Numbers:
    """Spans of so many positions cut up: (span, first position) of each piece, [n, 2].

    The first `steps` of them are decode steps and stay whole.
    """
    pieces = [
        (span, first)
        for span, count in enumerate(counts[steps:], steps)
        for first in range(0, count, size)
    ]
    return np.array(pieces, np.int64).reshape(-1, 2)


def best_attention(head_dim: int, windows: Sequence[int], cap: float = 0.0) -> Attention:
    """The compiled way where it can run and whole tiles fill a head; else NumPy's."""
    try:
        kernel = import_module("batchgauge.core.kernels.attention_kernel")
    except ImportError:  # no Numba, or nothing that multiplies and adds at once
        return PlainAttention(windows, cap)
    if head_dim % kernel.FEATURES:
        return PlainAttention(windows, cap)
    return CompiledAttention(kernel, windows, cap)
