"""GGUF files: metadata, a table of tensors, and tensors as float32.

Reads versions 2 and 3 of the format, little-endian
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Arrays of strings are
read in one pass, since the `gguf` package takes seconds for a vocabulary. The file is
read, not mapped: one that is cut short meanwhile is an error and no signal, and its
pages are never counted as ours.

Left out: writing, big-endian files, splitting over several files.
"""

from __future__ import annotations

import math
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from batchgauge.core.gguf_head import HeadReader, Pairs, Tensor, TooShortError, shown
from batchgauge.core.gguf_layouts import Bytes, Floats
from batchgauge.errors import UserError

CHUNK = 1 << 16  # elements dequantised at a time: what they touch stays in the L2 cache
HEAD, LARGEST_HEAD = 1 << 22, 1 << 26  # bytes read first, and at most, for the head of a file


class GGUFFile:
    """An open GGUF file: `metadata` (arrays as NumPy arrays, of strings as lists), `tensors`."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        start = self._bytes(0, min(size, 8))
        if start[:4] != b"GGUF":
            raise UserError(f"'{path}' is not a GGUF file; expected it to begin with 'GGUF'.")
        self._check_version(start[4:])
        length = min(HEAD, size)
        while True:
            try:
                head = HeadReader(self._bytes(0, length), size)
                self.metadata, self.tensors = head.read()
                break
            except TooShortError:
                if length == LARGEST_HEAD:
                    raise ValueError(f"its metadata has more than {length >> 20} MiB") from None
                length = min(LARGEST_HEAD, size)
        if (parts := self.metadata.get("split.count", 1)) > 1:
            raise UserError(
                f"'{path}' is one part of a model that is split over {parts} files; expected a "
                "whole one, as `llama-gguf-split --merge` makes it."
            )

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Open the file and read its metadata. Raises UserError when that cannot be done."""
        path = Path(path)
        try:
            kind = path.stat().st_mode
            if not stat.S_ISREG(kind):
                what = "a folder" if stat.S_ISDIR(kind) else "a device, pipe or socket"
                raise UserError(f"The model file '{path}' is {what}; expected a GGUF file.")
            # Should a pipe stand there by now, opening it does not wait for a writer.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            descriptor = os.open(path, flags)
            return cls(path, descriptor, os.fstat(descriptor).st_size)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"The model file '{path}' cannot be read: {reason}.") from None
        except ValueError as error:
            raise UserError(f"The model file '{path}' is corrupt or cut short: {error}.") from None

    def _check_version(self, start: bytes) -> None:
        if len(start) < 4:
            raise ValueError("it ends within its first 8 bytes")
        version = int.from_bytes(start, "little")
        if not version & 0xFFFF and version:
            raise UserError(f"'{self.path}' is a big-endian GGUF file; expected little-endian.")
        if version not in {2, 3}:
            raise UserError(f"'{self.path}' is GGUF version {version}; expected 2 or 3.")

    def read(self, name: str, out: Floats | None = None) -> Floats:
        """A tensor as float32, in `out` (contiguous, of its size) if given.

        Raises UserError when the file has no such tensor, it cannot be dequantised, or the
        file can no longer be read.
        """
        if (tensor := self.tensors.get(name)) is None:
            raise UserError(f"The model file '{self.path}' has no tensor {shown(name)}.")
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
        scale = tensor.layout.block_bytes / tensor.layout.block
        for first in range(0, tensor.size, step):
            last = min(first + step, tensor.size)
            begin, end = first, last
            if tensor.pairs:  # whole heads
                head = tensor.pairs.size * math.prod(tensor.shape[1:])
                begin, end = first // head * head, -(-last // head) * head
            start, stop = (tensor.start + int(i * scale) for i in (begin, end))
            try:
                data = np.frombuffer(self._bytes(start, stop - start), np.uint8)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise UserError(
                    f"The model file '{self.path}' can no longer be read: {reason}."
                ) from None
            if tensor.pairs:
                data = _in_turn(tensor.pairs, data, begin // head, (end - begin) // head)
                data = data[int((first - begin) * scale) : int((last - begin) * scale)]
            yield slice(first, last), data

    def _bytes(self, start: int, length: int) -> bytes:
        """So many bytes of the file. Raises ValueError when it ends before."""
        if hasattr(os, "pread"):
            data = os.pread(self._descriptor, length, start)
        else:  # on Windows
            os.lseek(self._descriptor, start, os.SEEK_SET)
            data = os.read(self._descriptor, length)
        if len(data) < length:
            raise ValueError("it has become shorter while it was read")
        return data


def _in_turn(pairs: Pairs, data: Bytes, first: int, count: int) -> Bytes:
    """The bytes of so many heads, from that one on, with their rows in order."""
    heads = data.reshape(count, pairs.size, -1).copy()
    some = heads[: max(0, pairs.heads - first), : pairs.turned]
    halves = some.reshape(len(some), 2, pairs.turned // 2, heads.shape[2])
    some[:] = halves.swapaxes(1, 2).reshape(some.shape)
    return heads.reshape(-1)
