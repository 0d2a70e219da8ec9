"""The two shapes that everything here works with: a `Tokenizer` and an `Engine`.

The core's own classes satisfy them, so do the adapters for foreign libraries,
and so can a class of yours: no base class, no registration, only these methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, overload, runtime_checkable

import numpy as np
import numpy.typing as npt

from batchgauge.request import BatchItem, BatchResult, InferenceBatchRequest, InferenceBatchResponse


class TokenBatch(Sequence[npt.NDArray[np.int32]]):
    """Token ids of many texts in one flat array: `batch[i]` is text i's ids, without a copy.

    ids      int32 [sum of tokens]   all ids, text after text
    offsets  int64 [texts + 1]       text i is ids[offsets[i]:offsets[i + 1]]
    """

    __slots__ = ("ids", "offsets")

    def __init__(self, ids: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> None:
        self.ids = ids
        self.offsets = offsets

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> TokenBatch:
        """Pack rows of ids, e.g. `TokenBatch.from_lists([[1, 2], [], [3]])`."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        ids = np.fromiter((i for row in rows for i in row), dtype=np.int32, count=int(offsets[-1]))
        return cls(ids, offsets)

    def __len__(self) -> int:
        return self.offsets.size - 1

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[np.int32]: ...
    @overload
    def __getitem__(self, index: slice) -> list[npt.NDArray[np.int32]]: ...
    def __getitem__(
        self, index: int | slice
    ) -> npt.NDArray[np.int32] | list[npt.NDArray[np.int32]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of a batch of {len(self)}")
        at = index % len(self)
        return self.ids[self.offsets[at] : self.offsets[at + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[np.int32]]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """True when both hold the same ids for the same texts."""
        if not isinstance(other, TokenBatch):
            return NotImplemented
        same_ids = np.array_equal(self.ids, other.ids)
        return same_ids and np.array_equal(self.offsets, other.offsets)

    __hash__ = None  # type: ignore[assignment]  # arrays can change

    def tolist(self) -> list[list[int]]:
        """The same ids as plain lists of ints."""
        return [row.tolist() for row in self]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Tokens per text, int64 [texts]."""
        return np.diff(self.offsets)


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def name(self) -> str:
        """Short name for tables and legends, e.g. `numpy`, `baseline`, `tiktoken`."""
        ...

    @property
    def vocab_size(self) -> int:
        """How many ids there are; every id is below it."""
        ...

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of one text."""
        ...

    def encode_many(self, texts: Sequence[str], *, allow_special: bool = False) -> TokenBatch:
        """The ids of many texts, by the best batch way this tokenizer has."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; byte sequences that are not UTF-8 show as U+FFFD."""
        ...

    def decode_many(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of many id sequences."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Prompts to continuations, a batch at a time."""

    @property
    def name(self) -> str:
        """Short name for tables and legends, e.g. `numpy`, `baseline`, `llama-cpp`."""
        ...

    def infer_batch(
        self, items: Sequence[BatchItem[InferenceBatchRequest]]
    ) -> BatchResult[InferenceBatchResponse]:
        """Answer every item, in order, under its own id; a bad one becomes an error response."""
        ...

    def max_batch_size(self) -> int:
        """The largest batch that `infer_batch` takes."""
        ...
