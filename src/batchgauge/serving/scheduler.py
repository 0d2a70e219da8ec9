"""The scheduler around a `BatchLoop`: a queue, admission, preemption, deadlines.

It is synchronous and pure: `submit`, `cancel` and `step` come from one thread, and its clock can
be replaced. A step ends what is too late, lets requests join as order and batching say while
batch limit and KV memory have room, then makes one step of the loop. Room for all tokens
that a request may get is reserved as it joins, so that nobody runs out of memory on the way.
Nobody joins before the one who is next, even where a smaller one would fit.

With `preempt`, a request whose order allows it throws out the least urgent of those under
way, if that makes enough room; they go back to their place in the queue and are recomputed later,
to the same tokens.

Left out: a bound of the queue (`async_engine` has one, for all workers together), threads,
processes and sockets, which are built on top.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from batchgauge.core.batch_loop import BatchLoop, Response, StepEvent
from batchgauge.core.generation import Generation
from batchgauge.errors import UserError
from batchgauge.request import BatchItem, BatchResponse, InferenceBatchRequest
from batchgauge.serving.policies import CONTINUOUS, Batching, Fifo, Order, Submission
from batchgauge.serving.queue import Heap, WaitingQueue
from batchgauge.sizing.adaptive import AdaptiveBatchSizer

DEADLINE_PASSED = "The deadline passed"  # how the error of such a request begins


class ClosedError(UserError):
    """The scheduler takes no more requests."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a scheduler decides. Raises UserError for what makes no sense.

    batch    requests under way, at most; the loop's slots where those are fewer
    preempt  whether the order may throw out requests that are under way
    sizer    lowers the batch by what a step of the loop took that only decoded (batching
             together: by what the whole batch took)
    """

    batch: int = 8
    order: Order = field(default_factory=Fifo)
    batching: Batching = CONTINUOUS
    preempt: bool = False
    sizer: AdaptiveBatchSizer | None = None

    def __post_init__(self) -> None:
        value: object = self.batch
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"batch is {value!r}; expected a whole number from 1 on.")
        if self.preempt and self.batching.together:
            raise UserError("Preemption needs continuous batching.")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: when it ended on the scheduler's clock, what it did, and what it cost.

    rows and prompt_positions are what the model computed, `waiting`, `running` and
    `used_positions` what was there as it began; own_s is all but the loop's step.
    """

    at_s: float
    loop_s: float
    own_s: float
    rows: int
    prompt_positions: int
    waiting: int
    running: int
    used_positions: int


class Scheduler:
    """Requests from arrival to answer.

    counts  of submitted, joined, evicted, cancelled, expired, finished, failed
    last    the record of the last step that did something; None before the first
    """

    def __init__(
        self,
        loop: BatchLoop,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loop, self.rules, self.clock = loop, rules or Rules(), clock
        self.counts: Counter[str] = Counter()
        self.last: StepRecord | None = None
        self.closed = False
        self._waiting = WaitingQueue()
        self._running: dict[str, Submission] = {}
        self._deadlines = Heap(lambda one: one.deadline_s, self._is_going)
        self._held: list[StepEvent] = []  # ends of a batch that is not done
        self._ended: dict[str, Response] = {}
        self._batch_began_s, self._batch_size = 0.0, 0

    # -- what callers ask

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests under way."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nobody is under way."""
        return not self._waiting and not self._running and self.loop.idle

    @property
    def batch_limit(self) -> int:
        """Requests that may be under way now."""
        most = min(self.rules.batch, self.loop.slots)
        return min(most, self.rules.sizer.size) if self.rules.sizer else most

    def __contains__(self, name: object) -> bool:
        return name in self._waiting or name in self._ended or name in self.loop

    def wake_s(self) -> float:
        """Seconds until a step has something to do: 0 for now; infinity: not before a `submit`."""
        if self._running or not self.loop.idle:
            return 0.0
        now = self.clock()
        if not self._waiting:
            return math.inf
        if self._is_due(now):
            return 0.0
        nearest = self._deadlines.first()
        begin_s = self._waiting.oldest_s() + self.rules.batching.max_wait_s
        return max(0.0, min(begin_s, nearest.deadline_s if nearest else math.inf) - now)

    # -- what callers do

    def submit(
        self,
        request: BatchItem[InferenceBatchRequest],
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        arrived_s: float | None = None,
    ) -> None:
        """Put a request in the queue.

        `priority` is its class, 0 the most urgent; it must be over `deadline_s` after
        `arrived_s`, when it came by the scheduler's clock: now, or earlier, during a step.
        Raises UserError for a prompt that the model cannot take, an id that is in use, a
        request that never fits, ClosedError.
        """
        if self.closed:
            raise ClosedError("The server is shutting down; expected requests before that.")
        if not isinstance(priority, int) or isinstance(priority, bool) or priority < 0:
            raise UserError(f"priority is {priority!r}; expected a whole number from 0 on.")
        if deadline_s is not None and not deadline_s > 0.0:
            raise UserError(f"deadline_s is {deadline_s}; expected seconds above 0.")
        if request.id in self:
            raise UserError("A request of this id is under way; expected an id of its own.")
        one = self._read(request)
        if not self.loop.could_fit(one):
            raise UserError(
                f"The request may need {one.capacity} positions of the KV cache; expected at most "
                f"{self.loop.positions}."
            )
        now, number = self.clock(), self.counts["submitted"]
        came = now if arrived_s is None else min(arrived_s, now)
        coming = Submission(one, priority, came, number, came + (deadline_s or math.inf))
        coming.key = self.rules.order.key(coming)
        if deadline_s is not None:
            self._deadlines.push(coming)
        self.counts["submitted"] += 1
        self._waiting.push(coming)

    def cancel(self, name: str) -> bool:
        """Drop a request, its room and its answer; whether it waited or was under way."""
        self._ended.pop(name, None)
        self._held = [event for event in self._held if event.id != name]
        found = self._waiting.remove(name) or self._running.pop(name, None)
        self.loop.cancel(name)
        self.counts["cancelled"] += found is not None
        return found is not None

    def step(self) -> list[StepEvent]:
        """End what is too late, let requests join, and make one step of the loop."""
        began = time.perf_counter()
        now = self.clock()
        events = self._expire(now)
        self._admit(now)
        waiting, running, used = self.waiting, self.running, self.loop.used_positions
        before = time.perf_counter()
        stepped = [] if self.loop.idle else self.loop.step()
        loop_s = time.perf_counter() - before
        now = self.clock()
        events += self._sort_out(stepped)
        if running:
            rows, positions = self.loop.decoded, self.loop.prefilled
            self._observe(rows, positions, loop_s, now)
            own_s = time.perf_counter() - began - loop_s
            self.last = StepRecord(now, loop_s, own_s, rows, positions, waiting, running, used)
        return events

    def response(self, name: str) -> Response:
        """The answer of a request that has ended, once. Raises KeyError where there is none."""
        if (found := self._ended.pop(name, None)) is not None:
            return found
        if name in self._running:
            raise KeyError(name)
        return self.loop.response(name)

    def close(self) -> None:
        """Take no more requests; those that wait or are under way go on."""
        self.closed = True

    # -- inside

    def _read(self, item: BatchItem[InferenceBatchRequest]) -> Generation:
        (found,) = self.loop.read([item])
        if isinstance(found, Generation):
            return found
        raise UserError(found.error or "")

    def _is_going(self, one: Submission) -> bool:
        return one in self._waiting or self._running.get(one.one.id) is one

    def _is_due(self, now: float) -> bool:
        """Whether requests that wait may join."""
        batching = self.rules.batching
        if not batching.together:
            return True
        if self._running:
            return False
        full = self.waiting >= self.batch_limit or self.closed
        return full or now >= self._waiting.oldest_s() + batching.max_wait_s

    def _admit(self, now: float) -> None:
        if not self._waiting or not self._is_due(now):
            return
        coming: list[Submission] = []
        ones: list[Generation] = []
        while (found := self._waiting.next()) is not None:
            ones.append(found.one)
            fits = len(self._running) + len(ones) <= self.batch_limit and self.loop.fits(ones)
            if not fits and not self._make_room(found, ones):
                break
            self._waiting.remove(found.one.id)
            coming.append(found)
        self.loop.join([found.one for found in coming])
        for found in coming:
            self._running[found.one.id] = found
        self.counts["joined"] += len(coming)
        self._batch_began_s, self._batch_size = now, len(coming)

    def _make_room(self, coming: Submission, ones: list[Generation]) -> bool:
        """Throw out who must give way to the last of `ones`, if that makes enough room."""
        if not self.rules.preempt:
            return False
        order = self.rules.order
        below = [one for one in self._running.values() if order.may_evict(coming, one)]
        below.sort(key=lambda one: one.place, reverse=True)
        rows = len(self._running) + len(ones) - self.batch_limit
        for number in range(1, len(below) + 1):
            victims = below[:number]
            if number >= rows and self.loop.fits(ones, [one.one.id for one in victims]):
                for victim in victims:
                    self._evict(victim.one.id)
                return True
        return False

    def _evict(self, name: str) -> None:
        found = self._running.pop(name)
        self.loop.evict(name)
        self.counts["evicted"] += 1
        self._waiting.push(found)

    def _expire(self, now: float) -> list[StepEvent]:
        """End requests whose deadline is over."""
        events = []
        while (found := self._deadlines.first()) is not None and found.deadline_s <= now:
            name, waited = found.one.id, found in self._waiting
            self._waiting.remove(name)
            self._running.pop(name, None)
            self.loop.cancel(name)
            self._held = [event for event in self._held if event.id != name]
            state = "it still waited" if waited else f"it had {len(found.one.tokens)} tokens"
            error = f"{DEADLINE_PASSED} after {now - found.arrived_s:.3g} s, when {state}."
            self._ended[name] = BatchResponse(name, None, (now - found.arrived_s) * 1e3, error)
            self.counts["expired"] += 1
            events.append(StepEvent(name, error=error))
        return events

    def _sort_out(self, events: list[StepEvent]) -> list[StepEvent]:
        """What may be shown of a step: the ends of a batch that is run together wait for all."""
        if not self.rules.batching.together:
            for event in events:
                if event.ended:
                    self._done(event)
            return events
        shown = []
        for event in events:
            if event.ended:
                self._held.append(event._replace(token=None))
            if event.token is not None:
                shown.append(event._replace(finish=None, error=None))
        if self._held and not len(self.loop):
            for event in self._held:
                self._done(event)
            shown += self._held
            self._held = []
        return shown

    def _done(self, event: StepEvent) -> None:
        del self._running[event.id]
        self.counts["failed" if event.error is not None else "finished"] += 1

    def _observe(self, rows: int, positions: int, loop_s: float, now: float) -> None:
        """Tell the sizer what a batch, or a step that only decoded, took."""
        sizer = self.rules.sizer
        if sizer is None:
            return
        if not self.rules.batching.together:
            if rows and not positions:
                sizer.observe(rows, loop_s * 1e3)
        elif not self._running and now > self._batch_began_s:
            sizer.observe(self._batch_size, (now - self._batch_began_s) * 1e3)
