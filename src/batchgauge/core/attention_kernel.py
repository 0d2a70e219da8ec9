"""Compiled attention: every query sees its own positions and no more, nothing is padded.

Letters as in `ops`. Up to six queries that share keys and values are a tile: heads of one
position in a decode step, positions of one head in a prefill. Scores of a tile stay in
the nearest cache; while keys are read, memory is asked for the values, and while values
are read, for the next keys.

What lies behind a row's last position is read, in whole vectors, but never counts: the
buffers of a `kv_cache.Group` have room for that. Importing this module needs what
`vectors` needs. Left out: head widths that no whole tiles fill.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from batchgauge.core import tile, vectors
from batchgauge.core.tile import ROWS, tile_alone
from batchgauge.core.vectors import (
    FEATURES,
    FLOAT,
    INT,
    INT32,
    LANES,
    VECTOR,
    WHOLE,
    Writer,
    digest,
    exponential,
)


@intrinsic
def weigh(typing_context: Any, scores: Any, seen: Any, width: Any) -> Any:
    """Softmax of float32 scores[:seen] in place, zeros from there to `width`, on an address.

    `width` is a multiple of LANES, at least `seen` and at least one vector. What lies
    from `seen` on is not looked at.
    """

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _write_weigh(Writer(builder), *args)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _write_weigh(to: Writer, scores: Any, seen: Any, width: Any) -> None:
    """The instructions of `weigh`: largest, exponentials and their sum, division."""
    builder = to.builder
    lowest = ir.Constant(VECTOR, [float("-inf")] * LANES)
    numbers = ir.Constant(WHOLE, list(range(LANES)))
    end = builder.mul(width, INT(4))

    def each(start: Any, turn: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
        """Go over all vectors: `turn` gives what to write, if anything, and what to carry on."""
        before, loop = builder.block, builder.append_basic_block("loop")
        builder.branch(loop)
        builder.position_at_end(loop)
        offset, carried = phis = to.phis([(before, [INT(0), start])], [INT, VECTOR])
        written, carries = turn(offset, carried)
        if written is not None:
            to.store(written, scores, offset)
        further = builder.add(offset, INT(4 * LANES))
        to.repeat(phis, [further, carries], builder.icmp_signed("<", further, end))
        return carries

    def larger(offset: Any, largest: Any) -> tuple[Any, Any]:
        first = builder.trunc(builder.ashr(offset, INT(2)), INT32)
        number = builder.add(to.spread(first, WHOLE), numbers)
        valid = builder.icmp_signed("<", number, to.spread(builder.trunc(seen, INT32), WHOLE))
        score = builder.select(valid, to.load(scores, offset), lowest)
        return score, builder.select(builder.fcmp_ordered(">", score, largest), score, largest)

    largest = each(lowest, larger)
    top = to.spread(to.call(f"llvm.vector.reduce.fmax.v{LANES}f32", FLOAT, largest))

    def raised(offset: Any, total: Any) -> tuple[Any, Any]:
        weight = exponential(to, builder.fsub(to.load(scores, offset), top))
        return weight, builder.fadd(total, weight)

    total = each(ir.Constant(VECTOR, [0.0] * LANES), raised)
    whole = to.call(f"llvm.vector.reduce.fadd.v{LANES}f32", FLOAT, FLOAT(0.0), total)
    share = to.spread(builder.fdiv(FLOAT(1.0), whole))
    each(share, lambda offset, one: (builder.fmul(to.load(scores, offset), one), one))


@njit(nogil=True)
def _attend(
    rows, queries, q_step, seen, more, keys, values, C, E, scores, s_step, out, out_step, following
):
    """One tile's attention; row i sees `seen + i * more` positions of keys [E, C], values [C, E].

    Arguments but rows, numbers and widths are addresses and steps in bytes. `following` is
    what will be read next: asked for, as much as there are values, while values are read.
    """
    longest = seen + (rows - 1) * more
    width = (longest + FEATURES - 1) // FEATURES * FEATURES
    for first in range(0, width, FEATURES):
        tile_alone(rows, queries, q_step, keys + 4 * first, 4 * C, E,
                   scores + 4 * first, s_step, values + 4 * E * first, 4 * FEATURES, 1)  # fmt: skip
    for row in range(rows):
        weigh(scores + row * s_step, seen + row * more, width)
    for first in range(0, E, FEATURES):
        tile_alone(rows, scores, s_step, values + 4 * first, 4 * E, longest + longest % 2,
                   out + 4 * first, out_step, following, 4 * E, 1)  # fmt: skip
        following += 4 * E * longest


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
        keys                 float32 [R, J, E, C]  values float32 [R, J, C, E]
        lengths              int64   [R]           positions held so far
        out                  float32 [R, H * E]
        """
        if source < 0:
            return
        R, H, E = queries.shape
        J, C = keys.shape[1], keys.shape[3]
        G = H // J
        held = np.empty((ROWS, C + FEATURES), np.float32)
        scores, s_step, block = held.ctypes.data, held.strides[0], 4 * E * C
        q_at, out_at = queries.ctypes.data, out.ctypes.data
        for row in range(R):
            position = lengths[row]
            for j in range(J):
                keys[row, j, :, position] = new_keys[row, j]
                values[row, j, position] = new_values[row, j]
                k_at = keys.ctypes.data + (row * J + j) * block
                v_at = values.ctypes.data + (row * J + j) * block
                for g in range(0, G, ROWS):
                    head = j * G + g
                    _attend(
                        min(ROWS, G - g), q_at + row * queries.strides[0] + 4 * E * head, 4 * E,
                        position + 1, 0, k_at, v_at, C, E, scores, s_step,
                        out_at + 4 * E * (row * H + head), 4 * E, k_at + block,
                    )  # fmt: skip

    @njit(
        "void(float32[:, :, :], float32[:, :, ::1], float32[:, :, ::1], int64, float32[:, :, ::1])",
        cache=True,
        nogil=True,
    )
    def causal(queries, keys, values, start, out):
        """Attend from T positions behind `start` others to all up to themselves.

        queries  float32 [T, H, E]  scaled by 1 / sqrt(E), last axis contiguous
        keys     float32 [J, E, C]  values float32 [J, C, E], the T positions stored
        out      float32 [T, H, E]
        """
        if source < 0:
            return
        T, H, E = queries.shape
        J, C = keys.shape[0], keys.shape[2]
        held = np.empty((ROWS, C + FEATURES), np.float32)
        scores, s_step, block = held.ctypes.data, held.strides[0], 4 * E * C
        q_at, out_at, out_step = queries.ctypes.data, out.ctypes.data, 4 * H * E
        for head in range(H):
            k_at = keys.ctypes.data + head * J // H * block
            v_at = values.ctypes.data + head * J // H * block
            for first in range(0, T, ROWS):
                _attend(
                    min(ROWS, T - first), q_at + first * queries.strides[0] + 4 * E * head,
                    queries.strides[0], start + first + 1, 1, k_at, v_at, C, E, scores, s_step,
                    out_at + first * out_step + 4 * E * head, out_step, k_at,
                )  # fmt: skip

    return step, causal


step, causal = _compile(digest(tile, vectors))
