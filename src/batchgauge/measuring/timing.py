"""Timing one callable: calibrated inner loops, detected warm-up, stated conditions.

A sample is as many calls as fill 1 ms or 1,000 ticks of the clock, whichever is more.
Warm-up is what comes before two successive windows of samples agree; it is kept and
marked. Garbage is collected before the samples and collection is off while they run
(`gc="off"`), or left alone (`gc="on"`). Timed runs are never profiled runs.
"""

from __future__ import annotations

import contextlib
import functools
import gc as garbage
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from batchgauge.errors import UserError
from batchgauge.machine.identity import Machine, Run
from batchgauge.measuring.record import Measurement, Sample, as_json
from batchgauge.measuring.statistics import classify_outliers

GcPolicy = Literal["off", "on"]

SAMPLE_NS = 1_000_000
TICKS = 1_000
_WINDOW = 5


@functools.cache
def tick_ns() -> int:
    """The smallest step that `perf_counter_ns` was seen to make, in nanoseconds."""
    steps = []
    for _ in range(200):
        begin = end = time.perf_counter_ns()
        while end == begin:
            end = time.perf_counter_ns()
        steps.append(end - begin)
    return min(steps)


def calibrate(fn: Callable[[], object], *, sample_ns: int | None = None) -> int:
    """How many calls of `fn` fill one sample: at least 1 ms and 1,000 clock ticks."""
    wanted = sample_ns or max(SAMPLE_NS, TICKS * tick_ns())
    loops = 1
    while True:
        took, _ = timed(fn, loops)
        if took >= wanted or loops >= 1 << 24:
            return loops
        loops = max(loops * 2, min(loops * 100, int(loops * wanted / max(took, 1) * 1.2) + 1))


def timed(fn: Callable[[], object], loops: int) -> tuple[int, int]:
    """Wall and CPU nanoseconds (all threads of the process) of `loops` calls."""
    calls = range(loops)
    cpu = time.process_time_ns()
    begin = time.perf_counter_ns()
    for _ in calls:
        fn()
    wall = time.perf_counter_ns() - begin
    return wall, time.process_time_ns() - cpu


def steady_from(times: Sequence[float]) -> int | None:
    """Where the times [n] become steady: the samples before are warm-up; None when not yet.

    Steady begins with the first window of 5 samples whose median lies within 5 %, or
    within three median absolute deviations, of the median of the 5 that follow.
    """
    x = np.asarray(times, dtype=np.float64)
    for begin in range(x.size - 2 * _WINDOW + 1):
        first, after = x[begin : begin + _WINDOW], x[begin + _WINDOW : begin + 2 * _WINDOW]
        middle = float(np.median(after))
        spread = 3.0 * 1.4826 * float(np.median(np.abs(after - middle)))
        if abs(float(np.median(first)) - middle) <= max(0.05 * middle, spread):
            return begin
    return None


@contextlib.contextmanager
def conditions(
    *, threads: int | None = 1, gc: GcPolicy = "off", cpus: Sequence[int] | None = None
) -> Iterator[None]:
    """Inside: so many BLAS threads, this collection policy, this CPU affinity where it exists."""
    if gc not in {"off", "on"}:
        raise UserError(f"The gc policy '{gc}' is unknown; expected off or on.")
    was_enabled = garbage.isenabled()
    with threadpool_limits(threads), pinned(cpus):
        if gc == "off":
            garbage.collect(1)  # what is young; the old generation takes a fifth of a second
            garbage.disable()
        try:
            yield
        finally:
            if was_enabled:
                garbage.enable()


@contextlib.contextmanager
def pinned(cpus: Sequence[int] | None) -> Iterator[bool]:
    """Inside, this process runs on `cpus` only; yields False where the system offers no affinity.

    Raises UserError for CPUs that this process may not use.
    """
    if not cpus or not hasattr(os, "sched_setaffinity"):
        yield False
        return
    Machine.here()  # known by all the cores that there are, before this takes some away
    before = os.sched_getaffinity(0)
    if not set(cpus) <= before:
        raise UserError(
            f"CPUs {sorted(cpus)} are not all usable; expected some of {sorted(before)}."
        )
    os.sched_setaffinity(0, cpus)
    try:
        yield True
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Labels:
    """What all samples of one measurement say about themselves."""

    benchmark: str
    implementation: str
    part: str = ""
    batch_size: int = 1
    parameters: str = "{}"
    items: int = 1
    tokens: int = 0
    counters: str = "{}"
    gc: str = "off"
    process: int = 0

    def sample(self, fn: Callable[[], object], loops: int, **place: Any) -> Sample:
        """Time `loops` calls of `fn` as one sample at this place (block, position, is_warmup)."""
        wall, cpu = timed(fn, loops)
        return Sample(
            benchmark=self.benchmark,
            implementation=self.implementation,
            part=self.part,
            batch_size=self.batch_size,
            parameters=self.parameters,
            process=self.process,
            inner_loops=loops,
            wall_ms=wall / loops / 1e6,
            cpu_ms=cpu / loops / 1e6,
            items=self.items,
            tokens=self.tokens,
            counters=self.counters,
            gc=self.gc,
            **place,
        )


def with_outliers(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples with those that are not warm-up labelled by Tukey's fences."""
    steady = [i for i, s in enumerate(samples) if not s.is_warmup]
    labels = classify_outliers([samples[i].wall_ms for i in steady])
    marked = list(samples)
    for i, label in zip(steady, labels, strict=True):
        marked[i] = replace(samples[i], outlier=label)
    return tuple(marked)


def measure(
    fn: Callable[[], object],
    *,
    name: str,
    items: int = 1,
    tokens: int = 0,
    implementation: str = "numpy",
    part: str = "",
    batch_size: int = 1,
    parameters: Mapping[str, Any] | None = None,
    counters: Mapping[str, int] | None = None,
    budget_s: float = 1.0,
    min_samples: int = 10,
    max_samples: int = 1000,
    threads: int = 1,
    gc: GcPolicy = "off",
    cpus: Sequence[int] | None = None,
    seed: int = 0,
    process: int = 0,
    run: Run | None = None,
    progress: bool = False,
) -> Measurement:
    """Time `fn()` until `budget_s` seconds are spent, at least `min_samples` samples.

    `items` and `tokens` are the work of one call. Warm-up is detected and takes at most
    half of the samples. Raises UserError for a budget, a count or items below their least.
    """
    if budget_s <= 0 or min_samples < 1 or max_samples < min_samples or items < 1:
        raise UserError(
            f"Cannot measure '{name}' with budget_s={budget_s}, min_samples={min_samples}, "
            f"max_samples={max_samples}, items={items}; expected positive values."
        )
    labels = Labels(
        name, implementation, part, batch_size, as_json(parameters or {}), items, tokens,
        as_json(counters or {}), gc, process,
    )  # fmt: skip
    samples: list[Sample] = []
    with (
        conditions(threads=threads, gc=gc, cpus=cpus),
        tqdm(total=budget_s, desc=name, unit="s", disable=not progress, leave=False) as bar,
    ):
        loops = calibrate(fn)
        begin = time.perf_counter()
        spent = 0.0
        while len(samples) < min_samples or (spent < budget_s and len(samples) < max_samples):
            samples.append(
                labels.sample(fn, loops, block=len(samples), position=0, is_warmup=False)
            )
            before, spent = spent, time.perf_counter() - begin
            bar.update(max(0.0, min(spent, budget_s) - before))
    warm = steady_from([s.wall_ms for s in samples])
    first = min(warm, len(samples) // 2) if warm is not None else 0
    samples = [replace(s, is_warmup=i < first) for i, s in enumerate(samples)]
    reason = "time budget spent" if spent >= budget_s else "samples asked for are taken"
    run = run or Run.here(threads=threads, seed=seed)
    return Measurement(name, with_outliers(samples), run, reason)
