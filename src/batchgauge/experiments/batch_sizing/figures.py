"""The batch-sizing notebook's pictures, each from data frames; titles state what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from batchgauge.reporting import charts, plots
from batchgauge.text import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED, MODEL, CHOSEN, BEST = "#0072B2", "#D55E00", "#D55E00", "#009E73"


def cost_curves(
    errors: pd.DataFrame, half_widths: Mapping[int, float], titles: Mapping[str, str]
) -> Figure:
    """Decode step and prefill: the model's curve with its band over fresh measurements.

    `half_widths` are those of the bands by threads (0.1 = 10 %), `titles` are by phase.
    """
    fig, axes = plt.subplots(1, 2, figsize=(10.4, 4.2))
    looks = dict(zip(sorted(half_widths), ("#0072B2", "#E69F00", "#009E73"), strict=False))
    for ax, phase in zip(axes, ("decode", "prefill"), strict=True):
        for t, shade in looks.items():
            rows = errors[(errors["phase"] == phase) & (errors["threads"] == t)].sort_values("size")
            x, y, half = rows["size"], rows["predicted_ms"], 1.0 + half_widths[t]
            ax.fill_between(x, y / half, y * half, color=shade, alpha=0.15, linewidth=0)
            ax.plot(x, y, color=shade, linewidth=1.4, label=f"model, {t} thread{'s'[: t - 1]}")
            for known, fill in ((False, "white"), (True, shade)):
                dots = rows[rows["calibrated"] == known]
                ax.plot(dots["size"], dots["fresh_ms"], "o", ms=4, mfc=fill, color=shade)
        ax.set_title(titles[phase])
        ax.set_ylim(bottom=0)
        ax.set_xlim(left=0)
    axes[0].set(xlabel="rows in the batch", ylabel="one decode step (ms)")
    axes[1].set(xlabel="prompt positions", ylabel="prefill (ms)")
    axes[0].legend(
        loc="upper left", title="dots: fresh (filled: size was calibrated)", title_fontsize=9
    )
    return fig


def dense_sweep(dense: pd.DataFrame, suggested: Mapping[str, int]) -> Figure:
    """Throughput against every batch size, one panel a workload, suggestion against best."""
    names = list(dict.fromkeys(dense["workload"]))
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    fig, axes = plt.subplots(
        lines, columns, figsize=(3.5 * columns, 2.9 * lines), squeeze=False, sharex=True
    )
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.flat, names, strict=False):
        rows = dense[dense["workload"] == name]
        x, y = rows["batch_size"].to_numpy(), rows["fresh_tokens_per_s"].to_numpy()
        ax.plot(x, rows["predicted_tokens_per_s"], color=MODEL, linewidth=1.2, label="predicted")
        ax.plot(x, y, "o-", ms=3, linewidth=0.8, color=MEASURED, label="fresh sweep")
        best, at = int(np.argmax(y)), suggested[name]
        got = float(y[list(x).index(at)])
        ax.plot(x[best], y[best], "*", ms=14, color=BEST, label="best", zorder=4)
        ax.plot(at, got, "D", ms=8, mfc="none", mew=2, color=CHOSEN, label="suggested", zorder=5)
        ax.set_title(f"{name}: {at} gets {100 * got / y[best]:.0f} %", fontsize=10.5)
        ax.set_ylim(0, 1.12 * y.max())
    for ax in axes[:, 0]:
        ax.set_ylabel("tokens/s")
    for ax in axes[-1]:
        ax.set_xlabel("batch size")
    axes.flat[0].legend(loc="lower right", fontsize=8.5)
    return fig


def throughput_latency(
    frame: pd.DataFrame, workload: str, budget_ms: float, title: str
) -> charts.Chart:
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
    x = charts.Axis("latency_ms", "time until 95 of 100 batches are answered (ms)", zero=False)
    y = charts.Axis("tokens_per_s", "throughput (tokens/s)")
    looks = charts.Looks(
        [WITHIN, OVER, SUGGESTED, BEST_WITHIN], [MEASURED, plots.MUTED, CHOSEN, BEST],
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
        "dy": -8, "color": plots.INK, "fontSize": 12.5, "fontWeight": "bold",
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
    return charts.Chart(title, spec)


WITHIN, OVER = "within budgets", "over a budget"
SUGGESTED, BEST_WITHIN = "suggested", "best within them"
_STAR = "M0,-1L.22,-.31L.95,-.31L.36,.12L.59,.81L0,.38L-.59,.81L-.36,.12L-.95,-.31L-.22,-.31Z"


def _slider(name: str, words: str, column: pd.Series[float], value: float) -> dict[str, Any]:
    """A parameter between the ends of a column, in about 200 round steps."""
    low, high = float(column.min()), float(column.max())
    digits = -int(np.floor(np.log10(max(high - low, 1e-6) / 100)))
    step = 10.0**-digits
    low, high = np.floor(low / step) * step, np.ceil(high / step) * step
    value = min(max(np.ceil(value / step) * step, low), high)
    low, high, value = (round(float(one), digits) for one in (low, high, value))  # 20.4, as shown
    ends = {"min": low, "max": high, "step": step}
    return {"name": name, "value": value, "bind": {"input": "range", **ends, "name": words}}


def memory_check(peaks: pd.DataFrame, goal: float) -> Figure:
    """Predicted against measured peaks above the weights, and the error of each; `goal` in %."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.2))
    top = 1.05 * peaks["measured_bytes"].max() / 2**20
    left.plot([0, top], [0, top], color=plots.MUTED, linewidth=1.2, zorder=1)
    for use, label, shade, mark in (
        ("fitted", "fitted to", MEASURED, "o"),
        ("fresh", "fresh lengths and sizes", MODEL, "D"),
    ):
        rows = peaks[peaks["use"] == use]
        real, said = rows["measured_bytes"] / 2**20, rows["predicted_bytes"] / 2**20
        left.plot(real, said, mark, color=shade, label=label, alpha=0.85)
        right.plot(real, 100 * (said / real - 1.0), mark, color=shade, alpha=0.85)
    right.axhspan(-goal, goal, color="#009E73", alpha=0.1, linewidth=0)
    plots.reference_line(right, goal, f"goal: within {goal:.0f} %")
    fresh = peaks[peaks["use"] == "fresh"]
    worst = (fresh["predicted_bytes"] / fresh["measured_bytes"] - 1.0).abs().max()
    left.set(
        xlabel="measured peak above the weights (MiB)",
        ylabel="predicted (MiB)",
        title="Peak memory of a batch",
    )
    right.set(
        xlabel="measured peak above the weights (MiB)",
        ylabel="prediction error (%)",
        title=f"Within {100 * worst:.1f} % on fresh batches",
    )
    right.set_ylim(-12, 12)
    left.legend(loc="upper left")
    return fig


def strategies(scores: pd.DataFrame, table: pd.DataFrame, ours: str, goal: float) -> Figure:
    """Every score of every strategy as a dot, median and tenth percentile marked; the goal too."""
    order = list(table["strategy"])
    fig, ax = plt.subplots(figsize=(8.8, 0.5 * len(order) + 1.6))
    rng = np.random.default_rng(0)
    for row, name in enumerate(order):
        values = scores.loc[scores["strategy"] == name, "score"].to_numpy()
        shade = CHOSEN if name == ours else MEASURED
        jitter = row + 0.22 * (rng.random(values.size) - 0.5)
        ax.plot(values, jitter, "o", ms=4, alpha=0.35, color=shade, mew=0)
        low, mid = np.quantile(values, (0.1, 0.5))
        ax.plot([low, mid], [row, row], color=shade, linewidth=2.5)
        ax.plot(mid, row, "D", ms=8, color=shade)
        ax.annotate(f"{mid:.3f}", (1.03, row), va="center", fontsize=9.5, annotation_clip=False)
    ax.set_yticks(range(len(order)), order)
    ax.set_ylim(len(order) - 0.5, -0.7)
    ax.set_xlim(-0.03, 1.02)
    ax.grid(visible=False, axis="y")
    plots.reference_line(ax, goal, f"goal {goal:.2f}", axis="x")
    ax.annotate("median", (1.03, -0.55), fontsize=9, color=plots.MUTED, annotation_clip=False)
    first = table[table["strategy"] == ours].iloc[0]
    second = table[table["strategy"] != ours].sort_values("p10_score").iloc[-1]
    ax.set_xlabel("score: throughput ÷ best under the same budgets (0: a budget was broken)")
    ax.set_title(
        f"Worst tenth of scenarios: {ours} {percent(first['p10_score'])} of the best, "
        f"best other ({second['strategy']}) {percent(second['p10_score'])}",
        pad=24,
    )
    return fig


def adaptive(run: pd.DataFrame, budget_ms: float) -> Figure:
    """The adaptive run over time: batch size above, latency and its budget below."""
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(9.2, 5.4), sharex=True)
    rows = run[run["phase"] == "disturbed"]
    for ax in (top, bottom):
        if len(rows):
            ax.axvspan(
                rows["at_s"].min(), rows["at_s"].max(), color="#E69F00", alpha=0.14, linewidth=0
            )
    top.step(run["at_s"], run["batch_size"], where="post", color=MEASURED)
    top.set_ylabel("batch size")
    top.set_ylim(bottom=0)
    good = run["within_budget"]
    bottom.plot(run["at_s"], run["latency_ms"], color=plots.MUTED, linewidth=0.8, zorder=1)
    bottom.plot(run.loc[good, "at_s"], run.loc[good, "latency_ms"], "o", ms=4, color=MEASURED)
    bottom.plot(run.loc[~good, "at_s"], run.loc[~good, "latency_ms"], "X", ms=7, color=MODEL)
    plots.reference_line(bottom, budget_ms, "latency budget")
    bottom.set(xlabel="time (s); shaded: other processes disturb", ylabel="batch latency (ms)")
    bottom.set_ylim(bottom=0)
    after = run[run["phase"] == "after"]
    top.set_title(
        f"{100 * good.mean():.0f} % of {len(run)} batches within budget; "
        f"back at size {after['batch_size'].iloc[-1]} after the disturbance"
    )
    return fig
