"""The pictures of notebook 05: ratios with intervals, and how often the gate fails."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from batchgauge.reporting import plots


def ratios(changes: pd.DataFrame, title: str) -> Figure:
    """Change of time per benchmark (%) with its 95 % interval.

    `changes` are those of `measuring.gate.judging.frame_of`.
    """
    figure, ax = plt.subplots(figsize=(7.6, 1.3 + 0.34 * len(changes)))
    percent = 100 * changes[["change", "low", "high", "threshold"]]
    points = (percent[column].to_numpy() for column in ("change", "low", "high"))
    plots.points_with_interval(ax, list(changes["benchmark"]), *points)
    ax.axvline(0, color=plots.MUTED, linewidth=1)
    threshold = percent["threshold"].iloc[0]
    plots.reference_line(ax, threshold, f"threshold {threshold:g} %", axis="x")
    ax.set_xlabel("change of time (%, positive is slower)")
    ax.set_title(title, pad=22)  # the threshold's label stands between
    return figure


def rates(table: pd.DataFrame, title: str) -> Figure:
    """How often the gate fails a benchmark (%), a row a slow-down and benchmark."""
    figure, ax = plt.subplots(figsize=(7.6, 1.3 + 0.3 * len(table)))
    names = [
        f"{100 * slowdown:g} % · {name} ({count})"
        for slowdown, name, count in zip(
            table["slowdown"], table["benchmark"], table["decisions"], strict=True
        )
    ]
    columns = (100 * table[c].to_numpy(float) for c in ("rate", "low", "high"))
    plots.points_with_interval(ax, names, *columns)
    ax.set_xlim(-3, 103)
    ax.set_xlabel("decisions in which the benchmark fails (%)")
    ax.set_ylabel("slow-down · benchmark (decisions)")
    ax.set_title(title)
    return figure
