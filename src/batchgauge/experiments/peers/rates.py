"""Rates of ours and of each peer on one piece of work, with 95 % intervals, as rows of a table.

Where no peer is installed ours is measured alone, so that the page still has its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.measuring import (
    Amount,
    Comparison,
    Conditions,
    Design,
    Labels,
    Stopping,
    compare_interleaved,
    location,
    measure,
)
from batchgauge.registry import weights_of

OURS = "numpy"
RATIOS = ("ours_over_theirs_x", "ratio_low_x", "ratio_high_x", "ours_is")


@dataclass(frozen=True, slots=True)
class How:
    """How calls are measured, and what their samples say; see `measuring`."""

    labels: Labels
    amount: Amount
    stopping: Stopping
    conditions: Conditions
    aa: bool = True


def measured(
    calls: Mapping[str, Callable[[], object]],
    amounts: Mapping[str, float],
    place: Mapping[str, Any],
    how: How,
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Rows and samples of all `calls`, interleaved.

    `amounts` is what one call does, `place` the columns that name the work.
    """
    if len(calls) > 1:
        found = compare_interleaved(
            calls, how.labels, how.amount, design=Design(OURS, aa=how.aa), stopping=how.stopping,
            conditions=how.conditions, progress=False,
        )  # fmt: skip
        frame = found.frame()
        kept = frame["implementation"].map(weights_of).mask(frame["part"] == "tokenize", "")
        return rates(found, amounts, place), frame.assign(weights=kept)
    ((name, call),) = calls.items()
    alone = measure(
        call, replace(how.labels, implementation=name), how.amount,
        stopping=Stopping(how.stopping.budget_s, least=5, most=1000), conditions=how.conditions,
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
