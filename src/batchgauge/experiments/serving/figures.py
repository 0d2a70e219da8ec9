"""The serving notebook's pictures; every title states what its data show."""

from __future__ import annotations

import numpy as np
import pandas as pd

from batchgauge.reporting import charts
from batchgauge.reporting.charts import Chart
from batchgauge.text import UNSTABLE, ends, first_upper, percent

COLOURS = {"static": "#D55E00", "dynamic": "#56B4E9", "continuous": "#009E73"}
LIVE, FORECAST = "#0072B2", "#D55E00"
UNDER_WAY, WAITING = "under way", "waiting"


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


def draw_course(steps: pd.DataFrame, requests: pd.DataFrame, load: float) -> Chart:
    """Requests waiting and under way over time, one panel a policy, of one seed."""
    seed = int(requests["seed"].iloc[0])
    chosen = (steps["load"] == load) & (steps["shape"] == "Poisson") & (steps["seed"] == seed)
    parts, said = [], []
    for policy, rows in steps[chosen].groupby("policy", sort=False):
        busy = rows["loop_s"].sum() / max(rows["at_s"].max(), 1e-9)
        mean, wait = (np.average(rows[c], weights=rows["loop_s"]) for c in ("running", "waiting"))
        said.append(f"{wait:.1f} under {policy} batching")
        panel = f"{first_upper(str(policy))}: {mean:.1f} a step,\nbusy {percent(busy)} of the time"
        for column, series in (("running", UNDER_WAY), ("waiting", WAITING)):
            counts = rows[column]
            # A count is that of the time up to its row: where it stays, its last row will do.
            kept = rows[(counts != counts.shift(-1)) | (counts.index == counts.index[0])]
            shown = pd.DataFrame({"at_s": kept["at_s"].round(2), "requests": kept[column]})
            parts.append(shown.assign(series=series, panel=panel))
    looks = charts.Looks(
        [UNDER_WAY, WAITING], [LIVE, FORECAST], ["circle"] * 2, size=6, curve="step-before"
    )
    chart = charts.lines(
        pd.concat(parts), f"While steps run, requests that wait: {', '.join(said)}",
        charts.Axis("at_s", "time (s)"), charts.Axis("requests", "requests"), looks,
    )  # fmt: skip
    return charts.facets(chart, "panel", 3)


def draw_goodput(table: pd.DataFrame, load: float, goal: float) -> Chart:
    """Requests in time over static batching's, with intervals, and the goal."""
    surely = table[table["low"] > 1.0].sort_values("value")
    shown = table.assign(name=table["policy"])
    title = "No policy surely answers more in time than static batches"
    for best in surely[-1:].to_dict("records"):
        is_wide = ends(best["low"], best["high"]) == UNSTABLE
        gain = f"at least {best['low']:.2f}" if is_wide else f"{best['value']:.2f}"
        title = f"{first_upper(best['policy'])}: {gain} × the requests in time"
    x = charts.Axis("value", f"requests in time ÷ static batches', at load {load:g}")
    line = charts.Line(goal, "goal", "x")
    return charts.dots(shown, title, x, references=[line], more=["in_time_share"])
