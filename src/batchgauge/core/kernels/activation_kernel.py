"""Compiled norms and activations: one pass over the numbers instead of one an operation.

Letters as in `ops`, whose functions these stand in for, equal up to rounding. Importing
this module needs what `vectors` needs. Left out: widths that fill no whole vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from batchgauge.core.kernels import vectors
from batchgauge.core.kernels.vectors import INT, LANES, VECTOR, Writer, digest, exponential
from batchgauge.core.ops import GELU_CUBE, GELU_SCALE

_SUMS = {"reassoc", "contract", "nsz"}  # a sum of squares may be added up in vectors


@intrinsic(prefer_literal=True)
def _gate(typing_context: Any, gelu: Any, gate: Any, up: Any, out: Any, count: Any) -> Any:
    """silu(gate) * up for `count` numbers, whole vectors of them, at addresses.

    gelu(gate) * up where the literal `gelu` is 1.
    """

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _write_gate(Writer(builder), gelu.literal_value, *args[1:])
        return context.get_dummy_value()

    return types.void(gelu, *[types.int64] * 4), generate


def _write_gate(to: Writer, gelu: int, gate: Any, up: Any, out: Any, count: Any) -> None:
    """The instructions of `_gate`; exp(-|x|) serves both signs and never overflows.

    (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), so GELU's approximation is SiLU with another exponent.
    """
    builder = to.builder
    zero, one, cube, scale = (
        ir.Constant(VECTOR, [number] * LANES)
        for number in (0.0, 1.0, GELU_CUBE, 2.0 * GELU_SCALE)
    )
    before, loop = builder.block, builder.append_basic_block("loop")
    builder.branch(loop)
    builder.position_at_end(loop)
    phis = to.phis([(before, [INT(0)])], [INT])
    x = to.load(gate, phis[0])
    exponent = x
    if gelu:
        bend = to.fma(cube, builder.fmul(x, x), one)
        exponent = builder.fmul(builder.fmul(x, scale), bend)
    positive = builder.fcmp_ordered(">", exponent, zero)
    opposite = builder.fsub(zero, exponent)
    small = exponential(to, builder.select(positive, opposite, exponent))
    share = builder.fdiv(builder.select(positive, one, small), builder.fadd(one, small))
    to.store(builder.fmul(builder.fmul(x, share), to.load(up, phis[0])), out, phis[0])
    further = builder.add(phis[0], INT(4 * LANES))
    end = builder.mul(count, INT(4))
    to.repeat(phis, [further], builder.icmp_signed("<", further, end))


def _compile(source: int) -> tuple[Any, Any, Any]:
    """`swiglu`, `geglu` and `rms_norm`, compiled for these sources: see `bpe_kernel._compile`."""

    @njit("void(float32[:, :], float32[:, ::1])", cache=True, nogil=True)
    def swiglu(gate_up, out):
        """silu(gate) * up: float32 [T, 2F], rows contiguous, into out [T, F]; F whole vectors."""
        if source < 0:
            return
        width = out.shape[1]
        for row in range(out.shape[0]):
            gate = gate_up.ctypes.data + row * gate_up.strides[0]
            _gate(0, gate, gate + 4 * width, out.ctypes.data + 4 * row * width, width)

    @njit("void(float32[:, :], float32[:, ::1])", cache=True, nogil=True)
    def geglu(gate_up, out):
        """gelu(gate) * up, as `swiglu`."""
        if source < 0:
            return
        width = out.shape[1]
        for row in range(out.shape[0]):
            gate = gate_up.ctypes.data + row * gate_up.strides[0]
            _gate(1, gate, gate + 4 * width, out.ctypes.data + 4 * row * width, width)

    @njit("void(float32[:, ::1], float32, float32[:, ::1])", cache=True, nogil=True, fastmath=_SUMS)
    def rms_norm(x, epsilon, out):
        """X / sqrt(mean(x^2) + epsilon): float32 x [T, D] into out [T, D]."""
        if source < 0:
            return
        for row in range(x.shape[0]):
            squares = np.float32(0.0)
            for d in range(x.shape[1]):
                squares += x[row, d] * x[row, d]
            scale = np.float32(1.0) / np.sqrt(squares / np.float32(x.shape[1]) + epsilon)
            for d in range(x.shape[1]):
                out[row, d] = x[row, d] * scale

    return swiglu, geglu, rms_norm


swiglu, geglu, rms_norm = _compile(digest(vectors))
