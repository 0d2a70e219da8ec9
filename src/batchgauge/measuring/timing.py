"""Timing one callable: calibrated inner loops, detected warm-up, stated conditions.

A sample is as many calls as fill 1 ms or 1,000 ticks of the clock, whichever is more.
Warm-up is what comes before two successive windows of samples agree; it is kept and
marked. Garbage is collected before the samples and collection is off while they run
(`gc="off"`), or left alone (`gc="on"`). Timed runs are never profiled runs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from threadpoolctl import threadpool_limits

from batchgauge.clock import timed
from batchgauge.errors import UserError
from batchgauge.machine.identity import Machine, Run
from batchgauge.measuring.record import Amount, Labels, Measurement, Sample
from batchgauge.statistics import classify_outliers, course

SAMPLE_NS = 1_000_000
TICKS = 1_000
_WINDOW = 5


@dataclass(frozen=True, slots=True)
class Stopping:
    """When enough is measured: after `budget_s` seconds, with `least` to `most` samples or blocks.

    A comparison plans its number of blocks after the first `least`: as many as make every
    interval narrower than ± `precision` (relative), where the budget has room for them.
    Raises UserError for a budget or a number below its least.
    """

    budget_s: float = 5.0
    least: int = 5
    most: int = 200
    precision: float = 0.01

    def __post_init__(self) -> None:
        if self.budget_s <= 0 or self.least < 1 or self.most < self.least:
            raise UserError(
                f"Cannot measure for {self.budget_s} s, at least {self.least} and at most "
                f"{self.most} times; expected a budget above 0 and positive numbers in this order."
            )


@dataclass(frozen=True, slots=True)
class Conditions:
    """BLAS threads (None: as they are), garbage collection, CPUs (empty: all), seed of orders.

    Raises UserError for an unknown policy of collection.
    """

    threads: int | None = 1
    seed: int = 0
    gc: Literal["off", "on"] = "off"
    cpus: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.gc not in {"off", "on"}:
            raise UserError(f"The gc policy '{self.gc}' is unknown; expected off or on.")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, these conditions hold; affinity only where the system offers it."""
        was_enabled = gc.isenabled()
        with threadpool_limits(self.threads), pinned(self.cpus):
            if self.gc == "off":
                gc.collect(1)  # what is young; the old generation takes a fifth of a second
                gc.disable()
            try:
                yield
            finally:
                if was_enabled:
                    gc.enable()


@contextlib.contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[bool]:
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


def calibrate(fn: Callable[[], object]) -> int:
    """How many calls of `fn` fill one sample: at least 1 ms and 1,000 clock ticks."""
    wanted = max(SAMPLE_NS, TICKS * tick_ns())
    loops = 1
    while True:
        took = timed(fn, loops).wall_ns
        if took >= wanted or loops >= 1 << 24:
            return loops
        loops = max(loops * 2, min(loops * 100, int(loops * wanted / max(took, 1) * 1.2) + 1))


def steady_from(times: Sequence[float]) -> int | None:
    """Where the times [n] become steady: the samples before are warm-up; None when not yet.

    Steady begins with the first window of 5 samples whose median lies within 5 %, or
    within three median absolute deviations, of the median of the 5 that follow, and after
    which no second level and no trend comes (`statistics.course`).
    """
    x, begin = np.asarray(times, dtype=np.float64), 0
    while begin <= x.size - 2 * _WINDOW:
        first, after = x[begin : begin + _WINDOW], x[begin + _WINDOW : begin + 2 * _WINDOW]
        middle = float(np.median(after))
        spread = 3.0 * 1.4826 * float(np.median(np.abs(after - middle)))
        if abs(float(np.median(first)) - middle) > max(0.05 * middle, spread):
            begin += 1
        elif not course(x[begin:]):
            return begin
        else:
            begin += max(1, (x.size - begin) // 20)
    return None


def with_outliers(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples with those that are not warm-up labelled by Tukey's fences."""
    labels = iter(classify_outliers([s.wall_ms for s in samples if not s.is_warmup]))
    return tuple(s if s.is_warmup else replace(s, outlier=next(labels)) for s in samples)


def measure(
    fn: Callable[[], object],
    labels: Labels,
    amount: Amount = Amount(),
    *,
    stopping: Stopping = Stopping(budget_s=1.0, least=10, most=1000),
    conditions: Conditions = Conditions(),
    run: Run | None = None,
) -> Measurement:
    """Time `fn()`, which does `amount`, until the budget is spent, in samples.

    Warm-up is detected and takes at most half of the samples.

        measure(call, Labels("decode", part="decode"), Amount(items=8)).median_ms
    """
    budget_s, samples = stopping.budget_s, list[Sample]()
    with conditions.held():
        loops = calibrate(fn)
        begin, spent = time.perf_counter(), 0.0
        while len(samples) < stopping.least or (spent < budget_s and len(samples) < stopping.most):
            place = {"block": len(samples), "position": 0, "is_warmup": False}
            samples.append(labels.sample(amount, timed(fn, loops), gc=conditions.gc, **place))
            spent = time.perf_counter() - begin
    warm = steady_from([s.wall_ms for s in samples])
    first = min(warm, len(samples) // 2) if warm is not None else 0
    samples = [replace(s, is_warmup=i < first) for i, s in enumerate(samples)]
    reason = "time budget spent" if spent >= budget_s else "samples asked for are taken"
    if said := course([s.wall_ms for s in samples[first:]]):
        reason = f"{reason}; not steady: {said}"
    run = run or Run.here(threads=conditions.threads or 0, seed=conditions.seed)
    return Measurement(labels.benchmark, with_outliers(samples), run, reason)
