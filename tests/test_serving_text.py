"""Text as it comes: pieces that join to the whole, whole characters, no part of a stop text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchgauge.serving.detokenize import TextPieces

LETTERS = "ab\n é€😀"


def cut_by_hand(data: bytes, stop: list[str]) -> str:
    """The text up to the first of the stop texts."""
    text = data.decode("utf-8", "replace")
    return text[: min([text.find(s) for s in stop if s in text], default=len(text))]


@given(
    st.text(LETTERS, max_size=30).map(str.encode) | st.binary(max_size=20),
    st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_pieces_join_to_the_whole_text(data, stop, sizes):
    """However bytes come, also bytes that are no text."""
    pieces, given_so_far, at = TextPieces(stop), "", 0
    whole = cut_by_hand(data, stop)
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
