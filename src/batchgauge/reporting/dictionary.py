"""The data dictionary: `data/README.md`, from what the CSV files are and what columns mean.

`dictionary.toml` has the meanings; units come from the columns' names as in every table's heading.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from batchgauge.files import write_text
from batchgauge.reporting.tables import unit_of
from batchgauge.text import escaped

_HEAD = """\
# The data behind the reports

Written by the study from the tables themselves. One CSV file a table, UTF-8 with a header; an empty
cell is a value that is missing or does not exist. `<report>_facts.json` has what a report says: its
answer, findings, scores, parameters, machine and versions. Times are wall time unless they say so.
"""
# Columns that belong to another: an end of its interval, a percentile, a quantile over requests.
_END = re.compile(r"(?:^|_)(low|high)(?:_|$)")
_OF = re.compile(r"^(?P<before>.*?)_?(?P<what>p\d+|mean|least|median|most)_(?P<after>.+)$")
_NUMBERED = re.compile(r"^(?P<stem>tokens_per_s|again)_(?P<number>\d+)")
_ENDS = {"low": "lower", "high": "upper"}


@cache
def _known() -> Mapping[str, Any]:
    text = (Path(__file__).parent / "dictionary.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def meaning(column: str, table: str = "") -> str:
    """What a column (of that table) means; empty where the dictionary does not know it."""
    own: Mapping[str, str] = _known()["columns_of"].get(table, {})
    columns: Mapping[str, str] = {**_known()["columns"], **own}
    if column in columns:
        return columns[column]
    if match := _END.search(column):
        return f"{_ENDS[match[1]]} end of the 95 % interval"
    if match := _NUMBERED.match(column):
        return f"{columns[match['stem']]}; number {match['number']}"
    if match := _OF.match(column):
        stem = "_".join(filter(None, (match["before"], match["after"])))
        of = columns.get(stem) or columns.get(match["after"], "")
        return f"{match['what']} of: {of}" if of else match["what"]
    return ""


def write_dictionary(out: Path) -> Path:
    """Write `data/README.md` under `out`: every CSV file there, each column, unit and meaning."""
    folder = out / "data"
    parts = [_HEAD]
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            columns = next(csv.reader(file), [])
        parts += [f"## {path.name}", ""]
        if row := _row(path.stem):
            parts += [f"A row is {row}.", ""]
        parts += ["| column | unit | meaning |", "| :-- | :-- | :-- |"]
        parts += [
            f"| `{c}` | {escaped(_unit(c))} | {escaped(meaning(c, path.stem))} |" for c in columns
        ]
        parts.append("")
    return write_text("\n".join(parts).rstrip() + "\n", folder / "README.md")


def _unit(column: str) -> str:
    """The unit of a column; an end of an interval has that of what it is an end of."""
    units: Mapping[str, str] = _known()["units"]
    whole = re.sub(r"_(low|high)$", "", column)
    return units.get(column) or unit_of(column) or units.get(whole, "")


def _row(stem: str) -> str:
    """What a row of the table is, by the longest name of the dictionary that it ends in."""
    rows: Mapping[str, str] = _known()["tables"]
    names = sorted((n for n in rows if stem == n or stem.endswith(f"_{n}")), key=len)
    return rows[names[-1]] if names else ""
