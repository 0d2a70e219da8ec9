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

import math
from typing import Any

import numpy as np
from numba import carray, cfunc, njit

from batchgauge.core.kernels import score_kernel, team_kernel, tile, vectors
from batchgauge.core.kernels.score_kernel import score, weigh
from batchgauge.core.kernels.team_kernel import digest, floats, floats_at, lead, number
from batchgauge.core.kernels.tile import ROWS, tile_alone
from batchgauge.core.kernels.vectors import FEATURES, LANES

PIECE = 24  # positions of a piece of a prompt
ENDLESS = 1 << 62  # positions
APART = 16  # numbers between rows of transposed keys, lest all begin in the same cache set


# The numbers of a job: addresses of queries, keys, values and output with the bytes from row to
# row, spans and pieces; the layer, heads; the angles' cosines and sines [T, E / 2, 2] (0: all is
# rotated and scaled already), the address of what queries are multiplied by; the address of
# a sight, int64 [2]: how many positions a query sees, and the bits of the float32 soft cap of
# scores, or 0 (0: all are seen, and there is no cap); how many spans are decode steps.
(
    J_Q, J_Q_STEP, J_K, J_K_STEP, J_V, J_V_STEP, J_OUT, J_OUT_STEP, J_SPANS, J_PIECES, J_LAYER,
    J_HEADS, J_WIDTH, J_KV_HEADS, J_ROTATIONS, J_SCALE, J_TURNED, J_SIGHT, J_STEPS, JOB,
) = range(20)  # fmt: skip
# And of a span, neighbouring positions of one row of a cache: see `kv_cache.KVCache.places`;
# then the first of its rows in the queries, how many there are, where keys lie transposed.
S_KEYS, S_VALUES, S_LAYER, S_STEP, S_HELD, S_FIRST, S_COUNT, S_TURNED, SPAN = range(9)


@njit(nogil=True)
def _mix(rows, scores, s_step, seen, values, E, out, out_step, following):
    """Values [seen, E] weighted by scores; `following` is what will be read next."""
    for first in range(0, E, FEATURES):
        tile_alone(rows, scores, s_step, values + 4 * first, 4 * E, seen + seen % 2,
                   out + 4 * first, out_step, following + 4 * first, 4 * E, 1)  # fmt: skip


@njit(nogil=True)
def _copy(source, target, count):
    """So many float32 from one address to another."""
    here, there = floats_at(source, count), floats_at(target, count)
    for i in range(count):
        there[i] = here[i]


@njit(nogil=True)
def _window(job):
    """How many positions a query sees, its own among them."""
    sight = number(job, J_SIGHT)
    return number(sight, 0) if sight else ENDLESS


@njit(nogil=True)
def _cap(job, scores, count):
    """Keep so many scores softly within a cap, in place."""
    sight = number(job, J_SIGHT)
    if sight and number(sight, 1):
        cap, row = floats_at(sight + 8, 1)[0], floats_at(scores, count)
        for i in range(count):
            row[i] = cap * math.tanh(row[i] / cap)


@njit(nogil=True)
def _rotate(at, rotations, width, scale):
    """Turn the pairs of a head by a position's angles (`ops.rotate`), and scale them."""
    x, turns = floats_at(at, width), floats_at(rotations, width)
    for i in range(0, width, 2):
        a, b, cosine, sine = x[i] * scale, x[i + 1] * scale, turns[i], turns[i + 1]
        x[i], x[i + 1] = a * cosine - b * sine, a * sine + b * cosine


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
def _steps(spans, pieces):
    """Decode steps among spans: all that come before those of pieces."""
    return spans.shape[0] if pieces.shape[0] == 0 else pieces[0, 0]


@njit(nogil=True)
def room_for_keys(spans, pieces, job):
    """Float32 of the room that `attend` needs, one at least; spans are told their places."""
    size = 0
    for span in range(_steps(spans, pieces), spans.shape[0]):
        spans[span, S_TURNED] = 4 * size
        length = spans[span, S_HELD] + spans[span, S_COUNT] + FEATURES + APART
        size += job[J_KV_HEADS] * job[J_WIDTH] * length
    return max(size, 1)


@njit(nogil=True)
def new_job(q, q_step, k, k_step, v, v_step, out, heads, width, kv_heads):
    """The numbers that say where queries, keys and values lie and where results go, out [T, .]."""
    job = np.zeros(JOB, np.int64)
    job[J_Q], job[J_Q_STEP], job[J_K], job[J_K_STEP] = q, q_step, k, k_step
    job[J_V], job[J_V_STEP] = v, v_step
    job[J_OUT], job[J_OUT_STEP] = out.ctypes.data, out.strides[0]
    job[J_HEADS], job[J_WIDTH], job[J_KV_HEADS] = heads, width, kv_heads
    return job


@njit(nogil=True)
def attend(job, layer, spans, pieces, works, turned, team):
    """Store the positions of all spans, and attend from there to all up to themselves.

    job     int64 [JOB]            of `new_job`; the rest is filled in here
    spans   int64 [S, SPAN]        first the decode steps, one position each
    pieces  int64 [n, 2]           the other spans cut up: span, first of `PIECE` positions
    works   int64 [:]              addresses: `WORKS`
    turned  float32                room, see `room_for_keys`
    """
    job[J_SPANS], job[J_PIECES] = spans.ctypes.data, pieces.ctypes.data
    J, steps = job[J_KV_HEADS], _steps(spans, pieces)
    job[J_TURNED], job[J_LAYER], job[J_STEPS] = turned.ctypes.data, layer, steps
    if steps:
        lead(team, works[0], job, steps * J)
    if pieces.shape[0]:
        lead(team, works[1], job, pieces.shape[0])
        lead(team, works[2], job, (spans.shape[0] - steps) * J)
        lead(team, works[3], job, pieces.shape[0] * J)


@njit(nogil=True)
def _ready(job, row, span, position, head, heads):
    """Rotate and store one position of some key/value heads, and rotate their queries."""
    H, E, J = number(job, J_HEADS), number(job, J_WIDTH), number(job, J_KV_HEADS)
    q_at = number(job, J_Q) + row * number(job, J_Q_STEP)
    k_at = number(job, J_K) + row * number(job, J_K_STEP)
    v_at = number(job, J_V) + row * number(job, J_V_STEP)
    turns, G = number(job, J_ROTATIONS), H // J
    if turns:
        scale = floats_at(number(job, J_SCALE), 1)[0]
        for query in range(head * G, (head + heads) * G):
            _rotate(q_at + 4 * E * query, turns + 4 * E * row, E, scale)
    layer, step = number(job, J_LAYER), number(span, S_STEP)
    for j in range(head, head + heads):
        if turns:
            _rotate(k_at + 4 * E * j, turns + 4 * E * row, E, np.float32(1.0))
        here = layer * number(span, S_LAYER) + j * step + 4 * E * position
        _copy(k_at + 4 * E * j, number(span, S_KEYS) + here, E)
        _copy(v_at + 4 * E * j, number(span, S_VALUES) + here, E)


@njit(nogil=True)
def _turned_keys(job, span, j):
    """Where a head's keys lie transposed, and the bytes from row to row."""
    length = number(span, S_HELD) + number(span, S_COUNT) + FEATURES + APART
    begin = number(job, J_TURNED) + number(span, S_TURNED)
    return begin + 4 * length * number(job, J_WIDTH) * j, 4 * length


def _compile(source: int) -> tuple[Any, tuple[int, ...]]:
    """`attend_once` and the works, compiled for these sources: see `team_kernel.digest`.

    They close over numbers only: a function among them would be another one to Numba's cache
    in every process, which then compiled them each time.
    """

    @cfunc("void(int64, int64)", cache=True)
    def one_row(job, part):
        """Store one position and attend from there: the heads of a row that share keys."""
        if source < 0:
            return
        H, E, J = number(job, J_HEADS), number(job, J_WIDTH), number(job, J_KV_HEADS)
        row, j = part // J, part % J
        span = number(job, J_SPANS) + 8 * SPAN * row
        G, total = H // J, number(span, S_HELD) + 1
        _ready(job, row, span, total - 1, j, 1)
        seen = min(total, _window(job))
        width = (seen + LANES - 1) // LANES * LANES
        held = np.empty((ROWS, seen + FEATURES), np.float32)
        scores, s_step = held.ctypes.data, 4 * (seen + FEATURES)
        step = number(span, S_STEP)
        here = number(job, J_LAYER) * number(span, S_LAYER) + j * step + 4 * E * (total - seen)
        k_at, v_at = number(span, S_KEYS) + here, number(span, S_VALUES) + here
        for g in range(0, G, ROWS):
            rows, head = min(ROWS, G - g), j * G + g
            q_at = number(job, J_Q) + row * number(job, J_Q_STEP) + 4 * E * head
            for first in range(0, E, FEATURES):
                score(
                    rows, q_at + 4 * first, 4 * E, k_at + 4 * first, 4 * E, seen,
                    scores, s_step, v_at + 4 * first, first == 0,
                )  # fmt: skip
            for query in range(rows):
                _cap(job, scores + query * s_step, seen)
                weigh(scores + query * s_step, seen, width)
            out_at = number(job, J_OUT) + row * number(job, J_OUT_STEP) + 4 * E * head
            _mix(rows, scores, s_step, seen, v_at, E, out_at, 4 * E, k_at + step)
        held[0, 0] = 0.0  # Numba frees an array after its last mention: not before this

    @cfunc("void(int64, int64)", cache=True)
    def store_piece(job, part):
        """Store the positions of a piece of a prompt."""
        if source < 0:
            return
        piece = number(job, J_PIECES) + 16 * part
        span, first = number(job, J_SPANS) + 8 * SPAN * number(piece, 0), number(piece, 1)
        for i in range(first, min(first + PIECE, number(span, S_COUNT))):
            row, position = number(span, S_FIRST) + i, number(span, S_HELD) + i
            _ready(job, row, span, position, 0, number(job, J_KV_HEADS))

    @cfunc("void(int64, int64)", cache=True)
    def turn_head(job, part):
        """Transpose the keys of one head, those of before too."""
        if source < 0:
            return
        E, J = number(job, J_WIDTH), number(job, J_KV_HEADS)
        at = number(job, J_STEPS) + part // J
        span, j = number(job, J_SPANS) + 8 * SPAN * at, part % J
        seen = number(span, S_HELD) + number(span, S_COUNT)
        keys = number(job, J_LAYER) * number(span, S_LAYER) + j * number(span, S_STEP)
        begin, step = _turned_keys(job, span, j)
        _turn(
            carray(floats(number(span, S_KEYS) + keys), (seen, E)), seen,
            carray(floats(begin), (E, step // 4)),
        )  # fmt: skip

    @cfunc("void(int64, int64)", cache=True)
    def one_piece(job, part):
        """Attend from a piece of a prompt, six queries of a head at a time: heads of one key."""
        if source < 0:
            return
        H, E, J = number(job, J_HEADS), number(job, J_WIDTH), number(job, J_KV_HEADS)
        piece, j = number(job, J_PIECES) + 16 * (part // J), part % J
        span, begin = number(job, J_SPANS) + 8 * SPAN * number(piece, 0), number(piece, 1)
        end = min(begin + PIECE, number(span, S_COUNT))
        start, G, window = number(span, S_HELD), H // J, _window(job)
        q_step, out_step = number(job, J_Q_STEP), number(job, J_OUT_STEP)
        q_at = number(job, J_Q) + number(span, S_FIRST) * q_step
        out = number(job, J_OUT) + number(span, S_FIRST) * out_step
        here = number(job, J_LAYER) * number(span, S_LAYER) + j * number(span, S_STEP)
        v_at = number(span, S_VALUES) + here
        k_at, k_step = _turned_keys(job, span, j)
        held = np.empty((ROWS, start + end + FEATURES), np.float32)
        scores, s_step = held.ctypes.data, 4 * (start + end + FEATURES)
        for head in range(j * G, (j + 1) * G):
            for query in range(begin, end, ROWS):
                low = max(0, start + query + 1 - window)  # what the first of them still sees
                rows, seen = min(ROWS, end - query), start + query + 1 - low
                longest = seen + rows - 1
                width = (longest + FEATURES - 1) // FEATURES * FEATURES
                for first in range(0, width, FEATURES):
                    tile_alone(
                        rows, q_at + query * q_step + 4 * E * head, q_step,
                        k_at + 4 * (low + first), k_step, E,
                        scores + 4 * first, s_step, v_at + 4 * E * first, 4 * FEATURES, 1,
                    )  # fmt: skip
                for row in range(rows):
                    _cap(job, scores + row * s_step, seen + row)
                    held[row, : max(0, start + query + row + 1 - window - low)] = -np.inf
                    weigh(scores + row * s_step, seen + row, width)
                out_at = out + query * out_step + 4 * E * head
                v_low = v_at + 4 * E * low
                _mix(rows, scores, s_step, longest, v_low, E, out_at, out_step, v_at)
        held[0, 0] = 0.0  # not freed before this

    @njit(
        "void(float32[:, :, :], float32[:, :, :], float32[:, :, :], float32[:, :], int64[:, ::1],"
        " int64[:, ::1], int64, int64[::1], int64[::1], int64[::1])",
        cache=True,
        nogil=True,
    )
    def attend_once(queries, keys, values, out, spans, pieces, layer, sight, works, team):
        """Store the positions of all spans in one layer, and attend from there: see `attend`.

        queries      float32 [T, H, E]   scaled, rotated, last axes contiguous
        keys, values float32 [T, J, E]   rotated, last axes contiguous
        out          float32 [T, H * E]  last axis contiguous
        """
        if source < 0:
            return
        job = new_job(
            queries.ctypes.data, queries.strides[0], keys.ctypes.data, keys.strides[0],
            values.ctypes.data, values.strides[0], out,
            queries.shape[1], queries.shape[2], keys.shape[1],
        )  # fmt: skip
        job[J_SIGHT] = sight.ctypes.data
        turned = np.empty(room_for_keys(spans, pieces, job), np.float32)
        attend(job, layer, spans, pieces, works, turned, team)
        turned[0] = 0.0  # not freed before this

    works = (one_row, store_piece, turn_head, one_piece)
    return attend_once, tuple(work.address for work in works)


attend_once, _works = _compile(digest(tile, vectors, score_kernel, team_kernel))
WORKS = np.array(_works, np.int64)
