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
from batchgauge.machine.limits import performance_cpus, usable_cpus

# The interleaved ratio needs less margin than files of two sessions: with 5 % here, a slow-down
# of exactly 5 % would be found in one of forty runs.
THRESHOLD = 0.02
SLICE_S = 0.5  # more of one process would not tell how processes differ
FEWEST = 6  # process rounds; an interval over fewer is too wide to say anything
EVERY = 4  # process rounds between two looks; each look is one more chance of a false alarm
_WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True, slots=True)
class Side:
    """One revision: its name, the folder that holds its package, an injected slow-down (0.1)."""

    name: str
    source: Path
    slow: float = 0.0


@dataclass(frozen=True, slots=True)
class GatePlan:
    """How much to measure: a round has at most `processes` process rounds.

    From `least` of them on, it ends for a benchmark as soon as the answer is clear. After
    `seconds` of wall time a benchmark, workers' starts included, it ends for all of them,
    if there were `FEWEST`.
    """

    benchmarks: Sequence[str]
    suite: Path
    options: Mapping[str, Any]
    seconds: float = 30.0
    processes: int = 64
    least: int = 10
    threshold: float = THRESHOLD
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by benchmark
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if min(self.processes, self.least) < 2 or self.seconds <= 0 or not 0 <= self.threshold < 10:
            raise UserError(
                f"processes={self.processes}, seconds={self.seconds}, threshold="
                f"{self.threshold}; expected at least 2 processes, and positive numbers."
            )

    @property
    def slice_s(self) -> float:
        """Seconds that one process round measures a benchmark."""
        return min(SLICE_S, self.seconds / self.processes)

    def is_over(self, done: int, seconds: float) -> bool:
        """Whether time is up for a benchmark, after so many process rounds and wall seconds."""
        return done >= FEWEST and seconds > self.seconds

    def is_look(self, done: int) -> bool:
        """Whether it is time, after so many process rounds, to see if the answer is clear."""
        return done >= self.least and (done - self.least) % EVERY == 0

    def threshold_of(self, benchmark: str) -> float:
        """The slow-down that this benchmark may pass (0.02 = 2 %)."""
        return self.thresholds.get(benchmark, self.threshold)


class WorkerError(Exception):
    """A benchmark that one revision could not run, with its reason."""


class Worker:
    """A process that times one revision's benchmarks; a context manager that ends it."""

    def __init__(self, side: Side, plan: GatePlan) -> None:
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
        self._threads = int(plan.options.get("threads", 1))

    def __enter__(self) -> Self:
        return self

    def check(self) -> None:
        """Raise UserError when the worker did not start, or with another copy of the package."""
        package = Path(self.ask(where=True)["package"])
        if package.resolve() != (self.side.source / "batchgauge").resolve():
            raise UserError(
                f"The worker of '{self.side.name}' imported another copy of the package; "
                "install this project editable, or run from its own environment."
            )

    def settle(self, *, everywhere: bool = False) -> None:
        """Keep the worker on as many cores as it has threads, where the system offers it.

        All workers are timed on the same cores, full-speed ones where there are enough:
        processes that wander differ by several percent. `everywhere`: on all usable ones
        again, to prepare side by side.
        """
        best, usable = performance_cpus(), sorted(usable_cpus())
        chosen = usable
        if not everywhere:
            chosen = list(best if len(best) >= self._threads else usable)[-self._threads :]
        with contextlib.suppress(AttributeError, psutil.Error, OSError):  # macOS has no affinity
            psutil.Process(self._process.pid).cpu_affinity(chosen)

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
        self.send(**request)
        return self.answer()

    def send(self, **request: Any) -> None:
        """Send a request whose `answer` is asked for later."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the missing answer says it
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to what was sent; raises as `ask` does."""
        assert self._process.stdout is not None
        try:
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
