"""What a model file asks for: done as llama.cpp does it, or refused by name, never ignored."""

from __future__ import annotations

import re

import gguf
import numpy as np
import pytest
from tests.reference_llama import reference_logits
from tests.tiny_model import TOKENS, write_tiny_model

from batchgauge.baseline.model import BaselineModel
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.model import LlamaModel
from batchgauge.errors import UserError
from batchgauge.request import BatchItem, InferenceBatchRequest

IDS = [5, 80, 260, 17, 17, 200, 3, 99, 42, 7, 110]
EVEN = np.linspace(1.0, 8.0, 8)


def logits(path, model=LlamaModel):
    """Scores of the last position of a prompt."""
    loaded = model.load(path)
    if isinstance(loaded, LlamaModel):
        return loaded.prefill([IDS], loaded.new_cache([len(IDS)]))[0]
    return loaded.forward(IDS, loaded.new_cache())[-1]


BASE = 10_000.0 ** -(np.arange(0, 16, 2) / 16)


@pytest.mark.parametrize(
    ("keys", "frequencies"),
    [
        ({}, BASE),
        ({"rope.scaling.factor": 4.0}, BASE / 4.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "linear"}, BASE / 4.0),
        ({"rope.scale_linear": 4.0}, BASE / 4.0),
        ({"rope.scale_linear": 4.0, "rope.scaling.type": "linear"}, BASE / 4.0),
        ({"rope.scale_linear": 4.0, "rope.scaling.factor": 4.0}, BASE / 4.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}, BASE),
        ({"rope.scaling.factor": 0.0, "rope.scaling.type": "linear"}, BASE),
        ({"rope.scaling.finetuned": True, "rope.scaling.original_context_length": 64}, BASE),
        ({"rope.freq_base": 500.0}, 500.0 ** -(np.arange(0, 16, 2) / 16)),
        ({"rope.freq_base": None, "rope.dimension_count": None}, BASE),
    ],
)
@pytest.mark.parametrize("factors", [(), EVEN], ids=["", "factors"])
def test_rotary_scaling_is_applied_however_it_is_written(tmp_path, keys, frequencies, factors):
    """Both models turn by the frequencies that llama.cpp's loader would take."""
    keys = {f"llama.{key}": value for key, value in keys.items()}
    path = write_tiny_model(tmp_path / "m.gguf", keys=keys, rope_factors=factors)
    expected = reference_logits(path, IDS, frequencies / (EVEN if len(factors) else 1.0))
    np.testing.assert_allclose(logits(path), expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(logits(path, BaselineModel), expected, rtol=0, atol=1e-3)


@pytest.mark.peers
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 4.0, "rope.scaling.type": "none"},
        {"rope.scaling.factor": 0.0, "rope.scaling.type": "linear"},
        {"rope.scale_linear": 4.0},
        {"rope.scaling.factor": 4.0, "rope.scaling.yarn_beta_fast": 3.0},
        {"rope.freq_base": 500.0, "attention.head_count": [4, 4]},
    ],
)
def test_llama_cpp_reads_the_same_from_the_keys(tmp_path, keys):
    """Its scores are ours, as far as its products in half precision go."""
    pytest.importorskip("llama_cpp")
    from batchgauge.adapters.llama_cpp_adapter import LlamaCppStepper

    keys = {f"llama.{key}": value for key, value in keys.items()}
    path = write_tiny_model(tmp_path / "m.gguf", keys=keys, rope_factors=EVEN.tolist())
    theirs = LlamaCppStepper(path).prefill([IDS], 1)[0]
    np.testing.assert_allclose(logits(path), theirs, rtol=0, atol=0.05)


NEUTRAL = [
    {"attention.causal": True},
    {"attention.sliding_window": 0},
    {"attention.sliding_window": 128},
    {"attention.sliding_window": 1 << 20},
    {"attention.scale": 0.0},
    {"attention.scale": 0.25},
    {"attention.clamp_kqv": 0.0},
    {"attention.max_alibi_bias": 0.0},
    {"attention.value_length": 16, "attention.key_length": 16},
    {"attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0},
    {"logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 0.0},
    {"expert_count": 0, "expert_used_count": 0, "leading_dense_block_count": 0},
    {"use_parallel_residual": False, "pooling_type": 0, "nextn_predict_layers": 0},
    {"rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_ext_factor": -1.0},
    {"rope.scaling.yarn_beta_fast": 32.0, "rope.dimension_sections": [0, 0, 0, 0]},
    {"attention.head_count": [4, 4], "attention.head_count_kv": [2, 2]},
    {"feed_forward_length": [96, 96], "vocab_size": len(TOKENS)},
    {"tensor_data_layout": "Meta AI original pth"},
    {"attention.sliding_window_pattern": [True, False]},
    {"attention.sliding_window": 5, "attention.sliding_window_pattern": [False, False]},
]


@pytest.mark.parametrize("keys", NEUTRAL, ids=",".join)
def test_a_value_that_means_nothing_changes_nothing(tmp_path, keys):
    """What llama.cpp takes for 'none' is no reason to refuse a model."""
    keys = {f"llama.{key}": value for key, value in keys.items()}
    path = write_tiny_model(tmp_path / "m.gguf", keys=keys)
    np.testing.assert_array_equal(logits(path), logits(write_tiny_model(tmp_path / "n.gguf")))


APPLIED = [
    {"attention.scale": 0.1},
    {"attention.sliding_window": 1},
    {"attention.sliding_window": 5},
    {"attention.sliding_window": [5, 5]},
    {"rope.dimension_count": 8},
    {"rope.scaling.attn_factor": 0.5},
    {"feed_forward_length": [96, 128]},
    {"attention.head_count_kv": [4, 1]},
    {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0},
    {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
        "rope.scaling.yarn_beta_fast": 4.0,
        "rope.scaling.yarn_ext_factor": 1.0,
    },
    {
        "rope.scaling.type": "dynamic",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 6,
    },
]


@pytest.mark.parametrize("keys", APPLIED, ids=str)
@pytest.mark.parametrize("model", [LlamaModel, BaselineModel])
def test_a_key_that_changes_the_result_is_applied(tmp_path, keys, model):
    """By the formulas, in both models; and it does change the result."""
    keys = {f"llama.{key}": value for key, value in keys.items()}
    path = write_tiny_model(tmp_path / "m.gguf", keys=keys)
    expected = reference_logits(path, IDS)
    np.testing.assert_allclose(logits(path, model), expected, rtol=0, atol=1e-3)
    usual = logits(write_tiny_model(tmp_path / "n.gguf"))
    assert np.abs(expected - usual).max() > 0.01


REFUSED = [
    *({"rope.scaling.type": kind} for kind in ("longrope", "llama3", "su", "")),
    {"rope.scaling.type": ["yarn"]},
    {"rope.scaling.type": "dynamic", "rope.scaling.factor": 0.5},
    {"rope.scaling.type": "yarn", "rope.scaling.yarn_ext_factor": 0.0},
    {"rope.scaling.original_context_length": 0},
    *({"rope.scaling.yarn_beta_fast": value} for value in (0.0, np.nan, "32")),
    {"rope.scaling.type": 1},
    *({"rope.scaling.factor": value} for value in (-2.0, np.nan, np.inf, "4", True, [4.0])),
    {"rope.scale_linear": -4.0},
    {"rope.scale_linear": 4.0, "rope.scaling.factor": 2.0},
    {"rope.scaling.yarn_attn_factor": 0.5},
    *({"rope.scaling.attn_factor": value} for value in (0.0, -1.0, np.nan)),
    {"rope.scaling.yarn_ext_factor": 1.0},
    {"rope.scaling.yarn_log_multiplier": 0.1},
    {"rope.scaling.alpha": 1000.0},
    *({"rope.dimension_count": value} for value in (0, 15, 17, 32)),
    {"rope.dimension_count_swa": 8},
    {"rope.dimension_sections": [4, 2, 2, 0]},
    {"rope.freq_base_swa": 1e4},
    *(
        {"rope.freq_base": value}
        for value in (0.0, -1e4, 10_000, np.nan, np.inf, "1e4", [1e4], True)
    ),
    {"attention.sliding_window": [0, 64]},
    {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False, True]},
    {"attention.sliding_window": 8, "attention.sliding_window_pattern": -1.0},
    {"attention.sliding_window": 8, "attention.sliding_window_pattern": ["a", "b"]},
    {"attention.sliding_window": -1.0},
    *({"attention.scale": value} for value in (-0.1, np.nan, 1)),
    {"attention.output_scale": 2.0},
    {"attention.clamp_kqv": 8.0},
    {"attention.max_alibi_bias": 8.0},
    {"attention.causal": False},
    {"attention.temperature_length": 8192},
    {"attention.temperature_scale": 0.1},
    {"attention.layer_norm_epsilon": 1e-5},
    {"attention.kv_lora_rank": 8},
    {"attention.shared_kv_layers": 1},
    {"attention.value_length": 8},
    {"attention.key_length": 8},
    {"attn_logit_softcapping": 50.0},
    {"final_logit_softcapping": 30.0},
    *({key: 8.0} for key in ("logit_scale", "residual_scale", "embedding_scale")),
    {"logit_scale": np.nan},
    {"expert_count": 8, "expert_used_count": 2},
    {"expert_used_count": 2},
    {"leading_dense_block_count": 1},
    {"nextn_predict_layers": 1},
    {"use_parallel_residual": True},
    {"pooling_type": 1},
    {"swin_norm": True},
    {"dense_2_feat_in": 64},
    {"tensor_data_layout": "reference"},
    {"some_key_of_tomorrow": 3},
    {"attention.head_count": [4, 2]},
    {"attention.head_count": [4, 4, 4]},
    {"attention.head_count_kv": [2, 0]},
    {"attention.head_count_kv": 3},
    {"attention.head_count_kv": 8},
    {"attention.head_count_kv": [True, True]},
    {"feed_forward_length": ["96", "96"]},
    *({"block_count": value} for value in (0, 1, 3, 1_000_000, 2.0, True, [2, 2], "2", None)),
    *({"embedding_length": value} for value in (0, 32, 1 << 31, 64.0, [64, 64], True, None)),
    *({"attention.head_count": value} for value in (0, 3, 5, 128, (1 << 32) - 1, 4.0, True)),
    *({"feed_forward_length": value} for value in (0, 95, 1 << 31, 96.0, None)),
    *({"context_length": value} for value in (0, 128.0, 1 << 31, [128], None)),
    *(
        {"attention.layer_norm_rms_epsilon": value}
        for value in (0.0, -1e-5, np.nan, np.inf, "1e-5", [1e-5, 1e-5], None)
    ),
]


@pytest.mark.parametrize("keys", REFUSED, ids=str)
def test_what_would_change_the_result_is_refused_by_name(tmp_path, keys):
    """A key that is not applied, or whose value cannot be, is named in one sentence."""
    named = {
        f"llama.{key}": float(value) if isinstance(value, np.floating) else value
        for key, value in keys.items()
    }
    path = write_tiny_model(tmp_path / "m.gguf", keys=named)
    with pytest.raises(UserError) as error:
        LlamaModel.load(path)
    text = str(error.value)
    assert re.search("|".join([*keys, "head sizes that do not fit together", "in shape"]), text)
    assert "\n" not in text
    assert text.endswith(".")


@pytest.mark.parametrize(
    ("name", "keys"),
    [("qwen2moe", {}), ("qwen2moe", {"qwen2moe.expert_count": 60}), ("deepseek2", {}),
     ("gpt-oss", {}), ("llama", {"llama.expert_count": 8}), ("mine", {"mine.expert_count": 2})],
)  # fmt: skip
def test_a_mixture_of_experts_is_refused_by_name(tmp_path, name, keys):
    """Whether its architecture says it or a number of experts."""
    path = write_tiny_model(tmp_path / "m.gguf", architecture=name, keys=keys)
    with pytest.raises(UserError, match=rf"is a mixture of experts \(architecture '{name}'"):
        LlamaModel.load(path)


@pytest.mark.parametrize(
    ("family", "options", "sentence"),
    [
        ("qwen2", {}, r"blk\.0\.attn_k\.bias' in shape None; expected \(32,\)"),
        ("qwen3", {}, r"attn_k_norm\.weight' in shape None; expected \(16,\)"),
        ("phi3", {}, r"attn_k\.weight' in shape \(32, 64\); expected None"),
        ("olmo2", {"norms": ("attn_q_norm", "attn_k_norm", "post_attention_norm",
                             "post_ffw_norm")}, r"attn_k_norm\.weight' in shape \(16,\); exp"),
        ("llama", {"fused": True}, r"attn_k\.weight' in shape None"),
        ("llama", {"tensors": {"blk.1.attn_q.bias": np.ones(64)}}, r"blk\.0\.attn_q\.bias'"),
        ("llama", {"biases": ("attn_q",), "tensors": {"blk.0.attn_qkv.bias": np.ones(64)}},
         r"attn_qkv\.bias'"),
        ("qwen2", {"biases": ("attn_q", "attn_k", "attn_v", "attn_output"),
                   "tensors": {"blk.0.attn_gate.bias": np.ones(3)}}, r"attn_gate\.bias'"),
        ("gemma", {"keys": {"gemma.attn_logit_softcapping": 30.0}}, "attn_logit_softcapping"),
        ("gemma2", {"keys": {"gemma2.attn_logit_softcapping": -3.0}}, "attn_logit_softcapping"),
        ("olmo2", {"keys": {"olmo2.attention.sliding_window": 8}}, "sliding_window"),
        ("granite", {"keys": {"granite.logit_scale": float("nan")}}, "logit_scale"),
    ],
)  # fmt: skip
def test_what_a_family_must_have_and_must_not_is_named(tmp_path, family, options, sentence):
    """Biases, norms of queries and keys, fused tensors, and keys of others."""
    options = {**options, "tensors": {
        name: np.asarray(values, np.float32) for name, values in options.get("tensors", {}).items()
    }}  # fmt: skip
    path = write_tiny_model(tmp_path / "m.gguf", architecture=family, **options)
    with pytest.raises(UserError, match=sentence) as error:
        LlamaModel.load(path)
    assert str(error.value).endswith(".")


def test_the_keys_of_another_architecture_are_refused(tmp_path):
    """A base for the rotation that is filed elsewhere would leave ours at its default."""
    path = write_tiny_model(tmp_path / "m.gguf", keys={"llbma.rope.freq_base": 5e5})
    with pytest.raises(UserError, match=r"has the key 'llbma.rope.freq_base'; expected one of"):
        LlamaModel.load(path)
    path = write_tiny_model(tmp_path / "m.gguf", keys={"llama>rope.freq_base": 5e5})
    with pytest.raises(UserError, match=r"has the key 'llama>rope.freq_base'; expected one of"):
        LlamaModel.load(path)
    path = write_tiny_model(tmp_path / "m.gguf", keys={"general.architecture": None})
    with pytest.raises(UserError, match="the architecture None; expected 'llama'"):
        LlamaModel.load(path)


@pytest.mark.parametrize(
    "name",
    [
        *("blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "blk.1.post_attention_norm.weight"),
        *("blk.0.ffn_gate_inp.weight", "blk.0.ffn_up_exps.weight", "blk.0.attn_rot_embd.weight"),
        *("blk.0.rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"),
        *("output.bias", "output_norm.bias", "token_types.weight", "position_embd.weight"),
        *("cls.weight", "blk.0.attn_sinks.weight", "blk.2.attn_norm.weight", "blk.0.attn_q.scale"),
    ],
)
def test_a_tensor_that_is_not_applied_is_refused_by_name(tmp_path, name):
    """Biases, further norms, experts, factors of another scaling."""
    path = write_tiny_model(tmp_path / "m.gguf", tensors={name: np.ones(64, np.float32)})
    with pytest.raises(UserError, match=r"has the tensor|block_count"):
        LlamaModel.load(path)


@pytest.mark.parametrize("factors", [np.ones(7), np.ones(16), [0.0] + [1.0] * 7, [np.nan] * 8])
def test_factors_that_cannot_divide_are_refused(tmp_path, factors):
    """One finite factor above 0 for every pair."""
    path = write_tiny_model(tmp_path / "m.gguf", rope_factors=factors)
    with pytest.raises(UserError, match=r"rope_freqs\.weight|rotary positions"):
        LlamaModel.load(path)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_the_embedding_that_no_token_has_are_never_sampled(tmp_path, tied):
    """The padding's large values would win; scores are those of the file without it."""
    padded = write_tiny_model(tmp_path / "p.gguf", tied=tied, padding_rows=13)
    plain = write_tiny_model(tmp_path / "m.gguf", tied=tied)
    np.testing.assert_array_equal(logits(padded), logits(plain))
    np.testing.assert_array_equal(logits(padded, BaselineModel), logits(plain, BaselineModel))
    engine = BatchInferenceEngine.from_gguf(padded)
    assert engine.model.config.vocab_size == len(TOKENS)
    request = InferenceBatchRequest("and the world", max_tokens=20, temperature=1.5, seed=3)
    (answer,) = engine.infer_batch([BatchItem("a", request)]).responses
    assert answer.data is not None
    assert max(answer.data.token_ids) < len(TOKENS)


def test_fewer_rows_than_tokens_are_refused(tmp_path):
    """Every token needs an embedding."""
    more = {
        "tokenizer.ggml.tokens": [*TOKENS, "more"],
        "tokenizer.ggml.token_type": [1] * (len(TOKENS) + 1),
    }
    path = write_tiny_model(tmp_path / "m.gguf", keys=more)
    with pytest.raises(
        UserError, match=f"{len(TOKENS) + 1} tokens and an embedding of {len(TOKENS)}"
    ):
        LlamaModel.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("model", [LlamaModel, BaselineModel])
@pytest.mark.parametrize(
    "name",
    ["output_norm.weight", "blk.1.attn_norm.weight", "blk.0.ffn_down.weight", "token_embd.weight"],
)
def test_weights_that_are_not_finite_are_refused(tmp_path, name, value, model):
    """Wherever the one bad value is; what overflows only later is an error of the item."""
    path = write_tiny_model(tmp_path / "m.gguf")
    content = bytearray(path.read_bytes())
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    content[tensor.data_offset + 40 : tensor.data_offset + 44] = np.float32(value).tobytes()
    path.write_bytes(content)
    if np.isfinite(value):
        assert model.load(path).config.layers == 2
    else:
        with pytest.raises(UserError, match="has a value that is not finite"):
            model.load(path)


@pytest.mark.parametrize(("kind", "block"), [("Q8_0", 34), ("Q4_0", 18), ("Q4_1", 20), ("F16", 2)])
def test_scales_that_are_not_finite_are_refused(tmp_path, kind, block):
    """In any type: half floats that are infinite or NaN."""
    path = write_tiny_model(tmp_path / "m.gguf", quantisation=kind)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    content = bytearray(path.read_bytes())
    place = tensor.data_offset + 5 * block
    content[place : place + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up.* has a value that is not finite"):
        LlamaModel.load(path)
