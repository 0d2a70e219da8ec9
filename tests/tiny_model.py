"""A tiny random Llama written to GGUF, with a small byte-level BPE vocabulary: for fast tests.

`write_tiny_model(folder / "tiny.gguf")` gives a model of some tens of thousands of
weights that loads in milliseconds and has everything a real one has: grouped-query
attention, a tied or untied head, any quantisation, special tokens, a chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import quants

from batchgauge.core.tokenizer.vocabulary import byte_alphabet

MERGES = [
    ("h", "e"), ("i", "n"), ("Ġ", "t"), ("Ġt", "he"), ("a", "n"), ("an", "d"), ("Ġ", "and"),
    ("l", "l"), ("o", "u"), ("o", "r"), ("Ġ", "w"), ("Ġw", "or"), ("l", "d"), ("Ġwor", "ld"),
    ("e", "r"), ("in", "g"), ("Ġ", "a"), ("he", "ll"), ("hell", "o"), ("Ġ", "Ġ"),
]  # fmt: skip
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TOKENS = [END, START, STOP, *byte_alphabet(), *(left + right for left, right in MERGES)]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tiny_model(  # noqa: C901, PLR0913, PLR0915 - one list of what such a file may have
    path: Path,
    *,
    layers: int = 2,
    d_model: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    d_ff: int = 96,
    context_length: int = 128,
    tied: bool = True,
    quantisation: str = "F32",
    seed: int = 0,
    pre: str = "gpt-2",
    add_bos: bool = False,
    chat_template: str | None = CHAT_TEMPLATE,
    architecture: str = "llama",
    rope_factors: Sequence[float] = (),
    scale: float = 0.2,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    padding_rows: int = 0,
    head_dim: int = 0,
    biases: Sequence[str] = (),
    norms: Sequence[str] = ("attn_norm", "ffn_norm"),
    wide_norms: bool = False,
    fused: bool = False,
) -> Path:
    """Write the model to `path` and return it. Matrices are normal with deviation `scale`.

    `keys` replace those of the file, or come on top (None: the key is left out); `tensors`
    come on top. `padding_rows` of the embedding, with large values, belong to no token.
    `head_dim` 0 is the width by heads. `biases` names matrices that have one, `norms` a
    layer's gains; `fused` puts queries, keys and values into one tensor, gate and up too.
    """
    E = head_dim or d_model // heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(context_length)
    writer.add_embedding_length(d_model)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(d_ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(E)
    if head_dim:
        writer.add_key_length(E)
        writer.add_value_length(E)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges([f"{left} {right}" for left, right in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(add_bos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    set_keys(writer, keys or {})

    rng = np.random.default_rng(seed)
    kind = gguf.GGMLQuantizationType[quantisation]

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.normal(0.0, scale, (rows, columns)).astype(np.float32)
        if rows == len(TOKENS):  # always the same tokens, whatever comes behind them
            values = np.concatenate((values, np.full((padding_rows, columns), 9.0, np.float32)))
        if kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)

    def gain(name: str, width: int = d_model) -> None:
        writer.add_tensor(name, rng.uniform(0.5, 1.5, width).astype(np.float32))

    def of_layer(key: str, default: int, layer: int) -> int:
        value = (keys or {}).get(f"{architecture}.{key}")
        return int(value[layer % len(value)]) if isinstance(value, list) else default

    matrix("token_embd.weight", len(TOKENS), d_model)
    for layer in range(layers):
        KV = E * of_layer("attention.head_count_kv", kv_heads, layer)
        F = of_layer("feed_forward_length", d_ff, layer)
        heads_wide = {"attn_q_norm": E * heads, "attn_k_norm": KV}
        for name, rows, columns in layer_parts(d_model, E * heads, KV, F, fused=fused):
            if rows:
                matrix(f"blk.{layer}.{name}.weight", rows, columns)
            elif name in norms:
                wide = heads_wide[name] if name in heads_wide and wide_norms else E
                gain(f"blk.{layer}.{name}.weight", wide if name in heads_wide else d_model)
            if name in biases:
                values = rng.normal(0.0, 0.5, rows).astype(np.float32)
                writer.add_tensor(f"blk.{layer}.{name}.bias", values)
    gain("output_norm.weight")
    if not tied:
        matrix("output.weight", len(TOKENS), d_model)
    if len(rope_factors):
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_factors, dtype=np.float32))
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def layer_parts(D: int, Q: int, KV: int, F: int, *, fused: bool) -> list[tuple[str, int, int]]:
    """A layer's tensors with their rows and columns; 0 rows are a gain."""
    qkv = [("attn_q", Q), ("attn_k", KV), ("attn_v", KV)]
    up = [("ffn_gate", F), ("ffn_up", F)]
    if fused:
        qkv, up = [("attn_qkv", Q + 2 * KV)], [("ffn_up", 2 * F)]
    return [
        ("attn_norm", 0, 0),
        *((name, rows, D) for name, rows in qkv),
        ("attn_output", D, Q),
        *((name, 0, 0) for name in ("attn_q_norm", "attn_k_norm", "post_attention_norm")),
        ("ffn_norm", 0, 0),
        *((name, rows, D) for name, rows in up),
        ("ffn_down", D, F),
        ("post_ffw_norm", 0, 0),
    ]


def set_keys(writer: gguf.GGUFWriter, keys: Mapping[str, Any]) -> None:
    """Add or replace metadata; whole numbers become unsigned. None takes a key away."""
    kinds = gguf.GGUFValueType
    of = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}
    for key, value in keys.items():
        writer.kv_data[0].pop(key, None)
        if isinstance(value, list):
            writer.add_key_value(key, value, kinds.ARRAY, of[type(value[0])])
        elif value is not None:
            writer.add_key_value(key, value, of[type(value)])
