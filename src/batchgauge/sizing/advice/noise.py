"""What runs differ by: the prompts that they got, which is taken out, and chance."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy

from batchgauge.sizing.advice.observe import LEAST_SD, Observation, batches

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
    """Runs of batches as if each had had the workload's mix of prompts, with the noise left.

    Batches and runs differ by the lengths of the prompts that they got. A batch's seconds grow
    with its letters and, by attention, with their squares; on an engine that pads, with those of
    its longest prompt times its size: four slopes for all runs, none negative, from what batches
    differ by within each run (control variates: Law & Kelton, "Simulation Modeling and Analysis",
    ch. 11). What the slopes are uncertain by is part of a run's error. `workload` has the letters
    of all prompts [prompts]; without them, and for other runs, the runs come back as they are.
    """
    if not rows or not len(workload) or any(row.run.kind != "batch" for row in rows):
        return list(rows)
    seen = [_batches(row, tokens=tokens) for row in rows]
    shares, scale, covariance = _explained(seen)
    return [
        _of_usual_batches(row, part, workload, shares / scale, covariance)
        for row, part in zip(rows, seen, strict=True)
    ]


def is_padded(rows: Sequence[Observation]) -> bool:
    """Whether what batches differ by is how long their longest prompt is, more than all prompts."""
    seen = [
        _batches(row, tokens=False) for row in rows if row.run.kind == "batch" and row.setting > 1
    ]
    if not seen:
        return False
    letters, longest, squares, longest_squares = _explained(seen)[0]
    return bool(longest + longest_squares > letters + squares)


def _batches(row: Observation, *, tokens: bool) -> Array:
    return batches([a for a in row.run.asked if a.is_ok], tokens=tokens)


def _explained(seen: Sequence[Array]) -> tuple[Array, Array, Array]:
    """What batches' seconds differ by within each run, in shares of the run's mean.

    How much the four kinds of letters explain [4], what one letter of each is on that scale [4],
    so that the first over the second are slopes, and the slopes' covariance [4, 4].
    """
    apart = [(part[1:] - part[1:].mean(axis=1, keepdims=True)) / part[1].mean() for part in seen]
    seconds, *mixes = np.concatenate(apart, axis=1)
    design = np.array(mixes).T  # [batches, 4]
    scale = np.maximum(np.linalg.norm(design, axis=0), 1e-9)
    shares, left = scipy.optimize.nnls(design / scale, seconds)
    used = design / scale * (shares > 0)
    degrees = max(1, seconds.size - len(seen) - int((shares > 0).sum()))
    covariance = left**2 / degrees * np.linalg.pinv(used.T @ used) / np.outer(scale, scale)
    return shares, scale, covariance


def _of_usual_batches(
    row: Observation, seen: Array, workload: Array, slopes: Array, covariance: Array
) -> Observation:
    """One run, had its batches been the workload's: slopes [4] and their covariance [4, 4]."""
    amount, seconds, mix = seen[0], seen[1], seen[2:]  # [batches], and [4, batches]
    size, means = int(row.setting), mix.mean(axis=1)
    longest = functools.partial(_expected_largest, size)
    usual = [f(x) for x in (workload, workload**2) for f in (np.mean, longest)]
    missed = size * np.array(usual) - means
    expected = max(float(seconds.mean() + slopes @ missed), _LEAST_SHARE * seconds.mean())
    shift = math.log(seconds.mean() / expected)
    alike = seconds - slopes @ (mix - means[:, None])  # [batches], with the run's own mean letters
    apart = alike - alike.mean() * amount / amount.mean()  # of a ratio
    error = math.sqrt(
        apart @ apart / max(1, apart.size - 1) / apart.size + missed @ covariance @ missed
    )
    rates = amount / seconds
    before = float(rates.std(ddof=1) / rates.mean()) / math.sqrt(rates.size)
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
