"""The tokenizer: three implementations that agree, special tokens, decoding, batches, bad input."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizer_cases import (
    PRE_TOKENIZERS,
    TEXTS,
    default_metadata,
    pieces_metadata,
    texts,
    toy_metadata,
    with_pre_tokenizer,
)

from batchgauge import UserError
from batchgauge.baseline.tokenizer import BaselineTokenizer
from batchgauge.core.tokenizer.batch_tokenizer import BatchTokenizer
from batchgauge.core.tokenizer.bpe_plain import PlainEncoder
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.core.tokenizer.normalise import FORM_KEY, PREFIX_KEY
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.protocols import Tokenizer
from batchgauge.request import BatchItem, DetokenizeBatchRequest, TokenizeBatchRequest

SMOLLM = BPETokenizer.from_metadata(default_metadata())
TOY = BPETokenizer.from_metadata(toy_metadata())
SPACES = ("", "every", "missing", "first")  # where a SentencePiece text gets one in front


def three(metadata):
    """The fast path, the plain path and the baseline on one vocabulary."""
    vocabulary = Vocabulary.from_metadata(metadata)
    plain = BPETokenizer(vocabulary, PlainEncoder(vocabulary))
    return BPETokenizer(vocabulary), plain, BaselineTokenizer(vocabulary)


TOYS = {name: three(toy_metadata(name)) for name in PRE_TOKENIZERS}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_all_paths_agree_on_every_kind_of_text(name):
    """Kernel, plain path and baseline give the same ids for every pre-tokenizer."""
    fast, plain, baseline = three(with_pre_tokenizer(name))
    for kind, text in TEXTS.items():
        want = baseline.encode(text)
        assert plain.encode(text) == want, kind
        assert fast.encode(text) == want, kind
        assert fast.encode(text) == want, f"{kind}, seen before"
    want_many = baseline.encode_many(list(TEXTS.values()))
    assert fast.encode_many(list(TEXTS.values())) == want_many
    assert plain.encode_many(list(TEXTS.values())) == want_many


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(texts, max_size=4), allow_special=st.booleans())
def test_all_paths_agree_on_generated_texts(rows, allow_special):
    """The same on texts made to hit the seams, one by one and as a batch, specials or not."""
    for name in PRE_TOKENIZERS:
        fast, plain, baseline = TOYS[name]
        want = [baseline.encode(text, allow_special=allow_special) for text in rows]
        assert [fast.encode(text, allow_special=allow_special) for text in rows] == want
        assert [plain.encode(text, allow_special=allow_special) for text in rows] == want
        assert fast.encode_many(rows, allow_special=allow_special).tolist() == want


def test_ids_of_the_default_model_do_not_change():
    """Known ids of SmolLM2, so that all paths cannot go wrong together."""
    assert SMOLLM.encode("hello world") == [28120, 905]
    assert SMOLLM.encode("It's 2024, isn't it?  5") == [
        1589, 506, 216, 34, 32, 34, 36, 28, 3247, 982, 357, 47, 256, 37,
    ]  # fmt: skip
    assert SMOLLM.encode("<|im_end|>", allow_special=True) == [2]
    assert SMOLLM.vocab_size == 49152
    assert isinstance(SMOLLM, Tokenizer)


def test_special_tokens_are_text_unless_asked_for():
    """Control tokens in a text are plain text by default and tokens with `allow_special`."""
    text = "x<|a|>b<|a|>y"
    assert TOY.special_ids == {"<|a|>": 0, "<|a|>b": 1, "<u>": 2}
    as_tokens = TOY.encode(text, allow_special=True)
    assert [i for i in as_tokens if i < 3] == [1, 0], "the longest token wins"
    as_text = TOY.encode(text)
    assert not {0, 1} & set(as_text)
    assert TOY.decode(as_tokens) == TOY.decode(as_text) == text


def test_user_defined_tokens_are_always_tokens():
    """A user defined token in a text is its token, with and without `allow_special`."""
    assert TOY.encode("a<u>b")[1] == 2
    assert TOY.encode_many(["a<u>b", "c"]).tolist()[0][1] == 2
    assert TOY.encode("<u>", allow_special=True) == [2]


def test_empty_text_and_empty_batch():
    """Nothing gives nothing, both ways."""
    assert SMOLLM.encode("") == []
    assert SMOLLM.encode_many([]).tolist() == []
    assert SMOLLM.encode_many(["", "", ""]).tolist() == [[], [], []]
    assert SMOLLM.decode([]) == ""
    assert SMOLLM.decode_many([]) == []


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_decoding_inverts_encoding(text):
    """With a token for every byte, any text comes back exactly."""
    for fast, _, baseline in TOYS.values():
        ids = fast.encode(text)
        assert fast.decode(ids) == text
        assert baseline.decode(ids) == text


def test_bytes_without_a_token_are_dropped():
    """SmolLM2 has no token for some control characters: named, and left out of the ids."""
    missing = SMOLLM.vocabulary.missing_bytes
    assert [byte for byte in missing if byte < 0xC0] == [4, 6, 0x13, 0x14, 0x16, 0x1D]
    assert SMOLLM.decode(SMOLLM.encode("a\x04b\x06")) == "ab"
    for kind in TEXTS.keys() - {"no token for its byte"}:
        assert SMOLLM.decode(SMOLLM.encode(TEXTS[kind])) == TEXTS[kind], kind


@given(data=st.binary(max_size=12))
def test_invalid_utf8_decodes_with_replacement_characters(data):
    """Ids that spell any bytes at all decode as Python's own replacing decoder does."""
    byte_ids = TOY.vocabulary.byte_ids
    assert TOY.decode([byte_ids[byte] for byte in data]) == data.decode("utf-8", "replace")
    assert TOY.decode([byte_ids[0xE2], byte_ids[0x82]]) == "\ufffd"


def test_decode_many_and_arrays():
    """Rows of ids as lists or arrays decode alike, and a token's bytes are to be had."""
    batch = SMOLLM.encode_many(["one two", "", "drei €"])
    rows: Any = batch
    assert SMOLLM.decode_many(rows) == ["one two", "", "drei €"]
    assert SMOLLM.decode_many(batch.tolist()) == ["one two", "", "drei €"]
    assert b"".join(map(SMOLLM.token_bytes, batch[2].tolist())) == "drei €".encode()


@pytest.mark.parametrize("bad", [49152, -1, 10**12, "x"])
def test_unknown_id_is_a_user_error(bad):
    """An id outside the vocabulary is named; a negative one does not count from the end."""
    with pytest.raises(UserError, match="not in the vocabulary"):
        SMOLLM.decode([1, bad])


@pytest.mark.parametrize(
    "metadata",
    [
        *(toy_metadata(name) for name in PRE_TOKENIZERS),
        *(toy_metadata("qwen2") | {FORM_KEY: form} for form in ("NFC", "NFKC")),
        *(pieces_metadata() | {PREFIX_KEY: way} for way in SPACES),
    ],
    ids=[
        *PRE_TOKENIZERS,
        "NFC",
        "NFKC",
        *(f"pieces, space in front: {way}" for way in SPACES),
    ],
)
def test_bytes_of_texts_give_the_ids_of_the_texts(metadata):
    """Text by text, since one with a user defined token takes another way; and all together."""
    for tokenizer in three(metadata)[:2]:
        for kind, text in TEXTS.items():
            assert tokenizer.encode_ended(text.encode() + b"\xff").tolist() == [
                tokenizer.encode(text)
            ], kind
        rows = [*TEXTS.values(), "a <u> b", "", "e\u0301 ﬁ"]
        joined = b"".join(row.encode() + b"\xff" for row in rows)
        assert tokenizer.encode_ended(joined) == tokenizer.encode_many(rows)
        for bad in (b"a", b"\xc3\xff"):
            with pytest.raises(UnicodeError):
                tokenizer.encode_ended(bad)


@pytest.mark.parametrize("special", [False, True])
def test_lone_surrogate_is_a_user_error(special):
    """A str that UTF-8 cannot hold is refused, saying where."""
    with pytest.raises(UserError, match=r"U\+D800 at character 2"):
        SMOLLM.encode("ab\ud800c", allow_special=special)
    with pytest.raises(UserError, match="surrogate"):
        SMOLLM.encode_many(["fine", "é\udfff"], allow_special=special)
    with pytest.raises(UserError, match="surrogate"):
        TOYS["smollm"][1].encode("\udc80")


def test_text_that_is_no_str_is_a_user_error():
    """Bytes and None are refused with their type's name."""
    not_texts: list[Any] = [b"ab", None]
    with pytest.raises(UserError, match="bytes"):
        SMOLLM.encode(not_texts[0])
    with pytest.raises(UserError, match="NoneType"):
        SMOLLM.encode_many(["a", not_texts[1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "youtu"}, "'youtu' is not supported"),
        ({"tokenizer.ggml.model": "bert"}, r"'bert' \(WordPiece\) is not supported"),
        ({"tokenizer.ggml.merges": None}, "lacks `tokenizer.ggml.merges`"),
        ({"tokenizer.ggml.merges": ["a b", "no-space"]}, "not two tokens"),
        ({"tokenizer.ggml.merges": ["a qqqqq"]}, "'qqqqq', which is not in its vocabulary"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "2 token types"),
    ],
)
def test_vocabulary_that_does_not_fit_is_a_user_error(change, message):
    """Each way a file's vocabulary can be wrong has a sentence of its own."""
    with pytest.raises(UserError, match=message):
        Vocabulary.from_metadata(toy_metadata() | change)


def test_same_ids_from_many_threads():
    """Threads that share a tokenizer do not disturb each other."""
    rows = [f"{text} {n}" for n in range(20) for text in TEXTS.values()]
    want = [TOY.encode(row) for row in rows]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(TOY.encode, rows)) == want
        for batch in pool.map(lambda _: TOY.encode_many(rows), range(8)):
            assert batch.tolist() == want


def test_works_without_numba():
    """Where Numba cannot be imported, the plain path gives the same ids."""
    program = (
        "import sys; sys.modules['numba'] = None\n"
        "from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer\n"
        "from tests.tokenizer_cases import TEXTS, toy_metadata\n"
        "t = BPETokenizer.from_metadata(toy_metadata())\n"
        "print(type(t.encoder).__name__, t.encode_many(list(TEXTS.values())).ids.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    want = TOY.encode_many(list(TEXTS.values())).ids.tolist()
    assert done.stdout.strip() == f"PlainEncoder {want}"


def encode_items(*requests):
    """One batch of requests."""
    items = [BatchItem(f"item {n}", request) for n, request in enumerate(requests)]
    return BatchTokenizer(TOY).encode_batch(items)


def test_batch_answers_in_order_with_and_without_special_tokens():
    """Requests keep their order and their own choice about special tokens."""
    result = encode_items(
        TokenizeBatchRequest("<|a|>"),
        TokenizeBatchRequest("<|a|>", allow_special=True),
        TokenizeBatchRequest(""),
    )
    assert [row.id for row in result.responses] == ["item 0", "item 1", "item 2"]
    assert result.get_by_id("item 1").data.tokens == (0,)
    assert result.get_by_id("item 0").data.tokens == tuple(TOY.encode("<|a|>"))
    assert result.get_by_id("item 2").data.count == 0
    assert result.all_succeeded()
    assert result.stats.total_items == 3


def test_one_bad_text_does_not_fail_its_neighbours():
    """A lone surrogate and a non-text are errors of their own items only."""
    not_text: Any = None
    result: Any = encode_items(
        TokenizeBatchRequest("good"), TokenizeBatchRequest("\ud800"), TokenizeBatchRequest(not_text)
    )
    assert result.success_count() == 1
    assert result.get_by_id("item 0").data.tokens == tuple(TOY.encode("good"))
    assert "surrogate" in result.get_by_id("item 1").error
    assert result.get_by_id("item 1").data is None
    assert "NoneType" in result.get_by_id("item 2").error


def test_one_bad_id_does_not_fail_its_neighbours():
    """Decoding a batch answers the good rows and names the bad one."""
    ids = tuple(TOY.encode("schön"))
    rows = [ids, (*ids, 10**6), (TOY.vocabulary.byte_ids[0xFF],)]
    items = [BatchItem(str(n), DetokenizeBatchRequest(row)) for n, row in enumerate(rows)]
    result: Any = BatchTokenizer(TOY).decode_batch(items)
    assert result.get_by_id("0").data.text == "schön"
    assert result.get_by_id("0").data.count == len(ids)
    assert "1000000" in result.get_by_id("1").error
    assert result.get_by_id("2").data.text == "\ufffd"


def test_batch_limits():
    """An empty batch is fine, more than 1000 items or equal ids are not."""
    tokenizer = BatchTokenizer(TOY)
    assert tokenizer.encode_batch([]).stats.total_items == 0
    item = BatchItem("same", TokenizeBatchRequest("x"))
    with pytest.raises(UserError, match="at most 1000"):
        tokenizer.encode_batch([item] * 1001)
    with pytest.raises(UserError, match="same id"):
        tokenizer.encode_batch([item] * 2)
    assert tokenizer.max_batch_size() == 1000


def test_optimal_batch_size_comes_from_the_advisor(monkeypatch, tmp_path):
    """The sizing package is asked for this tokenizer, and its answer is within the limit."""
    monkeypatch.setenv("BATCHGAUGE_CACHE", str(tmp_path))
    assert 1 <= BatchTokenizer(TOY).optimal_batch_size() <= 1000


def test_batches_of_numbers_equal_only_themselves():
    """`TokenBatch` compares by ids and by where texts end."""
    batch = TOY.encode_many(["ab", "c"])
    assert batch == TOY.encode_many(["ab", "c"])
    assert batch != TOY.encode_many(["a", "bc"])
    assert batch != [[1]]
    assert batch.ids.dtype == np.int32


@pytest.mark.parametrize("threads", [0, 1000, -1, True, "2", 1.5])
def test_numbers_of_threads_that_cannot_be_are_refused(threads):
    """One sentence."""
    with pytest.raises(UserError, match=r"threads is .*; expected a whole number from 1 to \d+"):
        BPETokenizer.from_metadata(toy_metadata(), threads=threads)
