"""Llamas of all families by the formulas, in float64, from what the `gguf` package reads of a file.

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


NEIGHBOURS = {"llama", "granite", "smollm3"}  # pairs that turn; else a head's halves are
GELU = {"gemma", "gemma2", "gemma3"}
PERIOD = {"gemma2": 2, "gemma3": 6}  # of layers, the last of which sees everything


def rotary(keys: Mapping[str, Any], w: Mapping[str, Array], width: int, length: int) -> Any:
    """Radians per position, and what cosine and sine are multiplied by: llama.cpp's rules.

    `dynamic`, which it does not know, is that of `transformers`. `keys` are without the
    architecture in front.
    """
    factor: float = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0.0)) or 1.0
    kind, base = keys.get("rope.scaling.type", "linear"), float(keys.get("rope.freq_base", 1e4))
    original = keys.get("rope.scaling.original_context_length", keys["context_length"])
    magnitude = keys.get("rope.scaling.attn_factor", 1.0)
    if kind == "dynamic" and length > original:
        base *= (factor * length / original - (factor - 1)) ** (width / (width - 2))
    found = np.power(base, -np.arange(0, width, 2) / width)
    name = "rope_freqs.weight"
    if "rope_factors_long.weight" in w:
        name = f"rope_factors_{'long' if length > original else 'short'}.weight"
    found = found / w.get(name, 1.0)
    if kind == "linear":
        found = found / factor
    elif kind == "yarn":
        magnitude *= 1.0 + 0.1 * np.log(factor)
        betas = (
            keys.get("rope.scaling.yarn_beta_fast", 32.0),
            keys.get("rope.scaling.yarn_beta_slow", 1.0),
        )
        fast, slow = width * np.log(original / (np.array(betas) * 2 * np.pi)) / (2 * np.log(base))
        low, high = max(0, np.floor(fast)), min(width - 1, np.ceil(slow))
        ramp = 1 - np.clip((np.arange(width // 2) - low) / max(0.001, high - low), 0, 1)
        found = found / factor * (1 - ramp) + found * ramp
    return found, magnitude


def reference_logits(  # noqa: C901, PLR0915 - the whole model in one place, as formulas
    path: Path, ids: Sequence[int], frequencies: Array | None = None
) -> npt.NDArray[np.float64]:
    """Scores of all tokens behind the ids: [V]. `frequencies` [E / 2] replace the file's own."""
    reader = gguf.GGUFReader(path)
    metadata, w = read_metadata(reader), read_tensors(reader)
    family = metadata["general.architecture"]
    keys = {
        key.removeprefix(f"{family}."): value
        for key, value in metadata.items()
        if key.startswith(f"{family}.")
    }

    def number(key: str, default: Any = None) -> Any:
        value = keys.get(key, default)
        return value[0] if isinstance(value, list) else value

    layers, width, heads = (
        number(f"{name}_count" if name != "embedding" else "embedding_length")
        for name in ("block", "embedding", "attention.head")
    )
    E, T = number("attention.key_length", width // heads), len(ids)
    tokens = len(metadata["tokenizer.ggml.tokens"])
    n = number("rope.dimension_count", E)
    magnitude = 1.0
    if frequencies is None:
        frequencies, magnitude = rotary(keys, w, n, T)
    positions = np.arange(T)
    behind = positions[:, None] - positions
    second = family == "gemma2"
    window = number("attention.sliding_window", 4096 if second else 0)
    scale = number("attention.scale", 0.0) or 1.0 / np.sqrt(E)
    cap = number("attn_logit_softcapping", 50.0 if second else 0.0)
    last_cap = number("final_logit_softcapping", 30.0 if second else 0.0)
    residual = number("residual_scale", 1.0)

    def norm(values: Array, name: str) -> Array:
        if (gain := w.get(f"{name}.weight")) is None:
            return values
        rows = values.reshape(-1, gain.size)
        mean = np.mean(rows**2, axis=1, keepdims=True)
        normed: Array = rows / np.sqrt(mean + number("attention.layer_norm_rms_epsilon")) * gain
        return normed.reshape(values.shape)

    def linear(values: Array, name: str) -> Array:
        product: Array = values @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)
        return product

    def turned(values: Array, turns: Array) -> Array:  # [T, heads, E]
        first, second = slice(0, n, 2), slice(1, n, 2)
        if family not in NEIGHBOURS:
            first, second = slice(0, n // 2), slice(n // 2, n)
        pairs = (values[..., first] + 1j * values[..., second]) * turns[:, None]
        out = values.copy()
        out[..., first], out[..., second] = pairs.real, pairs.imag
        return out

    x = w["token_embd.weight"][np.asarray(ids)] * number("embedding_scale", 1.0)
    if family in GELU:
        x = x * np.sqrt(width)
    for layer in range(layers):
        at = f"blk.{layer}."
        normed = norm(x, at + "attn_norm")
        if f"{at}attn_qkv.weight" in w:
            together, Q = linear(normed, at + "attn_qkv"), heads * E
            q, k, v = np.split(together, [Q, Q + (together.shape[1] - Q) // 2], axis=1)
        else:
            q, k, v = (linear(normed, f"{at}attn_{part}") for part in "qkv")
        q, k = norm(q, at + "attn_q_norm"), norm(k, at + "attn_k_norm")
        q, k, v = (part.reshape(T, -1, E) for part in (q, k, v))
        period = PERIOD.get(family, 0)
        slides = window and (not period or layer % period < period - 1)
        turns = magnitude * np.exp(1j * np.outer(positions, frequencies))  # [T, n / 2]
        if family == "gemma3" and slides:
            turns = np.exp(1j * np.outer(positions, np.power(1e4, -np.arange(0, n, 2) / n)))
        if family != "smollm3" or layer % 4 != 3:
            q, k = turned(q, turns), turned(k, turns)
        k, v = (np.repeat(part, heads // part.shape[1], axis=1) for part in (k, v))
        scores = np.einsum("the,che->htc", q, k) * scale
        if cap:
            scores = cap * np.tanh(scores / cap)
        seen = (behind >= 0) & (behind < (window if slides else T))
        scores = np.where(seen, scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        mixed = np.einsum("htc,che->the", scores / scores.sum(axis=2, keepdims=True), v)
        added = linear(mixed.reshape(T, -1), at + "attn_output")
        x = x + residual * norm(added, at + "post_attention_norm")
        normed = norm(x, at + "ffn_norm")
        if f"{at}ffn_gate.weight" in w:
            gate, up = (linear(normed, f"{at}ffn_{part}") for part in ("gate", "up"))
        else:
            gate, up = np.split(linear(normed, at + "ffn_up"), 2, axis=1)
        bent = 2 * np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3) if family in GELU else gate
        added = linear(gate / (1.0 + np.exp(-bent)) * up, at + "ffn_down")
        x = x + residual * norm(added, at + "post_ffw_norm")
    head = w.get("output.weight", w["token_embd.weight"])[:tokens]
    logits: Array = norm(x, "output_norm")[-1] @ head.T / number("logit_scale", 1.0)
    return last_cap * np.tanh(logits / last_cap) if last_cap else logits
