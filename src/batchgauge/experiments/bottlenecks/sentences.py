"""What the bottleneck notebook's tables and profiles say, in sentences and titles."""

from __future__ import annotations

import math
import re

import pandas as pd

from batchgauge.machine.rates import Rates
from batchgauge.profiling.flamegraph import amount
from batchgauge.profiling.lines import LineProfile
from batchgauge.profiling.stacks import KIND_LABELS, StackProfile
from batchgauge.text import Markdown, code, counted, first_upper, percent

MOST_EXPLAINED = 1.1  # of a run: lines that add up to more hold a call twice


def file_stem(name: str) -> str:
    """A name of a part as part of a file name: `tokenizing (numpy)` is `tokenizing_numpy`."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()


def flame_sentence(name: str, profile: StackProfile) -> Markdown:
    """Which class of code holds a part's time, and its hottest line."""
    hottest = profile.by_owner().iloc[0]
    return Markdown("{}; the hottest line is {} with {}.").format(
        flame_title(name, profile), code(f"{hottest['function']}:{hottest['line']}"),
        percent(hottest["share"]),
    )  # fmt: skip


def flame_title(name: str, profile: StackProfile) -> str:
    """The class of code with the most time; of allocations, the function with the most bytes."""
    if profile.unit == "bytes":
        share = profile.table()["self_share"].iloc[0]
        return f"{first_upper(name)}: {percent(share)} of the bytes are allocated in one function"
    shares = profile.by_kind()
    largest = max(shares, key=lambda kind: shares[kind])
    return f"{first_upper(name)}: {percent(shares[largest])} of the time in {KIND_LABELS[largest]}"


def class_table(samples: dict[str, StackProfile]) -> pd.DataFrame:
    """One row a part: the share of each class of code, what they add up to, samples, tool."""
    rows = []
    for name, profile in samples.items():
        shares = {label: profile.by_kind()[kind] for kind, label in KIND_LABELS.items()}
        seen = {"samples": profile.samples, "tool": profile.tool}
        rows.append({"part": name, **shares, "attributed": sum(shares.values()), **seen})
    return pd.DataFrame(rows)


def attribution_sentence(samples: dict[str, StackProfile]) -> str:
    """How much of the measured time is on stacks, over all parts."""
    if not samples:
        return "No call profile was taken."
    shares = [profile.attributed for profile in samples.values()]
    tools = sorted({profile.tool for profile in samples.values()})
    return (
        f"{_range(shares)} of the measured time is attributed to stacks "
        f"({' and '.join(tools)}, {sum(p.samples for p in samples.values())} samples)."
    )


def _range(shares: list[float]) -> str:
    low, high = percent(min(shares), 1), percent(max(shares), 1)
    return low if low == high else f"{low} to {high}"


def lines_sentence(name: str, profile: LineProfile) -> Markdown:
    """The hottest line of a part, and how much of the time the lines explain."""
    first = profile.hottest(1).iloc[0]
    explained = percent(profile.attributed)
    rest = (
        f"Lines and their tracing explain {explained} of the profiled run."
        if profile.attributed <= MOST_EXPLAINED
        else f"The lines' times add up to {explained} of the run: some calls count twice, in their "
        "own lines and in one that calls without naming them."
    )
    return Markdown("{}: {} in {} (line {}) has {} of the lines' time in {:,} hits. {}").format(
        first_upper(name), code(first["source"]), code(first["function"]), first["line"],
        percent(first["share"]), first["hits"], rest,
    )  # fmt: skip


def stages_sentence(frame: pd.DataFrame) -> str:
    """The largest stage of the smallest and the largest batch."""
    words = []
    for size in (frame["batch_size"].min(), frame["batch_size"].max()):
        rows = frame[frame["batch_size"] == size]
        top = rows.iloc[int(rows["share"].argmax())]
        words.append(f"{top['stage']} takes {percent(top['share'])} of a batch of {size}")
    return first_upper(", ".join(dict.fromkeys(words)))


def stages_finding(frame: pd.DataFrame) -> str:
    """The stages' sum against the clock, and everything that is neither prefill nor decode."""
    sums = frame[frame["stage"] != "unassigned"].groupby("batch_size")["share"].sum()
    rest = frame[~frame["stage"].isin(["prefill", "decode"])].groupby("batch_size")["share"].sum()
    return (
        f"The named stages add up to {_range(list(sums))} of the wall time; "
        f"everything but prefill and decode is at most {percent(rest.max(), 1)}."
    )


def padding_sentence(frame: pd.DataFrame) -> str:
    """What the widest spread costs in a rectangle, and in this engine."""
    worst = frame.iloc[int(frame["rectangle_waste"].argmax())]
    return (
        f"At “{worst['spread']}” lengths a rectangle wastes {percent(worst['rectangle_waste'])}, "
        f"this engine {percent(worst['engine_waste'])}"
    )


def timeline_sentence(line: pd.DataFrame) -> str:
    """How much resident memory grew, and its peak."""
    grown = line["rss_bytes"].iloc[-1] - line["rss_bytes"].iloc[0]
    rise = line["rss_bytes"].max() - line["rss_bytes"].iloc[0]
    peak = amount(line["rss_bytes"].max(), "bytes")
    sign = "-" if grown < 0 else "+"
    return (
        f"Resident memory rises by {amount(max(rise, 0.0), 'bytes')} to {peak}; "
        f"{sign}{amount(abs(grown), 'bytes')} at the end"
    )


def roofline_title(frame: pd.DataFrame, size: int) -> str:
    """How far decode and prefill are from the machine's limit at one batch size."""
    rows = frame[frame["batch_size"] == size].set_index("kernel")
    words = [
        f"{name} at {rows['ratio'][name]:.1f} × its floor"
        for name in ("decode", "prefill")
        if name in rows.index
    ]
    return f"Batch {size}: {', '.join(words)}"


def roofline_sentence(frame: pd.DataFrame, rates: Rates, size: int) -> str:
    """The machine's rates, and the kernel furthest from its floor."""
    rows = frame[frame["batch_size"] == size]
    worst = rows.iloc[int(rows["ratio"].argmax())]
    return (
        f"This machine reads {rates.bandwidth_bytes_per_s / 1e9:.1f} GB/s and multiplies at "
        f"{rates.flops_per_s / 1e9:.0f} Gflop/s on {counted(rates.threads, 'thread')}. At batch "
        f"{size}, {worst['kernel']} is furthest from its floor: {worst['ratio']:.1f} times."
    )


def overhead_sentence(frame: pd.DataFrame) -> str:
    """The cheapest and the dearest profiler of this run."""
    seen = frame[frame["slowdown"].notna()]
    if seen.empty:
        return "No profiler's overhead was measured"
    times = seen["slowdown"]
    least, most = (seen.iloc[int(at)] for at in (times.argmin(), times.argmax()))
    return (
        f"Profiler overhead: {_times(least['slowdown'])} × with {least['tool']}, "
        f"{_times(most['slowdown'])} × with {most['tool']}"
    )


def _times(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def system_sentence(frame: pd.DataFrame) -> str:
    """Which part left the processor idle most, and which touched most new pages."""
    idle = frame.iloc[int(frame["cpu_utilisation"].argmin())]
    text = f"CPU utilisation is lowest in {idle['part']}: {idle['cpu_utilisation']:.2f} cores busy."
    if frame["minor_faults"].notna().any():
        paged = frame.iloc[int(frame["minor_faults"].argmax())]
        text += f" Most pages are touched for the first time in {paged['part']}: "
        text += f"{paged['minor_faults']:,.0f} a call."
    return text


def gil_sentence(frame: pd.DataFrame) -> str:
    """Which calls let another thread run, what two threads gained, and whether to believe it."""
    reference = "sgemm 512³"  # where it gains little, something else kept the second core busy
    free = frame[frame["gil"] == "releases the GIL"]
    stuck = frame[frame["gil"] != "releases the GIL"]
    gains = dict(zip(frame["call"], frame["two_thread_speedup"], strict=True))
    best = max(gains, key=lambda call: gains[call])
    text = (
        f"The lock was free most of the time in: {_names(free['call'])}; not in: "
        f"{_names(stuck['call'])}. Two threads gain most on {best}, {gains[best]:.2f} times."
    )
    if gains.get(reference, 2.0) < 1.6:
        text += (
            f" But {reference}, which certainly releases the lock, gained only "
            f"{gains[reference]:.2f} times: the second core was not free, and these are lower "
            "bounds."
        )
    return text


def _names(column: pd.Series[str]) -> str:
    names = list(column)
    if not names:
        return "none"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def answer(findings: pd.DataFrame, size: int) -> Markdown:
    """The stages that take a batch's time, how far they are from their floors, what that leaves."""
    if findings.empty:
        return Markdown("Nothing takes a share of the time that is worth a finding.")
    rows = _stages(findings)
    if rows.empty:
        first = findings.iloc[0]
        return Markdown("{} takes {} of {}. {}").format(
            code(first["where"]), percent(first["share"]), first["part"], first["recommendation"]
        )
    takes = " and ".join(f"{r['where']} {percent(r['share'])}" for _, r in rows.iterrows())
    text = f"Of a batch of {size}, {takes}"
    known = rows[rows["floor_ratio"].notna()]
    if len(known):
        ratios = " and ".join(f"{ratio:.1f} ×" for ratio in known["floor_ratio"])
        text += f", at {ratios} the least time that this machine's memory and cores allow"
        gain = 1.0 / (
            1.0 - sum(known["share"] * (1.0 - 1.0 / known["floor_ratio"].clip(lower=1.0)))
        )
        text += (
            f": at those floors a batch would be {gain:.2f} × as fast"
            if gain >= 1.05
            else ": hardly anything is left to gain"
        )
    return Markdown("{}. {}").format(text, rows.iloc[0]["recommendation"])


def _stages(findings: pd.DataFrame) -> pd.DataFrame:
    """The two largest stages of a batch, if there are any."""
    stages = findings[findings["part"].str.match(r"inference \((?!baseline\))")]
    return stages.sort_values("share", ascending=False).head(2)


def time_tile(findings: pd.DataFrame, size: int) -> tuple[str, str] | None:
    """The largest stage in a few words, and the rest of the sentence; None without stages."""
    rows = _stages(findings).to_dict("records")
    if not rows:
        return None
    value = f"{first_upper(rows[0]['where'])}, {percent(rows[0]['share'])}"
    floors = [
        f"{r['where']} runs at {r['floor_ratio']:.1f} × the least time this machine allows"
        for r in rows
        if not math.isnan(r["floor_ratio"])
    ]
    others = f"{rows[1]['where']} takes {percent(rows[1]['share'])}" if len(rows) > 1 else ""
    said = "; ".join(filter(None, [f"Of a batch of {size}", *floors, others]))
    return value, f"{said.replace(';', ':', 1)}."
