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

# Other names for the same pattern and the same rules, as llama.cpp's `llama-vocab.cpp` maps
# them. Names whose pattern is the same but whose rules differ are not among them: `dbrx` and
# `smaug-bpe` (Llama 3's pattern, but merges count), `jina-v1-en`, `jina-v2-code` and
# `roberta-bpe` (a separator is added), `jina-v2-es`, `jina-v2-de` and `modern-bert` (a mask
# token that takes the white space before it).
_ALIASES: dict[str, tuple[str, ...]] = {
    "gpt-2": (
        "phi-2", "jina-es", "jina-de", "gigachat", "a.x-4.0", "mellum", "exaone4", "mpt", "olmo",
        "jais", "trillion", "granite-docling",
    ),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama-bpe": (
        "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
        "jina-v5-nano",
    ),
    "qwen2": (
        "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "grok-2",
    ),
}  # fmt: skip
_KNOWN = {name: name for name in PATTERNS} | {
    alias: name for name, aliases in _ALIASES.items() for alias in aliases
}

# Llama 3 takes a word that is a token as it stands, whatever its merges would give.
IGNORE_MERGES = frozenset({"llama-bpe"})
# It begins every text with the begin-of-text token unless the file says otherwise.
ADD_BOS = frozenset({"llama-bpe"})

Splitter = Callable[[str], list[str]]


def check_name(name: object) -> str:
    """The pre-tokenizer that `name` or its alias means; raises UserError for an unknown one."""
    known = ", ".join(sorted(PATTERNS))
    if name is None or name in ("", "default"):
        raise UserError(
            "The model file does not name its pre-tokenizer (`tokenizer.ggml.pre`), so its words "
            f"cannot be known; expected one of {known}."
        )
    if not isinstance(name, str) or name not in _KNOWN:
        raise UserError(f"The pre-tokenizer {name!r} is not supported; expected one of {known}.")
    return _KNOWN[name]


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
