"""Rates of ours and of each peer on one piece of work, with 95 % intervals, as rows of a table.

Where no peer is installed ours is measured alone, so that the page still has its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.measuring import Comparison, compare_interleaved, location, measure

OURS = "numpy"
RATIOS = ("ours_over_theirs_x", "ratio_low_x", "ratio_high_x", "ours_is")


def measured(
    calls: Mapping[str, Callable[[], object]],
    amounts: Mapping[str, float],
    place: Mapping[str, Any],
    **options: Any,
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Rows and samples of all `calls`, interleaved; `options` are those of `compare_interleaved`.

    `amounts` is what one call does, `place` the columns that name the work.
    """
    if len(calls) > 1:
        found = compare_interleaved(calls, baseline=OURS, progress=False, **options)
        return rates(found, amounts, place), found.frame()
    ((name, call),) = calls.items()
    alone = measure(
        call, name=options["benchmark"], implementation=name, part=options["part"],
        batch_size=options["batch_size"], parameters=options["parameters"],
        budget_s=options["budget_s"], min_samples=5, threads=options["threads"],
        seed=options["seed"],
    )  # fmt: skip
    time = location(np.log(alone.steady_ms / 1e3))
    row = {
        **place,
        "implementation": name,
        "value": amounts[name] / math.exp(time.value),
        "low": amounts[name] / math.exp(time.high),
        "high": amounts[name] / math.exp(time.low),
        "blocks": alone.steady_ms.size,
    }
    return [row], alone.to_frame()


def rate_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a frame that has the columns of ratios, empty where there was nobody beside us."""
    table = pd.DataFrame(list(rows))
    for column in RATIOS:
        if column not in table:
            table[column] = "" if column == "ours_is" else math.nan
    return table


def rates(
    comparison: Comparison, amounts: Mapping[str, float], place: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One row a candidate: its rate (amount a second), and our rate ÷ its, with 95 % intervals."""
    rows = []
    theirs = {ratio.name: ratio for ratio in comparison.ratio_list()}
    for name in comparison.names:
        time = location(comparison.logs[name])
        row = {
            **place,
            "implementation": name,
            "value": amounts[name] / math.exp(time.value),
            "low": amounts[name] / math.exp(time.high),
            "high": amounts[name] / math.exp(time.low),
        }
        if name in theirs:
            ratio = theirs[name]
            row |= {
                "ours_over_theirs_x": 1.0 / ratio.value,
                "ratio_low_x": 1.0 / ratio.high,
                "ratio_high_x": 1.0 / ratio.low,
                "ours_is": verdict(1.0 / ratio.high, 1.0 / ratio.low),
            }
        rows.append({**row, "blocks": comparison.blocks})
    return rows


def verdict(low: float, high: float) -> str:
    """What the 95 % interval of our throughput over theirs says."""
    return "faster" if low > 1.0 else "slower" if high < 1.0 else "not told apart"
