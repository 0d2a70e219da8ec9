"""Two runs of the study side by side: do their scorecards agree?

Agreement is that no verdict goes from met to missed or back, and that nine in ten intervals of
one run hold the other's value. Runs on different machines are compared too; it is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from batchgauge.errors import UserError
from batchgauge.reporting.score import Score, scores_of
from batchgauge.statistics import proportion
from batchgauge.text import percent

WANTED = 0.9  # of intervals that hold the other run's value


def two_runs(one: Path, other: Path) -> pd.DataFrame:
    """The scores that both runs have, one row each: values, intervals, verdicts, agreement.

    `flips` is a verdict that goes from met to missed or back; `held` counts how many of the
    two intervals hold the other's value, `of` how many there are. A report that both have from
    one run, since neither ran its notebook, agrees with itself and is left out. Raises UserError
    for a folder without a study, and for two studies that share no score; one whose unit has
    changed is not shared.
    """
    known = _facts(other)
    left, right = _scores([facts for facts in _facts(one) if facts not in known]), _scores(known)
    rows = []
    for key in (k for k in left if k in right and left[k].unit == right[k].unit):
        a, b = left[key], right[key]
        both = [(x, y.value) for x, y in ((a, b), (b, a)) if x.low is not None]
        holds = [_number(x.low) <= value <= _number(x.high) for x, value in both]
        rows.append(
            {
                "key": key, "label": a.label, "goal": a.goal, "unit": a.unit,
                "value": a.value, "low": _number(a.low), "high": _number(a.high),
                "other_value": b.value, "other_low": _number(b.low), "other_high": _number(b.high),
                "verdict": a.verdict, "other_verdict": b.verdict,
                "flips": {a.verdict, b.verdict} == {"met", "missed"},
                "held": sum(holds), "of": len(holds),
            }
        )  # fmt: skip
    if not rows:
        raise UserError(f"The studies under '{one}' and '{other}' share no score to compare.")
    return pd.DataFrame(rows)


def sentence(table: pd.DataFrame) -> str:
    """How many verdicts flip, which, and what share of intervals hold the other's value."""
    flips = table.loc[table["flips"], "label"].tolist()
    held, of = int(table["held"].sum()), int(table["of"].sum())
    text = f"Of {len(table)} scores {len(flips)} go from met to not met or back"
    text += f" ({'; '.join(flips)})" if flips else ""
    if not of:
        return f"{text}. None has an interval."
    share = proportion(held, of)
    return (
        f"{text}. {held} of {of} intervals hold the other run's value: {percent(share.value)} "
        f"[{percent(share.low)}, {percent(share.high)}], wanted are {percent(WANTED)}."
    )


def machines(one: Path, other: Path) -> str:
    """A sentence where the runs were made on different machines; empty where on the same."""
    here, there = ({str(facts.get("machine", "")) for facts in _facts(out)} for out in (one, other))
    if here == there:
        return ""
    both = " and ".join("; ".join(sorted(names)) for names in (here, there))
    return f" They ran on different machines: {both}."


def agree(table: pd.DataFrame) -> bool:
    """No verdict flips, and as many intervals hold the other's value as are wanted."""
    held, of = table["held"].sum(), table["of"].sum()
    return not table["flips"].any() and bool(of == 0 or held >= WANTED * of)


def _facts(out: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((out / "data").glob("*_facts.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            scores_of(facts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"'{path}' holds no facts of a report: {error}.") from None
        found.append(facts)
    if not found:
        raise UserError(f"There is no study under '{out}'; expected data/*_facts.json.")
    return found


def _scores(reports: Sequence[dict[str, Any]]) -> dict[str, Score]:
    found: dict[str, Score] = {}
    for facts in reports:
        for score in scores_of(facts):
            found.setdefault(score.key, score)
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value
