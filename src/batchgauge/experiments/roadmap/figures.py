"""The roadmap notebook's pictures; every title states what its data show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from batchgauge.reporting import charts, palette
from batchgauge.reporting.charts import Axis, Chart, Line, Looks
from batchgauge.reporting.tables import number
from batchgauge.text import counted, percent
from batchgauge.text import figures as rounded

IN_TIME, SOONER = "requests in time", "p90 wait, shorter by"  # the two gains
STEP, TOKEN = "one decode step", "a token of it"  # the two times
QUEUE, SHARDS = "shared queue", "dealt out beforehand"
REAL, SIMULATED = "#0072B2", "#D55E00"
# Policies, ways and kinds of basis have no implementation's colour: Okabe and Ito's others.
LOOKS: Mapping[str, tuple[str, str]] = {
    "static": ("#D55E00", "square"),
    "dynamic": ("#56B4E9", "circle"),
    "continuous": ("#009E73", "triangle-up"),
    "two BLAS threads": ("#0072B2", "circle"),
    "two Python threads": ("#E69F00", "triangle-up"),
    "two processes": ("#009E73", "square"),
    STEP: (REAL, "circle"),
    TOKEN: ("#009E73", "diamond"),
    QUEUE: ("#009E73", "circle"),
    SHARDS: ("#D55E00", "square"),
    "measured": (REAL, "circle"),
    "measured steps": (REAL, "circle"),
    "extrapolated": (SIMULATED, "diamond"),
    "predicted": (SIMULATED, "diamond"),
}


def _looks(names: Iterable[str]) -> Looks:
    every = list(dict.fromkeys(names))
    return Looks(every, [LOOKS[name][0] for name in every], [LOOKS[name][1] for name in every])


def draw_step_time(table: pd.DataFrame) -> Chart:
    """A decode step and a token's share of it against batch size."""
    sizes = table["batch_size"]
    frame = pd.concat(
        pd.DataFrame(
            {"series": series, "batch_size": sizes, "ms": table["step_ms"] / per,
             "low": table["step_low_ms"] / per, "high": table["step_high_ms"] / per}
        )
        for series, per in ((STEP, 1), (TOKEN, sizes))
    )  # fmt: skip
    most, rise = sizes.iloc[-1], table["step_ms"].iloc[-1] / table["step_ms"].iloc[0]
    title = (
        f"A decode step for {most} takes {rise:.1f} × that for one: a token takes "
        f"{percent(rise / most)} of the time"
    )
    x = Axis("batch_size", "sequences in the batch", 2, sizes.tolist())
    return charts.lines(frame, title, x, Axis("ms", "time (ms)"), _looks([STEP, TOKEN]))


def draw_validation(figures: pd.DataFrame) -> Chart:
    """Simulated over real of every figure, a row a policy and load, with the bounds."""
    frame = figures.assign(
        name=[
            f"{row['policy']}, {percent(row['load'])} of capacity"
            for row in figures.to_dict("records")
        ],
        series=figures["time_to"] + ", " + figures["figure"],
    )
    columns = ["name", "series", "simulated_over_real", "low", "high", "real_ms", "simulated_ms"]
    names = list(dict.fromkeys(frame["series"]))
    hues, shapes = (REAL, "#E69F00", "#D55E00", "#56B4E9"), ("circle", "square", "diamond", "cross")
    bounds = sorted(set(figures["bound"]))
    marks = [Line(1.0, "", "x", "floor")]
    for bound in bounds:
        marks += [Line(1.0 - bound, f"±{percent(bound)}", "x"), Line(1.0 + bound, "", "x")]
    found = [f"{n} {verdict}" for verdict, n in figures["verdict"].value_counts().items()]
    kept = " and ".join(f"±{percent(bound)}" for bound in bounds)
    title = f"Simulated times against their bounds of {kept}: {', '.join(found)}"
    return charts.dots(
        frame[columns], title, Axis("simulated_over_real", "simulated ÷ real", zero=False),
        Looks(names, hues[: len(names)], shapes[: len(names)]), marks,
        more=["real_ms", "simulated_ms"],
    )  # fmt: skip


def draw_policy_curves(curves: pd.DataFrame, target_s: float, rate: float) -> Chart:
    """p90 until the first text against the arrival rate, with the target."""
    seconds = curves.rename(columns={"policy": "series"}).assign(s=curves["p90_ms"] / 1e3)
    groups = seconds.groupby(["series", "arrival_rate"], sort=False)["s"]
    frame = groups.agg(p90_s="median", low="min", high="max").reset_index()
    reach = {}
    for name, rows in frame.sort_values("arrival_rate").groupby("series", sort=False):
        kept = rows[(rows["p90_s"] <= target_s).cummin()]  # and at every lower rate
        reach[str(name)] = float(kept["arrival_rate"].max()) if len(kept) else 0.0
    ends = [
        f"{name} up to {number(reach[name], 2)} requests/s" if reach[name] else f"{name} never"
        for name in sorted(reach, key=lambda name: -reach[name])
    ]
    title = f"Under the target: {', '.join(ends)}"
    ticks = charts.powers(frame["low"], frame["high"])
    marks = [
        Line(target_s, f"target {rounded(target_s, 2)} s", flipped=True),
        Line(rate, "rate asked for", "x"),
    ]
    return charts.lines(
        frame, title, Axis("arrival_rate", "arrival rate (requests/s)"),
        Axis("p90_s", "p90 until the first text (s)", 2, ticks, interval="range over seeds"),
        _looks(reach), marks,
    )  # fmt: skip


def draw_gains(table: pd.DataFrame) -> Chart:
    """What a second core gives each stage, three ways."""
    frame = table.rename(columns={"stage": "name", "way": "series"})
    best = max(table.to_dict("records"), key=lambda row: row["low"])
    title = f"A second core helps {best['stage']} most: {best['value']:.2f} × by {best['way']}"
    marks = [Line(1.0, "no gain", "x", "floor"), Line(2.0, "twice", "x", "ideal")]
    x = Axis("value", "throughput over one thread (×)")
    columns = ["name", "series", "value", "low", "high"]
    return charts.dots(frame[columns], title, x, _looks(frame["series"]), marks)


def draw_scaling(curves: pd.DataFrame, workers: Sequence[int]) -> Chart:
    """The Universal Scalability Law, extrapolated beyond two, one panel a stage.

    `curves` as `simulate.scaling.predictions` gives them at every number of workers, `what` being
    stage, way and law; `workers` are the marks of the axis.
    """
    usl = curves[curves["law"] == "USL"]
    names = usl["what"].str.split(", ", expand=True)  # [points, (stage, way, law)]
    frame = usl[["workers", "value", "low", "high"]].assign(
        stage=names[0].str.capitalize(), series=names[1]
    )
    far = usl[usl["workers"] == max(workers)].to_dict("records")
    best = max(far, key=lambda row: row["low"])
    title = (
        f"{counted(best['workers'], 'worker')}{', extrapolated' * best['extrapolated']}: at best "
        f"{best['low']:.1f} to {best['high']:.1f} × ({best['what'].removesuffix(', USL')})"
    )
    x = Axis("workers", "workers", 2, workers)
    ticks = charts.powers(frame["low"], frame["high"])
    y = Axis("value", "speed-up over one (×)", 2, ticks, interval="range of the law")
    marks = [Line(2.0, "extrapolated", "x", "floor")] * best["extrapolated"]
    chart = charts.lines(frame, title, x, y, _looks(frame["series"]), marks)
    ideal: charts.Spec = {
        "data": {"values": [{"workers": n, "value": n} for n in (1, max(workers))]},
        "mark": {"type": "line", "color": palette.MUTED, "strokeDash": [6, 3, 1, 3]},
        "encoding": {"x": x.encoding(), "y": y.encoding()},
    }
    chart.spec["layer"].insert(0, ideal)
    return charts.facets(chart, "stage", 2)


def draw_machines(table: pd.DataFrame) -> Chart:
    """Throughput of machines that are not here, with the roofline's wide intervals."""
    ends = {f"{end}_tokens_per_s": end for end in ("low", "high")}
    frame = table.rename(columns={"machine": "name", "basis": "series", **ends})
    fast = max(table.to_dict("records")[1:], key=lambda row: row["throughput_tokens_per_s"])
    title = f"Predicted: {fast['machine']} {fast['speedup']:.0f} × this machine"
    more = ["speedup", "best_batch", "price_per_million_tokens", "break_even_price_per_hour"]
    columns = ["name", "series", "throughput_tokens_per_s", "low", "high", *more]
    ticks = charts.powers(frame["low"], frame["high"])
    x = Axis("throughput_tokens_per_s", "generated tokens/s (logarithmic)", 10, ticks)
    return charts.dots(frame[columns], title, x, _looks(frame["series"]), more=more)


def draw_distributed(table: pd.DataFrame) -> Chart:
    """Efficiency against machines, shared queue and shards, one panel a trouble."""
    frame = pd.concat(
        pd.DataFrame(
            {
                "series": series, "machines": table["machines"], "efficiency": 100 * table[column],
                "trouble": table["trouble"].replace("none", "no trouble").str.capitalize(),
            }
        )
        for series, column in ((QUEUE, "queue_efficiency"), (SHARDS, "shards_efficiency"))
    )  # fmt: skip
    most = table[table["machines"] == table["machines"].max()].to_dict("records")
    worst = min(most, key=lambda row: row["shards_efficiency"])
    title = (
        f"{worst['machines']} machines, {worst['trouble'].replace('none', 'no trouble')}: "
        f"{percent(worst['queue_efficiency'])} efficient with a shared queue, "
        f"{percent(worst['shards_efficiency'])} dealt out beforehand"
    )
    x = Axis("machines", "machines", 2, sorted(set(table["machines"])))
    y = Axis("efficiency", "efficiency (%)")
    return charts.facets(charts.lines(frame, title, x, y, _looks([QUEUE, SHARDS])), "trouble", 3)


def draw_jobs(table: pd.DataFrame, goal: float) -> Chart:
    """Efficiency of several workers, measured at two, extrapolated beyond."""
    rows = table[table["what"].str.contains(r"^\w+, \d+ workers$")]
    shown = 100 * rows[["value", "low", "high"]]
    frame = shown.assign(name=rows["what"], series=rows["basis"])
    said = [
        f"{percent(row['value'])} {row['what'].split(',')[0]}"
        for row in rows[rows["basis"] == "measured"].to_dict("records")
    ]
    marks = [Line(100 * goal, "goal at 2", "x")]
    return charts.dots(
        frame, f"Efficiency of two workers: {', '.join(said)}",
        Axis("value", "efficiency (%)"), _looks(frame["series"]), marks,
    )  # fmt: skip


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
    x = Axis("gain", "times today's server (×); right of 1 is better", 2, ticks)
    looks = Looks(list(gains.values()), [REAL, SIMULATED], ["circle", "diamond"])
    today = Line(1.0, "today", "x", "floor")
    return charts.dots(frame, title[0].upper() + title[1:], x, looks, [today])
