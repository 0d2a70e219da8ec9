"""The peers notebook's pictures, made from its tables; `title` says what each shows."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchgauge.reporting import plots


def tokenizing(table: pd.DataFrame, title: str, state: str) -> Figure:
    """MB/s against batch size, one panel a text length; `table` is of one thread."""
    table = table.drop_duplicates(["implementation", "characters", "batch_size"])
    lengths = sorted(set(table["characters"]))
    figure, panels = plt.subplots(
        1, len(lengths), figsize=(3.6 * len(lengths) + 1.2, 4.0), sharey=True, squeeze=False
    )
    for ax, length in zip(panels[0], lengths, strict=True):
        for name, rows in table[table["characters"] == length].groupby(
            "implementation", sort=False
        ):
            ordered = rows.sort_values("batch_size")
            columns = (ordered[c].to_numpy() for c in ("batch_size", "value", "low", "high"))
            look = f"{name}:tokenizer" if name == "llama-cpp" else str(name)
            plots.line_with_interval(ax, *columns, implementation=look)
        ax.set_title(f"{length:,} characters")
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        plots.batch_axis(ax, table["batch_size"], "batch size (texts)")
    panels[0][0].set_ylabel(f"MB/s, {state}")
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    _headline(figure, title, len(lengths))
    return figure


def decode(table: pd.DataFrame, title: str) -> Figure:
    """Decode tokens a second against batch size, one panel a thread count."""
    table = table.drop_duplicates(["implementation", "threads", "batch_size"])
    counts = sorted(set(table["threads"]))
    figure, panels = plt.subplots(
        1, len(counts), figsize=(4.4 * len(counts) + 1.6, 4.2), sharey=True, squeeze=False
    )
    for ax, threads in zip(panels[0], counts, strict=True):
        _lines(ax, table[table["threads"] == threads])
        ax.set_title(f"{threads} thread{'s' if threads > 1 else ''}")
        plots.batch_axis(ax, table["batch_size"], "batch size (requests)")
        ax.set_ylim(bottom=0)
    panels[0][0].set_ylabel("decode throughput (tokens/s)")
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    _headline(figure, title, len(counts))
    return figure


def _lines(ax: Axes, table: pd.DataFrame) -> None:
    for name, rows in table.groupby("implementation", sort=False):
        ordered = rows.sort_values("batch_size")
        columns = (ordered[c].to_numpy() for c in ("batch_size", "value", "low", "high"))
        plots.line_with_interval(ax, *columns, implementation=str(name))


def ratios(table: pd.DataFrame) -> Figure:
    """Our throughput over each peer's, a row a shape, with intervals; none may be missing."""
    table = table.sort_values(["part", "implementation", "threads", "ours", "batch_size"])
    names = [
        f"{plots.label(r['implementation'])} · {r['part']} {r['batch_size']}"
        + (f" × {r['tokens']}" if r["part"] == "prefill" else "")
        + f" · {r['ours'].partition(':')[2]}, {r['threads']} thr."
        for r in table.to_dict("records")
    ]
    figure, ax = plt.subplots(figsize=(8.2, 1.2 + 0.27 * len(names)))
    if not names:
        ax.set_axis_off()
        ax.set_title("No other engine is installed")
        return figure
    columns = (table[c].to_list() for c in ("ours_over_theirs_x", "ratio_low_x", "ratio_high_x"))
    plots.points_with_interval(
        ax, names, *columns, implementations=table["implementation"].to_list()
    )
    plots.reference_line(ax, 1.0, "as fast as ours", axis="x", kind="floor")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set(xlabel="our throughput ÷ theirs (×); right of 1 we are faster")
    faster = int((table["ours_is"] == "faster").sum())
    slower = int((table["ours_is"] == "slower").sum())
    ax.set_title(
        f"Of {len(names)} comparisons we are faster in {faster} and slower in {slower}", pad=24
    )
    return figure


def _headline(figure: Figure, text: str, panels: int) -> None:
    """Write `text` over a figure of so many panels, broken into lines that fit."""
    lines = textwrap.fill(text, 36 * panels + 16)
    figure.suptitle(lines, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
