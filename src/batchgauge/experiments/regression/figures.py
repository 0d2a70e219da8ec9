"""The pictures of notebook 05: ratios with intervals and noise, and the gate's error rates."""

from __future__ import annotations

import pandas as pd

from batchgauge.reporting import charts, plots
from batchgauge.reporting.charts import Chart


def ratios(changes: pd.DataFrame, title: str) -> Chart:
    """Change of time per benchmark (%) with its 95 % interval, on the band of its noise floor.

    `changes` are those of `measuring.gate.compare.frame_of`.
    """
    columns = ["change", "low", "high", "noise_floor", "threshold"]
    percent = (100 * changes[columns]).assign(name=changes["benchmark"], series="change")
    looks = charts.Looks(["change"], [plots.colour("numpy")], ["circle"])
    threshold = percent["threshold"].iloc[0]
    lines = [
        charts.Line(0, "", "x", "floor"),
        charts.Line(threshold, f"threshold {threshold:g} %", "x"),
    ]
    x = charts.Axis("change", "change of time (%, positive is slower)", zero=False)
    return charts.dots(percent, title, x, looks, lines, band="noise_floor")


def rates(table: pd.DataFrame, title: str) -> Chart:
    """How often the gate fails a benchmark (%) against the injected slow-down (%)."""
    shown = table[table["threshold"] == table["threshold"].min()]
    columns = ["slowdown", "rate", "low", "high"]
    percent = (100 * shown[columns].astype(float)).assign(series=shown["benchmark"])
    names = list(dict.fromkeys(percent["series"]))
    looks = charts.Looks.of(("numpy", "baseline", "hf", "tiktoken"))
    looks = charts.Looks(names, looks.colours[: len(names)], looks.shapes[: len(names)])
    x = charts.Axis("slowdown", "injected slow-down (%); 0 is the same code twice")
    y = charts.Axis("rate", "runs in which the gate fails (%)")
    return charts.lines(percent, title, x, y, looks, [charts.Line(95, "goal at 10 %: 95 %")])
