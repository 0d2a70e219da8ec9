"""The bottleneck notebook's sections: each takes its pass and gives what the report shows.

A section whose tool was not asked for, or that needs an engine where the user's own
function is profiled, says so in a sentence instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from batchgauge.experiments.bottlenecks import events, figures, kernels, parts, passes, sentences
from batchgauge.experiments.bottlenecks import findings as found
from batchgauge.experiments.bottlenecks.parts import Subject
from batchgauge.profiling.findings import finding_sentence, worth_a_sentence
from batchgauge.profiling.flamegraph import draw_flamegraph, render_svg
from batchgauge.profiling.listing import Listing
from batchgauge.profiling.stacks import StackProfile
from batchgauge.reporting import Answer, Section, Tile
from batchgauge.text import Markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_ENGINE = "Left out: this looks into an engine, and a function of your own is profiled here."

NOT_OURS = "Left out: this is about the project's own code, and the engine here is another."

start, batch_sizes = parts.start, kernels.batch_sizes


def _missing(subject: Subject, tool: str) -> Section:
    said = [note for note in subject.notes if note.startswith(tool)]
    not_asked = Markdown(f"Not asked for: the parameter `tools` does not name {tool}.")
    return Section(tool, {}, Markdown(" ").join(said) or not_asked)


def _portable(frame: pd.DataFrame) -> pd.DataFrame:
    """A profile's table with files named by their last three parts, as on any machine."""
    short = ["/".join(str(f).replace("\\", "/").split("/")[-3:]) for f in frame["file"]]
    return frame.assign(file=short)


def _joined(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    named = [frame.assign(part=name) for name, frame in frames.items()]
    return _portable(pd.concat(named, ignore_index=True))


def stages(subject: Subject, *, sizes: Sequence[int]) -> Section:
    """Stacked bars of the engine's stages by batch size."""
    frame = kernels.stages(subject, sizes)
    if frame.empty:
        unknown = "This engine does not report its stages."
        return Section("stages", {}, NO_ENGINE if subject.target else unknown)
    title = sentences.stages_sentence(frame)
    return Section(
        "stages", {"stages": frame}, f"{title}. {sentences.stages_finding(frame)}",
        picture=partial(figures.stages, frame, title),
        picture_caption="Where a batch's time goes, by batch size; same prompts, greedy, no early "
        "stop.",
        rests_on="1 call a size, 1 process",
    )  # fmt: skip


def padding(subject: Subject, *, mean_tokens: int) -> Section:
    """Padding waste by spread of the prompts' lengths."""
    frame = kernels.padding(subject, mean_tokens)
    if frame.empty:
        unknown = "This engine does not count the positions that it pads."
        return Section("padding_waste", {}, NO_ENGINE if subject.target else unknown)
    title = sentences.padding_sentence(frame)
    return Section(
        "padding_waste", {"padding": frame}, f"{title}.",
        picture=partial(figures.padding, frame, title),
        picture_caption=f"Padding waste of {subject.batch_size} prompts by spread of lengths.",
        rests_on="1 call a spread, 1 process",
    )  # fmt: skip


def calls(subject: Subject, *, seconds: float) -> list[Section]:
    """Flame graphs of every part, the table of code classes, and what they add up to."""
    samples = passes.sample(subject, seconds)
    if not samples:
        return [_missing(subject, "calls")]
    graphs = [
        _flame(name, profile)
        for name, profile in samples.items()  # inference is shown as its phases where it has any
        if not name.startswith("inference") or name.replace("inference", "decode") not in samples
    ]
    classes = Section(
        "classes", {"calls": _joined({name: p.table() for name, p in samples.items()})},
        sentences.attribution_sentence(samples), sentences.class_table(samples),
        "Shares of the time by class of code.",
    )  # fmt: skip
    return [*graphs, classes]


def _flame(name: str, profile: StackProfile) -> Section:
    """One flame graph: the picture on the page, and the interactive SVG beside it."""
    what, kind, csv = "Time", "flame", "calls"
    if profile.unit == "bytes":
        what, kind, csv = "Allocated bytes", "allocations", "allocations"
    title = sentences.flame_title(name, profile)
    caption = f"{what} by call stack in {name}; width is the share. {profile.note}".strip()
    return Section(
        f"{kind}_{sentences.file_stem(name)}", {}, sentences.flame_sentence(name, profile),
        picture=partial(_flame_picture, profile, title), picture_caption=caption,
        document=partial(render_svg, profile, title=title), csv=csv, rests_on="1 process",
    )  # fmt: skip


def _flame_picture(profile: StackProfile, title: str) -> Figure:
    from batchgauge.reporting import plots  # slow to load

    plots.use_theme()
    return draw_flamegraph(profile, title=title)


def lines(subject: Subject, *, functions: int) -> list[tuple[Section, tuple[Listing, ...]]]:
    """For every part its hottest line, and the annotated listing of so many hot functions."""
    profiles = passes.profile_by_line(subject)
    if not profiles:
        return [(_missing(subject, "lines"), ())]
    table = _joined({name: profile.frame for name, profile in profiles.items()})
    return [
        (
            Section(f"lines_{number}", {} if number else {"lines": table}, said),
            (Listing(profile, list(profile.functions()["function"].head(functions))),),
        )
        for number, (name, profile) in enumerate(profiles.items())
        for said in [sentences.lines_sentence(name, profile)]
    ]


def memory(subject: Subject) -> list[Section]:
    """Allocation sites, growth and temporary bytes, with a flame graph of the decode step's."""
    profiles = passes.track_memory(subject)
    if not profiles:
        return [Section("allocations", {}, found.memory_sentences(subject))]
    name = next((n for n in profiles if n.startswith("decode step")), next(iter(profiles)))
    sites = Section(
        "allocations", {"allocations": _joined({n: p.sites for n, p in profiles.items()})},
        found.memory_sentences(subject), found.memory_table(subject),
        "Sites that grow, and the largest temporary ones, by part.",
    )  # fmt: skip
    return [_flame(name, profiles[name].stacks), sites]


def resident_memory(subject: Subject, *, rows: int) -> list[Section]:
    """Resident memory over time, and the lines after which it had grown most."""
    line, table = passes.resident_memory(subject)
    shown = []
    if not line.empty:
        title = sentences.timeline_sentence(line)
        caption = "Resident memory while the work runs once, by memory_profiler."
        shown.append(
            Section(
                "memory_timeline", {"memory_timeline": line}, f"{title}.",
                picture=partial(figures.timeline, line, title), picture_caption=caption,
                rests_on="1 call, 1 process",
            )
        )  # fmt: skip
    if not table.empty:
        data = {"memory_lines": _portable(table)}
        grown = table[table["increment_bytes"] > 0].nlargest(rows, "increment_bytes")
        columns = ["function", "line", "source", "hits", "rss_bytes", "increment_bytes"]
        name = table["function"].iloc[0]
        said = f"No line of {name} raised resident memory ({len(table)} lines ran)."
        caption = "Lines after which resident memory had grown most."
        shown.append(
            Section("memory_lines", data, said)
            if grown.empty
            else Section("memory_lines", data, "", grown[columns], caption)
        )
    return shown


def roofline(subject: Subject, *, sizes: Sequence[int]) -> Section:
    """Every kernel against the machine's measured bandwidth and matrix rate."""
    if subject.model is None:
        unknown = "This engine's kernels cannot be run one by one, so there is no roofline."
        return Section("roofline", {}, NO_ENGINE if subject.target else unknown)
    frame, peaks = kernels.roofline(subject.context, subject.model, sizes)
    size = subject.batch_size
    title = sentences.roofline_title(frame, size)
    columns = ["kernel", "batch_size", "bound", "floor_ms", "measured_ms", "ratio", "calls"]
    return Section(
        "roofline", {"roofline": frame},
        f"{title}. {sentences.roofline_sentence(frame, peaks, size)}",
        frame[columns], "Floor time, measured time (median) and their ratio.",
        partial(figures.roofline, frame, peaks.bandwidth_bytes_per_s, peaks.flops_per_s, title),
        "Each kernel at each batch size under the roof that this machine reached today.",
    )  # fmt: skip


def system(subject: Subject, *, simulate: bool = False) -> list[Section]:
    """What the operating system and the processor counted while each part ran."""
    if subject.target:
        return [Section("system", {}, NO_ENGINE)]
    frame = events.system_counters(subject)
    seen = Section(
        "system", {"system": frame}, sentences.system_sentence(frame), frame,
        "Per call, counted by the operating system; no profiler attached.",
    )  # fmt: skip
    if not subject.context.is_ours:
        return [seen]
    counted = events.hardware_table(subject.context.model, simulate=simulate)
    return [
        seen,
        Section(
            "events", {"events": counted}, events.hardware_sentence(counted), counted,
            "Instructions, cache misses and mispredicted branches a call.",
        ),
    ]  # fmt: skip


def parallelism(subject: Subject) -> Section:
    """Which calls release the GIL."""
    if subject.target:
        return Section("gil", {}, NO_ENGINE)
    if not subject.context.is_ours:
        return Section("gil", {}, NOT_OURS)
    frame = kernels.gil_probes(subject)
    caption = "What a second thread could do meanwhile, and what two gain."
    return Section("gil", {"gil": frame}, sentences.gil_sentence(frame), frame, caption)


def profiler_overhead(subject: Subject, *, rounds: int) -> Section:
    """Slow-down of each profiler, and which could not run."""
    if not subject.target and not subject.context.is_ours:
        return Section("overhead", {}, NOT_OURS)
    frame = passes.profiler_overhead(subject, rounds)
    if frame.empty:
        return Section("overhead", {}, "The profilers' cost is measured in runs without a target.")
    failed = frame[frame["note"] != ""]
    notes = [f"{tool}: {note}." for tool, note in zip(failed["tool"], failed["note"], strict=True)]
    said = " ".join([*notes, *subject.notes]) or "Every profiler could run here."
    title = sentences.overhead_sentence(frame)
    return Section(
        "profiler_overhead", {"overhead": frame}, f"{title}. {said}",
        picture=partial(figures.overhead, frame, title),
        picture_caption="Slow-down of baseline tokenizing (a tight Python loop) under each "
        "profiler.",
    )  # fmt: skip


def findings(subject: Subject, stages: Section, roofline: Section) -> Section:
    """The findings of all passes, ranked, in a table and in prose."""
    known = (section.frames().get(section.name, pd.DataFrame()) for section in (stages, roofline))
    frame = found.findings(subject, *known)
    said = Markdown("\n").join(
        Markdown("- {}").format(finding_sentence(row))
        for _, row in worth_a_sentence(frame).iterrows()
    )
    shown = None if frame.empty else frame.drop(columns=["bound"])
    caption = (
        "Hotspots by their share of a whole request; the speed-ups are the request's, or the "
        "part's where it is none of a request."
    )
    return Section("findings", {"findings": frame}, said, shown, caption)


def answer(subject: Subject, ranked: Section) -> Answer:
    """What takes the time, how far from its floor, what that leaves to gain."""
    size = subject.batch_size
    said = None if subject.target else sentences.time_tile(ranked.frame, size)
    tiles = [Tile("time", *said)] if said else []
    return Answer(sentences.answer(ranked.frame, size), "stages", tiles)
