"""Compiled norms and activations: one pass over the numbers instead of one an operation.

Letters as in `ops`, whose functions these stand in for, equal up to rounding. Importing
this module needs what `vectors` needs. Left out: widths that fill no whole vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types

from batchgauge.core.kernels import team_kernel, vectors
from batchgauge.core.kernels.team_kernel import digest, floats_at, instructions, lead, number
from batchgauge.core.kernels.vectors import INT, LANES, VECTOR, Writer, exponential
from batchgauge.core.ops import GELU_CUBE, GELU_SCALE

# The numbers of a job of `NORM`: x [COUNT, WIDTH], what is added to it first (address 0: nothing)
# with the bytes from row to row, the gain, out [COUNT, WIDTH], epsilon's address, rows of a part.
N_X, N_DELTA, N_DELTA_STEP, N_GAIN, N_OUT, N_WIDTH, N_COUNT, N_ROWS, N_EPSILON = range(9)
# And of `GATE`: gates [COUNT, WIDTH] with ups behind, bytes from row to row; out [COUNT, WIDTH].
G_IN, G_STEP, G_OUT, G_WIDTH, G_COUNT, G_ROWS = range(6)
_SUMS = {"reassoc", "contract", "nsz"}  # a sum of squares may be added up in vectors
PART = 8192  # numbers of a part of a norm or an activation, about: some microseconds


@instructions(types.void, literals=1)
def _gate(builder: Any, gelu: int, gate: Any, up: Any, out: Any, count: Any) -> None:
    """silu(gate) * up for `count` numbers, whole vectors of them, at addresses.

    gelu(gate) * up where the literal `gelu` is 1: (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), so its
    approximation is SiLU with another exponent. exp(-|x|) serves both signs and never overflows.
    """
    to = Writer(builder)
    zero, one, cube, scale = (
        ir.Constant(VECTOR, [number] * LANES) for number in (0.0, 1.0, GELU_CUBE, 2.0 * GELU_SCALE)
    )
    (offset,) = phis = to.loop(INT(0))
    x = to.load(gate, offset)
    exponent = x
    if gelu:
        bend = to.fma(cube, builder.fmul(x, x), one)
        exponent = builder.fmul(builder.fmul(x, scale), bend)
    positive = builder.fcmp_ordered(">", exponent, zero)
    opposite = builder.fsub(zero, exponent)
    small = exponential(to, builder.select(positive, opposite, exponent))
    share = builder.fdiv(builder.select(positive, one, small), builder.fadd(one, small))
    to.store(builder.fmul(builder.fmul(x, share), to.load(up, offset)), out, offset)
    further = builder.add(offset, INT(4 * LANES))
    end = builder.mul(count, INT(4))
    to.repeat(phis, [further], builder.icmp_signed("<", further, end))


@njit(nogil=True, fastmath=_SUMS)
def _scale(x, epsilon):
    """1 / sqrt(mean(x^2) + epsilon)."""
    squares = np.float32(0.0)
    for d in range(x.size):
        squares += x[d] * x[d]
    return np.float32(1.0) / np.sqrt(squares / np.float32(x.size) + epsilon)


@njit(nogil=True)
def _rows(width):
    """Rows of a part."""
    return max(1, PART // width)


@njit(nogil=True)
def share_norm(x, delta, gain, out, epsilon, work, team):
    """Add delta to x if it has rows; norm that into out. `work` is `NORM`."""
    job = np.empty(9, np.int64)
    job[N_X], job[N_DELTA], job[N_DELTA_STEP] = x.ctypes.data, 0, delta.strides[0]
    if delta.shape[0]:
        job[N_DELTA] = delta.ctypes.data
    job[N_GAIN], job[N_OUT], job[N_EPSILON] = gain.ctypes.data, out.ctypes.data, epsilon.ctypes.data
    job[N_WIDTH], job[N_COUNT], job[N_ROWS] = x.shape[1], x.shape[0], _rows(x.shape[1])
    lead(team, work, job, (x.shape[0] + job[N_ROWS] - 1) // job[N_ROWS])
    job[0] = 0  # Numba frees an array after its last mention: not before this


@njit(nogil=True)
def share_gate(gate_up, rows, out, work, team):
    """SwiGLU of so many rows into contiguous out [., F]. `work` is `GATE`."""
    job = np.empty(6, np.int64)
    job[G_IN], job[G_STEP], job[G_OUT] = gate_up.ctypes.data, gate_up.strides[0], out.ctypes.data
    job[G_WIDTH], job[G_COUNT], job[G_ROWS] = out.shape[1], rows, _rows(out.shape[1])
    lead(team, work, job, (rows + job[G_ROWS] - 1) // job[G_ROWS])
    job[0] = 0  # not before this


def _compile(source: int) -> tuple[Any, Any, Any, int, int]:
    """Gates, `rms_norm` and work, compiled for these sources: see `team_kernel.digest`."""

    def gated(gelu: int) -> Any:
        @njit("void(float32[:, :], float32[:, ::1])", cache=True, nogil=True)
        def activate(gate_up, out):
            """silu(gate) * up: float32 [T, 2F], rows contiguous, into [T, F]; F whole vectors."""
            if source < 0:
                return
            width = out.shape[1]
            for row in range(out.shape[0]):
                gate = gate_up.ctypes.data + row * gate_up.strides[0]
                _gate(gelu, gate, gate + 4 * width, out.ctypes.data + 4 * row * width, width)

        return activate

    @njit("void(float32[:, ::1], float32, float32[:, ::1])", cache=True, nogil=True)
    def rms_norm(x, epsilon, out):
        """X / sqrt(mean(x^2) + epsilon): float32 x [T, D] into out [T, D]."""
        if source < 0:
            return
        for row in range(x.shape[0]):
            scale = _scale(x[row], epsilon)
            for d in range(x.shape[1]):
                out[row, d] = x[row, d] * scale

    @cfunc("void(int64, int64)", cache=True)
    def norm_rows(job, part):
        """Add what a layer gave to some rows of x, and norm them."""
        if source < 0:
            return
        D, some = number(job, N_WIDTH), number(job, N_ROWS)
        gain, epsilon = floats_at(number(job, N_GAIN), D), floats_at(number(job, N_EPSILON), 1)[0]
        for row in range(part * some, min((part + 1) * some, number(job, N_COUNT))):
            x = floats_at(number(job, N_X) + 4 * D * row, D)
            if number(job, N_DELTA):
                delta = floats_at(number(job, N_DELTA) + number(job, N_DELTA_STEP) * row, D)
                for d in range(D):
                    x[d] += delta[d]
            out = floats_at(number(job, N_OUT) + 4 * D * row, D)
            scale = _scale(x, epsilon)
            for d in range(D):
                out[d] = x[d] * scale * gain[d]

    @cfunc("void(int64, int64)", cache=True)
    def gate_rows(job, part):
        """SwiGLU of some rows."""
        if source < 0:
            return
        F, some = number(job, G_WIDTH), number(job, G_ROWS)
        for row in range(part * some, min((part + 1) * some, number(job, G_COUNT))):
            gate = number(job, G_IN) + number(job, G_STEP) * row
            _gate(0, gate, gate + 4 * F, number(job, G_OUT) + 4 * F * row, F)

    return gated(0), gated(1), rms_norm, norm_rows.address, gate_rows.address


swiglu, geglu, rms_norm, NORM, GATE = _compile(digest(vectors, team_kernel))
