"""All layers of a Llama in one compiled call, each step shared by the threads of a team.

Letters as in `ops`. Between two steps there is nothing but the team's own meeting, a
microsecond, so that a second thread pays for one row too. Every part of a step is a block of
output features, some rows, or the heads of a row that share keys: results are the same to the
last bit with any number of threads.

Importing this module needs what `vectors` needs. Left out: whatever `layers` does not give it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from batchgauge.core.kernels import (
    activation_kernel,
    attention_kernel,
    score_kernel,
    team_kernel,
    tile,
    vectors,
)
from batchgauge.core.kernels.activation_kernel import share_gate, share_norm
from batchgauge.core.kernels.attention_kernel import (
    J_ROTATIONS,
    J_SCALE,
    attend,
    new_job,
    room_for_keys,
)
from batchgauge.core.kernels.team_kernel import digest, lead
from batchgauge.core.kernels.vectors import FEATURES, LANES

# Of a piece of a matrix: the address of the compiled product, of its blocks, bytes from one to
# the next, how many, and the first output feature.
P_WORK, P_BLOCKS, P_STEP, P_COUNT, P_FIRST, PIECE = range(6)
QKV, OUTPUT, GATE_UP, DOWN = range(4)
SPAN = attention_kernel.PIECE
TILE = 256  # positions that the feed-forward layer computes at a time: its inside is wide
HEAD_WIDTH, INNER_WIDTH = FEATURES, LANES  # heads and inner layers are multiples of these
WORKS = np.array(
    [*attention_kernel.WORKS, activation_kernel.NORM, activation_kernel.GATE], np.int64
)


@njit(nogil=True)
def _product(x, inputs, rows, pieces, y, team):
    """Products of contiguous x [rows, inputs] at an address with all pieces, into y."""
    job = np.empty(7, np.int64)
    for piece in range(pieces.shape[0]):
        if pieces[piece, P_COUNT]:
            job[0], job[1], job[2] = x, rows, inputs
            job[3], job[4] = pieces[piece, P_BLOCKS], pieces[piece, P_STEP]
            job[5], job[6] = y.ctypes.data + 4 * pieces[piece, P_FIRST], y.strides[0]
            lead(team, pieces[piece, P_WORK], job, pieces[piece, P_COUNT])
    job[0] = 0  # Numba frees an array after its last mention: not before this


@njit(nogil=True)
def columns(pieces):
    """Columns that products with pieces [.., PIECE] of 64-feature blocks write."""
    width = 0
    for piece in range(pieces.shape[0]):
        width = max(width, pieces[piece, P_FIRST] + 64 * pieces[piece, P_COUNT])
    return width


def _compile(source: int) -> tuple[Any, Any]:
    """`run` and `head`, compiled for these sources: see `team_kernel.digest`."""

    @njit(
        "void(float32[:, ::1], float32[:, ::1], int64[:, ::1], int64[:, ::1],"
        " int64[:, :, :, ::1], float32[:, :, ::1], float32[:, ::1], float32[::1], int64[::1],"
        " int64[::1], int64[::1])",
        cache=True,
        nogil=True,
    )
    def run(x, rotations, spans, cut, matrices, gains, biases, scales, shape, works, team):
        """Take x [T, D] through all layers, in place.

        rotations  float32 [T, E]          cosines and sines, side by side
        spans, cut                         see `attention_kernel.attend`
        matrices   int64 [L, 4, n, PIECE]
        gains      float32 [L, 2, D]
        biases     float32 [L, n]          of queries, keys and values; n = 0: none
        scales     float32 [2]             epsilon of the norms; what queries are multiplied by
        shape      int64 [4]               H, E, J, F
        """
        if source < 0:
            return
        T, D = x.shape
        H, E, J, F = shape
        some = min(T, TILE)
        normed, attended = np.empty((T, D), np.float32), np.empty((T, H * E), np.float32)
        qkv = np.empty((T, columns(matrices[0, QKV])), np.float32)
        wide = max(columns(matrices[0, OUTPUT]), columns(matrices[0, DOWN]))
        y = np.empty((T, wide), np.float32)
        gate_up = np.empty((some, columns(matrices[0, GATE_UP])), np.float32)
        hidden = np.empty((some, F), np.float32)
        queries, step = qkv.ctypes.data, qkv.strides[0]
        keys = queries + 4 * H * E
        job = new_job(queries, step, keys, step, keys + 4 * J * E, step, attended, H, E, J)
        job[J_ROTATIONS], job[J_SCALE] = rotations.ctypes.data, scales.ctypes.data + 4
        turned = np.empty(room_for_keys(spans, cut, job), np.float32)
        for layer in range(matrices.shape[0]):
            share_norm(
                x, y[: 0 if layer == 0 else T], gains[layer, 0], normed, scales, works[4], team
            )
            _product(normed.ctypes.data, D, T, matrices[layer, QKV], qkv, team)
            for row in range(T):
                for n in range(biases.shape[1]):
                    qkv[row, n] += biases[layer, n]
            attend(job, layer, spans, cut, works, turned, team)
            _product(attended.ctypes.data, H * E, T, matrices[layer, OUTPUT], y, team)
            share_norm(x, y, gains[layer, 1], normed, scales, works[4], team)
            for first in range(0, T, some):
                rows = min(some, T - first)
                _product(
                    normed[first:].ctypes.data, D, rows, matrices[layer, GATE_UP], gate_up, team
                )
                share_gate(gate_up, rows, hidden, works[5], team)
                _product(hidden.ctypes.data, F, rows, matrices[layer, DOWN], y[first:], team)
        for row in range(T):
            for d in range(D):
                x[row, d] += y[row, d]
        turned[0] = qkv[0, 0] = attended[0, 0] = hidden[0, 0] = normed[0, 0] = 0.0  # not before

    @njit(
        "void(float32[:, ::1], float32[::1], int64[:, ::1], float32[::1], float32[:, ::1],"
        " int64[::1], int64[::1])",
        cache=True,
        nogil=True,
    )
    def head(x, gain, pieces, scales, logits, works, team):
        """Scores [T, at least V] of what the last layer gave, x [T, D]."""
        if source < 0:
            return
        normed = np.empty(x.shape, np.float32)
        share_norm(x, logits[:0], gain, normed, scales, works[4], team)
        _product(normed.ctypes.data, x.shape[1], x.shape[0], pieces, logits, team)
        normed[0, 0] = 0.0  # not before this

    return run, head


run, head = _compile(
    digest(attention_kernel, activation_kernel, team_kernel, tile, score_kernel, vectors)
)
