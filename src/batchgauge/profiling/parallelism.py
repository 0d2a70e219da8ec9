"""Which calls let another thread run: measured, for the day the work is split over threads.

CPython's global interpreter lock (GIL) lets one thread at a time run Python.
Two measurements a call. A second thread counts in pure Python while the call runs:
what both reach of their own pace, less one, is the share of the call during which
the lock was free (two threads of Python: 0.5 + 0.5 - 1 = 0; a call that releases it:
1 + 1 - 1). The interpreter's switch interval is set to 5 microseconds meanwhile, since
at the usual 5 ms each return from a released lock may wait that long. And: how long two
threads take for two calls, against one thread for both. Both need a second free
core; the frame says how many the process has.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal, Self

import pandas as pd

from batchgauge.clock import repeated, timed
from batchgauge.machine.limits import usable_cores

RELEASES_FROM = 0.5  # of the call's time with the lock free
STANDS_STILL_BELOW = 0.2  # of the other thread's own pace
SWITCH_S = 5e-6

Behaviour = Literal["releases the GIL", "takes turns", "holds the GIL"]


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


def behaviour(free: float, progress: float) -> Behaviour:
    """The word for a share of time with the lock free and a second thread's progress."""
    if free >= RELEASES_FROM:
        return "releases the GIL"
    return "holds the GIL" if progress < STANDS_STILL_BELOW else "takes turns"


def probe_gil(
    makers: Mapping[str, Callable[[], Callable[[], object]]],
    *,
    seconds: float = 0.3,
    rounds: int = 3,
) -> pd.DataFrame:
    """Probe each call for about `seconds` a measurement; medians of `rounds`.

    `makers` make the call of each name: one for every thread, so that threads need not share
    buffers.

    One row a call: call, gil (the word for it), lock_free_share (0 to 1, see the module),
    other_thread_progress (share of its own pace that the counting thread reached),
    two_thread_speedup (1 serial, 2 perfect, at the usual switch interval), alone_ms, cores.
    """
    rows = []
    for name, make in makers.items():
        call, other = make(), make()
        call()
        other()
        measured = [_round(call, other, seconds) for _ in range(rounds)]
        alone_s, progress, free, speedup = (
            statistics.median(column) for column in zip(*measured, strict=True)
        )
        rows.append(
            {
                "call": name,
                "gil": behaviour(free, progress),
                "lock_free_share": free,
                "other_thread_progress": progress,
                "two_thread_speedup": speedup,
                "alone_ms": 1e3 * alone_s,
                "cores": usable_cores(),
            }
        )
    return pd.DataFrame(rows)


def _round(
    call: Callable[[], object], other: Callable[[], object], seconds: float
) -> tuple[float, float, float, float]:
    """Seconds alone, the counter's progress, the share with the lock free, two threads' gain."""
    alone_s = repeated(call, seconds).wall_ms / 1e3
    progress, own = _paces(call, alone_s, seconds)
    free = min(1.0, max(0.0, progress + own - 1.0))
    return alone_s, progress, free, _two_threads(call, other, seconds)


def _paces(call: Callable[[], object], alone_s: float, seconds: float) -> tuple[float, float]:
    """Paces of a counting thread and of `call` side by side, each over its pace alone.

    The counter's own pace is measured before and after, while this thread sleeps.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        with _Counter() as counter:
            before = _pace(counter, seconds / 2)
            first = counter.count
            together = repeated(call, seconds)
            beside = (counter.count - first) / together.wall_ns
            after = _pace(counter, seconds / 2)
    finally:
        sys.setswitchinterval(usual)
    free = (before + after) / 2
    return min(1.0, beside / free if free else 0.0), min(1.0, 1e3 * alone_s / together.wall_ms)


def _pace(counter: _Counter, seconds: float) -> float:
    """How far it counts in a nanosecond while this thread sleeps."""
    first = counter.count
    slept = timed(lambda: time.sleep(seconds))
    return (counter.count - first) / slept.wall_ns


def _two_threads(
    first: Callable[[], object], second: Callable[[], object], seconds: float
) -> float:
    """Wall time of n calls of each of the two on one thread, over that on a thread each."""
    each = max(1, round(1e9 * seconds / 2 / max(timed(first).wall_ns, 1000)))
    serial = timed(first, each).wall_ns + timed(second, each).wall_ns
    threads = [threading.Thread(target=timed, args=(call, each)) for call in (first, second)]

    def side_by_side() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return serial / timed(side_by_side).wall_ns
