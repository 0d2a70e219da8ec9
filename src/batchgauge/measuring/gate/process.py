"""The processes of the regression gate: which revision, how much to measure, and the worker.

Leaves out what to ask of the workers and what it means; see `rounds`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from batchgauge.errors import UserError
from batchgauge.machine.limits import performance_cpus, usable_cpus
from batchgauge.measuring.gate.sequential import LEAST, SequentialDesign

# A ratio of interleaved processes needs less margin than files of two sessions: with 5 % here,
# a slow-down of exactly 5 % would be found in one of a hundred runs.
THRESHOLD = 0.01
SECONDS, ROUNDS = 60.0, 128  # a benchmark, at most; noisy ones need many rounds for 3 %
SLICE_S = 0.25  # more of one process would not tell how processes differ
_WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True, slots=True)
class Side:
    """One revision: its name, the folder that holds its package, an injected slow-down (0.1)."""

    name: str
    source: Path
    slow: float = 0.0


@dataclass(frozen=True, slots=True)
class ProcessLayout:
    """What differs between the rounds, is the same for both sides of one, and is no code.

    Such things move the time of a program by several percent (Mytkowicz et al., "Producing
    wrong data without doing anything obviously wrong!", ASPLOS 2009): bytes added to the
    environment, characters added to the path of the checkout, the seed of string hashes, and
    the order in which modules are imported.
    """

    padding: int
    path: int
    hash_seed: int
    order: int

    @classmethod
    def of(cls, seed: int, round_: int) -> ProcessLayout:
        """The layout of one round."""
        draw = np.random.default_rng((seed, round_)).integers
        return cls(
            *(int(draw(low, high)) for low, high in ((0, 4096), (1, 64), (0, 1000), (0, 1000)))
        )

    def __str__(self) -> str:
        return "/".join(str(value) for value in asdict(self).values())


@dataclass(frozen=True, slots=True)
class GatePlan:
    """How much to measure: at most `rounds` of two fresh workers, and `seconds` a benchmark.

    A benchmark ends at the first look that leaves no doubt, see `sequential`. The seconds are
    wall time, starts of workers included; how many rounds fit is fixed after the first.
    """

    benchmarks: Sequence[str]
    suite: Path
    options: Mapping[str, Any]
    seconds: float = SECONDS
    rounds: int = ROUNDS
    threshold: float = THRESHOLD
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by benchmark
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.rounds < LEAST or self.seconds <= 0 or not 0 <= self.threshold < 10:
            raise UserError(
                f"rounds={self.rounds}, seconds={self.seconds}, threshold={self.threshold}; "
                f"expected at least {LEAST} rounds, and positive numbers."
            )

    def design(self, benchmark: str, fit: int) -> SequentialDesign:
        """When to look at a benchmark where `fit` rounds fit in the time."""
        threshold = self.thresholds.get(benchmark, self.threshold)
        return SequentialDesign(max(LEAST, min(fit, self.rounds)), threshold)


class WorkerError(Exception):
    """A benchmark that one revision could not run, with its reason."""


class Worker:
    """A process that times one revision's benchmarks; a context manager that ends it."""

    def __init__(self, side: Side, plan: GatePlan, layout: ProcessLayout, folder: Path) -> None:
        self.side = side
        environment = {
            **os.environ,
            "PYTHONPATH": str(_at_length(side.source, folder, layout.path)),
            "PYTHONHASHSEED": str(layout.hash_seed),
            "BATCHGAUGE_GATE_PADDING": "x" * layout.padding,
        }
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        options = json.dumps(dict(plan.options))
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(plan.suite), options, str(layout.order)],
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

    def __exit__(self, *_: object) -> None:
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


def _at_length(source: Path, folder: Path, length: int) -> Path:
    """A link to `source` in `folder` whose name has `length` characters; `source` without links.

    Caches of compiled code lie beside the files, so that all links share them.
    """
    link = folder / ("p" * length)
    try:
        if not link.is_symlink():
            link.symlink_to(source.resolve(), target_is_directory=True)
    except OSError:  # Windows asks for a privilege
        return source
    return link
