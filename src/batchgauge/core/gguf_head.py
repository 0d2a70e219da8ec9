"""The head of a GGUF file, metadata and the table of tensors, from bytes that may be anything.

What the format and llama.cpp's reader of it forbid is a ValueError whose text says what is
wrong: two keys or tensors of one name, values of another kind than the format gives to a
key, text that is not UTF-8, rows that are no whole number of blocks, tensors that do not
lie one behind the other. Counts are held against the file's size before anything is built.

Left out: arrays of arrays, which llama.cpp does not read either.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgauge.core.gguf_layouts import Layout, layout_of
from batchgauge.core.model_file import Tensor, shown

UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9  # GGUF value types
NUMBERS = dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<u1"])) | {
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
MOST_ENTRIES = 1 << 16  # keys, and tensors: several times those of the largest models
MOST_STRINGS = 1 << 21  # in an array: several times the largest vocabulary
LONGEST_KEY, LONGEST_NAME = 65_535, 63  # bytes, by the format and by llama.cpp
MOST_SIDES = 4


# What the format says of its own keys, as far as they are read here; an int is none below 0.
_COUNT, _ID, _TRUTH = (int, "a whole number"), (int, "one whole number"), (bool, "true or false")
_TEXT, _TEXTS, _NUMBERS = (
    (str, "a text"), (list, "an array of texts"), (np.ndarray, "an array of numbers"),
)  # fmt: skip
KINDS: dict[str, tuple[type, str]] = {
    "general.architecture": _TEXT, "general.alignment": _COUNT,
    **dict.fromkeys(("split.no", "split.count", "split.tensors.count"), _COUNT),
    "tokenizer.ggml.model": _TEXT, "tokenizer.ggml.pre": _TEXT,
    "tokenizer.ggml.tokens": _TEXTS, "tokenizer.ggml.merges": _TEXTS,
    "tokenizer.ggml.token_type": _NUMBERS, "tokenizer.ggml.scores": _NUMBERS,
    "tokenizer.ggml.add_bos_token": _TRUTH, "tokenizer.ggml.add_eos_token": _TRUTH,
    **{
        f"tokenizer.ggml.{name}_token_id": _ID
        for name in ("bos", "eos", "eot", "eom", "unknown", "padding")
    },
}  # fmt: skip


def _fits(value: Any, kind: type) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return isinstance(value, kind)


def one_apart(name: str, other: str) -> bool:
    """Whether two names differ in a single character."""
    return len(name) == len(other) and sum(map(str.__ne__, name, other)) == 1


class TooShortError(Exception):
    """The bytes given end before the head does, though the file goes on."""


class HeadReader:
    """A cursor over the first bytes of a file of `size` bytes, behind magic and version.

    Raises ValueError for what is wrong, TooShortError where more bytes are needed.
    """

    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size = data, size
        self.at = 8

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Metadata, and the tensors by name in the file's order."""
        tensor_count, pair_count = self.numbers("<u8", 2).tolist()
        if max(tensor_count, pair_count) > MOST_ENTRIES:
            raise ValueError(
                f"it has {tensor_count} tensors and {pair_count} keys; expected at most "
                f"{MOST_ENTRIES} of each"
            )
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self.text(LONGEST_KEY, "the name of a key")
            if key in metadata:
                raise ValueError(f"it has the key {shown(key)} twice")
            kind = int(self.scalar("<u4"))
            if key == "general.alignment" and kind != UINT32:  # as other readers have it
                raise ValueError(f"its key {shown(key)} is of the type {kind}; expected a uint32")
            try:
                metadata[key] = self.value(kind)
            except ValueError as problem:
                raise ValueError(f"its key {shown(key)}: {problem}") from None
        check_kinds(metadata)
        return metadata, self.tensors(tensor_count, metadata.get("general.alignment", 32))

    def tensors(self, count: int, alignment: int) -> dict[str, Tensor]:
        """The table: each tensor begins where the one before it ends, rounded up."""
        if alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment}; expected a power of 2")
        table: dict[str, tuple[tuple[int, ...], Layout, int]] = {}
        for _ in range(count):
            name = self.text(LONGEST_NAME, "the name of a tensor")
            if name in table:
                raise ValueError(f"it has the tensor {shown(name)} twice")
            try:
                table[name] = self.entry()
            except ValueError as problem:
                raise ValueError(f"its tensor {shown(name)}: {problem}") from None
        start = end = -(-self.at // alignment) * alignment
        tensors = {}
        for name, (shape, layout, offset) in table.items():
            tensor = Tensor(name, shape, layout, start + offset)
            begin = -(-end // alignment) * alignment
            if tensor.start != begin:
                raise ValueError(
                    f"its tensor {shown(name)} lies at {offset} of the data; expected "
                    f"{begin - start}, behind the one before it"
                )
            end = begin + tensor.file_bytes
            if end > self.size:
                raise ValueError(f"its tensor {shown(name)} ends beyond the end of the file")
            tensors[name] = tensor
        if tensors and self.size not in {end, -(-end // alignment) * alignment}:
            raise ValueError(f"{self.size - end} bytes lie behind its last tensor")
        return tensors

    def entry(self) -> tuple[tuple[int, ...], Layout, int]:
        """Shape, layout and offset within the data of one tensor."""
        if not 1 <= (sides := int(self.scalar("<u4"))) <= MOST_SIDES:
            raise ValueError(f"it has {sides} dimensions; expected 1 to {MOST_SIDES}")
        shape = tuple(reversed(self.numbers("<u8", sides).tolist()))
        layout, offset = layout_of(int(self.scalar("<u4"))), int(self.scalar("<u8"))
        if min(shape) < 1 or shape[-1] % layout.block:
            raise ValueError(
                f"it is of shape {shape}; expected sides above 0 and, as {layout.name}, rows of a "
                f"multiple of {layout.block}"
            )
        return shape, layout, offset

    def value(self, kind: int) -> Any:
        """One value of metadata: a number, bool, str, an array of numbers or a list of str."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.items(kind, 1)[0].item()
        of, count = int(self.scalar("<u4")), int(self.scalar("<u8"))
        return self.texts(count) if of == STRING else self.items(of, count)

    def items(self, kind: int, count: int) -> npt.NDArray[Any]:
        """Numbers or bools of a GGUF value type."""
        if kind == ARRAY:
            raise ValueError("it is an array of arrays; expected one of numbers or texts")
        if kind not in NUMBERS:
            raise ValueError(f"its value has the unknown type {kind}")
        values = self.numbers(NUMBERS[kind], count)
        if kind != BOOL:
            return values
        if (values > 1).any():
            raise ValueError("a bool is neither 0 nor 1")
        return values.astype(bool)

    def scalar(self, kind: str) -> Any:
        """One number of a NumPy type."""
        return self.numbers(kind, 1)[0].item()

    def numbers(self, kind: str, count: int) -> npt.NDArray[Any]:
        """Numbers of a NumPy type."""
        length = np.dtype(kind).itemsize * count
        self.need(length)
        values = np.frombuffer(self.data, kind, count, self.at).copy()
        self.at += length
        return values

    def need(self, length: int) -> None:
        """Make sure of so many bytes from here on."""
        if self.at + length > self.size:
            raise ValueError("its metadata ends beyond the end of the file")
        if self.at + length > len(self.data):
            raise TooShortError

    def text(self, longest: int | None = None, what: str = "") -> str:
        """One text; a name, if `longest` bytes are given, is not empty either."""
        before = self.at
        text = self.texts(1)[0]
        if longest is not None and not 0 < self.at - before - 8 <= longest:
            raise ValueError(f"{what} has {self.at - before - 8} bytes; expected 1 to {longest}")
        return text

    def texts(self, count: int) -> list[str]:
        """Texts one after the other."""
        if count > MOST_STRINGS:
            raise ValueError(f"it has {count} texts; expected at most {MOST_STRINGS}")
        self.need(8 * count)
        data, at, length_at = self.data, self.at, struct.Struct("<Q").unpack_from
        rows = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + length_at(data, at)[0]
                rows.append(str(data[start:at], "utf-8"))
        except (struct.error, OverflowError):  # a text before this was longer than what there is
            self.need(at + 8 - self.at)
            raise
        except UnicodeDecodeError:
            self.need(at - self.at)
            raise ValueError("a text is not UTF-8") from None
        self.need(at - self.at)
        self.at = at
        return rows


def check_kinds(metadata: Mapping[str, Any]) -> None:
    """Raise ValueError where a key of the format's own has a value of another kind.

    Or where it is missing and there is one that differs in a single character: left alone,
    that damage would only show as another result.
    """
    for key, (kind, expected) in KINDS.items():
        if key in metadata:
            if not _fits(metadata[key], kind):
                raise ValueError(f"its key {shown(key)} is not {expected}")
            continue
        for other in metadata.keys() - KINDS.keys():
            if one_apart(other, key):
                raise ValueError(f"it has the key {shown(other)}, but not {shown(key)}")
