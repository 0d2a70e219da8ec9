"""Each profiler of the bottleneck notebook on every part: passes that are never timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd

from batchgauge.clock import timed
from batchgauge.experiments.bottlenecks.kernels import decode_call
from batchgauge.experiments.bottlenecks.parts import CHARACTERS, Part, Subject
from batchgauge.profiling.allocations import (
    AllocationProfile,
    memory_lines,
    memory_timeline,
    track_allocations,
)
from batchgauge.profiling.calls import sample_calls
from batchgauge.profiling.lines import LineProfile, functions_seen, profile_lines
from batchgauge.profiling.overhead import PUBLISHED, measure_overhead
from batchgauge.profiling.stacks import StackProfile
from batchgauge.workload import texts


def sample(subject: Subject, seconds: float) -> dict[str, StackProfile]:
    """Sample the calls of every part; inference also cut into prefill and decode where it shows."""
    if subject.runs("calls"):
        for part in subject.parts:
            whole = sample_calls(part.call, seconds=seconds)
            subject.samples[part.name] = whole
            for phase in ("prefill", "decode"):
                cut = whole.below(phase)
                if cut.stacks:
                    subject.samples[f"{phase} ({part.implementation})"] = cut
    return subject.samples


def profile_by_line(subject: Subject) -> dict[str, LineProfile]:
    """Line profiles of the functions that sampling saw in each part."""
    if subject.runs("lines"):
        for part in subject.parts:
            seen = subject.samples.get(part.name)
            functions = functions_seen(seen) if seen else []
            if not functions:
                subject.notes.append(f"lines: nothing seen of {part.name} is Python of its own.")
                continue
            subject.lines[part.name] = profile_lines(
                part.call, functions, repeat=_repeat(part.call, 0.1), seen=seen
            )
    return subject.lines


def _repeat(call: Callable[[], object], seconds: float) -> int:
    """How often `call` fits into `seconds`, 1 to 100."""
    return max(1, min(100, int(1e3 * seconds / timed(call).wall_ms)))


def track_memory(subject: Subject) -> dict[str, AllocationProfile]:
    """Allocations of every part, and of one decode step where the model can be taken apart."""
    if subject.runs("allocations"):
        parts, model = list(subject.parts), subject.model
        if model is not None:
            if subject.context.budget.name == "smoke":  # the decode step stands for inference
                parts = [part for part in parts if part.work != "inference"]
            name = getattr(subject.engine, "name", "")
            parts.append(Part("decode step", name, decode_call(model, subject.batch_size)))
        for part in parts:
            often = 1 if part.work == "inference" else 3  # thousands of allocations a call
            subject.allocations[part.name] = track_allocations(
                part.call, calls=often, warm_up=part.work != "inference"
            )
    return subject.allocations


def resident_memory(subject: Subject) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Memory time line of inference (or the target), and its lines by memory_profiler."""
    empty = pd.DataFrame()
    if subject.target:
        line, table = subject.target.memory_timeline, subject.target.memory_lines
        return (empty if line is None else line), (empty if table is None else table)
    part = next(part for part in subject.parts if part.work == "inference")
    line = memory_timeline(part.call) if subject.runs("memory_timeline") else empty
    seen = subject.samples.get(part.name)
    functions = functions_seen(seen, smallest=0.9) if seen else []
    if seen is None or not functions or not subject.runs("memory_lines"):
        return line, empty
    depth = seen.depths()
    return line, memory_lines(part.call, max(functions, key=lambda f: depth[f.__name__]))


def profiler_overhead(subject: Subject, rounds: int) -> pd.DataFrame:
    """Slow-down of each profiler on baseline tokenizing of one text: a tight Python loop.

    Of a target, whose functions are not in this process, nothing is measured here.
    """
    if subject.target:
        return pd.DataFrame()
    part = next(
        p for p in subject.parts if (p.work, p.implementation) == ("tokenizing", "baseline")
    )
    one_text: Any = part.call
    call = functools.partial(one_text.func, texts("prose", CHARACTERS, 1, seed=1))
    functions = functions_seen(subject.samples[part.name]) if part.name in subject.samples else []
    return measure_overhead(
        call,
        functions,
        tools=PUBLISHED,
        rounds=rounds,
        limit_s=subject.context.budget.choose(smoke=0.2, default=2.0, thorough=20.0),
    )
