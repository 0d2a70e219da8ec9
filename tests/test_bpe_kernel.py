"""The compiled kernel's own promises: character classes, growth, bounded tables, counters."""

import os

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from tests.tokenizer_cases import PRE_TOKENIZERS, TEXTS, default_metadata, toy_metadata

from batchgauge.core.tokenizer import bpe_layout as layout
from batchgauge.core.tokenizer.bpe_compiled import (
    KernelEncoder,
    WithoutWordTable,
    character_classes,
)
from batchgauge.core.tokenizer.bpe_plain import PlainEncoder
from batchgauge.core.tokenizer.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_metadata(default_metadata())
ENCODER = KernelEncoder(VOCABULARY)


def test_classes_of_all_code_points_are_those_of_regex():
    """Letter, number and white space agree with `regex` for every code point there is."""
    classes = character_classes("smollm")
    everything = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    points = np.array([ord(char) for char in everything])
    blocks = classes[layout.BLOCKS + (points >> 8)].astype(np.int64)
    ours = classes[layout.BLOCKS + layout.PLANES + (blocks << 8) + (points & 255)]
    joined = "".join(everything)
    for kind, pattern in (
        (layout.LETTER, r"\p{L}"),
        (layout.NUMBER, r"\p{N}"),
        (layout.SPACE, r"\s"),
    ):
        theirs = np.array([match.start() for match in regex.finditer(pattern, joined)])
        assert np.array_equal(np.flatnonzero(ours == kind), theirs), pattern


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_ascii_triple_is_cut_as_the_pattern_cuts_it(name):
    """All 3-character neighbourhoods of a sample of each kind of byte, NUL among them."""
    vocabulary = Vocabulary.from_metadata(toy_metadata(name))
    kernel, plain = KernelEncoder(vocabulary), PlainEncoder(vocabulary)
    chars = "sT1 \n\r\t.'é²字\u3000\0ſ"
    rows = [a + b + c + d for a in chars for b in chars for c in chars for d in "l \n.1"]
    assert kernel.encode_many(rows) == plain.encode_many(rows)
    no_nul = [row for row in rows if "\0" not in row]
    assert kernel.encode_many(no_nul) == plain.encode_many(no_nul)


@given(st.lists(st.binary(max_size=9) | st.text(max_size=9).map(str.encode), max_size=6))
@settings(max_examples=300, deadline=None)
@example([b"\xed\xa0\x80"])
@example([b"\xf4\x90\x80\x80"])
@example([b"\xe0\x9f\xbf", b"abcdefgh"])
@example([b"abcdefg\xc3", b"\xa9"])
def test_bytes_that_are_utf8_give_the_ids_of_their_text_and_others_none(rows):
    """What is UTF-8 is what Python's decoder takes; texts may hold NUL."""
    data = b"".join(row + b"\xff" for row in rows)
    rows = data.split(b"\xff")[:-1]  # 0xFF ends a text wherever it stands
    plain = PlainEncoder(VOCABULARY)
    try:
        texts = [row.decode() for row in rows]
    except UnicodeDecodeError:
        for encoder in (ENCODER, plain):
            with pytest.raises(UnicodeError):
                encoder.encode_ended(data)
        return
    assert ENCODER.encode_ended(data) == plain.encode_ended(data) == ENCODER.encode_many(texts)
    for encoder in (ENCODER, plain):
        with pytest.raises(UnicodeError):
            encoder.encode_ended(data + b"no end")


@pytest.mark.parametrize("unit", ["a", "ab", "the", "漢字", "=-", " "])
def test_unsplittable_text_grows_linearly(unit):
    """Pairs looked up per byte stay below 3, up to a string of a million bytes."""
    for length in (10_000, 100_000, 1_000_000):
        text = unit * (length // len(unit.encode()))
        before = ENCODER.counters["lookups"]
        ids = ENCODER.encode(text)
        assert ENCODER.counters["lookups"] - before < 3 * length
        assert b"".join(VOCABULARY.token_bytes[i] for i in ids).decode() == text


def test_hostile_text_does_not_grow_the_tables():
    """Words that never return fill the tables, which keep their size and give the right ids."""
    encoder, plain = KernelEncoder(VOCABULARY), PlainEncoder(VOCABULARY)
    tables = (encoder._state, encoder._blocks, encoder._ids, encoder._room)
    size = sum(a.nbytes for a in tables)
    words = [f" {n:x}q{'z' * (n % 30)}" for n in range(100_000)]
    rows = ["".join(words[start : start + 500]) for start in range(0, len(words), 500)]
    assert encoder.encode_many(rows) == plain.encode_many(rows)
    tables = (encoder._state, encoder._blocks, encoder._ids, encoder._room)
    assert sum(a.nbytes for a in tables) == size
    assert encoder.encode_many(rows[:20]) == plain.encode_many(rows[:20])


def test_words_seen_before_are_not_merged_again():
    """The second time nothing is merged; after `forget` everything is."""
    encoder = KernelEncoder(VOCABULARY)
    text = [TEXTS["prose"], TEXTS["code"]]
    counts = []
    for _ in range(2):
        encoder.encode_many(text)
        counts.append(encoder.counters)
    encoder.forget()
    encoder.encode_many(text)
    assert counts[1]["words"] == 2 * counts[0]["words"]
    assert counts[1]["merged"] == counts[0]["merged"] > 0
    assert encoder.counters["merged"] == 2 * counts[0]["merged"]


def test_batch_longer_than_the_scratch_space():
    """A batch with more bytes than the scratch space holds gets its own, and the same ids."""
    rows = [TEXTS["prose"] * 400] * 40
    assert sum(map(len, rows)) > ENCODER._ids.size
    one = ENCODER.encode(rows[0])
    assert ENCODER.encode_many(rows).tolist() == [one] * 40
    assert ENCODER.encode("".join(rows)) == PlainEncoder(VOCABULARY).encode("".join(rows))


def test_kernel_without_word_tables_gives_the_same_ids():
    """The rung that merges every word anew agrees with the shipped kernel."""
    rows = list(TEXTS.values())
    assert WithoutWordTable(VOCABULARY).encode_many(rows) == ENCODER.encode_many(rows)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_ids(threads):
    """Small, uneven, empty and long texts, twice; NUL in a text; more threads than texts."""
    encoder = KernelEncoder(VOCABULARY, threads)
    mixed = [*TEXTS.values(), "", "", TEXTS["unsplittable"] * 30, *(w * 9 for w in TEXTS)]
    for rows in (mixed, ["", *mixed * 5, "a\0b", ""], [TEXTS["CJK"] * 50], ["x"] * 3000, []):
        for _ in range(2):
            assert encoder.encode_many(rows) == ENCODER.encode_many(rows)
    assert encoder._blocks.reshape(-1, layout.OWN)[:, layout.TAKEN].sum() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_threads_of_a_forked_child_are_its_own():
    """A child tokenizes by threads too, after its parent has."""
    encoder = KernelEncoder(VOCABULARY, 2)
    rows = [TEXTS["code"] * 30] * 30
    want = encoder.encode_many(rows)
    child = os.fork()
    if child == 0:
        os._exit(0 if encoder.encode_many(rows) == want else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_words_of_many_ids_are_kept():
    """A short word that gives more than four ids is not merged again."""
    encoder = KernelEncoder(VOCABULARY)
    encoder.encode("人类社会中")
    before = encoder.counters["merged"]
    assert len(encoder.encode("人类社会中")) > 4
    assert encoder.counters["merged"] == before
