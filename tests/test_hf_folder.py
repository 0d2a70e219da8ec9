"""Hugging Face folders: the very model of a GGUF of the same weights, or one sentence."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.family_table import TABLE, of_a_llama, table
from tests.fuzzing import check_sentence, seeds
from tests.hf_folder import write_hf_folder, write_safetensors
from tests.tiny_model import TOKENS, write_tiny_model
from tests.tokenizer_cases import pieces_metadata

from batchgauge.core.default_model import VARIABLE, default_model_path, open_model
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.families import FAMILIES
from batchgauge.core.hf_config import MODELS, describe
from batchgauge.core.model_facts import ModelFacts
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.core.tokenizer.normalise import PREFIX_KEY
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.core.weights import MODES
from batchgauge.errors import UserError
from batchgauge.registry import missing_packages, open_engine
from batchgauge.request import BatchItem, InferenceBatchRequest

PROMPT = InferenceBatchRequest("hello and the world", max_tokens=32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A tiny model as a GGUF and as a folder."""
    place = tmp_path_factory.mktemp("pair")
    gguf = write_tiny_model(place / "m.gguf", keys={"llama.rope.freq_base": 5e4})
    return gguf, write_hf_folder(gguf, place / "hf")


@pytest.fixture
def folder(pair, tmp_path):
    """A copy of the folder to spoil."""
    return Path(shutil.copytree(pair[1], tmp_path / "model"))


def answer(path, weights="float32"):
    """The first 32 greedy tokens, and scores of the first."""
    engine = BatchInferenceEngine.from_gguf(path, weights)
    data = engine.infer_batch([BatchItem("1", PROMPT)]).responses[0].data
    assert data is not None
    return data.token_ids, engine.next_token_logits(PROMPT)


def refusal(path):
    """The sentence for a folder that is not taken."""
    with pytest.raises(UserError) as error:
        BatchInferenceEngine.from_gguf(path)
    check_sentence(str(error.value))
    return str(error.value)


def change(path, **values):
    """Other values in a file of JSON; None takes a key away."""
    old = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in old.items() if v is not None}))


def test_a_llama_by_reader_and_quantisation(tmp_path):
    """Its rows of the table below, with a folder that needs no library."""
    known = pd.read_csv(TABLE)
    pd.testing.assert_frame_equal(of_a_llama(tmp_path), known[known["family"] == "llama"])


@pytest.mark.slow
@pytest.mark.peers
def test_family_reader_quantisation(tmp_path):
    """Whoever reads a file, and however it keeps weights, says the same: the committed table."""
    pytest.importorskip("transformers")
    found = table(tmp_path)
    assert found["tokens_equal"].all()
    assert found[found.columns[-1]].all()
    assert found.to_csv(index=False) == TABLE.read_text()


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_is_the_gguf_of_the_same_weights(tmp_path, tied):
    """Bit for bit in every mode, in several files, with the same ids and ends of answers."""
    gguf = write_tiny_model(tmp_path / "m.gguf", tied=tied, quantisation="BF16", add_bos=False)
    folder = write_hf_folder(gguf, tmp_path / "hf", dtype="BF16", shards=3)
    for mode in MODES:
        ours, theirs = answer(folder, mode), answer(gguf, mode)
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])
    one, other = (BatchInferenceEngine.from_gguf(path) for path in (gguf, folder))
    assert one.reader.edges.ends == other.reader.edges.ends
    chat = InferenceBatchRequest("hello", chat=True, max_tokens=3)
    assert one.reader.read(chat) == other.reader.read(chat)
    text = "the  world's <|im_end|> 123 äöü\n"
    for special in (True, False):
        ids = [
            BPETokenizer.from_gguf(p).encode(text, allow_special=special) for p in (gguf, folder)
        ]
        assert ids[0] == ids[1]
    facts = ModelFacts.read(folder)
    assert facts.form == "Hugging Face folder"
    assert facts.quantisation == ModelFacts.read(gguf).quantisation == "BF16"
    assert facts.weights_bytes == ModelFacts.read(gguf).weights_bytes


def test_a_folder_is_named_in_many_ways(pair, folder, tmp_path, monkeypatch):
    """With a slash, relative, from home, by the environment, as a snapshot of the cache."""
    expected = answer(pair[0])[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    for name in (f"{folder}/", "model", "./model/", "~/model", snapshot, repository):
        assert answer(name)[0] == expected
    assert open_model(snapshot).metadata["general.name"] == "owner/name"
    monkeypatch.setenv(VARIABLE, "~/model")
    assert answer(None)[0] == expected
    (repository / "blobs" / "0").unlink()
    assert "config.json' cannot be read" in refusal(repository)


def test_folders_of_other_kinds(tmp_path, pair):
    """Empty, of several GGUF files, of one, with pickled weights, an adapter, no tokenizer."""
    place = tmp_path / "other"
    place.mkdir()
    assert "holds no model; expected a GGUF file, or config.json" in refusal(place)
    shutil.copy(pair[0], place / "a.gguf")
    assert answer(place)[0] == answer(pair[0])[0]
    shutil.copy(pair[0], place / "b.gguf")
    assert "holds 2 GGUF models, a.gguf and others; expected one" in refusal(place)
    hf = Path(shutil.copytree(pair[1], tmp_path / "hf"))
    (hf / "tokenizer.json").rename(hf / "tokenizer.model")
    assert "has its tokenizer as tokenizer.model; expected tokenizer.json" in refusal(hf)
    (hf / "tokenizer.model").rename(hf / "tokenizer.json")
    (hf / "adapter_config.json").write_text("{}")
    assert "holds an adapter (LoRA)" in refusal(hf)
    (hf / "adapter_config.json").unlink()
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    assert "its weights as pytorch_model.bin; expected *.safetensors" in refusal(hf)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "'mixtral', a mixture of experts"),
        ({"model_type": "falcon"}, "model_type 'falcon', which is not supported"),
        ({"model_type": None}, "model_type None"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by 'gptq'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised by 'fp8'"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised by 'a method'"),
        ({"hidden_size": None}, "lacks `hidden_size`; expected a whole number"),
        ({"hidden_size": "64"}, "has '64' as `hidden_size`"),
        ({"hidden_size": 10**30}, "as `hidden_size`; expected a whole number"),
        ({"num_hidden_layers": 1_000_000}, "tensors of 2 layers; expected 1000000"),
        ({"num_attention_heads": -4}, "has -4 as `num_attention_heads`"),
        ({"head_dim": 32}, "_proj.weight' in shape"),
        ({"rms_norm_eps": True}, "has True as `rms_norm_eps`"),
        ({"hidden_act": "relu"}, "has 'relu' as `hidden_act`; expected 'silu'"),
        ({"attention_bias": True}, "has no bias for attn_k"),
        ({"sliding_window": 16}, "the key 'sliding_window', which is 16"),
        ({"use_alibi": True}, "the key 'use_alibi', which is True: what it changes is not known"),
        ({"rope_scaling": {"type": "xpos", "factor": 2.0}}, "has 'xpos' as `rope_type`"),
        ({"rope_scaling": {"type": "linear"}}, "lacks `factor`"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "odd": 3}}, "the key 'odd'"),
        ({"rope_scaling": [1]}, "as `rope_scaling`; expected an object"),
        ({"tie_word_embeddings": False}, "lacks the tensor 'lm_head.weight'"),
        ({"vocab_size": 5_000_000}, "expected"),
    ],
)
def test_what_config_says_is_checked(folder, values, sentence):
    """By its name in that file, in one sentence."""
    change(folder / "config.json", **values)
    assert sentence in refusal(folder)


def test_rotary_scaling_is_that_of_a_gguf(folder, tmp_path):
    """Linear by a factor; Llama 3's numbers become the factors that a GGUF has as a tensor."""
    change(folder / "config.json", rope_scaling={"rope_type": "linear", "factor": 2.0})
    keys = {"llama.rope.freq_base": 5e4, "llama.rope.scaling.factor": 2.0}
    scaled = write_tiny_model(tmp_path / "s.gguf", keys=keys)
    np.testing.assert_array_equal(answer(folder)[1], answer(scaled)[1])
    numbers: dict[str, Any] = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    numbers |= {"rope_type": "llama3", "original_max_position_embeddings": 64}
    change(folder / "config.json", rope_scaling=numbers)
    turns = 64 * 5e4 ** -(np.arange(0, 16, 2) / 16) / (2 * np.pi)
    smooth = (turns - 1.0) / 3.0
    blended = 1.0 / ((1.0 - smooth) / 8.0 + smooth)
    factors = np.where(turns < 1.0, 8.0, np.where(turns > 4.0, 1.0, blended))
    keys = {"llama.rope.freq_base": 5e4}
    scaled = write_tiny_model(tmp_path / "s.gguf", rope_factors=factors.tolist(), keys=keys)
    np.testing.assert_allclose(answer(folder)[1], answer(scaled)[1], rtol=0, atol=1e-5)


BASE = {
    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6, "vocab_size": 300,
}  # fmt: skip


def test_config_of_other_families():
    """What each says in its own way comes under the keys of its GGUF."""

    def said(kind, **more):
        return describe({**BASE, "model_type": kind, **more}, "The file 'c'").metadata

    asked = {"sliding_window": 8, "max_window_layers": 4}
    assert "qwen2.attention.sliding_window" not in said("qwen2", **asked)
    windows = said("qwen2", use_sliding_window=True, **asked)
    assert windows["qwen2.attention.sliding_window_pattern"].tolist() == [False] * 4 + [True] * 2
    assert said("mistral", sliding_window=8)["llama.attention.sliding_window"] == 8
    gemma = said("gemma2", sliding_window=8, query_pre_attn_scalar=64, attn_logit_softcapping=50.0)
    assert gemma["gemma2.attention.sliding_window_pattern"].tolist() == [True, False] * 3
    assert gemma["gemma2.attention.scale"] == 0.125
    assert gemma["gemma2.attn_logit_softcapping"] == 50.0
    assert gemma["gemma2.final_logit_softcapping"] == 0.0
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 5e4}}
    gemma = said("gemma3_text", sliding_window=8, rope_parameters=rope)
    assert gemma["gemma3.attention.sliding_window_pattern"].tolist() == [True] * 5 + [False]
    assert (gemma["gemma3.rope.freq_base"], gemma["gemma3.rope.freq_base_swa"]) == (1e6, 5e4)
    yarn = said("qwen3", rope_scaling={"type": "yarn", "factor": 4.0, "attention_factor": 1.0})
    assert yarn["qwen3.rope.scaling.attn_factor"] * (0.1 * np.log(4.0) + 1.0) == pytest.approx(1.0)
    granite = said("granite", attention_multiplier=0.5, logits_scaling=8.0)
    assert granite["granite.attention.scale"] == 0.5
    assert granite["granite.logit_scale"] == 8.0


SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda t: t["model"].update(type="WordPiece"), "of the kind 'WordPiece'"),
        (lambda t: t["model"].update(byte_fallback=True), "prepares texts by ByteLevel in a way"),
        (lambda t: t["model"].update(type="Unigram", vocab=[["a", -1.0]]), "the kind 'Unigram'"),
        (
            lambda t: t.update(
                normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
            ),
            "the normaliser 'Replace'",
        ),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "the normaliser 'Lowercase'"),
        (lambda t: t.update(pre_tokenizer={"type": "Metaspace"}), "cuts words by Metaspace"),
        (lambda t: t["added_tokens"][0].update(lstrip=True), "takes spaces beside it"),
        (lambda t: t["model"]["vocab"].update(x=1 << 40), "an id of 1099511627776"),
        (lambda t: t["model"]["vocab"].update(x=-1), "an id that is no whole number"),
        (lambda t: t["model"].update(merges=[["a"]]), "A merge of the model file"),
        (lambda t: t["model"].update(merges=7), "is not a tokenizer"),
        (lambda t: t.pop("model"), "is not a tokenizer"),
        (lambda t: t["model"]["vocab"].update(more=5000), "5001 tokens and an embedding"),
    ],
)
def test_what_the_tokenizer_says_is_checked(folder, spoil, sentence):
    """In one sentence, before anything large is made."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    spoil(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    tracemalloc.start()
    assert sentence in refusal(folder)
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_ends_are_those_of_generation_too(folder):
    """`generation_config.json` may list more tokens that end an answer."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0, 5]}))
    assert BatchInferenceEngine.from_gguf(folder).reader.edges.ends == {0, 2, 5}


def test_weights_that_do_not_fit_are_said(folder, pair, tmp_path):
    """Missing files and tensors, foreign ones, in two files, of another kind."""
    sharded = write_hf_folder(pair[0], tmp_path / "sharded", shards=3)
    part = sharded / "model-00002-of-00003.safetensors"
    kept = part.read_bytes()
    part.unlink()
    assert "lacks 'model-00002-of-00003.safetensors', one of 3" in refusal(sharded)
    shutil.copy(sharded / "model-00001-of-00003.safetensors", part)
    assert "in two files; expected it in one" in refusal(sharded)
    write_safetensors(part, {"model.layers.1.mlp.odd.weight": np.zeros((2, 2))})
    assert "lacks the tensor 'model." in refusal(sharded)
    part.write_bytes(kept)
    index = sharded / "model.safetensors.index.json"
    assert answer(sharded)[0] == answer(pair[0])[0]
    index.rename(sharded / "kept")
    part.unlink()
    assert "has 2 files of weights" in refusal(sharded)
    (sharded / "kept").rename(index)
    change(index, weight_map={"a": "../model.safetensors"})
    assert "names the file '../model.safetensors'" in refusal(sharded)
    data = (folder / "model.safetensors").read_bytes()
    for old, new in ((b'"F32"', b'"I32"'), (b'"F32"', b'"F8_E4M3"'), (b"o_proj", b"x_proj")):
        (folder / "model.safetensors").write_bytes(data.replace(old, new))
        assert "expected" in refusal(folder) or "corrupt" in refusal(folder)
    for content in (b"", data[:7], data[:2000], data[:-4], b"\xff" * 8 + data[8:]):
        (folder / "model.safetensors").write_bytes(content)
        assert "is corrupt or cut short" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '{"a":' * 100_000, "[]", '{"a": 1, "a": 2}', '{"vocab_size": NaN}',
     '{"hidden_size": ' + "9" * 5000 + "}", "\xff", "null"],
)  # fmt: skip
def test_hostile_json_is_one_sentence(folder, name, text):
    """Cut, nested, no object, twin keys, numbers that are none."""
    (folder / name).write_bytes(text.encode("latin-1"))
    refusal(folder)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_damaged_folder_is_refused_or_a_model(pair, folder):
    """Bytes changed, cut or doubled in any of the files."""
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    outcomes = set()
    for seed in seeds("folders"):
        rng = np.random.default_rng(seed)
        name = names[seed % len(names)]
        content = bytearray((pair[1] / name).read_bytes())
        head = min(len(content), 4000)
        at = int(rng.integers(0, head))
        if seed % 3 == 0:
            del content[at : at + int(rng.integers(1, 50))]
        elif seed % 3 == 1:
            content[at] ^= 1 << int(rng.integers(0, 8))
        else:
            content[at:at] = bytes(content[at : at + int(rng.integers(1, 50))])
        (folder / name).write_bytes(content)
        try:
            answers = BatchInferenceEngine.from_gguf(folder).infer_batch([BatchItem("1", PROMPT)])
            outcomes.add("taken")
            assert answers.responses[0].error or answers.responses[0].data
        except UserError as problem:
            check_sentence(str(problem))
            outcomes.add("refused")
        except BaseException as problem:
            problem.add_note(f"seed {seed}: {name}")
            raise
        os.replace(shutil.copy(pair[1] / name, folder / "x"), folder / name)  # noqa: PTH105
    assert outcomes == {"taken", "refused"}


@pytest.mark.peers
@pytest.mark.parametrize("kind", MODELS)
def test_folders_that_the_library_writes(pair, tmp_path, kind):
    """`save_pretrained` of a tiny random model: the logits that `transformers` gives it."""
    if MODELS[kind].architecture not in FAMILIES:
        pytest.skip(f"{kind} is not supported")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    small = BASE | {"vocab_size": len(TOKENS), "num_hidden_layers": 4}
    small |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if MODELS[kind].windowed:
        slides = "attention.sliding_window_pattern" in FAMILIES[MODELS[kind].architecture].applied
        small |= {"sliding_window": 8 if slides else 128}
        small |= {"use_sliding_window": slides, "max_window_layers": 2}
    if MODELS[kind].windowed == "always":
        del small["use_sliding_window"], small["max_window_layers"]
    config = transformers.AutoConfig.for_model(kind, **small)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for values in model.parameters():
            values.add_(torch.randn_like(values), alpha=0.1)
        model.save_pretrained(tmp_path)
        shutil.copy(pair[1] / "tokenizer.json", tmp_path)
        engine = BatchInferenceEngine.from_gguf(tmp_path)
        ids = engine.reader.read(PROMPT)
        expected = model(torch.tensor([ids])).logits[0, -1].numpy()
    np.testing.assert_allclose(engine.next_token_logits(PROMPT), expected, rtol=0, atol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize(("kind", "way"), [("gemma", ""), ("llama", "every"), ("mistral", "first")])
def test_folders_with_pieces_open(tmp_path, kind, way):
    """As Gemma's, Llama 2's and Mistral's have them: the library's ids and logits."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers.processors import TemplateProcessing

    from batchgauge.adapters.hf import from_vocabulary

    metadata = pieces_metadata() | {PREFIX_KEY: way}
    tokenizer = from_vocabulary(Vocabulary.from_metadata(metadata))
    tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    small = BASE | {"vocab_size": tokenizer.get_vocab_size(), "num_hidden_layers": 2}
    small |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **small)
    ).eval()
    model.save_pretrained(tmp_path)
    engine = BatchInferenceEngine.from_gguf(tmp_path)
    for text in (PROMPT.prompt, " naïve 字\n"):
        request = InferenceBatchRequest(text)
        ids = tokenizer.encode(text).ids
        assert engine.reader.read(request) == ids
        assert engine.reader.edges.ends == {2}
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1].numpy()
        np.testing.assert_allclose(engine.next_token_logits(request), expected, rtol=0, atol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("spec", ["transformers", "llama-cpp", "llama-cpp:f32", "baseline"])
def test_other_engines_open_folders(pair, monkeypatch, tmp_path, spec):
    """llama.cpp by a GGUF that is written for it; the same greedy ids in float32."""
    if missing := missing_packages(spec):
        pytest.skip(f"{missing[0]} not installed")
    monkeypatch.setenv("BATCHGAUGE_CACHE", str(tmp_path))
    engine = open_engine(spec, pair[1])
    data = engine.infer_batch([BatchItem("1", PROMPT)]).responses[0].data
    assert data is not None
    count = 32 if spec != "llama-cpp" else 4  # whose cache is float16
    assert data.token_ids[:count] == answer(pair[0])[0][:count]


@pytest.mark.slow
def test_the_default_model_as_a_folder(tmp_path):
    """The same ids and the first 32 tokens, from float32 bit for bit."""
    path = default_model_path()
    folder = write_hf_folder(path, tmp_path / "hf")
    ours, theirs = answer(folder), answer(path)
    assert ours[0] == theirs[0]
    np.testing.assert_array_equal(ours[1], theirs[1])
