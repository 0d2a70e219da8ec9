"""Compiled scores of attention and their softmax, as intrinsics on addresses.

Letters as in `ops`. `score` reads keys position by position, each as long as a query, so that
memory gives nothing but the positions seen; `weigh` turns the scores of one query into
weights. Both are for `attention_kernel`. Importing this module needs what `vectors` needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types

from batchgauge.core.kernels.team_kernel import instructions
from batchgauge.core.kernels.vectors import (
    FEATURES,
    FLOAT,
    INT,
    INT32,
    LANES,
    VECTOR,
    VECTORS,
    WHOLE,
    Writer,
    exponential,
)
from batchgauge.core.ops import LINE

_SUM = ("reassoc", "nsz")  # a vector may be added up in pairs
TOGETHER = 4  # positions whose scores are added up side by side
FEW = ir.VectorType(FLOAT, TOGETHER)


@instructions(types.void, literals=1)
def _score(
    builder: Any, rows: int, queries: Any, q_step: Any, keys: Any, k_step: Any, seen: Any,
    scores: Any, s_step: Any, ahead: Any, fresh: Any,
) -> None:  # fmt: skip
    """scores[rows, seen] += queries[rows, FEATURES] @ keys[seen, FEATURES].T, or = where `fresh`.

    `rows` is a literal; the rest are addresses, steps from row to row in bytes, and a number
    of positions, one or more: rounded up to fours, which are read and written. As many bytes
    as are read are asked for from `ahead` on. Queries stay in registers, each key is read once.
    """
    to = Writer(builder)
    columns = [4 * LANES * column for column in range(VECTORS)]
    q_rows = [builder.add(queries, builder.mul(q_step, INT(row))) for row in range(rows)]
    q = [[to.load(q_row, column) for column in columns] for q_row in q_rows]
    s_rows = [builder.add(scores, builder.mul(s_step, INT(row))) for row in range(rows)]
    begin = builder.icmp_signed("!=", fresh, INT(0))
    offset, here, asked = phis = to.loop(INT(0), keys, ahead)
    products: list[list[Any]] = [[] for _ in range(rows)]
    for _ in range(TOGETHER):
        for line in range(4 * FEATURES // LINE):
            to.ask(asked, LINE * line)
        key = [to.load(here, column) for column in columns]
        for row in range(rows):
            product = builder.fmul(q[row][0], key[0])
            for mine, its in zip(q[row][1:], key[1:], strict=True):
                product = to.fma(mine, its, product)
            products[row].append(product)
        here, asked = builder.add(here, k_step), builder.add(asked, k_step)
    for row in range(rows):
        place = to.at(builder.add(s_rows[row], offset), FEW)
        so_far = builder.load(place, align=4)
        so_far = builder.select(begin, ir.Constant(FEW, [0.0] * TOGETHER), so_far)
        builder.store(builder.fadd(so_far, _totals(builder, products[row])), place, align=4)
    further = builder.add(offset, INT(4 * TOGETHER))
    end = builder.mul(seen, INT(4))
    to.repeat(phis, [further, here, asked], builder.icmp_signed("<", further, end))


def _totals(builder: Any, four: list[Any]) -> Any:
    """The sums of four vectors, side by side: halves are added, quarters, and so on."""
    half, quarter = LANES // 2, LANES // 4

    def pick(a: Any, b: Any, lanes: list[int]) -> Any:
        numbers = ir.VectorType(INT32, len(lanes))
        return builder.shuffle_vector(a, b, ir.Constant(numbers, lanes))

    def halve(a: Any, b: Any, starts: list[int], count: int) -> Any:
        """Both, each group of lanes that begins there half as long: its halves added."""
        lower = [start + lane for start in starts for lane in range(count)]
        return builder.fadd(pick(a, b, lower), pick(a, b, [lane + count for lane in lower]))

    a, b, c, d = four
    ab, cd = (halve(*pair, [0, LANES], half) for pair in ((a, b), (c, d)))
    both = halve(ab, cd, [0, half, LANES, LANES + half], quarter)
    groups = range(0, LANES, quarter)
    while quarter > 1:
        quarter //= 2
        size = LANES // 4
        turned = [g + (lane + quarter) % size for g in groups for lane in range(size)]
        both = builder.fadd(both, pick(both, both, turned))
    return pick(both, both, list(groups))


@njit(nogil=True)
def score(rows, queries, q_step, keys, k_step, seen, scores, s_step, ahead, fresh):
    """`_score` for a number of rows known only at run time."""
    if rows == 6:
        _score(6, queries, q_step, keys, k_step, seen, scores, s_step, ahead, fresh)
    elif rows == 5:
        _score(5, queries, q_step, keys, k_step, seen, scores, s_step, ahead, fresh)
    elif rows == 4:
        _score(4, queries, q_step, keys, k_step, seen, scores, s_step, ahead, fresh)
    elif rows == 3:
        _score(3, queries, q_step, keys, k_step, seen, scores, s_step, ahead, fresh)
    elif rows == 2:
        _score(2, queries, q_step, keys, k_step, seen, scores, s_step, ahead, fresh)
    else:
        _score(1, queries, q_step, keys, k_step, seen, scores, s_step, ahead, fresh)


@instructions(types.void)
def weigh(builder: Any, scores: Any, seen: Any, width: Any) -> None:
    """Softmax of float32 scores[:seen] in place, zeros from there to `width`, on an address.

    `width` is a multiple of LANES, at least `seen` and at least one vector. What lies
    from `seen` on is not looked at. Largest, exponentials and their sum, division: three turns.
    """
    to = Writer(builder)
    lowest = ir.Constant(VECTOR, [float("-inf")] * LANES)
    numbers = ir.Constant(WHOLE, list(range(LANES)))
    end = builder.mul(width, INT(4))

    def each(start: Any, turn: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
        """Go over all vectors: `turn` gives what to write, if anything, and what to carry on."""
        offset, carried = phis = to.loop(INT(0), start)
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
    share = to.spread(builder.fdiv(FLOAT(1.0), to.total(total, _SUM)))
    each(share, lambda offset, one: (builder.fmul(to.load(scores, offset), one), one))
