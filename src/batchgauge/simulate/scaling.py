"""How throughput grows with workers: Amdahl's law and the Universal Scalability Law, fitted.

    Amdahl (1967)    S(n) = n / (1 + s (n - 1))                      s: share that is serial
    USL (Gunther)    C(n) = n / (1 + a (n - 1) + b n (n - 1))        a: contention, b: coherence

Both are linear in their parameters once written as n / S - 1, so that the fit is a
non-negative least squares. Intervals come from resampling blocks of measurements.
Beyond the largest measured n a prediction says that it is extrapolated. Measured with
fewer than two sizes above 1, contention and coherence cannot be told apart: then the
band runs from all of it being the one to all of it being the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from batchgauge.errors import UserError

Floats = npt.NDArray[np.float64]
Law = Literal["Amdahl", "USL"]
DRAWS = 400  # bootstrap resamples; the 2.5 % bounds then rest on ten each


@dataclass(frozen=True)
class Prediction:
    """A speed-up at `workers` with its 95 % interval; `extrapolated` beyond what was measured."""

    workers: int
    value: float
    low: float
    high: float
    extrapolated: bool


@dataclass(frozen=True)
class ScalingFit:
    """A fitted law.

    contention, coherence   the parameters (Amdahl's serial share is its contention)
    draws                   float64 [draws, 2], the parameters of each resample
    measured_to             largest number of workers measured
    separable               False when contention and coherence could not be told apart
    """

    law: Law
    contention: float
    coherence: float
    draws: Floats
    measured_to: int
    separable: bool

    def predict(self, workers: int) -> Prediction:
        """Speed-up over one worker. Raises UserError for fewer than one."""
        if workers < 1:
            raise UserError(f"A prediction for {workers} workers; expected at least 1.")
        drawn = _speedup(workers, self.draws[:, 0], self.draws[:, 1])
        low, high = np.percentile(drawn, [2.5, 97.5])
        value = float(_speedup(workers, self.contention, self.coherence))
        return Prediction(
            workers, value, min(float(low), value), max(float(high), value),
            workers > self.measured_to,
        )  # fmt: skip


def _speedup(n: npt.ArrayLike, contention: Floats | float, coherence: Floats | float) -> Floats:
    size = np.asarray(n, np.float64)
    return np.asarray(size / (1 + contention * (size - 1) + coherence * size * (size - 1)))


def fit_scaling(
    throughput: Mapping[int, Sequence[float]], law: Law, *, seed: int = 0
) -> ScalingFit:
    """Fit `law` to throughputs [blocks] by number of workers; block i of each belongs together.

    Raises UserError without 1 and a larger number of workers, for unequal numbers of
    blocks, and for throughputs that are not above 0.
    """
    sizes = sorted(throughput)
    if len(sizes) < 2 or sizes[0] != 1:
        raise UserError("A law of scaling needs throughputs with 1 worker and with more.")
    if len({len(throughput[n]) for n in sizes}) != 1 or not len(throughput[1]):
        raise UserError("Every number of workers needs the same number of measured blocks.")
    X = np.asarray([throughput[n] for n in sizes], np.float64)  # [sizes, blocks]
    if not (X > 0.0).all():
        raise UserError("A throughput is 0 or less; expected items per second above 0.")
    n = np.asarray(sizes[1:], np.float64)
    separable = law == "Amdahl" or n.size >= 2
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, X.shape[1], size=(DRAWS, X.shape[1]))
    draws = []
    for pick in picks:
        lost = _lost(X[:, pick], n)
        draws.append(_fit(n, lost, law))
        if not separable:  # the other extreme: all of it coherence
            draws.append((0.0, draws.pop()[0] / float(n[0])))
            draws.append(_fit(n, lost, "Amdahl"))
    contention, coherence = _fit(n, _lost(X, n), law if separable else "Amdahl")
    return ScalingFit(law, contention, coherence, np.asarray(draws), sizes[-1], separable)


def _lost(X: Floats, n: Floats) -> Floats:
    """For each n above 1, n / S(n) - 1, which both laws write as a sum of their parameters.

    S(n) is the median over blocks, which one disturbed block does not move.
    """
    return np.asarray(n * np.median(X[0] / X[1:], axis=1) - 1)


def _fit(n: Floats, lost: Floats, law: Law) -> tuple[float, float]:
    design = np.column_stack([n - 1, n * (n - 1)])  # [sizes, 2]
    if law == "Amdahl" or n.size < 2:
        (serial,), _ = scipy.optimize.nnls(design[:, :1], lost)
        return float(serial), 0.0
    (contention, coherence), _ = scipy.optimize.nnls(design, lost)
    return float(contention), float(coherence)


def predictions(fits: Mapping[str, ScalingFit], workers: Sequence[int]) -> pd.DataFrame:
    """One row a fit and number of workers: speed-up, 95 % interval, whether extrapolated."""
    return pd.DataFrame(
        [
            {"what": what, "law": fit.law, **fit.predict(n).__dict__}
            for what, fit in fits.items()
            for n in workers
        ]
    )
