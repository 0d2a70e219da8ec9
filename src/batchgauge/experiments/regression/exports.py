"""A comparison as people and CI systems read it: one function a format, text out.

`bencher` is Bencher Metric Format (https://bencher.dev/docs/reference/bencher-metric-format),
`github-action-benchmark` the list that its tool `customSmallerIsBetter` reads
(https://github.com/benchmark-action/github-action-benchmark), `comment` a Markdown comment for
a pull request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from batchgauge.measuring.gate.judging import Change, conclusion, false_alarms, frame_of
from batchgauge.text import escaped, percent

_NS = 1e6  # in a millisecond


def rendered(changes: Sequence[Change], form: str) -> str:
    """The changes in one of `FORMATS`."""
    return FORMATS[form](changes)


def _shown(changes: Sequence[Change]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "benchmark": [c.benchmark for c in changes],
            "change": [percent(c.change, 1, sign=True) for c in changes],
            "95 % interval": [_ends(c, " … ") for c in changes],
            "detectable": [percent(c.minimum_detectable_change, 1) for c in changes],
            "verdict": [c.verdict for c in changes],
            "work": [c.work for c in changes],
        }
    )


def _table(changes: Sequence[Change]) -> str:
    return "\n".join(filter(None, [_shown(changes).to_string(index=False), false_alarms(changes)]))


def _markdown(changes: Sequence[Change]) -> str:
    shown = _shown(changes)
    header = "| " + " | ".join(shown.columns) + " |\n|" + " --- |" * len(shown.columns)
    rows = ["| " + " | ".join(map(escaped, row)) + " |" for row in shown.to_numpy(str)]
    note = false_alarms(changes)
    return "\n".join([header, *rows, *(["", note] if note else [])])


def _comment(changes: Sequence[Change]) -> str:
    """The conclusion first, what stands out as a list, the table folded away."""
    out = [c for c in changes if c.fails or c.blind or c.status == "faster"]
    lines = [
        f"- {escaped(c.benchmark)}: {c.verdict}, {percent(c.change, 1, sign=True)} [{_ends(c)}]"
        + (f"; other work: {escaped(c.work)}" if c.work else "")
        for c in out
    ]
    heading = f"### Regression gate\n\n{escaped(conclusion(changes))}"
    folded = f"<details><summary>All benchmarks</summary>\n\n{_markdown(changes)}\n\n</details>"
    return "\n\n".join(filter(None, [heading, "\n".join(lines), folded]))


def _json(changes: Sequence[Change]) -> str:
    return str(frame_of(changes).to_json(orient="records", indent=2))


def _csv(changes: Sequence[Change]) -> str:
    return frame_of(changes).to_csv(index=False).rstrip()


def _bencher(changes: Sequence[Change]) -> str:
    """Measured latency of one call in nanoseconds, with the relative interval of its change."""
    return json.dumps(
        {
            c.benchmark: {
                "latency": _finite(
                    value=c.new_ms * _NS,
                    lower_value=_around_new(c, 1.0 + c.low) * _NS,
                    upper_value=_around_new(c, 1.0 + c.high) * _NS,
                )
            }
            for c in changes
            if math.isfinite(c.new_ms)
        },
        indent=2,
    )


def _around_new(change: Change, over_base: float) -> float:
    """A time over the base's as milliseconds, where the change itself is the measured time."""
    return change.new_ms * over_base / (1.0 + change.change)


def _finite(**values: float) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _github(changes: Sequence[Change]) -> str:
    """Milliseconds of one call; the half-width of the change's interval as the range."""
    return json.dumps(
        [
            {
                "name": c.benchmark,
                "unit": "ms/call",
                "value": c.new_ms,
                **({"range": f"± {reach:.3g}"} if math.isfinite(reach) else {}),
                "extra": f"{c.verdict}: {percent(c.change, 1, sign=True)} [{_ends(c)}]",
            }
            for c in changes
            if math.isfinite(c.new_ms)
            for reach in [_around_new(c, (c.high - c.low) / 2.0)]
        ],
        indent=2,
        ensure_ascii=False,
    )


FORMATS: Mapping[str, Callable[[Sequence[Change]], str]] = {
    "table": _table,
    "markdown": _markdown,
    "comment": _comment,
    "json": _json,
    "csv": _csv,
    "bencher": _bencher,
    "github-action-benchmark": _github,
}


def _ends(change: Change, between: str = ", ") -> str:
    """A change's interval: `-0.4 %, +1.2 %`."""
    return between.join(percent(end, 1, sign=True) for end in (change.low, change.high))
