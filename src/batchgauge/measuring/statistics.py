"""Intervals, tests and floors for noisy timings, on plain arrays of numbers.

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
# Each step must describe a history better by so much: strong evidence (Kass & Raftery 1995).
MARGIN = 6.0
STRAYS = 0.1  # of the runs at most
SHORTEST = 3  # runs in a stretch of one level


@dataclass(frozen=True, slots=True)
class Estimate:
    """A location with its confidence interval; `p` tests that it is zero, from n observations."""

    value: float
    low: float
    high: float
    p: float
    n: int

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2.0


def location(
    values: npt.ArrayLike, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Where independent, possibly heavy-tailed observations [n] lie, with an interval.

    From 10 observations on: the 20 % trimmed mean with a symmetric bootstrap-t interval
    over observations, standard error by winsorising (Wilcox, "Introduction to Robust
    Estimation and Hypothesis Testing", 4th ed. 2017, ch. 4; a plain percentile bootstrap
    covers too little from so few blocks). Trimming is the estimator's weighting, no row is
    dropped. Below 10: mean and Student's t. One observation gives an infinite interval.
    Raises UserError for none, or for one that is not finite.
    """
    x = np.sort(np.asarray(values, dtype=np.float64).ravel())  # [n]
    n = x.size
    if n == 0 or not np.isfinite(x).all():
        raise UserError("An interval needs at least one finite number; got none, NaN or infinity.")
    if n == 1:
        return Estimate(float(x[0]), -math.inf, math.inf, 1.0, 1)
    trim = TRIM if n >= BOOTSTRAP_FROM else 0.0
    middle, error = (float(v[0]) for v in _trimmed(x[None], trim))
    if error == 0.0:
        return Estimate(middle, middle, middle, 0.0 if middle else 1.0, n)
    t = abs(middle / error)
    if n < BOOTSTRAP_FROM:
        reach = float(stats.t.ppf(0.5 + confidence / 2.0, n - 1)) * error
        p = float(2.0 * stats.t.sf(t, n - 1))
    else:
        distances = _bootstrap_t(x, middle, trim, seed, resamples)  # [R]
        reach = float(np.quantile(distances, confidence, method="higher")) * error
        p = float((1 + np.count_nonzero(distances >= t)) / (1 + resamples))
    return Estimate(middle, middle - reach, middle + reach, p, n)


def _trimmed(rows: Array, trim: float) -> tuple[Array, Array]:
    """Trimmed means and their standard errors [R] of sorted rows [R, n] (Tukey & McLaughlin)."""
    n = rows.shape[1]
    cut = int(trim * n)
    kept = n - 2 * cut
    middle = rows[:, cut : n - cut].mean(axis=1)
    winsorised = np.clip(rows, rows[:, cut, None], rows[:, n - cut - 1, None])
    error = np.sqrt(winsorised.var(axis=1, ddof=1) * (n - 1) / (kept * (kept - 1)))
    return middle, error


def _bootstrap_t(x: Array, middle: float, trim: float, seed: int, resamples: int) -> Array:
    """|t| [R] of resamples of x [n] around its own trimmed mean."""
    picks = np.random.default_rng(seed).integers(0, x.size, size=(resamples, x.size))
    middles, errors = _trimmed(np.sort(x[picks], axis=1), trim)
    off = np.abs(middles - middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(off == 0.0, 0.0, off / errors)


def difference(new: npt.ArrayLike, base: npt.ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Location of `new` [n] minus that of `base` [m], two independent samples (Yuen & Welch).

    20 % trimmed means from 10 observations on, means below; Student's t with Welch's
    degrees of freedom (Yuen, Biometrika 61, 1974). For runs that were not interleaved.
    Raises UserError when either side has fewer than two observations.
    """
    sides = []
    for values in (new, base):
        x = np.sort(np.asarray(values, dtype=np.float64).ravel())
        if x.size < 2 or not np.isfinite(x).all():
            raise UserError(f"A comparison needs two or more finite samples a side; got {x.size}.")
        trim = TRIM if x.size >= BOOTSTRAP_FROM else 0.0
        middles, errors = _trimmed(x[None], trim)
        sides.append((float(middles[0]), float(errors[0]) ** 2, x.size - 2 * int(trim * x.size)))
    (a, var_a, n_a), (b, var_b, n_b) = sides
    n = min(n_a, n_b)
    error = math.sqrt(var_a + var_b)
    if error == 0.0:
        return Estimate(a - b, a - b, a - b, 0.0 if a != b else 1.0, n)
    freedom = (var_a + var_b) ** 2 / (var_a**2 / (n_a - 1) + var_b**2 / (n_b - 1))
    reach = float(stats.t.ppf(0.5 + confidence / 2.0, freedom)) * error
    p = float(2.0 * stats.t.sf(abs(a - b) / error, freedom))
    return Estimate(a - b, a - b - reach, a - b + reach, p, n)


def clustered(values: npt.ArrayLike, clusters: Sequence[object] | npt.NDArray[np.generic]) -> Array:
    """One value a cluster [clusters]: the mean of its blocks; for blocks nested in processes."""
    x = np.asarray(values, dtype=np.float64)
    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    totals = np.bincount(owner, weights=x)
    return np.asarray(totals / np.bincount(owner), dtype=np.float64)


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


def change_points(values: npt.ArrayLike, *, level: float = 0.01, seed: int = 0) -> list[int]:
    """Where a history [n] changes its level: indices at which a new stretch begins.

    A level that moves otherwise has no such points: neither a trend, a smooth drift, a season,
    a random walk nor one or two stray runs. Each of these is fitted alone and with steps
    added, and steps are reported where they belong to the best description by Schwarz's
    criterion (BIC), in which a step counts three parameters, its place two (as about in Zhang &
    Siegmund, Biometrics 63, 2007). Each step added must do so better than all but `level` of 999
    shuffled histories allow (permutation test). Stretches have at least 3 runs; runs that are
    not finite are passed over.
    """
    given = np.asarray(values, dtype=np.float64).ravel()
    where = np.flatnonzero(np.isfinite(given))
    raw = given[where]
    x = _without_strays(raw[None])[0] if raw.size >= 2 * SHORTEST else raw
    if x.size < 2 * SHORTEST or np.ptp(x) == 0.0:
        return []
    least, chosen = _autoregressive_bic(x), list[int]()
    for base, searched in _smooth_bases(x):
        for points in ([], _steps_beside(x, raw, base, level, seed)):
            extra = searched + 2 * len(points)
            margin = MARGIN * len(points)
            score = _bic(x, np.hstack([base, _step_columns(x.size, points)]), extra) + margin
            if score < least:
                least, chosen = score, points
    return [int(where[at]) for at in chosen]


def _without_strays(rows: Array) -> Array:
    """Rows [R, n] with single and paired strays set to their neighbours' median (Hampel's filter).

    Far is 4 standard deviations of a row's noise, by the median difference of neighbours. Where
    more than a tenth are far, they are no strays but what the row is like.
    """
    noise = 1.4826 / math.sqrt(2.0) * np.median(np.abs(np.diff(rows)), axis=1, keepdims=True)
    padded = np.pad(rows, ((0, 0), (2, 2)))
    padded[:, [0, -2]], padded[:, [1, -1]] = np.inf, -np.inf  # the median is of those inside
    middle = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5, axis=1), axis=2)
    far = np.abs(rows - middle) > 4.0 * noise
    return np.where(far & (far.mean(axis=1, keepdims=True) <= STRAYS), middle, rows)


def _smooth_bases(x: Array) -> list[tuple[Array, int]]:
    """Descriptions without steps, as columns [n, m], and parameters that were searched for.

    A level, a trend, bends (of third and sixth degree), the best wave about a trend, and the best
    repeated pattern; those that would describe anything, having a parameter for four runs, not.
    """
    n = x.size
    t = np.linspace(-1.0, 1.0, n)
    line = np.vander(t, 2)
    waves = []
    for cycles in np.arange(1.0, n / 3.0, 0.125):
        angle = np.pi * cycles * t
        waves.append(np.column_stack([line, np.cos(angle), np.sin(angle)]))
    patterns = [np.eye(p)[np.arange(n) % p] for p in range(2, n // 4 + 1)]
    fixed = [(np.vander(t, degree), 0) for degree in (1, 2, 4, 7)]
    best = [min(some, key=lambda base: _bic(x, base, 1)) for some in (waves, patterns) if some]
    found = fixed + [(base, 1) for base in best]
    return [(base, searched) for base, searched in found if base.shape[1] <= max(2, n // 4)]


def _bic(x: Array, columns: Array, extra: int) -> float:
    """Schwarz's criterion of `x` [n] by its least-squares fit to columns [n, m]; lower is better.

    Residuals below a millionth of the range count as none: no clock tells them apart.
    """
    n = x.size
    nothing = max((1e-6 * np.ptp(x)) ** 2, np.finfo(np.float64).tiny)
    coefficients, _, rank, _ = np.linalg.lstsq(columns, x, rcond=None)
    square = float(np.mean((x - columns @ coefficients) ** 2))
    return n * math.log(square + nothing) + (int(rank) + extra) * math.log(n)


def _autoregressive_bic(x: Array) -> float:
    """The criterion of a history that goes on from its last one, two or three runs; the least.

    With one it is a drift or a random walk, with two a wave of any length.
    """
    n = x.size
    scores = []
    for order in range(1, min(3, n // 4) + 1):
        before = np.lib.stride_tricks.sliding_window_view(x[:-1], order)  # [n - order, order]
        columns = np.column_stack([np.ones(n - order), before])
        scores.append(_bic(x[order:], columns, 0) * n / (n - order))
    return min(scores)


def _steps_beside(x: Array, raw: Array, base: Array, level: float, seed: int) -> list[int]:
    """Steps that belong beside a base [n, m], the best fitting first, while they are significant.

    Each must describe the history better by `MARGIN`, and explain a larger share of the residual
    squares than in 999 histories that have no step more: the fit so far with its own residuals
    shuffled (Freedman & Lane, 1983), strays included.
    """
    n = x.size
    rng = np.random.default_rng(seed)
    points: list[int] = []
    while True:
        places = [
            at
            for at in range(SHORTEST, n - SHORTEST + 1)
            if all(abs(at - other) >= SHORTEST for other in points)
        ]
        basis = np.linalg.qr(np.hstack([base, _step_columns(n, points)]))[0]
        steps = _step_columns(n, places)
        steps -= basis @ (basis.T @ steps)
        norms = np.sqrt((steps**2).sum(axis=0))
        steps = np.where(norms > 1e-6, steps / np.maximum(norms, 1e-6), 0.0)
        if not places or base.shape[1] + len(points) >= n // 3:
            return points
        fit = basis @ (basis.T @ x)
        shares = _shares(x[None], basis, steps)[0]
        better = -n * math.log(max(1.0 - float(shares.max()), 1e-12)) - 3.0 * math.log(n)
        if better < MARGIN:
            return points
        shuffled = fit + rng.permuted(np.tile(raw - fit, (999, 1)), axis=1)
        beaten = _shares(_without_strays(shuffled), basis, steps).max(axis=1) >= shares.max()
        if (1 + np.count_nonzero(beaten)) / 1000.0 > level:
            return points
        points = sorted([*points, places[int(shares.argmax())]])


def _shares(rows: Array, basis: Array, steps: Array) -> Array:
    """Share of the squares of rows [R, n] beside a basis [n, m] that each step [n, k] explains."""
    rest = rows - (rows @ basis) @ basis.T
    squares = (rest**2).sum(axis=1, keepdims=True)
    return np.asarray((rest @ steps) ** 2 / np.maximum(squares, 1e-300), dtype=np.float64)


def _step_columns(n: int, points: Sequence[int]) -> Array:
    """Columns [n, points]: 0 before a point, 1 from it on."""
    return (np.arange(n)[:, None] >= np.asarray(points, dtype=np.int64)[None, :]).astype(float)
