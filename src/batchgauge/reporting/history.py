"""Scores of earlier runs beside those of this one: what changed, and how far runs differ.

`data/history.csv` has one row a score and run of a report; runs of another machine, model or
profile are kept, and not compared with.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.files import write_csv
from batchgauge.reporting.model import short
from batchgauge.text import visible

COLUMNS = (
    *("report", "finished", "key", "label", "value", "low", "high", "unit", "goal", "verdict"),
    *("profile", "model", "machine", "git_commit"),
)
_TEXTS = ("report", "finished", "key", "label", "unit", "verdict", "profile", "model", "machine")
_MOST = 40  # runs of a report that are kept


@dataclass(frozen=True, slots=True)
class Past:
    """One score over the runs that compare with the last one, oldest first."""

    label: str
    unit: str
    points: Sequence[float]
    verdicts: Sequence[str]

    @property
    def has_changed(self) -> bool:
        """Whether the last verdict is another than the one before."""
        return len(self.verdicts) > 1 and self.verdicts[-1] != self.verdicts[-2]

    def sparkline(self, width: int = 84, height: int = 18) -> str:
        """The points of a line through the values, for an SVG of that size; pixels."""
        low, high = min(self.points), max(self.points)
        room, step = (high - low) or 1.0, (width - 6) / max(len(self.points) - 1, 1)
        return " ".join(
            f"{3 + step * i:.1f},{height - 3 - (height - 6) * (v - low) / room:.1f}"
            for i, v in enumerate(self.points)
        )


def remember(out: Path, reports: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Add the scores of `reports` to `data/history.csv` under `out`, each run once; all rows.

    A file there that is no history of this form is kept beside it, and said.
    """
    path = out / "data" / "history.csv"
    known = _known(path)
    seen = set(zip(known["report"], known["finished"], strict=True))
    rows = [
        {
            "report": facts["report"], "finished": facts["finished"],
            **{name: score.get(name) for name in COLUMNS[2:10]},
            "profile": facts["profile"], "model": short(facts), "machine": facts["machine"],
            "git_commit": facts["git_commit"],
        }
        for facts in reports
        if (facts["report"], facts["finished"]) not in seen
        for score in facts["scores"]
    ]  # fmt: skip
    if not rows:
        return known
    new = pd.DataFrame(rows, columns=list(COLUMNS))
    every = pd.concat([known, new], ignore_index=True) if len(known) else new
    every = every.groupby(["report", "key"], sort=False).tail(_MOST)
    write_csv(every, path)
    return every


def _known(path: Path) -> pd.DataFrame:
    """The rows of a history; none where there is no file, or another one, which is moved away."""
    try:
        found = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str))
    except FileNotFoundError:
        return pd.DataFrame(columns=list(COLUMNS))
    except (OSError, ValueError):
        found = pd.DataFrame()
    if list(found.columns) == list(COLUMNS):
        return found.fillna(dict.fromkeys(_TEXTS, ""))
    places = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    kept = next(place for place in places if not place.exists())
    try:
        path.rename(kept)
    except OSError as error:
        raise UserError(
            f"'{path}' is no history of scores, and cannot be moved: {error}."
        ) from None
    said = f"'{path}' is no history of scores in today's form: kept as '{kept.name}', begun anew."
    click.echo(visible(said), err=True)
    return pd.DataFrame(columns=list(COLUMNS))


def past(history: pd.DataFrame, reports: Sequence[Mapping[str, Any]]) -> dict[str, Past]:
    """Every score of `reports` over the runs that compare with this one, by key."""
    found: dict[str, Past] = {}
    for facts in reports:
        like = {"report": facts["report"], "profile": facts["profile"]}
        like |= {"model": short(facts), "machine": facts["machine"]}
        rows = history[(history[list(like)] == pd.Series(like)).all(axis=1)]
        rows = rows[rows["finished"] <= facts["finished"]]  # another may have run since
        for key, mine in rows.sort_values("finished").groupby("key", sort=False):
            values = mine[mine["value"].notna() & (mine["unit"] == mine["unit"].iloc[-1])]
            if len(values) and str(key) not in found:
                last = values.iloc[-1]
                found[str(key)] = Past(
                    str(last["label"]), str(last["unit"]),
                    values["value"].tolist(), values["verdict"].tolist(),
                )  # fmt: skip
    return found
