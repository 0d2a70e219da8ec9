r"""Server-sent events from bytes, to the letter of the WHATWG HTML standard (9.2.6).

A line ends at CR, LF or CRLF and at nothing else (`str.splitlines` knows eight more); bytes
are UTF-8 with one byte order mark at the beginning taken away and what is invalid replaced;
an event that no blank line ends is dropped. Chunks may be cut anywhere.

    >>> stream = EventStream()
    >>> stream.feed(b"data: a\r"), stream.feed(b"\ndata:b\n\n")
    ([], [Event(type='message', data='a\nb')])
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from batchgauge.errors import UserError

LONGEST = 2**24  # characters of one line or one event: beyond it, it is no event stream
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its type (`message` where the stream names none) and its data."""

    type: str
    data: str


class EventStream:
    """Reads one stream. `strays` are its last lines of unknown fields, which the standard ignores.

    Some servers write an error there, without `data:` before it.
    """

    def __init__(self) -> None:
        self.strays: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._after_cr = False
        self._line: list[str] = []  # the pieces of a line that has not ended yet
        self._data: list[str] = []
        self._type = ""
        self._unread = 0  # characters of the line that has not ended
        self._held = 0  # characters and lines of the event that has not ended

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end within `chunk`. Raises UserError for an endless line or event."""
        text = self._decoder.decode(chunk)
        if self._after_cr and text:
            text, self._after_cr = text.removeprefix("\n"), False
        if not text:
            return []
        self._after_cr = text.endswith("\r")
        *ended, rest = _LINE_END.split(text)
        events = []
        for piece in ended:
            self._line.append(piece)
            event = self._read_line("".join(self._line))
            self._line.clear()
            if event:
                events.append(event)
        if rest:
            self._line.append(rest)
        self._unread = len(rest) + (0 if ended else self._unread)
        if self._unread + self._held > LONGEST:
            raise UserError(
                f"The server sent a line of more than {LONGEST:,} characters; "
                "expected an event stream."
            )
        return events

    def unfinished_line(self) -> str:
        """The line that had not ended when the stream did; the standard ignores it."""
        return "".join(self._line)

    def _read_line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._held += len(value) + 1
        elif name == "event":
            self._type = value
        elif name not in {"", "id", "retry"}:  # "": a comment; the others say how to reconnect
            self.strays = [*self.strays[-9:], line]
        return None

    def _dispatch(self) -> Event | None:
        data, event_type = self._data, self._type
        self._data, self._type, self._held = [], "", 0
        return Event(event_type or "message", "\n".join(data)) if data else None
