"""A Llama in NumPy as one writes it from the paper: the baseline, and the oracle of the tests.

One request at a time. Weights as the file has them, one matrix per projection, products
as `x @ W.T`, textbook attention head by head, a KV cache that grows by concatenation.
Nothing is slower than a careful first version would be: there is a KV cache, and the
vocabulary scores are computed for every position, as the plain formula has it.

Left out: batches, and everything that `batchgauge.core.model` adds for speed.
Letters: T positions, D model width, H query heads, J key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from batchgauge.core.config import Config, check_tensors
from batchgauge.core.default_model import open_model
from batchgauge.core.memory_need import check_memory
from batchgauge.core.model_facts import ModelFacts
from batchgauge.core.model_file import ModelFile
from batchgauge.core.ops import Floats
from batchgauge.core.weights import checked

Positions = npt.NDArray[np.intp]


class Cache:
    """Keys and values [T, J, E] of each layer, grown by concatenation."""

    def __init__(self, config: Config) -> None:
        empty = np.zeros((0, config.kv_heads, config.head_dim), np.float32)
        self.layers = [(empty, empty)] * config.layers
        self.length = 0

    def extend(self, layer: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Append new positions to a layer; all of its keys and values."""
        held_keys, held_values = self.layers[layer]
        self.layers[layer] = (
            np.concatenate([held_keys, keys]),
            np.concatenate([held_values, values]),
        )
        return self.layers[layer]


class BaselineModel:
    """Weights by name, and the forward pass."""

    def __init__(self, config: Config, weights: Mapping[str, Floats]) -> None:
        self.config = config
        self.weights = dict(weights)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Load a GGUF file; None is the default model. Raises UserError."""
        return cls.from_file(open_model(path))

    @classmethod
    def from_file(cls, file: ModelFile) -> Self:
        """Read all tensors of an open file. Raises UserError."""
        check_memory(ModelFacts.of(file), "float32")
        config = Config.from_file(file)
        check_tensors(file, config)
        return cls(
            config,
            {name.removesuffix(".weight"): checked(file.read(name), name) for name in file.tensors},
        )

    @property
    def weights_bytes(self) -> int:
        """Bytes of weights as held in memory."""
        return sum(matrix.nbytes for matrix in self.weights.values())

    def new_cache(self, capacity: int = 0) -> Cache:
        """An empty KV cache; this one has no use for the number of positions to come."""
        return Cache(self.config)

    @np.errstate(over="ignore", invalid="ignore")  # scores that are not finite say it
    def forward(self, ids: Sequence[int], cache: Cache) -> Floats:
        """Read ids behind what the cache holds; logits [T, V] of what follows each of them."""
        x = self.weights["token_embd"][np.asarray(ids)]  # [T, D]
        positions = np.arange(cache.length, cache.length + len(ids))
        for layer in range(self.config.layers):
            at = f"blk.{layer}."
            x = x + self.attention(self.norm(x, at + "attn_norm"), layer, positions, cache)
            x = x + self.feed_forward(self.norm(x, at + "ffn_norm"), at)
        cache.length += len(ids)
        return self.logits(x)

    def product(self, x: Floats, name: str) -> Floats:
        """Product of x [T, K] and a matrix [N, K], transposed: [T, N]."""
        return x @ self.weights[name].T

    def logits(self, x: Floats) -> Floats:
        """Scores over the vocabulary of every position: [T, V]."""
        head = "token_embd" if self.config.tied else "output"
        return self.product(self.norm(x, "output_norm"), head)

    def norm(self, x: Floats, name: str) -> Floats:
        """RMSNorm with its gain (Zhang & Sennrich 2019)."""
        mean_square = np.mean(x**2, axis=-1, keepdims=True)  # [T, 1]
        normed: Floats = x / np.sqrt(mean_square + np.float32(self.config.norm_epsilon))
        return normed * self.weights[name]

    def attention(self, x: Floats, layer: int, positions: Positions, cache: Cache) -> Floats:
        """Grouped-query attention over all positions so far; extends the cache."""
        at = f"blk.{layer}."
        queries, keys, values = (
            part.reshape(len(x), -1, self.config.head_dim) for part in self.qkv(x, at)
        )
        queries, keys = self.rope(queries, positions), self.rope(keys, positions)
        keys, values = cache.extend(layer, keys, values)  # [C, J, E]
        hidden = np.arange(len(keys)) > positions[:, None]  # [T, C]: the future
        return self.product(self.attend(queries, keys, values, hidden), at + "attn_output")

    def qkv(self, x: Floats, at: str) -> Sequence[Floats]:
        """Queries, keys and values [T, heads * E]."""
        return [self.product(x, at + name) for name in ("attn_q", "attn_k", "attn_v")]

    def attend(
        self, queries: Floats, keys: Floats, values: Floats, hidden: npt.NDArray[np.bool_]
    ) -> Floats:
        """Softmax attention, head by head (Vaswani et al. 2017): [T, H * E]."""
        c = self.config
        heads = []
        for head in range(c.heads):
            shared = head // (c.heads // c.kv_heads)
            scores = queries[:, head] @ keys[:, shared].T / np.sqrt(np.float32(c.head_dim))
            heads.append(softmax(np.where(hidden, -np.inf, scores)) @ values[:, shared])
        return np.concatenate(heads, axis=1)

    def rope(self, x: Floats, positions: Positions) -> Floats:
        """Rotate the pairs (2i, 2i + 1) of every head by position (Su et al. 2021)."""
        angles = self.angles(positions)[:, None, :]
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = np.empty_like(x)
        turned[..., 0::2] = even * cos - odd * sin
        turned[..., 1::2] = even * sin + odd * cos
        return turned

    def angles(self, positions: Positions) -> npt.NDArray[np.float64]:
        """Angles of every position and pair, in radians: [T, E / 2]."""
        width = self.config.head_dim
        frequencies = self.config.rope_base ** (-np.arange(0, width, 2) / width)
        if "rope_freqs" in self.weights:
            frequencies = frequencies / self.weights["rope_freqs"]
        return positions[:, None] * frequencies / self.config.rope_scale

    def feed_forward(self, x: Floats, at: str) -> Floats:
        """SwiGLU (Shazeer 2020)."""
        gate, up = self.gate_up(x, at)
        return self.product(silu(gate) * up, at + "ffn_down")

    def gate_up(self, x: Floats, at: str) -> Sequence[Floats]:
        """Gate and up [T, F]."""
        return [self.product(x, at + name) for name in ("ffn_gate", "ffn_up")]


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
