"""Vocabularies of SentencePiece's kind: merges by score, spelled bytes, spaces; NFC of folders."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hf_folder import write_hf_folder
from tests.tiny_model import write_tiny_model
from tests.tokenizer_cases import TEXTS, pieces_metadata, texts, toy_metadata

from batchgauge.baseline import tokenizer_rungs
from batchgauge.baseline.tokenizer import BaselineTokenizer
from batchgauge.core.hf_tokenizer import tokenizer_metadata
from batchgauge.core.tokenizer.bpe_plain import merge
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.core.tokenizer.edges import Edges
from batchgauge.core.tokenizer.normalise import FORM_KEY, PREFIX_KEY
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.errors import UserError

WAYS = ("every", "missing", "first", "")
METADATA = {way: pieces_metadata() | {PREFIX_KEY: way} for way in WAYS}
OURS = {way: BPETokenizer.from_metadata(metadata) for way, metadata in METADATA.items()}
BASELINE = {way: BaselineTokenizer.from_metadata(metadata) for way, metadata in METADATA.items()}
some_texts = st.lists(
    st.one_of(texts, st.sampled_from([" the", "<u>", "▁", "<s>", "<0x0A>", " ", "字", "é"]))
).map("".join)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60, deadline=None)
@given(text=some_texts, special=st.booleans())
def test_plain_path_and_baseline_agree(way, text, special):
    """On any text, with special tokens and without."""
    want = BASELINE[way].encode(text, allow_special=special)
    assert OURS[way].encode(text, allow_special=special) == want
    assert OURS[way].encode_many([text, "a b"], allow_special=special).tolist()[0] == want


@pytest.mark.parametrize("way", WAYS)
def test_decoding_gives_the_text_back(way):
    """But a space in front, where one would not have been put there."""
    for text in TEXTS.values():
        found = OURS[way].decode(OURS[way].encode(text))
        assert found == (text.removeprefix(" ") if way in {"missing", "first"} else text)


def test_the_space_in_front():
    """Before every text between special tokens, where there is none, at the begin, or nowhere."""

    def pieces(way, text):
        tokens = OURS[way].vocabulary.tokens
        return "".join(tokens[i] for i in OURS[way].encode(text, allow_special=True))

    assert pieces("every", " a<s>b") == "▁▁a<s>▁b"
    assert pieces("missing", " a<s>b") == "▁a<s>▁b"
    assert pieces("first", "a<s>b") == "▁a<s>b"
    assert pieces("first", "<s>b") == "<s>b"
    assert pieces("", "a<s>b") == "a<s>b"
    assert pieces("every", "") == ""


def test_special_tokens_are_no_result_of_merging():
    """`<s>` in a text is three characters, though it is a token with a score."""
    ours = OURS["every"]
    assert ours.special_ids["<s>"] not in ours.encode("<s>")
    assert ours.encode("a<s>", allow_special=True)[-1] == ours.special_ids["<s>"]


def test_equal_scores_merge_from_the_left():
    """Whichever of two tokens with one score stands first in the text."""
    metadata = pieces_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"][:260], "a", "b", "c", "ab", "bc"]
    metadata = metadata | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 4] + [1] * 5,
        "tokenizer.ggml.scores": np.array([0.0] * 260 + [-9.0] * 3 + [-1.0] * 2, np.float32),
        "tokenizer.ggml.add_space_prefix": False,
    }
    for tokenizer in (
        BPETokenizer.from_metadata(metadata),
        BaselineTokenizer.from_metadata(metadata),
    ):
        assert [tokens[i] for i in tokenizer.encode("abcbc")] == ["ab", "c", "bc"]


def test_words_are_cut_only_where_no_token_goes_on():
    """The ids are those of the whole text as one word."""
    metadata = pieces_metadata(crossing=True)
    ours = BPETokenizer.from_metadata(metadata)
    assert len(ours.vocabulary.splitters[1]("▁as▁a")) == 1
    assert len(OURS["every"].vocabulary.splitters[1]("▁as▁a")) == 2
    assert "s▁a" in [ours.vocabulary.tokens[i] for i in ours.encode("xs axs a")]
    vocabulary = OURS["every"].vocabulary
    for text in TEXTS.values():
        whole = vocabulary.normaliser(text)
        assert OURS["every"].encode(text) == merge(vocabulary.symbols(whole), vocabulary.pairs)


def test_what_begins_and_ends_without_keys():
    """A begin token, 1 and 2: as llama.cpp has it."""
    edges = Edges.from_metadata(pieces_metadata())
    assert edges == Edges((1,), (), frozenset({2}))
    assert Vocabulary.from_metadata(pieces_metadata()).add_bos


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("model", "t5", r"'t5' \(SentencePiece's Unigram\) is not supported"),
        ("model", "bert", r"'bert' \(WordPiece\) is not supported"),
        ("model", "rwkv", r"'rwkv' \(RWKV's\) is not supported"),
        ("scores", None, "lacks `tokenizer.ggml.scores`"),
        ("scores", np.zeros(3, np.float32), "tokens and 3 scores"),
        ("add_space_prefix", 1, "`tokenizer.ggml.add_space_prefix` is 1"),
        ("tokens", "no bytes", "lacks the token '<0x00>'"),
    ],
)
def test_what_cannot_be_is_refused(key, value, sentence):
    """In one sentence."""
    metadata = dict(pieces_metadata())
    if isinstance(value, str) and value == "no bytes":
        value = [t.replace("<0x", "<0y") for t in metadata["tokenizer.ggml.tokens"]]
    metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(UserError, match=sentence):
        Vocabulary.from_metadata({k: v for k, v in metadata.items() if v is not None})


def test_a_folder_composes_accents_where_its_tokenizer_says_so(tmp_path):
    """NFC, and only there: the GGUF of the same model does not."""
    path = write_tiny_model(tmp_path / "m.gguf")
    folder = write_hf_folder(path, tmp_path / "hf")
    said = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(said | {"normalizer": {"type": "NFC"}}))
    ours, as_is = BPETokenizer.from_gguf(folder), BPETokenizer.from_gguf(path)
    apart, composed = "e\u0301 <|im_end|>e\u0301", "é <|im_end|>é"
    assert ours.encode(apart) == as_is.encode(composed) != as_is.encode(apart)
    assert ours.encode_many([apart, "x"]).tolist() == [as_is.encode(composed), as_is.encode("x")]
    special = ours.encode(apart, allow_special=True)
    assert special == as_is.encode(composed, allow_special=True)
    assert BaselineTokenizer(ours.vocabulary).encode(apart, allow_special=True) == special
    assert ours.decode(ours.encode(apart)) == composed


def test_the_ladder_gives_the_same_ids(tmp_path, monkeypatch):
    """Every rung that there is for this kind, mixed with those before it."""
    monkeypatch.setattr(tokenizer_rungs, "read_metadata", lambda _path: METADATA["every"])
    rungs = tokenizer_rungs.tokenizer_rungs(tmp_path)
    assert [rung.name for rung in rungs][-1] == "plain path"
    rows = [text for text in TEXTS.values() if len(text) < 1000]
    want = OURS["every"].encode_many(rows)
    for rung in rungs:
        assert rung.make_cumulative()(rows) == want, rung.name


def hf(metadata):
    """The library's tokenizer of a vocabulary."""
    pytest.importorskip("tokenizers")
    from batchgauge.adapters.hf import from_vocabulary

    return from_vocabulary(Vocabulary.from_metadata(metadata))


@pytest.mark.peers
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=150, deadline=None)
@given(text=some_texts, special=st.booleans())
def test_ids_and_texts_are_those_of_hf(way, text, special):
    """Merges by rank there, by score here."""
    theirs = hf(METADATA[way])
    theirs.encode_special_tokens = not special
    want = theirs.encode(text, add_special_tokens=False).ids
    assert OURS[way].encode(text, allow_special=special) == want
    assert OURS[way].decode(want) == theirs.decode(want, skip_special_tokens=False)


@pytest.mark.peers
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["", "NFC", "NFKC"])
def test_a_tokenizer_json_is_read_as_the_library_reads_it(way, form):
    """What it saves, with its merges in order; every text of the tokenizer's set."""
    theirs = hf(METADATA[way] | {FORM_KEY: form})
    said, size = json.loads(theirs.to_str()), theirs.get_vocab_size()
    ids = {"vocab_size": size, "bos_token_id": 1, "eos_token_id": 2}
    ours = BPETokenizer.from_metadata(tokenizer_metadata(said, {}, ids, {}, "It"))
    assert ours.vocabulary.scores is None
    for special in (False, True):
        theirs.encode_special_tokens = not special
        for text in TEXTS.values():
            want = theirs.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, allow_special=special) == want


@pytest.mark.peers
@pytest.mark.parametrize(
    "name", ["gpt-4o", "tekken", "deepseek-llm", "deepseek-coder", "deepseek-v3"]
)
def test_pre_tokenizers_of_folders_are_told_by_their_patterns(name):
    """What the library saves of each gives the same vocabulary again."""
    vocabulary = Vocabulary.from_metadata(toy_metadata(name) | {FORM_KEY: "NFC"})
    said = json.loads(hf(toy_metadata(name) | {FORM_KEY: "NFC"}).to_str())
    ids = {"vocab_size": len(vocabulary.tokens)}
    again = Vocabulary.from_metadata(tokenizer_metadata(said, {}, ids, {}, "It"))
    assert (again.pre_tokenizer, again.whole) == (name, vocabulary.whole)
    assert again.normaliser == vocabulary.normaliser
    assert again.pairs == vocabulary.pairs


@pytest.mark.peers
@pytest.mark.parametrize("prefix", [True, False])
def test_ids_are_those_of_llama_cpp(tmp_path, prefix):
    """From a GGUF with nothing but this vocabulary; it has no NUL in a text."""
    llama_cpp = pytest.importorskip("llama_cpp")
    metadata = pieces_metadata() | {"tokenizer.ggml.add_space_prefix": prefix}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_scores(metadata["tokenizer.ggml.scores"].tolist())
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_add_space_prefix(prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    ours = BPETokenizer.from_gguf(tmp_path / "m.gguf")
    for text in TEXTS.values():
        if "\0" not in text:
            want = theirs.tokenize(text.encode(), add_bos=False, special=False)
            assert ours.encode(text) == want
