"""The gate's own test: how often it cries wolf, and how often it finds an injected slow-down.

Simulated comparisons redraw the noise that real A/A process rounds showed here (their log
ratios, centred), add a known slow-down, and go through the gate's own decision, second
round included. Rates carry exact binomial intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.measuring.gate import Evidence, decide, looks_slower
from batchgauge.measuring.statistics import proportion

SLOWDOWNS = (0.0, 0.03, 0.05, 0.10, 0.20)

Logs = npt.NDArray[np.float64]


def simulate(
    noise: npt.ArrayLike,
    *,
    processes: int = 16,
    thresholds: Sequence[float] = (0.02, 0.05),
    slowdowns: Sequence[float] = SLOWDOWNS,
    trials: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """False-alarm and detection rates of the whole gate under this noise.

    `noise` are log ratios of A/A process rounds [rounds], of any number of benchmarks. One
    row a threshold and slow-down: threshold, slowdown, kind, trials, found, rate, low, high.
    Raises UserError for fewer than 4 values.
    """
    seen = np.asarray(noise, dtype=np.float64)
    if seen.size < 4:
        raise UserError(f"A simulation needs the noise of 4 or more rounds; got {seen.size}.")
    centred = seen - np.median(seen)
    rows = []
    for slowdown in slowdowns:
        rng = np.random.default_rng((seed, round(slowdown * 1000)))
        found = dict.fromkeys(thresholds, 0)
        for _ in range(trials):
            rounds = [_draw(centred, np.log1p(slowdown), processes, rng) for _ in range(2)]
            for threshold in thresholds:
                found[threshold] += _fails(rounds, threshold)
        rows += [_row(threshold, slowdown, hits, trials) for threshold, hits in found.items()]
    return pd.DataFrame(rows)


def _fails(rounds: Sequence[Evidence], threshold: float) -> bool:
    """One gate run on these rounds; the second counts only where the first asks for it."""
    if not looks_slower(rounds[0], threshold):
        return False
    return decide("simulated", rounds, threshold).status == "regression"


def _draw(noise: Logs, shift: float, processes: int, rng: np.random.Generator) -> Evidence:
    ratios, twins = rng.choice(noise, (2, processes)) * rng.choice([-1.0, 1.0], (2, processes))
    return Evidence(ratios + shift, twins, ({}, {}))


def _row(threshold: float, slowdown: float, found: int, trials: int) -> dict[str, object]:
    rate = proportion(found, trials)
    return {
        "threshold": threshold,
        "slowdown": slowdown,
        "kind": "detection" if slowdown else "false alarm",
        "trials": trials,
        "found": found,
        "rate": rate.value,
        "low": rate.low,
        "high": rate.high,
    }
