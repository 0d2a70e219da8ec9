"""BPE as one writes it from the papers: the baseline, and the oracle of the tests.

One text at a time, one word at a time: cut the text with the pre-tokenizer's
regular expression, spell the word in GPT-2's byte alphabet, then find the
lowest-ranked pair of neighbours, merge it, and look again. No caches, no batches.
Nothing is slower than a careful first version would be: ranks are in a dict.

Merging takes quadratic time in the length of a word, so keep unsplittable strings
short here. Left out: everything that `batchgauge.core.tokenizer.bpe_tokenizer` adds for speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from batchgauge.core.tokenizer.bpe_tokenizer import read_metadata
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.errors import UserError
from batchgauge.protocols import TokenBatch


class BaselineTokenizer:
    """The straightforward tokenizer: satisfies `batchgauge.protocols.Tokenizer`."""

    name = "baseline"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.vocab_size = len(vocabulary.tokens)
        _, self._words = vocabulary.splitters
        self._normal = vocabulary.normaliser
        self._special: dict[str, list[str]] = {}  # by first character, the longest first
        for token in sorted(vocabulary.special, key=len, reverse=True):
            self._special.setdefault(token[0], []).append(token)
        tokens = vocabulary.tokens
        self._ranks = {
            (tokens[left], tokens[right]): rank
            for rank, (left, right) in enumerate(
                zip(vocabulary.lefts.tolist(), vocabulary.rights.tolist(), strict=True)
            )
        }

    @classmethod
    def from_gguf(cls, path: str | Path | None = None) -> BaselineTokenizer:
        """Read the vocabulary of a GGUF file; None is the default model. Raises UserError."""
        return cls.from_metadata(read_metadata(path))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> BaselineTokenizer:
        """Read the vocabulary from a GGUF's metadata. Raises UserError."""
        return cls(Vocabulary.from_metadata(metadata))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of one text. Raises UserError for a lone surrogate."""
        special = self.vocabulary.special
        wanted = special if allow_special else self.vocabulary.user_defined
        ids: list[int] = []
        start = at = 0
        while wanted and at < len(text):
            starting = self._special.get(text[at], ())  # Gemma has thousands in all
            found = next((s for s in starting if text.startswith(s, at)), "")
            end = at + max(len(found), 1)
            if found in wanted:
                before = self._normal(text[start:at], first=start == 0)
                ids += [*self.encode_plain(before), wanted[found]]
                start = end
            at = end
        return ids + self.encode_plain(self._normal(text[start:], first=start == 0))

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""
        ids: list[int] = []
        for word in self.split(text):
            ids += self.encode_word(word)
        return ids

    def split(self, text: str) -> list[str]:
        """The words of a text, which joined give it back."""
        return self._words(text)

    def encode_word(self, word: str) -> list[int]:
        """Ids of one word."""
        try:
            data = word.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"A text has the lone surrogate U+{ord(word[error.start]):04X}; "
                "expected text that UTF-8 can hold."
            ) from error
        if data in self.vocabulary.whole_words:
            return [self.vocabulary.whole_words[data]]
        tokens, ids = self.vocabulary.tokens, self.vocabulary.ids
        symbols = [tokens[i] for i in self.vocabulary.symbols(word)]
        return [ids[symbol] for symbol in self.merge(symbols)]

    def merge(self, symbols: list[str]) -> list[str]:
        """Merge the lowest-ranked pair of neighbours until none has a rank."""
        none = len(self.vocabulary.tokens) + len(self.vocabulary.merged)
        while len(symbols) > 1:
            ranks = [self.rank(pair, none) for pair in pairwise(symbols)]
            lowest = min(ranks)
            if lowest == none:
                break
            at = ranks.index(lowest)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return symbols

    def rank(self, pair: tuple[str, str], none: int) -> int:
        """When two neighbours merge; `none` if they never do."""
        if self.vocabulary.scores is None:
            return self._ranks.get(pair, none)
        left, right = map(self.vocabulary.ids.__getitem__, pair)
        found = self.vocabulary.pairs.get((left, right))
        return none if found is None else found[0]

    def encode_many(self, texts: Sequence[str], *, allow_special: bool = False) -> TokenBatch:
        """Ids of many texts, one after the other. Raises UserError for a lone surrogate."""
        return TokenBatch.from_lists([self.encode(t, allow_special=allow_special) for t in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; invalid UTF-8 shows as U+FFFD. Raises UserError for an unknown id."""
        data = b""
        for token_id in ids:
            if token_id not in self.vocabulary.token_bytes:
                raise UserError(
                    f"The token id {token_id} is not in the vocabulary; "
                    f"expected 0 to {self.vocab_size - 1}."
                )
            data += self.vocabulary.token_bytes[token_id]
        text = data.decode("utf-8", "replace")
        return text.removeprefix(" ") if self._normal.prefix else text

    def decode_many(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of many id sequences. Raises UserError for an unknown id."""
        return [self.decode(row) for row in rows]
