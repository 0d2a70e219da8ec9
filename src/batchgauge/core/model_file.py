"""A model on disk, in whatever form: metadata under GGUF's keys, tensors under GGUF's names.

`gguf_file` and `hf_folder` open the two forms; nothing behind them knows which it was. Files
are read, not mapped: one that is cut short meanwhile is an error and no signal, and its pages
are never counted as ours.
"""

from __future__ import annotations

import math
import os
import stat
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchgauge.core.gguf_layouts import Bytes, Floats, Layout
from batchgauge.errors import UserError

CHUNK = 1 << 16  # elements dequantised at a time: what they touch stays in the L2 cache
SHOWN = 60  # characters of a name that an error shows


def shown(name: str) -> str:
    """A name of the file for an error: quoted, control characters escaped, not too long."""
    return repr(name if len(name) <= SHOWN else name[: SHOWN - 1] + "…")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows in heads of `size`: of the first `heads`, the halves of `turned` rows go in turn."""

    heads: int
    size: int
    turned: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model; `shape` is NumPy's order (a GGUF's reversed).

    part   which of the model's sources holds it
    pairs  in which order rows are read; None: as they lie
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    start: int  # bytes from the start of its source
    part: int = 0
    pairs: Pairs | None = None

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def file_bytes(self) -> int:
        """Bytes in the file."""
        return self.size // self.layout.block * self.layout.block_bytes


@dataclass(frozen=True, slots=True)
class Made:
    """Bytes that follow from what a file says, though they do not stand in it."""

    path: Path
    data: bytes

    def bytes(self, start: int, length: int) -> bytes:
        """So many of them."""
        return self.data[start : start + length]


class RegularFile:
    """A regular file, open for reading anywhere. Raises UserError, OSError for what is none."""

    def __init__(self, path: Path, expected: str) -> None:
        self.path = path
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "a device, pipe or socket"
            raise UserError(f"The model file '{path}' is {what}; expected {expected}.")
        # Should a pipe stand there by now, opening it does not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags)
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def bytes(self, start: int, length: int) -> bytes:
        """So many bytes of the file. Raises ValueError when it ends before, OSError."""
        if hasattr(os, "pread"):
            data = os.pread(self._descriptor, length, start)
        else:  # on Windows
            os.lseek(self._descriptor, start, os.SEEK_SET)
            data = os.read(self._descriptor, length)
        if len(data) < length:
            raise ValueError("it has become shorter while it was read")
        return data


Source = RegularFile | Made  # where tensors' bytes come from


class ModelFile:
    """An open model: `metadata` (arrays as NumPy arrays, of strings as lists), `tensors`.

    path    what names it: a file, the first of several, or a folder
    form    what that is, in words
    files   every file that it consists of
    """

    def __init__(
        self,
        form: str,
        files: Sequence[Path],
        sources: Sequence[Source],
        metadata: dict[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> None:
        self.form, self.files = form, tuple(files)
        self.path = self.files[0]
        self._sources = tuple(sources)
        self.metadata, self.tensors = metadata, dict(tensors)

    def called(self, name: str) -> str:
        """A tensor's name for an error, as the file has it."""
        return shown(name)

    def read(self, name: str, out: Floats | None = None) -> Floats:
        """A tensor as float32, in `out` (contiguous, of its size) if given.

        Raises UserError when the file has no such tensor, it cannot be dequantised, or the
        file can no longer be read.
        """
        if (tensor := self.tensors.get(name)) is None:
            raise UserError(f"The model file '{self.path}' has no tensor {self.called(name)}.")
        whole = np.empty(tensor.shape, np.float32) if out is None else out
        flat = whole.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):  # whatever the file holds comes out
            for part, data in self.chunks(tensor):
                tensor.layout.dequantise(data, flat[part])
        return whole

    def chunks(self, tensor: Tensor, step: int = CHUNK) -> Iterator[tuple[slice, Bytes]]:
        """Slices of a tensor's elements, `step` (a multiple of 256) at a time, with their bytes.

        Raises UserError when the file can no longer be read that far.
        """
        source = self._sources[tensor.part]
        scale = tensor.layout.block_bytes / tensor.layout.block
        for first in range(0, tensor.size, step):
            last = min(first + step, tensor.size)
            begin, end = first, last
            if tensor.pairs:  # whole heads
                head = tensor.pairs.size * math.prod(tensor.shape[1:])
                begin, end = first // head * head, -(-last // head) * head
            start, stop = (tensor.start + int(i * scale) for i in (begin, end))
            try:
                data = np.frombuffer(source.bytes(start, stop - start), np.uint8)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise UserError(
                    f"The model file '{source.path}' can no longer be read: {reason}."
                ) from None
            if tensor.pairs:
                data = _in_turn(tensor.pairs, data, begin // head, (end - begin) // head)
                data = data[int((first - begin) * scale) : int((last - begin) * scale)]
            yield slice(first, last), data


def _in_turn(pairs: Pairs, data: Bytes, first: int, count: int) -> Bytes:
    """The bytes of so many heads, from that one on, with their rows in order."""
    heads = data.reshape(count, pairs.size, -1).copy()
    some = heads[: max(0, pairs.heads - first), : pairs.turned]
    halves = some.reshape(len(some), 2, pairs.turned // 2, heads.shape[2])
    some[:] = halves.swapaxes(1, 2).reshape(some.shape)
    return heads.reshape(-1)
