"""What a batch costs in memory: weights, KV cache by real lengths, activations, temporaries.

The structure is known from the model's shape; what an implementation adds on top
(copies, buffers that are kept for the next step) is fitted to a few measured peaks.
Only lengths that are really used count, never the context limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from batchgauge.errors import UserError
from batchgauge.sizing.curve import Floats
from batchgauge.sizing.lengths import Lengths, Plan


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
        names = ("layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab_size")
        numbers = {name: int(getattr(config, name)) for name in names}
        return cls(
            **numbers, context_length=int(config.context_length), weight_bytes=int(weight_bytes)
        )

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

    @property
    def prefill_bytes_per_position(self) -> int:
        """Activations alive at one position: residual, gate, up and their product."""
        return (2 * self.d_model + 3 * self.d_ff) * self.value_bytes

    @property
    def logits_bytes_per_row(self) -> int:
        """One row of scores over the vocabulary."""
        return self.vocab_size * self.value_bytes


@dataclass(frozen=True, slots=True)
class Peak:
    """One measured peak: the batch that ran, and bytes above the loaded model."""

    rows: int
    prompt_tokens: int
    new_tokens: int
    peak_bytes: float

    def plan(self) -> Plan:
        """The batch as the model sees it: all requests alike."""
        return Lengths.uniform(self.prompt_tokens, self.new_tokens).plans(self.rows)[0]


@dataclass(frozen=True)
class MemoryModel:
    """Peak bytes of a batch: the loaded model plus the hungrier of its two phases.

    prefill  fixed + position * positions + pair * query-key pairs + KV cache
    decode   fixed + row * rows + token * tokens held (KV cache and what it drags along)

    `prefill_terms` are bytes per (batch, row, position, pair), `decode_terms` bytes per
    (batch, row, token held). `error` is the relative error on peaks not fitted to.
    """

    weight_bytes: int
    prefill_terms: tuple[float, float, float, float]
    decode_terms: tuple[float, float, float]
    padded: bool = False
    error: float = 0.25
    fitted: bool = False

    @classmethod
    def from_shape(cls, shape: ModelShape, *, padded: bool = False) -> MemoryModel:
        """The analytical model, nothing measured: structure only, a quarter off at most hoped."""
        kv = float(shape.kv_bytes_per_token)
        position = float(shape.prefill_bytes_per_position) + kv
        pair = float(shape.heads * shape.value_bytes)  # one layer's scores at a time
        row = 2.0 * shape.logits_bytes_per_row
        return cls(shape.weight_bytes, (0.0, row, position, pair), (0.0, row, kv), padded)

    @classmethod
    def constant(cls, weight_bytes: int, bytes_per_unit: float) -> MemoryModel:
        """For work without a cache (tokenizing): so many bytes per input unit, nothing else."""
        return cls(weight_bytes, (0.0, 0.0, bytes_per_unit, 0.0), (0.0, 0.0, 0.0))

    def fitted_to(self, prefill: Sequence[Peak], decode: Sequence[Peak]) -> MemoryModel:
        """This model with its terms fitted to measured peaks, by non-negative least squares.

        `prefill` are batches that generate one token, `decode` batches with short prompts
        and long generations. Each fit needs as many peaks as it has terms, or more.
        Errors count relative to the peak. Raises UserError for too few peaks.
        """
        if len(prefill) < 4 or len(decode) < 3:
            raise UserError("A memory fit needs at least 4 prefill and 3 decode peaks.")
        first = _fit(
            [self._prefill_row(p.plan()) for p in prefill], [p.peak_bytes for p in prefill]
        )
        later = _fit([self._decode_row(p.plan()) for p in decode], [p.peak_bytes for p in decode])
        found = replace(
            self,
            prefill_terms=(first[0], first[1], first[2], first[3]),
            decode_terms=(later[0], later[1], later[2]),
            fitted=True,
        )
        peaks = (*prefill, *decode)
        worst = max(abs(found.batch_bytes(p.plan()) / p.peak_bytes - 1.0) for p in peaks)
        return replace(found, error=max(0.01, worst))

    def batch_bytes(self, plan: Plan) -> float:
        """Peak bytes above the loaded model while this batch runs."""
        prefill = float(np.dot(self._prefill_row(plan), self.prefill_terms))
        decode = float(np.dot(self._decode_row(plan), self.decode_terms))
        return max(prefill, decode)

    def peak_bytes(self, lengths: Lengths, size: int) -> float:
        """Peak bytes of the process' model and batch; the worst of the drawn batches."""
        return self.weight_bytes + max(self.batch_bytes(plan) for plan in lengths.plans(size))

    def interval(self, value: float) -> tuple[float, float]:
        """Bounds of a predicted peak: the error applies to what is above the weights."""
        above = max(0.0, value - self.weight_bytes)
        return value - above * min(1.0, self.error), value + above * self.error

    def _prefill_row(self, plan: Plan) -> Floats:
        positions = plan.positions(padded=self.padded)
        squares = plan.squares(padded=self.padded)
        return np.asarray([1.0, plan.size, positions, squares], dtype=np.float64)

    def _decode_row(self, plan: Plan) -> Floats:
        held = int((plan.inputs + plan.new_tokens).sum())
        return np.asarray([1.0, plan.size, held], dtype=np.float64)


def _fit(rows: Sequence[Floats], peaks: Sequence[float]) -> list[float]:
    """Non-negative terms with rows @ terms = peaks, errors relative to each peak."""
    A = np.asarray(rows)  # [N, terms]
    y = np.asarray(peaks, dtype=np.float64)  # [N]
    scale = A.max(axis=0) + 1e-12  # columns of like size keep the solver exact
    terms, _ = nnls((A / scale) / y[:, None], np.ones_like(y))
    return [float(term) for term in terms / scale]
