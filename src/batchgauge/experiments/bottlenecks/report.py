"""The bottleneck notebook's sections: each takes its pass, writes its CSV and shows its pictures.

A section whose tool was not asked for, or that needs an engine where the user's own
function is profiled, says so in a sentence instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from batchgauge.experiments.bottlenecks import events, kernels, pictures
from batchgauge.experiments.bottlenecks import findings as found
from batchgauge.experiments.bottlenecks import study as bottlenecks
from batchgauge.files import write_text
from batchgauge.profiling.findings import finding_sentence
from batchgauge.profiling.flamegraph import draw_flamegraph, render_svg
from batchgauge.profiling.roofline import draw_roofline
from batchgauge.profiling.stacks import StackProfile
from batchgauge.text import Markdown, visible

if TYPE_CHECKING:
    from batchgauge.experiments.bottlenecks.study import Study
    from batchgauge.reporting import Report

NO_ENGINE = "Left out: this looks into an engine, and a function of your own is profiled here."


def _csv(report: Report, frame: pd.DataFrame, name: str) -> None:
    """Write a profile's table with files named by their last three parts, as on any machine."""
    short = ["/".join(str(f).replace("\\", "/").split("/")[-3:]) for f in frame["file"]]
    report.csv(frame.assign(file=short), name)


def calls(report: Report, study: Study) -> None:
    """Flame graphs of every part, the table of code classes, and what they add up to."""
    samples = bottlenecks.sample(study)
    if not samples:
        return report.finding(_missing(study, "calls"))
    frames = [profile.table().assign(part=name) for name, profile in samples.items()]
    _csv(report, pd.concat(frames, ignore_index=True), "calls")
    for name, profile in samples.items():
        if name.startswith("inference") and f"decode{name.removeprefix('inference')}" in samples:
            continue  # shown as its two phases
        _flame(report, name, profile, "flame")
    report.table(pictures.class_table(samples), caption="Shares of the time by class of code.")
    return report.finding(pictures.attribution_sentence(samples))


def _flame(report: Report, name: str, profile: StackProfile, kind: str) -> None:
    """One flame graph: the picture on the page, and the interactive SVG beside it."""
    stem = f"{kind}_{pictures.file_stem(name)}"
    what = "Allocated bytes" if profile.unit == "bytes" else "Time"
    sentence = pictures.flame_sentence(name, profile)
    title = pictures.flame_title(name, profile)
    caption = f"{what} by call stack in {name}; width is the share. {profile.note}".strip()
    report.figure(draw_flamegraph(profile, title=title), stem, alt=sentence, caption=caption)
    svg = write_text(
        visible(render_svg(profile, title=title)), report.path("reports", "figures", f"{stem}.svg")
    )
    report.finding(sentence + Markdown(f" [Explore this flame graph](figures/{svg.name})."))


def _missing(study: Study, tool: str) -> Markdown:
    said = [note for note in study.notes if note.startswith(tool)]
    not_asked = Markdown(f"Not asked for: the parameter `tools` does not name {tool}.")
    return Markdown(" ").join(said) or not_asked


def lines(report: Report, study: Study) -> None:
    """Annotated listings of the hottest functions of every part."""
    from IPython.display import display

    profiles = bottlenecks.profile_by_line(study)
    if not profiles:
        return report.finding(_missing(study, "lines"))
    frames = [profile.frame.assign(part=name) for name, profile in profiles.items()]
    _csv(report, pd.concat(frames, ignore_index=True), "lines")
    for name, profile in profiles.items():
        report.finding(pictures.lines_sentence(name, profile))
        display(pictures.listing(profile))  # type: ignore[no-untyped-call]  # IPython's
    return None


def memory(report: Report, study: Study) -> None:
    """Allocation sites, growth and temporary bytes; an allocation flame graph; resident memory."""
    profiles = bottlenecks.track_memory(study)
    if profiles:
        frames = [profile.sites.assign(part=name) for name, profile in profiles.items()]
        _csv(report, pd.concat(frames, ignore_index=True), "allocations")
        name = next((n for n in profiles if n.startswith("decode step")), next(iter(profiles)))
        _flame(report, name, profiles[name].stacks, "allocations")
        table = found.memory_table(study)
        report.table(table, caption="Sites that grow, and the largest temporary ones, by part.")
    report.finding(found.memory_sentences(study))
    line, table = bottlenecks.resident_memory(study)
    if not line.empty:
        report.csv(line, "memory_timeline")
        report.figure(
            pictures.draw_timeline(line),
            "memory_timeline",
            alt=pictures.timeline_sentence(line),
            caption="Resident memory while the work runs once, by memory_profiler.",
        )
    if not table.empty:
        _csv(report, table, "memory_lines")
        grown = table[table["increment_bytes"] > 0].nlargest(8, "increment_bytes")
        columns = ["function", "line", "source", "hits", "rss_bytes", "increment_bytes"]
        if grown.empty:
            name = table["function"].iloc[0]
            report.finding(f"No line of {name} raised resident memory ({len(table)} lines ran).")
        else:
            caption = "Lines after which resident memory had grown most."
            report.table(grown[columns], caption=caption)


def stages(report: Report, study: Study) -> pd.DataFrame:
    """Stacked bars of the engine's stages by batch size, and padding waste by length spread."""
    frame, waste = kernels.stages(study), kernels.padding(study)
    if frame.empty:
        report.finding(NO_ENGINE if study.target else "This engine does not report its stages.")
    else:
        report.csv(frame, "stages")
        alt = pictures.stages_sentence(frame)
        caption = "Where a batch's time goes, by batch size; same prompts, greedy, no early stop."
        report.figure(pictures.draw_stages(frame), "stages", alt=alt, caption=caption)
        report.finding(pictures.stages_finding(frame))
    if not waste.empty:
        report.csv(waste, "padding")
        alt = pictures.padding_sentence(waste)
        caption = f"Padding waste of {study.batch_size} prompts by spread of their lengths."
        report.figure(pictures.draw_padding(waste), "padding_waste", alt=alt, caption=caption)
        report.finding(f"{alt}.")
    return frame


def roofline(report: Report, study: Study) -> pd.DataFrame:
    """Every kernel against the machine's measured bandwidth and matrix rate."""
    if study.target:
        report.finding(NO_ENGINE)
        return pd.DataFrame()
    frame, peaks = kernels.roofline(study)
    if frame.empty:
        report.finding("This engine's kernels cannot be run one by one, so there is no roofline.")
        return frame
    report.csv(frame, "roofline")
    title = pictures.roofline_title(frame, study.batch_size)
    caption = "Each kernel at each batch size under the roof that this machine reached today."
    report.figure(draw_roofline(frame, peaks, title=title), "roofline", alt=title, caption=caption)
    columns = ["kernel", "batch_size", "bound", "floor_ms", "measured_ms", "ratio", "calls"]
    report.table(frame[columns], caption="Floor time, measured time (median) and their ratio.")
    report.finding(pictures.roofline_sentence(frame, peaks, study.batch_size))
    return frame


def system(report: Report, study: Study, *, simulate: bool = False) -> None:
    """What the operating system and the processor counted while each part ran."""
    if study.target:
        return report.finding(NO_ENGINE)
    frame = events.system_counters(study)
    report.csv(frame, "system")
    report.table(frame, caption="Per call, counted by the operating system; no profiler attached.")
    report.finding(pictures.system_sentence(frame))
    counted = events.hardware_table(simulate=simulate)
    report.csv(counted, "events")
    report.table(counted, caption="Instructions, cache misses and mispredicted branches a call.")
    return report.finding(events.hardware_sentence(counted))


def parallelism(report: Report, study: Study) -> None:
    """Which calls release the GIL."""
    if study.target:
        return report.finding(NO_ENGINE)
    frame = kernels.gil_probes(study)
    report.csv(frame, "gil")
    report.table(frame, caption="What a second thread could do meanwhile, and what two gain.")
    return report.finding(pictures.gil_sentence(frame))


def cost_of_looking(report: Report, study: Study) -> None:
    """Slow-down of each profiler, and which could not run."""
    frame = bottlenecks.cost_of_looking(study)
    if frame.empty:
        return report.finding("The profilers' cost is measured in runs without a target.")
    report.csv(frame, "overhead")
    report.figure(
        pictures.draw_overhead(frame),
        "profiler_overhead",
        alt=pictures.overhead_sentence(frame),
        caption="Slow-down of baseline tokenising (a tight Python loop) under each profiler.",
    )
    failed = frame[frame["note"] != ""]
    said = [f"{tool}: {note}." for tool, note in zip(failed["tool"], failed["note"], strict=True)]
    everything = "Every profiler could run here."
    return report.finding(f"{' '.join([*said, *study.notes]) or everything}")


def findings(
    report: Report, study: Study, stage_frame: pd.DataFrame, roofline_frame: pd.DataFrame
) -> None:
    """The ranked findings, in a table and in prose, and the answer made of the first."""
    frame = found.findings(study, stage_frame, roofline_frame)
    report.csv(frame, "findings")
    if not frame.empty:
        shown = frame.drop(columns=["bound"])
        report.table(shown, caption="Hotspots by what mending them can save at most.")
    for _, row in frame.iterrows():
        report.finding(finding_sentence(row))
    report.answer(
        pictures.answer(frame, study.batch_size, found.temporary_bytes_per_decode_step(study))
    )
