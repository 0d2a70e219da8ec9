"""Google's `sentencepiece` as a tokenizer, from a `.model` file.

Its vocabularies are its own: a byte-level BPE vocabulary of a GGUF cannot be put
into it, so it takes part only where a model file is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from batchgauge.errors import UserError
from batchgauge.protocols import TokenBatch


def open_tokenizer(argument: str, model: Path | None) -> SentencePieceTokenizer:  # noqa: ARG001 - one signature for all
    """From the `.model` file that `argument` names."""
    if not argument:
        raise UserError("The tokenizer 'sentencepiece' needs a file: sentencepiece:PATH.model.")
    return SentencePieceTokenizer.from_file(Path(argument))


class SentencePieceTokenizer:
    """A `SentencePieceProcessor`; control symbols in a text are always read as text.

    `threads` above 1 lets a batch use the library's own thread pool.
    """

    name = "sentencepiece"

    def __init__(
        self, processor: sentencepiece.SentencePieceProcessor, *, threads: int = 1
    ) -> None:
        self.raw = processor
        self.threads = threads

    @classmethod
    def from_file(cls, path: Path) -> SentencePieceTokenizer:
        """Read a `.model` file. Raises UserError when it is missing or damaged."""
        try:
            return cls(sentencepiece.SentencePieceProcessor(model_file=str(path)))
        except (OSError, RuntimeError) as error:
            raise UserError(f"'{path}' cannot be read as a sentencepiece model: {error}.") from None

    @property
    def vocab_size(self) -> int:
        """How many pieces there are."""
        return int(self.raw.get_piece_size())

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of one text. Raises UserError when special tokens are asked for."""
        if allow_special:
            raise UserError("sentencepiece reads no special tokens in a text; expected ids.")
        ids: list[int] = self.raw.encode(text, out_type=int)
        return ids

    def encode_many(self, texts: Sequence[str], *, allow_special: bool = False) -> TokenBatch:
        """The ids of many texts, by one call of the library."""
        if allow_special:
            raise UserError("sentencepiece reads no special tokens in a text; expected ids.")
        rows = self.raw.encode(list(texts), out_type=int, num_threads=self.threads)
        return TokenBatch.from_lists(rows)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        text: str = self.raw.decode(list(ids))
        return text

    def decode_many(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of many id sequences, by one call of the library."""
        texts: list[str] = self.raw.decode([list(row) for row in rows])
        return texts
