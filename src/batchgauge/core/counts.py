"""How much arithmetic and memory traffic a model's parts need, from its numbers alone.

For rooflines and cost models: pure functions of a configuration and lengths, nothing is
measured. A multiplication and an addition count as two operations. Bytes are those that
cannot be avoided: each weight read once a pass, each cached key and value once, inputs
and outputs once; what stays in a cache between two steps counts nevertheless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from batchgauge.core.config import Config, LayerShape

FLOAT = 4  # bytes of a float32


@dataclass(frozen=True, slots=True)
class Count:
    """Operations and bytes moved; adds up, and multiplies by a whole number."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Count:
        return Count(self.flops * times, self.bytes * times)


def linear(rows: int, inputs: int, features: int, weight_bytes: float = FLOAT) -> Count:
    """The product of x [rows, inputs] and a matrix [features, inputs] of so many bytes a weight."""
    moved = round(weight_bytes * features * inputs) + FLOAT * rows * (inputs + features)
    return Count(2 * rows * inputs * features, moved)


def attention(config: Config, layer: LayerShape, queries: int, keys: int) -> Count:
    """Causal attention of the last `queries` of `keys` positions of one request, one layer.

    Scores and the mixing of values are a product each over all pairs that causality and the
    layer's window allow.
    """
    window = layer.window or keys
    pairs = queries * keys - queries * (queries - 1) // 2
    beyond = min(queries, max(0, keys - window))  # queries that no longer see everything
    pairs -= beyond * (keys - window) - beyond * (beyond - 1) // 2
    cached = 2 * min(keys, window + queries - 1) * layer.kv_heads * config.head_dim
    moved = cached + 2 * queries * config.attention_width
    return Count(4 * pairs * config.attention_width, FLOAT * moved)


def decode_counts(
    config: Config, lengths: Sequence[int], weight_bytes: float = FLOAT
) -> dict[str, Count]:
    """One decode step of rows that then see lengths[b] positions: by kernel, all layers."""
    return _pass(config, [(1, length) for length in lengths], weight_bytes)


def prefill_counts(
    config: Config, lengths: Sequence[int], weight_bytes: float = FLOAT
) -> dict[str, Count]:
    """The prefill of prompts of these lengths: by kernel, all layers, one head row a prompt."""
    return _pass(config, [(length, length) for length in lengths], weight_bytes)


def total(counts: dict[str, Count]) -> Count:
    """All kernels together."""
    return sum(counts.values(), Count())


def _pass(
    config: Config, spans: Sequence[tuple[int, int]], weight_bytes: float
) -> dict[str, Count]:
    T = sum(new for new, _ in spans)
    D, Q = config.d_model, config.attention_width
    counts = dict.fromkeys(("qkv", "attention", "output", "gate_up", "down"), Count())
    for layer, alike in Counter(config.shapes).items():
        attended = sum((attention(config, layer, new, seen) for new, seen in spans), Count())
        of_layer = {
            "qkv": linear(T, D, Q + 2 * layer.kv_heads * config.head_dim, weight_bytes),
            "attention": attended,
            "output": linear(T, Q, D, weight_bytes),
            "gate_up": linear(T, D, 2 * layer.d_ff, weight_bytes),
            "down": linear(T, layer.d_ff, D, weight_bytes),
        }
        for kernel, count in of_layer.items():
            counts[kernel] += count * alike
    counts["norms and biases"] = Count(0, FLOAT * config.vector_weights)
    counts["head"] = linear(len(spans), D, config.vocab_size, weight_bytes)
    return counts


def held_bytes(
    config: Config, weights_bytes: int, prompt_tokens: Sequence[int], new_tokens: Sequence[int]
) -> dict[str, int]:
    """Bytes that must exist for a batch of such requests: the ground of memory overhead.

    weights, kv_cache (of the positions held at the end: the last token is never read
    back), inputs (prompt ids, int32), outputs (new ids, int32, and one row of logits each).
    """
    positions = sum(prompt_tokens) + sum(new - 1 for new in new_tokens)
    return {
        "weights": weights_bytes,
        "kv_cache": positions * config.kv_bytes_per_token,
        "inputs": 4 * sum(prompt_tokens),
        "outputs": 4 * sum(new_tokens) + FLOAT * config.vocab_size * len(new_tokens),
    }
