"""A server that the advisor starts itself, with other flags for each setting.

The command has `{slots}` where the setting goes and, optionally, `{port}`. Every setting is a
fresh process in a group of its own, which ends with all its children. A port that somebody
listens on already is refused: one would measure another server.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import psutil

from batchgauge.errors import UserError
from batchgauge.sizing.advice.load import Answering, ClosedLoop, Requests
from batchgauge.sizing.advice.records import Run
from batchgauge.text import one_line

_POLL_S = 0.1
_GRACE_S = 5.0  # from the polite signal to the other one
_SAID = 300  # characters of a server's last words


@dataclass
class Launched:
    """A server started anew for each setting, with as many requests at once as it has slots.

    connect opens the engine at the port; it is called until it succeeds or `ready_s` are over.
    """

    command: str
    port: int
    connect: Callable[[], Answering]
    requests: Requests
    candidates: npt.NDArray[np.float64]
    status: Callable[[Any], Mapping[str, float]] = lambda _engine: {}
    ready_s: float = 180.0
    unit: str = "slots, with as many requests at once"
    _server: _Process | None = field(default=None, init=False)
    _engine: Answering = field(init=False)

    def __post_init__(self) -> None:
        if "{slots}" not in self.command:
            raise UserError(
                f"The launch command '{self.command}' has no {{slots}}; expected it where the "
                "number of slots goes."
            )
        try:
            self._arguments(1)
        except (ValueError, KeyError, IndexError) as problem:
            raise UserError(
                f"The launch command '{self.command}' cannot be read ({problem}); expected a "
                "command with {slots} and optionally {port}, other braces doubled."
            ) from None

    def _arguments(self, slots: int) -> list[str]:
        return shlex.split(self.command.format(slots=slots, port=self.port))

    def run(self, setting: float, least_s: float, cycles: int, most_s: float = math.inf) -> Run:
        """Start the server with so many slots unless it runs so, then load it for what is left."""
        end_s = time.monotonic() + most_s
        engine = self._ready(int(setting))
        loop = ClosedLoop(
            engine, self.requests, self.candidates, status=lambda: self.status(engine)
        )
        return loop.run(setting, least_s, cycles, max(least_s, end_s - time.monotonic()))

    def _ready(self, slots: int) -> Answering:
        if self._server and self._server.slots == slots and self._server.is_alive():
            return self._engine
        self.close()
        check_free(self.port)
        server = _Process(self._arguments(slots), slots)
        self._server = server
        end = time.monotonic() + self.ready_s
        while (alive := server.is_alive()) and time.monotonic() < end:
            with contextlib.suppress(UserError):
                self._engine = server.engine = self.connect()
                return self._engine
            time.sleep(_POLL_S)
        said = server.last_words()
        self.close()
        if not alive:
            raise UserError(f"The launched server ended before it was ready: {said}.")
        raise UserError(
            f"The launched server was not ready within {self.ready_s:.0f} s at port {self.port} "
            f"(its last words: {said})."
        )

    def close(self) -> None:
        """End the server and its children."""
        if self._server:
            self._server.end()
            self._server = None


class _Process:
    """One server's process group, with what it writes in a file that goes with it."""

    engine: Any

    def __init__(self, arguments: list[str], slots: int) -> None:
        self.slots, self.engine = slots, None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as the process
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as problem:
            self._log.close()
            raise UserError(
                f"The launch command cannot be started ({problem.strerror}: {arguments[0]}); "
                "expected a program."
            ) from None

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def last_words(self) -> str:
        """The end of what it wrote."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 4 * _SAID))
        return one_line(self._log.read().decode("utf-8", "replace"))[-_SAID:] or "nothing"

    def end(self) -> None:
        """End the group and whatever left it, politely first."""
        if close := getattr(self.engine, "close", None):
            close()
        family = []
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self._process.pid).children(recursive=True)
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        for child in family:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=_GRACE_S)
        self._log.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, number)
            else:
                self._process.terminate()


def check_free(port: int) -> None:
    """Raise UserError when somebody listens on the port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(
                f"Somebody listens on port {port} already; expected a free port for the server "
                "that is to be launched."
            )
