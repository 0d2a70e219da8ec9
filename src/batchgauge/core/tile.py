"""Compiled building blocks: the product of a tile in registers, and the weights of a softmax.

A tile of up to six rows and `FEATURES` columns stays in registers while it runs down the
inputs (Goto & van de Geijn 2008; Van Zee & van de Geijn 2015), and asks memory for what
comes next meanwhile. Both are Numba intrinsics on addresses, for `product_kernel` and
`attention_kernel`, which know where things lie and how long they are.

Each element of a product is one sum in the order of the inputs, whatever the number of
rows: a row's result does not depend on its neighbours, to the last bit.

Importing this module needs Numba and a processor with fused multiply-add; ImportError
where there is none. Left out: other types than float32, an odd number of inputs.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 6  # rows of a tile, at most
LINE = 64  # bytes that memory gives at a time
UNROLL = 2  # inputs in one turn of the inner loop
ALONE = 4  # lines that a tile alone asks for at every input: a row of 64 weights

_INT, _INT32, _FLOAT, _BYTE = ir.IntType(64), ir.IntType(32), ir.FloatType(), ir.IntType(8)


def tile_vectors() -> tuple[int, int]:
    """Numbers in a vector register of this processor, and vectors of a tile's row.

    ROWS rows of these vectors, one row of weights and one input fill the registers: 32 of
    AVX-512 and NEON, 16 of AVX2. ImportError where nothing multiplies and adds at once.
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
_VECTOR = ir.VectorType(_FLOAT, LANES)
_WHOLE = ir.VectorType(_INT32, LANES)


class Writer:
    """An LLVM builder with the few instructions on vectors that are needed here."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        """The result of one of LLVM's own functions."""
        kinds = [argument.type for argument in arguments]
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(result, kinds), name
        )
        return self.builder.call(function, arguments)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """The vector a * b + c."""
        return self.call(f"llvm.fma.v{LANES}f32", _VECTOR, a, b, c)

    def at(self, address: Any, kind: Any, offset: Any = 0) -> Any:
        """A pointer to something `offset` bytes behind an address."""
        moved = self.builder.add(address, _INT(offset) if isinstance(offset, int) else offset)
        return self.builder.inttoptr(moved, kind.as_pointer())

    def load(self, address: Any, offset: Any = 0) -> Any:
        """The vector there, which need not be aligned."""
        return self.builder.load(self.at(address, _VECTOR, offset), align=4)

    def store(self, vector: Any, address: Any, offset: Any = 0) -> None:
        """Write a vector there."""
        self.builder.store(vector, self.at(address, _VECTOR, offset), align=4)

    def spread(self, number: Any, kind: Any = _VECTOR) -> Any:
        """A vector of one number everywhere."""
        nowhere = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(nowhere, number, _INT32(0))
        return self.builder.shuffle_vector(one, nowhere, ir.Constant(_WHOLE, [0] * LANES))

    def ask(self, address: Any, offset: int) -> None:
        """Have the line there brought into the second cache, for reading."""
        place = self.at(address, _BYTE, offset)
        self.call("llvm.prefetch.p0", ir.VoidType(), place, _INT32(0), _INT32(2), _INT32(1))

    def phis(self, first: Sequence[tuple[Any, Sequence[Any]]], kinds: Sequence[Any]) -> list[Any]:
        """Values that change from turn to turn of a loop; `first` has (block, values) before it."""
        made = [self.builder.phi(kind) for kind in kinds]
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


@intrinsic(prefer_literal=True)
def _tile(
    typing_context: Any, rows: Any, lines: Any, x: Any, x_step: Any, weights: Any, w_step: Any,
    inputs: Any, y: Any, y_step: Any, ahead: Any, ahead_step: Any, fresh: Any,
) -> Any:  # fmt: skip
    """y[rows, FEATURES] += x[rows, inputs] @ weights[inputs, FEATURES], or = where `fresh`.

    `rows` and `lines` are literals. x, weights, y and ahead are addresses, steps the bytes
    from one row to the next; `lines` cache lines are asked for at every input, from
    `ahead` on and `ahead_step` bytes further each time. `inputs` is even.
    """

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _write_tile(Writer(builder), rows.literal_value, lines.literal_value, *args[2:])
        return context.get_dummy_value()

    return types.void(rows, lines, *[types.int64] * 10), generate


def _write_tile(
    to: Writer, rows: int, lines: int, x: Any, x_step: Any, weights: Any, w_step: Any,
    inputs: Any, y: Any, y_step: Any, ahead: Any, ahead_step: Any, fresh: Any,
) -> None:  # fmt: skip
    """The instructions of `_tile`."""
    builder = to.builder
    grid = [(row, 4 * LANES * column) for row in range(rows) for column in range(VECTORS)]
    x_rows = [builder.add(x, builder.mul(x_step, _INT(row))) for row in range(rows)]
    y_rows = [builder.add(y, builder.mul(y_step, _INT(row))) for row in range(rows)]
    end = builder.mul(inputs, _INT(4))
    before = builder.block
    resume, loop = builder.append_basic_block("resume"), builder.append_basic_block("loop")
    builder.cbranch(builder.icmp_signed("!=", fresh, _INT(0)), loop, resume)
    builder.position_at_end(resume)
    so_far = [to.load(y_rows[row], column) for row, column in grid]
    builder.branch(loop)
    builder.position_at_end(loop)
    start, zeros = [_INT(0), weights, ahead], [ir.Constant(_VECTOR, [0.0] * LANES)] * len(grid)
    phis = to.phis(
        [(before, start + zeros), (resume, start + so_far)], [_INT] * 3 + [_VECTOR] * len(grid)
    )
    offset, here, asked, *sums = phis
    for turn in range(UNROLL):
        for line in range(lines):
            to.ask(asked, LINE * line)
        asked = builder.add(asked, ahead_step)
        w = {column: to.load(here, column) for _, column in grid[:VECTORS]}
        here = builder.add(here, w_step)
        ones = [
            to.spread(builder.load(to.at(builder.add(one, offset), _FLOAT, 4 * turn), align=4))
            for one in x_rows
        ]
        sums = [
            to.fma(ones[row], w[column], so_far)
            for (row, column), so_far in zip(grid, sums, strict=True)
        ]
    further = builder.add(offset, _INT(4 * UNROLL))
    to.repeat(phis, [further, here, asked, *sums], builder.icmp_signed("<", further, end))
    for (row, column), value in zip(grid, sums, strict=True):
        to.store(value, y_rows[row], column)


def _by_rows(lines: int) -> Callable[..., None]:
    """`_tile` for a number of rows known only at run time."""

    @njit(nogil=True)
    def tile(rows, x, x_step, w, w_step, inputs, y, y_step, ahead, ahead_step, fresh):
        if rows == 6:
            _tile(6, lines, x, x_step, w, w_step, inputs, y, y_step, ahead, ahead_step, fresh)
        elif rows == 5:
            _tile(5, lines, x, x_step, w, w_step, inputs, y, y_step, ahead, ahead_step, fresh)
        elif rows == 4:
            _tile(4, lines, x, x_step, w, w_step, inputs, y, y_step, ahead, ahead_step, fresh)
        elif rows == 3:
            _tile(3, lines, x, x_step, w, w_step, inputs, y, y_step, ahead, ahead_step, fresh)
        elif rows == 2:
            _tile(2, lines, x, x_step, w, w_step, inputs, y, y_step, ahead, ahead_step, fresh)
        else:
            _tile(1, lines, x, x_step, w, w_step, inputs, y, y_step, ahead, ahead_step, fresh)

    compiled: Callable[..., None] = tile
    return compiled


tile_alone, tile_of_few, tile_of_many = _by_rows(ALONE), _by_rows(2), _by_rows(1)


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
    lowest = ir.Constant(_VECTOR, [float("-inf")] * LANES)
    numbers = ir.Constant(_WHOLE, list(range(LANES)))
    end = builder.mul(width, _INT(4))

    def each(start: Any, turn: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
        """Go over all vectors: `turn` gives what to write, if anything, and what to carry on."""
        before, loop = builder.block, builder.append_basic_block("loop")
        builder.branch(loop)
        builder.position_at_end(loop)
        offset, carried = phis = to.phis([(before, [_INT(0), start])], [_INT, _VECTOR])
        written, carries = turn(offset, carried)
        if written is not None:
            to.store(written, scores, offset)
        further = builder.add(offset, _INT(4 * LANES))
        to.repeat(phis, [further, carries], builder.icmp_signed("<", further, end))
        return carries

    def larger(offset: Any, largest: Any) -> tuple[Any, Any]:
        first = builder.trunc(builder.ashr(offset, _INT(2)), _INT32)
        number = builder.add(to.spread(first, _WHOLE), numbers)
        valid = builder.icmp_signed("<", number, to.spread(builder.trunc(seen, _INT32), _WHOLE))
        score = builder.select(valid, to.load(scores, offset), lowest)
        return score, builder.select(builder.fcmp_ordered(">", score, largest), score, largest)

    largest = each(lowest, larger)
    top = to.spread(to.call(f"llvm.vector.reduce.fmax.v{LANES}f32", _FLOAT, largest))

    def exponential(offset: Any, total: Any) -> tuple[Any, Any]:
        weight = _exponential(to, builder.fsub(to.load(scores, offset), top))
        return weight, builder.fadd(total, weight)

    total = each(ir.Constant(_VECTOR, [0.0] * LANES), exponential)
    whole = to.call(f"llvm.vector.reduce.fadd.v{LANES}f32", _FLOAT, _FLOAT(0.0), total)
    share = to.spread(builder.fdiv(_FLOAT(1.0), whole))
    each(share, lambda offset, one: (builder.fmul(to.load(scores, offset), one), one))


def _exponential(to: Writer, x: Any) -> Any:
    """exp(x) of a vector of numbers up to zero, zero below -87; the polynomial is Cephes's.

    x = n ln 2 + r with a whole n, so exp(x) = 2^n exp(r) (Moshier 1992); the power of two
    goes into the exponent's bits.
    """

    def constant(number: float) -> Any:
        return ir.Constant(_VECTOR, [number] * LANES)

    builder = to.builder
    above = builder.fcmp_ordered(">", x, constant(-87.0))
    x = builder.select(above, x, constant(-87.0))
    n = to.call(f"llvm.rint.v{LANES}f32", _VECTOR, builder.fmul(x, constant(1.44269504)))
    r = to.fma(n, constant(-0.693359375), x)
    r = to.fma(n, constant(2.12194440e-4), r)
    power = constant(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
        power = to.fma(power, r, constant(factor))
    power = builder.fadd(to.fma(builder.fmul(power, r), r, r), constant(1.0))
    exponent = builder.add(builder.fptosi(n, _WHOLE), ir.Constant(_WHOLE, [127] * LANES))
    two_to_n = builder.bitcast(builder.shl(exponent, ir.Constant(_WHOLE, [23] * LANES)), _VECTOR)
    return builder.select(above, builder.fmul(power, two_to_n), constant(0.0))
