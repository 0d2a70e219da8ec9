r"""How text is cut into words before byte pairs are merged: the pre-tokenizers we know.

Each is a regular expression whose matches cover the whole text, or several that cut one
after the other: what a step finds stands apart for the next one, and so does what lies
between. The patterns are those of the models' own `tokenizer.json` files. `smollm` is there
a sequence of two steps, digits apart and then GPT-2's pattern; here it is one pattern that
gives the same words (a digit ends the text for the white space before it).

Character classes are Unicode's general categories as the `regex` package knows
them: \p{L} letters, \p{N} numbers, \s the White_Space property. On ASCII text
the standard `re` gives the same words in a third of the time.

Left out: what is done to a text before it is cut (`normalise`).
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
_CAPITAL, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITAL}*{_SMALL}+ENDING"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_CAPITAL}+{_SMALL}*ENDING|[\p{{N}}]DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|[\s]*[\r\n]+|[\s]+(?![^\s])|[\s]+"
)
PATTERNS: dict[str, str] = {
    "gpt-2": rf"{_SMALL_ENDINGS}| ?[\p{{L}}]+| ?[\p{{N}}]+| ?[^\s\p{{L}}\p{{N}}]+"
    r"|[\s]+(?![^\s])|[\s]+",
    "smollm": rf"{_SMALL_ENDINGS}| ?[\p{{L}}]+|[\p{{N}}]| ?[^\s\p{{L}}\p{{N}}]+"
    r"|[\s]+(?![^\s\p{N}])|[\s]+",
    "llama-bpe": _LLAMA.replace("DIGITS", "{1,3}"),
    "qwen2": _LLAMA.replace("DIGITS", ""),
    "gpt-4o": _CASED.replace("ENDING", rf"(?i:{_SMALL_ENDINGS})?").replace("DIGITS", "{1,3}"),
    "tekken": _CASED.replace("ENDING", "").replace("DIGITS", ""),
}

# Letters of the alphabets that have cases, as `deepseek-llm` lists them.
_RANGES = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F "
    "386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD "
    "1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 "
    "1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 "
    "2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 "
    "2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 "
    "A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_CASED_LETTERS = regex.sub("[0-9A-F]+", lambda found: chr(int(found[0], 16)), _RANGES)
_CASED_LETTERS = _CASED_LETTERS.replace(" ", "")
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
STEPS: dict[str, tuple[str, ...]] = {
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_CASED_LETTERS}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        _DEEPSEEK_CJK,
        r"\p{N}",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        (
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
            r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
    ),
} | {name: (pattern,) for name, pattern in PATTERNS.items()}

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
    "gpt-4o": ("llama4", "kanana2", "minimax-m2"),
    "deepseek-v3": ("hunyuan-dense",),
}  # fmt: skip
_KNOWN = {name: name for name in STEPS} | {
    alias: name for name, aliases in _ALIASES.items() for alias in aliases
}

# Llama 3 and Mistral take a word that is a token as it stands, whatever its merges would give.
IGNORE_MERGES = frozenset({"llama-bpe", "tekken"})
# They begin every text with the begin-of-text token unless the file says otherwise.
ADD_BOS = frozenset({"llama-bpe", "tekken"})

Splitter = Callable[[str], list[str]]


def check_name(name: object) -> str:
    """The pre-tokenizer that `name` or its alias means; raises UserError for an unknown one."""
    known = ", ".join(sorted(STEPS))
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
    steps = STEPS[check_name(name)]
    if len(steps) == 1:
        splitter: Splitter = regex.compile(steps[0]).findall
        return splitter
    cuts = [regex.compile(f"({step})").split for step in steps]

    def split_in_turn(text: str) -> list[str]:
        words = [text]
        for cut in cuts:
            words = [word for piece in words for word in cut(piece) if word]
        return words

    return split_in_turn


@cache
def ascii_splitter(name: str) -> Splitter:
    """The same words for ASCII text only: by the standard `re` where one pattern gives them."""
    if (pattern := PATTERNS.get(check_name(name))) is None:
        return unicode_splitter(name)
    for unicode_class, ascii_range in (
        (_CAPITAL, "[A-Z]"),
        (_SMALL, "[a-z]"),
        (r"\p{L}", "a-zA-Z"),
        (r"\p{N}", "0-9"),
        (r"\s", r" \t\n\x0b\x0c\r"),  # without \x1c to \x1f, which `re` counts as white space
    ):
        pattern = pattern.replace(unicode_class, ascii_range)
    return re.compile(pattern).findall


def split(name: str, text: str) -> list[str]:
    """The words of `text`, which joined give it back. Raises UserError for an unknown name."""
    return ascii_splitter(name)(text) if text.isascii() else unicode_splitter(name)(text)
