"""The pictures of notebook 05: ratios with intervals and noise, the gate's rates, the history."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from batchgauge.measuring.gate.compare import Change
from batchgauge.reporting import plots


def ratios(changes: Sequence[Change], *, title: str) -> Figure:
    """Change of time per benchmark (%) with its 95 % interval, on the band of its noise floor."""
    figure, ax = plt.subplots(figsize=(7.6, 1.3 + 0.34 * len(changes)))
    names = [c.benchmark for c in changes]
    rows = np.arange(len(names))
    floors = np.array([c.noise_floor for c in changes]) * 100
    ax.barh(rows, 2 * floors, left=-floors, height=0.8, color=plots.GRID, label="noise floor")
    plots.points_with_interval(
        ax,
        names,
        np.array([c.change for c in changes]) * 100,
        np.array([c.low for c in changes]) * 100,
        np.array([c.high for c in changes]) * 100,
    )
    ax.axvline(0, color=plots.MUTED, linewidth=1)
    threshold = changes[0].threshold * 100
    plots.reference_line(ax, threshold, f"threshold {threshold:g} %", axis="x")
    ax.set_xlabel("change of time (%, positive is slower)")
    ax.set_title(title, pad=22)  # the threshold's label stands between
    return figure


def rates(table: pd.DataFrame, *, title: str) -> Figure:
    """How often the gate fails a benchmark (%) against the injected slow-down (%)."""
    figure, ax = plt.subplots()
    default = table[table["threshold"] == table["threshold"].min()]
    looks = ("numpy", "baseline", "hf", "tiktoken")
    for look, (name, rows) in zip(looks, default.groupby("benchmark", sort=False), strict=False):
        plots.line_with_interval(
            ax,
            rows["slowdown"].to_numpy(float) * 100,
            rows["rate"].to_numpy(float) * 100,
            rows["low"].to_numpy(float) * 100,
            rows["high"].to_numpy(float) * 100,
            implementation=look,
            text=str(name),
        )
    plots.reference_line(ax, 95, "goal at 10 %: 95 %")
    ax.set_xticks([0, 3, 5, 10, 20])
    ax.set_ylim(-3, 105)
    ax.set_xlabel("injected slow-down (%); 0 is the same code twice")
    ax.set_ylabel("runs in which the gate fails (%)")
    ax.legend(loc="center right")
    ax.set_title(title)
    return figure


def history(table: pd.DataFrame, *, title: str) -> Figure:
    """Median time of stored runs, oldest first, with the runs at which the level changed."""
    figure, ax = plt.subplots(figsize=(7.6, 3.2))
    order = np.arange(len(table))
    ax.plot(order, table["median_ms"], color=plots.colour("numpy"), marker="o")
    for at in order[table["new_level"].to_numpy(bool)]:
        plots.reference_line(ax, float(at), "change point", axis="x")
    ax.set_xticks(order, [str(c)[:7] for c in table["git_commit"]], rotation=30)
    ax.set_ylim(0, float(table["median_ms"].max()) * 1.25)
    ax.set_xlabel("stored run (commit), oldest first")
    ax.set_ylabel("median time of one call (ms)")
    ax.set_title(title)
    return figure
