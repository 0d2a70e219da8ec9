"""What runs differ by: the prompts that they got, which is taken out, and chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy

from batchgauge.sizing.advice.observe import LEAST_SD, Observation, batches

_PRIOR_DEGREES = 6.0  # weight of the runs' pooled noise beside a run's own
_FAR_LARGER = 6.0
_BY_CHANCE = 0.99  # of the chi-squared law: runs that differ by more have more noise than they show


def variances(rows: Sequence[Observation]) -> npt.NDArray[np.float64]:
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


def less_mix(rows: Sequence[Observation], *, tokens: bool) -> list[Observation]:
    """Runs of batches as if all had had the same mix of prompts, with the noise that is left.

    Batches and runs differ by the lengths of the prompts that they got. What these explain is
    one slope for all runs, between the batches of each, of the log rate over the log of letters
    by amount: a control variate (Law & Kelton, "Simulation Modeling and Analysis", ch. 11).
    Other runs come back as they are.
    """
    if not rows or any(row.run.kind != "batch" for row in rows):
        return list(rows)
    seen = [batches([a for a in r.run.asked if a.is_ok], tokens=tokens) for r in rows]
    mixes, logs = [], []
    for amount, seconds, letters in seen:
        some = amount > 0
        mix = np.log((letters[some] + 1.0) / amount[some])
        log = np.log(amount[some] / seconds[some])
        mixes.append(mix - mix.mean())
        logs.append(log - log.mean())
    x, y = np.concatenate(mixes), np.concatenate(logs)
    if not float(x @ x):
        return list(rows)
    slope, found = float(x @ y / (x @ x)), list[Observation]()
    amounts, _, letters = np.concatenate(seen, axis=1).sum(axis=1)
    usual = math.log((letters + 1.0) / amounts)
    for row, (amount, seconds, letters), mix, log in zip(rows, seen, mixes, logs, strict=True):
        rates = amount / seconds
        whole = float(rates.std(ddof=1) / rates.mean())
        left = float(np.linalg.norm(log - slope * mix)) / math.sqrt(max(1, log.size - 1))
        less = (whole**2 - min(whole, left) ** 2) / log.size
        shift = slope * (usual - math.log((letters.sum() + 1.0) / amount.sum()))
        found.append(
            replace(
                row, value=row.value + shift, rate=row.rate * math.exp(shift),
                value_sd=math.sqrt(max(LEAST_SD**2, row.value_sd**2 - less)),
            )
        )  # fmt: skip
    return found
