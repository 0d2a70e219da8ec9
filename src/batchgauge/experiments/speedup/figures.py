"""The speedup notebook's pictures, made from its tables."""

from __future__ import annotations

import re

import pandas as pd

from batchgauge.reporting import charts, palette, tables
from batchgauge.reporting.charts import Chart
from batchgauge.text import figures as rounded
from batchgauge.text import first_upper

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
    colours = [palette.colour(name) for name in ("numpy", "baseline")]
    looks = charts.Looks([TOGETHER, ALONE], colours, ["circle", "diamond"])
    title = f"{first_upper(part)}: {len(whole)} rungs, {tables.number(top)} × in all"
    floor = charts.Line(1.0, "baseline", "x", "floor")
    return charts.dots(frame, title, x, looks, [floor])


def forms(table: pd.DataFrame) -> Chart:
    """Decode rate at each batch size against KL divergence from float32, a mark a form."""
    names = [str(c) for c in table]
    sizes = [int(c.rpartition("_")[2]) for c in names if re.fullmatch(r"tokens_per_s_\d+", c)]
    lost = table["divergence_nats"]
    least = max(1e-6, float(lost[lost > 0].min()) / 4) if (lost > 0).any() else 1e-6
    ends = {"y": "", "low": "_low", "high": "_high"}
    heights = {name: table[f"divergence_nats{end}"].clip(lower=least) for name, end in ends.items()}
    shown = pd.concat(
        pd.DataFrame(
            {
                "panel": f"Batch {size}", "series": table["form"], "divergence_nats": lost,
                "rate": table[f"tokens_per_s_{size}"], "x_low": table[f"tokens_per_s_{size}_low"],
                "x_high": table[f"tokens_per_s_{size}_high"], **heights,
            }
        )
        for size in sizes
    )  # fmt: skip
    chart = charts.crosses(
        shown, _fastest(table, sizes[0]),
        charts.Axis("rate", "decode tokens/s"),
        charts.Axis("y", "KL divergence (nats); lowest: none", 10, charts.powers(shown["y"])),
        charts.Looks(list(table["form"]), _COLOURS[: len(table)], _SHAPES[: len(table)]),
        more=["divergence_nats"],
    )  # fmt: skip
    return charts.facets(chart, "panel", 2, own=["x"], height=260)


def _fastest(table: pd.DataFrame, size: int) -> str:
    """The fastest form at a batch size over the first, what it loses, and the fastest without."""
    over = table[f"tokens_per_s_{size}"] / table[f"tokens_per_s_{size}"].iloc[0]
    lost = table.set_index("form")["divergence_nats"]
    over.index = lost.index
    best, free = over.idxmax(), over[lost == 0].idxmax()
    said = f"Batch {size}: “{best}” decodes {over[best]:.1f} × as fast as “{over.index[0]}” "
    if best == free:
        return f"{said}and loses nothing"
    return (
        f"{said}and loses {rounded(lost[best], 2)} nats; without loss “{free}” {over[free]:.1f} ×"
    )


_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C6D1F", "#7F3C8D"),
    *("#444444", "#999999"),
)
_SHAPES = (
    *("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right"),
    *("triangle-left", "stroke", "circle"),
)


def gains(table: pd.DataFrame) -> Chart:
    """S(b) of decode by form of the weights, the file's own modes told from the others."""
    last = table[table["batch_size"] == table["batch_size"].max()].sort_values(
        "value", ascending=False
    )
    own = last["form"].str.endswith("own file")
    frame = last[["value", "low", "high"]].assign(
        name=last["form"], series=own.map({True: OWN, False: CONVERTED})
    )
    size, (most, least) = last["batch_size"].iloc[0], (last.iloc[at] for at in (0, -1))
    return charts.dots(
        frame,
        f"Batches of {size} gain {most['value']:.1f} × with “{most['form']}”, "
        f"{least['value']:.1f} × with “{least['form']}”",
        charts.Axis("value", "decode tokens/s over those at batch 1 (×)"),
        charts.Looks([OWN, CONVERTED], ["#0072B2", "#D55E00"], ["circle", "square"]),
        [charts.Line(1.0, "no gain", "x", "floor")],
    )


def scaling(table: pd.DataFrame) -> Chart:
    """Throughput by threads over one, a row a shape, a panel a number of threads."""
    several = table[table["threads"] > 1]
    names = [
        f"{row['part']}, "
        + {
            "decode": f"batch {row['batch_size']}",
            "prefill": f"{row['tokens']} tokens",
            "tokenize": f"{row['batch_size']} × {row['characters']:,} characters",
        }[row["part"]]
        for row in several.to_dict("records")
    ]
    frame = several[["value", "low", "high"]].assign(
        name=names, series=several["weights"].replace("", TEXTS),
        panel=[f"{count} threads" for count in several["threads"]],
    )  # fmt: skip
    counts = sorted(set(several["threads"]))
    lines = [charts.Line(n, f"ideal: {n} ×", "x", "ideal", flipped=True) for n in counts]
    looks = charts.Looks(
        ["float32", "file", TEXTS], ["#0072B2", "#D55E00", "#009E73"],
        ["circle", "square", "diamond"],
    )  # fmt: skip
    x = charts.Axis("value", "throughput over one thread (×)")
    chart = charts.dots(frame, _most(several), x, looks, lines)
    height = chart.spec["height"]
    return chart if len(counts) == 1 else charts.facets(chart, "panel", 2, height=height)


def _most(several: pd.DataFrame) -> str:
    """Between which factors the most threads lie over one."""
    if several.empty:
        return "This machine has one full-speed core, so there is nothing to share"
    rows = several[several["threads"] == several["threads"].max()]
    least, most = (rows.loc[at] for at in (rows["value"].idxmin(), rows["value"].idxmax()))
    return (
        f"{rows['threads'].iloc[0]} threads give {least['value']:.2f} × ({least['part']}) to "
        f"{most['value']:.2f} × ({most['part']})"
    )


OWN, CONVERTED, TEXTS = "modes of the model's own file", "other files", "tokenizer"
