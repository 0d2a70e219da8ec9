"""How long one step of a batch server takes: measured on this machine, or by a roofline.

A step works on `rows` sequences that decode one token each, reading `kv_tokens` cached
positions in all, and on `prefill_tokens` prompt positions with `pairs` query-key pairs
between them (a whole prompt of L tokens has L (L + 1) / 2). Either half may be zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from batchgauge.errors import UserError

Floats = npt.NDArray[np.float64]


class StepTime(Protocol):
    """Seconds that a step takes; any function of this shape drives the simulator."""

    def __call__(self, rows: int, kv_tokens: float, prefill_tokens: int, pairs: float) -> float:
        """Seconds of one step."""


def causal_pairs(tokens: int, past: int = 0) -> float:
    """Query-key pairs of `tokens` positions that follow `past` cached ones, causally masked."""
    return tokens * past + tokens * (tokens + 1) / 2


@dataclass(frozen=True)
class MeasuredSteps:
    """Step times from a calibration; prefill and decode of one step follow each other.

    prefill_s     (seconds a call, a token, a pair)
    decode_s      seconds of a decode step with 0, 1, 2, … rows; straight on beyond the end
    kv_s          seconds for each cached token read in a decode step
    """

    prefill_s: tuple[float, float, float]
    decode_s: tuple[float, ...]
    kv_s: float = 0.0

    def __call__(self, rows: int, kv_tokens: float, prefill_tokens: int, pairs: float) -> float:
        """Seconds of one step."""
        seconds = 0.0
        if prefill_tokens:
            call, token, pair = self.prefill_s
            seconds = call + token * prefill_tokens + pair * pairs
        if rows:
            table = self.decode_s
            beyond = rows - len(table) + 1
            if beyond > 0:
                seconds += table[-1] + beyond * max(table[-1] - table[-2], 0.0)
            else:
                seconds += table[rows]
            seconds += self.kv_s * kv_tokens
        return seconds

    def faster(self, prefill: float, decode: float) -> MeasuredSteps:
        """The same machine with prefill and decode `prefill` and `decode` times as fast."""
        call, token, pair = self.prefill_s
        return replace(
            self,
            prefill_s=(call / prefill, token / prefill, pair / prefill),
            decode_s=tuple(s / decode for s in self.decode_s),
            kv_s=self.kv_s / decode,
        )


def fit_steps(
    prefill: Sequence[Sequence[float]], decode: Sequence[Sequence[float]]
) -> MeasuredSteps:
    """Step times from measurements, by least squares on relative errors, none negative.

    prefill  rows of (tokens, pairs, seconds), one a prefill call
    decode   rows of (rows, kv_tokens, seconds), one a decode step or a mean of alike ones

    Between measured numbers of rows the time is interpolated. Raises UserError when
    there is nothing to fit or a time is not above 0.
    """
    read, wrote = np.asarray(prefill, np.float64), np.asarray(decode, np.float64)
    if read.ndim != 2 or wrote.ndim != 2 or min(read[:, -1].min(), wrote[:, -1].min()) <= 0.0:
        raise UserError("A calibration needs prefill and decode times, all above 0 seconds.")
    design = np.column_stack([np.ones(len(read)), read[:, 0], read[:, 1]])  # [n, 3]
    call, token, pair = _relative_nnls(design, read[:, 2])
    sizes = np.unique(wrote[:, 0]).astype(int)  # measured numbers of rows
    one_hot = (wrote[:, :1] == sizes[None, :]).astype(np.float64)  # [n, sizes]
    *bases, kv = _relative_nnls(np.column_stack([one_hot, wrote[:, 1]]), wrote[:, 2])
    table = np.interp(np.arange(sizes[-1] + 1), sizes, bases)
    table[0] = 0.0
    return MeasuredSteps((call, token, pair), tuple(table.tolist()), kv)


def _relative_nnls(design: Floats, seconds: Floats) -> list[float]:
    scaled = design / seconds[:, None]
    width = np.linalg.norm(scaled, axis=0)
    width[width == 0.0] = 1.0
    solution, _ = nnls(scaled / width, np.ones(len(seconds)))
    return (solution / width).tolist()  # type: ignore[no-any-return]  # scipy ships no types here


@dataclass(frozen=True)
class RooflineSteps:
    """Step times of a machine known by its data sheet only: a prediction, not a measurement.

    max(bytes / bandwidth, flops / rate) + overhead (Williams et al. 2009). Weights are
    read once a step whatever the batch, which is what batching shares; the cache is
    read once for each sequence. `efficiency` is the share of the data sheet's
    bandwidth and rate that real kernels reach.
    """

    bandwidth_bytes_per_s: float
    flops_per_s: float
    weight_bytes: float
    flops_per_token: float
    kv_bytes_per_token: float
    flops_per_pair: float
    overhead_s: float = 0.0
    efficiency: float = 1.0

    def __post_init__(self) -> None:
        positive = (self.bandwidth_bytes_per_s, self.flops_per_s, self.weight_bytes)
        if min(positive) <= 0.0 or not 0.0 < self.efficiency <= 1.0:
            raise UserError("A roofline needs bandwidth, rate and weights above 0.")

    def __call__(self, rows: int, kv_tokens: float, prefill_tokens: int, pairs: float) -> float:
        """Seconds of one step."""
        flops = self.flops_per_token * (rows + prefill_tokens)
        flops += self.flops_per_pair * (kv_tokens * (rows > 0) + pairs)
        traffic = self.weight_bytes + self.kv_bytes_per_token * (kv_tokens + prefill_tokens)
        bound = max(traffic / self.bandwidth_bytes_per_s, flops / self.flops_per_s)
        return self.overhead_s + bound / self.efficiency
