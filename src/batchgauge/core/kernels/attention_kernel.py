"""Compiled attention: every query sees its own positions and no more, nothing is padded.

Letters as in `ops`. Up to six queries that share keys and values are taken together: heads
of one position in a decode step, positions of one head in a prefill. Their scores stay in
the nearest cache; a decode step asks memory for the values while it reads the keys, and
for the next keys while it reads the values.

Up to three positions more than a row holds are read, some at a time, but never count:
the buffers of a `kv_cache.Group` have room for that. Importing this module needs what
`vectors` needs. Left out: head widths that no whole tiles fill.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from batchgauge.core.kernels import score_kernel, tile, vectors
from batchgauge.core.kernels.score_kernel import score, weigh
from batchgauge.core.kernels.tile import ROWS, tile_alone
from batchgauge.core.kernels.vectors import FEATURES, LANES, digest

APART = 16  # numbers between rows of transposed keys, lest all begin in the same cache set


@njit(nogil=True)
def _mix(rows, scores, s_step, seen, values, E, out, out_step, following):
    """Values [seen, E] weighted by scores; `following` is what will be read next."""
    for first in range(0, E, FEATURES):
        tile_alone(rows, scores, s_step, values + 4 * first, 4 * E, seen + seen % 2,
                   out + 4 * first, out_step, following + 4 * first, 4 * E, 1)  # fmt: skip


@njit(nogil=True)
def _turn(keys, seen, turned):
    """Keys [C, E], so many of them, into turned [E, at least C], a cache line at a time.

    Zeros fill up the last tile's columns: what lies there is multiplied too, and numbers
    by chance, too small to be normal, would make that a hundred times slower.
    """
    turned[:, seen : (seen + FEATURES - 1) // FEATURES * FEATURES] = 0.0
    for first in range(0, seen, LANES):
        last = min(first + LANES, seen)
        for e in range(keys.shape[1]):
            for position in range(first, last):
                turned[e, position] = keys[position, e]


def _compile(source: int) -> tuple[Any, Any]:
    """`step` and `causal`, compiled for these sources: see `bpe_kernel._compile`."""

    @njit(
        "void(float32[:, :, :], float32[:, :, :], float32[:, :, :], float32[:, :, :, ::1],"
        " float32[:, :, :, ::1], int64[:], float32[:, ::1])",
        cache=True,
        nogil=True,
    )
    def step(queries, new_keys, new_values, keys, values, lengths, out):
        """Store one position behind those of R rows, and attend from there.

        queries              float32 [R, H, E]     scaled by 1 / sqrt(E), last axis contiguous
        new_keys, new_values float32 [R, J, E]
        keys, values         float32 [R, J, C, E]
        lengths              int64   [R]           positions held so far
        out                  float32 [R, H * E]
        """
        if source < 0:
            return
        R, H, E = queries.shape
        J, C = keys.shape[1], keys.shape[2]
        G = H // J
        held = np.empty((ROWS, C + FEATURES), np.float32)
        scores, s_step, block = held.ctypes.data, held.strides[0], 4 * C * E
        for row in range(R):
            seen = lengths[row] + 1
            width = (seen + LANES - 1) // LANES * LANES
            for j in range(J):
                keys[row, j, seen - 1] = new_keys[row, j]
                values[row, j, seen - 1] = new_values[row, j]
                k_at = keys.ctypes.data + (row * J + j) * block
                v_at = values.ctypes.data + (row * J + j) * block
                for g in range(0, G, ROWS):
                    rows, head = min(ROWS, G - g), j * G + g
                    q_at = queries.ctypes.data + row * queries.strides[0] + 4 * E * head
                    for first in range(0, E, FEATURES):
                        score(
                            rows, q_at + 4 * first, 4 * E, k_at + 4 * first, 4 * E, seen,
                            scores, s_step, v_at + 4 * first, first == 0,
                        )  # fmt: skip
                    for query in range(rows):
                        weigh(scores + query * s_step, seen, width)
                    out_at = out.ctypes.data + 4 * E * (row * H + head)
                    _mix(rows, scores, s_step, seen, v_at, E, out_at, 4 * E, k_at + block)

    @njit(
        "void(float32[:, :, :], float32[:, :, ::1], float32[:, :, ::1], int64, float32[:, :, ::1])",
        cache=True,
        nogil=True,
    )
    def causal(queries, keys, values, start, out):
        """Attend from T positions behind `start` others to all up to themselves.

        queries      float32 [T, H, E]  scaled by 1 / sqrt(E), last axis contiguous
        keys, values float32 [J, C, E]  the T positions stored
        out          float32 [T, H, E]
        """
        if source < 0:
            return
        T, H, E = queries.shape
        J, total = keys.shape[0], start + T
        G = H // J
        turned = np.empty((E, total + FEATURES + APART), np.float32)
        held = np.empty((ROWS, total + FEATURES), np.float32)
        scores, s_step, out_step = held.ctypes.data, held.strides[0], 4 * H * E
        k_at, k_step = turned.ctypes.data, turned.strides[0]
        for head in range(H):
            if head % G == 0:
                _turn(keys[head // G], total, turned)
            v_at = values.ctypes.data + 4 * E * values.shape[1] * (head // G)
            for query in range(0, T, ROWS):
                rows, seen = min(ROWS, T - query), start + query + 1
                longest = seen + rows - 1
                width = (longest + FEATURES - 1) // FEATURES * FEATURES
                q_at = queries.ctypes.data + query * queries.strides[0] + 4 * E * head
                for first in range(0, width, FEATURES):
                    tile_alone(
                        rows, q_at, queries.strides[0], k_at + 4 * first, k_step, E,
                        scores + 4 * first, s_step, v_at + 4 * E * first, 4 * FEATURES, 1,
                    )  # fmt: skip
                for row in range(rows):
                    weigh(scores + row * s_step, seen + row, width)
                out_at = out.ctypes.data + query * out_step + 4 * E * head
                _mix(rows, scores, s_step, longest, v_at, E, out_at, out_step, v_at)

    return step, causal


step, causal = _compile(digest(tile, vectors, score_kernel))
