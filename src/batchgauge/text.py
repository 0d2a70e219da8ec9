r"""Text that is not ours, made fit to be shown on a page, in Markdown and on a terminal.

Prompts, answers, names out of files and messages of libraries may hold anything: tags,
Markdown, terminal escapes, marks that turn the direction of reading. Characters that have
no glyph become visible, passwords and keys are redacted, and Markdown is a type of its own:
whatever is put into it is escaped unless it is `Markdown` too, so that nothing is escaped
twice and nothing forgotten.

    >>> Markdown("**{}** {}").format("<b>", "a|b")
    '**&lt;b&gt;** a\\|b'
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from batchgauge.redaction import redacted

WIDE = 5.0
_LINE_END = re.compile(r"\r\n?|[\x85\u2028\u2029]")
# Controls (C0, DEL, C1), bidirectional overrides and isolates, surrogates, noncharacters.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u206f\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
_BREAK = re.compile(r"[ \t]*[\n\t]\s*")
# What would begin a block of Markdown where it stands first: heading, list, rule, underline.
_BLOCK = re.compile(r"(?=#|[-+](?:\s|$)|-{3,}|=+$)|(?<=\d)(?=[.)](?:\s|$))")
_NUMBERED = re.compile(r"\d{1,9}")
_SPECIAL = re.compile(
    r"(?P<interval>\[[\d.,%\s∞–−+-]*\](?![\[(:]))"  # [2.9, 3.3] is no link
    r"|(?P<entity>[<>`$\\]|&(?=#?\w+;)|(?<=http):|(?<=https):|(?<=www)\.)"
    r"|(?P<mark>[*~|\[\]]|(?<![^\W_])_|_(?![^\W_]))",
    re.IGNORECASE,
)
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
# Names that Python itself gives: `<lambda>` needs no care in a code span, `<img` does.
_NOT_CODE = re.compile(r"[`$\\]|<(?!(?:lambda|locals|module|genexpr|\w+comp|string)>)")


class Markdown(str):
    """Markdown of our own: `format`, `+` and `join` escape what is not `Markdown` itself."""

    __slots__ = ()

    def format(self, *fields: object, **named: object) -> Markdown:
        """`str.format`, with every field escaped."""
        return Markdown(_ESCAPING.vformat(str(self), fields, named))

    def __add__(self, other: str) -> Markdown:
        return Markdown(str.__add__(self, escaped(other, strip=False)))

    def __radd__(self, other: str) -> Markdown:
        return Markdown(str.__add__(escaped(other.lstrip(), strip=False), self))

    def join(self, parts: Iterable[str]) -> Markdown:
        """`str.join`, with every part escaped."""
        return Markdown(str.join(self, map(escaped, parts)))

    @property
    def plain(self) -> str:
        """The same without escapes, for where no Markdown is read."""
        return html.unescape(_ESCAPED.sub(r"\1", self))


class _Escaping(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return escaped(value if isinstance(value, Markdown) else format(value, format_spec))


_ESCAPING = _Escaping()


def visible(text: str) -> str:
    """`text` with a glyph for every character: controls as their pictures, others as `�`.

    A line ends with a line feed, whatever it ended with; tabs stay. Passwords and keys
    in it are redacted.
    """
    text = redacted(text)
    return _UNSEEN.sub(lambda match: _picture(ord(match[0])), _LINE_END.sub("\n", text))


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "\ufffd"


def one_line(text: object) -> str:
    """`visible(text)` on one line."""
    return _joined(text).strip()


def _joined(text: object) -> str:
    return _BREAK.sub(" ", visible(str(text)))


def escaped(text: object, *, strip: bool = True) -> Markdown:
    """Any text as one line of Markdown that shows just that; `Markdown` stays as it is.

    Shown literally, also at the beginning of a block, in CommonMark, GitHub's dialect and
    nbconvert's (which reads mathematics between dollar signs): tags, emphasis, links and
    addresses, code, tables.
    """
    if isinstance(text, Markdown):
        return text
    line = _SPECIAL.sub(_escape, one_line(text) if strip else _joined(text))
    number = _NUMBERED.match(line)
    if match := _BLOCK.match(line, number.end() if number else 0):
        line = f"{line[: match.end()]}\\{line[match.end() :]}"
    return Markdown(line)


def _escape(match: re.Match[str]) -> str:
    if match["entity"]:
        return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(match[0], f"&#{ord(match[0])};")
    return match[0] if match["interval"] else f"\\{match[0]}"


def has_surrogate(text: str) -> bool:
    """Whether a text holds half a surrogate pair, which UTF-8 cannot."""
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)


def percent(share: float, digits: int = 0, *, sign: bool = False) -> str:
    """A share (0.67) as it is written everywhere: `67 %`; with `sign`, `+67 %`."""
    return f"{100 * share:{'+' if sign else ''}.{digits}f} %"


def figures(value: float, digits: int = 3) -> str:
    """To so many figures, or all before the point: `0.000012`, `2.53`, `12`, `1,240`."""
    if not abs(value) < 10**digits - 0.5:
        return f"{value:,.0f}"
    said, _, zeros = f"{value:.{digits}g}".partition("e-")
    return f"{value:.{int(zeros) + max(0, len(said.lstrip('-')) - 2)}f}" if zeros else said


TWO_DIGITS = "{:.2f}".format
UNSTABLE = "(too unstable for an interval)"


def ratio(value: float, low: float, high: float, said: Callable[[float], str] = TWO_DIGITS) -> str:
    """`4.81 × [4.70, 4.93]`, with `ends`."""
    return f"{said(value)} × {ends(low, high, said)}"


def ends(low: float, high: float, said: Callable[[float], str] = TWO_DIGITS) -> str:
    """`[4.70, 4.93]` of a ratio; an interval with ends a factor of `WIDE` apart is no result."""
    return f"[{said(low)}, {said(high)}]" if 0.0 < high <= WIDE * low else UNSTABLE


def counted(number: int, one: str, many: str = "") -> str:
    """`1 thread`, `2 threads`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def first_upper(text: str) -> str:
    """The text as a sentence begins; the rest as it is, unlike `str.capitalize`."""
    return text[:1].upper() + text[1:]


def span(numbers: Sequence[int]) -> str:
    """`5`, or `3 to 5` where they differ."""
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def setting_in_words(setting: float, unit: str) -> str:
    """`1 request at once`, `24 requests in a batch`; `unit` begins with a plural."""
    words = re.sub(r"^([a-z]+)s", r"\1", unit) if setting == 1 else unit
    return f"{figures(setting)} {words}"


def sentences(text: str) -> list[str]:
    """The sentences of `text`; abbreviations and decimals do not end one."""
    return re.split(r"(?<=[^.\s][.!?])\s+(?=[A-Z*“])", text)


def code(text: object) -> Markdown:
    """`text` as a code span, or as it is where a code span could be broken out of."""
    line = one_line(text)
    return Markdown(f"`{line}`") if line and not _NOT_CODE.search(line) else escaped(line)


def fenced(text: str) -> Markdown:
    """`text` as a block of code whose fence is longer than any inside."""
    shown = visible(text).strip("\n")
    ticks = max((len(run) for run in re.findall(r"`{3,}", shown)), default=2) + 1
    fence = "`" * max(3, ticks)
    return Markdown(f"{fence}text\n{shown}\n{fence}")
