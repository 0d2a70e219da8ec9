"""Where a long text may be cut so that its pieces' ids, joined, are those of the whole.

Between a letter and the white space behind it every pre-tokenizer here ends a word, whatever
stands before or after: runs of letters end there, and the white space begins the next word.
`deepseek-llm` knows the letters of some alphabets only; where a whole text is one word, as in
SentencePiece's vocabularies, nothing is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import regex

Cuts: TypeAlias = regex.Pattern[str] | None


def last_cut(pre_tokenizer: str) -> Cuts:
    """Finds the last place to cut at; None where there is none. "" are SentencePiece's words."""
    letters = r"A-Za-z" if pre_tokenizer == "deepseek-llm" else r"\p{L}"
    return regex.compile(rf"(?r)(?<=[{letters}])(?=\s)") if pre_tokenizer else None


def joined_pieces(
    blocks: Iterable[str], special: Mapping[str, int], least: int, cuts: Cuts
) -> Iterator[str]:
    """Pieces of the text that `blocks` are together, of at least so many characters but the last.

    No special token is cut. Where a text has no place to cut, pieces are longer.
    """
    longest = max(map(len, special), default=0)
    rest = ""
    for block in blocks:
        rest += block
        if len(rest) < least or cuts is None:
            continue
        last = len(rest) - longest  # up to here a special token would be seen as a whole
        for match in cuts.finditer(rest, max(0, last - max(4096, len(block))), max(0, last)):
            at = match.start()
            around = rest[max(0, at - longest) : at + longest]
            if at > 0 and not any(token in around for token in special):
                yield rest[:at]
                rest = rest[at:]
                break
    if rest:
        yield rest
