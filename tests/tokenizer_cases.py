"""Texts of every kind, and vocabularies to tokenize them with, for the tokenizer's tests."""

import unicodedata
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from batchgauge.core.tokenizer.bpe_tokenizer import read_metadata
from batchgauge.core.tokenizer.vocabulary import byte_alphabet

PRE_TOKENIZERS = (
    "smollm", "gpt-2", "llama-bpe", "qwen2", "gpt-4o", "tekken", "deepseek-llm", "deepseek-coder",
    "deepseek-v3",
)  # fmt: skip

TEXTS = {
    "prose": "The quick brown fox, who'd been resting, didn't jump: it walked. “Why?” she'll ask…",
    "code": "def f(x: int) -> int:\n\treturn x ** 2  # squared\n\n\nprint(f(12345), [0x1F])\r\n",
    "digits": "1 12 123 1234 12345 3.14159 007 ½ ² Ⅷ ٣٤٥ १२३ 1,000,000 a1b22c333 ١a",
    "contractions": "I'm you're he'S WE'VE they'LL it'd 'tis ''s 're're 'ſ 'l 'v ' s's'",
    "white space": " a  b   c\t\td \t e\n\nf\r\ng\r\r\n h\x0b\x0ci\x85j\xa0k\u2003\u2028l\u3000 m ",
    "only spaces": "          ",
    "spaces then digit": "x   7  8 9\n\n10 \n 11\t12",
    "emoji": "🙂 👩‍👩‍👧‍👦👍🏽 🇩🇪 ok🙂ok ❤️ 🏳️‍🌈!",
    "combining": "e\u0301 a\u0308o\u0302 \u0301alone न\u093fक \u200bzero\u200d width\ufeff",
    "CJK": "在地球表面的人类社会中，语言是交流的工具。東京タワー 한국어 文字2024年",
    "right to left": "שלום עולם, مرحبا بالعالم! ١٢٣ (abc) \u200f",
    "control": "\x00a\x00\x00b\x01\x02\x03\x05\x07\x08\x0e\x1b[0m\x1c\x1e\x1f\x7f\x80\x9f \x00",
    "no token for its byte": "a\x04b\x06\x13 \x14\x16\x1d\x1d\x1d c\U00040000d",
    "special as text": "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|im_start",
    "long word": "pneumonoultramicroscopicsilicovolcanoconiosis" * 5 + " " + "=" * 200 + "\n" * 70,
    "unsplittable": "ab" * 700,
    "mixed": "naïve café—ß ŉ K'ſtraße <b>&amp;</b> C++/C# ~~x~~ $5.00 100% a_b-c.d@e",
    "empty": "",
}

# Characters whose kind every library agrees on: newer ones are letters to those alone whose
# tables of Unicode are new enough.
_settled = st.characters(exclude_categories=("Cn", "Cs")).filter(
    lambda char: unicodedata.ucd_3_2_0.category(char) != "Cn"
)

# Short texts that put unlike characters side by side.
texts = st.lists(
    st.one_of(
        st.sampled_from(
            ["a", "b", "s", "t", "l", "é", "字", "1", "2", "²", ".", "-", "'", "🙂", "ſ"]
        ),
        st.sampled_from(["\t", "\n", "\r", "\0", "\x1c", "\xa0", "\u3000", "\u0301"]),
        st.sampled_from([" ", "  ", "'s", "'LL", "\r\n", "the", "<|a|>", "<|a|>b"]),
        st.text(_settled, max_size=6),
    ),
    max_size=25,
).map("".join)


@cache
def default_metadata() -> dict[str, Any]:
    """Metadata of the default model."""
    return read_metadata(None)


def with_pre_tokenizer(name: str, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    """Metadata with another pre-tokenizer."""
    return (metadata or default_metadata()) | {"tokenizer.ggml.pre": name}


@cache
def toy_metadata(pre_tokenizer: str = "smollm") -> dict[str, Any]:
    """All 256 bytes, 120 merges learned from `TEXTS`, and three special tokens.

    `<|a|>` and `<|a|>b` are control tokens, `<u>` is user defined.
    """
    alphabet = byte_alphabet()
    words = Counter(
        tuple(alphabet[byte] for byte in word.encode())
        for text in TEXTS.values()
        for word in text.replace(" ", "\0 ").split("\0")
    )
    merges = _learned(words, 120)
    tokens = ["<|a|>", "<|a|>b", "<u>", *alphabet, *(m.replace(" ", "") for m in merges)]
    tokens = list(dict.fromkeys(tokens))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": merges,
    }


def _learned(words: Counter[tuple[str, ...]], count: int) -> list[str]:
    """So many merges, each of the pair that is met most."""
    merges: list[str] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        best = max(pairs, key=pairs.__getitem__)
        merges.append(" ".join(best))
        words = Counter({_merged(word, best): times for word, times in words.items()})
    return merges


@cache
def pieces_metadata(*, crossing: bool = False) -> dict[str, Any]:
    """A vocabulary of SentencePiece's kind with 150 merges learned from `TEXTS`, as scores.

    `crossing`: one more token goes on behind a space, so that no text is cut into words.
    """
    texts = [text.replace(" ", "▁") for text in TEXTS.values()]
    words = Counter(
        tuple(word) for text in texts for word in text.replace("▁", "\0▁").split("\0") if word
    )
    known = sorted({char for word in words for char in word if char < "\u1000" or char == "▁"})
    merges = _learned(Counter({w: n for w, n in words.items() if {*w} <= {*known}}), 150)
    learned = [merge.replace(" ", "") for merge in merges] + ["s▁", "s▁a"] * crossing
    learned = list(dict.fromkeys(learned))
    first = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "<u>"]
    scores = [0.0] * len(first) + [-float(n) for n in range(len(learned))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*first, *learned, *known],
        "tokenizer.ggml.scores": np.array([*scores, *[-1e6] * len(known)], np.float32),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 4] + [1] * len(learned + known),
    }


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    result: list[str] = []
    for symbol in word:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return tuple(result)
