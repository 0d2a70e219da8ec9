"""The baseline notebook's pictures, made from its tables; titles say what they show."""

from __future__ import annotations

import math

import pandas as pd

from batchgauge.reporting import charts, palette
from batchgauge.reporting.charts import Chart
from batchgauge.text import percent


def speedup(table: pd.DataFrame, title: str, target: tuple[int, float]) -> Chart:
    """S(b) with intervals, one line an implementation; `target` is (batch size, speedup)."""
    frame = table.rename(columns={"speedup_x": "value", "low_x": "low", "high_x": "high"})
    size, value = target
    aim = charts.Line(value, f"target at batch {size}: {value:g} ×")
    return charts.speedup(
        frame, title=title, y="throughput over one at a time (×)", references=[aim]
    )


def latency(phases: pd.DataFrame, implementation: str) -> Chart:
    """TTFT and inter-token latency by batch size: median, and range over requests."""
    parts, said = [], []
    for what, panel, words in (
        ("ttft", "Time to first token", "the first token takes"),
        ("inter_token", "Inter-token latency", "each further one"),
    ):
        columns = dict(zip(_ENDS, (phases[f"{what}_{q}_ms"] for q in _QUANTILES), strict=True))
        parts.append(phases[["batch_size"]].assign(**columns, panel=panel))
        middle = columns["value"]
        if middle.notna().all():
            said.append(f"{words} {middle.iloc[-1] / middle.iloc[0]:.1f} × as long")
    sizes = phases["batch_size"]
    chart = charts.lines(
        pd.concat(parts).dropna(subset=["value"]),
        f"In batches of {sizes.iloc[-1]:.0f} instead of {sizes.iloc[0]:.0f} {', '.join(said)}"
        if said
        else "This engine does not say when its tokens came",
        charts.Axis("batch_size", "batch size", 2, sorted(set(sizes))),
        charts.Axis("value", "ms (median)", interval="range over requests"),
        charts.Looks([""], [palette.colour(implementation)], ["circle"]),
    )
    return charts.facets(chart, "panel", 2, own=["y"])


def variation(table: pd.DataFrame) -> Chart:
    """One panel a parameter: median throughput with the range of its repetitions."""
    columns = dict(zip((f"{q}_tokens_per_s" for q in _QUANTILES), _ENDS, strict=True))
    frame = table.rename(columns={"value": "at"}).rename(columns=columns)
    panels = [str(name).replace("_", " ") for name in table["parameter"]]
    settings = [f"{panel} {at:g}" for panel, at in zip(panels, table["value"], strict=True)]
    shown = frame[["at", *_ENDS]].assign(panel=panels, setting=settings)
    chart = charts.lines(
        shown, _most(shown, table["batch_size"].iloc[0]),
        charts.Axis("at", ""),
        charts.Axis("value", "generated tokens/s (median)", interval="range of repetitions"),
        more=["setting"],
    )  # fmt: skip
    return charts.facets(chart, "panel", 3, own=["x"])


def _most(shown: pd.DataFrame, size: int) -> str:
    """Which parameter moves the throughput most, from its first to its last value."""
    if shown["value"].isna().any():
        return "This engine does not say how many tokens it generated"
    if (shown["value"] <= 0).any():
        return f"At batch {size} some settings generate nothing"
    moved = [
        (str(name), rows["value"].iloc[-1] / rows["value"].iloc[0], rows["at"].tolist())
        for name, rows in shown.groupby("panel", sort=False)
    ]
    name, change, at = max(moved, key=lambda one: abs(math.log(one[1])))
    return (
        f"At batch {size} throughput changes most with {name}: "
        f"{percent(change - 1, sign=True)} from {at[0]:g} to {at[-1]:g}"
    )


_QUANTILES = ("median", "least", "most")
_ENDS = ("value", "low", "high")
