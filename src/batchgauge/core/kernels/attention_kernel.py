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

import math

import numpy as np
from numba import carray, cfunc, njit

from batchgauge.core.kernels import score_kernel, team_kernel, tile, vectors
from batchgauge.core.kernels.score_kernel import score, weigh
from batchgauge.core.kernels.team_kernel import floats, lead, number
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
def _copy(source, target, count):
    """So many float32 from one address to another."""
    here, there = carray(floats(source), count), carray(floats(target), count)
    for i in range(count):
        there[i] = here[i]


@njit(nogil=True)
def _turn(keys, seen, turned):
    """Keys [C, E], so many of them, into turned [E, at least C], a cache line at a time.

    Zeros fill up the columns: what lies there is multiplied too, and numbers by chance, too
    small to be normal, would make that a hundred times slower.
    """
    turned[:, seen:] = 0.0
    for first in range(0, seen, LANES):
        last = min(first + LANES, seen)
        for e in range(keys.shape[1]):
            for position in range(first, last):
                turned[e, position] = keys[position, e]


@njit(nogil=True)
def _cap(scores, count, sight):
    """Soft limit of so many scores, in place; the float32 at the second place of a sight."""
    limit = carray(floats(sight + 8), 1)[0]
    if limit > 0.0:
        row = carray(floats(scores), count)
        for i in range(count):
            row[i] = limit * math.tanh(row[i] / limit)


def _compile(source: int) -> tuple[Any, Any, int, int]:
    """`step`, `causal` and their work, compiled for these sources: see `bpe_kernel._compile`."""

    @cfunc("void(int64, int64)", cache=True)
    def one_row(job, part):
        """Store one position and attend from there: the heads of a row that share keys."""
        if source < 0:
            return
        H, E, J, C = number(job, 11), number(job, 12), number(job, 13), number(job, 14)
        row, j = part // J, part % J
        G, total = H // J, number(number(job, 8), row) + 1
        seen = min(total, number(number(job, 9), 0))
        width = (seen + LANES - 1) // LANES * LANES
        held = np.empty((ROWS, C + FEATURES), np.float32)
        scores, s_step, block = held.ctypes.data, 4 * (C + FEATURES), 4 * C * E
        place = (row * number(job, 15) + j) * block
        k_at, v_at = number(job, 6) + place, number(job, 7) + place
        last = 4 * E * (total - 1)
        _copy(number(job, 2) + row * number(job, 3) + 4 * E * j, k_at + last, E)
        _copy(number(job, 4) + row * number(job, 5) + 4 * E * j, v_at + last, E)
        k_at, v_at = k_at + 4 * E * (total - seen), v_at + 4 * E * (total - seen)
        for g in range(0, G, ROWS):
            rows, head = min(ROWS, G - g), j * G + g
            q_at = number(job, 0) + row * number(job, 1) + 4 * E * head
            for first in range(0, E, FEATURES):
                score(
                    rows, q_at + 4 * first, 4 * E, k_at + 4 * first, 4 * E, seen,
                    scores, s_step, v_at + 4 * first, first == 0,
                )  # fmt: skip
            for query in range(rows):
                _cap(scores + query * s_step, seen, number(job, 9))
                weigh(scores + query * s_step, seen, width)
            out_at = number(job, 10) + 4 * E * (row * H + head)
            _mix(rows, scores, s_step, seen, v_at, E, out_at, 4 * E, k_at + block)
        held[0, 0] = 0.0  # Numba frees an array after its last mention: not before this

    @cfunc("void(int64, int64)", cache=True)
    def one_head(job, part):
        """Attend from every other six positions of a prompt: the heads that share keys."""
        if source < 0:
            return
        q_at, q_step, out = number(job, 0), number(job, 1), number(job, 2)
        j, half = part // 2, part % 2
        C, start, T = number(job, 5), number(job, 6), number(job, 7)
        H, E, J = number(job, 8), number(job, 9), number(job, 10)
        if half * ROWS >= T:
            return
        window = number(number(job, 11), 0)
        total, G = start + T, H // J
        keys = carray(floats(number(job, 3) + 4 * E * C * j), (C, E))
        v_at = number(job, 4) + 4 * E * C * j
        turned = np.empty((E, total + FEATURES + APART), np.float32)
        held = np.empty((ROWS, total + FEATURES), np.float32)
        scores, s_step, out_step = held.ctypes.data, 4 * (total + FEATURES), 4 * H * E
        k_at, k_step = turned.ctypes.data, 4 * (total + FEATURES + APART)
        _turn(keys, total, turned)
        for head in range(j * G, (j + 1) * G):
            for query in range(half * ROWS, T, 2 * ROWS):
                low = max(0, start + query + 1 - window)  # what the first of them still sees
                rows, seen = min(ROWS, T - query), start + query + 1 - low
                longest = seen + rows - 1
                width = (longest + FEATURES - 1) // FEATURES * FEATURES
                here = q_at + query * q_step + 4 * E * head
                for first in range(0, width, FEATURES):
                    tile_alone(
                        rows, here, q_step, k_at + 4 * (low + first), k_step, E,
                        scores + 4 * first, s_step, v_at + 4 * E * first, 4 * FEATURES, 1,
                    )  # fmt: skip
                for row in range(rows):
                    _cap(scores + row * s_step, seen + row, number(job, 11))
                    held[row, : max(0, start + query + row + 1 - window - low)] = -np.inf
                    weigh(scores + row * s_step, seen + row, width)
                out_at = out + query * out_step + 4 * E * head
                _mix(
                    rows, scores, s_step, longest, v_at + 4 * E * low, E, out_at, out_step, v_at
                )
        held[0, 0] = turned[0, 0] = 0.0  # not freed before this

    @njit(
        "void(float32[:, :, :], float32[:, :, :], float32[:, :, :], float32[:, :, :, ::1],"
        " float32[:, :, :, ::1], int64[::1], int64[::1], float32[:, ::1], int64[::1], int64)",
        cache=True,
        nogil=True,
    )
    def step(queries, new_keys, new_values, keys, values, lengths, sight, out, team, work):
        """Store one position behind those of R rows, and attend from there.

        queries              float32 [R, H, E]     scaled, last axes contiguous
        new_keys, new_values float32 [R, J, E]     last axes contiguous
        keys, values         float32 [R, at least J, C, E]
        lengths              int64   [R]           positions held so far
        sight                int64   [2]           window, and bits of the float32 soft cap or 0
        out                  float32 [R, H * E]
        team, work           see `team_kernel.lead`; `STEP` is the work
        """
        if source < 0:
            return
        job = np.empty(16, np.int64)
        job[0], job[1] = queries.ctypes.data, queries.strides[0]
        job[2], job[3] = new_keys.ctypes.data, new_keys.strides[0]
        job[4], job[5] = new_values.ctypes.data, new_values.strides[0]
        job[6], job[7], job[8] = keys.ctypes.data, values.ctypes.data, lengths.ctypes.data
        job[9] = sight.ctypes.data
        job[10], job[11], job[12] = out.ctypes.data, queries.shape[1], queries.shape[2]
        job[13], job[14], job[15] = new_keys.shape[1], keys.shape[2], keys.shape[1]
        lead(team, work, job, keys.shape[0] * new_keys.shape[1])

    @njit(
        "void(float32[:, :, :], float32[:, :, ::1], float32[:, :, ::1], int64, int64[::1],"
        " float32[:, :, ::1], int64[::1], int64)",
        cache=True,
        nogil=True,
    )
    def causal(queries, keys, values, start, sight, out, team, work):
        """Attend from T positions behind `start` others to all up to themselves.

        queries      float32 [T, H, E]  scaled, last axes contiguous
        keys, values float32 [J, C, E]  the T positions stored
        sight        int64   [2]        window, and bits of the float32 soft cap or 0
        out          float32 [T, H, E]
        team, work   see `team_kernel.lead`; `CAUSAL` is the work
        """
        if source < 0:
            return
        job = np.empty(12, np.int64)
        job[0], job[1], job[2] = queries.ctypes.data, queries.strides[0], out.ctypes.data
        job[3], job[4], job[5] = keys.ctypes.data, values.ctypes.data, keys.shape[1]
        job[6], job[7], job[8] = start, queries.shape[0], queries.shape[1]
        job[9], job[10], job[11] = queries.shape[2], keys.shape[0], sight.ctypes.data
        lead(team, work, job, 2 * keys.shape[0])

    return step, causal, one_row.address, one_head.address


step, causal, STEP, CAUSAL = _compile(digest(tile, vectors, score_kernel, team_kernel))
