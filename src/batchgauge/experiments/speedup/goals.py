"""The project's goals for a fast core, each measured in this run, each with interval and verdict.

One that was not reached says what was tried. Goals beside peers are notebook 06's, S(b) of
whole requests and of tokenizing notebook 01's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from batchgauge.experiments.speedup.ladder import CUMULATIVE
from batchgauge.reporting import Score

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One row: what was aimed at, what came out; `value` is NaN when it was not measured."""

    part: str
    goal: str
    target: float
    better: Better
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    unit: str = "×"
    note: str = ""
    weights: str = ""  # how the model's are kept; empty where there is none
    threads: int = 1

    @property
    def verdict(self) -> str:
        """met, missed, open (the interval holds the target) or not measured."""
        if math.isnan(self.value):
            return "not measured"
        low, high = (None, None) if math.isnan(self.low) else (self.low, self.high)
        return Score("", "", self.target, self.value, low, high, better=self.better).verdict


def as_frame(goals: Iterable[Goal], *, comparable: bool = True) -> pd.DataFrame:
    """Goals as a table, one row each; `comparable` where they were set for this model."""
    every = list(goals)
    frame = pd.DataFrame([asdict(goal) for goal in every])
    verdicts = [goal.verdict if comparable else "not comparable" for goal in every]
    frame.insert(list(frame.columns).index("note"), "verdict", verdicts)
    return frame


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The goals as they are shown: the target with its direction and unit in one column."""
    signs = table["better"].map({"higher": "≥", "lower": "≤"})
    words = [
        f"{sign} {target:g} {unit}".strip()
        for sign, target, unit in zip(signs, table["target"], table["unit"], strict=True)
    ]
    return table.assign(target=words).drop(columns=["better"])


def with_tried(table: pd.DataFrame, ladders: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The goals with a column `tried`: the rungs of the part's ladder, where a goal was not met.

    `ladders` are those of `ladder.climb` by part; the figures are gains over the rung before.
    """

    def tried(part: str) -> str:
        if part not in ladders:
            return ""
        rungs = ladders[part]
        rungs = rungs[(rungs["form"] == CUMULATIVE) & (rungs["status"] == "ok")]
        gains = zip(rungs["rung"], rungs["step_x"], strict=True)
        return "; ".join(f"{name} {gain:.2f} ×" for name, gain in gains)

    reached = table["verdict"].isin(["met", "not measured", "not comparable"])
    words = ["" if met else tried(part) for met, part in zip(reached, table["part"], strict=True)]
    return table.assign(tried=words)


def summary(table: pd.DataFrame) -> str:
    """How many goals were met, open, missed, and which were missed."""
    missed = table[table["verdict"] == "missed"]["goal"]
    return counts(table) + (f" Missed: {'; '.join(missed)}." if len(missed) else "")


def counts(table: pd.DataFrame) -> str:
    """How many goals were met, open, missed."""
    found = table["verdict"].value_counts()
    words = {"met": "met", "open": "undecided", "missed": "not met"}
    words |= {v: v for v in ("not comparable", "not measured")}
    text = ", ".join(f"{found[v]} {said}" for v, said in words.items() if v in found)
    return f"Of {len(table)} goals: {text}."
