"""The tokenizer to use: `BPETokenizer`, exact BPE from a model's own vocabulary.

Ids are those of HF `tokenizers` built from the same vocabulary and merges. Special
tokens in a text are read as plain text unless `allow_special` asks for tokens; user
defined tokens are always read as tokens. A text with a lone surrogate (a Python str
that UTF-8 cannot hold) is a UserError. No begin-of-text token is added: `add_bos`
says whether the model wants one.

`batch_tokenizer` is the batch interface, for any tokenizer.

Left out: truncation, padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex

from batchgauge.core.tokenizer.bpe_plain import PlainEncoder, ended_texts
from batchgauge.core.tokenizer.normalise import AS_IS
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.errors import UserError
from batchgauge.machine.limits import checked_threads, performance_cores
from batchgauge.protocols import TokenBatch

try:
    from batchgauge.core.tokenizer.bpe_compiled import KernelEncoder as FastEncoder
except ImportError:  # no Numba, or one that does not fit this NumPy: same ids, slower
    FastEncoder = PlainEncoder  # type: ignore[assignment,misc]  # the same methods


Encoder = PlainEncoder | FastEncoder  # plain text, without special tokens, to ids


class BPETokenizer:
    """BPE of either kind: satisfies `batchgauge.protocols.Tokenizer`.

    `encoder` turns plain text into ids: the compiled kernel by default, plain Python
    where Numba is missing and for SentencePiece's kind; `PlainEncoder(vocabulary)` asks for
    it. `leading` is the space that `decode` takes away in front of a text, "" for none.
    `threads` share a batch in compiled code, one for each full-speed core where nobody says how
    many; ids are the same with any number. Raises UserError for a number that this machine does
    not have.
    """

    name = "numpy"

    def __init__(
        self,
        vocabulary: Vocabulary,
        encoder: Encoder | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.threads = performance_cores() if threads is None else checked_threads(threads)
        kind = PlainEncoder if vocabulary.pieces else FastEncoder
        self.encoder: Encoder = encoder or kind(vocabulary, self.threads)
        self._normal = vocabulary.normaliser
        self._as_is = self._normal == AS_IS
        self.leading = " " if self._normal.prefix else ""
        self.vocab_size = len(vocabulary.tokens)
        self.special_ids: Mapping[str, int] = vocabulary.special
        self.bos_id, self.eos_id = vocabulary.bos_id, vocabulary.eos_id
        self.add_bos = vocabulary.add_bos
        self._cut_always = _cutter(vocabulary.special, vocabulary.user_defined)
        self._cut_special = _cutter(vocabulary.special, vocabulary.special)

    @classmethod
    def from_gguf(
        cls, path: str | Path | None = None, *, threads: int | None = None
    ) -> BPETokenizer:
        """Read the vocabulary of a GGUF file; None is the default model. Raises UserError."""
        return cls.from_metadata(read_metadata(path), threads=threads)

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, Any], *, threads: int | None = None
    ) -> BPETokenizer:
        """Read the vocabulary from a GGUF's metadata. Raises UserError."""
        return cls(Vocabulary.from_metadata(metadata), threads=threads)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of one text. Raises UserError for a lone surrogate."""
        try:
            cut = self._cut_special if allow_special else self._cut_always
            if cut is None or not (parts := cut(text)):
                return self.encoder.encode(text if self._as_is else self._normal(text))
            return self._encode_parts([parts])[0]
        except (UnicodeEncodeError, TypeError, AttributeError) as error:
            raise _text_error([text], error) from error

    def encode_many(self, texts: Sequence[str], *, allow_special: bool = False) -> TokenBatch:
        """Ids of many texts at once. Raises UserError when one of them has a lone surrogate."""
        try:
            cut = self._cut_special if allow_special else self._cut_always
            rows = [cut(text) for text in texts] if cut else []
            if not any(rows):
                normal = texts if self._as_is else [self._normal(text) for text in texts]
                return self.encoder.encode_many(normal)
            parts = [row or [text] for row, text in zip(rows, texts, strict=True)]
            return TokenBatch.from_lists(self._encode_parts(parts))
        except (UnicodeEncodeError, TypeError, AttributeError) as error:
            raise _text_error(texts, error) from error

    def encode_ended(self, data: bytes) -> TokenBatch:
        """Ids of many texts that are UTF-8 already: for files, whose text need never be a `str`.

        0xFF, which UTF-8 does not have, stands behind each text. Other threads of Python's go on
        meanwhile. Raises UnicodeError where a text is no UTF-8, or the last one has no end.
        """
        wanted = self.vocabulary.user_defined
        if not self._as_is or any(token.encode() in data for token in wanted):
            return self.encode_many(ended_texts(data))
        return self.encoder.encode_ended(data)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; invalid UTF-8 shows as U+FFFD. Raises UserError for an unknown id.

        The space that was put before a text (`normalise`) is taken away again.
        """
        return self.token_bytes_of(ids).decode("utf-8", "replace").removeprefix(self.leading)

    def decode_many(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of many id sequences. Raises UserError for an unknown id."""
        return [self.decode(row) for row in rows]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for. Raises UserError for an unknown id."""
        return self.token_bytes_of([token_id])

    def token_bytes_of(self, ids: Sequence[int]) -> bytes:
        """The bytes that ids stand for together. Raises UserError for an unknown id."""
        rows = ids.tolist() if isinstance(ids, np.ndarray) else ids
        try:
            return b"".join(map(self.vocabulary.token_bytes.__getitem__, rows))
        except (KeyError, TypeError) as error:
            raise UserError(
                f"The token id {error} is not in the vocabulary; "
                f"expected 0 to {self.vocab_size - 1}."
            ) from error

    def _encode_parts(self, rows: Sequence[Sequence[str]]) -> list[list[int]]:
        """Texts cut into parts; a part at an odd position is a special token."""
        flat = [
            self._normal(part, first=place == 0)
            for parts in rows
            for place, part in enumerate(parts[::2])
        ]
        plain = iter(self.encoder.encode_many(flat))
        result = []
        for parts in rows:
            ids: list[int] = []
            for position, part in enumerate(parts):
                if position % 2:
                    ids.append(self.special_ids[part])
                else:
                    ids += next(plain).tolist()
            result.append(ids)
        return result


def read_metadata(path: str | Path | None) -> dict[str, Any]:
    """Metadata of a GGUF file; None is the default model. Raises UserError."""
    from batchgauge.core.default_model import open_model

    metadata: dict[str, Any] = open_model(path).metadata
    return metadata


def _cutter(
    special: Mapping[str, int], wanted: Mapping[str, int]
) -> Callable[[str], list[str] | None] | None:
    """A function that cuts a text at special tokens: [text, token, text, …], None if it has none.

    At each place the longest token wins; one that is not `wanted` stays text, and hides
    those inside it, as in HF. None when there is nothing to cut at.
    """
    if not wanted:
        return None
    longest_first = sorted(special, key=len, reverse=True)
    pattern = regex.compile(f"({'|'.join(map(regex.escape, longest_first))})")

    def cut(text: str) -> list[str] | None:
        parts: list[str] = pattern.split(text)
        if len(wanted) < len(special):
            joined = parts[:1]
            for token, after in zip(parts[1::2], parts[2::2], strict=True):
                if token in wanted:
                    joined += [token, after]
                else:
                    joined[-1] += token + after
            parts = joined
        return parts if len(parts) > 1 else None

    return cut


def _text_error(texts: Sequence[object], cause: Exception) -> Exception:
    """What is wrong with the first bad text, in one sentence; `cause` itself if none is bad."""
    for text in texts:
        if not isinstance(text, str):
            return UserError(f"A text is of type {type(text).__name__}; expected str.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return UserError(
                f"A text has the lone surrogate U+{ord(text[error.start]):04X} at character "
                f"{error.start}; expected text that UTF-8 can hold."
            )
    return cause
