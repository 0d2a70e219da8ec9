"""The serving notebook's pictures; every title states what its data show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from batchgauge.reporting import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"static": "#D55E00", "dynamic": "#56B4E9", "continuous": "#009E73"}
LIVE, FORECAST = "#0072B2", "#D55E00"
MARKS = {"held": "o", "undecided": "D", "failed": "X"}


def draw_forecast(table: pd.DataFrame) -> Figure:
    """Forecast ÷ live of every figure, with its bound."""
    names = [
        f"{row['policy']}, load {row['load']:g}{', bursty' * (row['shape'] == 'bursty')}"
        for row in table.to_dict("records")
    ]
    order = list(dict.fromkeys(names))
    panels = list(dict.fromkeys(zip(table["figure"], table["time_to"], strict=True)))
    fig, axes = plt.subplots(
        1, len(panels), figsize=(2.6 * len(panels) + 1.6, 0.36 * len(order) + 1.8), sharey=True,
        squeeze=False,
    )  # fmt: skip
    for ax, (figure, time_to) in zip(axes[0], panels, strict=True):
        chosen = (table["figure"] == figure) & (table["time_to"] == time_to)
        for row, name in zip(table.to_dict("records"), names, strict=True):
            if (row["figure"], row["time_to"]) != (figure, time_to):
                continue
            y = order.index(name)
            low, high = max(row["low"], 1e-3), min(row["high"], 1e3)
            ax.plot([low, high], [y, y], color=COLOURS[row["policy"]], linewidth=2)
            ax.plot(
                row["forecast_over_live"], y, MARKS[row["verdict"]], color=COLOURS[row["policy"]]
            )
        bound = float(table[chosen]["bound"].iloc[0])
        ax.axvspan(1 - bound, 1 + bound, color="#009E73", alpha=0.12, linewidth=0)
        ax.axvline(1.0, color="grey", linewidth=1)
        ax.set(xscale="log", xlim=(0.4, 2.5), xlabel="forecast ÷ live")
        ax.set_xticks([0.5, 0.75, 1.0, 1.5, 2.0], ["0.5", "0.75", "1", "1.5", "2"], minor=False)
        ax.set_xticks([], minor=True)
        held = int((table[chosen]["verdict"] == "held").sum())
        ax.set_title(f"{figure.capitalize()}, {time_to}:\n{held} of {chosen.sum()} held")
    axes[0][0].set_yticks(range(len(order)), order)
    axes[0][0].invert_yaxis()
    return fig


def draw_course(steps: pd.DataFrame, requests: pd.DataFrame, load: float) -> Figure:
    """Requests waiting and under way over time, one panel a policy, of one seed."""
    seed = int(requests["seed"].iloc[0])
    chosen = (steps["load"] == load) & (steps["shape"] == "Poisson") & (steps["seed"] == seed)
    policies = list(dict.fromkeys(steps[chosen]["policy"]))
    fig, axes = plt.subplots(1, len(policies), figsize=(9.2, 3.4), sharey=True, squeeze=False)
    for ax, policy in zip(axes[0], policies, strict=True):
        rows = steps[chosen & (steps["policy"] == policy)]
        ax.step(rows["at_s"], rows["running"], where="pre", color=LIVE, label="under way")
        ax.step(
            rows["at_s"], rows["waiting"], where="pre", color=FORECAST, linestyle="--",
            label="waiting",
        )  # fmt: skip
        busy = rows["loop_s"].sum() / max(rows["at_s"].max(), 1e-9)
        mean = np.average(rows["running"], weights=rows["loop_s"])
        ax.set(xlabel="time (s)", ylim=(0, None))
        ax.set_title(f"{policy.capitalize()}: {mean:.1f} a step,\nbusy {busy:.0%} of the time")
    axes[0][0].set_ylabel("requests")
    axes[0][0].legend(loc="upper left")
    return fig


def draw_goodput(table: pd.DataFrame, load: float, goal: float) -> Figure:
    """Requests in time over static batching's, with intervals, and the goal."""
    fig, ax = plt.subplots(figsize=(7.2, 2.6))
    for y, row in enumerate(table.to_dict("records")):
        colour = COLOURS[row["policy"]]
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2)
        ax.plot(row["value"], y, "o", color=colour)
        share = f"  {row['in_time_share']:.0%} in time"
        ax.annotate(share, (row["high"], y), va="center", fontsize=9)
    plots.reference_line(ax, goal, "goal", axis="x")
    ax.set_yticks(range(len(table)), table["policy"])
    ax.invert_yaxis()
    ax.margins(x=0.25, y=0.25)
    best = max(table.to_dict("records"), key=lambda row: row["value"])
    ax.set(xlabel=f"requests in time over static batches, at load {load:g}")
    ax.set_title(f"{best['policy'].capitalize()}: {best['value']:.2f} × the requests in time")
    return fig
