"""Ways to start workers, none of which outlives the other end of its pipe.

`Threads`: in this process. `Nursery`: forked from a process that loads the model once, so that
all share its pages and another begins at once. `Spawned`: each on its own, where processes
cannot fork.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection

from batchgauge.errors import UserError
from batchgauge.serving.messages import Unfit
from batchgauge.serving.scheduler import Scheduler
from batchgauge.serving.worker import Opener, WorkerPlan, work
from batchgauge.serving.workers import Starter

CAN_FORK = sys.platform.startswith("linux") and hasattr(socket, "send_fds")
END_S = 5.0  # that a nursery is given to end
MOST_STARTS = 16  # workers that a nursery is asked for at once


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

    def __init__(self, plan: WorkerPlan) -> None:
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

    def __init__(self, plan: WorkerPlan) -> None:
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


def starter(plan: WorkerPlan, workers: int) -> Starter:
    """The way to start so many workers here; 0 is one in a thread of this process."""
    if not workers:
        return Threads(Opener(plan))
    return Nursery(plan) if CAN_FORK else Spawned(plan)


def _alone(connection: Connection, plan: WorkerPlan) -> None:
    _ignore_signals()
    work(connection, Opener(plan))


def _ignore_signals() -> None:
    """Those that are sent to a whole group: when to end, the server says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _nursery(control: socket.socket, plan: WorkerPlan) -> None:
    """Fork a worker for every pipe that comes, until no more can; end where the model is none.

    Another may find it: what was wrong with the machine can be over.
    """
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
        if problem:
            return


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
    _nursery(socket.socket(fileno=int(sys.argv[1])), WorkerPlan(**json.loads(sys.argv[2])))
