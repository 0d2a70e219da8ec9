"""Vectors for compiled code: how wide this processor's are, and LLVM instructions on them.

`Writer` wraps an LLVM builder for the intrinsics of `tile`, `score_kernel` and
`activation_kernel`, which work on float32 at addresses; `exponential` is what softmax and
SwiGLU need. Importing this module needs Numba and a processor with fused multiply-add;
ImportError where there is none.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

INT, INT32, FLOAT, BYTE = ir.IntType(64), ir.IntType(32), ir.FloatType(), ir.IntType(8)


def tile_vectors() -> tuple[int, int]:
    """Numbers in a vector register of this processor, and vectors of a tile's row.

    Six rows of these, one row of weights and one input fill the registers: 32 of AVX-512 and
    NEON, 16 of AVX2. ImportError where nothing multiplies and adds at once.
    """
    if platform.machine().lower() in {"arm64", "aarch64"}:
        return 4, 4
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 4
    if features.get("avx2") and features.get("fma"):
        return 8, 2
    raise ImportError("this processor has no fused multiply-add")


LANES, VECTORS = tile_vectors()
FEATURES = LANES * VECTORS  # of a tile
VECTOR = ir.VectorType(FLOAT, LANES)
WHOLE = ir.VectorType(INT32, LANES)
# Into which cache lines are asked for, as LLVM counts: 3 the nearest, 2 the second. On AMD's Zen 5
# weights asked for into the second came late for some numbers of rows, in some processes and not
# in others; the other processors are as they were tried.
NEAREST, SECOND = 3, 2
ASKED = NEAREST if binding.get_host_cpu_name().startswith("znver") else SECOND


class Writer:
    """An LLVM builder with the few instructions on vectors that are needed here."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def call(self, name: str, result: Any, *arguments: Any, flags: Sequence[str] = ()) -> Any:
        """The result of one of LLVM's own functions; `flags` say how free its arithmetic is."""
        kinds = [argument.type for argument in arguments]
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(result, kinds), name
        )
        return self.builder.call(function, arguments, fastmath=flags)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """The vector a * b + c."""
        return self.call(f"llvm.fma.v{LANES}f32", VECTOR, a, b, c)

    def total(self, vector: Any, flags: Sequence[str]) -> Any:
        """The sum of a vector's numbers."""
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        return self.call(name, FLOAT, FLOAT(0.0), vector, flags=flags)

    def at(self, address: Any, kind: Any, offset: Any = 0) -> Any:
        """A pointer to something `offset` bytes behind an address."""
        moved = self.builder.add(address, INT(offset) if isinstance(offset, int) else offset)
        return self.builder.inttoptr(moved, kind.as_pointer())

    def load(self, address: Any, offset: Any = 0) -> Any:
        """The vector there, which need not be aligned."""
        return self.builder.load(self.at(address, VECTOR, offset), align=4)

    def store(self, vector: Any, address: Any, offset: Any = 0) -> None:
        """Write a vector there."""
        self.builder.store(vector, self.at(address, VECTOR, offset), align=4)

    def spread(self, number: Any, kind: Any = VECTOR) -> Any:
        """A vector of one number everywhere."""
        nowhere = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(nowhere, number, INT32(0))
        return self.builder.shuffle_vector(one, nowhere, ir.Constant(WHOLE, [0] * LANES))

    def ask(self, address: Any, offset: int) -> None:
        """Have the line there brought near, for reading."""
        place = self.at(address, BYTE, offset)
        self.call("llvm.prefetch.p0", ir.VoidType(), place, INT32(0), INT32(ASKED), INT32(1))

    def loop(self, *first: Any) -> list[Any]:
        """Begin a loop: values that change from turn to turn of it, `first` before it."""
        before, loop = self.builder.block, self.builder.append_basic_block("loop")
        self.builder.branch(loop)
        self.builder.position_at_end(loop)
        return self.phis([(before, first)])

    def phis(self, first: Sequence[tuple[Any, Sequence[Any]]]) -> list[Any]:
        """The same in a loop that is begun already; `first` has (block, values) before it."""
        made = [self.builder.phi(value.type) for value in first[0][1]]
        for block, values in first:
            for phi, value in zip(made, values, strict=True):
                phi.add_incoming(value, block)
        return made

    def repeat(self, phis: Sequence[Any], values: Sequence[Any], again: Any) -> None:
        """Close the loop that is being written: `values` become the phis' while `again` holds."""
        loop = self.builder.block
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, loop)
        done = self.builder.append_basic_block("done")
        self.builder.cbranch(again, loop, done)
        self.builder.position_at_end(done)


def exponential(to: Writer, x: Any) -> Any:
    """exp(x) of a vector of numbers up to zero, zero below -87; the polynomial is Cephes's.

    x = n ln 2 + r with a whole n, so exp(x) = 2^n exp(r) (Moshier 1992); the power of two
    goes into the exponent's bits.
    """

    def constant(number: float) -> Any:
        return ir.Constant(VECTOR, [number] * LANES)

    builder = to.builder
    above = builder.fcmp_ordered(">", x, constant(-87.0))
    x = builder.select(above, x, constant(-87.0))
    n = to.call(f"llvm.rint.v{LANES}f32", VECTOR, builder.fmul(x, constant(1.44269504)))
    r = to.fma(n, constant(-0.693359375), x)
    r = to.fma(n, constant(2.12194440e-4), r)
    power = constant(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
        power = to.fma(power, r, constant(factor))
    power = builder.fadd(to.fma(builder.fmul(power, r), r, r), constant(1.0))
    exponent = builder.add(builder.fptosi(n, WHOLE), ir.Constant(WHOLE, [127] * LANES))
    two_to_n = builder.bitcast(builder.shl(exponent, ir.Constant(WHOLE, [23] * LANES)), VECTOR)
    return builder.select(above, builder.fmul(power, two_to_n), constant(0.0))
