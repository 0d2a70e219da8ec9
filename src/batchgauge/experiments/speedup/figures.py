"""The speedup notebook's pictures, made from its tables."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from batchgauge.reporting import charts, plots, tables
from batchgauge.reporting.charts import Chart

TOGETHER, ALONE = "with all before it", "alone"  # the two forms of a rung, as a reader knows them


def ladder(whole: pd.DataFrame, alone: pd.DataFrame) -> Chart:
    """Speedup over the baseline by rung: all ideas up to it, and the idea alone."""
    part, top = str(whole["part"].iloc[0]), whole["speedup_x"].iloc[-1]
    order = list(whole["rung"])
    frame = pd.concat([whole.assign(series=TOGETHER), alone.assign(series=ALONE)])
    status = dict(zip(whole["rung"], whole["status"], strict=True))
    names = {r: r if status[r] == "ok" else f"{r} ({status[r]})" for r in order}
    frame = frame[frame["rung"].isin(order)].rename(columns={"low_x": "low", "high_x": "high"})
    frame = frame.assign(name=frame["rung"].map(names))
    ticks = charts.powers(*(frame[c] for c in ("speedup_x", "low", "high")))
    x = charts.Axis("speedup_x", "speedup over the baseline (×)", 2, ticks)
    colours = [plots.colour(name) for name in ("numpy", "baseline")]
    looks = charts.Looks([TOGETHER, ALONE], colours, ["circle", "diamond"])
    title = f"{part.capitalize()}: {len(whole)} rungs, {tables.number(top)} × in all"
    floor = charts.Line(1.0, "baseline", "x", "floor")
    return charts.dots(frame, title, x, looks, [floor])


def forms(table: pd.DataFrame, title: str) -> Figure:
    """Decode rate at each batch size against KL divergence from float32, a point a form."""
    names = [str(c) for c in table]
    sizes = [int(c.rpartition("_")[2]) for c in names if re.fullmatch(r"tokens_per_s_\d+", c)]
    fig, axes = plt.subplots(1, len(sizes), figsize=(3.9 * len(sizes) + 2.2, 4.2), sharey=True)
    least = max(1e-4, table.loc[table["divergence_nats"] > 0, "divergence_nats"].min() / 4)
    looks = list(dict.fromkeys(table["form"]))
    for ax, size in zip(axes, sizes, strict=True):
        for number, row in enumerate(table.to_dict("records")):
            x = [row[f"tokens_per_s_{size}{end}"] for end in ("", "_low", "_high")]
            y = [max(least, row[f"divergence_nats{end}"]) for end in ("", "_low", "_high")]
            colour = plt.get_cmap("tab10")(number % 10)
            ax.errorbar(
                x[0], y[0], xerr=[[x[0] - x[1]], [x[2] - x[0]]],
                yerr=[[y[0] - y[1]], [y[2] - y[0]]],
                color=colour, marker="osD^vPX*hp"[number % 10], capsize=2, linestyle="none",
                label=looks[number],
            )  # fmt: skip
        rate = table[f"tokens_per_s_{size}"]
        ax.set_xlim(0, 1.35 * rate.max())
        ax.set(yscale="log", title=f"Batch {size}", xlabel="decode tokens/s")
    axes[0].set_ylim(least / 2)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda nats, _: f"{nats:g}"))
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel("KL divergence from float32 (nats);\nlowest: none at all")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    fig.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    return fig


def gains(table: pd.DataFrame) -> Figure:
    """S(b) of decode by form of the weights, own file's modes before the others."""
    last = table[table["batch_size"] == table["batch_size"].max()].sort_values("value")
    fig, ax = plt.subplots(figsize=(7.6, 0.4 * len(last) + 1.5))
    looks = ["numpy" if name.endswith("own file") else "baseline" for name in last["form"]]
    columns = (last[c].to_list() for c in ("value", "low", "high"))
    plots.points_with_interval(ax, last["form"].to_list(), *columns, implementations=looks)
    size = last["batch_size"].iloc[0]
    ax.set_xlim(0, 1.2 * last["value"].max())
    ax.set(xlabel="tokens/s over those at batch 1 (×)", title=f"Decode: S({size}) by weights")
    return fig


def scaling(table: pd.DataFrame, title: str) -> Figure:
    """Throughput by threads over one, one panel a part; a line a mode and shape."""
    parts = list(dict.fromkeys(table["part"]))
    size = (3.9 * len(parts) + 1.0, 4.4)
    fig, axes = plt.subplots(1, len(parts), figsize=size, sharey=True, squeeze=False)
    counts = sorted(set(table["threads"]))
    for ax, part in zip(axes[0], parts, strict=True):
        mine = table[table["part"] == part]
        shapes = mine.groupby(["weights", "batch_size", "characters", "tokens"], sort=False)
        for number, ((weights, size, characters, tokens), rows) in enumerate(shapes):
            label = {
                "decode": f"{weights}, batch {size}",
                "prefill": f"{weights}, {tokens} tokens",
                "tokenize": f"{size} × {characters:,} characters",
            }[str(part)]
            error = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            ax.errorbar(
                rows["threads"] * 1.01**number, rows["value"], yerr=error, capsize=3,
                marker="osD^vPX*"[number % 8], linestyle="--" if weights == "file" else "-",
                label=label,
            )  # fmt: skip
        plots.ideal_scaling(ax, counts, "ideal")
        plots.batch_axis(ax, counts, "threads")
        ax.set_title(str(part).capitalize())
        ax.legend(loc="upper left", fontsize=8.5)
    axes[0][0].set(ylabel="throughput over one thread (×)")
    top = min(1.3 * max(counts), 2.0 * table["value"].max())
    axes[0][0].set_ylim(0, top)
    fig.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    return fig
