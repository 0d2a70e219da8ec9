"""Allocation profiles: which lines allocate, what is kept, what was only temporary.

memray (Linux, macOS) sees every allocation, those of compiled code included;
elsewhere tracemalloc sees what is held at the end and the peak, but not the
total. `memory_profiler` adds the resident memory line by line and over time.
These passes slow the code and are never timed. Bytes are allocator bytes unless
a name says `rss`.
"""

from __future__ import annotations

import gc
import math
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from batchgauge.errors import UserError
from batchgauge.profiling.calls import ProfilerUnavailableError, profiler_module
from batchgauge.profiling.lines import plain_function, source_of
from batchgauge.profiling.stacks import StackProfile, is_library, with_kinds

_MIB = 2**20
_SITE = ["function", "file", "line"]
Stack = tuple[tuple[str, str, int], ...]  # (function, file, line), outermost first


@dataclass(frozen=True)
class AllocationProfile:
    """Allocations of `calls` runs of a callable.

    `sites` columns: function, file, line (the innermost Python line that is not library code),
    allocated_bytes, allocations, kept_bytes (still held after the last call),
    kept_bytes_per_call; most allocated first. `stacks` is the same by call stack,
    for a flame graph. With tracemalloc `allocated_bytes` counts only what was kept.
    """

    tool: str
    sites: pd.DataFrame
    stacks: StackProfile
    calls: int
    allocated_bytes: float
    peak_bytes: float
    kept_bytes: float
    note: str = ""

    @property
    def temporary_bytes_per_call(self) -> float:
        """Bytes allocated and given back within a call, on average; NaN under tracemalloc."""
        return (self.allocated_bytes - self.kept_bytes) / self.calls

    def growth(self) -> pd.DataFrame:
        """Sites that still hold bytes after the calls, most first: where a leak would show."""
        kept = self.sites[self.sites["kept_bytes"] > 0]
        return kept.sort_values("kept_bytes", ascending=False, kind="stable", ignore_index=True)


def track_allocations(
    call: Callable[[], object],
    *,
    calls: int = 3,
    tool: str = "auto",
    python_objects: bool = False,
    warm_up: bool = True,
) -> AllocationProfile:
    """Track the allocations of `calls` runs of `call`, after one untracked run to warm caches.

    Without `warm_up` the caller has run it already. `python_objects` also follows the
    interpreter's small objects (slower, exact sites). `tool` is `memray`, `tracemalloc` or
    `auto`. Raises ProfilerUnavailableError when memray is asked for and not there, UserError
    for an unknown tool.
    """
    if tool not in {"auto", "memray", "tracemalloc"}:
        raise UserError(f"Unknown tool '{tool}'; expected memray, tracemalloc or auto.")
    if warm_up:
        call()
    gc.collect()
    if tool != "tracemalloc":
        try:
            return _with_memray(call, calls, python_objects=python_objects)
        except ProfilerUnavailableError as error:
            if tool == "memray":
                raise
            return _with_tracemalloc(call, calls, f"{error} tracemalloc took its place.")
    return _with_tracemalloc(call, calls, "")


def _with_memray(
    call: Callable[[], object], calls: int, *, python_objects: bool
) -> AllocationProfile:
    if sys.platform == "win32":
        raise ProfilerUnavailableError("memray does not run on Windows.")
    memray = profiler_module("memray")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "allocations.bin"
        try:
            tracker = memray.Tracker(path, trace_python_allocators=python_objects)
        except RuntimeError as error:
            raise ProfilerUnavailableError(f"memray may not track here: {error}.") from error
        with tracker:
            for _ in range(calls):
                call()
            gc.collect()
        reader = memray.FileReader(path)
        peak = float(reader.metadata.peak_memory)
        freeing = {
            memray.AllocatorType.FREE, memray.AllocatorType.MUNMAP,
            memray.AllocatorType.PYMALLOC_FREE,
        }  # fmt: skip
        places: dict[int, Stack] = {}
        sizes, counts, kept = Counter[Stack](), Counter[Stack](), Counter[Stack]()
        for record in reader.get_allocation_records():
            if record.allocator in freeing:
                continue
            if record.stack_id not in places:
                places[record.stack_id] = _below_here(record.stack_trace())
            sizes[places[record.stack_id]] += record.size
            counts[places[record.stack_id]] += record.n_allocations
        for record in reader.get_leaked_allocation_records(merge_threads=True):
            kept[_below_here(record.stack_trace())] += record.size
        reader.close()
    return _profile("memray", sizes, counts, kept, calls, peak)


def _with_tracemalloc(call: Callable[[], object], calls: int, note: str) -> AllocationProfile:
    was_on = tracemalloc.is_tracing()
    if not was_on:
        tracemalloc.start(25)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    earlier = tracemalloc.take_snapshot()
    for _ in range(calls):
        call()
    gc.collect()
    peak = tracemalloc.get_traced_memory()[1] - before
    later = tracemalloc.take_snapshot()
    if not was_on:
        tracemalloc.stop()
    kept, counts = Counter[Stack](), Counter[Stack]()
    for difference in later.compare_to(earlier, "traceback"):
        if difference.size_diff > 0:
            trace = [("line", f.filename, f.lineno or 0) for f in difference.traceback]
            key = _below_here(trace[::-1])
            kept[key] += difference.size_diff
            counts[key] += difference.count_diff
    said = "tracemalloc sees what is kept and the peak, not what was allocated in between."
    note = f"{note} {said}".strip()
    profile = _profile("tracemalloc", kept, counts, kept, calls, float(peak), note)
    return replace(profile, allocated_bytes=math.nan)


def _below_here(trace: Iterable[tuple[str, str, int]]) -> Stack:
    """The stack outermost first, from below this module down; empty for other threads' stacks."""
    outer_first = list(trace)[::-1]
    here = (i for i, place in enumerate(outer_first) if place[1] == __file__)
    last = max(here, default=len(outer_first))
    return tuple((str(name), str(file), int(line)) for name, file, line in outer_first[last + 1 :])


def _profile(
    tool: str,
    sizes: Counter[Stack],
    counts: Counter[Stack],
    kept: Counter[Stack],
    calls: int,
    peak: float,
    note: str = "",
) -> AllocationProfile:
    rows = [
        (*_owner(key), size, counts[key], min(kept[key], size))
        for key, size in sizes.items()
        if key
    ]
    frame = pd.DataFrame(rows, columns=[*_SITE, "allocated_bytes", "allocations", "kept_bytes"])
    sites = frame.groupby(_SITE, as_index=False, sort=False).sum()
    sites["kept_bytes_per_call"] = sites["kept_bytes"] / calls
    sites = sites.sort_values("allocated_bytes", ascending=False, kind="stable", ignore_index=True)
    total = float(sites["allocated_bytes"].sum())
    stacks = tuple((with_kinds(key), float(size)) for key, size in sizes.items() if key)
    flame = StackProfile(tool, "bytes", stacks, total, len(stacks), calls, note)
    held = float(sites["kept_bytes"].sum())
    return AllocationProfile(tool, sites, flame, calls, total, peak, held, note)


def _owner(stack: Stack) -> tuple[str, str, int]:
    """The innermost frame that is not library code, else the innermost of all."""
    mine = [place for place in stack if not is_library(place[1])]
    return (mine or list(stack))[-1]


def memory_lines(call: Callable[[], object], function: Callable[..., object]) -> pd.DataFrame:
    """Resident memory line by line of one function, by memory_profiler: one row a line that ran.

    Columns function, file, line, source, hits, rss_bytes (most after the line),
    increment_bytes (summed over hits; the operating system counts in pages, so small
    objects show as zero). One function at a time: memory_profiler mixes up the increments of
    several that call each other. Raises ProfilerUnavailableError when it is missing,
    UserError when `function` is no Python function.
    """
    memory_profiler = profiler_module("memory_profiler")
    plain = plain_function(function)
    if plain is None:
        raise UserError("Compiled code has no lines; expected a Python function.")
    profiler = memory_profiler.LineProfiler(backend="psutil")
    profiler.add_function(plain)
    with profiler:
        call()
    measured = {line: row for _, lines in profiler.code_map.items() for line, row in lines}
    source, first = source_of(plain)
    rows = []
    for line, text in enumerate(source, start=first):
        if not measured.get(line):
            continue
        added, total, count = measured[line]
        grown = max(0.0, added) if line != first else 0.0  # the first line is where it starts
        place = (plain.__qualname__, plain.__code__.co_filename, line)
        rows.append((*place, text.rstrip(), count, total * _MIB, grown * _MIB))
    columns = [*_SITE, "source", "hits", "rss_bytes", "increment_bytes"]
    return pd.DataFrame(rows, columns=columns)


def memory_timeline(call: Callable[[], object], *, interval_s: float = 0.01) -> pd.DataFrame:
    """Resident memory of this process while `call` runs once: columns time_s, rss_bytes.

    Sampled by memory_profiler from a process of its own. Raises ProfilerUnavailableError.
    """
    samples = profiler_module("memory_profiler").memory_usage(
        (call, ()), interval=interval_s, timestamps=True, max_iterations=1, include_children=False
    )
    frame = pd.DataFrame(samples, columns=["rss_bytes", "time_s"])[["time_s", "rss_bytes"]]
    frame["rss_bytes"] *= _MIB
    frame["time_s"] -= frame["time_s"].min()
    return frame.sort_values("time_s", ignore_index=True)
