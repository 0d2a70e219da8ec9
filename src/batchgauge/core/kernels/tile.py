"""The compiled product of a tile of rows and columns, in registers.

A tile of up to six rows and `FEATURES` columns stays in registers while it runs down the
inputs (Goto & van de Geijn 2008; Van Zee & van de Geijn 2015), and asks memory for what
comes next meanwhile. It is an intrinsic on addresses, for `product_kernel` and
`attention_kernel`, which know where things lie and how long they are.

Each element of a product is one sum in the order of the inputs, whatever the number of
rows: a row's result does not depend on its neighbours, to the last bit.

Left out: other types than float32, an odd number of inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types

from batchgauge.core.kernels.team_kernel import instructions
from batchgauge.core.kernels.vectors import FLOAT, INT, LANES, VECTOR, VECTORS, Writer
from batchgauge.core.ops import LINE

ROWS = 6  # rows of a tile, at most
UNROLL = 2  # inputs in one turn of the inner loop
ALONE = 4  # lines that a tile alone asks for at every input: a row of 64 weights


@instructions(types.void, literals=2)
def _tile(
    builder: Any, rows: int, lines: int, x: Any, x_step: Any, weights: Any, w_step: Any,
    inputs: Any, y: Any, y_step: Any, ahead: Any, ahead_step: Any, fresh: Any,
) -> None:  # fmt: skip
    """y[rows, FEATURES] += x[rows, inputs] @ weights[inputs, FEATURES], or = where `fresh`.

    `rows` and `lines` are literals. x, weights, y and ahead are addresses, steps the bytes
    from one row to the next; `lines` cache lines are asked for at every input, from
    `ahead` on and `ahead_step` bytes further each time. `inputs` is even.
    """
    to = Writer(builder)
    grid = [(row, 4 * LANES * column) for row in range(rows) for column in range(VECTORS)]
    x_rows = [builder.add(x, builder.mul(x_step, INT(row))) for row in range(rows)]
    y_rows = [builder.add(y, builder.mul(y_step, INT(row))) for row in range(rows)]
    end = builder.mul(inputs, INT(4))
    before = builder.block
    resume, loop = builder.append_basic_block("resume"), builder.append_basic_block("loop")
    builder.cbranch(builder.icmp_signed("!=", fresh, INT(0)), loop, resume)
    builder.position_at_end(resume)
    so_far = [to.load(y_rows[row], column) for row, column in grid]
    builder.branch(loop)
    builder.position_at_end(loop)
    start, zeros = [INT(0), weights, ahead], [ir.Constant(VECTOR, [0.0] * LANES)] * len(grid)
    phis = to.phis([(before, start + zeros), (resume, start + so_far)])
    offset, here, asked, *sums = phis
    for turn in range(UNROLL):
        for line in range(lines):
            to.ask(asked, LINE * line)
        asked = builder.add(asked, ahead_step)
        w = {column: to.load(here, column) for _, column in grid[:VECTORS]}
        here = builder.add(here, w_step)
        ones = [
            to.spread(builder.load(to.at(builder.add(one, offset), FLOAT, 4 * turn), align=4))
            for one in x_rows
        ]
        sums = [
            to.fma(ones[row], w[column], so_far)
            for (row, column), so_far in zip(grid, sums, strict=True)
        ]
    further = builder.add(offset, INT(4 * UNROLL))
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
