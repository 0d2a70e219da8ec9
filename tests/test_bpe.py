"""Merging and cutting: the plain path against the textbook, growth, bounds of the cache."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from tests.tokenizer_cases import PRE_TOKENIZERS, default_metadata, texts

from batchgauge import UserError
from batchgauge.core.tokenizer.bpe_plain import MAX_CACHED_CHARS, MAX_CACHED_WORDS, WordCache, merge
from batchgauge.core.tokenizer.pretokenize import PATTERNS, ascii_splitter, split, unicode_splitter
from batchgauge.core.tokenizer.vocabulary import Vocabulary


def textbook(symbols, pairs):
    """Merge the leftmost of the lowest-ranked pairs, one at a time, looking at all each time."""
    ids = list(symbols)
    while found := [(pairs[pair], at) for at, pair in enumerate(pairwise(ids)) if pair in pairs]:
        (_, merged), at = min(found)
        ids[at : at + 2] = [merged]
    return ids


class Counting(Mapping[tuple[int, int], tuple[int, int]]):
    """A table of pairs that counts how often it is asked."""

    def __init__(self, pairs):
        self.pairs, self.asked = pairs, 0

    def get(self, key, default=None):
        """Look up, and count."""
        self.asked += 1
        return self.pairs.get(key, default)

    def __getitem__(self, key):
        return self.pairs[key]

    def __iter__(self):
        return iter(self.pairs)

    def __len__(self):
        return len(self.pairs)


@given(data=st.data())
def test_merge_gives_what_the_textbook_gives(data):
    """For any table of merges, also ones no training would give, in any order."""
    count = data.draw(st.integers(0, 12))
    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    for rank in range(count):
        known = st.integers(0, 2 + rank)
        pair = data.draw(st.tuples(known, known))
        pairs.setdefault(pair, (rank, 3 + rank))
    symbols = data.draw(st.lists(st.integers(0, 2), max_size=40))
    assert merge(symbols, pairs) == textbook(symbols, pairs)


@pytest.mark.parametrize("unit", ["a", "ab", "the", "z9?"])
def test_merging_a_long_word_grows_linearly(unit):
    """Look-ups per symbol stay below 3, from a thousand symbols to a hundred thousand."""
    vocabulary = Vocabulary.from_metadata(default_metadata())
    for length in (1_000, 10_000, 100_000):
        text = (unit * length)[:length]
        pairs = Counting(vocabulary.pairs)
        ids = merge([vocabulary.byte_ids[byte] for byte in text.encode()], pairs)
        assert b"".join(vocabulary.token_bytes[i] for i in ids).decode() == text
        assert pairs.asked < 3 * length


def test_word_cache_is_bounded():
    """Text that never repeats cannot make the cache grow, and long words do not enter."""
    cache = WordCache(lambda word: [len(word)])
    for n in range(MAX_CACHED_WORDS + 100):
        assert cache[f"w{n}"] == [len(f"w{n}")]
        assert len(cache) <= MAX_CACHED_WORDS
    long_word = "x" * (MAX_CACHED_CHARS + 1)
    assert cache[long_word] == [len(long_word)]
    assert long_word not in cache


@pytest.mark.parametrize("name", PATTERNS)
def test_white_space_is_unicodes(name):
    """The separators that only Python's `re` counts as white space are none here."""
    assert split(name, "a\x1c\x1d") == ["a", "\x1c\x1d"]
    assert split(name, "aé\x1c \x1d") == ["aé", "\x1c", " \x1d"]
    assert split(name, "a \x85b")[0] == "a"
    assert regex.fullmatch(r"\s", "\x85")
    assert not regex.fullmatch(r"\s", "\x1c")


@given(text=texts)
def test_words_joined_are_the_text(text):
    """No pre-tokenizer loses or invents a character, and on ASCII both engines agree."""
    ascii_text = text.encode("ascii", "ignore").decode()
    for name in PRE_TOKENIZERS:
        assert "".join(split(name, text)) == text
        assert ascii_splitter(name)(ascii_text) == unicode_splitter(name)(ascii_text)


def test_words_of_the_four_pre_tokenizers():
    """Where the four differ: digits, letters behind a sign, case of contractions, line ends."""
    text = "I'M at (home) 2024\n\n x"
    assert split("gpt-2", text) == ["I", "'", "M", " at", " (", "home", ")", " 2024", "\n\n", " x"]
    assert split("smollm", text) == [
        "I", "'", "M", " at", " (", "home", ")", " ", "2", "0", "2", "4", "\n\n", " x",
    ]  # fmt: skip
    assert split("llama-bpe", text) == [
        "I", "'M", " at", " (", "home", ")", " ", "202", "4", "\n\n", " x",
    ]  # fmt: skip
    assert split("qwen2", text) == [
        "I", "'M", " at", " (", "home", ")", " ", "2", "0", "2", "4", "\n\n", " x",
    ]  # fmt: skip


def test_unknown_pre_tokenizer_is_a_user_error():
    """The sentence names what was asked for and what there is."""
    with pytest.raises(
        UserError, match="'bloom' is not supported; expected one of deepseek-coder, "
    ):
        split("bloom", "x")
