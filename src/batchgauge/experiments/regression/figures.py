"""The pictures of notebook 05: ratios with intervals and noise, and the gate's error rates."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from batchgauge.reporting import plots


def ratios(changes: pd.DataFrame, title: str) -> Figure:
    """Change of time per benchmark (%) with its 95 % interval, on the band of its noise floor.

    `changes` are those of `measuring.gate.compare.frame_of`.
    """
    figure, ax = plt.subplots(figsize=(7.6, 1.3 + 0.34 * len(changes)))
    percent = 100 * changes[["change", "low", "high", "noise_floor", "threshold"]]
    rows, floors = np.arange(len(changes)), percent["noise_floor"].to_numpy()
    ax.barh(rows, 2 * floors, left=-floors, height=0.8, color=plots.GRID, label="noise floor")
    points = (percent[column].to_numpy() for column in ("change", "low", "high"))
    plots.points_with_interval(ax, list(changes["benchmark"]), *points)
    ax.axvline(0, color=plots.MUTED, linewidth=1)
    threshold = percent["threshold"].iloc[0]
    plots.reference_line(ax, threshold, f"threshold {threshold:g} %", axis="x")
    ax.set_xlabel("change of time (%, positive is slower)")
    ax.set_title(title, pad=22)  # the threshold's label stands between
    return figure


def rates(table: pd.DataFrame, title: str) -> Figure:
    """How often the gate fails a benchmark (%) against the injected slow-down (%)."""
    figure, ax = plt.subplots()
    default = table[table["threshold"] == table["threshold"].min()]
    looks = ("numpy", "baseline", "hf", "tiktoken")
    for look, (name, rows) in zip(looks, default.groupby("benchmark", sort=False), strict=False):
        columns = (100 * rows[c].to_numpy(float) for c in ("slowdown", "rate", "low", "high"))
        plots.line_with_interval(ax, *columns, implementation=look, text=str(name))
    plots.reference_line(ax, 95, "goal at 10 %: 95 %")
    ax.set_xticks([0, 3, 5, 10, 20])
    ax.set_ylim(-3, 105)
    ax.set_xlabel("injected slow-down (%); 0 is the same code twice")
    ax.set_ylabel("runs in which the gate fails (%)")
    ax.legend(loc="center right")
    ax.set_title(title)
    return figure
