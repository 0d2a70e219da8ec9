"""How results are drawn: intervals as bands and bars, labelled reference lines, batch axes.

Everything here draws what it is given (numbers, names); nothing measures. Theme and
colours are `batchgauge.reporting.theme`'s, offered here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from batchgauge.reporting.theme import (
    DPI,
    GRID,
    INK,
    MUTED,
    SCALE,
    STAGES,
    colour,
    label,
    marker,
    save,
    use_theme,
    wrap_titles,
)
from batchgauge.text import visible

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DPI",
    "GRID",
    "INK",
    "MUTED",
    "SCALE",
    "STAGES",
    "bars_with_interval",
    "batch_axis",
    "colour",
    "ideal_scaling",
    "label",
    "line_with_interval",
    "marker",
    "points_with_interval",
    "reference_line",
    "save",
    "speedup",
    "use_theme",
    "wrap_titles",
]

Numbers = Sequence[float] | npt.NDArray[np.float64] | npt.NDArray[np.int64]


def line_with_interval(
    ax: Axes,
    x: Numbers,
    value: Numbers,
    low: Numbers | None = None,
    high: Numbers | None = None,
    *,
    implementation: str,
    text: str | None = None,
) -> None:
    """A line with markers and its 95 % interval as a band and caps; all arrays [points]."""
    shade = colour(implementation)
    if low is not None and high is not None:
        ax.fill_between(x, low, high, color=shade, alpha=0.16, linewidth=0)
        _caps(ax, x, value, low, high, shade)
    ax.plot(
        x, value, color=shade, marker=marker(implementation), label=text or label(implementation)
    )


def points_with_interval(
    ax: Axes,
    names: Sequence[str],
    value: Numbers,
    low: Numbers,
    high: Numbers,
    *,
    implementations: Sequence[str] | str = "numpy",
) -> None:
    """One row a name, top to bottom, its value as a dot and its interval as a bar; [names]."""
    rows = range(len(names))
    looks = [implementations] * len(names) if isinstance(implementations, str) else implementations
    for row, look in zip(rows, looks, strict=True):
        ax.plot([low[row], high[row]], [row, row], color=colour(look), linewidth=3, alpha=0.45)
        ax.plot([value[row]], [row], color=colour(look), marker=marker(look), linestyle="none")
    ax.set_yticks(rows, [visible(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def bars_with_interval(
    ax: Axes,
    names: Sequence[str],
    value: Numbers,
    low: Numbers | None = None,
    high: Numbers | None = None,
    *,
    implementations: Sequence[str] | str = "numpy",
    form: str = "{:,.3g}",
) -> None:
    """Horizontal bars from zero with their intervals and their values written beside; [names]."""
    rows = range(len(names))
    looks = [implementations] * len(names) if isinstance(implementations, str) else implementations
    ax.barh(rows, value, color=[colour(look) for look in looks], height=0.62)
    ends = np.asarray(value if high is None else high, dtype=np.float64)
    if low is not None and high is not None:
        error = [np.subtract(value, low), np.subtract(high, value)]
        ax.errorbar(value, rows, xerr=error, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    for row, end in zip(rows, ends, strict=True):
        ax.annotate(
            form.format(value[row]),
            (end, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=INK,
        )
    ax.set_yticks(rows, [visible(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.margins(x=0.12)
    ax.set_xlim(left=0)
    ax.grid(visible=False, axis="y")


def reference_line(
    ax: Axes,
    value: float,
    text: str,
    *,
    axis: Literal["x", "y"] = "y",
    kind: Literal["target", "floor", "ideal"] = "target",
) -> None:
    """A labelled line across the axes at `value` on `axis`: a target, a floor or an ideal."""
    style = {"target": (0, (6, 3)), "floor": (0, (1, 2)), "ideal": (0, (3, 2, 1, 2))}[kind]
    look: dict[str, Any] = {"color": MUTED, "linestyle": style, "linewidth": 1.3, "zorder": 1.5}
    words: dict[str, Any] = {"color": MUTED, "fontsize": 9, "textcoords": "offset points"}
    if axis == "y":
        ax.axhline(value, **look)
        ax.annotate(
            text, (1, value), (0, 4), xycoords=ax.get_yaxis_transform(), ha="right", **words
        )
    else:
        ax.axvline(value, **look)
        where = ax.get_xaxis_transform()
        ax.annotate(text, (value, 1), (0, 2), xycoords=where, va="bottom", ha="center", **words)


def ideal_scaling(ax: Axes, sizes: Numbers, text: str = "ideal: b times as fast") -> None:
    """The line on which a batch of b would have b times the throughput of one, labelled."""
    ends = np.geomspace(min(sizes), max(sizes), 64)  # a curve where only one axis is logarithmic
    ax.plot(ends, ends, color=MUTED, linestyle=(0, (3, 2, 1, 2)), linewidth=1.3, zorder=1.5)
    ax.annotate(
        text,
        (ends[-1], ends[-1]),
        (-10, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9,
        color=MUTED,
    )


def batch_axis(ax: Axes, sizes: Iterable[float], text: str = "batch size (items)") -> None:
    """A logarithmic x axis whose ticks are exactly the batch sizes measured, in plain digits."""
    ticks = sorted(set(sizes))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    ax.set_xlabel(text)


def speedup(
    frame: pd.DataFrame,
    *,
    title: str,
    target: tuple[float, str] | None = None,
    show_ideal: bool = False,
    ylabel: str = "speedup over one at a time (×)",
) -> Figure:
    """Batch speedup against batch size, one line an implementation.

    `frame` has the columns `batch_size`, `value`, `low`, `high` and, for more than
    one line, `implementation`. `target` is a value and its label; with `show_ideal`
    both axes are logarithmic, so that ideal scaling is a straight line.
    """
    fig, ax = plt.subplots()
    if "implementation" not in frame:
        frame = frame.assign(implementation="numpy")
    names = list(dict.fromkeys(frame["implementation"]))
    for name in names:
        rows = frame[frame["implementation"] == name].sort_values("batch_size")
        columns = (rows[c].to_numpy() for c in ("batch_size", "value", "low", "high"))
        line_with_interval(ax, *columns, implementation=str(name))
    reference_line(ax, 1.0, "no gain", kind="floor")
    if show_ideal:
        ideal_scaling(ax, frame["batch_size"].to_numpy())
    if target:
        reference_line(ax, *target)
    batch_axis(ax, frame["batch_size"])
    ax.set(ylabel=ylabel, title=title)
    if show_ideal:
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    else:
        ax.set_ylim(bottom=0)
    if len(names) > 1:
        ax.legend(loc="upper left")
    return fig


def _caps(ax: Axes, x: Numbers, value: Numbers, low: Numbers, high: Numbers, shade: str) -> None:
    below = np.maximum(np.subtract(value, low), 0.0)
    above = np.maximum(np.subtract(high, value), 0.0)
    ax.errorbar(x, value, yerr=[below, above], fmt="none", ecolor=shade, elinewidth=1, capsize=3)
