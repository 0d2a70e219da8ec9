"""Which calls let another thread run: measured, for the day the work is split over threads.

CPython's global interpreter lock (GIL) lets one thread at a time run Python.
Two measurements a call: how far a second thread that counts in pure Python gets
while the call runs, against what it manages while this thread sleeps; and how
long two threads take for two calls, against one thread for both. Both need a
second free core to say much; the frame says how many the process has. (On a
free-threaded build every call reads as releasing.)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal, Self

import pandas as pd

RELEASES_FROM, HOLDS_BELOW = 0.7, 0.2  # shares of the counter's own pace

Behaviour = Literal["releases the GIL", "shares it", "holds the GIL"]


class _Counter:
    """A thread that counts as fast as the GIL lets it."""

    def __init__(self) -> None:
        self.count = 0
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="gil-probe", daemon=True)

    def _run(self) -> None:
        while not self._stop:
            self.count += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()


def behaviour(progress: float) -> Behaviour:
    """The word for a second thread's progress (share of its own pace)."""
    if progress >= RELEASES_FROM:
        return "releases the GIL"
    return "holds the GIL" if progress < HOLDS_BELOW else "shares it"


def probe_gil(calls: Mapping[str, Callable[[], object]], *, seconds: float = 0.3) -> pd.DataFrame:
    """Probe each call for about `seconds` a measurement.

    One row a call: call, gil (the word for it), other_thread_progress (0 to 1: share of its own
    pace that a second thread reached meanwhile), two_thread_speedup (1 serial, 2 perfect;
    the calls must be safe to run side by side), alone_ms, cores. Python code *shares* the
    lock: it hands it over every switch interval, so that neither thread gains.
    """
    rows = []
    for name, call in calls.items():
        call()
        alone_s = _mean_s(call, seconds)
        progress = _progress(call, seconds)
        rows.append(
            {
                "call": name,
                "gil": behaviour(progress),
                "other_thread_progress": progress,
                "two_thread_speedup": _two_threads(call, seconds),
                "alone_ms": 1e3 * alone_s,
                "cores": available_cores(),
            }
        )
    return pd.DataFrame(rows)


def available_cores() -> int:
    """CPU cores this process may run on."""
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


def _mean_s(call: Callable[[], object], seconds: float) -> float:
    begin = time.perf_counter()
    count = 0
    while True:
        call()
        count += 1
        wall = time.perf_counter() - begin
        if wall >= seconds:
            return wall / count


def _progress(call: Callable[[], object], seconds: float) -> float:
    """Pace of a counting thread beside `call`, over its pace before and after, beside sleep."""
    with _Counter() as counter:
        paces = []
        for beside in (lambda: time.sleep(seconds / 2), call, lambda: time.sleep(seconds / 2)):
            first, begin = counter.count, time.perf_counter()
            end = begin + (seconds if beside is call else 0.0)
            beside()
            while time.perf_counter() < end:
                beside()
            paces.append((counter.count - first) / (time.perf_counter() - begin))
    free = (paces[0] + paces[2]) / 2
    return min(1.0, paces[1] / free) if free else 0.0


def _two_threads(call: Callable[[], object], seconds: float) -> float:
    """Wall time of 2n calls on one thread over that of n calls on each of two."""
    each = max(1, round(seconds / 2 / max(_mean_s(call, 0.0), 1e-6)))

    def several() -> None:
        for _ in range(each):
            call()

    begin = time.perf_counter()
    several()
    several()
    serial = time.perf_counter() - begin
    threads = [threading.Thread(target=several) for _ in range(2)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return serial / (time.perf_counter() - begin)
