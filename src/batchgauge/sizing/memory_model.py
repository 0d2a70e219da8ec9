"""What a batch costs in memory: weights, KV cache by real lengths, activations, temporaries.

The structure is known from the model's shape, so are weights and KV cache; what passes by
(activations, scores, copies) is fitted to a few measured peaks.
Only lengths that are really used count, never the context limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from batchgauge.errors import UserError
from batchgauge.sizing.curve import Floats
from batchgauge.sizing.lengths import BatchWork, Lengths


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a decoder-only Llama that decide its costs; bytes as held in memory."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    context_length: int
    weight_bytes: int
    value_bytes: int = 4  # of one activation or cached key or value

    @classmethod
    def of(cls, config: Any, weight_bytes: int) -> ModelShape:
        """From any object that has these names as attributes, e.g. a model's config."""
        names = [f.name for f in fields(cls) if f.name not in {"weight_bytes", "value_bytes"}]
        return cls(**{n: int(getattr(config, n)) for n in names}, weight_bytes=int(weight_bytes))

    @property
    def matrix_weights(self) -> int:
        """Weights that every token is multiplied with, the output head included."""
        attention = self.d_model * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.d_model * self.d_ff) + (
            self.vocab_size * self.d_model
        )

    @property
    def flops_per_token(self) -> float:
        """A multiplication and an addition per weight, attention over the context apart."""
        return 2.0 * self.matrix_weights

    @property
    def attention_flops_per_pair(self) -> float:
        """Flops of one query position with one key position, over all layers and heads."""
        return 4.0 * self.layers * self.heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.value_bytes


@dataclass(frozen=True, slots=True)
class Peak:
    """One measured peak: the batch that ran, and bytes above the loaded model."""

    rows: int
    prompt_tokens: int
    new_tokens: int
    peak_bytes: float

    def plan(self) -> BatchWork:
        """The batch as the model sees it: all requests alike."""
        return Lengths.uniform(self.prompt_tokens, self.new_tokens).batches(self.rows)


@dataclass(frozen=True)
class MemoryModel:
    """Peak bytes of a batch: weights, KV cache, and the largest of what passes by.

    peak = weights + kv * tokens held + max(activations, scores, decode)

    activations  fixed + wide * min(positions, tile) + position * min(positions, part)
                 + row * prompts that are prefilled at a time
    scores       bytes per row, of the first scores over the vocabulary
    decode       fixed + bytes per row, when anything is decoded

    Tokens held are those that the KV cache has room for: prompt and generation, each
    `group` of neighbours in order of length as long as its longest. `part` positions are
    prefilled at a time, and only the first `tile` of them widen every buffer (0: all do).
    `error` is the relative error on peaks that were not fitted to.
    """

    weight_bytes: int
    kv_bytes_per_token: float
    scores_bytes_per_row: float
    activation_terms: tuple[float, float, float, float]
    decode_terms: tuple[float, float]
    part: int = 0
    tile: int = 0
    group: int = 1
    error: float = 0.25
    fitted: bool = False

    @classmethod
    def from_shape(
        cls, shape: ModelShape, *, part: int = 0, tile: int = 0, group: int = 1, spare: int = 0
    ) -> MemoryModel:
        """The analytical model, nothing measured: structure only, good to about a quarter.

        `spare` positions beside its own are those of keys that attention to a prompt works on.
        """
        row = float(shape.vocab_size * shape.value_bytes)  # scores over the vocabulary
        qkv_width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim  # of one position
        narrow = float((3 * shape.d_model + qkv_width) * shape.value_bytes)
        wide = float(3 * shape.d_ff * shape.value_bytes)
        # While a step's scores are computed, those of the step before still exist.
        prompt = float(spare * shape.kv_heads * shape.head_dim * shape.value_bytes)
        terms = (0.0, wide, narrow, prompt), (0.0, 2.0 * row)
        kv = float(shape.kv_bytes_per_token)
        return cls(shape.weight_bytes, kv, row, *terms, part, tile, group)

    def fitted_to(self, prefill: Sequence[Peak], decode: Sequence[Peak]) -> MemoryModel:
        """This model with its passing terms fitted to measured peaks, none below zero.

        `prefill` are batches of longer prompts that generate one token, `decode` batches of
        short prompts that generate more. The KV cache's bytes are known and not fitted.
        Errors count relative to the peak. Raises UserError for fewer peaks than terms.
        """
        if len(prefill) < 4 or len(decode) < 2:
            raise UserError("A memory fit needs at least 4 prefill and 2 decode peaks.")
        rows = [self._activation_row(p.rows * p.prompt_tokens, p.rows) for p in prefill]
        first = self._fit(rows, prefill)
        later = self._fit([np.asarray([1.0, p.rows]) for p in decode], decode)
        found = replace(
            self,
            activation_terms=(first[0], first[1], first[2], first[3]),
            decode_terms=(later[0], later[1]),
            fitted=True,
        )
        return replace(found, error=max(0.01, found.worst_error((*prefill, *decode))))

    def worst_error(self, peaks: Sequence[Peak]) -> float:
        """Largest relative error over measured peaks (of what is above the weights)."""
        return max(abs(self.batch_bytes(p.plan()) / p.peak_bytes - 1.0) for p in peaks)

    def batch_bytes(self, work: BatchWork) -> float:
        """Peak bytes above the loaded model while the worst of these batches runs."""
        decodes = work.new_tokens.max(initial=0) > 1  # the first token comes with the prefill
        passing = self._passing_bytes(work.positions(padded=False), work.size, decodes=decodes)
        return float((self.kv_bytes_per_token * self._held(work) + passing).max())

    def positions_within(self, budget_bytes: float, rows: int, at_once: int) -> int:
        """Positions of KV cache that a budget has room for beside the weights; 0 for none.

        And beside what passes by with so many rows and positions prefilled at once, all of it
        at the upper end of its interval.
        """
        above = (budget_bytes - self.weight_bytes) / (1.0 + self.error)
        left = above - float(self._passing_bytes(at_once, rows, decodes=True))
        return max(0, int(left / self.kv_bytes_per_token))

    def peak_bytes(self, lengths: Lengths, size: int) -> float:
        """Peak bytes of the process' model and batch; the worst of the drawn batches."""
        return self.weight_bytes + self.batch_bytes(lengths.batches(size))

    def interval(self, value: float) -> tuple[float, float]:
        """Bounds of a predicted peak: the error applies to what is above the weights."""
        above = max(0.0, value - self.weight_bytes)
        return value - above * min(1.0, self.error), value + above * self.error

    def bytes_for(self, positions: int, rows: int, at_once: int) -> float:
        """The budget that `positions_within` needs for so many positions."""
        above = self.kv_bytes_per_token * positions
        above += float(self._passing_bytes(at_once, rows, decodes=True))
        return self.weight_bytes + (1.0 + self.error) * above

    def _passing_bytes(self, positions: npt.ArrayLike, rows: int, *, decodes: bool) -> Floats:
        """The largest of what passes by, for each number of positions."""
        fixed, row = self.decode_terms
        steps = max(self.scores_bytes_per_row * rows, (fixed + row * rows) if decodes else 0.0)
        return np.maximum(self._activation_row(positions, rows) @ self.activation_terms, steps)

    def _activation_row(self, positions: npt.ArrayLike, rows: int) -> Floats:
        at = np.asarray(positions, dtype=np.float64)
        wide, at_once = (np.minimum(at, most) if most else at for most in (self.tile, self.part))
        prompts = np.ceil(rows * at_once / np.maximum(at, 1.0))
        return np.stack([np.ones_like(at), wide, at_once, prompts], axis=-1)  # [..., terms]

    def _fit(self, rows: Sequence[Floats], peaks: Sequence[Peak]) -> list[float]:
        """Non-negative terms with rows @ terms = peaks - KV cache, errors relative to the peak."""
        A = np.asarray(rows)  # [N, terms]
        whole = np.asarray([peak.peak_bytes for peak in peaks], dtype=np.float64)  # [N]
        cache = self.kv_bytes_per_token * np.concatenate([self._held(p.plan()) for p in peaks])
        scale = A.max(axis=0) + 1e-12  # columns of like size keep the solver exact
        terms, _ = scipy.optimize.nnls(
            (A / scale) / whole[:, None], np.maximum(0.0, whole - cache) / whole
        )
        return [float(term) for term in terms / scale]

    def _held(self, work: BatchWork) -> Floats:
        """Tokens that the KV cache makes room for [K]; the last generated is never read back."""
        room = work.inputs + np.maximum(work.new_tokens, 1) - 1
        if self.group == 1:  # each has its own length: their order does not matter
            every: Floats = room.sum(axis=1, dtype=np.float64)
            return every
        order = np.lexsort((work.new_tokens, work.inputs), axis=1)
        room = np.take_along_axis(room, order, axis=1)
        starts = np.arange(0, work.size, self.group)
        sizes = np.diff(np.append(starts, work.size))
        held: Floats = np.maximum.reduceat(room, starts, axis=1) @ sizes.astype(np.float64)
        return held
