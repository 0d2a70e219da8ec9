"""The batch-sizing notebook's pictures, each from data frames; titles state what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.reporting import charts, palette
from batchgauge.reporting.charts import Axis, Chart, Line, Looks
from batchgauge.text import counted, percent, visible

MEASURED, MODEL, CHOSEN, BEST = "#0072B2", "#D55E00", "#D55E00", "#009E73"
DISTURBED = "#E69F00"
WITHIN, OVER = "within budgets", "over a budget"
SUGGESTED, BEST_WITHIN = "suggested", "best within them"
FITTED, FRESH = "fitted to", "fresh lengths and sizes"
SIZE, LATENCY = "batch size", "latency of a batch (ms)"  # the adaptive run's panels
MEDIAN, WORST = "median", "worst tenth"
_HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
_STAR = "M0,-1L.22,-.31L.95,-.31L.36,.12L.59,.81L0,.38L-.59,.81L-.36,.12L-.95,-.31L-.22,-.31Z"


def _looks(names: Sequence[str]) -> Looks:
    return Looks(names, _HUES[: len(names)], _SHAPES[: len(names)])


def cost_curves(
    errors: pd.DataFrame, half_widths: Mapping[int, float], off: Mapping[str, float]
) -> Chart:
    """Decode step and prefill: the model's curve with its band over fresh measurements.

    `half_widths` are those of the bands by threads (0.1 = 10 %), `off` are median errors by phase
    in percent.
    """
    threads = {t: counted(t, "thread") for t in sorted(half_widths)}
    panels = {
        "decode": "Decode: one step, by rows in the batch", "prefill": "Prefill, by positions read",
    }  # fmt: skip
    said = " and ".join(f"{off[phase]:.1f} % for {phase}" for phase in panels if phase in off)
    rows = errors[errors["phase"].isin(panels) & errors["threads"].isin(threads)]
    wide = 1.0 + rows["threads"].map(half_widths)
    frame = pd.DataFrame(
        {
            "phase": rows["phase"].map(panels), "series": rows["threads"].map(threads),
            "size": rows["size"], "predicted_ms": rows["predicted_ms"],
            "low": rows["predicted_ms"] / wide, "high": rows["predicted_ms"] * wide,
            "fresh_ms": rows["fresh_ms"], "calibrated": np.where(rows["calibrated"], "yes", "no"),
        }
    ).sort_values("phase", kind="stable")  # fmt: skip
    x = Axis("size", "rows or positions")
    y = Axis("predicted_ms", "time (ms)", interval="95 % band of the model")
    chart = charts.lines(
        frame, f"The model is off by {said}", x, y, _looks(list(threads.values())),
        more=["fresh_ms", "calibrated"],
    )  # fmt: skip
    dots = chart.spec["layer"][-1]  # of what was measured, not of the model
    dots["mark"] = {"type": "point", "size": 45, "strokeWidth": 1.5}
    place = dots["encoding"]
    place["y"] = {**place["y"], "field": "fresh_ms"}
    place["fill"] = place["color"]
    known = {"test": "datum.calibrated === 'yes'", "value": 1}
    place["fillOpacity"] = {"condition": known, "value": 0}
    return charts.facets(chart, "phase", 2, own=["x", "y"], height=230)


def dense_sweep(dense: pd.DataFrame, suggested: Mapping[str, int]) -> Chart:
    """Share of the best throughput at every batch size, a line a workload, suggestions marked."""
    best = dense.groupby("workload", sort=False)["fresh_tokens_per_s"].transform("max")
    frame = dense[["batch_size", "fresh_tokens_per_s"]].assign(
        series=dense["workload"].map(visible), share=100 * dense["fresh_tokens_per_s"] / best
    )
    ours = frame[dense["batch_size"] == dense["workload"].map(suggested)]
    chart = charts.lines(
        frame, f"Every suggested size gets {int(ours['share'].min())} % of the best or more",
        Axis("batch_size", "batch size"), Axis("share", "of the best throughput (%)"),
        _looks(list(dict.fromkeys(frame["series"]))), more=["fresh_tokens_per_s"],
    )  # fmt: skip
    dots = chart.spec["layer"][-1]
    dots["mark"] = {**dots["mark"], "size": 25}
    hollow = {"type": "point", "shape": "diamond", "filled": False, "size": 220, "strokeWidth": 2.2}
    place = {name: dots["encoding"][name] for name in ("x", "y", "color", "opacity")}
    chart.spec["layer"].append(
        {"data": {"values": charts.records(ours)}, "mark": hollow, "encoding": place}
    )
    return Chart(chart.title, charts.nested(chart.spec, "series"))


def throughput_latency(frame: pd.DataFrame, workload: str, budget_ms: float, title: str) -> Chart:
    """Throughput against latency, a dot a size; both budgets and the workload can be changed.

    `frame` has workload, batch_size, tokens_per_s, latency_ms, memory_mib above the weights (NaN
    where unknown) and suggested. The first view is of `workload` under `budget_ms`.
    """
    knows = bool(frame["memory_mib"].notna().all())
    params = [
        {
            "name": "workload", "value": workload,
            "bind": {
                "input": "select", "options": list(dict.fromkeys(frame["workload"])),
                "name": "workload",
            },
        },
        _slider("latency_budget", "latency budget (ms)", frame["latency_ms"], budget_ms),
    ]  # fmt: skip
    fits = "datum.latency_ms <= latency_budget"
    if knows:
        most = float(frame["memory_mib"].max())
        params.append(_slider("room", "memory for the batch (MiB)", frame["memory_mib"], most))
        fits += " && datum.memory_mib <= room"
    x = Axis("latency_ms", "time until 95 of 100 batches are answered (ms)", zero=False)
    y = Axis("tokens_per_s", "throughput (tokens/s)")
    looks = Looks(
        [WITHIN, OVER, SUGGESTED, BEST_WITHIN], [MEASURED, palette.MUTED, CHOSEN, BEST],
        ["circle", "cross", "diamond", _STAR],
    )  # fmt: skip
    tips = ["batch_size", "tokens_per_s", "latency_ms", *(["memory_mib"] if knows else [])]
    spec = charts.scatter(frame, x, y, looks, tips)
    first, dots = spec["layer"]
    place = {name: dots["encoding"][name] for name in ("x", "y")}
    spec["params"] = params
    spec["transform"] = [
        {"filter": "datum.workload === workload"},
        {"calculate": f"({fits}) ? '{WITHIN}' : '{OVER}'", "as": "series"},
    ]
    once = [
        {"aggregate": [{"op": "count", "as": "sizes"}]},
        {"calculate": "latency_budget", "as": "latency_ms"},
    ]
    rule = {"type": "rule", "color": CHOSEN, "strokeDash": [6, 3], "strokeWidth": 1.5}
    chosen = [{"filter": "datum.suggested"}, {"calculate": f"'{SUGGESTED}'", "as": "series"}]
    best = [
        {"filter": f"datum.series === '{WITHIN}'"},
        {
            "window": [{"op": "row_number", "as": "place"}],
            "sort": [{"field": "tokens_per_s", "order": "descending"}],
        },
        {"filter": "datum.place === 1"},
        {"calculate": f"'{BEST_WITHIN}'", "as": "series"},
        {
            "calculate": "'★ batch ' + datum.batch_size + ': ' + format(datum.tokens_per_s, ',.0f')"
            " + ' tokens/s in ' + format(datum.latency_ms, ',.0f') + ' ms'",
            "as": "words",
        },
    ]
    hollow = {"type": "point", "filled": False, "size": 260, "strokeWidth": 2.4}
    star = {"type": "point", "filled": True, "size": 260}
    marks = {"color": dots["encoding"]["color"], "shape": dots["encoding"]["shape"]}
    words = {
        "type": "text", "align": "right", "baseline": "bottom", "x": "width",
        "y": "height",
        "dy": -8, "color": palette.INK, "fontSize": 12.5, "fontWeight": "bold",
    }  # fmt: skip
    spec["layer"] = [
        {"transform": once, "mark": rule, "encoding": {"x": place["x"]}},
        first,
        dots,
        {"transform": chosen, "mark": hollow, "encoding": {**place, **marks}},
        {"transform": best, "mark": star, "encoding": {**place, **marks}},
        {
            "transform": best, "mark": words,
            "encoding": {"text": {"field": "words", "type": "nominal"}},
        },
    ]  # fmt: skip
    return Chart(title, charts.nested(spec, "workload"))


def _slider(name: str, words: str, column: pd.Series[float], value: float) -> dict[str, Any]:
    """A parameter between the ends of a column, in about 200 round steps."""
    low, high, digits = _ends(column)
    ends = {"min": low, "max": high, "step": 10.0**-digits}
    bind = {"input": "range", **ends, "name": words}
    return {"name": name, "value": settable(column, value), "bind": bind}


def settable(column: pd.Series[float], value: float) -> float:
    """Where a slider over the column stands for a value: at its next step, between its ends."""
    low, high, digits = _ends(column)
    steps = math.ceil(round(value * 10.0**digits, 6))  # 3.0000000000000004 is 3
    return min(max(round(steps / 10.0**digits, digits), low), high)


def _ends(column: pd.Series[float]) -> tuple[float, float, int]:
    """The round ends of a column's slider, and the decimal digits of its step, as shown: 20.4."""
    low, high = float(column.min()), float(column.max())
    digits = -math.floor(math.log10(max(high - low, 1e-6) / 100))
    steps = 10.0**digits
    return (
        round(math.floor(low * steps) / steps, digits),
        round(math.ceil(high * steps) / steps, digits),
        digits,
    )


def memory_check(peaks: pd.DataFrame, goal: float) -> Chart:
    """The error of every predicted peak above the weights; `goal` in %."""
    frame = pd.DataFrame(
        {
            "measured_mib": peaks["measured_bytes"] / 2**20,
            "error": 100 * (peaks["predicted_bytes"] / peaks["measured_bytes"] - 1.0),
            "series": peaks["use"].map({"fitted": FITTED, "fresh": FRESH}),
            **{name: peaks[name] for name in ("batch_size", "prompt_tokens", "new_tokens")},
        }
    )
    worst = frame.loc[frame["series"] == FRESH, "error"].abs().max()
    spec = charts.scatter(
        frame, Axis("measured_mib", "measured peak above the weights (MiB)", zero=False),
        Axis("error", "error of the prediction (%)"),
        Looks([FITTED, FRESH], [MEASURED, MODEL], ["circle", "diamond"]),
        ["measured_mib", "error", "batch_size", "prompt_tokens", "new_tokens"],
        [Line(goal, ""), Line(-goal, f"goal: within {goal:.0f} %"), Line(0.0, "", kind="floor")],
        joined=False,
    )  # fmt: skip
    return Chart(f"The peak memory of fresh batches is predicted within {worst:.1f} %", spec)


def strategies(
    spread: pd.DataFrame, table: pd.DataFrame, ours: str, goals: tuple[float, float]
) -> Chart:
    """Median and worst tenth of every strategy's scores with intervals, and their goals.

    `spread` as `study.spread` gives it; `goals` are the lower one, of the worst tenth, and that
    of the median.
    """
    low, high = goals
    broken = 100 * (table["late_share"] + table["over_memory_share"])
    frame = spread.assign(
        broken_percent=spread["name"].map(dict(zip(table["strategy"], broken, strict=True)))
    )
    first = table[table["strategy"] == ours].iloc[0]
    second = table[table["strategy"] != ours].sort_values("p10_score").iloc[-1]
    return charts.dots(
        frame,
        f"Worst tenth of scenarios: {ours} {percent(first['p10_score'])} of the best, "
        f"best other ({second['strategy']}) {percent(second['p10_score'])}",
        Axis("score", "score: share of the best throughput"),
        Looks([MEDIAN, WORST], [MEASURED, MODEL], ["circle", "diamond"]),
        [Line(low, f"goals {low:.2f} and {high:.2f}", "x", flipped=True), Line(high, "", "x")],
        more=["broken_percent"],
    )  # fmt: skip


def adaptive(run: pd.DataFrame, budget_ms: float) -> Chart:
    """The adaptive run over time: batch size above, latency and its budget below."""
    good, after = run["within_budget"], run[run["phase"] == "after"]
    every = run[["at_s", "phase"]].assign(series=np.where(good, WITHIN, OVER))
    frame = pd.concat(
        [
            every.assign(panel=SIZE, value=run["batch_size"], limit=run["batch_size"]),
            every.assign(panel=LATENCY, value=run["latency_ms"], limit=budget_ms),
        ]
    )
    x, y = Axis("at_s", "time (s); shaded: other processes disturb"), Axis("value", "")
    looks = Looks([WITHIN, OVER], [MEASURED, MODEL], ["circle", "cross"])
    looks = looks.among(every["series"])
    spec = charts.scatter(frame, x, y, looks, ["at_s", "value", "phase"])
    ends = [{"op": op, "field": "at_s", "as": op} for op in ("min", "max")]
    shade: charts.Spec = {
        "transform": [
            {"filter": "datum.phase === 'disturbed'"}, {"aggregate": ends, "groupby": ["phase"]},
        ],
        "mark": {"type": "rect", "color": DISTURBED, "opacity": 0.16, "aria": False},
        "encoding": {"x": {**x.encoding(), "field": "min"}, "x2": {"field": "max"}},
    }  # fmt: skip
    on = {"test": f"datum.panel === '{LATENCY}'", "value": 1}
    limit: charts.Spec = {
        "mark": {"type": "line", "color": palette.MUTED, "strokeDash": [6, 3], "strokeWidth": 1.3},
        "encoding": {
            "x": x.encoding(), "y": {**y.encoding(), "field": "limit"},
            "opacity": {"condition": on, "value": 0},
        },
    }  # fmt: skip
    spec["layer"] = [shade, limit, *spec["layer"]]
    title = (
        f"{100 * good.mean():.0f} % of {len(run)} batches within budget; "
        f"back at size {after['batch_size'].iloc[-1]} after the disturbance"
    )
    return charts.facets(Chart(title, spec), "panel", 1, own=["y"], height=150)
