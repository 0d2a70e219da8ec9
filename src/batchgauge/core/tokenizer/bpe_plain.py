"""Exact byte pair merging in plain Python, in near-linear time for words of any length.

The lowest-ranked pair of neighbours is merged first, the leftmost of equals, until
no pair has a rank: Sennrich, Haddow and Birch 2016, in the order that GPT-2 fixed.
A heap of candidate pairs over a linked list of symbols makes that O(n log n): a
merge outdates at most two entries and adds at most two, so n symbols never cause
more than 3n of them.

Left out: the compiled form of the same (`bpe_kernel`), special tokens (`tokenizer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain

from batchgauge.core.tokenizer.vocabulary import MergeTable, Vocabulary
from batchgauge.protocols import TokenBatch

MAX_CACHED_WORDS = 32_768  # about 8 MB when full of words of the longest kind
MAX_CACHED_CHARS = 32


def merge(symbols: Sequence[int], pairs: MergeTable) -> list[int]:
    """Merge `symbols` (token ids, one per byte at first) as far as `pairs` allows."""
    ids = list(symbols)
    if len(ids) < 2:
        return ids
    end = len(ids)
    after = list(range(1, end + 1))  # the next living symbol; `end` behind the last
    before = list(range(-1, end - 1))
    rank = [-1] * end  # of the pair (symbol, its next); -1: none, or the symbol is gone
    heap = []
    for i in range(end - 1):
        if (found := pairs.get((ids[i], ids[i + 1]))) is not None:
            rank[i] = found[0]
            heap.append((found[0], i, found[1]))
    heapify(heap)
    while heap:
        lowest, i, merged = heappop(heap)
        if rank[i] != lowest:
            continue  # one of the two has been merged elsewhere since
        gone = after[i]
        ids[i], ids[gone], rank[gone] = merged, -1, -1
        after[i] = after[gone]
        if after[i] < end:
            before[after[i]] = i
        rank[i] = -1
        for left in (before[i], i):
            if left < 0 or after[left] == end:
                continue  # no neighbour on that side
            if (found := pairs.get((ids[left], ids[after[left]]))) is None:
                rank[left] = -1
            else:
                rank[left] = found[0]
                heappush(heap, (found[0], left, found[1]))
    return [i for i in ids if i >= 0]


def ended_texts(data: bytes) -> list[str]:
    """Texts of UTF-8 with 0xFF behind each. Raises UnicodeError for any other bytes."""
    *texts, rest = data.split(b"\xff")
    if rest:
        raise UnicodeError("expected 0xFF behind each text")
    return [text.decode() for text in texts]


class WordCache(dict[str, list[int]]):
    """Word to ids; a word that is not there is merged, and kept if it is short.

    Bounded: at most `MAX_CACHED_WORDS` words of at most `MAX_CACHED_CHARS`
    characters. When full it starts again from empty, so that text that fills it
    with words that never return costs time and not memory.
    """

    def __init__(self, encode_word: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode_word = encode_word

    def __missing__(self, word: str) -> list[int]:
        ids = self._encode_word(word)
        if len(word) <= MAX_CACHED_CHARS:
            if len(self) >= MAX_CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids


class PlainEncoder:
    """Text to ids without compiled code of our own: regular expression, word cache, heap merges."""

    def __init__(self, vocabulary: Vocabulary, threads: int = 1) -> None:
        self._ascii_words, self._words = vocabulary.splitters
        self._symbols = vocabulary.symbols
        self._pairs = vocabulary.pairs
        self._whole_words = vocabulary.whole_words
        self.cache = WordCache(self.encode_word)

    def encode(self, text: str) -> list[int]:
        """Ids of one text. Raises UnicodeEncodeError for a lone surrogate."""
        words = self._ascii_words(text) if text.isascii() else self._words(text)
        return list(chain.from_iterable(map(self.cache.__getitem__, words)))

    def encode_many(self, texts: Sequence[str]) -> TokenBatch:
        """Ids of many texts, one after the other: plain Python has no work to share."""
        return TokenBatch.from_lists([self.encode(text) for text in texts])

    def encode_ended(self, data: bytes) -> TokenBatch:
        """Ids of texts of UTF-8 with 0xFF behind each. Raises UnicodeError for any other."""
        return self.encode_many(ended_texts(data))

    def encode_word(self, word: str) -> list[int]:
        """Ids of one word, computed."""
        if self._whole_words and (whole := self._whole_words.get(word.encode())) is not None:
            return [whole]
        return merge(self._symbols(word), self._pairs)
