"""The bottleneck notebook's pictures, made from its tables; `title` says what each shows."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from batchgauge.reporting import charts, palette
from batchgauge.reporting.charts import Chart

_SHAPES = (
    *("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right"),
    *("triangle-left", "stroke"),
)


def stages(frame: pd.DataFrame, title: str) -> Chart:
    """Stacked bars of the stages' shares by batch size, in the stages' own colours."""
    order = [s for s in [*palette.STAGES, "unassigned"] if s in set(frame["stage"])]
    colours = [palette.STAGES.get(stage, "#999999") for stage in order]
    names = [f"batch {size}" for size in frame["batch_size"]]
    shown = frame.assign(name=names, series=frame["stage"], percent=100 * frame["share"])
    x = charts.Axis("percent", "share of the batch's wall time (%)")
    return charts.stacked(shown, title, x, charts.Looks(order, colours, ["square"] * len(order)))


def roofline(frame: pd.DataFrame, bytes_per_s: float, flops_per_s: float, title: str) -> Chart:
    """Each kernel below the roof of these rates: a line through its batch sizes."""
    shown = frame.assign(series=frame["kernel"], gflop_per_s=frame["achieved_flops_per_s"] / 1e9)
    intensities, ridge = frame["intensity_flops_per_byte"], flops_per_s / bytes_per_s
    ends = [min(ridge / 2, intensities.min()), ridge, max(2 * ridge, intensities.max())]
    reached = [min(at * bytes_per_s, flops_per_s) / 1e9 for at in ends]
    roof = pd.DataFrame({"intensity_flops_per_byte": ends, "gflop_per_s": reached, "ratio": 1.0})
    called = f"the roof: {bytes_per_s / 1e9:.1f} GB/s, {flops_per_s / 1e9:.0f} Gflop/s"
    names = [*dict.fromkeys(frame["kernel"]), called]
    colours = [*palette.STAGES.values(), "#8C6D1F"][: len(names) - 1]
    looks = charts.Looks(names, [*colours, palette.INK], _SHAPES[: len(names)])
    return charts.lines(
        pd.concat([shown, roof.assign(series=called)]), title,
        charts.Axis("intensity_flops_per_byte", "arithmetic intensity (flop per byte moved)", 10),
        charts.Axis("gflop_per_s", "rate (Gflop/s)", 10), looks,
        more=["batch_size", "ratio"],
    )  # fmt: skip


def padding(frame: pd.DataFrame, title: str) -> Chart:
    """Padding waste by length spread: this engine against padding to the longest."""
    wastes = {
        "rectangle_waste": "padding every prompt to the longest",
        "engine_waste": "this engine",
    }
    named = frame.rename(columns={"spread": "name", **wastes})
    shown = named.melt("name", [*wastes.values()], "series", "percent")
    shown["percent"] *= 100
    x = charts.Axis("percent", "padded positions computed, of all computed (%)")
    looks = charts.Looks(
        list(wastes.values()), ["#999999", palette.colour("numpy")], ["square"] * 2
    )
    return charts.bars(shown, title, x, looks)


def timeline(line: pd.DataFrame, title: str) -> Chart:
    """Resident memory against time, on an axis of at least a megabyte."""
    above = (line["rss_bytes"] - line["rss_bytes"].iloc[0]) / 1e6
    low, high = float(above.min()), float(above.max())
    room = max(high - low, 1.0)
    y = charts.Axis("above", "above the beginning (MB)", ends=[low - 0.1 * room, low + 1.1 * room])
    frame = pd.DataFrame({"time_s": line["time_s"].round(4), "above": above})
    looks = replace(charts.PLAIN, size=16)
    return charts.lines(frame, title, charts.Axis("time_s", "time (s)"), y, looks)


def overhead(frame: pd.DataFrame, title: str) -> Chart:
    """Slow-down of each profiler, measured here and as published, on a logarithmic axis."""
    seen = frame[frame["slowdown"].notna()].sort_values("slowdown")
    kinds = {"slowdown": "measured in this run", "published_slowdown": "published median"}
    named = seen.rename(columns={"tool": "name", **kinds})
    shown = named.melt("name", [*kinds.values()], "series", "times")
    x = charts.Axis("times", "slow-down (×, logarithmic)", 10)
    looks = charts.Looks(
        list(kinds.values()), [palette.colour("numpy"), palette.colour("baseline")],
        ["circle", "diamond"],
    )  # fmt: skip
    return charts.dots(shown, title, x, looks, [charts.Line(1.0, "", "x", "floor")])
