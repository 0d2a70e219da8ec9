"""Matrices that stay as a model file has them, or become bfloat16: fewer bytes to read.

`Packed` holds what `quantised_kernel` multiplies: blocks of 64 output features, in groups of
32 inputs. A group has codes, then scales, then what is added (`Kind` says which of them):
nibbles as 32-bit words of eight inputs [4, 64], their fifth bits as a word of all inputs
[1, 64], bytes and halves as [32, 64], scales and least values as [parts, 64]. Formats with
scales of scales keep their products, in float32.
`Stored` holds a file's own bytes and makes float32 of 64 rows at a time, where nothing is
compiled. Both have the weights that the file's format gives them, to the last bit, and sums in
the order of `products`: results equal those of float32 weights. Formats that are not among
`KINDS` are widened to float32.

Left out: float32 itself, which `weights.Blocked` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import groupby
from math import prod
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchgauge.core.gguf_layouts import OWN_LAYOUTS, Bytes, Layout
from batchgauge.core.kernels import products
from batchgauge.core.model_file import ModelFile
from batchgauge.core.ops import LINE, Floats, aligned
from batchgauge.core.quantised_kinds import (
    BLOCK,
    GROUP,
    KERNELS,
    KINDS,
    Kind,
    Parts,
    place_of_fifth,
)

PIECE = 1 << 25  # bytes of memory taken at a time
AT_ONCE = 4  # blocks that are read at a time: what they touch is small enough to be used again
BF16 = OWN_LAYOUTS[30]

Ids = npt.NDArray[np.integer[Any]]


# Addresses of a compiled product and of blocks, bytes from one to the next, how many blocks,
# and the first output feature of the first.
Piece = tuple[int, int, int, int, int]


class Matrix(Protocol):
    """A matrix [N, K] in whatever form."""

    features: int  # N
    nbytes: int

    def __call__(self, x: Floats) -> Floats:
        """Product of x [T, K] and the transposed matrix: [T, N]."""
        ...

    def rows(self, indices: Ids) -> Floats:
        """Rows of the matrix, as an embedding looks them up: [len(indices), K]."""
        ...

    def pieces(self) -> list[Piece]:
        """What compiled code must know of it, block upon block; nothing where it cannot."""
        ...


class Room:
    """Memory for many matrices, in pieces that the system can back with large pages.

    Several threads may take of it.
    """

    def __init__(self) -> None:
        self._left: Bytes = np.empty(0, np.uint8)
        self._lock = Lock()

    def take(self, size: int) -> Bytes:
        """So many bytes that begin with a cache line."""
        whole = -(-size // LINE) * LINE
        with self._lock:
            if whole > len(self._left):
                self._left = aligned(max(whole, PIECE) // 4).view(np.uint8)
            taken, self._left = self._left[:size], self._left[whole:]
        return taken


class Packed:
    """A matrix [N, K] in blocks: `blocks` uint8 [ceil(N / 64), K / 32, bytes of a group]."""

    def __init__(self, kind: Kind, features: int, inputs: int, room: Room) -> None:
        self.kind, self.features = kind, features
        shape = (-(-features // BLOCK), inputs // GROUP, kind.group_bytes)
        self.blocks: Bytes = room.take(prod(shape)).reshape(shape)
        self.nbytes = self.blocks.nbytes
        if features % BLOCK:
            self.blocks[-1] = 0
        self._multiply = kind.kernel()
        self._turn = import_module(KERNELS).turn

    def place(self, row: int, data: Bytes) -> None:
        """Put rows [R, bytes] of a file where they belong, from `row` on. All are finite."""
        self.place_parts(row, len(data), self.kind.unpack(data.reshape(-1)))

    def place_parts(self, row: int, count: int, parts: Parts) -> None:
        """The same with so many rows unpacked already."""
        groups = self.blocks.shape[1]
        made = [part.reshape(count, groups, -1) for part in parts if part is not None]
        done = 0
        while done < count:
            block, lane = divmod(row + done, BLOCK)
            some = min(BLOCK - lane, count - done)
            if whole := 0 if lane else (count - done) // BLOCK:  # blocks at once
                some = whole * BLOCK
            for at, part in zip(
                self._parts(slice(block, block + max(whole, 1))), made, strict=True
            ):
                rows = part[done : done + some].reshape(max(whole, 1), -1, groups, part.shape[2])
                lanes = at[..., lane : lane + rows.shape[1]]
                if rows.itemsize == lanes.itemsize == 1 and not (lane | rows.shape[1]) % 8:
                    self._turn(np.ascontiguousarray(rows).view("<u8"), lanes.view("<u8"))
                else:
                    lanes[:] = rows.transpose(0, 2, 3, 1)
            done += some

    def _parts(self, block: int | slice | Ids) -> Iterator[npt.NDArray[Any]]:
        """Codes, scales and least values of blocks, as they lie there: [..., groups, n, 64]."""
        kind, held = self.kind, self.blocks[block]
        ends = [0, kind.code_bytes]
        if kind.size:
            width = BLOCK * (GROUP // kind.size) * (4 if kind.wide else 2)
            ends += [ends[-1] + width * n for n in range(1, 2 + kind.least)]
        code = {8: "i1", 16: "<u2"}.get(kind.bits, "<u4")
        scale = "<f4" if kind.wide else "<f2"
        for first, last, form in zip(ends, ends[1:], (code, scale, scale), strict=False):
            part = held[..., first:last].view(form)
            yield part.reshape(*part.shape[:-1], -1, BLOCK)

    def __call__(self, x: Floats) -> Floats:
        """Product of x [T, K] and the transposed matrix: [T, N]."""
        y = np.empty((len(x), len(self.blocks) * BLOCK), np.float32)
        products.shared(self._multiply, np.ascontiguousarray(x), self.blocks, y)
        return y[:, : self.features]

    def pieces(self) -> list[Piece]:
        """All blocks."""
        blocks = self.blocks
        return [(self._multiply, blocks.ctypes.data, blocks.strides[0], len(blocks), 0)]

    def rows(self, indices: Ids) -> Floats:
        """Rows of the matrix, as an embedding looks them up: [len(indices), K]."""
        kind, at = self.kind, np.arange(len(indices))
        codes, *factors = (
            part[at, :, :, indices % BLOCK] for part in self._parts(indices // BLOCK)
        )  # [T, groups, n]
        if kind.bits < 8:
            words, fifth, bit = codes[..., :4, None], codes[..., 4:], np.arange(32, dtype=np.uint32)
            codes = (words >> bit[::4] & 15).reshape(*codes.shape[:-1], GROUP)
            if kind.bits == 5:
                codes |= (fifth >> place_of_fifth(bit) & 1) << 4
            codes = codes.astype(np.float32) - np.float32(kind.zero)
        elif kind.bits == 16:
            whole = (codes.astype(np.uint32) << 16).view(np.float32)
            codes = codes.view("<f2") if kind.exact else whole
        out = codes.reshape(len(indices), -1).astype(np.float32)
        for combine, factor in zip((np.multiply, np.add), factors, strict=False):
            spread = out.reshape(*factor.shape, -1)
            combine(spread, factor.astype(np.float32)[..., None], out=spread)
        return out


class Stored:
    """A matrix [N, K] as the bytes of a file's rows, made float32 by 64 rows at a time."""

    def __init__(self, layout: Layout, features: int, inputs: int) -> None:
        self.layout, self.features, self._inputs = layout, features, inputs
        width = inputs // layout.block * layout.block_bytes
        self.data: Bytes = np.empty((features, width), np.uint8)
        self.nbytes = self.data.nbytes

    def place(self, row: int, data: Bytes) -> None:
        """Put rows [R, bytes] there, from `row` on."""
        self.data[row : row + len(data)] = data

    def __call__(self, x: Floats) -> Floats:
        """Product of x [T, K] and the transposed matrix: [T, N]."""
        y = np.empty((len(x), self.features), np.float32)
        block = np.zeros((1, self._inputs, BLOCK), np.float32)
        for first in range(0, self.features, BLOCK):
            some = self.rows(slice(first, first + BLOCK))
            block[0, :, : len(some)] = some.T
            y[:, first : first + BLOCK] = products.product(x, block)[:, : len(some)]
        return y

    def pieces(self) -> list[Piece]:
        """Nothing."""
        return []

    def rows(self, indices: Ids | slice) -> Floats:
        """Rows of the matrix, as an embedding looks them up: [len(indices), K]."""
        data = np.ascontiguousarray(self.data[indices])
        out = np.empty((len(data), self._inputs), np.float32)
        self.layout.dequantise(data.reshape(-1), out.reshape(-1))
        return out


class Stacked:
    """Matrices of several forms, one above the other."""

    def __init__(self, parts: Sequence[Matrix]) -> None:
        self._parts = parts
        self.features = sum(part.features for part in parts)
        self.nbytes = sum(part.nbytes for part in parts)

    def __call__(self, x: Floats) -> Floats:
        """Product of x [T, K] and the transposed matrix: [T, N]."""
        return np.concatenate([part(x) for part in self._parts], axis=1)

    def pieces(self) -> list[Piece]:
        """Those of all parts, if each has some."""
        found: list[Piece] = []
        first = 0
        for part in self._parts:
            if not (pieces := part.pieces()):
                return []
            found += [(*piece[:4], first + piece[4]) for piece in pieces]
            first += part.features
        return found

    def rows(self, indices: Ids) -> Floats:
        """Rows of the matrix: [len(indices), K]."""
        ends = np.cumsum([part.features for part in self._parts])
        owners = np.searchsorted(ends, indices, side="right")
        found = []
        for owner, index in zip(owners, indices, strict=True):
            part = self._parts[owner]
            found.append(part.rows(np.array([index - ends[owner] + part.features])))
        return np.concatenate(found)


Check = Callable[[Floats, str], Floats]  # of values, and the tensor's name


def read_matrix(
    file: ModelFile, names: Sequence[str], *, bfloat16: bool, check: Check,
    whole: Callable[[Sequence[str]], Matrix], room: Room,
) -> Matrix:  # fmt: skip
    """Matrices of a file, one above the other, as they are there or as bfloat16, in a room.

    `check` raises UserError for values that are not finite; `whole` reads float32 ones.
    """

    def layout(name: str) -> Layout:
        return BF16 if bfloat16 else file.tensors[f"{name}.weight"].layout

    made: list[Matrix] = []
    for _, group in groupby(names, key=lambda name: layout(name).name):
        some = list(group)
        if layout(some[0]).name not in KINDS:  # float32, or what has no product of its own
            made.append(whole(some))
        else:
            made.append(_read(file, some, layout(some[0]), check, room))
    return made[0] if len(made) == 1 else Stacked(made)


def _read(
    file: ModelFile, names: Sequence[str], layout: Layout, check: Check, room: Room
) -> Matrix:
    """Matrices of one layout, one above the other."""
    shapes = [file.tensors[f"{name}.weight"].shape for name in names]
    features, inputs = sum(shape[0] for shape in shapes), shapes[0][1]
    matrix: Packed | Stored
    if inputs % GROUP or products.compiled() is None:
        matrix = Stored(layout, features, inputs)
    else:
        matrix = Packed(KINDS[layout.name], features, inputs, room)
    row = 0
    for name in names:
        tensor = file.tensors[f"{name}.weight"]
        stays = tensor.layout.name == layout.name
        for part, data in file.chunks(tensor, AT_ONCE * BLOCK * inputs):
            rows = (part.stop - part.start) // inputs
            if stays and isinstance(matrix, Packed) and matrix.kind.size:
                with np.errstate(over="ignore", invalid="ignore"):
                    parts = matrix.kind.unpack(data)
                for factor in parts[1:]:  # weights are finite where these are
                    if factor is not None:
                        check(np.asarray(factor, np.float32), name)
                matrix.place_parts(row, rows, parts)
            else:
                values = np.empty((rows, inputs), np.float32)
                with np.errstate(over="ignore", invalid="ignore"):  # `check` sees what comes of it
                    tensor.layout.dequantise(data, values.reshape(-1))
                check(values, name)
                stored = data if stays else as_bfloat16(values)
                matrix.place(row, stored.reshape(rows, -1))
            row += rows
    return matrix


def as_bfloat16(values: Floats) -> Bytes:
    """The nearest bfloat16 of each value, ties to even, as bytes."""
    bits = values.reshape(-1).view(np.uint32)
    upper = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return upper.astype("<u2").view(np.uint8)
