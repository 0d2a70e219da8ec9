"""A worker: a scheduler over one model, and a pipe through which jobs come and news goes.

`WorkerPlan` says what a worker is like, `Opener` makes its scheduler, `work` is its loop: the same
in a thread and in a process (`starters`).
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from batchgauge.core.batch_loop import StepEvent
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.errors import UserError
from batchgauge.machine.limits import usable_memory
from batchgauge.registry import open_engine, with_weights
from batchgauge.request import BatchItem, InferenceBatchRequest
from batchgauge.serving.admission import open_scheduler
from batchgauge.serving.messages import Failing, Job, JobEvent, News, Ready, State, Unfit
from batchgauge.serving.policies import BATCHINGS, ORDERS
from batchgauge.serving.scheduler import DEADLINE_PASSED, Rules, Scheduler
from batchgauge.sizing.adaptive import AdaptiveBatchSizer

AGEING_S = 10.0  # that make up for one class, or for the mean length
MAX_WAIT_S = 0.05  # of a dynamic batch
WARM_UP = BatchItem("warm-up", InferenceBatchRequest((0,), max_tokens=2, ignore_eos=True))


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What every worker of a server is like; JSON can hold it.

    model, weights  what `registry.open_engine` takes; "" is the default model
    threads         of each worker
    slots           requests in the batch; 0 asks the sizing advisor
    policy          who goes first: one of `ORDERS`
    batching        when: one of `BATCHINGS`
    budget_ms       what a step may take; the batch adapts to it (0: no budget)
    workers         how many share the machine's memory
    """

    model: str = ""
    weights: str = "float32"
    threads: int = 1
    slots: int = 0
    policy: str = "fifo"
    batching: str = "continuous"
    budget_ms: float = 0.0
    workers: int = 1

    def rules(self, slots: int) -> Rules:
        """How a scheduler with so many slots decides. Raises UserError for an unknown name."""
        for name, known in (("policy", ORDERS), ("batching", BATCHINGS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} is '{getattr(self, name)}'; expected one of {', '.join(known)}."
                )
        batching = BATCHINGS[self.batching](MAX_WAIT_S)
        return Rules(
            batch=slots,
            order=ORDERS[self.policy](AGEING_S),
            batching=batching,
            preempt=self.policy == "priority" and not batching.together,
            sizer=AdaptiveBatchSizer(self.budget_ms, slots, slots) if self.budget_ms else None,
        )


class Opener:
    """Makes schedulers over one model, which it loads for the first of them."""

    def __init__(self, plan: WorkerPlan) -> None:
        self._plan, self._lock = plan, threading.Lock()
        self._engine: BatchInferenceEngine | None = None
        self._slots = plan.slots

    def load(self) -> None:
        """Load the model, and find out how many slots it has. Raises UserError."""
        with self._lock:
            if self._engine is not None:
                return
            self._plan.rules(1)  # are its names known?
            spec = with_weights("numpy", self._plan.weights)
            engine = open_engine(spec, self._plan.model or None, self._plan.threads)
            assert isinstance(engine, BatchInferenceEngine)
            _ = engine.model.layers  # compiled now: workers that are forked have it then
            self._slots = self._slots or engine.optimal_batch_size()
            self._engine = engine

    def __call__(self) -> Scheduler:
        """A scheduler without requests. Raises UserError."""
        self.load()
        engine = self._engine
        assert engine is not None
        engine.infer_batch([WARM_UP])  # threads begin, and what is compiled is looked up
        memory = usable_memory()[1] // self._plan.workers + engine.model.weights_bytes
        return open_scheduler(engine, self._plan.rules(self._slots), memory_bytes=memory)


def work(connection: Connection, opened: Callable[[], Scheduler]) -> None:
    """Run jobs until the pipe's other end is closed, then close this one."""
    try:
        scheduler = opened()
        connection.send(Ready(os.getpid(), scheduler.batch_limit))
        is_told = True
        while True:
            rest_s = scheduler.wake_s()
            if rest_s and not is_told:
                connection.send(News([], state_of(scheduler)))
                is_told = True
            if connection.poll(None if math.isinf(rest_s) else rest_s):
                events, is_told = obey(scheduler, connection.recv()), False
            else:
                events, is_told = [seen(scheduler, e) for e in scheduler.step()], True
            if events or is_told:
                connection.send(News(events, state_of(scheduler)))
    except UserError as problem:
        connection.send(Unfit(str(problem)))
    except (EOFError, OSError):
        return  # nobody is there any more
    finally:
        connection.close()


def obey(scheduler: Scheduler, said: Job | str) -> list[JobEvent]:
    """Take a job, or forget one; the event of a job that cannot be taken."""
    if isinstance(said, str):
        scheduler.cancel(said)
        return []
    try:
        item = BatchItem(said.id, said.request)
        scheduler.submit(
            item, priority=said.priority, deadline_s=said.deadline_s, arrived_s=said.arrived_s
        )
    except UserError as problem:
        return [JobEvent(said.id, failing="invalid", error=str(problem))]
    return []


def seen(scheduler: Scheduler, event: StepEvent) -> JobEvent:
    """A step's event as a worker tells it; the whole answer of one that is over is let go."""
    if event.ended:
        scheduler.cancel(event.id)
    failing: Failing | None = None
    if event.error is not None:
        failing = "deadline" if event.error.startswith(DEADLINE_PASSED) else "failed"
    tokens = () if event.token is None else (event.token,)
    return JobEvent(event.id, tokens, event.finish, failing, event.error or "")


def state_of(scheduler: Scheduler) -> State:
    """What a scheduler has under way."""
    loop = scheduler.loop
    each = loop.model.kv_bytes_per_token
    return State(
        waiting=scheduler.waiting,
        running=scheduler.running,
        kv_used_bytes=loop.used_positions * each,
        kv_bytes=(loop.positions or 0) * each,
        steps=loop.counters["decode_steps"],
    )
