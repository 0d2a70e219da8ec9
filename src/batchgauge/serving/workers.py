"""Several workers behind one door: each request runs on one of them, and again if that dies.

A worker is a loop over its scheduler (`worker`), in a thread of this process or in one of its
own. Where processes can fork, a nursery loads the model once and forks workers of it: they
share its weights' pages, and another is there in milliseconds. Elsewhere each loads its own.

What a dead worker had under way goes to others, from the prompt on. Tokens are the same
again, whatever runs beside them, so those that were given already are not given twice; they
are compared, and a request whose tokens differ fails.

Left out: a worker that hangs without ending.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Protocol

from batchgauge.errors import UserError
from batchgauge.serving.messages import Job, JobEvent, News, Ready, State, Unfit

MOST_RUNS = 25  # of a request: after so many workers that died over it, it is to blame
MOST_STILLBORN = 5  # workers in a row that never were ready, before what waits for one fails
PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # before another start, doubled with each that did nothing


class Starter(Protocol):
    """What starts workers."""

    def start(self, connection: Connection) -> None:
        """Begin a worker that talks over this end of a pipe, which is now its own."""
        ...

    def close(self) -> None:
        """Start no more."""
        ...


@dataclass(slots=True)
class _Running:
    """A job on some worker: its tokens so far, and how many of them this run has given."""

    job: Job
    until: float | None  # time.monotonic
    tokens: list[int] = field(default_factory=list)
    seen: int = 0
    runs: int = 0


@dataclass(slots=True, eq=False)
class _Worker:
    connection: Connection
    ready: Ready | None = None
    has_worked: bool = False
    state: State = field(default_factory=State)
    jobs: dict[str, _Running] = field(default_factory=dict)
    outbox: SimpleQueue[Job | str | None] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._send, daemon=True, name="send").start()

    def leave(self) -> None:
        """Close the pipe: the worker ends."""
        self.outbox.put(None)
        self.connection.close()

    def _send(self) -> None:
        """In a thread: a worker may look up only after its step, and its pipe be full."""
        while (said := self.outbox.get()) is not None:
            try:
                self.connection.send(said)
            except OSError:
                return  # it is gone: who reads finds out


class Workers:
    """So many workers of one kind. `submit` and `cancel` from any thread, `events` from one."""

    def __init__(self, starter: Starter, count: int = 1) -> None:
        self._starter, self._count = starter, count
        self._lock = threading.RLock()
        self._workers: list[_Worker] = []
        self._waiting: list[_Running] = []  # for a worker
        self._starts: list[float] = []  # when others are to be started
        self._lost: list[JobEvent] = []  # ends that no worker tells
        self._stillborn = self._idle_deaths = self._slots_each = self.restarts = 0
        self._problem = ""
        self._wake, self._woken = Pipe()
        self._is_closed = False
        for _ in range(count):
            self._start()

    def submit(self, job: Job) -> None:
        """Give a job to the worker with the fewest, now or as soon as there is one.

        Where workers only fail (`is_broken`) it fails too, at once.
        """
        with self._lock:
            until = None if job.deadline_s is None else time.monotonic() + job.deadline_s
            self._assign(_Running(job, until))
            if self.is_broken:
                self._wake.send_bytes(b"x")  # its event is lost and found: see `_take_lost`

    def cancel(self, job_id: str) -> None:
        """Forget a job, wherever it is; no event of it comes after this."""
        with self._lock:
            self._waiting = [one for one in self._waiting if one.job.id != job_id]
            found = [w for w in self._workers if w.jobs.pop(job_id, None)]
        for worker in found:
            worker.outbox.put(job_id)

    def events(self) -> Iterator[list[JobEvent]]:
        """What became of jobs, as workers tell it; ends when this is closed."""
        while not self._is_closed:
            with self._lock:
                connections = {w.connection: w for w in self._workers}
                until = min(self._starts, default=None)
            timeout = None if until is None else max(0.0, until - time.monotonic())
            for one in wait([*connections, self._woken], timeout):
                if one is self._woken:
                    self._woken.recv_bytes()
                    continue
                if events := self._read(connections[one]):  # type: ignore[index]
                    yield events
            self._start_due()
            if lost := self._take_lost():
                yield lost

    def wait_ready(self, timeout_s: float) -> None:
        """Raise UserError unless a worker is ready in time; while another thread reads events."""
        until = time.monotonic() + timeout_s
        while not self.pids:
            if self.is_broken or time.monotonic() > until:
                raise UserError(self._problem or "No worker could be started; see what it said.")
            time.sleep(0.01)

    @property
    def is_broken(self) -> bool:
        """Whether none is ready and starts only fail. If one ever was ready, they go on."""
        return self._stillborn >= MOST_STILLBORN and not self.pids

    @property
    def slots(self) -> int:
        """How many requests all workers run at once; 0 before the first was ready."""
        return self._slots_each * self._count

    @property
    def pids(self) -> list[int]:
        """The process of each ready worker."""
        with self._lock:
            return [w.ready.pid for w in self._workers if w.ready]

    def state(self) -> State:
        """All workers' states together, jobs that wait for one included."""
        with self._lock:
            found = [w.state for w in self._workers]
            return State(
                sum(s.waiting for s in found) + len(self._waiting),
                *(sum(getattr(s, name) for s in found) for name in State._fields[1:]),
            )

    def close(self) -> None:
        """End all workers, whatever they do."""
        with self._lock:
            self._is_closed = True
            self._starter.close()
            for worker in self._workers:
                worker.leave()
        self._wake.send_bytes(b"x")

    def _start(self) -> None:
        ours, theirs = Pipe()
        self._workers.append(_Worker(ours))
        self._starter.start(theirs)

    def _start_due(self) -> None:
        with self._lock:
            now = time.monotonic()
            due = [when for when in self._starts if when <= now]
            self._starts = [when for when in self._starts if when > now]
            for _ in due:
                self._start()
                self.restarts += 1

    def _assign(self, one: _Running) -> None:
        ready = [w for w in self._workers if w.ready]
        if not ready:
            self._waiting.append(one)
            return
        worker = min(ready, key=lambda w: len(w.jobs))
        one.seen, one.runs = 0, one.runs + 1
        worker.jobs[one.job.id] = one
        left = None if one.until is None else max(0.001, one.until - time.monotonic())
        worker.outbox.put(one.job._replace(deadline_s=left))

    def _read(self, worker: _Worker) -> list[JobEvent]:
        """Events to give of what a worker said; takes leave of one that is gone."""
        try:
            said = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return []
        with self._lock:
            if isinstance(said, Ready):
                worker.ready, self._slots_each = said, said.slots
                self._stillborn, self._problem = 0, ""
                waiting, self._waiting = self._waiting, []
                for one in waiting:
                    self._assign(one)
                return []
            if isinstance(said, Unfit):
                self._problem = said.message
                if not self._slots_each:  # none was ever ready, and none will be
                    self._stillborn = MOST_STILLBORN
                return []
            assert isinstance(said, News)
            worker.state = said.state
            worker.has_worked |= bool(said.events)
            return [e for event in said.events if (e := self._given(worker, event))]

    def _given(self, worker: _Worker, event: JobEvent) -> JobEvent | None:
        """What is new of an event; None for a job that is not this worker's any more."""
        one = worker.jobs.get(event.id)
        if one is None:
            return None
        known = one.tokens[one.seen : one.seen + len(event.tokens)]
        if tuple(known) != event.tokens[: len(known)]:
            del worker.jobs[event.id]
            worker.outbox.put(event.id)
            return JobEvent(event.id, failing="failed", error="Its second run gave other tokens.")
        fresh = event.tokens[len(known) :]
        one.seen += len(event.tokens)
        one.tokens += fresh
        if event.is_last:
            del worker.jobs[event.id]
        return event._replace(tokens=fresh) if fresh or event.is_last else None

    def _bury(self, worker: _Worker) -> None:
        """Start another in place of a worker that is gone, and give its jobs to those there are."""
        with self._lock:
            if self._is_closed:
                return
            self._workers.remove(worker)
            worker.leave()
            self._stillborn += worker.ready is None
            self._idle_deaths = 0 if worker.has_worked else min(16, self._idle_deaths + 1)
            pause = min(LONGEST_PAUSE_S, PAUSE_S * (2**self._idle_deaths - 1))
            if self._slots_each or not self.is_broken:
                self._starts.append(time.monotonic() + pause)
            for one in worker.jobs.values():
                if one.runs >= MOST_RUNS:
                    said = f"{one.runs} workers ended while they ran it."
                    self._lost.append(JobEvent(one.job.id, failing="failed", error=said))
                else:
                    self._assign(one)

    def _take_lost(self) -> list[JobEvent]:
        with self._lock:
            if self.is_broken:
                said = self._problem or "All workers ended."
                self._lost += [
                    JobEvent(w.job.id, failing="failed", error=said) for w in self._waiting
                ]
                self._waiting = []
            lost, self._lost = self._lost, []
            return lost
