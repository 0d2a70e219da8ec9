"""The compiled product of rows and weights that stay quantised: float32 only in registers.

A block holds 64 output features, group after group of 32 inputs: codes first, one
vector's lanes side by side (`quantised` says how), then scales, then what is added. Up to
`FEW` rows multiply each weight as it leaves its codes; for more of them, chunks of a block
become float32 in the nearest cache, or whole blocks in the second one, for the tiles of
`tile`. Each sum has the order of `product_kernel`, and each weight the value that the
file's format gives it, so results are the same to the last bit.

Importing this module needs what `vectors` needs; `kernel` compiles one kind of weights
when that is first asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types

from batchgauge.core import quantised_kinds
from batchgauge.core.kernels import product_kernel, team_kernel, tile, vectors
from batchgauge.core.kernels.product_kernel import CHUNK, MANY, height, turns_of
from batchgauge.core.kernels.team_kernel import digest, instructions, number
from batchgauge.core.kernels.tile import tile_of_many
from batchgauge.core.kernels.vectors import (
    BYTE,
    FEATURES,
    FLOAT,
    INT,
    INT32,
    LANES,
    VECTOR,
    VECTORS,
    WHOLE,
    Writer,
)
from batchgauge.core.ops import LINE
from batchgauge.core.quantised_kinds import BLOCK, GROUP, KINDS, Kind

FEW = 4  # rows that are multiplied while weights leave their codes
AHEAD = 6144  # bytes that are asked for ahead
PANELS = BLOCK // FEATURES
HALF = ir.HalfType()
ALL = tuple(KINDS.values())  # compiled code knows a kind by its place here


class _Codes:
    """Instructions that turn one group's codes into float32, for `FEATURES` of the features."""

    def __init__(self, to: Writer, here: Any, lane: Any, kind: Kind) -> None:
        self.to, self.kind, self.bits = to, kind, kind.bits

        def behind(width: int) -> Any:
            return to.builder.add(here, to.builder.mul(lane, INT(width)))

        self.codes = behind(4 if kind.bits < 8 else kind.bits // 8)
        self.factors = behind(4 if kind.wide else 2)
        self.levels = [float(level - kind.zero) for level in range(32)]

    def vector(self, at: Any, kind: Any, offset: int) -> Any:
        """LANES numbers of a kind, so many bytes behind an address."""
        return self.to.builder.load(self.to.at(at, ir.VectorType(kind, LANES), offset), align=1)

    def scales(self, column: int, part: int, second: int) -> Any:
        """What the weights of some inputs are multiplied by, or what is added to them."""
        kind = self.kind
        number = BLOCK * (second * (GROUP // kind.size) + part) + LANES * column
        offset = kind.code_bytes + (4 if kind.wide else 2) * number
        if kind.wide:
            return self.vector(self.factors, FLOAT, offset)
        return self.to.builder.fpext(self.vector(self.factors, HALF, offset), VECTOR)

    def weights(self, i: int, held: dict[Any, Any]) -> list[Any]:
        """The weights of input i of the group; `held` keeps what its neighbours share."""
        builder, found = self.to.builder, []
        for column in range(VECTORS):
            value = self._levels(i, column, held)
            if self.kind.size:
                key = (column, i // self.kind.size)
                if key not in held:
                    more = [self.scales(*key, 1)] if self.kind.least else []
                    held[key] = [self.scales(*key, 0), *more]
                scale, *least = held[key]
                value = self.to.fma(value, scale, *least) if least else builder.fmul(value, scale)
            found.append(value)
        return found

    def _levels(self, i: int, column: int, held: dict[Any, Any]) -> Any:
        """The numbers that codes stand for, before scales."""
        builder = self.to.builder
        if self.bits == 16:
            offset = 2 * (BLOCK * i + LANES * column)
            if self.kind.exact:
                return builder.fpext(self.vector(self.codes, HALF, offset), VECTOR)
            upper = builder.zext(self.vector(self.codes, ir.IntType(16), offset), WHOLE)
            return builder.bitcast(builder.shl(upper, self._same(16)), VECTOR)
        if self.bits == 8:
            codes = self.vector(self.codes, BYTE, BLOCK * i + LANES * column)
            return builder.sitofp(builder.sext(codes, WHOLE), VECTOR)
        number, nibble = divmod(i, 8)
        find = self._with_fifths if self.bits == 5 else self._word
        word = find(number, nibble % 2, column, held)
        codes = builder.lshr(word, self._same(4 * nibble)) if nibble else word
        if self.bits == 5 and nibble == 7:  # its fifth bit is the word's lowest
            codes = builder.or_(codes, builder.shl(word, self._same(4)))
        tables = [ir.Constant(VECTOR, self.levels[n : n + 16]) for n in (0, 16) if LANES == 16]
        if tables and self.bits == 4:  # takes the lowest four bits of each lane
            return self.to.call("llvm.x86.avx512.permvar.sf.512", VECTOR, tables[0], codes)
        if tables:  # takes the lowest five
            few, more = tables
            return self.to.call("llvm.x86.avx512.vpermi2var.ps.512", VECTOR, few, codes, more)
        codes = builder.and_(codes, self._same((1 << self.bits) - 1))
        if self.kind.zero:
            codes = builder.sub(codes, self._same(self.kind.zero))
        return builder.sitofp(codes, VECTOR)

    def _word(self, number: int, _odd: int, column: int, held: dict[Any, Any]) -> Any:
        """A 32-bit lane of codes."""
        key = (column, number, "codes")
        if key not in held:
            held[key] = self.vector(self.codes, INT32, 4 * (BLOCK * number + LANES * column))
        return held[key]

    def _with_fifths(self, number: int, odd: int, column: int, held: dict[Any, Any]) -> Any:
        """The same, its even, or odd, nibbles with their fifth bits above them: four inputs'."""
        key = (column, number, odd)
        if key not in held:
            builder, mask = self.to.builder, 0x01010101 if odd else 0x10101010
            fifths = builder.lshr(self._word(GROUP // 8, odd, column, held), self._same(number))
            word = self._word(number, odd, column, held)
            rest = builder.and_(word, self._same(~mask & 0xFFFFFFFF))
            held[key] = builder.or_(rest, builder.and_(fifths, self._same(mask)))
        return held[key]

    def _same(self, number: int) -> Any:
        return ir.Constant(WHOLE, [number] * LANES)


@instructions(types.void, literals=2)
def _groups(
    builder: Any, rows: int, kind: int, x: Any, x_step: Any, weights: Any, lane: Any,
    groups: Any, y: Any, y_step: Any, ahead: Any,
) -> None:  # fmt: skip
    """y[rows, FEATURES] = x[rows, inputs] @ weights, or y[inputs, FEATURES] = weights at 0 rows.

    `rows` and `kind`, a place in `ALL`, are literals. The others are addresses, steps in bytes
    from row to row, and a number of groups. A panel's share of the groups from `ahead` on is
    asked for.
    """
    to, group = Writer(builder), ALL[kind].group_bytes
    grid = [(row, column) for row in range(rows) for column in range(VECTORS)]
    x_rows = [builder.add(x, builder.mul(x_step, INT(row))) for row in range(rows)]
    zeros = [ir.Constant(VECTOR, [0.0] * LANES)] * len(grid)
    number, *sums = phis = to.loop(INT(0), *zeros)
    here = builder.add(weights, builder.mul(number, INT(group)))
    asked = builder.add(ahead, builder.mul(number, INT(group // PANELS)))
    x_here = [builder.add(one, builder.mul(number, INT(4 * GROUP))) for one in x_rows]
    y_here = builder.add(y, builder.mul(number, INT(GROUP * 4 * FEATURES)))
    codes = _Codes(to, here, lane, ALL[kind])
    held: dict[Any, Any] = {}
    lines = -(-group // PANELS // LINE)
    for i in range(GROUP):
        for line in range(i * lines // GROUP, (i + 1) * lines // GROUP):
            to.ask(asked, LINE * line)
        w = codes.weights(i, held)
        for column in range(VECTORS) if not rows else ():
            to.store(w[column], y_here, 4 * (FEATURES * i + LANES * column))
        ones = [to.spread(builder.load(to.at(one, FLOAT, 4 * i), align=4)) for one in x_here]
        sums = [
            to.fma(ones[row], w[column], so_far)
            for (row, column), so_far in zip(grid, sums, strict=True)
        ]
    further = builder.add(number, INT(1))
    to.repeat(phis, [further, *sums], builder.icmp_signed("<", further, groups))
    for (row, column), value in zip(grid, sums, strict=True):
        to.store(value, builder.add(y, builder.mul(y_step, INT(row))), 4 * LANES * column)


@njit(forceinline=True)
def _exchange(a, b, shift, mask):
    """Two words, the upper parts of the first exchanged with the lower ones of the second."""
    other = (a >> shift ^ b) & mask
    return a ^ other << shift, b ^ other


@njit("void(uint64[:, :, :, ::1], uint64[:, :, :, :])", cache=True, nogil=True)
def turn(rows, lanes):
    """Codes of rows [B, 8 n, groups, GROUP] into blocks [B, groups, GROUP, 8 n], eight a word.

    Eight words of eight bytes change rows for columns by halves, quarters and bytes
    (Warren, Hacker's Delight, section 7-3).
    """
    S32, S16, S8 = np.uint64(32), np.uint64(16), np.uint64(8)
    M32, M16 = np.uint64(0xFFFFFFFF), np.uint64(0x0000FFFF0000FFFF)
    M8 = np.uint64(0x00FF00FF00FF00FF)
    for block in range(rows.shape[0]):
        for group in range(rows.shape[2]):
            for word in range(rows.shape[3]):
                for some in range(rows.shape[1] // 8):
                    a, b, c, d, e, f, g, h = (
                        rows[block, 8 * some, group, word],
                        rows[block, 8 * some + 1, group, word],
                        rows[block, 8 * some + 2, group, word],
                        rows[block, 8 * some + 3, group, word],
                        rows[block, 8 * some + 4, group, word],
                        rows[block, 8 * some + 5, group, word],
                        rows[block, 8 * some + 6, group, word],
                        rows[block, 8 * some + 7, group, word],
                    )
                    a, e = _exchange(a, e, S32, M32)
                    b, f = _exchange(b, f, S32, M32)
                    c, g = _exchange(c, g, S32, M32)
                    d, h = _exchange(d, h, S32, M32)
                    a, c = _exchange(a, c, S16, M16)
                    b, d = _exchange(b, d, S16, M16)
                    e, g = _exchange(e, g, S16, M16)
                    f, h = _exchange(f, h, S16, M16)
                    a, b = _exchange(a, b, S8, M8)
                    c, d = _exchange(c, d, S8, M8)
                    e, f = _exchange(e, f, S8, M8)
                    g, h = _exchange(g, h, S8, M8)
                    for i, whole in enumerate((a, b, c, d, e, f, g, h)):
                        lanes[block, group, 8 * word + i, some] = whole


@cache
def kernel(kind: Kind) -> int:
    """The address of `multiply` for a kind of weights."""
    source = digest(tile, vectors, product_kernel, team_kernel, quantised_kinds)
    return int(_compile(source, ALL.index(kind), kind.group_bytes).address)


def _compile(source, kind, group):
    """`multiply`, compiled for these sources: see `attention_kernel._compile`."""

    @cfunc("void(int64, int64)", cache=True)
    def multiply(job, block):
        """Fill y's columns of one block; `job` is that of `team_kernel.multiply`.

        x       float32 [T, K]           K a multiple of GROUP
        blocks  uint8 [n, K / GROUP, group]
        y       float32 [T, n * BLOCK]
        """
        if source < 0:
            return
        x_at, T, K = number(job, 0), number(job, 1), number(job, 2)
        codes_step, y_step = number(job, 4), number(job, 6)
        w_at = number(job, 3) + block * codes_step
        y_at = number(job, 5) + 4 * BLOCK * block
        groups = K // GROUP
        x_step, w_step = 4 * K, 4 * FEATURES
        if T <= FEW:
            for panel in range(PANELS):
                lane = panel * FEATURES
                ahead = w_at + AHEAD
                if PANELS > 1:
                    ahead = w_at + codes_step + panel * (codes_step // PANELS)
                y_here = y_at + 4 * lane
                if T == 1:
                    _groups(1, kind, x_at, x_step, w_at, lane, groups, y_here, y_step, ahead)
                elif T == 2:
                    _groups(2, kind, x_at, x_step, w_at, lane, groups, y_here, y_step, ahead)
                elif T == 3:
                    _groups(3, kind, x_at, x_step, w_at, lane, groups, y_here, y_step, ahead)
                else:
                    _groups(4, kind, x_at, x_step, w_at, lane, groups, y_here, y_step, ahead)
            return
        turns = turns_of(T)
        chunk = CHUNK // GROUP if turns < MANY else groups
        room = np.empty(GROUP * chunk * FEATURES + LINE // 4, np.float32)
        w = (room.ctypes.data + LINE - 1) // LINE * LINE
        for panel in range(PANELS):
            lane = panel * FEATURES
            for begin in range(0, groups, chunk):
                some = min(chunk, groups - begin)
                here = w_at + begin * group
                ahead = here + AHEAD
                if PANELS > 1:
                    ahead = here + codes_step + panel * (codes_step // PANELS)
                _groups(0, kind, x_at, x_step, here, lane, some, w, w_step, ahead)
                row = 0
                for turn in range(turns):
                    rows = height(T, turns, turn, row)
                    tile_of_many(
                        rows, x_at + row * x_step + 4 * GROUP * begin, x_step, w, w_step,
                        GROUP * some, y_at + 4 * lane + row * y_step, y_step, w, 0, begin == 0,
                    )  # fmt: skip
                    row += rows
        room[0] = 0.0  # Numba frees an array after its last mention: not before this

    return multiply
