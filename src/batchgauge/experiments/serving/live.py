"""Requests served in real time by a scheduler around our engine's loop, each moment noted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd

from batchgauge.core.batch_loop import StepEvent
from batchgauge.errors import UserError
from batchgauge.serving.scheduler import Scheduler, StepRecord
from batchgauge.simulate.arrivals import CLASS_NAMES, Arrivals
from batchgauge.workload import exact_requests

STEP_COLUMNS = [field.name for field in fields(StepRecord)]


@dataclass(frozen=True)
class LiveRun:
    """What happened.

    requests  one row a request: arrival_s, first_s and done_s (its last token; NaN where it was
              cancelled before), returned_s (handed over), tokens, class, cancelled
    steps     one row a step of the loop, the fields of `StepRecord`; times from the beginning
    """

    requests: pd.DataFrame
    steps: pd.DataFrame


def serve(
    scheduler: Scheduler,
    arrivals: Arrivals,
    *,
    seed: int = 0,
    cancelled: frozenset[int] = frozenset(),
    progress: Callable[[int], object] | None = None,
) -> LiveRun:
    """Serve `arrivals` in real time: prompts of random ids, end tokens ignored.

    Requests in `cancelled` are dropped after half of their tokens. Raises UserError when the
    engine answers with an error.
    """
    items = exact_requests(arrivals.context.tolist(), arrivals.generated.tolist(), seed=seed)
    times, ranks = arrivals.times_s.tolist(), arrivals.rank.tolist()
    notes = _Notes(scheduler, arrivals, cancelled)
    n, arrived = len(times), 0
    while notes.over < n:
        now = scheduler.clock() - notes.begin
        while arrived < n and times[arrived] <= now:
            came = notes.begin + times[arrived]
            scheduler.submit(items[arrived], priority=ranks[arrived], arrived_s=came)
            arrived += 1
        if arrived == n:
            scheduler.close()  # nobody else will come: a batch that is not full may begin
        wait = min(scheduler.wake_s(), times[arrived] - now if arrived < n else math.inf)
        if wait > 0.0:
            time.sleep(wait)
            continue
        before = notes.over
        notes.take(scheduler.step())
        if progress:
            progress(notes.over - before)
    return notes.run()


class _Notes:
    """The moments of each request and step, as they come."""

    def __init__(self, scheduler: Scheduler, arrivals: Arrivals, cancelled: frozenset[int]) -> None:
        self.scheduler, self.arrivals, self.cancelled = scheduler, arrivals, cancelled
        self.first, self.done, self.returned = np.full((3, len(arrivals)), math.nan)
        self.tokens = np.zeros(len(arrivals), np.int64)
        self.steps: list[StepRecord] = []
        self.over = 0
        self.begin = scheduler.clock()

    def take(self, events: Sequence[StepEvent]) -> None:
        """Note what a step did, and cancel whom it is time to cancel."""
        now = self.scheduler.clock() - self.begin
        for event in events:
            if event.error is not None:
                raise UserError(f"The engine failed on a live request: {event.error}")
            i = int(event.id)
            if event.token is not None:
                self.tokens[i] += 1
                self.done[i] = now
                self.first[i] = now if self.tokens[i] == 1 else self.first[i]
            if event.finish is not None:
                self.scheduler.response(event.id)
                self.returned[i] = now
                self.over += 1
            elif i in self.cancelled and 2 * self.tokens[i] >= self.arrivals.generated[i]:
                self.over += self.scheduler.cancel(event.id)
        last = self.scheduler.last
        if last is not None and (not self.steps or last is not self.steps[-1]):
            self.steps.append(last)

    def run(self) -> LiveRun:
        """What was noted, as frames."""
        frame = pd.DataFrame(
            {
                "request": range(len(self.arrivals)), "arrival_s": self.arrivals.times_s,
                "first_s": self.first, "done_s": self.done, "returned_s": self.returned,
                "tokens": self.tokens, "class": [CLASS_NAMES[r] for r in self.arrivals.rank],
                "cancelled": np.isnan(self.returned),
            }
        )  # fmt: skip
        steps = pd.DataFrame([asdict(step) for step in self.steps], columns=STEP_COLUMNS)
        return LiveRun(frame, steps.assign(at_s=steps["at_s"] - self.begin))
