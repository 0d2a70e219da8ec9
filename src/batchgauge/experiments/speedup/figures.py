"""The speedup notebook's pictures, made from its tables."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from batchgauge.reporting import plots


def by_size(table: pd.DataFrame, title: str, target: tuple[int, float]) -> Figure:
    """S(b), strict and over the baseline, beside the target; logarithmic."""
    fig = plots.speedup(
        table, title=title, target=(target[1], f"target at batch {target[0]}: {target[1]:g} ×"),
        ylabel="speedup (×, logarithmic)",
    )  # fmt: skip
    ax = fig.axes[0]
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_ylim(0.5, 2 * table["high"].max())
    return fig


def ladder(whole: pd.DataFrame, alone: pd.DataFrame) -> Figure:
    """Speedup over the baseline by rung: bars for cumulative, diamonds for each idea alone."""
    part = whole["part"].iloc[0]
    fig, ax = plt.subplots(figsize=(8.2, 0.55 * len(whole) + 1.6))
    rows = range(len(whole))
    ax.barh(
        rows, whole["speedup_x"] - 1, left=1, color=plots.colour("numpy"), height=0.55,
        label="cumulative",
    )  # fmt: skip
    error = [whole["speedup_x"] - whole["low_x"], whole["high_x"] - whole["speedup_x"]]
    ax.errorbar(whole["speedup_x"], rows, xerr=error, fmt="none", ecolor=plots.INK, capsize=3)
    single = alone.set_index("rung")["speedup_x"].reindex(whole["rung"])
    ax.plot(single, rows, "D", color=plots.colour("baseline"), linestyle="none", label="alone")
    for row, value, high in zip(rows, whole["speedup_x"], whole["high_x"], strict=True):
        shown = f"{value:.3g} ×" if math.isfinite(value) else whole["status"].iloc[row]
        ax.annotate(
            shown, (high if math.isfinite(high) else 1.0, row), (6, 0), va="center",
            textcoords="offset points", fontsize=9.5,
        )  # fmt: skip
    ax.set_xscale("log", subs=(2, 5))
    for set_formatter in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    ax.set_yticks(rows, whole["rung"])
    ax.invert_yaxis()
    ax.margins(x=0.15)
    plots.reference_line(ax, 1.0, "baseline", axis="x", kind="floor")
    top = whole["speedup_x"].iloc[-1]
    ax.set(
        xlabel="speedup over the baseline (×, logarithmic)",
        title=f"{str(part).capitalize()}: {len(whole)} rungs, {top:.3g} × in all",
    )
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.legend(loc="upper right")
    return fig
