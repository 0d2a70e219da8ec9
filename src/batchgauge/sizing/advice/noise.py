"""What runs differ by: the prompts that they got, which is taken out, and chance."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy

from batchgauge.sizing.advice.observe import LEAST_SD, Observation, blocks_of, ratio_error
from batchgauge.sizing.advice.records import Run

Array = npt.NDArray[np.float64]

_PRIOR_DEGREES = 6.0  # weight of the runs' pooled noise beside a run's own
_FAR_LARGER = 6.0
_BY_CHANCE = 0.99  # of the chi-squared law: runs that differ by more have more noise than they show
_LEAST_SHARE = 0.1  # of a run's seconds that usual batches take, whatever the slopes say


def variances(rows: Sequence[Observation]) -> Array:
    """Variances of the runs' logarithms [m], each drawn towards their median.

    One that is far larger is believed: noise may grow with the setting. At the edge of a cliff
    whole runs fall to one side or the other: where the runs of a setting differ by more than their
    own noise explains, the rest is that setting's.
    """
    settings, values = np.array([(o.setting, o.value) for o in rows]).T
    own = np.array([o.value_sd**2 for o in rows])
    degrees = np.array([float(o.degrees) for o in rows])
    typical = float(np.median(own))
    drawn = (degrees * own + _PRIOR_DEGREES * typical) / (degrees + _PRIOR_DEGREES)
    found = np.where(own > _FAR_LARGER * typical, own, drawn)
    for setting in np.unique(settings):
        here = settings == setting
        degree, mean = int(here.sum()) - 1, float(found[here].mean())
        between = float(values[here].var(ddof=1)) if degree else 0.0
        if degree and degree * between > scipy.special.chdtri(degree, 1.0 - _BY_CHANCE) * mean:
            found[here] += between - mean
    return found


def less_mix(rows: Sequence[Observation], workload: Array, *, tokens: bool) -> list[Observation]:
    """Runs as if each had had the workload's mix of prompts, with the noise left.

    Runs, and parts of them, differ by the lengths of the prompts that they got. Seconds grow with
    the letters of prompts and, by attention, with their squares; of a batch also with those of
    its longest prompt, of a closed loop with how many at once take them in: four slopes for all
    runs, none negative, from what parts differ by within each run (control variates: Law & Kelton,
    "Simulation Modeling and Analysis", ch. 11). What the slopes are uncertain by is part of a
    run's error. `workload` has the letters of all prompts [prompts]; without them, and for
    arrivals at a rate, the runs come back as they are.
    """
    if not rows or not len(workload) or any(row.run.kind == "open" for row in rows):
        return list(rows)
    seen = [blocks_of(row.run, tokens=tokens) for row in rows]
    shares, scale, covariance = _explained(rows, seen)
    slopes = shares / scale
    each = 1.0
    if tokens:
        each = float(np.mean([a.tokens or 0 for row in rows for a in row.run.asked if a.is_ok]))
    return [
        _of_usual_prompts(row, part, _usual(row.run, workload), each, slopes, covariance)
        for row, part in zip(rows, seen, strict=True)
    ]


def is_padded(rows: Sequence[Observation]) -> bool:
    """Whether what batches differ by is how long their longest prompt is, more than all prompts."""
    several = [row for row in rows if row.run.kind == "batch" and row.setting > 1]
    if not several:
        return False
    seen = [blocks_of(row.run, tokens=False) for row in several]
    letters, longest, squares, longest_squares = _explained(several, seen)[0]
    return bool(longest + longest_squares > letters + squares)


def _explained(rows: Sequence[Observation], seen: Sequence[Array]) -> tuple[Array, Array, Array]:
    """What seconds differ by within each run, in shares of the mean of its parts.

    How much the four kinds of letters explain [4], what one letter of each is on that scale [4],
    so that the first over the second are slopes, and the slopes' covariance [4, 4].
    """
    apart = [_apart(row.run, part) / part[1].mean() for row, part in zip(rows, seen, strict=True)]
    seconds, *mixes = np.concatenate(apart, axis=1)
    design = np.array(mixes).T  # [parts, 4]
    scale = np.maximum(np.linalg.norm(design, axis=0), 1e-9)
    shares, left = scipy.optimize.nnls(design / scale, seconds)
    used = design / scale * (shares > 0)
    degrees = max(1, seconds.size - len(seen) - int((shares > 0).sum()))
    covariance = left**2 / degrees * np.linalg.pinv(used.T @ used) / np.outer(scale, scale)
    return shares, scale, covariance


def _apart(run: Run, seen: Array) -> Array:
    """How parts differ in seconds and letters from what their amount would explain [5, parts].

    Batches have as many requests each; parts of a closed loop do more or less of them.
    """
    base = np.ones(seen.shape[1]) if run.kind == "batch" else seen[0]
    return seen[1:] - np.outer(seen[1:] @ base / (base @ base), base)


def _usual(run: Run, workload: Array) -> Array:
    """The four kinds of letters that a request of the workload has on average in such a run [4]."""
    size = int(run.setting)
    if run.kind == "batch":
        longest = functools.partial(_expected_largest, size)
        return np.array([f(x) for x in (workload, workload**2) for f in (np.mean, longest)])
    return np.array([np.mean(x) / by for x in (workload, workload**2) for by in (1, size)])


def _of_usual_prompts(
    row: Observation, seen: Array, usual: Array, each: float, slopes: Array, covariance: Array
) -> Observation:
    """One run, had its prompts been as `usual` [4]: slopes [4] and their covariance [4, 4].

    `each` is the amount of a request.
    """
    amount, seconds, mix = seen[0], seen[1], seen[2:]  # [parts], and [4, parts]
    means, is_batch = mix.mean(axis=1), row.run.kind == "batch"
    requests = row.setting if is_batch else amount.mean() / each
    missed = requests * usual - means
    expected = max(float(seconds.mean() + slopes @ missed), _LEAST_SHARE * seconds.mean())
    shift = math.log(seconds.mean() / expected)
    # What a part's own letters made longer; of batches, beside the mean, as their amount is alike.
    alike = seconds - slopes @ (mix - means[:, None] * is_batch)  # [parts]
    error = math.hypot(
        ratio_error(amount, alike) * alike.mean(), math.sqrt(missed @ covariance @ missed)
    )
    before = ratio_error(amount, seconds)
    more = max(LEAST_SD, error / expected) ** 2 - max(LEAST_SD, before) ** 2
    return replace(
        row, value=row.value + shift, rate=row.rate + shift,
        value_sd=math.sqrt(max(LEAST_SD**2, row.value_sd**2 + more)),
    )  # fmt: skip


def _expected_largest(size: int, workload: Array) -> float:
    """Mean of the largest of `size` values that are drawn from the workload [prompts].

    That it is the k-th of n, or a smaller one, has the probability C(k, size) / C(n, size).
    """
    values = np.sort(workload)
    rank = np.arange(min(size, values.size), values.size + 1.0)  # of the largest, from 1
    logs = scipy.special.gammaln(rank + 1.0) - scipy.special.gammaln(rank - rank[0] + 1.0)
    return float(values[int(rank[0]) - 1 :] @ np.diff(np.exp(logs - logs[-1]), prepend=0.0))
