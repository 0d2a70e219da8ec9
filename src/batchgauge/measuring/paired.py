"""Paired, interleaved comparison: which candidate is faster here, by how much, how surely.

Candidates run in blocks, each block in seeded order and then in reverse (A B C C B A), so
that a drift of the machine within a block cancels in the ratio. Calls of a second or so may
go one way only: then every other block is the one before it backwards, and the drift cancels
between the two. Two controls run along: a second copy of the baseline (A/A: this run's noise
floor and minimum detectable change) and an untouched control workload (the machine's own
drift). The number of blocks is even and planned once, after a pilot: by the width that is
wanted and by the budget. What is seen later changes nothing.

All of it runs in one process, whose memory lies somewhere: a second process would differ by
more than the noise floor here can see. What a page answers is measured in fresh processes
(`experiments.fresh`).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm.auto import tqdm

from batchgauge.clock import timed
from batchgauge.errors import UserError
from batchgauge.machine.identity import Run
from batchgauge.measuring.record import Amount, Labels, Sample, to_frame
from batchgauge.measuring.timing import Conditions, Stopping, calibrate, steady_from, with_outliers
from batchgauge.measuring.verdicts import Ratio, judged
from batchgauge.statistics import blocks_for, course, exp, location, minimum_detectable_change
from batchgauge.text import percent

CONTROL = "control"
AA_CONTROL = "baseline again"  # the baseline a second time: its ratio to itself is noise
_CONTROL_DATA = bytes(range(256)) * 1024
_WARM_UP_SHARE = 0.1
_WARM_UP_SAMPLES = 10

Logs = npt.NDArray[np.float64]
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Design:
    """How candidates take turns.

    `baseline` is the name of the one that others are compared with (empty: the first).
    `aa` runs it a second time, without which there is no noise floor; `control` runs the
    control workload. `one_way` is for slow calls: a block runs each candidate once.
    """

    baseline: str = ""
    aa: bool = True
    control: bool = True
    one_way: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """Samples of all candidates of one comparison, and what they say.

    `logs` holds log(seconds per item) of each candidate [blocks].
    """

    benchmark: str
    baseline: str
    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    run: Run
    stopped_because: str
    seconds: float
    logs: Mapping[str, Logs] = field(repr=False)

    @property
    def blocks(self) -> int:
        """Blocks measured."""
        return int(self.logs[self.baseline].size)

    @property
    def noise_floor(self) -> float:
        """Half-width of the 95 % interval of the baseline's ratio to itself; NaN without A/A."""
        return exp(self._aa_half_width()) - 1.0

    @property
    def minimum_detectable_change(self) -> float:
        """The relative change that a run like this one finds in 80 % of cases; NaN without A/A."""
        return minimum_detectable_change(self._aa_half_width())

    def ratio(self, name: str) -> Ratio:
        """The throughput ratio of candidate `name` to the baseline. Raises UserError if unknown."""
        found = {r.name: r for r in self.ratio_list()}
        if name not in found:
            raise UserError(f"'{name}' was not compared; expected one of {', '.join(found)}.")
        return found[name]

    def ratio_list(self) -> list[Ratio]:
        """All candidates' ratios to the baseline, judged together."""
        base = self.logs[self.baseline]
        ratios = [
            Ratio.of(
                location(base - self.logs[name]),
                name=name,
                baseline=self.baseline,
                noise_floor=self.noise_floor,
                minimum_detectable_change=self.minimum_detectable_change,
                benchmark=self.benchmark,
            )
            for name in self.names
            if name != self.baseline
        ]
        return judged(ratios)

    def median_ms(self, name: str) -> float:
        """Median wall milliseconds of one call of `name`."""
        times = [s.wall_ms for s in self.samples if s.implementation == name and not s.is_warmup]
        return float(np.median(times))

    def frame(self) -> pd.DataFrame:
        """Every sample, one row each, in the columns of `batchgauge.measuring.record`."""
        return to_frame(self.samples, self.run)

    def _aa_half_width(self) -> float:
        if AA_CONTROL not in self.logs:
            return math.nan
        aa_ratios = self.logs[self.baseline] - self.logs[AA_CONTROL]
        return location(aa_ratios).half_width


def compare_interleaved(
    candidates: Mapping[str, Call],
    labels: Labels = Labels("comparison"),
    amount: Amount | Mapping[str, Amount] = Amount(),
    *,
    design: Design = Design(),
    stopping: Stopping = Stopping(),
    conditions: Conditions = Conditions(),
    progress: bool = True,
) -> Comparison:
    """Run `candidates` (name to a call without arguments) against one of them.

    `amount` is what one call does, one for all or one per name; throughput is items by time.
    The budget includes warm-up; `stopping.least` blocks, or one more to be even, are taken in
    any case. Raises UserError for fewer than two candidates or blocks.

        c = compare_interleaved({"old": f, "new": g}, amount=Amount(items=32))
        c.ratio("new").sentence(); c.noise_floor; c.stopped_because
    """
    names = tuple(candidates)
    baseline = design.baseline or (names[0] if names else "")
    if len(names) < 2 or baseline not in candidates or {AA_CONTROL, CONTROL} & set(names):
        raise UserError(
            f"A comparison needs two or more candidates, one of them the baseline '{baseline}', "
            f"none called '{AA_CONTROL}' or '{CONTROL}'; got {', '.join(names) or 'none'}."
        )
    if stopping.least < 2:
        raise UserError(f"A comparison of {stopping.least} block; expected at least 2.")
    calls = dict(candidates)
    amounts = {n: amount if isinstance(amount, Amount) else amount[n] for n in names}
    if design.aa:
        calls[AA_CONTROL], amounts[AA_CONTROL] = candidates[baseline], amounts[baseline]
    begin = time.perf_counter()
    bar = Bar(
        total=stopping.budget_s, desc=labels.benchmark, unit="s", disable=not progress, leave=False
    )
    with conditions.held(), bar:
        blocks = _Blocks(calls, amounts, labels, replace(design, baseline=baseline), conditions)
        samples = blocks.warm_up(stopping.budget_s * _WARM_UP_SHARE)
        pilot = 2 * math.ceil(stopping.least / 2)
        started, total, reason = time.perf_counter(), pilot, ""
        while len(blocks.logs[baseline]) < total or not reason:
            samples += blocks.next()
            now = time.perf_counter()
            bar.update(max(0.0, round(min(stopping.budget_s, now - begin), 2) - bar.n))
            if len(blocks.logs[baseline]) == pilot:
                left = (stopping.budget_s - (now - begin)) / ((now - started) / pilot)
                total, reason = _planned(blocks.logs, baseline, stopping, pilot, left)
    logs = {name: np.array(rows) for name, rows in blocks.logs.items()}
    for name in names:
        if name != baseline and (said := course(np.exp(logs[baseline] - logs[name]))):
            reason = f"{reason}; {name} is not steady: {said}"
    return Comparison(
        benchmark=labels.benchmark,
        baseline=baseline,
        names=names,
        samples=_labelled(samples),
        run=Run.here(threads=conditions.threads or 0, seed=conditions.seed),
        stopped_because=reason,
        seconds=time.perf_counter() - begin,
        logs=logs,
    )


class Bar(tqdm):  # type: ignore[type-arg]  # nothing is iterated over
    """A bar of seconds or pieces that may be done before its total is reached.

    What ends without an error is complete: the total becomes what was done, rounded up. What
    raised stays as it was, and red.
    """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not self.disable:
            self.total = max(1, math.ceil(self.n))
            self.n = self.total
            self.refresh()
        super().__exit__(kind, error, trace)


class _Blocks:
    """Measures one block at a time and keeps log(seconds per item) of each candidate."""

    def __init__(
        self,
        calls: Mapping[str, Call],
        amounts: Mapping[str, Amount],
        labels: Labels,
        design: Design,
        conditions: Conditions,
    ) -> None:
        self._calls, self._amounts, self._design = calls, amounts, design
        self._labels = {name: replace(labels, implementation=name) for name in calls}
        self._gc = conditions.gc
        self._rng = np.random.default_rng(conditions.seed)
        self._order: list[str] = []
        self._loops: dict[str, int] = {}
        self._control_loops = calibrate(control_workload) if design.control else 0
        self.logs: dict[str, list[float]] = {name: [] for name in calls}

    def _sample(self, name: str, *, block: int, position: int, is_warmup: bool = False) -> Sample:
        elapsed = timed(self._calls[name], self._loops[name])
        place = {"block": block, "position": position, "is_warmup": is_warmup, "gc": self._gc}
        return self._labels[name].sample(self._amounts[name], elapsed, **place)

    def warm_up(self, budget_s: float) -> list[Sample]:
        """Calibrate each candidate and run it until steady, for its share of the budget at most."""
        samples: list[Sample] = []
        for name in self._calls:
            if name == AA_CONTROL:  # comes after the baseline
                self._loops[name] = self._loops[self._design.baseline]
                continue
            end = time.perf_counter() + budget_s / len(self._calls)
            self._loops[name] = calibrate(self._calls[name])
            times: list[float] = []
            while len(times) < _WARM_UP_SAMPLES * 4 and time.perf_counter() < end:
                samples.append(self._sample(name, block=-1, position=len(times), is_warmup=True))
                times.append(samples[-1].wall_ms)
                if len(times) >= _WARM_UP_SAMPLES and steady_from(times[-_WARM_UP_SAMPLES:]) == 0:
                    break
        return samples

    def next(self) -> list[Sample]:
        """Measure one block: every candidate in seeded order and back, then the control."""
        block = len(self.logs[self._design.baseline])
        if self._design.one_way and block % 2:
            self._order = self._order[::-1]
        else:
            order = self._rng.permutation(list(self._calls)).tolist()
            self._order = order if self._design.one_way else order + order[::-1]
        samples = [self._sample(n, block=block, position=at) for at, n in enumerate(self._order)]
        for name in self._calls:
            own = [s for s in samples if s.implementation == name]
            self.logs[name].append(sum(math.log(s.wall_ms / 1e3 / s.items) for s in own) / len(own))
        if self._control_loops:
            benchmark = self._labels[self._design.baseline].benchmark
            samples.append(
                Labels(benchmark, CONTROL, "control").sample(
                    Amount(), timed(control_workload, self._control_loops),
                    block=block, position=len(samples), is_warmup=False, gc=self._gc,
                )
            )  # fmt: skip
        return samples


def control_workload() -> object:
    """A fixed piece of work that no change here touches: a digest of 256 KiB."""
    return hashlib.sha256(_CONTROL_DATA).digest()


def _planned(
    logs: Mapping[str, Sequence[float]], baseline: str, stopping: Stopping, pilot: int, left: float
) -> tuple[int, str]:
    """How many blocks to measure in all, an even number, and why; the budget has `left` more."""
    ratios = [np.subtract(logs[baseline], logs[n]) for n in logs if n not in {baseline, AA_CONTROL}]
    wanted = max(blocks_for(r, math.log1p(stopping.precision)) for r in ratios)
    most = max(pilot, stopping.most - stopping.most % 2)
    room = pilot + max(0, 2 * int(left / 2))
    if wanted <= min(most, room):
        reason = f"± {percent(stopping.precision, 1)} was planned after {pilot} blocks"
        return max(pilot, wanted), reason
    if room < most:
        return room, f"the budget of {stopping.budget_s:g} s has no room for more blocks"
    return most, f"{most} blocks were measured"


def _labelled(samples: list[Sample]) -> tuple[Sample, ...]:
    groups: dict[str, list[Sample]] = {}
    for s in samples:
        groups.setdefault(s.implementation, []).append(s)
    return tuple(s for group in groups.values() for s in with_outliers(group))
