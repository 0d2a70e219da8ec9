"""Tokens to text as they come: pieces that never cut a character or show part of a stop text.

The pieces of an answer joined are its whole text, as `Generation.text` gives it: what is no
UTF-8 shows as U+FFFD, a space that belongs to the tokenizer is not in front of it, and it ends
before the first stop text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextPieces:
    """The text of one answer, taken as bytes of tokens and given in pieces.

    What could be the beginning of a stop text is held back until it is one or is none.
    `leading` is what a tokenizer's `decode` takes away in front.
    """

    def __init__(self, stop: Sequence[str] = (), leading: str = "") -> None:
        self._stop, self._leading = tuple(stop), leading
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.is_stopped = False

    def add(self, data: bytes) -> str:
        """What can be shown now that these bytes came; often nothing."""
        return self._give(self._decoder.decode(data))

    def finish(self) -> str:
        """What is left when no more comes: a character cut short, what was held back."""
        given = self._give(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return given

    def _give(self, text: str) -> str:
        if self.is_stopped:
            return ""
        if text:
            text, self._leading = text.removeprefix(self._leading), ""
        text = self._held + text
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        safe = len(text) - max((_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[safe:]
        return text[:safe]


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, which is not in it."""
    most = min(len(stop) - 1, len(text))
    return next((n for n in range(most, 0, -1) if stop.startswith(text[-n:])), 0)
