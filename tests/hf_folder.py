"""A GGUF model written out as a Hugging Face folder: the same weights, in the library's order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from batchgauge.core.config import Config
from batchgauge.core.default_model import open_model
from batchgauge.core.quantised import as_bfloat16
from batchgauge.core.tokenizer.vocabulary import Vocabulary

OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
IN_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "F32") -> None:
    """Tensors of float32 by the format's rules: vectors as they are, matrices as `dtype`."""
    head, at, parts = {}, 0, []
    for name, values in tensors.items():
        flat = np.ascontiguousarray(values, np.float32)
        kind = dtype if values.ndim > 1 else "F32"  # as a GGUF has them
        data = {
            "F32": lambda flat=flat: flat.tobytes(),
            "F16": lambda flat=flat: flat.astype(np.float16).tobytes(),
            "BF16": lambda flat=flat: as_bfloat16(flat).tobytes(),
        }[kind]()
        head[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
        parts.append(data)
    text = json.dumps({"__metadata__": {"format": "pt"}, **head}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.writelines(parts)


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, object]:
    """The vocabulary as the `tokenizers` library saves it, with GPT-2's or SmolLM's words."""
    tokens = vocabulary.tokens
    words: dict[str, object] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if vocabulary.pre_tokenizer == "smollm":
        digits = {"type": "Digits", "individual_digits": True}
        words = {"type": "Sequence", "pretokenizers": [digits, words]}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, **plain, "special": token in vocabulary.control}
            for token, i in vocabulary.special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": words,
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "ignore_merges": False,
            "vocab": vocabulary.ids,
            "merges": [
                [tokens[left], tokens[right]]
                for left, right in zip(vocabulary.lefts, vocabulary.rights, strict=True)
            ],
        },
    }


def write_hf_folder(
    gguf: Path | None, folder: Path, *, dtype: str = "F32", shards: int = 1
) -> Path:
    """Write the Llama of a GGUF (None: the default model) to `folder`, made anew."""
    file = open_model(gguf)
    c = Config.from_file(file)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = file.metadata
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "num_hidden_layers": c.layers, "hidden_size": c.d_model, "intermediate_size": c.d_ff,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
        "vocab_size": c.vocab_size, "max_position_embeddings": c.context_length,
        "rms_norm_eps": c.norm_epsilon, "rope_theta": float(metadata["llama.rope.freq_base"]),
        "tie_word_embeddings": c.tied, "torch_dtype": "float32", "use_cache": True,
        "rope_scaling": None, "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"], "attention_bias": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = Vocabulary.from_metadata(metadata)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(vocabulary)))
    settings = {
        "chat_template": metadata.get("tokenizer.chat_template"),
        "eos_token": vocabulary.tokens[metadata["tokenizer.ggml.eos_token_id"]],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tensors = {}
    for name in file.tensors:
        values = file.read(name)
        stem = name.removesuffix(".weight")
        if not stem.startswith("blk."):
            tensors[f"{OUTSIDE[stem]}.weight"] = values[: c.vocab_size]
            continue
        _, layer, part = stem.split(".")
        if part in {"attn_q", "attn_k"}:  # neighbours turn in a GGUF, halves in the library
            pairs = values.reshape(-1, c.head_dim // 2, 2, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        tensors[f"model.layers.{layer}.{IN_LAYER[part]}.weight"] = values
    names = list(tensors)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return folder
    places: dict[str, str] = {}
    for n in range(shards):
        path = folder / f"model-{n + 1:05}-of-{shards:05}.safetensors"
        some = names[n::shards]
        write_safetensors(path, {name: tensors[name] for name in some}, dtype)
        places |= dict.fromkeys(some, path.name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
