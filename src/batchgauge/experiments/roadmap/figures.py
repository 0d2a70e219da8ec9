"""The roadmap notebook's pictures; every title states what its data show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from batchgauge.reporting import charts, plots
from batchgauge.reporting.charts import Chart
from batchgauge.reporting.tables import number
from batchgauge.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IN_TIME, SOONER = "requests in time", "p90 wait, shorter by"  # the two gains
REAL, SIMULATED = "#0072B2", "#D55E00"
# Policies and ways have no implementation's colour: Okabe and Ito's others.
LOOKS: Mapping[str, tuple[str, str]] = {
    "static": ("#D55E00", "s"),
    "dynamic": ("#56B4E9", "o"),
    "continuous": ("#009E73", "^"),
    "two BLAS threads": ("#0072B2", "o"),
    "two Python threads": ("#E69F00", "^"),
    "two processes": ("#009E73", "s"),
}


def draw_step_time(table: pd.DataFrame) -> Figure:
    """A decode step and a token's share of it against batch size."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.8))
    columns = [table[c].to_numpy() for c in ("step_ms", "step_low_ms", "step_high_ms")]
    sizes = table["batch_size"].to_numpy()
    plots.line_with_interval(left, sizes, *columns, implementation="numpy")
    plots.line_with_interval(right, sizes, *(c / sizes for c in columns), implementation="numpy")
    for ax, text in ((left, "one decode step (ms)"), (right, "one token (ms)")):
        plots.batch_axis(ax, sizes, "sequences in the batch")
        ax.set(ylabel=text)
        ax.set_ylim(bottom=0)
    rise = columns[0][-1] / columns[0][0]
    left.set_title(f"{sizes[-1]} sequences cost {rise:.1f} × one step …")
    right.set_title(f"… so a token costs {sizes[-1] / rise:.1f} × less")
    return fig


def draw_validation(requests: pd.DataFrame, figures: pd.DataFrame) -> Figure:
    """Distribution of the time to the answer, real and simulated, one panel a policy."""
    names = list(dict.fromkeys(requests["policy"]))
    fig, axes = plt.subplots(1, len(names), figsize=(9.2, 3.9), sharey=True)
    for ax, name in zip(axes, names, strict=True):
        rows = requests[requests["policy"] == name]
        for column, colour, text, style in (
            ("real_answer_ms", REAL, "real engine", "-"),
            ("simulated_answer_ms", SIMULATED, "simulated", "--"),
        ):
            times = np.sort(rows[column].to_numpy()) / 1e3
            share = np.arange(1, times.size + 1) / times.size
            ax.step(times, 100 * share, where="post", color=colour, label=text, linestyle=style)
            ax.plot([times.mean()], [4], marker="v", color=colour, linestyle="none")
        errors = {
            row["figure"]: row["simulated_over_real"] - 1
            for row in figures.to_dict("records")
            if row["policy"] == name
            and row["time_to"] == "answer"
            and row["load"] == figures["load"].max()
        }
        said = ", ".join(
            f"{figure} {percent(error, sign=True)}" for figure, error in errors.items()
        )
        ax.set(title=f"{name.capitalize()}: {said}", xlabel="time to the answer (s)")
        ax.set_xlim(left=0)
    axes[0].set(ylabel="requests answered (%)", ylim=(0, 101))
    axes[0].legend(loc="lower right", title="▾ mean", title_fontsize=9)
    return fig


def draw_policy_curves(curves: pd.DataFrame, target_s: float, rate: float) -> Figure:
    """p90 until the first text against the arrival rate, with the target."""
    fig, ax = plt.subplots(figsize=(7.6, 4.3))
    reach = {}
    for name in dict.fromkeys(curves["policy"]):
        grid = curves[curves["policy"] == name].pivot_table(
            index="arrival_rate", columns="seed", values="p90_ms"
        )
        rates, seconds = grid.index.to_numpy(), grid.to_numpy() / 1e3
        middle = np.median(seconds, axis=1)
        colour, marker = LOOKS[name]
        ax.fill_between(
            rates, seconds.min(axis=1), seconds.max(axis=1), color=colour, alpha=0.15, linewidth=0
        )
        ax.plot(rates, middle, color=colour, marker=marker, label=name)
        good = rates[np.cumprod(middle <= target_s).astype(bool)]  # and at every lower rate
        reach[name] = float(good.max()) if good.size else 0.0
    plots.reference_line(ax, target_s, f"target {target_s:.2g} s")
    plots.reference_line(ax, rate, "rate asked for", axis="x")
    best = max(reach, key=lambda name: reach[name])
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set(
        xlabel="arrival rate (requests/s)",
        ylabel="p90 until the first text (s)",
    )
    ax.set_title(
        f"{best.capitalize()} keeps the target up to {number(reach[best], 2)} requests/s", pad=20
    )
    ax.legend(title="band: seeds", title_fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def draw_gains(table: pd.DataFrame) -> Figure:
    """What a second core gives each stage, three ways."""
    stages = list(dict.fromkeys(table["stage"]))
    ways = list(dict.fromkeys(table["way"]))
    fig, ax = plt.subplots(figsize=(7.6, 0.62 * len(stages) + 1.6))
    for offset, way in enumerate(ways):
        rows = table[table["way"] == way]
        y = np.arange(len(stages)) + 0.22 * (offset - (len(ways) - 1) / 2)
        colour, marker = LOOKS[way]
        middle = rows["value"].to_numpy()
        error = [middle - rows["low"].to_numpy(), rows["high"].to_numpy() - middle]
        ax.errorbar(middle, y, xerr=error, fmt=marker, color=colour, label=way, capsize=3)
    ax.set_yticks(range(len(stages)), stages)
    ax.invert_yaxis()
    plots.reference_line(ax, 1.0, "no gain", axis="x", kind="floor")
    plots.reference_line(ax, 2.0, "twice", axis="x", kind="ideal")
    best = max(table.to_dict("records"), key=lambda row: row["low"])
    ax.set(
        xlabel="throughput over one thread (×)",
    )
    said = f"A second core helps {best['stage']} most: {best['value']:.2f} × by {best['way']}"
    ax.set_title(said, pad=20)
    ax.set_xlim(left=0)
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncol=3)
    return fig


def draw_scaling(curves: pd.DataFrame, workers: Sequence[int]) -> Figure:
    """The Universal Scalability Law, dashed where extrapolated, one panel a stage.

    `curves` as `simulate.scaling.predictions` gives them at every number of workers, `what` being
    stage, way and law; `workers` are the marks of the axis.
    """
    usl = curves[curves["law"] == "USL"]
    names = usl["what"].str.split(", ", expand=True)  # [points, (stage, way, law)]
    stages = names[0].unique()
    fig, axes = plt.subplots(1, len(stages), figsize=(9.2, 4.0), sharey=True)
    for ax, stage in zip(axes, stages, strict=True):
        mine = names[0] == stage
        for way, rows in usl[mine].groupby(names[1][mine], sort=False):
            _draw_law(ax, rows, str(way))
        plots.ideal_scaling(ax, workers, "ideal")
        plots.batch_axis(ax, workers, "workers")
        ax.axvspan(2, max(workers), color="0.5", alpha=0.07, linewidth=0)
        ax.annotate(
            "extrapolated", (2, 1), (5, -12), xycoords=ax.get_xaxis_transform(),
            textcoords="offset points", color=plots.MUTED, fontsize=9,
        )  # fmt: skip
        ax.set_title(stage.capitalize())
    axes[0].set(ylabel="speed-up over one (×)", ylim=(0, max(workers)))
    axes[0].legend(loc="upper left", bbox_to_anchor=(0.0, 0.93))
    return fig


def _draw_law(ax: Axes, rows: pd.DataFrame, way: str) -> None:
    colour, marker = LOOKS[way]
    n, seen = rows["workers"], rows[~rows["extrapolated"]]
    ax.fill_between(n, rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
    ax.plot(n, rows["value"], color=colour, linestyle="--", linewidth=1.2)
    label = way.removeprefix("two ")
    ax.plot(seen["workers"], seen["value"], color=colour, marker=marker, label=label)


def draw_machines(table: pd.DataFrame) -> Figure:
    """Throughput of machines that are not here, with the roofline's wide intervals."""
    fig, ax = plt.subplots(figsize=(7.6, 0.5 * len(table) + 1.6))
    plots.points_with_interval(
        ax,
        table["machine"].tolist(),
        table["throughput_tokens_per_s"].to_numpy(),
        table["low_tokens_per_s"].to_numpy(),
        table["high_tokens_per_s"].to_numpy(),
        implementations=["numpy", *["baseline"] * (len(table) - 1)],
    )
    rows = table.to_dict("records")
    for y, row in enumerate(rows):
        ax.annotate(
            f"batch {row['best_batch']}, even at {number(row['break_even_price_per_hour'], 2)} "
            "an hour",
            (row["throughput_tokens_per_s"], y), (0, 9), textcoords="offset points",
            ha="center", fontsize=8.5, color=plots.MUTED,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.margins(x=0.12)
    fast = max(rows, key=lambda row: row["throughput_tokens_per_s"])
    ax.set(
        xlabel="generated tokens/s, kept busy (logarithmic)",
        title=f"Predicted: {fast['machine']} {fast['speedup']:.0f} × this machine",
    )
    return fig


def draw_distributed(table: pd.DataFrame) -> Figure:
    """Efficiency against machines, shared queue and shards, one panel a trouble."""
    troubles = list(dict.fromkeys(table["trouble"]))
    fig, axes = plt.subplots(1, len(troubles), figsize=(9.6, 3.8), sharey=True)
    for ax, trouble in zip(axes, troubles, strict=True):
        rows = table[table["trouble"] == trouble]
        sizes = rows["machines"].to_numpy()
        for column, colour, marker, text in (
            ("queue_efficiency", "#009E73", "o", "shared queue"),
            ("shards_efficiency", "#D55E00", "s", "dealt out beforehand"),
        ):
            ax.plot(sizes, 100 * rows[column], color=colour, marker=marker, label=text)
        plots.batch_axis(ax, sizes, "machines")
        ax.set_title("No trouble" if trouble == "none" else trouble.capitalize(), fontsize=11)
    axes[0].set(ylabel="efficiency (%)", ylim=(0, 108))
    axes[0].legend(loc="lower left")
    return fig


def draw_jobs(table: pd.DataFrame, goal: float) -> Figure:
    """Efficiency by workers, hollow where extrapolated; and whole jobs, measured and simulated."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.8, 4.0))
    named = table["what"].str.extract(r"^(\w+), (\d+) workers?$")  # [rows, (work, workers)]
    for shift, work, colour, marker in (
        (-0.08, "tokenizing", "#0072B2", "o"), (0.08, "generating", "#D55E00", "s"),
    ):  # fmt: skip
        rows = table[named[0] == work]
        x = np.log2(named[1][rows.index].astype(float)) + shift
        for basis, fill in (("measured", colour), ("extrapolated", "white")):
            mine = (rows["basis"] == basis).to_numpy()
            value, low, high = (100 * rows[c][mine].to_numpy() for c in ("value", "low", "high"))
            left.errorbar(
                x[mine], value, yerr=[value - low, high - value], fmt=marker, color=colour,
                markerfacecolor=fill, capsize=3, label=work if basis == "measured" else None,
            )  # fmt: skip
    counts = sorted(set(named[1].dropna().astype(int)))
    left.set_xticks(np.log2(counts), [str(count) for count in counts])
    left.axvspan(1.5, np.log2(counts[-1]) + 0.3, color="0.5", alpha=0.07, linewidth=0)
    left.annotate(
        "extrapolated", (1.5, 1), (5, -12), xycoords=left.get_xaxis_transform(),
        textcoords="offset points", color=plots.MUTED, fontsize=9,
    )  # fmt: skip
    plots.reference_line(left, 100 * goal, "goal at 2")
    left.set(xlabel="worker processes", ylabel="efficiency (%)")
    left.set_ylim(bottom=0)
    left.legend(loc="lower left")
    two = table[named[1] == "2"].to_dict("records")
    left.set_title("Two workers: " + ", ".join(f"{100 * row['value']:.0f} %" for row in two))
    jobs = list(table[table["basis"] == "simulated"]["what"])
    for basis, colour, marker in (("measured", REAL, "o"), ("simulated", SIMULATED, "s")):
        rows = table[table["what"].isin(jobs) & (table["basis"] == basis)]
        right.plot(rows["value"], range(len(jobs)), marker, color=colour, label=basis)
    right.set_yticks(range(len(jobs)), jobs)
    right.set_ylim(len(jobs) - 0.5, -0.5)
    right.set(xlabel="tokenizing job (s)")
    right.set_xlim(left=0)
    right.legend(loc="lower left")
    pairs = table[table["what"].isin(jobs)].pivot_table(
        index="what", columns="basis", values="value"
    )
    worst = (pairs["measured"] / pairs["simulated"] - 1).loc[lambda off: [off.abs().idxmax()]]
    right.set_title(
        f"Measured against simulated: {percent(worst.iloc[0], sign=True)}, {worst.index[0]}"
    )
    return fig


def draw_ranking(table: pd.DataFrame) -> Chart:
    """Goodput and waiting of every candidate over today's server, in ranked order."""
    best = table.to_dict("records")[0]
    return _two_gains(
        table,
        f"{best['idea']} gains most: {best['goodput_gain']:.2f} × in time, "
        f"{best['waiting_gain']:.1f} × sooner",
    )


def draw_ladder(table: pd.DataFrame) -> Chart:
    """The software ideas on top of each other, each rung on top of the one above."""
    last = table.to_dict("records")[-1]
    said = f"together: {last['goodput_gain']:.2f} × in time, {last['waiting_gain']:.1f} × sooner"
    return _two_gains(table.assign(basis="measured step times"), said)


def _two_gains(table: pd.DataFrame, title: str) -> Chart:
    names = [
        f"{idea} (predicted)" if basis.startswith("predicted") and "predicted" not in idea else idea
        for idea, basis in zip(table["idea"], table["basis"], strict=True)
    ]
    gains = {"goodput_gain": IN_TIME, "waiting_gain": SOONER}
    parts = [
        pd.DataFrame(
            {
                "name": names, "series": series, "gain": table[kind],
                "low": table[f"{kind}_low"], "high": table[f"{kind}_high"],
            }
        )
        for kind, series in gains.items()
    ]  # fmt: skip
    frame = pd.concat(parts, ignore_index=True)
    ticks = charts.powers(frame["low"], frame["high"])
    x = charts.Axis("gain", "times today's server (×); right of 1 is better", 2, ticks)
    looks = charts.Looks(list(gains.values()), [REAL, SIMULATED], ["circle", "diamond"])
    today = charts.Line(1.0, "today", "x", "floor")
    return charts.dots(frame, title[0].upper() + title[1:], x, looks, [today])
