"""One job on two worker processes, undisturbed and with one of them killed in the middle."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from batchgauge.experiments.serving.study import ServingCase
from batchgauge.serving.messages import Job
from batchgauge.serving.starters import starter
from batchgauge.serving.worker import WorkerPlan
from batchgauge.serving.workers import Workers
from batchgauge.workload import exact_requests

WORKERS = 2
READY_S = 120.0  # in which a worker must be ready, and the others should be


@dataclass
class Answers:
    """What came of a job: tokens by request, how often each was answered, seconds, restarts.

    `killed_at` is how many requests were answered as a worker was killed; None: none was.
    """

    tokens: dict[str, tuple[int, ...]]
    ends: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    restarts: int = 0
    killed_at: int | None = None

    @property
    def disturbance(self) -> str:
        """What was done to the workers."""
        return "no worker killed" if self.killed_at is None else "one worker killed"

    def read(self, workers: Workers, over: threading.Event) -> None:
        """Take what workers tell, in a thread; `over` is set once as many ended as were asked."""
        for events in workers.events():
            for event in events:
                self.tokens[event.id] += event.tokens
                self.ends[event.id] += event.is_last
            if sum(self.ends.values()) >= len(self.tokens):
                over.set()


def answer(case: ServingCase, *, kill: bool) -> Answers:
    """Answer one run's requests, all there at once, on two workers of one thread each.

    With `kill`, one of them gets SIGKILL once half of the requests are answered, unless all are
    by then. Raises UserError when the workers cannot be started.
    """
    arrivals = case.arrivals(1.0, case.context.seed)
    items = exact_requests(arrivals.context.tolist(), arrivals.generated.tolist())
    plan = WorkerPlan(case.context.model, case.context.weights, 1, case.question.max_batch)
    workers = Workers(starter(plan, WORKERS), WORKERS)
    found, over = Answers({item.id: () for item in items}), threading.Event()
    try:
        threading.Thread(target=found.read, args=(workers, over), daemon=True).start()
        workers.wait_ready(READY_S)
        until = time.monotonic() + READY_S
        while len(workers.pids) < WORKERS and time.monotonic() < until:
            time.sleep(0.01)
        begin = time.perf_counter()
        for item in items:
            workers.submit(Job(item.id, item.data))
        while not over.wait(0.005):
            ended, pids = found.ends.total(), workers.pids
            if kill and pids and found.killed_at is None and 2 * ended >= len(items):
                os.kill(pids[0], signal.SIGKILL)
                found.killed_at = ended
        found.seconds, found.restarts = time.perf_counter() - begin, workers.restarts
        return found
    finally:
        workers.close()


def sentence(sound: Answers, killed: Answers) -> str:
    """Whether anything was lost, answered twice or changed, and what the loss of a worker cost."""
    total, once = len(killed.tokens), sum(number == 1 for number in killed.ends.values())
    same = sum(killed.tokens[name] == ids for name, ids in sound.tokens.items())
    how = (
        "and again, as no worker was killed before all were answered,"
        if killed.killed_at is None
        else f"with one killed as {killed.killed_at} were answered"
    )
    return (
        f"{WORKERS} workers answered {len(sound.tokens)} requests in {sound.seconds:.1f} s; {how} "
        f"in {killed.seconds:.1f} s, {once} of {total} exactly once, {same} with the tokens of "
        "the undisturbed run."
    )
