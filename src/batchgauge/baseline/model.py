"""Llamas in NumPy as one writes them from the papers: the baseline, and the oracle of the tests.

One request at a time. Weights as the file has them, one matrix per projection, products
as `x @ W.T`, textbook attention head by head, a KV cache that grows by concatenation.
Nothing is slower than a careful first version would be: there is a KV cache, and the
vocabulary scores are computed for every position, as the plain formula has it.

Left out: batches, and everything that `batchgauge.core.model` adds for speed.
Letters: T positions, D model width, H query heads, J key/value heads, E head width.
"""

from __future__ import annotations

import math
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
from batchgauge.core.ops import Floats, Rotations
from batchgauge.core.rotary import Turns
from batchgauge.core.weights import checked, read_turns

Positions = npt.NDArray[np.intp]


class Cache:
    """Keys and values [T, J, E] of each layer, grown by concatenation."""

    def __init__(self, config: Config) -> None:
        heads = [shape.kv_heads for shape in config.shapes]
        empty = [np.zeros((0, J, config.head_dim), np.float32) for J in heads]
        self.layers = [(none, none) for none in empty]
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

    def __init__(
        self, config: Config, weights: Mapping[str, Floats], turns: Sequence[Turns]
    ) -> None:
        self.config = config
        self.weights = dict(weights)
        self.turns = turns

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
            read_turns(file, config),
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
        c = self.config
        x = self.weights["token_embd"][np.asarray(ids)]  # [T, D]
        x = x * np.float32(c.embedding_scale)
        positions = np.arange(cache.length, cache.length + len(ids))
        for layer in range(c.layers):
            at = f"blk.{layer}."
            added = self.attention(self.norm(x, at + "attn_norm"), layer, positions, cache)
            x = x + self.norm(added, at + "post_attention_norm") * np.float32(c.residual_scale)
            added = self.feed_forward(self.norm(x, at + "ffn_norm"), at)
            x = x + self.norm(added, at + "post_ffw_norm") * np.float32(c.residual_scale)
        cache.length += len(ids)
        return self.logits(x)

    def linear(self, x: Floats, name: str) -> Floats:
        """Product with a matrix and its bias, if it has one: [T, N]."""
        y = self.product(x, name)
        bias = self.weights.get(name + ".bias")
        return y if bias is None else y + bias

    def product(self, x: Floats, name: str) -> Floats:
        """Product of x [T, K] and a matrix [N, K], transposed: [T, N]."""
        return x @ self.weights[name].T

    def logits(self, x: Floats) -> Floats:
        """Scores over the vocabulary of every position: [T, V]."""
        head = "token_embd" if self.config.tied else "output"
        scores = self.product(self.norm(x, "output_norm"), head)
        return capped(scores / np.float32(self.config.logit_scale), self.config.caps[1])

    def norm(self, x: Floats, name: str) -> Floats:
        """RMSNorm with its gain (Zhang & Sennrich 2019); nothing where the model has none."""
        if name not in self.weights:
            return x
        mean_square = np.mean(x**2, axis=-1, keepdims=True)  # [T, 1]
        normed: Floats = x / np.sqrt(mean_square + np.float32(self.config.norm_epsilon))
        return normed * self.weights[name]

    def attention(self, x: Floats, layer: int, positions: Positions, cache: Cache) -> Floats:
        """Grouped-query attention over all positions so far; extends the cache."""
        at, shape = f"blk.{layer}.", self.config.shapes[layer]
        queries, keys, values = self.qkv(x, at)
        queries, keys, values = (
            part.reshape(len(x), -1, self.config.head_dim)
            for part in (self.head_norm(queries, at + "attn_q_norm"),
                         self.head_norm(keys, at + "attn_k_norm"), values)
        )  # fmt: skip
        if shape.turns is not None:
            rotations = self.turns[shape.turns](positions, np.full(len(x), positions[-1] + 1))
            queries, keys = self.rope(queries, rotations), self.rope(keys, rotations)
        keys, values = cache.extend(layer, keys, values)  # [C, J, E]
        behind = positions[:, None] - np.arange(len(keys))  # [T, C]
        hidden = (behind < 0) | (behind >= (shape.window or np.inf))
        return self.linear(self.attend(queries, keys, values, hidden), at + "attn_output")

    def head_norm(self, x: Floats, name: str) -> Floats:
        """Norms of queries or keys [T, heads * E], of each head or of all together."""
        width = self.weights[name].size if name in self.weights else x.shape[1]
        return self.norm(x.reshape(len(x), -1, width), name).reshape(x.shape)

    def qkv(self, x: Floats, at: str) -> Sequence[Floats]:
        """Queries, keys and values [T, heads * E]."""
        if self.config.family.fused:
            width = self.config.attention_width
            queries, others = np.split(self.linear(x, at + "attn_qkv"), [width], axis=1)
            return [queries, *np.split(others, 2, axis=1)]
        return [self.linear(x, at + name) for name in ("attn_q", "attn_k", "attn_v")]

    def attend(
        self, queries: Floats, keys: Floats, values: Floats, hidden: npt.NDArray[np.bool_]
    ) -> Floats:
        """Softmax attention, head by head (Vaswani et al. 2017): [T, H * E]."""
        c = self.config
        heads = []
        for head in range(c.heads):
            shared = head // (c.heads // keys.shape[1])
            scores = queries[:, head] @ keys[:, shared].T * np.float32(c.query_scale)
            scores = np.where(hidden, -np.inf, capped(scores, c.caps[0]))
            heads.append(softmax(scores) @ values[:, shared])
        return np.concatenate(heads, axis=1)

    def rope(self, x: Floats, rotations: Rotations) -> Floats:
        """Rotate the pairs (2i, 2i + 1) of every head by position (Su et al. 2021).

        rotations [T, n / 2]: features from n on stay as they are.
        """
        width = 2 * rotations.shape[1]
        cos, sin = rotations.real[:, None, :], rotations.imag[:, None, :]
        even, odd = x[..., 0:width:2], x[..., 1:width:2]
        turned = x.copy()
        turned[..., 0:width:2] = even * cos - odd * sin
        turned[..., 1:width:2] = even * sin + odd * cos
        return turned

    def feed_forward(self, x: Floats, at: str) -> Floats:
        """A gated unit (Shazeer 2020): SwiGLU, or with GELU."""
        gate, up = self.gate_up(x, at)
        activation = gelu if self.config.family.gelu else silu
        return self.linear(activation(gate) * up, at + "ffn_down")

    def gate_up(self, x: Floats, at: str) -> Sequence[Floats]:
        """Gate and up [T, F]."""
        if self.config.family.fused:
            return np.split(self.linear(x, at + "ffn_up"), 2, axis=1)
        return [self.linear(x, at + name) for name in ("ffn_gate", "ffn_up")]


def capped(scores: Floats, cap: float) -> Floats:
    """Scores kept between -cap and cap; 0 is no limit."""
    if not cap:
        return scores
    limited: Floats = np.float32(cap) * np.tanh(scores / np.float32(cap))
    return limited


def gelu(x: Floats) -> Floats:
    """A gate's activation: tanh's approximation of x times the normal distribution's integral."""
    inner = (x + x * x * x * np.float32(0.044715)) * np.float32(math.sqrt(2.0 / math.pi))
    half: Floats = x * np.float32(0.5)
    return half + half * np.tanh(inner)


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
