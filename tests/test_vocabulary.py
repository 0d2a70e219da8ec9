"""What a file says about its vocabulary: aliases, edges of texts, end tokens, odd tokens."""

from __future__ import annotations

import pytest
from tests.tiny_model import write_tiny_model
from tests.tokenizer_cases import TEXTS, default_metadata, toy_metadata

from batchgauge.baseline.tokenizer import BaselineTokenizer
from batchgauge.core.generation import PromptReader
from batchgauge.core.tokenizer.bpe_plain import PlainEncoder
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.core.tokenizer.edges import Edges
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.errors import UserError
from batchgauge.request import InferenceBatchRequest

# As llama.cpp maps names to patterns and flags.
ALIASES = {
    "llama-bpe": "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "qwen2": "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan grok-2",
    "gpt-2": "gpt-2 phi-2 jina-es jina-de gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion",
    "smollm": "smollm starcoder refact command-r codeshell exaone minerva-7b",
    "gpt-4o": "gpt-4o llama4 kanana2 minimax-m2",
    "tekken": "tekken",
    "deepseek-llm": "deepseek-llm",
    "deepseek-coder": "deepseek-coder",
    "deepseek-v3": "deepseek-v3 hunyuan-dense",
}
NOT_THE_SAME = "dbrx smaug-bpe roberta-bpe jina-v1-en modern-bert youtu kimi-k2 glm4"


def metadata(pre="smollm", /, **more):
    """A toy vocabulary's metadata with keys changed; None leaves one out."""
    changed = toy_metadata(pre) | {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    return {key: value for key, value in changed.items() if value is not None}


@pytest.mark.parametrize(("name", "aliases"), ALIASES.items())
def test_aliases_give_the_ids_of_their_pre_tokenizer(name, aliases):
    """Kernel, plain path and baseline read every alias as the pattern it stands for."""
    rows = list(TEXTS.values())
    want = BPETokenizer.from_metadata(metadata(name)).encode_many(rows)
    for alias in aliases.split():
        vocabulary = Vocabulary.from_metadata(metadata(alias, bos_token_id=0))
        assert vocabulary.add_bos is (name in {"llama-bpe", "tekken"}), alias
        assert BPETokenizer(vocabulary).encode_many(rows) == want, alias
    assert BPETokenizer(vocabulary, PlainEncoder(vocabulary)).encode_many(rows) == want
    assert BaselineTokenizer(vocabulary).encode_many(rows) == want


@pytest.mark.parametrize("name", NOT_THE_SAME.split())
def test_other_pre_tokenizers_are_refused_by_name(name):
    """One whose rules differ in anything is not taken for another."""
    with pytest.raises(
        UserError, match=f"'{name}' is not supported; expected one of deepseek-coder, deepseek"
    ):
        Vocabulary.from_metadata(metadata(name))


@pytest.mark.parametrize("pre", [None, "", "default"])
def test_a_missing_pre_tokenizer_is_said_as_such(pre):
    """Absent, empty and `default` mean that the file does not know."""
    with pytest.raises(UserError, match="does not name its pre-tokenizer"):
        Vocabulary.from_metadata(metadata("smollm", pre=pre))


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "smollm"])
@pytest.mark.parametrize("said", [None, True, False])
def test_tokenizer_and_prompt_reader_agree_on_the_begin_token(pre, said):
    """What the file says, else what its pre-tokenizer implies; never twice."""
    keys = metadata(pre, bos_token_id=0, add_bos_token=said)
    tokenizer = BPETokenizer.from_metadata(keys)
    reader = PromptReader(tokenizer, keys | {"tokenizer.chat_template": "<|a|>x"}, 100)
    wanted = said if said is not None else pre != "smollm"
    assert tokenizer.add_bos is wanted
    plain = tokenizer.encode("x")
    assert reader.read(InferenceBatchRequest("x")) == ([0] if wanted else []) + plain
    assert reader.read(InferenceBatchRequest("x", chat=True)) == [0, *plain]
    assert reader.read(InferenceBatchRequest(tuple(plain))) == plain


def test_an_end_token_is_added_where_the_file_asks_for_it():
    """`add_eos_token` puts it behind a text, once."""
    keys = metadata("smollm", eos_token_id=1, add_eos_token=True)
    reader = PromptReader(BPETokenizer.from_metadata(keys), keys, 100)
    assert reader.read(InferenceBatchRequest("x"))[-1] == 1
    assert Edges.from_metadata(keys).around([5, 1]) == [5, 1]
    none = metadata("llama-bpe", add_bos_token=True)
    assert Edges.from_metadata(none).around([5]) == [5], "no begin token is named"


def edges_of(tokens, types, **more):
    """Texts of the tokens that end an answer."""
    more |= {"tokens": tokens, "token_type": types}
    keys = {f"tokenizer.ggml.{key}": value for key, value in more.items() if value is not None}
    return {tokens[i] for i in Edges.from_metadata(keys).ends}


def test_the_end_of_a_turn_is_every_end_token_that_is_named():
    """Listed ones and those of known names, if they are control or user defined tokens."""
    names = (
        "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> </s> <|end_of_text|> "
        "<|eom_id|> <EOT> <end_of_utterance> <|file_sep|> <｜end▁of▁sentence｜>"
    )
    for name in names.split():
        assert edges_of(["a", name, "b"], [1, 3, 1]) == {name}
        assert edges_of(["a", name, "b"], [1, 4, 1]) == {name}
        assert edges_of(["a", name, "b"], [1, 1, 1]) == set(), "ordinary text"
        assert edges_of(["a", name, "b"], None) == {name}, "a file without types"
    assert edges_of(["a", "b", "c", "<|end|>"], [1, 1, 1, 3], eos_token_id=[0, 1]) == {
        "a", "b", "<|end|>",
    }  # fmt: skip
    assert edges_of(["a", "b", "c"], [1, 1, 1], eot_token_id=1, eom_token_id=2) == {"b", "c"}


def test_ends_that_are_none_in_their_model():
    """With `<|call|>` and `<|return|>`, `<|end|>` ends a message; Gemma 4's `</s>` is text."""
    harmony = ["<|end|>", "<|return|>", "<|call|>"]
    assert edges_of(harmony, [3, 3, 3]) == {"<|return|>", "<|call|>"}
    assert edges_of(["<|end|>", "<|flush|>", "<|calls|>"], [3] * 3) == {"<|flush|>", "<|calls|>"}
    assert edges_of(["</s>", "<|tool_response>"], [3, 3]) == {"<|tool_response>"}


@pytest.mark.peers
def test_ends_are_those_of_llama_cpp(tmp_path):
    """Of the default model and the tiny one, every id."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from batchgauge.adapters.llama_cpp_adapter import LlamaCppTokenizer
    from batchgauge.core.default_model import default_model_path
    from batchgauge.core.tokenizer.bpe_tokenizer import read_metadata

    tiny = write_tiny_model(tmp_path / "tiny.gguf", pre="llama3")
    for path in (default_model_path(), tiny):
        theirs = LlamaCppTokenizer.from_file(path)
        ends = {i for i in range(theirs.vocab_size) if llama_cpp.llama_vocab_is_eog(theirs.raw, i)}
        assert Edges.from_metadata(read_metadata(path)).ends == ends


@pytest.mark.parametrize("key", ["bos", "eos"])
@pytest.mark.parametrize("bad", [10**6, -1, 1.5, "x", True, [0, 10**6], [[0], [1, 2]]])
def test_special_ids_that_are_no_tokens_are_refused(key, bad):
    """Out of range, or of another type."""
    with pytest.raises(UserError, match=f"{key}_token_id` is .*, which is no token; expected 0"):
        Vocabulary.from_metadata(metadata("smollm", **{f"{key}_token_id": bad}))


def test_an_array_of_end_tokens_is_taken():
    """All of them end an answer; the first stands for the others."""
    keys = metadata("smollm", eos_token_id=[1, 0])
    assert Vocabulary.from_metadata(keys).eos_id == 1
    assert Edges.from_metadata(keys).ends == {0, 1}


def odd(*more, types=(), merges=(), pre="smollm"):
    """The toy vocabulary with tokens, types and merges added."""
    keys = toy_metadata(pre)
    return keys | {
        "tokenizer.ggml.tokens": [*keys["tokenizer.ggml.tokens"], *more],
        "tokenizer.ggml.token_type": [
            *keys["tokenizer.ggml.token_type"], *types, *[1] * (len(more) - len(types)),
        ],
        "tokenizer.ggml.merges": [*keys["tokenizer.ggml.merges"], *merges],
    }  # fmt: skip


FIRST_MERGE = toy_metadata()["tokenizer.ggml.merges"][0]
ODD = {
    "a byte twice": odd("a", "!"),
    "a result of a merge twice": odd(FIRST_MERGE.replace(" ", "")),
    "a merge twice": odd(merges=[FIRST_MERGE]),
    "no text": odd("", ""),
    "special without text": odd("", "", types=[3, 4]),
    "unused": odd("[PAD400]", types=[5]),
    "unknown": odd("<unk>", types=[2]),
    "byte": odd("<0x0A>", types=[6]),
    "not in the byte alphabet": odd("日本", "日", "a b"),
    "whole words": odd("日本", "hello", "Ġhello", "zqzq", pre="llama-bpe"),
    "whole word twice": odd("zqzq", "zqzq", pre="llama-bpe"),
    "a control token that is a word": odd("hello", types=[3], pre="llama-bpe"),
    "merges as arrays": odd(merges=[["a", "!"]]) | {},
    "special inside special": odd("<|a", "a|>", "<|a|><|a|>", types=[3, 4, 3]),
}
ODD["merges as arrays"] = odd("a!", merges=[["a", "!"]])
PROBES = [
    *TEXTS.values(), "日本 日 hello hello! zqzq <unk> <0x0A> [PAD400] a b a!",
    "<|a|><|a|>b<|a<u>a|>x",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_vocabularies_give_one_answer(name):
    """Kernel, plain path and baseline agree, and what they give decodes to the text."""
    vocabulary = Vocabulary.from_metadata(ODD[name])
    fast, plain = BPETokenizer(vocabulary), BPETokenizer(vocabulary, PlainEncoder(vocabulary))
    for special in (False, True):
        want = BaselineTokenizer(vocabulary).encode_many(PROBES, allow_special=special)
        assert fast.encode_many(PROBES, allow_special=special) == want
        assert plain.encode_many(PROBES, allow_special=special) == want
        assert fast.decode_many(want.tolist()) == PROBES


@pytest.mark.peers
@pytest.mark.parametrize("name", ODD)
def test_odd_vocabularies_give_hfs_ids(name):
    """Built by the adapter, and spelled as its model's own file would."""
    pytest.importorskip("tokenizers")
    from batchgauge.adapters.hf import HFTokenizer, from_vocabulary

    vocabulary = Vocabulary.from_metadata(ODD[name])
    theirs, ours = HFTokenizer(from_vocabulary(vocabulary)), BPETokenizer(vocabulary)
    for special in (False, True):
        want = theirs.encode_many(PROBES, allow_special=special)
        assert ours.encode_many(PROBES, allow_special=special).tolist() == want.tolist()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (odd("<|a|>", types=[3]), "special token '<|a|>' stands twice .* as 0 and"),
        (odd("<u>"), "special token '<u>' stands twice"),
        (odd("x", types=[9]), "token type of the model file is unknown"),
        (odd("x", types=["3"]), "token type of the model file is unknown"),
        (odd(merges=[["a", "b", "c"]]), "not two tokens"),
        (odd(merges=[7]), "not two tokens"),
        (odd(merges=["a qq"]), "'qq', which is not in its vocabulary"),
        (metadata(token_type=[1]), "1 token types"),
        (metadata(token_type=3), "1 token types"),
        (metadata(token_type=[[1], [2, 3]]), "token type of the model file is unknown"),
        (metadata(tokens="abc"), "no texts"),
        (metadata(tokens=[1, 2], token_type=None), "no texts"),
        (metadata(tokens=["\ud800"], token_type=None), "lone surrogate"),
        (metadata() | {"tokenizer.ggml.add_bos_token": "yes"}, "is 'yes'; expected true or false"),
    ],
)
def test_vocabularies_that_cannot_be_are_refused(keys, message):
    """One sentence each."""
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        Vocabulary.from_metadata(keys)


def test_the_default_model_has_its_ends():
    """SmolLM2's: the end of a turn and of a text, and what fill-in-the-middle ends with."""
    tokens = default_metadata()["tokenizer.ggml.tokens"]
    ends = {tokens[i] for i in Edges.from_metadata(default_metadata()).ends}
    assert {"<|im_end|>", "<|endoftext|>"} <= ends
