"""The tokenizer against HF `tokenizers`, built here from the same vocabulary and merges.

The pre-tokenizers are spelled as in the models' own `tokenizer.json`, not taken from
`batchgauge.core.tokenizer.pretokenize`, so that a mistake there shows.
"""

import argparse
import pydoc_data.topics
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizer_cases import (
    PRE_TOKENIZERS,
    TEXTS,
    texts,
    toy_metadata,
    with_pre_tokenizer,
)

from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.core.tokenizer.pretokenize import split

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.peers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+ENDING"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*ENDING"
    r"|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_CJK = "[一-龥ࠀ-一가-\ud7ff]+"
DEEPSEEK_LETTERS = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿ\u0386\u0388-\u038a\u038c\u038e-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽ"
    "Ა-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ"
    "\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
STEPS: dict[str, list[str | None]] = {
    "gpt-4o": [CASED.replace("ENDING", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", "{1,3}")],
    "tekken": [CASED.replace("ENDING", "").replace("DIGITS", "")],
    "llama-bpe": [LLAMA3],
    "qwen2": [LLAMA3.replace("{1,3}", "")],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        (
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
            "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
            "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
        ),
    ],
    "deepseek-llm": [
        "[\r\n]",
        DEEPSEEK_LETTERS,
        "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
        "\\s+$",
        DEEPSEEK_CJK,
        None,
    ],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, None],
}


def hf_pre_tokenizer(name):
    """What the model's own `tokenizer.json` has."""
    pre = tokenizers.pre_tokenizers
    gpt2 = pre.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "gpt-2":
        return gpt2
    if name == "smollm":
        return pre.Sequence([pre.Digits(individual_digits=True), gpt2])
    steps = [
        pre.Split(tokenizers.Regex(step), "isolated") if step else pre.Digits(True)
        for step in STEPS[name]
    ]
    return pre.Sequence([*steps, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def hf_tokenizer(metadata):
    """HF's tokenizer from a GGUF's metadata."""
    tokens = metadata["tokenizer.ggml.tokens"]
    name = metadata["tokenizer.ggml.pre"]
    model = tokenizers.models.BPE(
        {token: i for i, token in enumerate(tokens)},
        [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
        ignore_merges=name in {"llama-bpe", "tekken"},
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = hf_pre_tokenizer(name)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True):
        if kind in {3, 4}:
            added = tokenizers.AddedToken(token, special=kind == 3, normalized=False)
            tokenizer.add_tokens([added])
    return tokenizer


def both(metadata):
    """Ours and HF's."""
    return BPETokenizer.from_metadata(metadata), hf_tokenizer(metadata)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_ids_are_those_of_hf_on_the_default_vocabulary(name):
    """Every kind of text, Python's own prose and code; special tokens as text and as tokens."""
    ours, theirs = both(with_pre_tokenizer(name))
    prose = list(pydoc_data.topics.topics.values())
    rows = [*TEXTS.values(), *prose, Path(argparse.__file__).read_text(encoding="utf-8")]
    for special in (False, True):
        theirs.encode_special_tokens = not special
        want = [row.ids for row in theirs.encode_batch(rows, add_special_tokens=False)]
        assert ours.encode_many(rows, allow_special=special).tolist() == want
        assert [ours.encode(row, allow_special=special) for row in rows] == want
    assert ours.decode_many(want) == theirs.decode_batch(want, skip_special_tokens=False)


TOYS = {name: both(toy_metadata(name)) for name in PRE_TOKENIZERS}


@settings(max_examples=500, deadline=None)
@given(text=texts, special=st.booleans())
def test_ids_are_those_of_hf_on_generated_texts(text, special):
    """Texts made to hit the seams, with a vocabulary that has every byte."""
    for ours, theirs in TOYS.values():
        theirs.encode_special_tokens = not special
        want = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, allow_special=special) == want
        assert theirs.decode(want, skip_special_tokens=False) == ours.decode(want)


@given(data=st.binary(max_size=12))
def test_invalid_utf8_decodes_as_in_hf(data):
    """U+FFFD stands in the same places."""
    ours, theirs = TOYS["gpt-2"]
    ids = [ours.vocabulary.byte_ids[byte] for byte in data]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_words_of_every_assigned_character_are_those_of_hf(name):
    """Every character that Unicode 3.2 had is cut alike.

    Beyond that the libraries' Unicode versions differ (`regex` knows newer ones than
    Oniguruma in HF), so letters that were added later may be cut differently.
    """
    theirs = hf_pre_tokenizer(name)
    different = []
    for point in range(0x110000):
        char = chr(point)
        if unicodedata.ucd_3_2_0.category(char) in {"Cn", "Cs"}:
            continue
        text = f"a{char}1{char} {char}"
        words = [text[start:end] for _, (start, end) in theirs.pre_tokenize_str(text)]
        if split(name, text) != words:
            different.append(f"U+{point:04X}")
    assert not different
