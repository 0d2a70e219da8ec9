"""The baseline notebook's pictures, made from its tables."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from batchgauge.reporting import charts, plots
from batchgauge.reporting.charts import Chart


def speedup(table: pd.DataFrame, title: str, target: tuple[int, float]) -> Chart:
    """S(b) with intervals, one line an implementation; `target` is (batch size, speedup)."""
    frame = table.rename(columns={"speedup_x": "value", "low_x": "low", "high_x": "high"})
    size, value = target
    aim = charts.Line(value, f"target at batch {size}: {value:g} ×")
    return charts.speedup(
        frame, title=title, y="throughput over one at a time (×)", references=[aim]
    )


def latency(phases: pd.DataFrame, implementation: str) -> Figure:
    """TTFT and inter-token latency by batch size: median, and range over requests."""
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
    for ax, what, title in (
        (axes[0], "ttft", "Time to first token"),
        (axes[1], "inter_token", "Inter-token latency"),
    ):
        columns = (f"{what}_{q}_ms" for q in ("median", "least", "most"))
        plots.line_with_interval(
            ax, phases["batch_size"].to_numpy(), *(phases[c].to_numpy() for c in columns),
            implementation=implementation,
        )  # fmt: skip
        plots.batch_axis(ax, phases["batch_size"])
        ax.set(title=title, ylabel="ms (median, range over requests)", ylim=(0, None))
    return fig


def variation(table: pd.DataFrame) -> Figure:
    """One panel a parameter: median throughput with the range of its repetitions."""
    names = list(dict.fromkeys(table["parameter"]))
    fig, axes = plt.subplots(1, len(names), figsize=(9.5, 3.4), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        rows = table[table["parameter"] == name]
        columns = (f"{q}_tokens_per_s" for q in ("median", "least", "most"))
        plots.line_with_interval(
            ax, rows["value"].to_numpy(), *(rows[c].to_numpy() for c in columns),
            implementation="numpy",
        )  # fmt: skip
        ax.set(xlabel=name.replace("_", " "))
    most = table["most_tokens_per_s"].max()
    axes[0][0].set_ylim(0, 1.1 * most if most > 0 else 1)
    axes[0][0].set_ylabel("generated tokens per second\n(median, range of repetitions)")
    fig.suptitle(
        f"What changes throughput at batch {table['batch_size'].iloc[0]}", x=0.01, ha="left"
    )
    return fig
