"""The clock of the simulated server: discrete events, one for each step of each worker.

At a step's beginning a worker takes requests from the shared queue as its policy
allows; the step-time function says when the step ends; every sequence in it then has
one token more. The work of an event does not grow with the batch: a sequence's last
step is known when it begins to decode, so it lies in a heap until then. Plain Python
with heaps and flat arrays; about a microsecond or two a step.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush

import numpy as np

from batchgauge.errors import UserError
from batchgauge.simulate.arrivals import Arrivals
from batchgauge.simulate.server import STEP_COLUMNS, Server, SimulatedRun, queue_order
from batchgauge.simulate.steps import StepTime

MOST_RETRIES = 1000  # of one request, until failures are said to be too frequent


def simulate(
    arrivals: Arrivals,
    step_s: StepTime,
    server: Server,
    *,
    pace: Callable[[float], float] | None = None,
) -> SimulatedRun:
    """Serve all `arrivals`; the same arguments give the same run, to the last bit.

    `pace` says how many times as long as `step_s` says a step takes that begins at a
    time in seconds, for a machine whose speed changes; None is always 1.

    Raises UserError when one request alone does not fit the KV memory, or when workers
    fail so often that a batch is never done.
    """
    longest = int((arrivals.context + arrivals.generated).max())
    if server.kv_limit_tokens and longest > server.kv_limit_tokens:
        raise UserError(
            f"A request needs {longest} tokens of KV cache; the limit is "
            f"{server.kv_limit_tokens}. Raise the limit or drop the request."
        )
    return _Simulation(arrivals, step_s, server, pace).run()


class _Worker:
    """Who is in the batch, how much cache it holds, when the worker's failure comes."""

    __slots__ = (
        "busy_until", "endings", "fails_at", "held", "in_batch", "joined", "kv", "last_token",
        "members", "number", "prefill", "rows", "stack", "steps",
    )  # fmt: skip

    def __init__(self, number: int, fails_at: float) -> None:
        self.number = number
        self.fails_at = fails_at
        self.busy_until = 0.0
        self.steps = 0  # decode steps made
        self.clear()

    def clear(self) -> None:
        """An empty batch."""
        self.rows = 0  # sequences that decode
        self.joined = 0  # of them, new since the last decode step
        self.kv = 0  # tokens that their attention reads
        self.held = 0  # tokens of cache taken or reserved
        self.in_batch = 0  # sequences that decode or wait for prefill
        self.last_token = 0.0
        self.endings: list[tuple[int, int, int]] = []  # heap: (decode step, request, ticket)
        self.prefill: deque[list[int]] = deque()  # [request, tokens to do, tokens done]
        self.members: list[int] = []  # of a static or dynamic batch, which returns as one
        self.stack: list[tuple[int, int]] = []  # (request, ticket) by age, youngest last


class _Simulation:
    def __init__(
        self,
        arrivals: Arrivals,
        step_s: StepTime,
        server: Server,
        pace: Callable[[float], float] | None,
    ) -> None:
        n = len(arrivals)
        self.pace = pace
        self.arrivals, self.step_s, self.server = arrivals, step_s, server
        self.continuous = server.batching == "continuous"
        self.times: list[float] = arrivals.times_s.tolist()
        self.context: list[int] = arrivals.context.tolist()
        self.generated: list[int] = arrivals.generated.tolist()
        self.order: list[int] = queue_order(arrivals, server).tolist()  # place -> request
        self.place: list[int] = np.argsort(self.order).tolist()  # request -> place
        self.queue: list[int] = []  # heap of places
        self.waiting = bytearray(n)
        self.next = 0  # next request to arrive
        self.oldest = 0  # no request before it waits
        self.made = [0] * n  # tokens generated and kept, as of the last prefill
        self.joined_at = [0] * n  # the worker's decode step at which it began to decode
        self.ticket = [0] * n  # rises when a request is thrown out: old entries are void
        self.start, self.first, self.done, self.returned = ([-1.0] * n for _ in range(4))
        self.log = array("d")
        self.failures = np.random.default_rng(server.fleet.seed)
        self.workers = [_Worker(i, self._lifetime()) for i in range(server.fleet.workers)]
        self.clock = [(self.times[0], 0, w.number) for w in self.workers]
        self.parked: list[int] = []  # workers that only a retry can wake
        self.speeds = (*server.fleet.speeds, *(1.0,) * server.fleet.workers)

    def _lifetime(self) -> float:
        if math.isinf(self.server.fleet.mtbf_s):
            return math.inf
        return float(self.failures.exponential(self.server.fleet.mtbf_s))

    def run(self) -> SimulatedRun:
        clock = self.clock
        heapify(clock)
        while clock:
            now, _, number = heappop(clock)
            worker = self.workers[number]
            self._arrive(now)
            if now >= worker.fails_at and self._fail(worker, now):
                continue
            self._admit(worker, now)
            if worker.in_batch:
                self._step(worker, now)
            else:
                self._rest(worker, now)
        return SimulatedRun(
            self.arrivals,
            self.server,
            start_s=np.asarray(self.start),
            first_s=np.asarray(self.first),
            done_s=np.asarray(self.done),
            returned_s=np.asarray(self.returned),
            retries=np.asarray(self.ticket, np.int64),
            steps=np.frombuffer(self.log, np.float64).reshape(-1, STEP_COLUMNS),
        )

    def _arrive(self, now: float) -> None:
        while self.next < len(self.times) and self.times[self.next] <= now:
            heappush(self.queue, self.place[self.next])
            self.waiting[self.next] = True
            self.next += 1

    def _deadline(self) -> float:
        """When the longest-waiting request of a dynamic batch has waited enough."""
        while not self.waiting[self.oldest]:
            self.oldest += 1
        return self.times[self.oldest] + self.server.max_wait_s

    def _is_due(self, now: float) -> bool:
        """Whether a worker with no batch may begin one, static or dynamic, of what is waiting."""
        if not self.queue:
            return False
        if len(self.queue) >= self.server.max_batch:
            return True
        if self.server.batching == "static":
            return self.next == len(self.times)  # nobody else will come
        return now >= self._deadline()

    def _rest(self, w: _Worker, now: float) -> None:
        wake = self.times[self.next] if self.next < len(self.times) else math.inf
        if self.queue and self.server.batching == "dynamic":
            wake = min(wake, self._deadline())
        if wake < math.inf:
            heappush(self.clock, (max(wake, now), 0, w.number))
        else:
            self.parked.append(w.number)

    def _admit(self, w: _Worker, now: float) -> None:
        server, queue = self.server, self.queue
        if not self.continuous and (w.in_batch or not self._is_due(now)):
            return
        while queue and w.in_batch < server.max_batch:
            r = self.order[queue[0]]
            tokens = self.context[r] + self.made[r]
            need = tokens if server.preempt else self.context[r] + self.generated[r]
            growth = w.in_batch + 1 if server.preempt else 0
            if server.kv_limit_tokens and w.held + need + growth > server.kv_limit_tokens:
                return
            heappop(queue)
            self.waiting[r] = False
            if self.start[r] < 0.0:
                self.start[r] = now
            w.held += need
            w.in_batch += 1
            w.prefill.append([r, tokens, 0])
            if not self.continuous:
                w.members.append(r)
            if server.preempt:
                w.stack.append((r, self.ticket[r]))

    def _step(self, w: _Worker, now: float) -> None:
        server = self.server
        if server.preempt:
            self._make_room(w, now)
        positions, padded, pairs, ready = self._take_prefill(w) if w.prefill else (0, 0, 0.0, [])
        rows = w.rows if server.chunk_tokens or not positions else 0
        seconds = self.step_s(rows, w.kv if rows else 0, positions, pairs) * self.speeds[w.number]
        if positions and not self.continuous:
            seconds += server.host.batch_s
        if self.pace is not None:
            seconds *= self.pace(now)
        if len(server.fleet.sharing) > 1:
            busy = 1 + sum(other.busy_until > now for other in self.workers)
            seconds *= server.fleet.sharing[min(busy, len(server.fleet.sharing)) - 1]
        host = server.host.step_s + server.host.request_s * len(ready)
        host += server.host.token_s * (rows + len(ready))
        seconds = max(seconds, host) if server.host.overlap else seconds + host
        end = now + seconds
        w.busy_until = end
        if end > w.fails_at:  # its batch is lost then, and what this step did with it
            w.prefill.extend([r, 0, 0] for r in ready)
            heappush(self.clock, (w.fails_at, 0, w.number))
            return
        stall = now - w.last_token if rows > w.joined else 0.0
        joined = w.joined if rows else 0
        held = w.held + (rows + len(ready)) * server.preempt  # at the step's end
        self.log.extend((end, seconds, rows, joined, stall, positions, padded, held, w.in_batch))
        if rows:
            self._decoded(w, rows, end)
        for r in ready:
            self._begin_decode(w, r, end)
        if not w.in_batch:
            for r in w.members:
                self.returned[r] = end
            w.clear()
        heappush(self.clock, (end, w.in_batch, w.number))

    def _take_prefill(self, w: _Worker) -> tuple[int, int, float, list[int]]:
        """Prompt positions computed in this step, padding among them, pairs, requests ready."""
        budget = self.server.chunk_tokens or math.inf
        longest = max(job[1] for job in w.prefill) if self.server.padded else 0
        positions, padded, pairs = 0, 0, 0.0
        ready: list[int] = []
        while w.prefill and positions < budget:
            job = w.prefill[0]
            r, to_do, past = job
            take = int(min(to_do, budget - positions))
            width = max(take, longest)
            positions += width
            padded += width - take
            pairs += width * past + width * (width + 1) / 2
            if take < to_do:
                job[1:] = to_do - take, past + take
                break
            w.prefill.popleft()
            ready.append(r)
        return positions, padded, pairs, ready

    def _begin_decode(self, w: _Worker, r: int, end: float) -> None:
        self.made[r] += 1
        w.held += self.server.preempt
        if self.first[r] < 0.0:
            self.first[r] = end
        left = self.generated[r] - self.made[r]
        if not left:
            self._finish(w, r, end)
            return
        w.rows += 1
        w.joined += 1
        w.kv += self.context[r] + self.made[r]
        self.joined_at[r] = w.steps
        heappush(w.endings, (w.steps + left, r, self.ticket[r]))

    def _decoded(self, w: _Worker, rows: int, end: float) -> None:
        """One more token for each of `rows`; those that have all theirs leave."""
        w.steps += 1
        w.kv += rows
        w.joined = 0
        w.last_token = end
        if self.server.preempt:
            w.held += rows
        while w.endings and w.endings[0][0] <= w.steps:
            _, r, ticket = heappop(w.endings)
            if ticket == self.ticket[r]:
                w.rows -= 1
                w.kv -= self.context[r] + self.generated[r]
                self._finish(w, r, end)

    def _finish(self, w: _Worker, r: int, end: float) -> None:
        self.done[r] = end
        w.held -= self.context[r] + self.generated[r]
        w.in_batch -= 1
        if self.continuous:
            self.returned[r] = end

    def _make_room(self, w: _Worker, now: float) -> None:
        """Throw out the youngest until the batch's next tokens fit."""
        limit = self.server.kv_limit_tokens or math.inf
        while w.held + w.in_batch > limit and w.in_batch > 1:
            r, ticket = w.stack.pop()
            if ticket != self.ticket[r] or self.done[r] >= 0.0:
                continue
            if any(job[0] == r for job in w.prefill):
                w.prefill = deque(job for job in w.prefill if job[0] != r)
            else:
                w.joined -= self.joined_at[r] == w.steps
                self.made[r] += w.steps - self.joined_at[r]
                w.rows -= 1
                w.kv -= self.context[r] + self.made[r]
            w.held -= self.context[r] + self.made[r]
            w.in_batch -= 1
            self._again([r], now)

    def _fail(self, w: _Worker, now: float) -> bool:
        """The worker's batch goes back to the queue; whether the worker is still away."""
        lost = [r for _, r, ticket in w.endings if ticket == self.ticket[r]]
        lost += [job[0] for job in w.prefill]
        lost = lost if self.continuous else w.members
        for r in lost:
            self.made[r] = 0
            self.done[r] = -1.0
        w.clear()
        self._again(lost, now)
        back = w.fails_at
        while w.fails_at <= now:
            back = w.fails_at + self.server.fleet.restart_s
            w.fails_at = back + self._lifetime()
        if back > now:
            heappush(self.clock, (back, 0, w.number))
        return back > now

    def _again(self, requests: list[int], now: float) -> None:
        """Put requests back where they were in the queue, and wake whoever sleeps."""
        for r in requests:
            self.ticket[r] += 1
            if self.ticket[r] > MOST_RETRIES:
                raise UserError(
                    f"Request {r + 1} was begun {MOST_RETRIES} times in vain: the workers fail "
                    "more often than a batch takes, or the KV memory is too small."
                )
            heappush(self.queue, self.place[r])
            self.waiting[r] = True
            self.oldest = min(self.oldest, r)
        if requests:
            for number in self.parked:
                heappush(self.clock, (now, 0, number))
            self.parked.clear()
