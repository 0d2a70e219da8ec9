"""Tiny random models of every supported family, and the same weights as a `transformers` model.

`write_family(path, case)` writes a GGUF; `transformers_model(path, case)` gives what the
library makes of its tensors. A case is a family with the features that it is chosen for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import quants
from tests.tiny_model import TOKENS, write_tiny_model

from batchgauge.core.families import FAMILIES

D, LAYERS, HEADS, KV, F, CONTEXT = 256, 4, 4, 2, 96, 256


@dataclass(frozen=True)
class Case:
    """A tiny model: its architecture, what the GGUF says beside the usual, and the library's words.

    file    options of `write_tiny_model`
    keys    of the GGUF, without the architecture in front
    theirs  options of the library's config; "none" where it has no such model
    kind    the library's name of the model, where that is not the architecture's
    """

    family: str
    file: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""


QKV = ("attn_q", "attn_k", "attn_v")
ALL = (*QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down")
SHORT, LONG = np.linspace(1.0, 1.5, 32), np.linspace(1.0, 6.0, 32)
FACTORS = {"rope_factors_short.weight": SHORT, "rope_factors_long.weight": LONG}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, "rope_type": kind, **more}}


YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
GEMMA2 = {
    "attention.sliding_window": 8,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
}
CASES: dict[str, Case] = {
    "llama": Case("llama", {"tied": False}, {}, {"tie_word_embeddings": False}),
    "llama biases": Case("llama", {"biases": ALL}, {}, {"attention_bias": True, "mlp_bias": True}),
    "llama head size": Case("llama", {"head_dim": 24}, {}, {"head_dim": 24}),
    "llama linear": Case(
        "llama",
        {},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        _rope("linear", factor=4.0),
    ),
    "llama dynamic": Case(
        "llama",
        {},
        {
            "rope.scaling.type": "dynamic",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
        {**_rope("dynamic", factor=4.0), "max_position_embeddings": 32},
    ),
    "llama yarn": Case(
        "llama", {}, YARN, _rope("yarn", factor=4.0, original_max_position_embeddings=32)
    ),
    "llama yarn magnitude": Case(
        "llama",
        {},
        {
            **YARN,
            "rope.scaling.attn_factor": 1.5 / (0.1 * np.log(4.0) + 1.0),
            "rope.scaling.yarn_beta_fast": 8.0,
            "rope.scaling.yarn_beta_slow": 2.0,
        },
        _rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            attention_factor=1.5,
            beta_fast=8.0,
            beta_slow=2.0,
        ),
    ),
    "llama 3": Case(
        "llama",
        {"rope_factors": "llama3"},
        {},
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama uneven": Case(
        "llama",
        {},
        {"attention.head_count_kv": [4, 2, 1, 2], "feed_forward_length": [96, 64, 96, 128]},
        {"none": True},
    ),
    "llama partial": Case("llama", {}, {"rope.dimension_count": 24}, {"none": True}),
    "mistral": Case("llama", {}, {"attention.sliding_window": 8}, {"sliding_window": 8}, "mistral"),
    "qwen2": Case("qwen2", {"biases": QKV}),
    "qwen2 untied yarn": Case(
        "qwen2",
        {"biases": QKV, "tied": False},
        YARN,
        {
            "tie_word_embeddings": False,
            **_rope("yarn", factor=4.0, original_max_position_embeddings=32),
        },
    ),
    "qwen3": Case("qwen3", {"head_dim": 128}, {}, {"head_dim": 128}),
    "gemma": Case("gemma", {"head_dim": 128}, {}, {"head_dim": 128}),
    "gemma2": Case(
        "gemma2",
        {},
        {**GEMMA2, "attention.scale": 20.0**-0.5},
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 20,
            "sliding_window": 8,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": Case(
        "gemma3",
        {"layers": 7, "head_dim": 128},
        {
            "attention.sliding_window": 8,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        {
            "num_hidden_layers": 7,
            "head_dim": 128,
            "query_pre_attn_scalar": 128,
            "sliding_window": 8,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
            "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
        },
        "gemma3_text",
    ),
    "phi3": Case(
        "phi3",
        {"tied": False},
        {"attention.sliding_window": 20},
        {"sliding_window": 20, "tie_word_embeddings": False},
    ),
    "phi3 longrope": Case(
        "phi3",
        {"tied": False, "tensors": FACTORS},
        {
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": float(np.sqrt(1.0 + np.log(8.0) / np.log(32.0))),
        },
        {
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "long_factor": LONG.tolist(),
                "short_factor": SHORT.tolist(),
                "original_max_position_embeddings": 32,
                "factor": 8.0,
            },
        },
    ),
    "phi3 partial": Case(
        "phi3",
        {"tied": False},
        {"rope.dimension_count": 32},
        {
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "granite": Case(
        "granite",
        {},
        {
            "embedding_scale": 3.0,
            "residual_scale": 0.5,
            "logit_scale": 2.0,
            "attention.scale": 0.2,
        },
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.2,
        },
    ),
    "olmo2": Case("olmo2", {"tied": False}, {}, {"tie_word_embeddings": False}),
    "smollm3": Case("smollm3"),
}


def write_family(path: Path, case: Case, **changes: Any) -> Path:
    """Write a case's model; `changes` are further options of `write_tiny_model`."""
    family = FAMILIES[case.family]
    options: dict[str, Any] = {
        "layers": LAYERS,
        "d_model": D,
        "heads": HEADS,
        "kv_heads": KV,
        "d_ff": F,
        "context_length": CONTEXT,
        "architecture": case.family,
        "norms": family.norms,
        "wide_norms": family.wide_norms,
        "fused": family.fused,
        "scale": 0.1,
        **case.file,
        **changes,
    }
    if options.get("rope_factors") == "llama3":
        options["rope_factors"] = llama3_factors(**case.theirs["rope_parameters"])
    options["tensors"] = {
        name: np.asarray(values, np.float32)
        for name, values in (options.get("tensors") or {}).items()
    }
    keys = {**case.keys, **(changes.get("keys") or {})}
    options["keys"] = {
        f"{case.family}.{key}": float(value) if isinstance(value, np.floating) else value
        for key, value in keys.items()
    }
    return write_tiny_model(path, **options)


def llama3_factors(
    factor: float, low_freq_factor: float, high_freq_factor: float,
    original_max_position_embeddings: int, rope_theta: float, **_: Any,
) -> list[float]:  # fmt: skip
    """The factors tensor of Llama 3.1, as llama.cpp's converter computes it."""
    E, found = D // HEADS, []
    for frequency in rope_theta ** -(np.arange(0, E, 2) / E):
        wavelength = 2 * np.pi / frequency
        if wavelength < original_max_position_embeddings / high_freq_factor:
            found.append(1.0)
        elif wavelength > original_max_position_embeddings / low_freq_factor:
            found.append(factor)
        else:
            smooth = original_max_position_embeddings / wavelength - low_freq_factor
            smooth /= high_freq_factor - low_freq_factor
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def transformers_model(path: Path, case: Case) -> Any:
    """The library's model of the same weights, float32, with its plain attention."""
    import torch
    import transformers

    family, names = FAMILIES[case.family], dict(NAMES)
    if "post_attention_norm" in family.norms and "ffn_norm" in family.norms:
        names["ffn_norm"] = "pre_feedforward_layernorm"
    if family.fused:
        names["ffn_up"] = "mlp.gate_up_proj"
    config = transformers.AutoConfig.for_model(
        case.kind or case.family,
        **{
            "vocab_size": len(TOKENS),
            "hidden_size": D,
            "num_hidden_layers": case.file.get("layers", LAYERS),
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV,
            "intermediate_size": F,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
            "attn_implementation": "eager",
            **({} if "rope_parameters" in case.theirs else _rope("default")),
            **case.theirs,
        },
    )
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name.startswith("rope"):
            continue
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in OUTSIDE:
            name = OUTSIDE[tensor.name]
        else:
            _, layer, part, kind = tensor.name.split(".")
            if not family.halves and part in {"attn_q", "attn_k"}:
                heads = {"attn_q": HEADS, "attn_k": KV}[part]
                pairs = values.reshape(heads, -1, 2, values.size // len(values))
                values = pairs.swapaxes(1, 2).reshape(values.shape)
            name = f"model.layers.{layer}.{names[part]}.{kind}"
        if case.family.startswith("gemma") and name.endswith("norm.weight"):
            values = values - 1.0
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32)
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert set(missing) <= {"lm_head.weight"}, missing
        model.tie_weights()
        return model.eval()


def transformers_logits(model: Any, ids: list[int]) -> np.ndarray:
    """Scores behind the last id, all of them read at once: [V]."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0, -1].numpy())
