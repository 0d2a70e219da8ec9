"""Foreign tokenizers and engines give what ours give, on the same vocabulary and weights."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from tests.tiny_model import STOP, write_tiny_model

from batchgauge import workload
from batchgauge.adapters.own import NumpyStepper
from batchgauge.adapters.stepped import SteppedEngine
from batchgauge.core.default_model import default_model_path
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.core.model import LlamaModel
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.registry import missing_packages, open_engine, open_tokenizer
from batchgauge.request import BatchItem, InferenceBatchRequest

pytestmark = pytest.mark.peers
TEXTS = [
    *workload.UNICODE_CASES, "", " ", "a", f"x{STOP}y", *workload.texts("prose", 300, 20),
    *workload.texts("code", 300, 20), *workload.texts("unicode", 80, 20),
]  # fmt: skip


def need(spec):
    """Skip, with a clear word, where the library behind `spec` is not installed."""
    if missing := missing_packages(spec):
        pytest.skip(f"{' and '.join(missing)} not installed")


@pytest.fixture(scope="module")
def default_model():
    """The default model, where it is installed."""
    try:
        return default_model_path()
    except UserError as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny float32 model that adds a begin token."""
    return write_tiny_model(tmp_path_factory.mktemp("m") / "tiny.gguf", add_bos=True, tied=False)


@pytest.mark.parametrize("spec", ["hf", "tiktoken", "llama-cpp"])
def test_ids_and_texts_are_ours(spec, default_model):
    """Ids of one and of many texts, special tokens, and the way back are those of our tokenizer."""
    need(spec)
    ours, theirs = BPETokenizer.from_gguf(default_model), open_tokenizer(spec, default_model)
    wanted = ours.encode_many(TEXTS)
    assert isinstance(theirs, Tokenizer)
    assert theirs.vocab_size == ours.vocab_size
    assert theirs.encode_many(TEXTS).tolist() == wanted.tolist()
    assert [theirs.encode(text) for text in TEXTS] == wanted.tolist()
    chat = "<|im_start|>user\nHi<|im_end|>"
    assert theirs.encode(chat, allow_special=True) == ours.encode(chat, allow_special=True)
    assert theirs.encode_many([chat], allow_special=True).tolist() == [
        ours.encode(chat, allow_special=True)
    ]
    rows = [row[:n] for row in wanted.tolist() for n in (1, 3, 20)]  # some cut inside a character
    assert theirs.decode_many(rows) == ours.decode_many(rows)


@pytest.mark.parametrize("spec", ["hf", "tiktoken"])
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_other_pre_tokenizers(spec, pre, tmp_path):
    """The pre-tokenizers of other model families cut as ours do."""
    need(spec)
    path = write_tiny_model(tmp_path / "tiny.gguf", pre=pre)
    ours, theirs = BPETokenizer.from_gguf(path), open_tokenizer(spec, path)
    assert theirs.encode_many(TEXTS).tolist() == ours.encode_many(TEXTS).tolist()


@pytest.mark.parametrize("spec", ["hf", "tiktoken"])
def test_threads_change_nothing(spec, default_model):
    """The library's own thread pool gives the same ids."""
    need(spec)
    tokenizer = open_tokenizer(spec, default_model)
    one = tokenizer.encode_many(TEXTS).tolist()
    tokenizer.threads = 2  # type: ignore[attr-defined]  # the adapters' own
    assert tokenizer.encode_many(TEXTS).tolist() == one


def test_tokenizer_files(tmp_path, default_model):
    """A tokenizer.json is read; a missing one, and an encoding that is not cached, are said."""
    need("hf")
    need("tiktoken")
    tokenizer = open_tokenizer("hf", default_model)
    path = tmp_path / "tokenizer.json"
    tokenizer.raw.save(str(path))  # type: ignore[attr-defined]  # the adapter's own
    again = open_tokenizer(f"hf:{path}")
    assert again.encode_many(TEXTS).tolist() == tokenizer.encode_many(TEXTS).tolist()
    with pytest.raises(UserError, match=r"cannot be read as a tokenizer\.json"):
        open_tokenizer(f"hf:{tmp_path / 'nothing.json'}")
    with pytest.raises(UserError, match="no encoding 'nothing'; expected one of"):
        open_tokenizer("tiktoken:nothing")
    with pytest.raises(UserError, match="lone surrogate"):
        tokenizer.encode_many(["a\ud800"])


def test_a_named_encoding_is_never_downloaded(tmp_path, monkeypatch):
    """A named tiktoken encoding that is not in the cache is a sentence, not a download."""
    need("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError, match="'r50k_base' is not cached on this machine"):
        open_tokenizer("tiktoken:r50k_base")


def test_sentencepiece(tmp_path):
    """A model file of sentencepiece tokenizes, one text and many alike, and back."""
    need("sentencepiece")
    import sentencepiece

    text = workload.corpus("prose")[:60_000]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "sp"), vocab_size=300,
        minloglevel=9,
    )  # fmt: skip
    tokenizer = open_tokenizer(f"sentencepiece:{tmp_path / 'sp.model'}")
    rows = tokenizer.encode_many(["the value of x", ""]).tolist()
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocab_size == 300
    assert rows == [tokenizer.encode("the value of x"), []]
    assert tokenizer.decode_many(rows) == ["the value of x", ""]
    with pytest.raises(UserError, match="sentencepiece:PATH"):
        open_tokenizer("sentencepiece")
    with pytest.raises(UserError, match="cannot be read as a sentencepiece model"):
        open_tokenizer(f"sentencepiece:{tmp_path / 'text.txt'}")


def items():
    """Requests of all kinds: ragged, sampled, stopped, too long, and broken."""
    requests = {
        "plain": InferenceBatchRequest("the world and", max_tokens=20, ignore_eos=True),
        "short": InferenceBatchRequest("a", max_tokens=3),
        "chat": InferenceBatchRequest("hello", max_tokens=12, chat=True),
        "warm": InferenceBatchRequest("in the", max_tokens=9, temperature=0.9, top_p=0.9, seed=4),
        "ids": InferenceBatchRequest((5, 9, 30), max_tokens=5),
        "context": InferenceBatchRequest((7,) * 120, max_tokens=30, ignore_eos=True),
        "too-long": InferenceBatchRequest((7,) * 999, max_tokens=3),
        "bad-ids": InferenceBatchRequest((5, 99999), max_tokens=3),
    }
    return [BatchItem(name, request) for name, request in requests.items()]


@pytest.mark.parametrize("spec", ["transformers", "llama-cpp"])
def test_an_engine_answers_as_ours_does(spec, tiny):
    """On the same float32 weights every answer, error and count is ours."""
    need(spec)
    ours = BatchInferenceEngine.from_gguf(tiny).infer_batch(items())
    engine = open_engine(spec, tiny)
    theirs = engine.infer_batch(items())
    assert isinstance(engine, Engine)
    for mine, other in zip(ours.responses, theirs.responses, strict=True):
        assert (mine.id, mine.error) == (other.id, other.error)
        if mine.data and other.data:
            assert mine.data.token_ids == other.data.token_ids, mine.id
            assert mine.data.text == other.data.text
            assert mine.data.finish_reason == other.data.finish_reason
            assert len(other.data.inter_token_ms) == len(other.data.token_ids) - 1
            assert math.isfinite(other.data.ttft_ms)
    same = ("prompt_tokens", "generated_tokens", "decode_steps")
    assert {k: theirs.counters[k] for k in same} == {k: ours.counters[k] for k in same}
    assert theirs.stages_ms["decode"] > 0.0
    with pytest.raises(UserError, match="expected 1 to"):
        engine.infer_batch([])


def test_scaled_positions_reach_transformers(tmp_path):
    """The frequency factors of Llama 3.1 change the answer, and as in our model."""
    need("transformers")
    factors = tuple(np.linspace(1.0, 8.0, 8))
    path = write_tiny_model(tmp_path / "tiny.gguf", rope_factors=factors)
    request = [BatchItem("a", InferenceBatchRequest((5, 6, 7, 8, 9, 10), max_tokens=8))]
    ours = BatchInferenceEngine.from_gguf(path).infer_batch(request).responses[0].data
    theirs = open_engine("transformers", path).infer_batch(request).responses[0].data
    assert ours is not None
    assert theirs is not None
    assert theirs.token_ids == ours.token_ids


def test_variants_that_do_not_exist(tiny):
    """An unknown type, variant or device is said."""
    need("transformers")
    need("llama-cpp")
    import torch

    with pytest.raises(UserError, match="expected float32 or bfloat16"):
        open_engine("transformers:int3", tiny)
    with pytest.raises(UserError, match="expected 'f32'"):
        open_engine("llama-cpp:q9", tiny)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            open_engine("transformers:float32,cuda", tiny)


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch not installed")
@pytest.mark.parametrize("spec", ["transformers", "llama-cpp:f32"])
def test_greedy_text_on_the_default_model(spec, default_model):
    """Engines in float32 continue real prompts with the very ids of our engine."""
    need(spec)
    prompts = workload.sample_prompts(workload.load_prompts(), 4, seed=3)
    batch = workload.to_items(prompts, max_tokens=12)
    ours = BatchInferenceEngine.from_gguf(default_model).infer_batch(batch)
    theirs = open_engine(spec, default_model).infer_batch(batch)
    assert [r.data and r.data.token_ids for r in theirs.responses] == [
        r.data and r.data.token_ids for r in ours.responses
    ]


def test_the_quantised_file_runs_in_llama_cpp(default_model):
    """The default model as it is goes on with a plain series; repacked for AMX it crashed."""
    need("llama-cpp")
    request = InferenceBatchRequest("One, two, three, four, five,", max_tokens=8)
    (answer,) = (
        open_engine("llama-cpp", default_model).infer_batch([BatchItem("a", request)]).responses
    )
    assert answer.data is not None
    assert answer.data.text.startswith(" six, seven")


def test_scores_that_are_not_finite_fail_their_item_alone(tiny, monkeypatch):
    """Whatever library they come from: the others go on as without."""
    metadata = GGUFFile.open(tiny).metadata
    model = LlamaModel.load(tiny)
    engine = SteppedEngine(
        "ours", NumpyStepper(model), BPETokenizer.from_metadata(metadata), metadata
    )
    items = [
        BatchItem(str(i), InferenceBatchRequest((40 + i, 50), max_tokens=5, ignore_eos=True))
        for i in range(4)
    ]
    clean = engine.infer_batch(items).responses
    decode, steps = engine.stepper.decode, []

    def poisoned(ids):
        steps.append(len(ids))
        logits = decode(ids).copy()
        if len(steps) == 2:
            logits[1, 7] = np.nan
        return logits

    monkeypatch.setattr(engine.stepper, "decode", poisoned)
    rows = engine.infer_batch(items).responses
    assert rows[1].data is None
    assert "no finite score" in str(rows[1].error)
    for number in (0, 2, 3):  # the rows behind the one that left may have changed their order
        row, alone = rows[number].data, clean[number].data
        assert row is not None
        assert alone is not None
        assert row.token_ids == alone.token_ids
    assert steps == [4, 4, 3, 3]
