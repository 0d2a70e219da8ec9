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

from batchgauge.reporting.tables import number
from batchgauge.statistics import difference, units_of
from batchgauge.text import counted

# Reports' samples; of the tour only the single runs' throughput.
_SAMPLES = ("baseline_performance_inference", "baseline_performance_tokenizing")


def rates(base: Path, runs: Sequence[str]) -> pd.DataFrame:
    """One row a kind of work and run: throughput, its ratio to the first run's, what that says.

    The 95 % interval is Welch's or Yuen's over processes (`statistics.difference`), over blocks
    where a run has a single process (`units`); NaN where it has fewer than two of them. Work that
    the first run lacks has no ratio.
    """
    found = {run: _units(base / run / "data") for run in runs}
    rows = []
    for work in dict.fromkeys(work for units in found.values() for work in units):
        first = found[runs[0]].get(work)
        for run in runs:
            logs = found[run].get(work)
            if logs is not None:
                rows.append({"work": work, "run": run, **_against(logs, first, run == runs[0])})
    return pd.DataFrame(rows)


def answer(table: pd.DataFrame) -> str:
    """Which runs are faster or slower than the first, and by how much at most; empty for none."""
    if table.empty:
        return ""
    said, first = [], table["run"].iloc[0]
    for run, rows in table.groupby("run", sort=False):
        if run == first:
            continue
        counts = rows["verdict"].value_counts()
        told = rows[rows["verdict"].isin(["faster", "slower"])]
        text = (
            f"{run} is faster than {first} in {counts.get('faster', 0)} and slower in "
            f"{counts.get('slower', 0)} of {counted(len(rows), 'kind')} of work"
        )
        if len(told):
            most = max(told.to_dict("records"), key=lambda row: abs(math.log(row["over_first_x"])))
            text += (
                f", most in {most['work']}: {number(most['over_first_x'])} × "
                f"[{number(most['low_x'])}, {number(most['high_x'])}]"
            )
        said.append(text)
    return f"{'; '.join(said)}." if said else ""


def _against(
    logs: Sequence[float], first: Sequence[float] | None, is_first: bool
) -> dict[str, Any]:
    rate = math.exp(float(np.median(logs)))
    row: dict[str, Any] = {"throughput_per_s": rate, "observations": len(logs)}
    row |= dict.fromkeys(("over_first_x", "low_x", "high_x"), math.nan)
    if is_first:
        return row | {"over_first_x": 1.0, "verdict": "the first run"}
    if first is None:
        return row | {"verdict": "not in the first run"}
    if min(len(logs), len(first)) < 2:
        ratio = rate / math.exp(float(np.median(first)))
        return row | {"over_first_x": ratio, "verdict": "too few observations"}
    found = difference(logs, first)
    ratio, low, high = (math.exp(v) for v in (found.value, found.low, found.high))
    told = "faster" if low > 1 else "slower" if high < 1 else "not told apart"
    return row | {"over_first_x": ratio, "low_x": low, "high_x": high, "verdict": told}


def _units(data: Path) -> Mapping[str, Sequence[float]]:
    """Logarithms of the throughput of every unit, by work: `inference, batch 8, tokens/s`.

    A unit is a process, by the location of its blocks; a block where there is one process.
    """
    found: dict[str, Sequence[float]] = {}
    for name in _SAMPLES:
        path = data / f"{name}_samples.csv"
        if not path.is_file():
            continue
        samples = pd.read_csv(path)
        samples = samples[~samples["is_warmup"].astype(bool)]
        unit = "tokens" if samples["tokens"].sum() > 0 else "items"
        keys = ["part", "batch_size", "implementation"]
        sums = samples.groupby([*keys, "process", "block"])[[unit, "wall_ms"]].sum()
        sums = sums[(sums > 0).all(axis=1)]
        logs = pd.Series(np.log(1e3 * sums[unit] / sums["wall_ms"]), index=sums.index)
        for (part, size, who), blocks in logs.groupby(keys):
            found[f"{part}, batch {size}, {who}, {unit}/s"] = units_of(
                blocks, blocks.index.get_level_values("process")
            )
    tour = data / "tour_timings.csv"
    if tour.is_file():
        for row in pd.read_csv(tour).to_dict("records"):
            rate = row["throughput_tokens_per_s"]
            if rate > 0:
                found[f"tour, batch {row['batch_size']}, tokens/s"] = [math.log(rate)]
    return found
