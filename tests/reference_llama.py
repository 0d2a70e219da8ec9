"""A Llama by the formulas, in float64, from what the `gguf` package reads of a file.

Nothing of batchgauge is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import quants

Array = npt.NDArray[np.float64]


def read_metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Keys and values, as the package reads them."""
    fields = reader.fields.items()
    return {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}


def read_tensors(reader: gguf.GGUFReader) -> dict[str, Array]:
    """Tensors by name, dequantised by the package."""
    return {
        t.name: quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors
    }


def rotary_frequencies(keys: Mapping[str, Any], width: int) -> Array:
    """Radians per position, by the rules of llama.cpp's loader."""
    factor: float = keys.get("llama.rope.scaling.factor", keys.get("llama.rope.scale_linear", 0.0))
    linear = keys.get("llama.rope.scaling.type", "linear") == "linear"
    base: float = keys.get("llama.rope.freq_base", 1e4)
    divisor = factor if linear and factor else 1.0
    frequencies: Array = np.power(base, -np.arange(0, width, 2) / width) / divisor
    return frequencies


def reference_logits(
    path: Path, ids: Sequence[int], frequencies: Array | None = None
) -> npt.NDArray[np.float64]:
    """Scores of all tokens behind the ids: [V]. `frequencies` [E / 2] replace the file's own."""
    reader = gguf.GGUFReader(path)
    keys, w = read_metadata(reader), read_tensors(reader)

    def number(key: str) -> Any:
        value = keys[f"llama.{key}"]
        return value[0] if isinstance(value, list) else value

    layers, width = number("block_count"), number("embedding_length")
    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    E, T = width // heads, len(ids)
    tokens = len(keys["tokenizer.ggml.tokens"])
    if frequencies is None:
        frequencies = rotary_frequencies(keys, E)
        if "rope_freqs.weight" in w:
            frequencies = frequencies / w["rope_freqs.weight"]
    turns = np.exp(1j * np.outer(np.arange(T), frequencies))  # [T, E / 2]

    def norm(values: Array, name: str) -> Array:
        mean = np.mean(values**2, axis=1, keepdims=True)
        epsilon = number("attention.layer_norm_rms_epsilon")
        normed: Array = values / np.sqrt(mean + epsilon) * w[f"{name}.weight"]
        return normed

    def turned(values: Array) -> Array:  # [T, heads, E]
        pairs = (values[..., ::2] + 1j * values[..., 1::2]) * turns[:, None]
        return np.stack((pairs.real, pairs.imag), axis=-1).reshape(values.shape)

    x = w["token_embd.weight"][np.asarray(ids)]
    for layer in range(layers):
        at = f"blk.{layer}."
        normed = norm(x, at + "attn_norm")
        q, k, v = ((normed @ w[f"{at}attn_{p}.weight"].T).reshape(T, -1, E) for p in "qkv")
        group = heads // kv_heads
        q, k, v = turned(q), np.repeat(turned(k), group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("the,che->htc", q, k) / np.sqrt(E)
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        mixed = np.einsum("htc,che->the", scores / scores.sum(axis=2, keepdims=True), v)
        x = x + mixed.reshape(T, -1) @ w[at + "attn_output.weight"].T
        normed = norm(x, at + "ffn_norm")
        gate, up = (normed @ w[f"{at}ffn_{part}.weight"].T for part in ("gate", "up"))
        x = x + gate / (1.0 + np.exp(-gate)) * up @ w[at + "ffn_down.weight"].T
    head = w.get("output.weight", w["token_embd.weight"])[:tokens]
    logits: Array = norm(x, "output_norm")[-1] @ head.T
    return logits
