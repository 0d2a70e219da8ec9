"""The processes of the regression gate: which revision, how much to measure, and the worker.

Leaves out what to ask of the workers and what it means; see `gate`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from batchgauge.errors import UserError

# The interleaved ratio needs less margin than files of two sessions: with 5 % here, a slow-down
# of exactly 5 % would be found in one of forty runs.
THRESHOLD = 0.02
_WORKER = Path(__file__).with_name("gate_worker.py")


@dataclass(frozen=True, slots=True)
class Side:
    """One revision: its name, the folder that holds its package, an injected slow-down (0.1)."""

    name: str
    source: Path
    slow: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure: `seconds` a benchmark and round, over `processes` process rounds."""

    benchmarks: Sequence[str]
    suite: Path
    options: Mapping[str, Any]
    seconds: float = 16.0
    processes: int = 16
    threshold: float = THRESHOLD
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by benchmark
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.processes < 2 or self.seconds <= 0 or not 0 <= self.threshold < 10:
            raise UserError(
                f"processes={self.processes}, seconds={self.seconds}, threshold="
                f"{self.threshold}; expected at least 2 processes, and positive numbers."
            )

    def threshold_of(self, benchmark: str) -> float:
        """The slow-down that this benchmark may pass (0.02 = 2 %)."""
        return self.thresholds.get(benchmark, self.threshold)


class WorkerError(Exception):
    """A benchmark that one revision could not run, with its reason."""


def _settle(pid: int, threads: int) -> None:
    """Keep a worker on the last `threads` cores, where the system offers it.

    All workers then run on the same cores: processes that wander differ by several percent.
    """
    with contextlib.suppress(AttributeError, psutil.Error, OSError):  # macOS offers no affinity
        cores = sorted(psutil.Process().cpu_affinity() or ())
        psutil.Process(pid).cpu_affinity(cores[-threads:])


class Worker:
    """A process that times one revision's benchmarks; a context manager that ends it."""

    def __init__(self, side: Side, plan: Plan) -> None:
        self.side = side
        environment = {
            **os.environ,
            "PYTHONPATH": str(side.source),
            "PYTHONHASHSEED": "0",  # equal dict and set layouts in every process
        }
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(plan.suite), json.dumps(dict(plan.options))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
        )
        _settle(self._process.pid, int(plan.options.get("threads", 1)))

    def __enter__(self) -> Self:
        package = Path(self.ask(where=True)["package"])
        if package.resolve() != (self.side.source / "batchgauge").resolve():
            self.__exit__(None, None, None)
            raise UserError(
                f"The worker of '{self.side.name}' imported another copy of the package; "
                "install this project editable, or run from its own environment."
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._messages.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, wait for its answer. Raises WorkerError, or UserError when it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self._process.wait()
            self._messages.seek(0)
            last = (self._messages.read().strip().splitlines() or ["no message"])[-1]
            raise UserError(f"The worker of revision '{self.side.name}' died: {last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"on '{self.side.name}': {answer['error']}")
        return answer
