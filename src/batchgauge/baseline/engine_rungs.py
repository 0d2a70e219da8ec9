"""The ladder from the baseline engine to the batched one, one named idea a rung.

A rung is a small class that overrides little of `BaselineModel`, so that the difference
between two of them is the idea and nothing else; from batched decode on they are the core's
own model. Work is a list of batch items, output the token ids of every answer; all rungs
give the same, except where bfloat16 weights score another token higher. All share the file's
weights and copy only what their idea lays out anew.

The order is the one in which ideas were tried, including those that do not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from batchgauge.baseline.engine import BaselineEngine
from batchgauge.baseline.model import BaselineModel, Cache, capped, softmax
from batchgauge.baseline.rung import Rung
from batchgauge.core import ops
from batchgauge.core.config import Config
from batchgauge.core.default_model import default_model_path, open_model
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.kernels.attention import Attention, PlainAttention
from batchgauge.core.kernels.products import Product, blas_product, product
from batchgauge.core.kv_cache import KVCache
from batchgauge.core.model import LlamaModel
from batchgauge.core.ops import Floats, Ints, Rotations
from batchgauge.core.rotary import Turns
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.core.weights import BLOCK, Blocked, blocked_size, place_rows
from batchgauge.machine.limits import performance_cores
from batchgauge.protocols import Engine
from batchgauge.request import BatchItem, InferenceBatchRequest

Items = Sequence[BatchItem[InferenceBatchRequest]]
Answers = list[tuple[int, ...]]
Infer = Callable[[Items], Answers]


class LastLogits(BaselineModel):
    """Scores over the vocabulary only for the last position."""

    def logits(self, x: Floats) -> Floats:
        """Scores [1, V]."""
        return super().logits(x[-1:])


class RoomForAll(Cache):
    """Keys and values with room for all positions to come."""

    def __init__(self, config: Config, capacity: int) -> None:
        shape = (config.layers, 2, capacity, config.kv_heads, config.head_dim)  # J: the most
        self.length = 0
        self.rows = np.empty(shape, np.float32)

    def extend(self, layer: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Write new positions behind those held; a view of all."""
        end = self.length + len(keys)
        held_keys, held_values = self.rows[layer, :, :, : keys.shape[1]]
        held_keys[self.length : end] = keys
        held_values[self.length : end] = values
        return held_keys[:end], held_values[:end]


class PreallocatedCache(BaselineModel):
    """The KV cache is allocated once instead of copied at every step."""

    def new_cache(self, capacity: int = 0) -> Cache:
        """An empty cache of that size."""
        return RoomForAll(self.config, capacity)


class ComplexRotation(BaselineModel):
    """A pair of features as one complex number, turned by one multiplication."""

    def rope(self, x: Floats, rotations: Rotations) -> Floats:
        """Rotate the pairs (2i, 2i + 1)."""
        turned = x.copy()
        ops.rotate(turned, rotations)
        return turned


class GroupedHeads(BaselineModel):
    """All query heads that share keys and values in one product, all groups in one call."""

    def attend(
        self, queries: Floats, keys: Floats, values: Floats, hidden: npt.NDArray[np.bool_]
    ) -> Floats:
        """Softmax attention: [T, H * E]."""
        c, T, J, E = self.config, len(queries), keys.shape[1], self.config.head_dim
        grouped = queries.reshape(T, J, -1, E).transpose(1, 2, 0, 3)  # [J, G, T, E]
        scores = grouped @ keys.transpose(1, 2, 0)[:, None] * np.float32(c.query_scale)
        scores = np.where(hidden, -np.inf, capped(scores, c.caps[0]))
        mixed = softmax(scores) @ values.transpose(1, 0, 2)[:, None]
        return mixed.transpose(2, 0, 1, 3).reshape(T, -1)


class FoldedGains(BaselineModel):
    """Gains of the norms within a layer are multiplied into the matrices behind them."""

    def __init__(
        self, config: Config, weights: Mapping[str, Floats], turns: Sequence[Turns]
    ) -> None:
        super().__init__(config, weights, turns)
        behind = {"attn_norm": ["attn_q", "attn_k", "attn_v"], "ffn_norm": ["ffn_gate", "ffn_up"]}
        self.folded = set()
        for layer in range(config.layers):
            for norm, names in behind.items():
                at = f"blk.{layer}."
                if at + norm not in self.weights or at + names[0] not in self.weights:
                    continue
                gain = self.weights.pop(at + norm)
                self.folded.add(at + norm)
                for name in names:
                    self.weights[at + name] = self.weights[at + name] * gain

    def norm(self, x: Floats, name: str) -> Floats:
        """RMSNorm, with a gain only where one is left."""
        if name not in self.folded:
            return super().norm(x, name)
        mean_square = np.mean(x**2, axis=-1, keepdims=True)
        normed: Floats = x / np.sqrt(mean_square + np.float32(self.config.norm_epsilon))
        return normed


class FusedMatrices(BaselineModel):
    """Queries, keys and values in one product, gate and up in one."""

    def __init__(
        self, config: Config, weights: Mapping[str, Floats], turns: Sequence[Turns]
    ) -> None:
        super().__init__(config, weights, turns)
        if config.family.fused:
            return
        fused = {"attn_qkv": ["attn_q", "attn_k", "attn_v"], "ffn_up": ["ffn_gate", "ffn_up"]}
        for layer in range(config.layers):
            for name, parts in fused.items():
                at = [f"blk.{layer}.{part}" for part in parts]
                matrices = [self.weights.pop(part) for part in at]
                self.weights[f"blk.{layer}.{name}"] = np.concatenate(matrices)
                if config.biases & set(parts):
                    self.weights[f"blk.{layer}.{name}.bias"] = np.concatenate(
                        [
                            self.weights.pop(part + ".bias", np.zeros(len(matrix), np.float32))
                            for part, matrix in zip(at, matrices, strict=True)
                        ]
                    )
        self.config = replace(config, family=replace(config.family, fused=True))


class FeatureMajor(BaselineModel):
    """Products with the weights on the left and activations as columns."""

    def product(self, x: Floats, name: str) -> Floats:
        """Product of x [T, K] and a matrix [N, K], transposed: [T, N]."""
        return (self.weights[name] @ np.ascontiguousarray(x.T)).T


class BlockedWeights(BaselineModel):
    """Matrices in blocks of output features, multiplied block by block without packing."""

    by = staticmethod(blas_product)

    def __init__(
        self, config: Config, weights: Mapping[str, Floats], turns: Sequence[Turns]
    ) -> None:
        super().__init__(config, weights, turns)
        self.blocked = {
            name: _block(matrix, self.by)
            for name, matrix in self.weights.items()
            if matrix.ndim == 2 and not (name == "token_embd" and not config.tied)
        }
        for name in self.blocked.keys() - {"token_embd"}:
            del self.weights[name]

    def product(self, x: Floats, name: str) -> Floats:
        """Product of x [T, K] and a matrix [N, K], transposed: [T, N]."""
        return self.blocked[name](np.ascontiguousarray(x))


class RegisterTiles(BlockedWeights):
    """The same blocks, multiplied by compiled tiles that ask for the weights they need next."""

    by = staticmethod(product)


def _block(matrix: Floats, by: Product) -> Blocked:
    blocks = np.zeros(blocked_size(*matrix.shape), np.float32)
    blocked = Blocked(blocks.reshape(-1, matrix.shape[1], BLOCK), len(matrix), by)
    place_rows(blocked.blocks, 0, matrix)
    return blocked


class StepByStep(LlamaModel):
    """The core's model with a call of Python for every step of a layer."""

    layers = None


class PlainActivations(StepByStep):
    """And with norms and activations operation by operation."""

    rms_norm = staticmethod(ops.rms_norm)
    swiglu = staticmethod(ops.swiglu)
    geglu = staticmethod(ops.geglu)


class ByNumPy(PlainActivations):
    """And with the attention that runs everywhere."""

    @cached_property
    def attention(self) -> Attention:
        """NumPy's."""
        return PlainAttention(self.config.windows, self.config.caps[0])


class PromptByPrompt(ByNumPy):
    """Batched decode steps, prompts still read one after the other."""

    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        cache: KVCache,
        rows: Sequence[int] | Ints | None = None,
        totals: Sequence[int] | None = None,
        steps: int = 0,
    ) -> Floats:
        """Logits [B, V] of what follows each prompt."""
        numbers = cache.rows if rows is None else rows
        ends = [None] * len(prompts) if totals is None else [[total] for total in totals]
        read = super().prefill
        return np.concatenate(
            [
                read([prompt], cache, [row], end, int(number < steps))
                for number, (prompt, row, end) in enumerate(
                    zip(prompts, numbers, ends, strict=True)
                )
            ]
        )


_IDEAS: tuple[tuple[str, type[BaselineModel], str], ...] = (
    ("last logits", LastLogits, "Score the vocabulary only for a prompt's last position."),
    ("preallocated cache", PreallocatedCache, "Allocate the KV cache once, never copy it."),
    ("complex rotation", ComplexRotation, "Turn pairs of features as complex numbers."),
    ("grouped heads", GroupedHeads, "Attend with all heads in one batched product."),
    ("folded gains", FoldedGains, "Multiply the norms' gains into the matrices at load time."),
    ("fused matrices", FusedMatrices, "One product for queries, keys, values; one for gate, up."),
    ("feature-major", FeatureMajor, "Multiply weights by columns of activations."),
    ("blocked weights", BlockedWeights, "Keep products small enough for BLAS not to pack them."),
    ("register tiles", RegisterTiles, "Products by compiled tiles that prefetch weights."),
)


_BATCHED: tuple[tuple[str, str, type[LlamaModel], str], ...] = (
    ("batched decode", "One decode step for all requests, each with a masked row of the cache.",
     PromptByPrompt, ""),
    ("packed prefill", "Prompts of unequal length end to end in one prefill, without padding.",
     ByNumPy, ""),
    ("compiled attention", "Attention of every row at its own length, in one compiled call.",
     PlainActivations, ""),
    ("compiled activations", "Norms and SwiGLU in one pass over the numbers.", StepByStep, ""),
    ("compiled layers", "All layers in one compiled call, with no Python between their steps.",
     LlamaModel, ""),
    ("bfloat16 weights", "Round weights to 16 bits: half the bytes, and other scores.",
     LlamaModel, "bfloat16"),
    ("weights as in the file", "Keep the file's bits, dequantise in registers: the same scores.",
     LlamaModel, "file"),
)  # fmt: skip


def baseline(path: Path | None = None) -> Infer:
    """What every rung is compared with."""
    return _mixed(path, [])


def engine_rungs(path: Path | None = None) -> tuple[Rung, ...]:
    """The ladder on the model of a GGUF file; None is the default model."""
    classes = [idea for _, idea, _ in _IDEAS]
    ladder = [
        Rung(name, idea, partial(_mixed, path, [cls]), partial(_mixed, path, classes[: place + 1]))
        for place, (name, cls, idea) in enumerate(_IDEAS)
    ]
    ladder += [
        Rung(name, idea, None, partial(_batched, path, model, weights or "float32"), weights)
        for name, idea, model, weights in _BATCHED
    ]
    name, idea = "all cores", "Share products and attention of a step among all full-speed cores."
    whole = partial(_on_all_cores, path)
    return (*ladder, Rung(name, idea, None, whole, "file", performance_cores()))


def _mixed(path: Path | None, ideas: Sequence[type[BaselineModel]]) -> Infer:
    """The baseline with these ideas, the last one first in line."""
    base = _plain(path or default_model_path())
    mixed: type[BaselineModel] = type("Mixed", tuple(reversed(ideas)) or (BaselineModel,), {})
    metadata = open_model(path).metadata
    engine = BaselineEngine(
        mixed(base.config, base.weights, base.turns),
        BPETokenizer.from_metadata(metadata, threads=1),
        metadata,
    )
    return partial(_answers, engine)


@lru_cache(maxsize=1)
def _plain(path: Path) -> BaselineModel:
    """The file's weights, shared by all rungs."""
    return BaselineModel.load(path)


def _on_all_cores(path: Path | None) -> Infer:
    infer, threads = _batched(path, LlamaModel, "file"), performance_cores()

    def run(items: Items) -> Answers:
        with threadpool_limits(threads, user_api="blas"):
            return infer(items)

    return run


def _batched(path: Path | None, model: type[LlamaModel], weights: str) -> Infer:
    file = open_model(path)
    tokenizer = BPETokenizer.from_metadata(file.metadata, threads=1)
    return partial(_answers, BatchInferenceEngine(model(file, weights), tokenizer, file.metadata))


def _answers(engine: Engine, items: Items) -> Answers:
    return [row.data.token_ids if row.data else () for row in engine.infer_batch(items).responses]


RUNGS = engine_rungs()
