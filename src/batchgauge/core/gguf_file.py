"""GGUF files: metadata, a table of tensors, and tensors as float32.

Reads versions 2 and 3 of the format, little-endian
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Arrays of strings are
read in one pass, since the `gguf` package takes seconds for a vocabulary; it still
does the dequantising of every type but the six below, which are read here, a
cache's worth at a time, into an array of the caller's.

Left out: writing, big-endian files, splitting over several files.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgauge.errors import UserError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

STRING, ARRAY = 8, 9  # GGUF value types that are not scalars
SCALARS = dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"])) | {
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
WINDOW = 1 << 16  # bytes that the system maps around a page when that is first touched
CHUNK = 1 << 16  # elements dequantised at a time: what they touch stays in the L2 cache

_half = np.dtype("<f2")
_q4_0 = np.dtype([("scale", _half), ("nibbles", "u1", 16)])
_q4_1 = np.dtype([("scale", _half), ("least", _half), ("nibbles", "u1", 16)])
_q8_0 = np.dtype([("scale", _half), ("values", "i1", 32)])


def _f32(data: Bytes, out: Floats) -> None:
    out[:] = data.view("<f4")


def _f16(data: Bytes, out: Floats) -> None:
    out[:] = data.view(_half)


def _bf16(data: Bytes, out: Floats) -> None:
    np.left_shift(data.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _q4_0_blocks(data: Bytes, out: Floats) -> None:
    blocks = data.view(_q4_0)  # [N]
    rows = out.reshape(-1, 2, 16)  # the low nibbles of a block come before the high ones
    rows[:, 0] = blocks["nibbles"] & 15
    rows[:, 1] = blocks["nibbles"] >> 4
    rows -= 8
    rows *= blocks["scale"].astype(np.float32)[:, None, None]


def _q4_1_blocks(data: Bytes, out: Floats) -> None:
    blocks = data.view(_q4_1)  # [N]
    rows = out.reshape(-1, 2, 16)
    rows[:, 0] = blocks["nibbles"] & 15
    rows[:, 1] = blocks["nibbles"] >> 4
    rows *= blocks["scale"].astype(np.float32)[:, None, None]
    rows += blocks["least"].astype(np.float32)[:, None, None]


def _q8_0_blocks(data: Bytes, out: Floats) -> None:
    blocks = data.view(_q8_0)  # [N]
    np.multiply(
        blocks["values"],
        blocks["scale"].astype(np.float32)[:, None],
        out=out.reshape(-1, 32),
        dtype=np.float32,
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """How one tensor type is stored: `block` elements in `block_bytes` bytes."""

    name: str
    block: int
    block_bytes: int
    dequantise: Callable[[Bytes, Floats], None]


OWN_LAYOUTS = {
    0: Layout("F32", 1, 4, _f32),
    1: Layout("F16", 1, 2, _f16),
    2: Layout("Q4_0", 32, 18, _q4_0_blocks),
    3: Layout("Q4_1", 32, 20, _q4_1_blocks),
    8: Layout("Q8_0", 32, 34, _q8_0_blocks),
    30: Layout("BF16", 1, 2, _bf16),
}


def layout_of(type_id: int) -> Layout:
    """The layout of a GGML tensor type. Raises UserError for an unknown one."""
    if type_id in OWN_LAYOUTS:
        return OWN_LAYOUTS[type_id]
    from gguf import quants
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(type_id)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise UserError(f"A tensor has the unknown type {type_id}; expected a GGML type.") from None

    def dequantise(data: Bytes, out: Floats) -> None:
        try:
            out[:] = quants.dequantize(data.reshape(1, -1), kind).reshape(-1)
        except NotImplementedError:
            raise UserError(
                f"The `gguf` package cannot dequantise {kind.name}; expected another quantisation."
            ) from None

    return Layout(kind.name, block, block_bytes, dequantise)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the tensor table; `shape` is NumPy's order (the file's reversed)."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    start: int  # bytes from the start of the file

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def file_bytes(self) -> int:
        """Bytes in the file."""
        return self.size // self.layout.block * self.layout.block_bytes


class GGUFFile:
    """An open GGUF file: `metadata` (arrays as NumPy arrays, of strings as lists), `tensors`."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self._data = data
        reader = _Reader(data)
        version, tensor_count, pair_count = reader.header()
        if version not in {2, 3}:
            raise UserError(f"'{path}' is GGUF version {version}; expected 2 or 3, little-endian.")
        self.metadata: dict[str, Any] = {
            reader.string(): reader.value(reader.scalar("<u4")) for _ in range(pair_count)
        }
        table = [reader.tensor() for _ in range(tensor_count)]
        alignment = int(self.metadata.get("general.alignment", 32))
        if alignment < 1:
            raise ValueError("general.alignment is not above 0")
        start = -(-reader.at // alignment) * alignment
        self.tensors = {
            name: Tensor(name, shape, layout_of(kind), start + offset)
            for name, shape, kind, offset in table
        }
        for tensor in self.tensors.values():
            if tensor.start + tensor.file_bytes > len(data):
                raise EOFError(f"tensor '{tensor.name}' ends beyond the end of the file")

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Map the file and read its metadata. Raises UserError when that cannot be done."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                if file.read(4) != b"GGUF":
                    raise UserError(
                        f"'{path}' is not a GGUF file; expected it to begin with 'GGUF'."
                    )
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"The model file '{path}' cannot be read: {reason}.") from None
        try:
            return cls(path, data)
        except (EOFError, struct.error, ValueError, KeyError, OverflowError) as error:
            raise UserError(f"The model file '{path}' is corrupt or cut short: {error}.") from None

    def read(self, name: str, out: Floats | None = None) -> Floats:
        """A tensor as float32, in `out` (contiguous, of its size) if given.

        Raises UserError when the file has no such tensor or it cannot be dequantised.
        """
        if (tensor := self.tensors.get(name)) is None:
            raise UserError(f"The model file '{self.path}' has no tensor '{name}'.")
        whole = np.empty(tensor.shape, np.float32) if out is None else out
        flat = whole.reshape(-1)
        for part, data in self.chunks(tensor):
            tensor.layout.dequantise(data, flat[part])
        return whole

    def chunks(self, tensor: Tensor, step: int = CHUNK) -> Iterator[tuple[slice, Bytes]]:
        """Slices of a tensor's elements, `step` (a multiple of 256) at a time, with their bytes.

        Pages that were read are given back, so that a loaded model does not keep its
        file in memory beside its weights.
        """
        scale = tensor.layout.block_bytes / tensor.layout.block
        for first in range(0, tensor.size, step):
            last = min(first + step, tensor.size)
            start, stop = (tensor.start + int(i * scale) for i in (first, last))
            yield (
                slice(first, last),
                np.frombuffer(self._data, np.uint8, stop - start, start),
            )
            if hasattr(mmap, "MADV_DONTNEED"):
                behind = tensor.start // WINDOW * WINDOW
                self._data.madvise(mmap.MADV_DONTNEED, behind, stop - behind)


class _Reader:
    """A cursor over the head of a GGUF file. Past the end: EOFError or struct.error."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 4

    def header(self) -> tuple[int, int, int]:
        """Version, how many tensors, how many pairs of metadata."""
        return int(self.scalar("<u4")), int(self.scalar("<u8")), int(self.scalar("<u8"))

    def scalar(self, kind: str) -> Any:
        return self.numbers(kind, 1)[0].item()

    def numbers(self, kind: str, count: int) -> npt.NDArray[Any]:
        length = np.dtype(kind).itemsize * count
        self.need(length)
        values = np.frombuffer(self.data, kind, count, self.at).copy()
        self.at += length
        return values

    def need(self, length: int) -> None:
        if self.at + length > len(self.data):
            raise EOFError("its metadata ends beyond the end of the file")

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        data, at, length_at = self.data, self.at, struct.Struct("<Q").unpack_from
        rows = []
        for _ in range(count):
            start = at + 8
            at = start + length_at(data, at)[0]
            rows.append(str(data[start:at], "utf-8", "replace"))
        self.at = at
        self.need(0)
        return rows

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        of, count = self.scalar("<u4"), self.scalar("<u8")
        if of == STRING:
            return self.strings(count)
        if of == ARRAY:
            return [self.value(ARRAY) for _ in range(count)]
        return self.numbers(SCALARS[of], count)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset within the data of one tensor."""
        name = self.string()
        sides = self.numbers("<u8", self.scalar("<u4"))
        kind, offset = self.scalar("<u4"), self.scalar("<u8")
        return name, tuple(map(int, reversed(sides))), int(kind), int(offset)
