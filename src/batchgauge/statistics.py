"""Intervals and tests for noisy timings, on plain arrays of numbers.

The unit of evidence is a *process* where several ran, else a *block* (one interleaved round);
never a single timing, because timings of one run are correlated and pooling them makes
intervals too narrow (Kalibera & Jones, "Rigorous benchmarking in reasonable time", ISMM
2013). Ratios are handled as logarithms. Nothing here measures.

Intervals are Student's, √2 times as wide. So they hold not only the truth but the value of a
second run in 95 % of cases (the difference of two runs varies √2 times as much as one), and
they hold the truth in 93 % or more of runs where blocks have an autocorrelation of 0.3, a
drift, heavy tails or a process effect, and in 92 % or more where their number was fixed after
a pilot (`blocks_for`). Two modes cost more. As frequent as each other and far apart, four
blocks hold it in 87 %: one run in eight sees only one of them. With a fifth of blocks in the
second mode and a pilot that saw none of it, 87 to 92 %. With one process in five slow for life
by five times the noise, five of them hold the mean in 92 %. Each is simulated in
`tests/test_statistics.py`. Quantiles come from `scipy.special`: to import all of `scipy.stats`
takes a second of each fresh process, so only `difference` does.

n blocks or processes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy

from batchgauge.errors import UserError
from batchgauge.request import PERCENTILE_FLOOR
from batchgauge.text import percent

Array = npt.NDArray[np.float64]

FEWEST = 4  # blocks or processes from which on anything is said to be faster or slower
WIDER = math.sqrt(2.0)  # than Student's interval
TRIM = 0.2
TRIM_FROM = 10  # below, a mean trimmed at both ends leaves too little


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

    def columns(self, name: str) -> dict[str, float]:
        """Value and ends as columns: x, x_low, x_high."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


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


def location(values: npt.ArrayLike) -> Estimate:
    """Where observations [n] of blocks or processes lie, with a 95 % interval.

    From 10 observations on the 20 % trimmed mean with its standard error by winsorising (Tukey
    & McLaughlin 1963; Wilcox, "Introduction to Robust Estimation and Hypothesis Testing", 4th
    ed. 2017, ch. 4), below the mean; the interval is `WIDER` than Student's, infinite for a
    single observation. Trimming is the estimator's weighting, no row is dropped. Raises
    UserError for no observation, or one that is not finite.
    """
    x = _finite(values)
    if x.size == 1:
        return Estimate(float(x[0]), -math.inf, math.inf, 1.0, 1)
    trim = TRIM if x.size >= TRIM_FROM else 0.0
    middle, error = trimmed(x, trim)
    if error == 0.0:
        return _certain(middle, x.size)
    freedom = kept(x.size, trim) - 1
    reach = WIDER * float(scipy.special.stdtrit(freedom, 0.975)) * error
    p = float(2.0 * scipy.special.stdtr(freedom, -abs(middle / error) / WIDER))
    return Estimate(middle, middle - reach, middle + reach, p, x.size)


def kept(n: int, trim: float = TRIM) -> int:
    """How many of n values a trimmed mean keeps."""
    return n - 2 * int(trim * n)


def trimmed(values: Array, trim: float = TRIM) -> tuple[float, float]:
    """Trimmed mean of values [n], and its standard error by winsorising."""
    x = np.sort(values)
    rest = kept(x.size, trim)
    cut = (x.size - rest) // 2
    spread = float(np.clip(x, x[cut], x[x.size - cut - 1]).std(ddof=1))
    error = spread * math.sqrt((x.size - 1) / (rest * (rest - 1)))
    return float(x[cut : x.size - cut].mean()), error


def over_processes(values: npt.ArrayLike, processes: npt.ArrayLike) -> Estimate:
    """Where observations [n] of blocks lie that were made in `processes` [n] (any labels).

    A hierarchical mean: each process by its own location, and the interval over processes, so
    that what differs between them (where memory happens to lie) is in it. With one process,
    over its blocks.
    """
    return location(units_of(values, processes))


def units_of(values: npt.ArrayLike, processes: npt.ArrayLike) -> list[float]:
    """The units of evidence: the location of each process's blocks [n], or blocks of the one."""
    x, of = _finite(values), np.asarray(processes).ravel()
    labels = np.unique(of)
    return [location(x[of == k]).value for k in labels] if labels.size > 1 else x.tolist()


def blocks_for(pilot: npt.ArrayLike, half_width: float) -> int:
    """How many blocks give an interval of ± `half_width`, by pilot blocks [n]; an even number.

    Fixed once, after the pilot, the number does not follow what is seen later (Stein, "A
    two-sample test for a linear hypothesis whose power is independent of the variance", 1945).
    """
    x = _finite(pilot)
    wanted = (location(x).half_width / half_width) ** 2 * x.size if half_width > 0 else math.inf
    return 2 * math.ceil(min(wanted, 1e9) / 2)


def mean_ratio(after: npt.ArrayLike, before: npt.ArrayLike) -> Interval:
    """Geometric mean of after / before [n], all positive, with the interval of its logarithm."""
    return location(np.log(np.asarray(after, np.float64) / np.asarray(before, np.float64))).exp()


def jackknife(labels: Sequence[int], statistic: Callable[[set[int]], float]) -> Interval:
    """A positive statistic of all observations, with the 95 % interval of its logarithm.

    `statistic` gets the labels of those that count; one at a time is left out (Quenouille 1956;
    Tukey 1958). Nothing is trimmed: the interval is that of the statistic itself, `WIDER` than
    Student's, and without ends for a single observation.
    """
    everyone = set(labels)
    k, value = len(everyone), statistic(everyone)
    if k < 2:
        return Interval(value, 0.0, math.inf)
    without = np.log([statistic(everyone - {one}) for one in labels])
    pseudo = k * math.log(value) - (k - 1) * without
    half = WIDER * float(scipy.special.stdtrit(k - 1, 0.975) * pseudo.std(ddof=1)) / math.sqrt(k)
    return Interval(value, value * exp(-half), value * exp(half))


def _finite(values: npt.ArrayLike) -> Array:
    x = np.asarray(values, dtype=np.float64).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise UserError("An interval needs at least one finite number; got none, NaN or infinity.")
    return x


def _certain(value: float, n: int) -> Estimate:
    """Where all observations are the same."""
    return Estimate(value, value, value, 0.0 if value else 1.0, n)


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
    trim = TRIM if n >= TRIM_FROM else 0.0
    new_mean, base_mean = (float(scipy.stats.trim_mean(x, trim)) for x in sides)
    if all(np.ptp(x) == 0.0 for x in sides):
        return _certain(new_mean - base_mean, n)
    test = scipy.stats.ttest_ind(*sides, equal_var=False, trim=trim)
    low, high = test.confidence_interval(0.95)
    if not math.isfinite(low):  # what varies is trimmed
        return _certain(new_mean - base_mean, n)
    return Estimate(new_mean - base_mean, float(low), float(high), float(test.pvalue), n)


def relative(log_change: float) -> float:
    """A change of logarithms as a relative one: 0.0953 is 0.1; infinite beyond a float."""
    return math.expm1(log_change) if log_change < 700.0 else math.inf


def minimum_detectable_change(half_width_log: float, errors: float = WIDER * 1.96) -> float:
    """The smallest relative change found in 80 % of cases by an interval of this half-width.

    The half-width of a log ratio is so many standard `errors`, by default those of `location`;
    a change is found so often when it is 0.84 of them beyond it.
    """
    return relative(half_width_log * (1.0 + float(scipy.special.ndtri(0.8)) / errors))


def adjusted(p_values: Sequence[float] | Array) -> Array:
    """Benjamini-Hochberg adjusted p-values (false discovery rate), in the given order."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.size == 0:
        return p
    falling = np.argsort(p)[::-1]
    found = np.empty_like(p)
    found[falling] = np.minimum.accumulate(p[falling] * p.size / np.arange(p.size, 0, -1))
    return np.minimum(found, 1.0)


def proportion(hits: int, trials: int) -> Interval:
    """The rate hits ÷ trials with the exact binomial 95 % interval (Clopper & Pearson 1934)."""
    return clustered_proportion([hits], [trials])


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
        wider = np.divide(*scipy.special.stdtrit([clusters - 1, total - 1.0], 0.975))
        effective = max(1.0, effective / float(max(1.0, wider)) ** 2)
    x = p * effective
    low = float(scipy.special.betaincinv(x, effective - x + 1.0, 0.025)) if p > 0.0 else 0.0
    high = float(scipy.special.betaincinv(x + 1.0, effective - x, 0.975)) if p < 1.0 else 1.0
    return Interval(p, low, high)


def percentile(values: npt.ArrayLike, percent: int) -> float:
    """The percentile of samples [n], NaN from fewer than its floor (p90: 64, p99: 662)."""
    if percent not in PERCENTILE_FLOOR:
        raise UserError(f"Percentile {percent} is not offered; expected one of 50, 90, 95, 99.")
    x = np.asarray(values, dtype=np.float64)
    return float(np.percentile(x, percent)) if x.size >= PERCENTILE_FLOOR[percent] else math.nan


def course(values: npt.ArrayLike) -> str:
    """How a series [n] goes on: "" when steady, else "a trend" or "two levels", and how far.

    Compared are the best step between medians, each of a tenth of the series or more, and a
    line through the medians of the outer thirds (Tukey 1977), both as a share of the middle.
    The step counts when it is above 5 % and above four standard errors of a difference of
    medians. A series of fewer than 10 says nothing.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size < TRIM_FROM:
        return ""
    middle, edge, third = float(np.median(x)), max(5, x.size // 10), x.size // 3
    steps = [np.median(x[k:]) - np.median(x[:k]) for k in range(edge, x.size - edge + 1)]
    at = int(np.argmax(np.abs(steps)))
    step, cut = float(steps[at]), at + edge
    levels = np.where(np.arange(x.size) < cut, np.median(x[:cut]), np.median(x[cut:]))
    slope = float(np.median(x[-third:]) - np.median(x[:third])) / (x.size - third)
    line = middle + slope * (np.arange(x.size) - (x.size - 1) / 2)
    off = [float(np.median(np.abs(x - fit))) for fit in (levels, line)]
    noise = 1.4826 * min(off) * 1.25 * math.sqrt(1 / cut + 1 / (x.size - cut))
    if abs(step) <= max(0.05 * abs(middle), 4.0 * noise):
        return ""
    if off[1] < off[0]:
        return f"a trend of {percent(slope * (x.size - 1) / middle, sign=True)}"
    return f"two levels, {percent(step / middle, sign=True)} apart"


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
