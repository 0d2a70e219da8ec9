"""The timer that everything here times with: wall and CPU time of calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Elapsed(NamedTuple):
    """Nanoseconds that `loops` calls took: wall clock, and CPU time of all threads."""

    wall_ns: int
    cpu_ns: int
    loops: int

    @property
    def wall_ms(self) -> float:
        """Wall milliseconds of one call."""
        return self.wall_ns / self.loops / 1e6

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds of one call."""
        return self.cpu_ns / self.loops / 1e6


def timed(fn: Callable[[], object], loops: int = 1) -> Elapsed:
    """Time `loops` calls together."""
    calls = range(loops)
    cpu = time.process_time_ns()
    begin = time.perf_counter_ns()
    for _ in calls:
        fn()
    wall = time.perf_counter_ns() - begin
    return Elapsed(wall, time.process_time_ns() - cpu, loops)


def repeated(fn: Callable[[], object], seconds: float) -> Elapsed:
    """Time as many calls together as begin within `seconds`; one at least."""
    loops = 0
    cpu = time.process_time_ns()
    begin = time.perf_counter_ns()
    end = begin + round(1e9 * seconds)
    while True:
        fn()
        loops += 1
        now = time.perf_counter_ns()
        if now >= end:
            return Elapsed(now - begin, time.process_time_ns() - cpu, loops)


def durations_s(fn: Callable[[], object], seconds: float, *, least: int = 3) -> list[float]:
    """Seconds of single calls for about `seconds`, `least` of them at least.

    A call before them pays for pages and threads.
    """
    fn()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < end:
        found.append(timed(fn).wall_ns / 1e9)
    return found
