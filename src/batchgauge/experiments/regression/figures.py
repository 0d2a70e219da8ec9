"""The pictures of notebook 05: ratios with intervals, and how often the gate fails."""

from __future__ import annotations

import pandas as pd

from batchgauge.reporting import charts
from batchgauge.reporting.charts import Chart


def ratios(changes: pd.DataFrame, title: str) -> Chart:
    """Change of time per benchmark (%) with its 95 % interval.

    `changes` are those of `measuring.gate.judging.frame_of`.
    """
    columns = ["change", "low", "high", "threshold"]
    percent = (100 * changes[columns]).assign(name=changes["benchmark"])
    threshold = percent["threshold"].iloc[0]
    lines = [
        charts.Line(0, "", "x", "floor"),
        charts.Line(threshold, f"threshold {threshold:g} %", "x"),
    ]
    x = charts.Axis("change", "change of time (%, positive is slower)", zero=False)
    return charts.dots(percent, title, x, references=lines)


def rates(table: pd.DataFrame, title: str) -> Chart:
    """How often the gate fails a benchmark (%), a row a slow-down and benchmark."""
    names = [
        f"{100 * slowdown:g} % · {name}"
        for slowdown, name in zip(table["slowdown"], table["benchmark"], strict=True)
    ]
    columns = ["rate", "low", "high"]
    percent = (100 * table[columns].astype(float)).assign(name=names)
    x = charts.Axis("rate", "decisions in which the benchmark fails (%)")
    return charts.dots(percent, title, x)
