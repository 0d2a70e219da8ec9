"""The regression gate: two revisions in the same session, in alternating processes.

Each process round starts three fresh workers (base, base again, new) with a fixed hash
seed, and asks them for samples in turn, in seeded palindromic order, so that all three see
the same conditions. The evidence is one log ratio a process round, the median over its blocks;
its interval runs over process rounds. The second base gives the noise floor. What looks
slower is measured again with fresh processes, and fails only when seen again. A round
ends early for a benchmark whose answer is clear; the simulated gate ends early too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgauge.clock import Elapsed
from batchgauge.errors import UserError
from batchgauge.measuring.gate.compare import (
    Change,
    changed_work,
    classify,
    is_conclusive,
    suspicious,
)
from batchgauge.measuring.gate.process import GatePlan, Side, Worker, WorkerError
from batchgauge.measuring.paired import AA_CONTROL
from batchgauge.measuring.progress import Bar
from batchgauge.measuring.record import Amount, Labels, Sample
from batchgauge.statistics import Estimate, location, minimum_detectable_change, relative

Logs = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """One round of one benchmark: log(time new ÷ time base) [process rounds], and base ÷ base."""

    ratios: Logs
    aa_ratios: Logs
    counters: tuple[Mapping[str, float], Mapping[str, float]]
    seconds: float = math.nan  # wall time of one process round of this benchmark

    @cached_property
    def estimate(self) -> Estimate:
        """The log time ratio with its interval over process rounds."""
        return location(self.ratios)

    @cached_property
    def half_width(self) -> float:
        """Of the A/A interval, in logs."""
        return location(self.aa_ratios).half_width


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate found: one change a benchmark, all samples, and what could not be measured."""

    changes: list[Change]
    samples: list[Sample]
    evidence: dict[str, list[Evidence]]
    problems: dict[str, str]


def gate(base: Side, new: Side, plan: GatePlan) -> GateResult:
    """Compare `new` with `base`; what looks slower is measured a second time.

    Raises UserError when no benchmark runs on both sides, or a worker does not start.
    """
    rounds: dict[str, list[Evidence]] = {}
    evidence, samples, problems = measure_round(base, new, plan)
    for name, first in evidence.items():
        rounds[name] = [first]
    if not rounds:
        reason = next(iter(problems.values()), "nothing was selected")
        raise UserError(f"No benchmark ran on both revisions: {reason}")
    again = [n for n, e in evidence.items() if looks_slower(e, plan.threshold_of(n))]
    if again:
        more, further, _ = measure_round(base, new, plan, only=again, first_process=plan.processes)
        samples += further
        for name, second in more.items():
            rounds[name].append(second)
    changes = [decide(name, rows, plan.threshold_of(name)) for name, rows in rounds.items()]
    return GateResult(changes, samples, rounds, problems)


def looks_slower(evidence: Evidence, threshold: float) -> bool:
    """True when one round's evidence asks for a second."""
    floor = relative(evidence.half_width)
    return suspicious(evidence.estimate, threshold=threshold, noise_floor=floor)


def is_clear(evidence: Evidence, threshold: float) -> bool:
    """True when one round's evidence leaves no doubt: surely slower, or surely not so slow.

    The latter only where a change of interest would have shown; see `compare.classify`.
    """
    passes = evidence.estimate.high < math.log1p(threshold) and is_conclusive(
        minimum_detectable_change(evidence.half_width), threshold
    )
    return passes or looks_slower(evidence, threshold)


def decide(name: str, rounds: Sequence[Evidence], threshold: float) -> Change:
    """The verdict on one benchmark after its one or two rounds; numbers are the last round's.

    The noise floor of a round must be passed in that round; the larger one is reported.
    """
    halves = [r.half_width for r in rounds]
    floor = relative(max(halves))
    last = rounds[-1].estimate
    return Change(
        benchmark=name,
        change=relative(last.value),
        low=relative(last.low),
        high=relative(last.high),
        noise_floor=floor,
        minimum_detectable_change=minimum_detectable_change(max(halves)),
        threshold=threshold,
        blocks=sum(r.ratios.size for r in rounds),
        status=classify(
            [r.estimate for r in rounds],
            threshold=threshold,
            noise_floors=[relative(half) for half in halves],
            mdc=minimum_detectable_change(max(halves)),
        ),
        work=changed_work(*rounds[0].counters),
    )


def measure_round(
    base: Side, new: Side, plan: GatePlan, *, only: Sequence[str] = (), first_process: int = 0
) -> tuple[dict[str, Evidence], list[Sample], dict[str, str]]:
    """One round: evidence per benchmark, its samples, and the reasons of those that failed."""
    sides = {"base": base, AA_CONTROL: base, "new": new}
    seen = {name: _Seen() for name in only or plan.benchmarks}
    open_ = list(seen)
    samples: list[Sample] = []
    problems: dict[str, str] = {}
    start = time.perf_counter()
    with Bar(total=0, desc="gate", unit="process", disable=not plan.progress) as bar:
        for done in range(plan.processes):
            process = first_process + done
            if plan.is_look(done):
                open_ = [n for n in open_ if not is_clear(seen[n].evidence, plan.threshold_of(n))]
            passed = (time.perf_counter() - start) / len(seen)
            if not open_ or plan.is_over(done, passed):
                break
            bar.total = bar.n + (plan.processes - done) * len(open_)
            rng = np.random.default_rng((plan.seed, process))
            with ExitStack() as stack:
                order = rng.permutation(list(sides)).tolist()
                workers = {k: stack.enter_context(Worker(sides[k], plan)) for k in order}
                for worker in workers.values():
                    worker.check()
                for name in open_:
                    bar.set_postfix_str(name)
                    begin = time.perf_counter()
                    try:
                        table, work = _one(name, workers, process, rng, plan, samples)
                    except WorkerError as problem:
                        problems[name] = str(problem)
                        continue
                    seen[name].add(table, work, time.perf_counter() - begin)
                    bar.update()
            open_ = [n for n in open_ if n not in problems]
    found = {n: s.evidence for n, s in seen.items() if s.ratios and n not in problems}
    return found, samples, problems


class _Seen:
    """What the process rounds of one benchmark gave so far."""

    def __init__(self) -> None:
        self.ratios: list[float] = []
        self.aa_ratios: list[float] = []
        self.seconds: list[float] = []
        self.work: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})

    def add(
        self,
        table: Mapping[str, Logs],
        work: tuple[Mapping[str, float], Mapping[str, float]],
        seconds: float,
    ) -> None:
        both = (table["base"] + table[AA_CONTROL]) / 2.0  # two looks: less noise
        self.ratios.append(float(np.median(table["new"] - both)))
        self.aa_ratios.append(float(np.median(table[AA_CONTROL] - table["base"])))
        self.seconds.append(seconds)
        self.work = work

    @property
    def evidence(self) -> Evidence:
        seconds = float(np.mean(self.seconds))
        return Evidence(np.array(self.ratios), np.array(self.aa_ratios), self.work, seconds)


def _one(
    name: str,
    workers: Mapping[str, Worker],
    process: int,
    rng: np.random.Generator,
    plan: GatePlan,
    samples: list[Sample],
) -> tuple[dict[str, Logs], tuple[Mapping[str, float], Mapping[str, float]]]:
    """Blocks of one benchmark in one process round: mean log(time per call) per side [blocks]."""
    ready = _prepared(name, workers)
    end = time.perf_counter() + plan.slice_s
    loops = int(ready["base"]["loops"])
    logs: dict[str, list[float]] = {key: [] for key in workers}
    block = 0
    while block < 1 or (time.perf_counter() < end and block < 200):
        order = rng.permutation(list(workers)).tolist()
        for position, key in enumerate(order + order[::-1]):
            worker = workers[key]
            took = worker.ask(sample=name, loops=loops, slow=worker.side.slow)
            elapsed, info = Elapsed(took["wall_ns"], took["cpu_ns"], loops), ready[key]
            logs[key].append(math.log(elapsed.wall_ms))
            labels = Labels(name, key, info["part"], info["parameters"], process)
            amount = Amount(*(info[k] for k in ("items", "tokens", "batch_size", "counters")))
            place = {"block": block, "position": position, "is_warmup": False}
            samples.append(labels.sample(amount, elapsed, **place))
        block += 1
    work = (ready["base"]["counters"], ready["new"]["counters"])
    return {key: np.array(rows).reshape(-1, 2).mean(axis=1) for key, rows in logs.items()}, work


def _prepared(name: str, workers: Mapping[str, Worker]) -> dict[str, Mapping[str, Any]]:
    """What the workers say of the benchmark that all of them prepare side by side."""
    for worker in workers.values():
        worker.settle(everywhere=True)
        worker.send(prepare=name)
    ready: dict[str, Mapping[str, Any]] = {}
    problem = None
    for key, worker in workers.items():
        try:
            ready[key] = worker.answer()
        except WorkerError as said:  # the others' answers must still be read
            problem = said
    if problem is not None:
        raise problem
    for worker in workers.values():
        worker.settle()
    return ready
