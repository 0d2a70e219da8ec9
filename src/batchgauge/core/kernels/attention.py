"""Attention over a KV cache: store new positions, then attend to all; compiled, or by NumPy.

Letters as in `ops`. `read` is for the positions of one prompt in a prefill, `step` for one
new position of every row of a group. Both ways give the same numbers up to rounding, and
know how many positions each layer's queries see (0: all) and the soft cap of scores (0: none).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Protocol

import numpy as np

from batchgauge.core.kernels.products import share
from batchgauge.core.kv_cache import Group
from batchgauge.core.ops import Floats, attend_causal, attend_step, unseen


class Attention(Protocol):
    """Queries are scaled, their last axis contiguous, as in keys, values and `out`."""

    def read(
        self, group: Group, layer: int, row: int, queries: Floats, keys: Floats, values: Floats,
        out: Floats,
    ) -> None:  # fmt: skip
        """Keys and values [T, J, E] behind those of a row; queries [T, H, E] to `out` [T, H, E]."""
        ...

    def step(
        self, group: Group, layer: int, queries: Floats, keys: Floats, values: Floats, out: Floats
    ) -> None:
        """Keys and values [R, J, E], one for each row; queries [R, H, E] to `out` [R, H * E]."""
        ...


class PlainAttention:
    """By NumPy; a step takes the rows of a group together, as long as the longest, and masks."""

    def __init__(self, windows: Sequence[int], cap: float = 0.0) -> None:
        self._windows, self._cap = windows, cap

    def read(
        self, group: Group, layer: int, row: int, queries: Floats, keys: Floats, values: Floats,
        out: Floats,
    ) -> None:  # fmt: skip
        """Attend from the positions of a prompt, block by block of queries."""
        group.store(layer, row, keys, values)
        seen = int(group.lengths[row]) + len(keys)
        J = keys.shape[1]
        held_keys = group.keys[layer, row, :J, :seen].swapaxes(1, 2)  # [J, E, C]
        held_values = group.values[layer, row, :J, :seen]  # [J, C, E]
        attend_causal(queries, held_keys, held_values, out, self._windows[layer], self._cap)

    def step(
        self, group: Group, layer: int, queries: Floats, keys: Floats, values: Floats, out: Floats
    ) -> None:
        """Attend from one position of every row."""
        group.store_step(layer, keys, values)
        seen = int(group.lengths.max()) + 1
        J = keys.shape[1]
        held_keys = group.keys[layer, :, :J, :seen].swapaxes(2, 3)  # [R, J, E, C]
        held_values = group.values[layer, :, :J, :seen]  # [R, J, C, E]
        mask = unseen(group.lengths + 1, self._windows[layer])
        attend_step(queries, held_keys, held_values, mask, out, self._cap)


class CompiledAttention:
    """By `attention_kernel`: every row at its own length, in one call for a whole group."""

    def __init__(self, kernel: ModuleType, windows: Sequence[int], cap: float = 0.0) -> None:
        self._kernel = kernel
        whole = np.iinfo(np.int64).max >> 1
        self._sights = [
            np.array([window or whole, np.float32(cap).view(np.int32)], np.int64)
            for window in windows
        ]

    def read(
        self, group: Group, layer: int, row: int, queries: Floats, keys: Floats, values: Floats,
        out: Floats,
    ) -> None:  # fmt: skip
        """Attend from the positions of a prompt, six queries of a head at a time."""
        group.store(layer, row, keys, values)
        start = int(group.lengths[row])
        J = keys.shape[1]
        held_keys, held_values = group.keys[layer, row, :J], group.values[layer, row, :J]
        share(
            self._kernel.causal, queries, held_keys, held_values, start, self._sights[layer], out,
            work=self._kernel.CAUSAL, multiplications=out.size * (start + len(out)),
        )  # fmt: skip

    def step(
        self, group: Group, layer: int, queries: Floats, keys: Floats, values: Floats, out: Floats
    ) -> None:
        """Attend from one position of every row, the heads that share keys together."""
        held_keys, held_values = group.keys[layer], group.values[layer]
        share(
            self._kernel.step, queries, keys, values, held_keys, held_values, group.lengths,
            self._sights[layer], out,
            work=self._kernel.STEP, multiplications=2 * out.size * held_keys.shape[2],
        )  # fmt: skip


def best_attention(head_dim: int, windows: Sequence[int], cap: float = 0.0) -> Attention:
    """The compiled way where it can run and whole tiles fill a head; else NumPy's."""
    try:
        kernel = import_module("batchgauge.core.kernels.attention_kernel")
    except ImportError:  # no Numba, or nothing that multiplies and adds at once
        return PlainAttention(windows, cap)
    if head_dim % kernel.FEATURES:
        return PlainAttention(windows, cap)
    return CompiledAttention(kernel, windows, cap)
