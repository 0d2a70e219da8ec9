"""Decoder-only Llamas in NumPy: prefill of ragged prompts, decode of a batch, float32.

One way through the layers for all architectures of `families`, which say as data where they
differ.

Letters as in `batchgauge.core.ops`; B rows (requests), V vocabulary. Prompts of unequal
length are laid end to end, so no position is ever computed that nobody asked for;
attention goes prompt by prompt. Long batches go through in parts of `PART` positions,
which bounds what activations need. One decode step takes all rows at once.

Left out: training, mixture of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import inf
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batchgauge.core.config import Config
from batchgauge.core.default_model import open_model
from batchgauge.core.kernels import activations
from batchgauge.core.kernels.attention import Attention, PlainAttention, best_attention
from batchgauge.core.kernels.layers import CompiledLayers
from batchgauge.core.kernels.products import own_threads
from batchgauge.core.kv_cache import GROUP, KVCache
from batchgauge.core.memory_need import check_memory
from batchgauge.core.model_facts import ModelFacts
from batchgauge.core.model_file import ModelFile
from batchgauge.core.ops import Floats, Ints, Rotations, rotate, soft_cap
from batchgauge.core.weights import Layer, Weights

PART = 512  # positions that a prefill computes at a time
CUT = 24  # positions at multiples of which a prompt can be cut and no bit of a score changes
SPARE = 80  # positions of keys beside its own, at most, that a prompt's attention works on
TILE = 256  # positions that the feed-forward layer computes at a time: its inside is wide


class LlamaModel:
    """Weights and the two ways to run them."""

    rms_norm = staticmethod(activations.rms_norm)
    swiglu = staticmethod(activations.swiglu)
    geglu = staticmethod(activations.geglu)

    def __init__(self, file: ModelFile, weights: str = "float32") -> None:
        check_memory(ModelFacts.of(file), weights)
        self.config = Config.from_file(file)
        self.weights = Weights(file, self.config, weights)
        self.gated = self.geglu if self.config.family.gelu else self.swiglu

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
        return best_attention(self.config.head_dim, self.config.windows, self.config.caps[0])

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

    @property
    def alike(self) -> int:
        """Neighbours in a cache whose rooms are equally long; 0: each has its own length.

        Only attention by NumPy gains by that.
        """
        return GROUP if isinstance(self.attention, PlainAttention) else 0

    def new_cache(self, capacities: Sequence[int] = (), limit: float = inf) -> KVCache:
        """A cache with empty rows, with room for capacities[b] positions in row b.

        `limit` as for `KVCache`.
        """
        c = self.config
        shape = (c.layers, c.kv_heads, c.head_dim)
        return KVCache(shape, capacities, alike=self.alike, limit=limit)

    @own_threads()
    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        cache: KVCache,
        rows: Sequence[int] | Ints | None = None,
        totals: Sequence[int] | None = None,
        steps: int = 0,
    ) -> Floats:
        """Read prompt b behind what rows[b] of the cache holds; logits [B, V] of what comes next.

        Prompts are not empty, their ids are below V, and the cache has room. None: all rows. A
        rotation that depends on lengths is that of the whole prompt: `totals` says how many
        positions a row will hold then, if this is not the end of its prompt. A prompt cut at
        multiples of `CUT` gives the bits of one that is not, where attention is compiled. The
        first `steps` prompts are one token each, read as `decode` does.
        """
        numbers = cache.rows if rows is None else np.asarray(rows, np.intp)
        starts, counts = cache.lengths[numbers], [len(prompt) for prompt in prompts]
        held = np.add(starts, counts) if totals is None else np.asarray(totals, np.intp)
        last = np.empty((len(prompts), self.config.d_model), np.float32)
        for part in _parts(counts, starts.tolist()):
            ids = np.concatenate([np.asarray(prompts[b][span], np.int32) for b, span in part])
            some, each = [b for b, _ in part], [span.stop - span.start for _, span in part]
            decoded = sum(b < steps for b in some)
            x = self.read(ids, cache, numbers[some], each, held[some], decoded)
            ends = np.cumsum(each) - 1
            last[some] = x[ends]  # of a prompt in several parts the last one stays
        return self.logits(last)

    @own_threads()
    def decode(
        self, tokens: npt.NDArray[np.integer], cache: KVCache, rows: Ints | None = None
    ) -> Floats:
        """Read one token for each of rows; logits [B, V] of what comes next. None: all rows."""
        numbers, B = cache.rows if rows is None else rows, len(tokens)
        return self.logits(self.read(tokens, cache, numbers, [1] * B, steps=B))

    def logits(self, x: Floats) -> Floats:
        """Scores over the vocabulary from the last layer's output x [T, D]: [T, V]."""
        if self.layers is not None:
            return self.layers.logits(x)
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self.weights.head(self._norm(x, self.weights.final_gain))
            if self.config.logit_scale != 1.0:
                logits /= self.config.logit_scale
            if self.config.caps[1]:
                soft_cap(logits, self.config.caps[1])
        return logits

    def read(
        self,
        ids: npt.NDArray[np.integer],
        cache: KVCache,
        rows: Ints,
        counts: Sequence[int],
        held: Ints | None = None,
        steps: int = 0,
    ) -> Floats:
        """Positions of several rows, end to end, through all layers: [T, D].

        `held` are the positions that each row will have when all of its prompt is read; None:
        with these. The first `steps` rows have one position each, which is a decode step.
        """
        x = self._embed(ids)
        ends = np.cumsum(counts)
        starts = cache.lengths[rows]
        positions = np.arange(len(x)) + np.repeat(starts - ends + counts, counts)
        seen = np.repeat(np.add(starts, counts) if held is None else held, counts)
        rotations = [turns(positions, seen) for turns in self.weights.turns]
        if self.layers is not None:
            self.layers.run(x, rotations[0], cache.places(rows), counts, steps)
            cache.lengths[rows] += counts
            return x
        prompts = list(zip(rows[steps:], ends[steps:] - counts[steps:], ends[steps:], strict=True))
        attended = np.empty((len(x), self.config.heads, self.config.head_dim), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for number, layer in enumerate(self.weights.layers):
                queries, keys, values = self._qkv(layer, x, rotations)
                if steps:
                    self.attention.step(
                        cache, number, rows[:steps], queries[:steps], keys[:steps], values[:steps],
                        attended[:steps].reshape(steps, -1),
                    )  # fmt: skip
                for row, first, last in prompts:
                    span = slice(first, last)
                    self.attention.read(
                        cache, number, row, queries[span], keys[span], values[span], attended[span]
                    )
                added = layer.output(attended.reshape(len(x), -1))
                x += self._added(layer, "post_attention_norm", added)
                for first in range(0, len(x), TILE):
                    tile = x[first : first + TILE]
                    tile += self._feed_forward(layer, tile)
        cache.lengths[rows] += counts
        return x

    def _embed(self, ids: npt.NDArray[np.integer]) -> Floats:
        """Embeddings [T, D], scaled."""
        x = self.weights.embed(ids)
        if self.config.embedding_scale != 1.0:
            x *= np.float32(self.config.embedding_scale)
        return x

    def _qkv(
        self, layer: Layer, x: Floats, rotations: Sequence[Rotations]
    ) -> tuple[Floats, Floats, Floats]:
        """Queries [T, H, E] and keys [T, J, E], rotated, and values [T, J, E].

        Queries are scaled.
        """
        c, J = self.config, layer.shape.kv_heads
        normed = self._norm(x, layer.gains.get("attn_norm"))
        qkv = layer.qkv(normed).reshape(len(x), -1, c.head_dim)
        queries, keys, values = qkv[:, : c.heads], qkv[:, c.heads : -J], qkv[:, -J:]
        for part, name in ((queries, "attn_q_norm"), (keys, "attn_k_norm")):
            if (gain := layer.gains.get(name)) is not None:
                part[:] = self._norm(part.reshape(-1, gain.size), gain).reshape(part.shape)
        queries *= np.float32(c.query_scale)
        if layer.shape.turns is not None:
            rotate(qkv[:, :-J], rotations[layer.shape.turns])
        return queries, keys, values

    def _feed_forward(self, layer: Layer, x: Floats) -> Floats:
        inner = self.gated(layer.gate_up(self._norm(x, layer.gains.get("ffn_norm"))))
        return self._added(layer, "post_ffw_norm", layer.down(inner))

    def _added(self, layer: Layer, name: str, x: Floats) -> Floats:
        """What a part of a layer adds: normed [T, D] where the layer does so, and scaled."""
        if name in layer.gains:
            x = self._norm(x, layer.gains[name])
        if self.config.residual_scale != 1.0:
            x *= np.float32(self.config.residual_scale)
        return x

    def _norm(self, x: Floats, gain: Floats | None) -> Floats:
        """Normed, or as it is where there is no gain: [T, D]."""
        if gain is None:
            return x
        normed = self.rms_norm(np.ascontiguousarray(x), self.config.norm_epsilon)
        normed *= gain
        return normed


def cut(start: int, most: int) -> int:
    """How many of the next positions of a prompt to read, `most` at most: up to a `CUT`.

    0 where none lies within.
    """
    return max(0, (start + most) // CUT * CUT - start)


def _parts(counts: Sequence[int], starts: Sequence[int]) -> Iterator[list[tuple[int, slice]]]:
    """Cut prompts laid end to end into parts of at most PART positions: which, and their spans.

    `starts` are the positions that lie before each prompt.
    """
    part: list[tuple[int, slice]] = []
    room = PART
    for number, count in enumerate(counts):
        first = 0
        while first < count:
            n = count - first
            if n > room:
                n = cut(starts[number] + first, room) or (0 if part else room)
            if n:
                part.append((number, slice(first, first + n)))
                room -= n
                first += n
            if first < count or not room:
                yield part
                part, room = [], PART
    if part:
        yield part
