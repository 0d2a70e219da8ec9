"""The gate's error rates: how often it fails unchanged code, and finds an injected slow-down.

Simulated comparisons redraw the noise that real A/A process rounds showed here (their log
ratios, centred), add a known slow-down, and go through the gate's own decision, early
ends and second round included. Rates carry exact binomial intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.measuring.gate.process import GatePlan
from batchgauge.measuring.gate.rounds import Evidence, decide, is_clear, looks_slower
from batchgauge.statistics import proportion

SLOWDOWNS = (0.0, 0.03, 0.05, 0.10, 0.20)

Logs = npt.NDArray[np.float64]


def simulate(
    noise: npt.ArrayLike,
    *,
    processes: int = 64,
    thresholds: Sequence[float] = (0.02, 0.05),
    slowdowns: Sequence[float] = SLOWDOWNS,
    trials: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """False-alarm and detection rates of the whole gate under this noise.

    `noise` are log ratios of A/A process rounds [rounds], of any number of benchmarks. One
    row a threshold and slow-down: threshold, slowdown, kind, trials, found, rate, low, high,
    processes (mean number of process rounds, both rounds together).
    Raises UserError for fewer than 4 values.
    """
    seen = np.asarray(noise, dtype=np.float64)
    if seen.size < 4:
        raise UserError(f"A simulation needs the noise of 4 or more rounds; got {seen.size}.")
    centred = seen - np.median(seen)
    plan = GatePlan([], Path(), {}, processes=processes)
    rows = []
    for slowdown in slowdowns:
        rng = np.random.default_rng((seed, round(slowdown * 1000)))
        found, used = dict.fromkeys(thresholds, 0), dict.fromkeys(thresholds, 0)
        for _ in range(trials):
            rounds = [_draw(centred, np.log1p(slowdown), plan, rng) for _ in range(2)]
            for threshold in thresholds:
                fails, needed = _run(rounds, threshold)
                found[threshold] += fails
                used[threshold] += needed
        rows += [
            _row(threshold, slowdown, hits, trials) | {"processes": used[threshold] / trials}
            for threshold, hits in found.items()
        ]
    return pd.DataFrame(rows)


def _run(rounds: Sequence[Sequence[Evidence]], threshold: float) -> tuple[bool, int]:
    """One gate run on two rounds, each as seen at every look: does it fail, after how much.

    The second round counts only where the first asks for it.
    """
    seen = [next((e for e in looks if is_clear(e, threshold)), looks[-1]) for looks in rounds]
    if not looks_slower(seen[0], threshold):
        return False, seen[0].ratios.size
    fails = decide("simulated", seen, threshold).status == "regression"
    return fails, sum(e.ratios.size for e in seen)


def _draw(noise: Logs, shift: float, plan: GatePlan, rng: np.random.Generator) -> list[Evidence]:
    """One round of the most process rounds, as it stands at each look."""
    shape = (2, plan.processes)
    ratios, aa_ratios = rng.choice(noise, shape) * rng.choice([-1.0, 1.0], shape)
    ends = [n for n in range(2, plan.processes) if plan.is_look(n)] + [plan.processes]
    return [Evidence(ratios[:n] + shift, aa_ratios[:n], ({}, {})) for n in ends]


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
