"""Real load on an engine: so many requests at once, so many a second, or batches of so many.

The closed loop keeps every slot busy and discards each slot's first request; the open loop sends
when a request is due, whether or not earlier ones came back, and counts from then. No refusal is
sent again: it is a finding. Where the client itself is the limit (its processor, threads that
come late), the run says so.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

import numpy as np
import numpy.typing as npt

from batchgauge.errors import UserError
from batchgauge.protocols import Engine
from batchgauge.request import BatchItem, InferenceBatchRequest, InferenceBatchResponse
from batchgauge.sizing.advice.records import Asked, Run

Array = npt.NDArray[np.float64]

_MOST_WAVE_S = 60.0  # a first wave that takes longer is given up
_LOOK_S = 0.02
_COLD = 2.0  # a first wave that took so many times as long as later ones tells no cycle's length
_IN_STEP = 0.02  # of the first wave: slots that end it so close together begin the next together
_DRAIN = 4.0  # times the mean latency that requests under way at the end are waited for
_UNFIT = 400  # the status for a single request of a batch that failed
_PAUSE_S = (0.05, 1.0)  # after a refusal: doubles from the first to the second
# Arrivals of an open run: as many as a 95th percentile needs after the warm-up, or fewer where
# they come so slowly that they would take six times the least time; answers of runs are pooled.
_MOST_ARRIVALS, _FEWEST_ARRIVALS, _LONG = 200, 60, 6.0
_LETTERS = 4  # of a token, about
_TOKEN = 4 * _LETTERS  # letters of a prompt that take as long as a token of an answer, about
_GOLDEN = (5**0.5 - 1) / 2
_WARM_UP = 0.3  # of an open run, until the queue is as long as it will be


class Answering(Protocol):
    """An engine that answers many requests at once, each when it is done."""

    def ask(self, request: InferenceBatchRequest) -> InferenceBatchResponse:
        """Answer one request on the calling thread, times since the call.

        Raises UserError; one with a `status` where the request was refused.
        """
        ...


class Requests:
    """The workload's requests one after the other, so that any few of them are like the whole.

    Lengths of real prompts differ by orders of magnitude: runs of requests drawn freely differ
    by which came, more than by their setting. Here the requests, sorted by what they ask for,
    are taken at the places of Kronecker's sequence n·φ mod 1, of which neighbours lie far apart
    (Niederreiter, "Random Number Generation and Quasi-Monte Carlo Methods", 1992, ch. 3).

    Servers cache prompts: one that comes again, in this search or the next, would be answered
    sooner than a new one. For them a text has a number behind what all texts begin with, another
    one each time.
    """

    def __init__(self, items: Sequence[BatchItem[InferenceBatchRequest]], seed: int = 0) -> None:
        if not items:
            raise UserError("The workload is empty; expected at least one request.")
        self._items, self._lock, self._next = items, threading.Lock(), count()
        self._mark = time.time_ns() // 1_000_000 % 10_000
        self._rng = np.random.default_rng(seed)
        self.letters = np.array([float(letters(i.data)) for i in items])  # [prompts]
        asked = self.letters + _TOKEN * np.array([i.data.max_tokens for i in items])
        ranked = np.lexsort((self._rng.random(len(items)), asked))  # ties in any order
        places = (self._rng.random() + _GOLDEN * np.arange(len(items))) % 1.0
        self._order = ranked[np.argsort(np.argsort(places))]
        texts = {i.data.prompt for i in items if isinstance(i.data.prompt, str)}
        common = os.path.commonprefix(list(texts)) if len(texts) > 1 else ""  # noqa: RUF071 (no path)
        self._shared = max(common.rfind(blank) for blank in " \n\t") + 1  # whole words

    def mixed(self, together: int, *, is_new: bool = False) -> Callable[[], InferenceBatchRequest]:
        """What gives the next request, for a run of so many `together`, on any thread.

        They are like the workload as a whole; which of them share a batch is left to chance, as
        when it is drawn freely. Begins again at the end of the workload; where each `is_new`, as
        texts that no server has cached.
        """
        waiting: list[int] = []

        def take() -> InferenceBatchRequest:
            with self._lock:
                if not waiting:
                    numbers = [next(self._next) for _ in range(together)]
                    waiting.extend(self._rng.permutation(numbers).tolist())
                time_before, place = divmod(waiting.pop(), len(self._items))
            request = self._items[int(self._order[place])].data
            if not is_new or not isinstance(request.prompt, str):
                return request
            shared, rest = request.prompt[: self._shared], request.prompt[self._shared :]
            return replace(request, prompt=f"{shared}{self._mark + time_before} {rest}")

        return take


def letters(request: InferenceBatchRequest) -> int:
    """Characters of a prompt, about, where it is token ids."""
    return len(request.prompt) * (1 if isinstance(request.prompt, str) else _LETTERS)


@dataclass
class ClosedLoop:
    """A server with so many requests at once; see `search.Target`."""

    server: Answering
    requests: Requests
    candidates: Array
    status: Callable[[], Mapping[str, float]] = dict
    unit: str = "requests at once"

    def run(self, setting: float, least_s: float, cycles: int, most_s: float = math.inf) -> Run:
        """One run: a first wave to warm every slot, then at least `cycles` of each.

        Nothing is sent after `most_s`, though fewer cycles are done.
        """
        loop = _Loop(self.server, self.requests, int(setting), least_s, cycles, most_s)
        threads = [
            threading.Thread(target=loop.work, args=(slot,), daemon=True)
            for slot in range(int(setting))
        ]
        for thread in threads:
            thread.start()
        server = _while_running(threads, loop, self.status)
        asked = list(loop.asked)  # a thread that was given up may still add to it
        begin = loop.begin_s
        if begin is None:
            begin = min((a.due_s for a in asked), default=0.0)
        deadline = min(loop.deadline_s, max((a.end_s for a in asked), default=0.0))
        return Run("closed", setting, asked, begin, deadline, loop.cpu_share, server=server)


def _while_running(
    threads: Sequence[threading.Thread],
    loop: _Loop,
    status: Callable[[], Mapping[str, float]],
) -> Mapping[str, float]:
    """What the server says of itself in the middle of the run; waits for its end."""
    said: Mapping[str, float] | None = None
    while any(thread.is_alive() for thread in threads):
        time.sleep(_LOOK_S)
        begin, now = loop.begin_s, time.perf_counter()
        if begin is not None and said is None and now > (begin + loop.deadline_s) / 2.0:
            said = status()
        if begin is None and now > loop.wave_end_s:
            loop.give_up()
        if now > loop.deadline_s:
            usual_s = max(loop.wave_s, 0.1)
            patience_s = min(_DRAIN * usual_s, max(usual_s, loop.last_s - now))
            for thread in threads:
                thread.join(max(0.0, loop.deadline_s + patience_s - time.perf_counter()))
            break
    return said or {}


class _Loop:
    """What the slots of a closed loop share."""

    def __init__(
        self, server: Answering, requests: Requests, slots: int, least_s: float, cycles: int,
        most_s: float,
    ) -> None:  # fmt: skip
        self.server, self.slots = server, slots
        self._take = requests.mixed(slots * cycles, is_new=True)
        self._least_s, self._cycles = least_s, cycles
        self.asked: list[Asked] = []
        self.begin_s: float | None = None
        self.deadline_s = math.inf
        self.cpu_share = 0.0
        started_s = time.perf_counter()
        self.last_s = started_s + most_s  # nothing is sent after it
        self.wave_end_s = started_s + min(_MOST_WAVE_S, most_s)
        self.wave_s = 0.0  # mean latency of the first wave
        self._warm: set[int] = set()
        self._latencies: list[float] = []  # after the first wave
        self._lock = threading.Lock()
        self._cpu_s = 0.0

    def work(self, slot: int) -> None:
        """Ask until the deadline."""
        pause_s = _PAUSE_S[0]
        while (now := time.perf_counter()) < self.deadline_s:
            asked = ask_once(self.server, self._take(), slot, now)
            self._note(asked)
            if asked.is_ok or asked.is_unfit:
                pause_s = _PAUSE_S[0]
            else:
                time.sleep(pause_s)
                pause_s = min(_PAUSE_S[1], 2.0 * pause_s)

    def _note(self, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)
            self._warm.add(asked.slot)
            is_warm = len(self._warm) == self.slots and self.deadline_s == math.inf
            if self.begin_s is None and is_warm:
                # A request that is refused for its length is answered at once: that is no cycle.
                fit = [a for a in self.asked if not a.is_unfit] or self.asked
                self.wave_s = float(np.mean([a.end_s - a.due_s for a in fit]))
                self.begin_s = asked.end_s - _IN_STEP * self.wave_s
                wanted_s = self.begin_s + max(self._least_s, self._cycles * self.wave_s)
                self.deadline_s = min(self.last_s, wanted_s)
                self._cpu_s = time.process_time()
                return
            if self.begin_s is not None and asked.is_ok and asked.due_s >= self.begin_s:
                self._shorten(self.begin_s, asked)
            if self.begin_s and asked.end_s >= self.deadline_s and not self.cpu_share:
                self.cpu_share = (time.process_time() - self._cpu_s) / max(
                    1e-6, asked.end_s - self.begin_s
                )

    def _shorten(self, begin_s: float, asked: Asked) -> None:
        """Bring the deadline forward where the first wave was far slower, as a cold server's is."""
        self._latencies.append(asked.end_s - asked.due_s)
        usual_s = float(np.mean(self._latencies))
        if len(self._latencies) >= self.slots and self.wave_s > _COLD * usual_s:
            least_s = begin_s + max(self._least_s, self._cycles * usual_s)
            self.deadline_s = min(self.deadline_s, max(least_s, asked.end_s))

    def give_up(self) -> None:
        """Send no more requests, whoever still completes the first wave."""
        with self._lock:
            if self.begin_s is None:
                self.deadline_s = min(self.deadline_s, time.perf_counter())


def ask_once(server: Answering, request: InferenceBatchRequest, slot: int, due_s: float) -> Asked:
    """Send one request now and record what became of it."""
    sent = time.perf_counter()
    try:
        answer = server.ask(request)
    except UserError as problem:
        end, status = time.perf_counter(), int(getattr(problem, "status", 0))
        return Asked(slot, due_s, sent, math.nan, end, None, status, str(problem))
    end = time.perf_counter()
    first = sent + answer.ttft_ms / 1e3
    return Asked(
        slot, due_s, sent, first, end, answer.tokens_generated,
        is_empty=answer.is_empty, letters=letters(request),
    )  # fmt: skip


@dataclass
class OpenLoop:
    """A server that gets Poisson arrivals of so many requests a second; see `search.Target`."""

    server: Answering
    requests: Requests
    candidates: Array
    status: Callable[[], Mapping[str, float]] = dict
    seed: int = 0
    most_at_once: int = 256
    unit: str = "requests per second"

    @property
    def first(self) -> list[float]:
        """The rates to begin with."""
        return first_rates(self.candidates)

    def run(self, setting: float, least_s: float, cycles: int, most_s: float = math.inf) -> Run:
        """One run of 60 to 200 arrivals, at least `least_s` of them; the first are warm-up.

        Fewer where so many would take longer than `most_s`.
        """
        self.seed += 1
        rng = np.random.default_rng(self.seed)
        usual = min(_MOST_ARRIVALS, max(_FEWEST_ARRIVALS, int(_LONG * least_s * setting)))
        arrivals = max(usual, int(setting * least_s))
        arrivals = max(2, int(min(arrivals, setting * most_s)))
        due = np.cumsum(rng.exponential(1.0 / setting, arrivals))  # [arrivals]
        take = self.requests.mixed(arrivals, is_new=True)
        begin = time.perf_counter() + 0.01
        cpu = time.process_time()
        with (
            ThreadPoolExecutor(1) as aside,  # whose answer delays no request
            ThreadPoolExecutor(min(arrivals, self.most_at_once)) as pool,
        ):
            futures = []
            for number, offset in enumerate(due.tolist()):
                if (wait := begin + offset - time.perf_counter()) > 0:
                    time.sleep(wait)
                futures.append(pool.submit(ask_once, self.server, take(), number, begin + offset))
                if number == arrivals // 2:
                    said = aside.submit(self.status)
            deadline = begin + float(due[-1])
            share = (time.process_time() - cpu) / max(1e-6, time.perf_counter() - begin)
            asked = [future.result() for future in futures]
        late = float(np.percentile([1e3 * (a.sent_s - a.due_s) for a in asked], 95))
        start = begin + _WARM_UP * float(due[-1])
        return Run("open", setting, asked, start, deadline, share, late, said.result())


@dataclass
class Batches:
    """An engine in this process that answers a batch of so many; see `search.Target`."""

    engine: Engine
    requests: Requests
    candidates: Array
    unit: str = "requests in a batch"

    def run(self, setting: float, least_s: float, cycles: int, most_s: float = math.inf) -> Run:
        """One run: a batch to warm up, then at least `cycles` of them, or as fit into `most_s`."""
        asked: list[Asked] = []
        size, least = int(setting), max(3, cycles - 1)
        last_s = time.perf_counter() + most_s
        self._batch(size, 0, self.requests.mixed(size), [])
        take = self.requests.mixed(size * least)
        begin = time.perf_counter()
        for number in count():
            now = time.perf_counter()
            if number >= least and number % least == 0 and now - begin >= least_s:
                break
            if number and now >= last_s:
                break
            self._batch(size, number, take, asked)
        return Run("batch", setting, asked, begin, time.perf_counter())

    def _batch(
        self, size: int, number: int, take: Callable[[], InferenceBatchRequest], into: list[Asked]
    ) -> None:
        items = [BatchItem(f"{number}-{row}", take()) for row in range(size)]
        begin = time.perf_counter()
        result = self.engine.infer_batch(items)
        end = time.perf_counter()
        for row, response in enumerate(result.responses):
            answer = response.data
            if answer is None:
                said = response.error or "no answer"
                into.append(Asked(row, begin, begin, math.nan, end, None, _UNFIT, said))
                continue
            first = begin + answer.ttft_ms / 1e3
            last = first + answer.decode_ms / 1e3 if answer.inter_token_ms else math.nan
            into.append(
                Asked(
                    row, begin, begin, first, end, answer.tokens_generated,
                    is_empty=answer.is_empty, last_s=min(end, last),
                    letters=letters(items[row].data),
                )
            )  # fmt: skip


def whole_settings(largest: int) -> npt.NDArray[np.float64]:
    """Whole numbers from 1 to `largest`: all up to 32, then in steps of about 4 %."""
    found = [*range(1, min(largest, 32) + 1)]
    while found[-1] < largest:
        found.append(min(largest, max(found[-1] + 1, round(found[-1] * 1.04))))
    return np.array(found, dtype=np.float64)


def first_settings(candidates: Array) -> list[float]:
    """Four settings over the range, evenly in their logarithm."""
    wanted = np.geomspace(candidates[0], candidates[-1], 4)
    nearest = [float(candidates[np.argmin(np.abs(np.log(candidates / w)))]) for w in wanted]
    return list(dict.fromkeys(nearest))


def rates(capacity: float) -> Array:
    """Rates to search, in steps of 4 %: up to a little more than the server manages."""
    return np.asarray(capacity * 1.04 ** np.arange(-45.0, 3.0))


def first_rates(candidates: Array) -> list[float]:
    """The rates to begin with: at far lower ones there is little to see for their seconds."""
    return [float(candidates[-1 - steps]) for steps in (21, 11, 5, 2)]
