"""What each run of a matrix got done in a second, and its ratio to the first run's.

Read from the samples that the reports wrote. Runs are not interleaved with each other: a drift of
the machine between them is in the ratios.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.statistics import difference

# Reports' samples; of the tour only the single runs' throughput.
_SAMPLES = ("baseline_performance_inference", "baseline_performance_tokenizing")


def rates(base: Path, runs: Sequence[str]) -> pd.DataFrame:
    """One row a kind of work and run: throughput, its ratio to the first run's, what that says.

    The 95 % interval is Welch's or Yuen's over blocks (`statistics.difference`); NaN where a run
    has fewer than two. Work that the first run lacks has no ratio.
    """
    found = {run: _blocks(base / run / "data") for run in runs}
    rows = []
    for work in dict.fromkeys(work for blocks in found.values() for work in blocks):
        first = found[runs[0]].get(work)
        for run in runs:
            logs = found[run].get(work)
            if logs is not None:
                rows.append({"work": work, "run": run, **_against(logs, first, run == runs[0])})
    return pd.DataFrame(rows)


def _against(
    logs: Sequence[float], first: Sequence[float] | None, is_first: bool
) -> dict[str, Any]:
    rate = math.exp(float(np.median(logs)))
    row: dict[str, Any] = {"throughput_per_s": rate, "blocks": len(logs)}
    row |= dict.fromkeys(("over_first_x", "low_x", "high_x"), math.nan)
    if is_first:
        return row | {"over_first_x": 1.0, "verdict": "the first run"}
    if first is None:
        return row | {"verdict": "not in the first run"}
    if min(len(logs), len(first)) < 2:
        ratio = rate / math.exp(float(np.median(first)))
        return row | {"over_first_x": ratio, "verdict": "too few blocks"}
    found = difference(logs, first)
    ratio, low, high = (math.exp(v) for v in (found.value, found.low, found.high))
    told = "faster" if low > 1 else "slower" if high < 1 else "not told apart"
    return row | {"over_first_x": ratio, "low_x": low, "high_x": high, "verdict": told}


def _blocks(data: Path) -> Mapping[str, Sequence[float]]:
    """Logarithms of the throughput of every block, by work: `inference, batch 8, tokens/s`."""
    found: dict[str, list[float]] = {}
    for name in _SAMPLES:
        path = data / f"{name}_samples.csv"
        if not path.is_file():
            continue
        samples = pd.read_csv(path)
        samples = samples[~samples["is_warmup"].astype(bool)]
        unit = "tokens" if samples["tokens"].sum() > 0 else "items"
        groups = samples.groupby(["part", "batch_size", "implementation", "process", "block"])
        sums = groups[[unit, "wall_ms"]].sum().reset_index()
        for row in sums.to_dict("records"):
            if row[unit] > 0 and row["wall_ms"] > 0:
                who = row["implementation"]
                work = f"{row['part']}, batch {row['batch_size']}, {who}, {unit}/s"
                found.setdefault(work, []).append(math.log(1e3 * row[unit] / row["wall_ms"]))
    tour = data / "tour_timings.csv"
    if tour.is_file():
        for row in pd.read_csv(tour).to_dict("records"):
            rate = row["throughput_tokens_per_s"]
            if rate > 0:
                found[f"tour, batch {row['batch_size']}, tokens/s"] = [math.log(rate)]
    return found
