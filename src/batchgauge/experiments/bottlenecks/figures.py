"""The bottleneck notebook's pictures, made from its tables; `title` says what each shows."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from batchgauge.reporting import charts, plots
from batchgauge.reporting.charts import Chart
from batchgauge.text import percent

_SHAPES = (
    *("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right"),
    *("triangle-left", "stroke"),
)


def stages(frame: pd.DataFrame, title: str) -> Chart:
    """Stacked bars of the stages' shares by batch size, in the stages' own colours."""
    order = [s for s in [*plots.STAGES, "unassigned"] if s in set(frame["stage"])]
    colours = [plots.STAGES.get(stage, "#999999") for stage in order]
    names = [f"batch {size}" for size in frame["batch_size"]]
    shown = frame.assign(name=names, series=frame["stage"], percent=100 * frame["share"])
    x = charts.Axis("percent", "share of the batch's wall time (%)")
    return charts.stacked(shown, title, x, charts.Looks(order, colours, ["square"] * len(order)))


def roofline(frame: pd.DataFrame, bytes_per_s: float, flops_per_s: float, title: str) -> Chart:
    """Each kernel below the roof of these rates: a line through its batch sizes."""
    shown = frame.assign(series=frame["kernel"], gflop_per_s=frame["achieved_flops_per_s"] / 1e9)
    intensities, ridge = frame["intensity_flops_per_byte"], flops_per_s / bytes_per_s
    ends = [min(ridge / 2, intensities.min()), ridge, max(2 * ridge, intensities.max())]
    reached = [min(at * bytes_per_s, flops_per_s) / 1e9 for at in ends]
    roof = pd.DataFrame({"intensity_flops_per_byte": ends, "gflop_per_s": reached, "ratio": 1.0})
    called = f"the roof: {bytes_per_s / 1e9:.1f} GB/s, {flops_per_s / 1e9:.0f} Gflop/s"
    names = [*dict.fromkeys(frame["kernel"]), called]
    colours = [*plots.STAGES.values(), "#8C6D1F"][: len(names) - 1]
    looks = charts.Looks(names, [*colours, plots.INK], _SHAPES[: len(names)])
    return charts.lines(
        pd.concat([shown, roof.assign(series=called)]), title,
        charts.Axis("intensity_flops_per_byte", "arithmetic intensity (flop per byte moved)", 10),
        charts.Axis("gflop_per_s", "rate (Gflop/s)", 10), looks,
        more=["batch_size", "ratio"],
    )  # fmt: skip


def padding(frame: pd.DataFrame, title: str) -> Figure:
    """Padding waste by length spread: this engine against padding to the longest."""
    fig, ax = plt.subplots(figsize=(9, 3.4))
    rows = np.arange(len(frame))
    ax.barh(rows - 0.19, 100 * frame["rectangle_waste"], height=0.36, color="#999999",
            label="padding every prompt to the longest")  # fmt: skip
    ax.barh(rows + 0.19, 100 * frame["engine_waste"], height=0.36, color=plots.colour("numpy"),
            label="this engine")  # fmt: skip
    for row, (wide, own) in enumerate(
        zip(frame["rectangle_waste"], frame["engine_waste"], strict=True)
    ):
        ax.text(100 * wide + 0.6, row - 0.19, f"{percent(wide)}", va="center", fontsize=9.5)
        ax.text(100 * own + 0.6, row + 0.19, f"{percent(own)}", va="center", fontsize=9.5)
    ax.set_yticks(rows, list(frame["spread"]))
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="padded positions computed, of all computed (%)", ylabel="prompt lengths",
           title=title)  # fmt: skip
    ax.legend(loc="upper right")
    ax.margins(x=0.1)
    return fig


def timeline(line: pd.DataFrame, title: str) -> Figure:
    """Resident memory against time."""
    fig, ax = plt.subplots(figsize=(9, 3))
    above = (line["rss_bytes"] - line["rss_bytes"].iloc[0]) / 1e6
    ax.plot(line["time_s"], above, color=plots.colour("numpy"))
    room = max(float(above.max() - above.min()), 1.0)
    ax.set_ylim(float(above.min()) - 0.2 * room, float(above.min()) + 1.3 * room)
    ax.set(xlabel="time (s)", ylabel="above the beginning (MB)", title=title)
    return fig


def overhead(frame: pd.DataFrame, title: str) -> Figure:
    """Slow-down of each profiler, measured here and as published, on a logarithmic axis."""
    seen = frame[frame["slowdown"].notna()].sort_values("slowdown")
    rows = np.arange(len(seen))
    fig, ax = plt.subplots(figsize=(9, 3.6))
    ax.hlines(rows, 1, seen["slowdown"], color=plots.colour("numpy"), linewidth=3, alpha=0.45)
    ax.plot(seen["slowdown"], rows, "o", color=plots.colour("numpy"), label="measured in this run")
    ax.plot(seen["published_slowdown"], rows, "|", color=plots.INK, markersize=14,
            markeredgewidth=2, label="published median")  # fmt: skip
    for row, value in enumerate(seen["slowdown"]):
        shown = f"{value:.1f} ×" if value < 10 else f"{value:.0f} ×"
        ax.annotate(shown, (value, row), xytext=(0, 6), textcoords="offset points",
                    ha="center", fontsize=9.5)  # fmt: skip
    ax.set_yticks(rows, list(seen["tool"]))
    ax.set_ylim(-0.5, len(seen) - 0.3)
    ax.set(xscale="log", xlabel="slow-down of the profiled call (×, logarithmic)",
           title=title)  # fmt: skip
    ax.set_xlim(0.8, float(seen["slowdown"].max()) * 3)
    ax.grid(visible=False, axis="y")
    ax.legend(loc="lower right")
    return fig
