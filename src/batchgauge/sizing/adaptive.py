"""Batch size while serving: learned from what has really been measured, under a latency budget.

`AdaptiveBatchSizer` raises the size while there is room and cuts it when the budget
breaks (additive or guided increase, multiplicative decrease, Chiu and Jain 1989),
with three things on top that keep it calm: a dead band below the budget in which it
stays, a ceiling where it last failed which it tries again ever more rarely, and one
lone spike is forgiven. When latency at an unchanged size changes much, it forgets
what it knew, which is how it recovers after a disturbance.

`serve` drives anything that takes a batch (`BatchInferenceEngine.infer_batch`) from a
queue. Time in the queue is not counted: the budget is about the batch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import TypeVar

from batchgauge.errors import UserError
from batchgauge.request import BatchItem, BatchResult

# Grow only while the next size is expected to stay below this share of the budget; the
# share is exp(-2 sigma) of the relative noise seen, within these bounds.
LEAST_HEADROOM, MOST_HEADROOM = 0.75, 0.97
FIRST_WAIT = 16  # batches until a size that failed is tried again; doubles with each failure
LONGEST_WAIT = 256
CHANGED = 1.25  # latency at the same size beyond this ratio means that the world changed
SMALLEST_STEP = 0.06  # of the size; the dead band

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass
class AdaptiveBatchSizer:
    """Chooses the next batch size; tell it each batch's latency with `observe`.

    Args:
        latency_budget_ms: what a batch may take.
        max_size: largest size, e.g. the engine's `max_batch_size()` or what memory allows.
        start: first size, e.g. from `suggest_batch_size`.
        min_size: smallest size; it is kept even when it breaks the budget.
        forget_after_s: a size's latency that is older than this is not used any more.
        clock: seconds; replace it to test without waiting.

    Raises UserError for budgets or sizes that make no sense.
    """

    latency_budget_ms: float
    max_size: int
    start: int = 1
    min_size: int = 1
    forget_after_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    size: int = field(init=False)
    _seen: dict[int, tuple[float, float]] = field(init=False, default_factory=dict)
    _here: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=6))
    _ceiling: int | None = field(init=False, default=None)
    _ceiling_ms: float = field(init=False, default=0.0)
    _wait: int = field(init=False, default=FIRST_WAIT)
    _since_failure: int = field(init=False, default=0)
    _spikes: int = field(init=False, default=0)
    _variance: float = field(init=False, default=0.04**2)

    def __post_init__(self) -> None:
        if not self.latency_budget_ms > 0.0:
            raise UserError(f"The latency budget is {self.latency_budget_ms} ms; expected above 0.")
        if not 1 <= self.min_size <= self.max_size:
            raise UserError(
                f"Sizes from {self.min_size} to {self.max_size} are no range; expected 1 or more, "
                "the smaller one first."
            )
        self.size = min(max(self.start, self.min_size), self.max_size)

    def observe(self, size: int, latency_ms: float) -> int:
        """Take in one batch's latency and return the size of the next batch.

        A batch smaller than the size asked for (the queue ran dry) can only lower it.
        Raises UserError for a latency that is not positive.
        """
        if not latency_ms > 0.0:
            raise UserError(f"A batch took {latency_ms} ms; expected a time above 0.")
        self._since_failure += 1
        if size == self.size:
            self._notice_change(latency_ms)
            self._learn_noise(latency_ms)
            self._here.append(latency_ms)
            self._seen[size] = (fmean(self._here), self.clock())
        if latency_ms > self.latency_budget_ms:
            if self._is_spike(latency_ms):
                self._spikes += 1
            else:
                self._cut(min(size, self.size), latency_ms)
        elif size == self.size:
            self._grow()
        return self.size

    @property
    def target_ms(self) -> float:
        """The latency aimed at: the budget less two standard deviations of the noise seen."""
        share = math.exp(-2.0 * math.sqrt(self._variance))
        return self.latency_budget_ms * min(MOST_HEADROOM, max(LEAST_HEADROOM, share))

    def _learn_noise(self, latency_ms: float) -> None:
        """Exponential average of squared relative steps between batches of one size."""
        if self._here:
            step = math.log(latency_ms / self._here[-1])
            # Var(x - y) = 2 Var; steps beyond a spike's size say nothing about the noise.
            self._variance += 0.1 * (min(step * step, 0.04) / 2.0 - self._variance)

    def _notice_change(self, latency_ms: float) -> None:
        """Forget the past when latency at the same size has clearly changed."""
        if len(self._here) < 3:
            return
        *before, last = self._here
        usual = fmean(before)
        both = sorted((last, latency_ms))
        if both[0] > CHANGED * usual or both[1] * CHANGED < usual:
            faster = both[1] < usual
            self._here.clear()
            self._here.append(last)
            self._seen.clear()
            if faster:
                self._ceiling, self._wait = None, FIRST_WAIT

    def _is_spike(self, latency_ms: float) -> bool:
        """A first excess at a size that was well within the budget so far is forgiven once."""
        before = list(self._here)[:-1]
        calm = len(before) >= 2 and fmean(before) < self.target_ms
        return calm and self._spikes == 0 and latency_ms < 3.0 * self.latency_budget_ms

    def _cut(self, failed: int, latency_ms: float) -> None:
        share = self.target_ms / latency_ms
        # A failure below or at a ceiling that was tried again makes the next trial rarer.
        again = self._ceiling is not None and failed >= self._ceiling
        self._wait = min(LONGEST_WAIT, 2 * self._wait) if again else FIRST_WAIT
        self._ceiling, self._ceiling_ms = failed, latency_ms
        self._since_failure = 0
        smaller = min(failed - 1, int(failed * max(0.5, share)))
        self._move(max(self.min_size, smaller))

    def _grow(self) -> None:
        if len(self._here) < 2 or self.size >= self.max_size:
            return
        here = fmean(self._here)
        self._doubt_ceiling(here)
        target = self.target_ms
        quick = 2 * self.size if here < 0.6 * target else self.size + max(1, self.size // 4)
        guided = self.size + int((target - here) / self._slope_ms(here))
        # Well below the target the present size is evidence enough for a small step.
        bold = self.size + max(1, self.size // 4) if here < 0.75 * target else self.size
        wanted = min(self.max_size, quick, max(guided, bold))
        if self._ceiling is not None:
            # Now and then one careful trial of what failed.
            trial = self._since_failure >= self._wait
            wanted = min(wanted, self._ceiling if trial else self._ceiling - 1)
        # Steps of a few percent are within the noise: not worth the restlessness.
        if wanted >= self.size + max(1, round(SMALLEST_STEP * self.size)):
            self._move(wanted)

    def _doubt_ceiling(self, here: float) -> None:
        """Drop a ceiling that the present latency contradicts.

        For t(b) = a + c b with a >= 0, t(size) is at least size / ceiling of t(ceiling);
        clearly less means that the machine has become faster since.
        """
        if self._ceiling is None:
            return
        if here * CHANGED < self._ceiling_ms * self.size / self._ceiling:
            self._ceiling, self._wait = None, FIRST_WAIT
            self._seen = {self.size: self._seen[self.size]}

    def _slope_ms(self, here: float) -> float:
        """Milliseconds that one more item costs: from the nearest other size known, else fair.

        Never below a quarter of the mean cost per item, which guards against two noisy
        neighbours that look alike.
        """
        fair = here / self.size
        now = self.clock()
        known = [
            (abs(size - self.size), (ms - here) / (size - self.size))
            for size, (ms, at) in self._seen.items()
            if size != self.size and now - at <= self.forget_after_s
        ]
        return max(min(known)[1], 0.25 * fair) if known else fair

    def _move(self, size: int) -> None:
        if size != self.size:
            self.size = size
            self._here.clear()
        self._spikes = 0


@dataclass(frozen=True, slots=True)
class Served:
    """One batch of a served queue: how many items, how long, under which budget."""

    size: int
    latency_ms: float
    budget_ms: float

    @property
    def within_budget(self) -> bool:
        """True when the batch kept its budget."""
        return self.latency_ms <= self.budget_ms


def serve(
    run_batch: Callable[[Sequence[BatchItem[Request]]], BatchResult[Answer]],
    items: Iterable[BatchItem[Request]],
    sizer: AdaptiveBatchSizer,
) -> Iterator[tuple[Served, BatchResult[Answer]]]:
    """Run all `items` through `run_batch` in batches of the size that `sizer` asks for.

    Yields each batch's record and result as it finishes. The latency is the batch's own
    wall time. `run_batch` is e.g. an engine's `infer_batch`.
    """
    queue = iter(items)
    while batch := list(islice(queue, sizer.size)):
        result = run_batch(batch)
        latency = result.stats.total_duration_ms
        sizer.observe(len(batch), latency)
        yield Served(len(batch), latency, sizer.latency_budget_ms), result
