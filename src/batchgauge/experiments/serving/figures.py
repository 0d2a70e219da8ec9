"""The serving notebook's pictures; every title states what its data show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from batchgauge.reporting import charts
from batchgauge.reporting.charts import Chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"static": "#D55E00", "dynamic": "#56B4E9", "continuous": "#009E73"}
LIVE, FORECAST = "#0072B2", "#D55E00"


def draw_forecast(table: pd.DataFrame) -> Chart:
    """Forecast ÷ live of every figure, a row a kind of run, with the bounds."""
    frame = table.assign(
        name=[
            f"{row['policy']}, load {row['load']:g}{', bursty' * (row['shape'] == 'bursty')}"
            for row in table.to_dict("records")
        ],
        series=table["figure"] + ", " + table["time_to"],
    )
    names = list(dict.fromkeys(frame["series"]))
    hues = [COLOURS["static"], "#E69F00", LIVE, "#56B4E9"]
    shapes = ["circle", "square", "diamond", "triangle-up"]
    looks = charts.Looks(names, hues[: len(names)], shapes[: len(names)])
    lines = [charts.Line(1.0, "", "x", "floor")]
    for bound in sorted(set(table["bound"])):
        lines += [charts.Line(1.0 - bound, "", "x"), charts.Line(1.0 + bound, f"{bound:.0%}", "x")]
    held = int((table["verdict"] == "held").sum())
    title = f"{held} of {len(table)} figures of the forecast held"
    x = charts.Axis("forecast_over_live", "forecast ÷ live", 2, [0.5, 0.71, 1.0, 1.41, 2.0])
    return charts.dots(frame, title, x, looks, lines, more=["forecast_ms", "live_ms", "verdict"])


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


def draw_goodput(table: pd.DataFrame, load: float, goal: float) -> Chart:
    """Requests in time over static batching's, with intervals, and the goal."""
    best = max(table.to_dict("records"), key=lambda row: row["value"])
    shown = table.assign(name=table["policy"])
    title = f"{best['policy'].capitalize()}: {best['value']:.2f} × the requests in time"
    x = charts.Axis("value", f"requests in time ÷ static batches', at load {load:g}")
    line = charts.Line(goal, "goal", "x")
    return charts.dots(shown, title, x, references=[line], more=["in_time_share"])
