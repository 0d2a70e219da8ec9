"""From the subject's data to hotspots: what each part's time is made of, and what that means."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from batchgauge.experiments.bottlenecks.kernels import DECODE_KERNELS
from batchgauge.experiments.bottlenecks.parts import Subject
from batchgauge.profiling.findings import (
    Hotspot,
    growth_sentence,
    memory_findings,
    rank_findings,
    temporary_sentence,
)
from batchgauge.profiling.stacks import Kind, StackProfile
from batchgauge.text import Markdown


def hotspots(subject: Subject, stages: pd.DataFrame, roofline: pd.DataFrame) -> list[Hotspot]:
    """Hotspots of every part: kernels and stages against their floors, functions elsewhere."""
    spots = _kernel_spots(subject, roofline)
    taken = {spot.part for spot in spots}
    if spots and stages.size:  # a function of it cannot come below the floor that the stage has
        taken.add(f"prefill ({getattr(subject.engine, 'name', '')})")
    for name, profile in subject.samples.items():
        if name not in taken and not (name.startswith("inference") and stages.size):
            spots += _function_spots(name, profile)
    if stages.size:
        spots += _stage_spots(subject, stages, roofline)
    return spots


def findings(subject: Subject, stages: pd.DataFrame, roofline: pd.DataFrame) -> pd.DataFrame:
    """The ranked findings of the whole subject."""
    return rank_findings(hotspots(subject, stages, roofline), shares_of_request(subject, stages))


def shares_of_request(subject: Subject, stages: pd.DataFrame) -> dict[str, float]:
    """What share of a batch each part is: all of inference, its decode steps, its tokenizing."""
    if subject.target:
        return {}
    name = subject.context.engine_name
    parts = {f"inference ({name})": 1.0}
    if stages.empty:
        return parts
    rows = stages[stages["batch_size"] == subject.batch_size].set_index("stage")["share"]
    for part, stage in (("decode", "decode"), ("prefill", "prefill"), ("tokenizing", "tokenize")):
        if stage in rows.index:
            parts[f"{part} ({name})"] = float(rows[stage])
    return parts


def _kernels(subject: Subject, roofline: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    """The rows of the roofline at the batch size, by kernel."""
    if roofline.empty:
        return {}
    rows = roofline[roofline["batch_size"] == subject.batch_size]
    return {row["kernel"]: row for row in rows.to_dict("records")}


def _kernel_spots(subject: Subject, roofline: pd.DataFrame) -> list[Hotspot]:
    """Shares of a decode step by kernel at the batch size, with distance from the floor."""
    rows = _kernels(subject, roofline)
    if not rows:
        return []
    whole = rows["decode"]["measured_ms"]
    name = f"decode ({subject.context.engine_name})"
    spots = [
        Hotspot(name, kernel, min(1.0, rows[kernel]["measured_ms"] / whole), "numpy",
                rows[kernel]["ratio"], rows[kernel]["bound"])
        for kernel in DECODE_KERNELS
    ]  # fmt: skip
    rest = 1.0 - sum(spot.share for spot in spots)
    return [*spots, Hotspot(name, "norms, rotations and the rest", max(0.0, rest), "numpy")]


def _function_spots(name: str, profile: StackProfile) -> list[Hotspot]:
    """The innermost functions of one's own by share, each class of code apart."""
    sums = profile.by_owner().groupby(["function", "kind"], sort=False)["share"].sum()
    largest = sums.sort_values(ascending=False, kind="stable").head(4).reset_index()
    rows = largest.itertuples(index=False)
    return [Hotspot(name, function, share, kind) for function, kind, share in rows]


def _stage_spots(subject: Subject, stages: pd.DataFrame, roofline: pd.DataFrame) -> list[Hotspot]:
    """Stages of a batch; prefill and decode with their distance from the floor where known."""
    rows, known = stages[stages["batch_size"] == subject.batch_size], _kernels(subject, roofline)
    part = f"inference ({subject.context.engine_name})"
    spots = []
    for row in rows.to_dict("records"):
        floor = known.get(row["stage"], {"ratio": math.nan, "bound": ""})
        kind: Kind = "python"
        if row["stage"] in {"prefill", "decode"}:
            kind = "numpy" if subject.context.is_ours else "native"
        spots.append(
            Hotspot(part, row["stage"], row["share"], kind, floor["ratio"], floor["bound"])
        )
    return spots


def memory_table(subject: Subject) -> pd.DataFrame:
    """Growing and temporary sites of every part."""
    frames = [memory_findings(profile, name) for name, profile in subject.allocations.items()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def memory_sentences(subject: Subject) -> Markdown:
    """What grows, a sentence a part, or that nothing does; and the most that is temporary."""
    every = subject.allocations
    if not every:
        return Markdown("No allocations were tracked.")
    grown = [said for name, profile in every.items() if (said := growth_sentence(profile, name))]
    most = max(every, key=lambda name: every[name].temporary_bytes_per_call)
    said = Markdown(" ").join(grown) or Markdown("No part keeps more memory after every call.")
    return said + f" {temporary_sentence(every[most], most)}"
