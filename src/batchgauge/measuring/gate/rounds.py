"""The regression gate: two revisions in the same session, two fresh processes a round.

A round starts one worker of each side in a layout of its own (environment, path, hash seed,
import order: the same for both sides), and asks them for samples in turn, in palindromic order
that alternates, so that both see the same conditions. The evidence is one log ratio a round, the
median over its blocks. A benchmark ends at the first look that leaves no doubt; see
`sequential` for the looks and `judging` for the verdicts. A first round that is not counted
compiles what each side needs, and counts its work.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from batchgauge.clock import Elapsed
from batchgauge.errors import UserError
from batchgauge.measuring.gate.judging import Change, change_of, is_over
from batchgauge.measuring.gate.process import (
    SLICE_S,
    GatePlan,
    ProcessLayout,
    Side,
    Worker,
    WorkerError,
)
from batchgauge.measuring.gate.sequential import LEAST, Logs, SequentialDesign
from batchgauge.measuring.record import Amount, Labels, Sample

SIDES = ("base", "new")
_MOST_BLOCKS = 200
_LATE = 1.5  # times the time, and the machine has slowed down: end without a verdict


@dataclass(frozen=True, slots=True)
class Round:
    """Two fresh processes on one benchmark: log ratio new ÷ base, and their medians in ms."""

    benchmark: str
    number: int
    layout: ProcessLayout
    log_ratio: float
    base_ms: float
    new_ms: float


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate found: a change a benchmark, all rounds and samples, what was not measured."""

    changes: list[Change]
    rounds: list[Round]
    samples: list[Sample]
    problems: dict[str, str]


@dataclass(slots=True)
class _Benchmark:
    """One benchmark while it is measured: what the sides said of it, and its rounds."""

    name: str
    about: dict[str, dict[str, Any]]
    design: SequentialDesign | None = None
    rounds: list[Round] = field(default_factory=list)
    seconds: float = 0.0  # wall time, with its share of the workers' starts
    problem: str = ""

    @property
    def ratios(self) -> Logs:
        return np.array([r.log_ratio for r in self.rounds])

    @property
    def is_open(self) -> bool:
        """Whether another round may change the verdict."""
        if self.problem:
            return False
        if self.design is None or len(self.rounds) not in self.design.looks:
            return True
        last = len(self.rounds) == self.design.most
        return not last and not is_over(self.design.look(self.ratios), self.design)

    def change(self) -> Change:
        assert self.design is not None
        return change_of(
            self.name,
            self.ratios,
            self.design,
            counters=(self.about["base"]["counters"], self.about["new"]["counters"]),
            seconds=self.seconds,
            base_ms=float(np.median([r.base_ms for r in self.rounds])),
            new_ms=float(np.median([r.new_ms for r in self.rounds])),
        )


def gate(base: Side, new: Side, plan: GatePlan) -> GateResult:
    """Compare `new` with `base`, benchmark by benchmark, round by round.

    Raises UserError when no benchmark runs on both sides, a worker does not start, or the
    machine slows down so much that too few rounds fit.
    """
    sides = dict(zip(SIDES, (base, new), strict=True))
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="batchgauge-") as folder:
        place = Path(folder)
        start = time.perf_counter()
        with _workers(sides, plan, 0, place) as workers:
            all_ = [_described(name, workers) for name in plan.benchmarks]
        _share(time.perf_counter() - start, all_)
        bar = tqdm(desc="gate", unit="round", total=plan.rounds, disable=not plan.progress)
        for number in range(1, plan.rounds + 1):
            open_ = [b for b in all_ if b.is_open]
            spent = time.perf_counter() - start
            whole = plan.seconds * len(all_)
            if not open_ or (number > LEAST and spent > _LATE * whole):
                break
            bar.set_postfix(benchmarks=len(open_))
            begin = time.perf_counter()
            with _workers(sides, plan, number, place) as workers:
                for benchmark in open_:
                    _measure(benchmark, workers, number, plan, samples)
            took = time.perf_counter() - begin
            _share(took, open_)
            if number == 1:
                fit = int((whole - spent) / took)
                bar.total = min(max(fit, LEAST), plan.rounds)
                for benchmark in all_:
                    benchmark.design = plan.design(benchmark.name, fit)
            bar.update()
        bar.close()
    problems = {b.name: b.problem for b in all_ if b.problem}
    measured = [b for b in all_ if not b.problem]
    if not measured:
        reason = next(iter(problems.values()), "nothing was selected")
        raise UserError(f"No benchmark ran on both revisions: {reason}")
    rounds = [r for b in measured for r in b.rounds]
    return GateResult([b.change() for b in measured], rounds, samples, problems)


def _share(seconds: float, benchmarks: Sequence[_Benchmark]) -> None:
    for benchmark in benchmarks:
        benchmark.seconds += seconds / len(benchmarks)


@contextmanager
def _workers(
    sides: Mapping[str, Side], plan: GatePlan, number: int, folder: Path
) -> Iterator[dict[str, Worker]]:
    """One fresh worker of each side, in the round's layout; which starts first alternates."""
    layout = ProcessLayout.of(plan.seed, number)
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for key in SIDES if number % 2 else SIDES[::-1]:
            place = folder / key.ljust(4, "_")  # names of one length
            place.mkdir(exist_ok=True)
            workers[key] = stack.enter_context(Worker(sides[key], plan, layout, place))
        for worker in workers.values():
            worker.check()
        yield workers


def _described(name: str, workers: Mapping[str, Worker]) -> _Benchmark:
    """What both sides say of a benchmark, or why one cannot run it."""
    try:
        return _Benchmark(name, _asked(workers, describe=name))
    except WorkerError as problem:
        return _Benchmark(name, {}, problem=str(problem))


def _asked(workers: Mapping[str, Worker], **request: Any) -> dict[str, dict[str, Any]]:
    """The answers of workers that work side by side, on all cores."""
    for worker in workers.values():
        worker.settle(everywhere=True)
        worker.send(**request)
    answers: dict[str, dict[str, Any]] = {}
    problem = None
    for key, worker in workers.items():
        try:
            answers[key] = worker.answer()
        except WorkerError as said:  # the others' answers must still be read
            problem = said
    if problem is not None:
        raise problem
    for worker in workers.values():
        worker.settle()
    return answers


def _measure(
    benchmark: _Benchmark,
    workers: Mapping[str, Worker],
    number: int,
    plan: GatePlan,
    samples: list[Sample],
) -> None:
    """One round of one benchmark, added to it."""
    loops = int(benchmark.about["base"]["loops"])
    try:
        _asked(workers, prepare=benchmark.name, loops=loops)
        logs = _blocks(benchmark, workers, number, samples)
    except WorkerError as problem:
        benchmark.problem = str(problem)
        return
    base, new = (logs[key] for key in SIDES)
    ratio, ours, theirs = np.median([new - base, base, new], axis=1).tolist()
    layout = ProcessLayout.of(plan.seed, number)
    times = math.exp(ours), math.exp(theirs)
    benchmark.rounds.append(Round(benchmark.name, number, layout, ratio, *times))


def _blocks(
    benchmark: _Benchmark, workers: Mapping[str, Worker], number: int, samples: list[Sample]
) -> dict[str, Logs]:
    """Mean log(ms per call) of each side [blocks]; each block has two samples a side."""
    loops = int(benchmark.about["base"]["loops"])
    logs: dict[str, list[float]] = {key: [] for key in SIDES}
    end = time.perf_counter() + SLICE_S
    block = 0
    while block < 1 or (time.perf_counter() < end and block < _MOST_BLOCKS):
        order = SIDES if (number + block) % 2 else SIDES[::-1]
        for position, key in enumerate(order + order[::-1]):
            worker, about = workers[key], benchmark.about[key]
            took = worker.ask(sample=benchmark.name, loops=loops, slow=worker.side.slow)
            elapsed = Elapsed(took["wall_ns"], took["cpu_ns"], loops)
            logs[key].append(math.log(elapsed.wall_ms))
            labels = Labels(benchmark.name, key, about["part"], about["parameters"], number)
            amount = Amount(*(about[k] for k in ("items", "tokens", "batch_size", "counters")))
            place = {"block": block, "position": position, "is_warmup": False}
            samples.append(labels.sample(amount, elapsed, **place))
        block += 1
    return {key: np.array(rows).reshape(-1, 2).mean(axis=1) for key, rows in logs.items()}
