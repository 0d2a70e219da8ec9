r"""How text is cut into words before byte pairs are merged: the pre-tokenizers we know.

Each is one regular expression whose matches cover the whole text. The patterns
are those of the models' own `tokenizer.json` files. `smollm` is there a sequence
of two steps, digits apart and then GPT-2's pattern; here it is one pattern that
gives the same words (a digit ends the text for the white space before it).

Character classes are Unicode's general categories as the `regex` package knows
them: \p{L} letters, \p{N} numbers, \s the White_Space property. On ASCII text
the standard `re` gives the same words in a third of the time.

Left out: Unicode normalisation (Qwen2's own file composes accents first; a GGUF
does not carry that step, and decoding could not be exact with it).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import regex

from batchgauge.errors import UserError

# \p{L}, \p{N} and \s stand inside brackets only, so that ASCII ranges can replace them.
_SMALL_ENDINGS = r"'s|'t|'re|'ve|'m|'ll|'d"
_LLAMA = (
    rf"(?i:{_SMALL_ENDINGS})|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}]+|[\p{{N}}]DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|[\s]*[\r\n]+|[\s]+(?![^\s])|[\s]+"
)
PATTERNS: dict[str, str] = {
    "gpt-2": rf"{_SMALL_ENDINGS}| ?[\p{{L}}]+| ?[\p{{N}}]+| ?[^\s\p{{L}}\p{{N}}]+"
    r"|[\s]+(?![^\s])|[\s]+",
    "smollm": rf"{_SMALL_ENDINGS}| ?[\p{{L}}]+|[\p{{N}}]| ?[^\s\p{{L}}\p{{N}}]+"
    r"|[\s]+(?![^\s\p{N}])|[\s]+",
    "llama-bpe": _LLAMA.replace("DIGITS", "{1,3}"),
    "qwen2": _LLAMA.replace("DIGITS", ""),
}

# Llama 3 takes a word that is a token as it stands, whatever its merges would give.
IGNORE_MERGES = frozenset({"llama-bpe"})

Splitter = Callable[[str], list[str]]


def check_name(name: str) -> str:
    """`name` itself; raises UserError when it is not a pre-tokenizer we know."""
    if name not in PATTERNS:
        known = ", ".join(sorted(PATTERNS))
        raise UserError(f"The pre-tokenizer {name!r} is not supported; expected one of {known}.")
    return name


@cache
def unicode_splitter(name: str) -> Splitter:
    """The words of any text, by `regex`. Raises UserError for an unknown name."""
    splitter: Splitter = regex.compile(PATTERNS[check_name(name)]).findall
    return splitter


@cache
def ascii_splitter(name: str) -> Splitter:
    """The same words for ASCII text only, by the standard `re`."""
    pattern = PATTERNS[check_name(name)]
    for unicode_class, ascii_range in (
        (r"\p{L}", "a-zA-Z"),
        (r"\p{N}", "0-9"),
        (r"\s", r" \t\n\x0b\x0c\r"),  # without \x1c to \x1f, which `re` counts as white space
    ):
        pattern = pattern.replace(unicode_class, ascii_range)
    return re.compile(pattern).findall


def split(name: str, text: str) -> list[str]:
    """The words of `text`, which joined give it back. Raises UserError for an unknown name."""
    return ascii_splitter(name)(text) if text.isascii() else unicode_splitter(name)(text)
