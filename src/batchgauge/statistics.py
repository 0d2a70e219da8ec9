"""Intervals and tests for noisy timings, on plain arrays of numbers.

The unit of evidence is a *block* (one interleaved round) or, where several processes
ran, a *process*; never a single timing, because timings of one run are correlated and
pooling them makes intervals too narrow (Kalibera & Jones, "Rigorous benchmarking in
reasonable time", ISMM 2013). Ratios are handled as logarithms. Nothing here measures.

n blocks · R bootstrap resamples
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from batchgauge.errors import UserError
from batchgauge.request import PERCENTILE_FLOOR

Array = npt.NDArray[np.float64]

RESAMPLES = 1999
TRIM = 0.2
# Below this many blocks a resample is too often a single value repeated.
BOOTSTRAP_FROM = 10


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2.0


@dataclass(frozen=True, slots=True)
class Estimate(Interval):
    """A location with its interval; `p` tests that it is zero, from n observations."""

    p: float
    n: int

    def exp(self) -> Interval:
        """The interval of a ratio, of its logarithm's."""
        return Interval(exp(self.value), exp(self.low), exp(self.high))


def exp(x: float) -> float:
    """e^x, infinite where a float cannot hold it."""
    return math.exp(x) if x < 700.0 else math.inf


def location(values: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Where independent, possibly heavy-tailed observations [n] lie, with a 95 % interval.

    From 10 observations on: the 20 % trimmed mean with a symmetric bootstrap-t interval
    over observations, standard error by winsorising (Wilcox, "Introduction to Robust
    Estimation and Hypothesis Testing", 4th ed. 2017, ch. 4; a plain percentile bootstrap
    covers too little from so few blocks). Trimming is the estimator's weighting, no row is
    dropped. Below 10: `mean`.
    """
    x = np.sort(_finite(values))  # [n]
    if x.size < BOOTSTRAP_FROM:
        return mean(x)
    middle, error = (float(v[0]) for v in _trimmed(x[None], TRIM))
    if error == 0.0:
        return _certain(middle, x.size)
    distances = _bootstrap_t(x, middle, seed, resamples)  # [R]
    reach = float(np.quantile(distances, 0.95, method="higher")) * error
    p = float((1 + np.count_nonzero(distances >= abs(middle / error))) / (1 + resamples))
    return Estimate(middle, middle - reach, middle + reach, p, x.size)


def mean(values: npt.ArrayLike) -> Estimate:
    """The mean of observations [n] with Student's 95 % t interval; infinite for a single one.

    Raises UserError for no observation, or one that is not finite.
    """
    x = _finite(values)
    middle = float(x.mean())
    if x.size == 1:
        return Estimate(middle, -math.inf, math.inf, 1.0, 1)
    error = float(x.std(ddof=1)) / math.sqrt(x.size)
    if error == 0.0:
        return _certain(middle, x.size)
    reach = float(stats.t.ppf(0.975, x.size - 1)) * error
    p = float(2.0 * stats.t.sf(abs(middle / error), x.size - 1))
    return Estimate(middle, middle - reach, middle + reach, p, x.size)


def mean_ratio(after: npt.ArrayLike, before: npt.ArrayLike) -> Interval:
    """Geometric mean of after / before [n], all positive, with the t interval of its logarithm."""
    return mean(np.log(np.asarray(after, np.float64) / np.asarray(before, np.float64))).exp()


def _finite(values: npt.ArrayLike) -> Array:
    x = np.asarray(values, dtype=np.float64).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise UserError("An interval needs at least one finite number; got none, NaN or infinity.")
    return x


def _certain(value: float, n: int) -> Estimate:
    """Where all observations are the same."""
    return Estimate(value, value, value, 0.0 if value else 1.0, n)


def _trimmed(rows: Array, trim: float) -> tuple[Array, Array]:
    """Trimmed means and their standard errors [R] of sorted rows [R, n] (Tukey & McLaughlin)."""
    n = rows.shape[1]
    cut = int(trim * n)
    kept = n - 2 * cut
    middle = rows[:, cut : n - cut].mean(axis=1)
    winsorised = np.clip(rows, rows[:, cut, None], rows[:, n - cut - 1, None])
    error = np.sqrt(winsorised.var(axis=1, ddof=1) * (n - 1) / (kept * (kept - 1)))
    return middle, error


def _bootstrap_t(x: Array, middle: float, seed: int, resamples: int) -> Array:
    """|t| [R] of resamples of x [n] around its own trimmed mean."""
    picks = np.random.default_rng(seed).integers(0, x.size, size=(resamples, x.size))
    middles, errors = _trimmed(np.sort(x[picks], axis=1), TRIM)
    off = np.abs(middles - middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(off == 0.0, 0.0, off / errors)


def difference(new: npt.ArrayLike, base: npt.ArrayLike) -> Estimate:
    """Location of `new` [n] minus that of `base` [m], two independent samples, 95 % interval.

    For runs that were not interleaved: Yuen's test of 20 % trimmed means where both sides
    have 10 observations or more, Welch's of means below (Yuen, Biometrika 61, 1974).
    Raises UserError when either side has fewer than two observations.
    """
    sides = [np.asarray(values, dtype=np.float64).ravel() for values in (new, base)]
    for x in sides:
        if x.size < 2 or not np.isfinite(x).all():
            raise UserError(f"A comparison needs two or more finite samples a side; got {x.size}.")
    n = min(x.size for x in sides)
    trim = TRIM if n >= BOOTSTRAP_FROM else 0.0
    new_mean, base_mean = (float(stats.trim_mean(x, trim)) for x in sides)
    if all(np.ptp(x) == 0.0 for x in sides):
        return _certain(new_mean - base_mean, n)
    test = stats.ttest_ind(*sides, equal_var=False, trim=trim)
    low, high = test.confidence_interval(0.95)
    if not math.isfinite(low):  # what varies is trimmed
        return _certain(new_mean - base_mean, n)
    return Estimate(new_mean - base_mean, float(low), float(high), float(test.pvalue), n)


def relative(log_change: float) -> float:
    """A change of logarithms as a relative one: 0.0953 is 0.1; infinite beyond a float."""
    return math.expm1(log_change) if log_change < 700.0 else math.inf


def minimum_detectable_change(half_width_log: float, power: float = 0.8) -> float:
    """The smallest relative change seen with `power` where the 95 % interval has this half-width.

    Half-width of a log ratio = 1.96 standard errors; a change is found with probability
    `power` when it is 1.96 + z(power) of them (two-sided test at 5 %).
    """
    scale = 1.0 + float(stats.norm.ppf(power)) / float(stats.norm.ppf(0.975))
    return relative(half_width_log * scale)


def adjusted(p_values: Sequence[float] | Array) -> Array:
    """Benjamini-Hochberg adjusted p-values (false discovery rate), in the given order."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.size == 0:
        return p
    return np.asarray(stats.false_discovery_control(p, method="bh"), dtype=np.float64)


def proportion(hits: int, trials: int) -> Estimate:
    """The rate hits ÷ trials with the exact binomial 95 % interval (Clopper & Pearson 1934)."""
    if trials < 1:
        raise UserError("A rate needs at least one trial; got none.")
    test = stats.binomtest(hits, trials)
    ci = test.proportion_ci(0.95, method="exact")
    return Estimate(hits / trials, float(ci.low), float(ci.high), float(test.pvalue), trials)


def clustered_proportion(hits: npt.ArrayLike, trials: npt.ArrayLike) -> Interval:
    """The rate Σ hits ÷ Σ trials of clusters [R] with its 95 % interval, e.g. runs of decisions.

    Exact binomial with the effective number of trials: divided by the design effect, and by
    what Student's t with R − 1 degrees of freedom is wider (Korn & Graubard, Survey Methodology
    24, 1998). A single cluster is taken as independent trials. Raises UserError without a trial.
    """
    h, n = (np.asarray(values, np.float64).ravel() for values in (hits, trials))
    total, clusters = float(n.sum()), h.size
    if total < 1.0:
        raise UserError("A rate needs at least one trial; got none.")
    p, effective = float(h.sum()) / total, total
    if clusters > 1 and total > 2.0:
        if 0.0 < p < 1.0:
            seen = clusters / (clusters - 1) * float(((h - p * n) ** 2).sum()) / total**2
            effective /= max(1.0, seen * (total - 1.0) / (p * (1.0 - p)))
        wider = stats.t.ppf(0.975, clusters - 1) / stats.t.ppf(0.975, total - 1.0)
        effective = max(1.0, effective / float(max(1.0, wider)) ** 2)
    x = p * effective
    low = float(stats.beta.ppf(0.025, x, effective - x + 1.0)) if p > 0.0 else 0.0
    high = float(stats.beta.ppf(0.975, x + 1.0, effective - x)) if p < 1.0 else 1.0
    return Interval(p, low, high)


def percentile(values: npt.ArrayLike, percent: int) -> float:
    """The percentile of samples [n], NaN from fewer than its floor (p90: 64, p99: 662)."""
    if percent not in PERCENTILE_FLOOR:
        raise UserError(f"Percentile {percent} is not offered; expected one of 50, 90, 95, 99.")
    x = np.asarray(values, dtype=np.float64)
    return float(np.percentile(x, percent)) if x.size >= PERCENTILE_FLOOR[percent] else math.nan


def classify_outliers(values: npt.ArrayLike) -> list[str]:
    """Tukey's fences, per sample: "", or low/high with mild (1.5 IQR) or severe (3 IQR)."""
    x = np.asarray(values, dtype=np.float64)
    if x.size < 4:
        return [""] * x.size
    q1, q3 = np.percentile(x, [25, 75])
    beyond = np.maximum(q1 - x, x - q3) / max(q3 - q1, np.finfo(float).tiny)
    side = np.where(x < q1, "low", "high")
    return [
        f"{where} {'severe' if far > 3.0 else 'mild'}" if far > 1.5 else ""
        for where, far in zip(side.tolist(), beyond.tolist(), strict=True)
    ]
