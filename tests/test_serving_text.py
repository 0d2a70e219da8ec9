"""Text as it comes: pieces that join to the whole, whole characters, no part of a stop text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tokenizer_cases import pieces_metadata

from batchgauge.core.generation import Generation, PromptReader
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.core.tokenizer.normalise import PREFIX_KEY
from batchgauge.request import BatchItem, InferenceBatchRequest
from batchgauge.serving.detokenize import TextPieces

LETTERS = "ab\n é€😀"


def cut_by_hand(data: bytes, stop: list[str], leading: str = "") -> str:
    """The text, without a space in front where that is so, up to the first of the stop texts."""
    text = data.decode("utf-8", "replace").removeprefix(leading)
    return text[: min([text.find(s) for s in stop if s in text], default=len(text))]


@given(
    st.text(LETTERS, max_size=30).map(str.encode) | st.binary(max_size=20),
    st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 4), min_size=30, max_size=30),
    st.sampled_from(["", " "]),
)
def test_pieces_join_to_the_whole_text(data, stop, sizes, leading):
    """However bytes come, also bytes that are no text."""
    pieces, given_so_far, at = TextPieces(stop, leading), "", 0
    whole = cut_by_hand(data, stop, leading)
    for size in sizes:
        given_so_far += pieces.add(data[at : at + size])
        at += size
        assert whole.startswith(given_so_far)
    given_so_far += pieces.add(data[at:]) + pieces.finish()
    assert given_so_far == whole


def test_a_character_is_never_cut():
    """The three bytes of a euro sign are one piece, shown with the last of them."""
    pieces = TextPieces()
    assert [pieces.add(bytes([b])) for b in "a€".encode()] == ["a", "", "", "€"]
    assert pieces.add(b"\xe2") == ""
    assert pieces.finish() == "\ufffd"


def test_what_may_become_a_stop_text_is_held_back():
    """And given as soon as it is none."""
    pieces = TextPieces(["STOP", "\n\n"])
    assert [pieces.add(c.encode()) for c in "aSTa"] == ["a", "", "", "STa"]
    assert [pieces.add(c.encode()) for c in "\nb"] == ["", "\nb"]
    assert [pieces.add(c.encode()) for c in "xSTOPy"] == ["x", "", "", "", "", ""]
    assert pieces.is_stopped
    assert pieces.finish() == ""


@pytest.mark.parametrize("way", ["", "every", "missing", "first"])
def test_pieces_are_the_text_of_an_answer(way):
    """As `Generation.text` gives it, also where the tokenizer puts a space before a text."""
    tokenizer = BPETokenizer.from_metadata(pieces_metadata() | {PREFIX_KEY: way})
    reader = PromptReader(tokenizer, {}, 100)
    for text, stop in ((" the world", ()), ("the world", (" the", "the ")), ("  the", (" the",))):
        request = InferenceBatchRequest((1,), max_tokens=50, stop=stop, ignore_eos=True)
        one = Generation(BatchItem("a", request), [1], reader)
        pieces, shown = TextPieces(stop, tokenizer.leading), ""
        for token in tokenizer.encode(text):
            if one.going:
                one.add(token, 0)
                shown += pieces.add(tokenizer.token_bytes(token))
        assert pieces.is_stopped == (one.reason == "stop")
        assert shown + pieces.finish() == one.text()
