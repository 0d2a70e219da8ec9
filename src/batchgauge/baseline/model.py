"""A Llama in NumPy as one writes it from the paper: the baseline, and the oracle of the tests.

One request at a time. Weights as the file has them, one matrix per projection, products
as `x @ W.T`, textbook attention head by head, a KV cache that grows by concatenation.
Nothing is slower than a careful first version would be: there is a KV cache, and the
vocabulary scores are computed for every position, as the plain formula has it.

Left out: batches, and everything that `batchgauge.core.model` adds for speed.
Letters: T positions, D model width, H query heads, J key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from batchgauge.core.default_model import default_model_path
from batchgauge.core.gguf_file import Floats, GGUFFile
from batchgauge.core.weights import Config, check_tensors

Cache = list[tuple[Floats, Floats]]  # keys and values [T, J, E] of each layer


class BaselineModel:
    """Weights by name, and the forward pass."""

    def __init__(self, file: GGUFFile) -> None:
        self.config = Config.from_file(file)
        check_tensors(file, self.config)
        self.weights = {name.removesuffix(".weight"): file.read(name) for name in file.tensors}

    @classmethod
    def load(cls, path: str | Path | None = None) -> BaselineModel:
        """Load a GGUF file; None is the default model. Raises UserError."""
        return cls(GGUFFile.open(path or default_model_path()))

    @property
    def weights_bytes(self) -> int:
        """Bytes of weights as held in memory."""
        return sum(matrix.nbytes for matrix in self.weights.values())

    def new_cache(self) -> Cache:
        """An empty KV cache."""
        c = self.config
        empty = np.zeros((0, c.kv_heads, c.head_dim), np.float32)
        return [(empty, empty)] * c.layers

    def forward(self, ids: Sequence[int], cache: Cache) -> Floats:
        """Read ids behind what the cache holds; logits [T, V] of what follows each of them."""
        x = self.weights["token_embd"][np.asarray(ids)]  # [T, D]
        start = len(cache[0][0])
        positions = np.arange(start, start + len(ids))
        for layer in range(self.config.layers):
            at = f"blk.{layer}."
            normed = self.norm(x, at + "attn_norm")
            x = x + self.attention(normed, at, positions, cache, layer)
            x = x + self.feed_forward(self.norm(x, at + "ffn_norm"), at)
        return self.logits(x)

    def logits(self, x: Floats) -> Floats:
        """Scores over the vocabulary of every position: [T, V]."""
        head = self.weights["token_embd" if self.config.tied else "output"]
        return self.norm(x, "output_norm") @ head.T

    def norm(self, x: Floats, name: str) -> Floats:
        """RMSNorm with its gain (Zhang & Sennrich 2019)."""
        mean_square = np.mean(x**2, axis=-1, keepdims=True)  # [T, 1]
        normed: Floats = x / np.sqrt(mean_square + np.float32(self.config.norm_epsilon))
        return normed * self.weights[name]

    def attention(
        self, x: Floats, at: str, positions: np.ndarray, cache: Cache, layer: int
    ) -> Floats:
        """Grouped-query attention over all positions so far; appends to the cache."""
        c, (T, _) = self.config, x.shape
        queries = self.rope(
            (x @ self.weights[at + "attn_q"].T).reshape(T, -1, c.head_dim), positions
        )
        keys = self.rope((x @ self.weights[at + "attn_k"].T).reshape(T, -1, c.head_dim), positions)
        values = (x @ self.weights[at + "attn_v"].T).reshape(T, -1, c.head_dim)
        keys = np.concatenate([cache[layer][0], keys])  # [C, J, E]
        values = np.concatenate([cache[layer][1], values])
        cache[layer] = (keys, values)
        hidden = np.arange(len(keys)) > positions[:, None]  # [T, C]: the future
        heads = []
        for head in range(c.heads):
            shared = head // (c.heads // c.kv_heads)
            scores = queries[:, head] @ keys[:, shared].T / np.sqrt(np.float32(c.head_dim))
            heads.append(softmax(np.where(hidden, -np.inf, scores)) @ values[:, shared])
        return np.concatenate(heads, axis=1) @ self.weights[at + "attn_output"].T

    def rope(self, x: Floats, positions: np.ndarray) -> Floats:
        """Rotate the pairs (2i, 2i + 1) of every head by position (Su et al. 2021)."""
        width = self.config.head_dim
        angles = self.config.rope_base ** (-np.arange(0, width, 2) / width)  # [E / 2]
        angles = positions[:, None] * angles / self.config.rope_scale  # [T, E / 2]
        if "rope_freqs" in self.weights:
            angles = angles / self.weights["rope_freqs"]
        cos = np.cos(angles).astype(np.float32)[:, None, :]
        sin = np.sin(angles).astype(np.float32)[:, None, :]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = np.empty_like(x)
        turned[..., 0::2] = even * cos - odd * sin
        turned[..., 1::2] = even * sin + odd * cos
        return turned

    def feed_forward(self, x: Floats, at: str) -> Floats:
        """SwiGLU (Shazeer 2020)."""
        gate = x @ self.weights[at + "ffn_gate"].T
        up = x @ self.weights[at + "ffn_up"].T
        return (silu(gate) * up) @ self.weights[at + "ffn_down"].T


def silu(x: Floats) -> Floats:
    """The gate's activation: x * sigmoid(x)."""
    with np.errstate(over="ignore"):
        activated: Floats = np.divide(x, 1.0 + np.exp(-x))
    return activated


def softmax(scores: Floats) -> Floats:
    """exp(x) / sum(exp(x)) over the last axis."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Floats = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares
