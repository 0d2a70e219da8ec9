"""The ladder from the baseline tokenizer to the compiled one, one named idea a rung.

A rung is a small class that overrides little of `BaselineTokenizer`, so that the
difference between two of them is the idea and nothing else. Work is a list of texts,
output a `TokenBatch`; all rungs give the same.

The order is the one in which ideas were tried, including those that do not pay. The
last rung is the shipped tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain, pairwise
from pathlib import Path

from batchgauge.baseline.rung import Rung
from batchgauge.baseline.tokenizer import BaselineTokenizer
from batchgauge.core.tokenizer.bpe_plain import PlainEncoder, WordCache, merge
from batchgauge.core.tokenizer.bpe_tokenizer import read_metadata
from batchgauge.core.tokenizer.normalise import AS_IS
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.protocols import TokenBatch

Texts = Sequence[str]
Encode = Callable[[Texts], TokenBatch]


class IntegerPairs(BaselineTokenizer):
    """Symbols are ids instead of strings; one table gives rank and result of a pair."""

    def encode_word(self, word: str) -> list[int]:
        """Ids of one word."""
        data = word.encode()
        if data in self.vocabulary.whole_words:
            return [self.vocabulary.whole_words[data]]
        return self.merge_ids(self.vocabulary.symbols(word))

    def merge_ids(self, ids: list[int]) -> list[int]:
        """Merge the lowest-ranked pair of neighbours until none has a rank."""
        pairs = self.vocabulary.pairs
        none = (len(self.vocabulary.tokens) + len(self.vocabulary.merged), -1)
        while len(ids) > 1:
            found = [pairs.get(pair) or none for pair in pairwise(ids)]
            lowest = min(found)
            if lowest is none:
                break
            at = found.index(lowest)
            ids[at : at + 2] = [lowest[1]]
        return ids


class HeapMerges(IntegerPairs):
    """A heap of candidate pairs over a linked list instead of looking at all pairs again."""

    def merge_ids(self, ids: list[int]) -> list[int]:
        """Merge in O(n log n)."""
        return merge(ids, self.vocabulary.pairs)


class AsciiScan(BaselineTokenizer):
    """ASCII text is cut by the standard `re`, without Unicode's character classes."""

    def split(self, text: str) -> list[str]:
        """The words of a text."""
        if text.isascii():
            return self.vocabulary.splitters[0](text)
        return super().split(text)


class CachedWords(BaselineTokenizer):
    """Words seen before are looked up instead of merged again."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self.cache = WordCache(self.encode_word)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""
        return list(chain.from_iterable(map(self.cache.__getitem__, self.split(text))))


class WholeTokens(BaselineTokenizer):
    """A word that merging is known to give as one token is looked up and not merged.

    Which tokens those are is found once, by merging each token's own spelling.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        special = set(vocabulary.special.values())
        self._single = {}
        for i, data in vocabulary.token_bytes.items():
            word = data.decode("utf-8", "ignore")
            is_text = i not in special and word.encode() == data
            if is_text and merge(vocabulary.symbols(word), vocabulary.pairs) == [i]:
                self._single[word] = i

    def encode_word(self, word: str) -> list[int]:
        """Ids of one word."""
        single = self._single.get(word)
        return [single] if single is not None else super().encode_word(word)


class DistinctWords(BaselineTokenizer):
    """Each word that a batch has is merged once, however often it is in there."""

    def encode_many(self, texts: Texts, *, allow_special: bool = False) -> TokenBatch:
        """Ids of many texts."""
        special = self.vocabulary.special if allow_special else self.vocabulary.user_defined
        if special:
            return super().encode_many(texts, allow_special=allow_special)
        words = [self.split(self._normal(text)) for text in texts]
        distinct = {word: self.encode_plain(word) for word in set(chain.from_iterable(words))}
        return TokenBatch.from_lists(
            [list(chain.from_iterable(map(distinct.__getitem__, row))) for row in words]
        )


# Name, class, idea; cumulatively, each is mixed with all before it.
_IDEAS: tuple[tuple[str, type[BaselineTokenizer], str], ...] = (
    (
        "integer pairs",
        IntegerPairs,
        "Merge ids instead of strings, with rank and result of a pair in one table.",
    ),
    ("heap merges", HeapMerges, "Keep candidate pairs in a heap instead of looking at all again."),
    ("ascii scan", AsciiScan, "Cut ASCII text with the standard `re` instead of `regex`."),
    ("whole tokens", WholeTokens, "Look a word up first, and merge it only if it is no token."),
    ("word cache", CachedWords, "Remember the ids of words seen before, within a bound."),
    ("distinct words", DistinctWords, "Merge each word of a batch once, before filling in."),
)


def _kernel(path: Path | None, *, table: bool, one_call: bool) -> Encode:
    """The compiled kernel, with or without its word table. Raises ImportError without Numba."""
    from batchgauge.core.tokenizer.bpe_compiled import KernelEncoder, WithoutWordTable

    vocabulary = _vocabulary(path)
    encoder = (KernelEncoder if table else WithoutWordTable)(vocabulary)

    def text_by_text(texts: Texts) -> TokenBatch:
        return TokenBatch.from_lists([encoder.encode(text) for text in texts])

    return _prepared(vocabulary, encoder.encode_many if one_call else text_by_text)


def _prepared(vocabulary: Vocabulary, encode: Encode) -> Encode:
    """The same of texts as they are before they are prepared, where that changes them."""
    normal = vocabulary.normaliser
    return encode if normal == AS_IS else lambda texts: encode([normal(t) for t in texts])


@cache
def _vocabulary(path: Path | None) -> Vocabulary:
    return Vocabulary.from_metadata(read_metadata(path))


def _mixed(path: Path | None, ideas: Sequence[type[BaselineTokenizer]]) -> Encode:
    """The baseline with these ideas, the last one first in line."""
    bases = tuple(reversed(ideas)) or (BaselineTokenizer,)
    mixed: type[BaselineTokenizer] = type("Mixed", bases, {})
    return mixed(_vocabulary(path)).encode_many


def baseline(path: Path | None = None) -> Encode:
    """What every rung is compared with."""
    return _mixed(path, [])


def tokenizer_rungs(path: Path | None = None) -> tuple[Rung, ...]:
    """The ladder on the vocabulary of a model; None is the default one.

    What is compiled is for byte-level vocabularies: without it for SentencePiece's kind.
    """
    classes = [idea for _, idea, _ in _IDEAS]
    ladder = [
        Rung(name, idea, partial(_mixed, path, [cls]), partial(_mixed, path, classes[: place + 1]))
        for place, (name, cls, idea) in enumerate(_IDEAS)
    ]

    def plain() -> Encode:
        return _prepared(_vocabulary(path), PlainEncoder(_vocabulary(path)).encode_many)

    idea = "Without the layers of calls and the dictionary per batch; runs where Numba does not."
    ladder.append(Rung("plain path", idea, plain, plain))
    if path is not None and _vocabulary(path).pieces:
        return tuple(ladder)
    bare, with_table, joined, both = (
        partial(_kernel, path, table=table, one_call=one_call)
        for one_call in (False, True)
        for table in (False, True)
    )
    idea = "Cut and merge by a Numba function over bytes, one call per text, no cache."
    ladder.append(Rung("compiled", idea, bare, bare))
    idea = "Keep words of up to 16 bytes in a table, packed exactly into two 64-bit keys."
    ladder.append(Rung("word table", idea, None, with_table))
    idea = "Join the texts of a batch and call the compiled function once."
    return (*ladder, Rung("one call", idea, joined, both))


RUNGS = tokenizer_rungs()
