"""A worker: a scheduler over one model, and a pipe through which jobs come and news goes.

Three ways to start some. `Threads`: in this process. `Nursery`: forked from a process that
loads the model once, so that all share its pages and another begins at once. `Spawned`: each
on its own, where processes cannot fork. None outlives the other end of its pipe.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

from batchgauge.core.batch_loop import StepEvent
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.errors import UserError
from batchgauge.machine.limits import usable_memory
from batchgauge.registry import open_engine, with_weights
from batchgauge.request import BatchItem, InferenceBatchRequest
from batchgauge.serving.admission import open_scheduler
from batchgauge.serving.messages import Event, Failing, Job, News, Ready, State, Unfit
from batchgauge.serving.policies import (
    CONTINUOUS,
    STATIC,
    Batching,
    Fifo,
    Order,
    PriorityClasses,
    ShortestFirst,
    dynamic,
)
from batchgauge.serving.rules import DEADLINE_PASSED, Rules
from batchgauge.serving.scheduler import Scheduler
from batchgauge.serving.workers import Starter
from batchgauge.sizing.adaptive import AdaptiveBatchSizer

CAN_FORK = sys.platform.startswith("linux") and hasattr(socket, "send_fds")
END_S = 5.0  # that a nursery is given to end
MOST_STARTS = 16  # workers that a nursery is asked for at once
MOST_WAITING = 10**6  # in a worker's own queue: how many may wait, the engine before it says
AGEING_S = 10.0  # that make up for one class, or for the mean length
MAX_WAIT_S = 0.05  # of a dynamic batch
POLICIES: Mapping[str, Order] = {
    "fifo": Fifo(),
    "priority": PriorityClasses(AGEING_S),
    "shortest": ShortestFirst(ageing_s=AGEING_S),
}
BATCHINGS: Mapping[str, Batching] = {
    "continuous": CONTINUOUS,
    "dynamic": dynamic(MAX_WAIT_S),
    "static": STATIC,
}
WARM_UP = BatchItem("warm-up", InferenceBatchRequest((0,), max_tokens=2, ignore_eos=True))


@dataclass(frozen=True, slots=True)
class Plan:
    """What every worker of a server is like; JSON can hold it.

    model, weights  what `registry.open_engine` takes; "" is the default model
    threads         of each worker
    slots           requests in the batch; 0 asks the sizing advisor
    policy          who goes first: one of `POLICIES`
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
        for name, known in (("policy", POLICIES), ("batching", BATCHINGS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} is '{getattr(self, name)}'; expected one of {', '.join(known)}."
                )
        return Rules(
            batch=slots,
            order=POLICIES[self.policy],
            batching=BATCHINGS[self.batching],
            queue=MOST_WAITING,
            preempt=self.policy == "priority" and not BATCHINGS[self.batching].together,
            sizer=AdaptiveBatchSizer(self.budget_ms, slots, slots) if self.budget_ms else None,
        )


class Opener:
    """Makes schedulers over one model, which it loads for the first of them."""

    def __init__(self, plan: Plan) -> None:
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


def obey(scheduler: Scheduler, said: Job | str) -> list[Event]:
    """Take a job, or forget one; the event of a job that cannot be taken."""
    if isinstance(said, str):
        scheduler.cancel(said)
        return []
    try:
        item = BatchItem(said.id, said.request)
        scheduler.submit(item, priority=said.priority, deadline_s=said.deadline_s)
    except UserError as problem:
        return [Event(said.id, failing="invalid", error=str(problem))]
    return []


def seen(scheduler: Scheduler, event: StepEvent) -> Event:
    """A step's event as a worker tells it; the whole answer of one that is over is let go."""
    if event.ended:
        scheduler.cancel(event.id)
    failing: Failing | None = None
    if event.error is not None:
        failing = "deadline" if event.error.startswith(DEADLINE_PASSED) else "failed"
    tokens = () if event.token is None else (event.token,)
    return Event(event.id, tokens, event.finish, failing, event.error or "")


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


class Threads:
    """Workers in threads of this process; one that fails is followed by another."""

    def __init__(self, opened: Callable[[], Scheduler]) -> None:
        self._opened = opened

    def start(self, connection: Connection) -> None:
        """Begin one."""
        threading.Thread(
            target=work, args=(connection, self._opened), name="model", daemon=True
        ).start()

    def close(self) -> None:
        """Nothing to do: they end with their pipes."""


class Spawned:
    """Workers in processes that load the model each on its own."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def start(self, connection: Connection) -> None:
        """Begin one."""
        process = get_context("spawn").Process(target=_alone, args=(connection, self._plan))
        process.daemon = True
        process.start()
        connection.close()

    def close(self) -> None:
        """Nothing to do: they end with their pipes."""


class Nursery:
    """Workers forked from a process that has the model; that process too is started again."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int:
        """The process that workers are forked from; 0 before the first."""
        return self._process.pid if self._process else 0

    def start(self, connection: Connection) -> None:
        """Have one forked, as soon as the model is loaded."""
        if self._process is None or self._process.poll() is not None:
            self._launch()
        assert self._control is not None
        try:
            socket.send_fds(self._control, [b"w"], [connection.fileno()])
        except OSError:
            self.close()  # it ended just now; the pipe says so to who reads
        connection.close()

    def close(self) -> None:
        """End it; its workers go on."""
        if self._process is None or self._control is None:
            return
        self._control.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # in the middle of loading
            self._process.kill()
            self._process.wait()
        self._process = self._control = None

    def _launch(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                [*command, json.dumps(asdict(self._plan))], pass_fds=[theirs.fileno()]
            )


def starter(plan: Plan, workers: int) -> Starter:
    """The way to start so many workers here; 0 is one in a thread of this process."""
    if not workers:
        return Threads(Opener(plan))
    return Nursery(plan) if CAN_FORK else Spawned(plan)


def _alone(connection: Connection, plan: Plan) -> None:
    _ignore_signals()
    work(connection, Opener(plan))


def _ignore_signals() -> None:
    """Those that are sent to a whole group: when to end, the server says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _nursery(control: socket.socket, plan: Plan) -> None:
    """Fork a worker for every pipe that comes, until no more can."""
    _ignore_signals()
    opened, problem = Opener(plan), ""
    try:
        opened.load()
    except UserError as error:
        problem = str(error)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        said, descriptors, _, _ = socket.recv_fds(control, 1, MOST_STARTS)
        if not said:
            return
        for descriptor in descriptors:
            with Connection(descriptor) as connection:
                if problem:
                    connection.send(Unfit(problem))
                elif os.fork() == 0:
                    control.close()
                    _forked(connection, opened)


def _forked(connection: Connection, opened: Opener) -> None:
    """A worker's whole life: never returns."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        work(connection, opened)
        code = 0
    except BaseException:  # noqa: BLE001  (whatever it was, the log says it)
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _nursery(socket.socket(fileno=int(sys.argv[1])), Plan(**json.loads(sys.argv[2])))
