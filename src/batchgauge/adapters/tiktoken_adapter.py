"""OpenAI's `tiktoken` as a tokenizer: with a model's own vocabulary, or a named encoding.

tiktoken takes a token's rank for its id, so it fits the vocabularies whose ids are
in order of their merges, which those made by byte-level BPE training are. A named
encoding (`tiktoken:cl100k_base`) is used only where it is cached on this machine:
nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiktoken
import tiktoken.load

from batchgauge.core.tokenizer.bpe_tokenizer import read_metadata
from batchgauge.core.tokenizer.pretokenize import PATTERNS
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.errors import UserError
from batchgauge.protocols import TokenBatch


def open_tokenizer(argument: str, model: Path | None) -> TiktokenTokenizer:
    """The cached encoding that `argument` names, else one of `model`'s vocabulary."""
    if argument:
        return TiktokenTokenizer(_cached(argument))
    return from_vocabulary(Vocabulary.from_metadata(read_metadata(model)))


class TiktokenTokenizer:
    """A `tiktoken.Encoding`; `always` are the tokens that are read as tokens in any text.

    Ids from `vocab_size` on stand for bytes that the vocabulary has no token for;
    they are dropped, as every other tokenizer here drops them, but the neighbours of
    such a byte do not merge across its gap, as they do elsewhere. A lone surrogate
    is read as U+FFFD. With `threads` above 1, `encode_many` uses the library's own
    thread pool.
    """

    name = "tiktoken"

    def __init__(
        self,
        encoding: tiktoken.Encoding,
        *,
        vocab_size: int = 0,
        always: frozenset[str] = frozenset(),
        threads: int = 1,
    ) -> None:
        self.raw = encoding
        self.vocab_size = vocab_size or int(encoding.n_vocab)
        self.threads = threads
        self._always = always
        self._drops = encoding.n_vocab > self.vocab_size

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of one text."""
        ids: list[int]
        if allow_special or self._always:
            special = "all" if allow_special else self._always
            ids = self.raw.encode(text, allowed_special=special, disallowed_special=())
        else:
            ids = self.raw.encode_ordinary(text)
        if self._drops and ids and max(ids) >= self.vocab_size:
            ids = [i for i in ids if i < self.vocab_size]
        return ids

    def encode_many(self, texts: Sequence[str], *, allow_special: bool = False) -> TokenBatch:
        """The ids of many texts: one after the other, or on threads where there are several."""
        if self.threads == 1 or allow_special or self._always:
            return TokenBatch.from_lists(
                [self.encode(text, allow_special=allow_special) for text in texts]
            )
        batch = TokenBatch.from_lists(
            self.raw.encode_ordinary_batch(list(texts), num_threads=self.threads)
        )
        if not self._drops or not (batch.ids >= self.vocab_size).any():
            return batch
        return TokenBatch.from_lists([row[row < self.vocab_size].tolist() for row in batch])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids. Raises UserError for an unknown id."""
        try:
            text: str = self.raw.decode(list(ids), errors="replace")
        except (KeyError, OverflowError):
            raise UserError(
                f"An id is not in the vocabulary; expected 0 to {self.vocab_size - 1}."
            ) from None
        return text

    def decode_many(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of many id sequences."""
        return [self.decode(row) for row in rows]


def from_vocabulary(vocabulary: Vocabulary) -> TiktokenTokenizer:
    """A tiktoken encoding with the ids of `vocabulary`.

    Raises UserError when its ids are not in order of its merges, or no single pattern cuts words.
    """
    if vocabulary.pre_tokenizer not in PATTERNS or vocabulary.normaliser.form:
        raise UserError(
            "tiktoken cannot hold this vocabulary: its words are not cut by one regular "
            "expression of the text as it is."
        )
    order = np.concatenate([[max(vocabulary.byte_ids)], vocabulary.merged])
    if (np.diff(order) <= 0).any():
        raise UserError(
            "tiktoken cannot hold this vocabulary: its ids are not in order of its merges."
        )
    special = vocabulary.special
    skip = set(special.values())
    size = len(vocabulary.tokens)
    ranks = {word: i for i, word in vocabulary.token_bytes.items() if i not in skip}
    ranks |= {bytes([b]): size + n for n, b in enumerate(vocabulary.missing_bytes)}
    encoding = tiktoken.Encoding(
        "gguf",
        pat_str=PATTERNS[vocabulary.pre_tokenizer],
        mergeable_ranks=ranks,
        special_tokens=special,
    )
    return TiktokenTokenizer(encoding, vocab_size=size, always=frozenset(vocabulary.user_defined))


def _cached(name: str) -> tiktoken.Encoding:
    """A named encoding, from tiktoken's cache only: its downloading is barred meanwhile."""
    if name not in tiktoken.list_encoding_names():
        known = ", ".join(tiktoken.list_encoding_names())
        raise UserError(f"tiktoken has no encoding '{name}'; expected one of {known}.")

    def barred(address: str) -> bytes:
        raise UserError(
            f"The encoding '{name}' is not cached on this machine; expected the file of {address} "
            "in the folder that TIKTOKEN_CACHE_DIR names."
        )

    read_file, tiktoken.load.read_file = tiktoken.load.read_file, barred
    try:
        return tiktoken.get_encoding(name)
    finally:
        tiktoken.load.read_file = read_file
