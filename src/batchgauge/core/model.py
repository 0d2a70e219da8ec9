"""A decoder-only Llama in NumPy: prefill of ragged prompts, decode of a batch, float32.

Letters as in `batchgauge.core.ops`; B rows (requests), V vocabulary. Prompts of unequal
length are laid end to end, so no position is ever computed that nobody asked for;
attention goes prompt by prompt. Long batches go through in parts of `PART` positions,
which bounds what activations need. One decode step takes all rows at once.

Left out: training, other architectures, mixture of experts, sliding windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batchgauge.core.config import Config
from batchgauge.core.default_model import open_model
from batchgauge.core.kernels import activations
from batchgauge.core.kernels.attention import Attention, best_attention
from batchgauge.core.kernels.layers import CompiledLayers
from batchgauge.core.kernels.products import own_threads
from batchgauge.core.kv_cache import Group, KVCache
from batchgauge.core.memory_need import check_memory
from batchgauge.core.model_facts import ModelFacts
from batchgauge.core.model_file import ModelFile
from batchgauge.core.ops import (
    Floats,
    rope_rotations,
    rotate,
)
from batchgauge.core.weights import Layer, Weights

Ids = npt.NDArray[np.int32]
PART = 512  # positions that a prefill computes at a time
TILE = 256  # positions that the feed-forward layer computes at a time: its inside is wide


class LlamaModel:
    """Weights and the two ways to run them."""

    rms_norm = staticmethod(activations.rms_norm)
    swiglu = staticmethod(activations.swiglu)

    def __init__(self, file: ModelFile, weights: str = "float32") -> None:
        check_memory(ModelFacts.of(file), weights)
        self.config = Config.from_file(file)
        self.weights = Weights(file, self.config, weights)
        self._query_scale = np.float32(1.0 / np.sqrt(self.config.head_dim))

    @classmethod
    def load(cls, path: str | Path | None = None, weights: str = "float32") -> LlamaModel:
        """Load a GGUF file; None is the default model. Raises UserError.

        `weights` is how they are kept: "float32", as they are in the "file", which gives the
        same results, or rounded to "bfloat16".
        """
        return cls(open_model(path), weights)

    @cached_property
    def attention(self) -> Attention:
        """How queries attend to the cache; found out with the first, as it may compile."""
        return best_attention(self.config.head_dim)

    @cached_property
    def layers(self) -> CompiledLayers | None:
        """All layers in one compiled call; None where they go step by step."""
        return CompiledLayers.of(self.config, self.weights)

    @property
    def weights_bytes(self) -> int:
        """Bytes of weights as held in memory."""
        return self.weights.nbytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one position."""
        return self.config.kv_bytes_per_token

    def new_cache(self, capacities: Sequence[int]) -> KVCache:
        """An empty cache with room for capacities[b] positions in row b."""
        c = self.config
        return KVCache(c.layers, c.kv_heads, c.head_dim, capacities)

    @own_threads()
    def prefill(self, prompts: Sequence[Sequence[int]], cache: KVCache) -> Floats:
        """Read prompt b behind what row b of the cache holds; logits [B, V] of what comes next.

        Prompts are not empty, their ids are below V, and the cache has room.
        """
        last = np.empty((len(prompts), self.config.d_model), np.float32)
        for rows, spans in _parts(prompts):
            ids = np.concatenate(
                [np.asarray(prompts[b][s], np.int32) for b, s in zip(rows, spans, strict=True)]
            )
            x = self.read(ids, [cache.find(b) for b in rows], [s.stop - s.start for s in spans])
            ends = np.cumsum([s.stop - s.start for s in spans]) - 1
            last[rows] = x[ends]  # of a prompt in several parts the last one stays
        return self.logits(last)

    @own_threads()
    def decode(self, tokens: npt.NDArray[np.integer], cache: KVCache) -> Floats:
        """Read one token per row of the cache; logits [B, V] of what comes next."""
        x = self.weights.embed(tokens)
        rotations = rope_rotations(cache.lengths, self.weights.frequencies)
        if self.layers is not None:
            self.layers.run(x, rotations, cache.places(), None)
            cache.advance()
            return self.logits(x)
        spans = _spans(cache.groups)
        attended = np.empty((len(x), self.config.attention_width), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for number, layer in enumerate(self.weights.layers):
                queries, keys, values = self._qkv(layer, x, rotations)
                for group, span in zip(cache.groups, spans, strict=True):
                    self.attention.step(
                        group, number, queries[span], keys[span], values[span], attended[span]
                    )
                x += layer.output(attended)
                x += self._feed_forward(layer, x)
        cache.advance()
        return self.logits(x)

    def logits(self, x: Floats) -> Floats:
        """Scores over the vocabulary from the last layer's output x [T, D]: [T, V]."""
        if self.layers is not None:
            return self.layers.logits(x)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.weights.head(self._norm(x, self.weights.final_gain))

    def read(self, ids: Ids, rows: Sequence[tuple[Group, int]], counts: Sequence[int]) -> Floats:
        """Positions of several rows, end to end, through all layers: [T, D]."""
        x = self.weights.embed(ids)
        starts = [int(group.lengths[row]) for group, row in rows]
        positions = np.concatenate(
            [np.arange(start, start + n) for start, n in zip(starts, counts, strict=True)]
        )
        rotations = rope_rotations(positions, self.weights.frequencies)
        if self.layers is not None:
            places = np.array([group.places()[row] for group, row in rows])
            self.layers.run(x, rotations, places, counts)
            for (group, row), n in zip(rows, counts, strict=True):
                group.lengths[row] += n
            return x
        ends = np.cumsum([0, *counts])
        attended = np.empty((len(ids), self.config.heads, self.config.head_dim), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for number, layer in enumerate(self.weights.layers):
                queries, keys, values = self._qkv(layer, x, rotations)
                for (group, row), first, n in zip(rows, ends[:-1], counts, strict=True):
                    span = slice(first, first + n)
                    self.attention.read(
                        group, number, row, queries[span], keys[span], values[span], attended[span]
                    )
                x += layer.output(attended.reshape(len(ids), -1))
                for first in range(0, len(ids), TILE):
                    tile = x[first : first + TILE]
                    tile += self._feed_forward(layer, tile)
        for (group, row), n in zip(rows, counts, strict=True):
            group.lengths[row] += n
        return x

    def _qkv(
        self, layer: Layer, x: Floats, rotations: npt.NDArray[np.complex64]
    ) -> tuple[Floats, Floats, Floats]:
        """Queries [T, H, E] and keys [T, J, E], rotated, and values [T, J, E].

        Queries are scaled by 1 / sqrt(E).
        """
        c = self.config
        qkv = layer.qkv(self._norm(x, layer.attention_gain)).reshape(len(x), -1, c.head_dim)
        qkv[:, : c.heads] *= self._query_scale
        rotate(qkv[:, : c.heads + c.kv_heads], rotations)
        return (
            qkv[:, : c.heads],
            qkv[:, c.heads : c.heads + c.kv_heads],
            qkv[:, c.heads + c.kv_heads :],
        )

    def _feed_forward(self, layer: Layer, x: Floats) -> Floats:
        return layer.down(self.swiglu(layer.gate_up(self._norm(x, layer.feed_forward_gain))))

    def _norm(self, x: Floats, gain: Floats) -> Floats:
        normed = self.rms_norm(x, self.config.norm_epsilon)
        normed *= gain
        return normed


def logit_errors(
    model: LlamaModel, reference: LlamaModel, prompts: Sequence[Sequence[int]]
) -> dict[str, float]:
    """How far scores after each prompt are from those of a reference, which other weights have.

    The largest and the mean difference, each over the reference's largest score of that
    prompt, and the share of prompts with the same first token (`same_first`).
    """
    differences, same = [], []
    for prompt in prompts:
        scores, expected = (
            m.prefill([prompt], m.new_cache([len(prompt)]))[0] for m in (model, reference)
        )
        differences.append(np.abs(scores - expected) / np.abs(expected).max())
        same.append(scores.argmax() == expected.argmax())
    return {
        "max": float(np.max(differences)),
        "mean": float(np.mean(differences)),
        "same_first": float(np.mean(same)),
    }


def _spans(groups: Sequence[Group]) -> list[slice]:
    ends = np.cumsum([0, *map(len, groups)])
    return [slice(a, b) for a, b in pairwise(ends)]


def _parts(prompts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[slice]]]:
    """Cut prompts laid end to end into parts of at most PART positions: rows and their spans."""
    rows: list[int] = []
    spans: list[slice] = []
    room = PART
    for row, prompt in enumerate(prompts):
        start = 0
        while start < len(prompt):
            stop = min(len(prompt), start + room)
            rows.append(row)
            spans.append(slice(start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield rows, spans
                rows, spans, room = [], [], PART
    if rows:
        yield rows, spans
