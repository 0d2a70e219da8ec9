"""The peers notebook's pictures, made from its tables; `title` says what each shows."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batchgauge.reporting import charts, plots
from batchgauge.reporting.charts import Chart
from batchgauge.reporting.tables import number


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


def ratios(table: pd.DataFrame) -> Chart:
    """Our throughput over each peer's, a row a shape, a dot a peer, with intervals."""
    table = table.sort_values(["part", "ours", "threads", "batch_size", "tokens"], kind="stable")
    rows = table.to_dict("records")
    if not rows:
        return Chart("No other engine is installed", charts.words("No other engine is installed"))
    names = [
        f"{r['part']} {r['batch_size']}"
        + (f" × {r['tokens']}" if r["part"] == "prefill" else "")
        + f" · {r['ours'].partition(':')[2]}, {r['threads']} thr."
        for r in rows
    ]
    looks = charts.Looks.of(table["implementation"])
    series = [plots.label(str(r["implementation"])) for r in rows]
    shown = table.drop(columns=["low", "high"]).assign(name=names, series=series)
    shown = shown.rename(columns={"ratio_low_x": "low", "ratio_high_x": "high"})
    ticks = charts.powers(shown["low"], shown["high"])
    x = charts.Axis(
        "ours_over_theirs_x", "our throughput ÷ theirs (×); right of 1 we are faster",
        2, ticks,
    )  # fmt: skip
    title = verdicts(table)
    even = charts.Line(1.0, "as fast as ours", "x", "floor")
    return charts.dots(shown, title, x, looks, [even], more=["ours_is"])


def verdicts(table: pd.DataFrame, what: str = "engines") -> str:
    """How many comparisons we win and lose, and the worst."""
    is_ = table["ours_is"].value_counts()
    said = (
        f"Of {len(table)} comparisons with other {what} we are faster in {is_.get('faster', 0)} "
        f"and slower in {is_.get('slower', 0)}"
    )
    if even := len(table) - is_.get("faster", 0) - is_.get("slower", 0):
        said += f", not told apart in {even}"
    worst = table.sort_values("ours_over_theirs_x").iloc[0]
    return f"{said}; at worst {_one(worst)}" if worst["ours_is"] == "slower" else said


def extremes(table: pd.DataFrame) -> str:
    """The best and the worst comparison."""
    ordered = table.sort_values("ours_over_theirs_x")
    best, worst = ordered.iloc[-1], ordered.iloc[0]
    return f"At best {_one(best)}, at worst {_one(worst)}."


def _one(row: pd.Series) -> str:
    """`0.48 × llama.cpp (decode, batch 1)`."""
    ratio, peer = number(row["ours_over_theirs_x"], 2), plots.label(str(row["implementation"]))
    said = [str(row["part"])] if "part" in row else []
    said.append(f"batch {row['batch_size']}")
    if row.get("characters"):
        said.append(f"{row['characters']:,} characters")
    said += [str(row[key]) for key in ("state",) if key in row]
    if row.get("ours"):
        said.append(row["ours"].partition(":")[2])
    if "threads" in row:
        said.append(f"{row['threads']} thr.")
    return f"{ratio} × {peer} ({', '.join(said)})"


def _headline(figure: Figure, text: str, panels: int) -> None:
    """Write `text` over a figure of so many panels, broken into lines that fit."""
    lines = textwrap.fill(text, 36 * panels + 16)
    figure.suptitle(lines, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
