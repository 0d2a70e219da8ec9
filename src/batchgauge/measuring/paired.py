"""Paired, interleaved comparison: which candidate is faster here, by how much, how surely.

Candidates run in blocks, each block in seeded order and then in reverse (A B C C B A), so
that a drift of the machine within a block cancels in the ratio. Two controls run along: a
second copy of the baseline (A/A: this run's noise floor and minimum detectable change)
and an untouched control workload (the machine's own drift). Sampling stops on interval
*width* or on the budget, never on the verdict, so looking early biases nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm.auto import tqdm

from batchgauge.errors import UserError
from batchgauge.machine.identity import Run
from batchgauge.measuring.blocks import AA_CONTROL, CONTROL, Blocks, warm_up
from batchgauge.measuring.record import Sample, as_json, to_frame
from batchgauge.measuring.statistics import location, minimum_detectable_change
from batchgauge.measuring.timing import GcPolicy, Labels, conditions, with_outliers
from batchgauge.measuring.verdicts import Ratio, exp, frame_of, judged

_WARM_UP_SHARE = 0.1

Logs = npt.NDArray[np.float64]


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
    threshold: float
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

    @property
    def drift(self) -> float:
        """Relative change of the control workload from the run's first to its second half."""
        times = [s.wall_ms for s in self.samples if s.implementation == CONTROL]
        half = len(times) // 2
        if half < 1:
            return math.nan
        return float(np.median(times[half:]) / np.median(times[:half]) - 1.0)

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
                location(base - self.logs[name], seed=self.run.seed),
                name=name,
                baseline=self.baseline,
                noise_floor=self.noise_floor,
                minimum_detectable_change=self.minimum_detectable_change,
                benchmark=self.benchmark,
            )
            for name in self.names
            if name != self.baseline
        ]
        return judged(ratios, threshold=self.threshold)

    def ratios(self) -> pd.DataFrame:
        """One row a candidate: the fields of `Ratio`."""
        return frame_of(self.ratio_list())

    def median_ms(self, name: str) -> float:
        """Median wall milliseconds of one call of `name`."""
        times = [s.wall_ms for s in self.samples if s.implementation == name and not s.is_warmup]
        return float(np.median(times))

    def items_per_s(self, name: str) -> float:
        """Throughput of `name` in items a second, at the median."""
        return self._first(name).items / self.median_ms(name) * 1e3

    def tokens_per_s(self, name: str) -> float:
        """Throughput of `name` in tokens a second, at the median."""
        return self._first(name).tokens / self.median_ms(name) * 1e3

    def frame(self) -> pd.DataFrame:
        """Every sample, one row each, in the columns of `batchgauge.measuring.record`."""
        return to_frame(self.samples, self.run)

    def _first(self, name: str) -> Sample:
        return next(s for s in self.samples if s.implementation == name)

    def _aa_half_width(self) -> float:
        if AA_CONTROL not in self.logs:
            return math.nan
        aa_ratios = self.logs[self.baseline] - self.logs[AA_CONTROL]
        return location(aa_ratios, seed=self.run.seed).half_width


def compare_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    baseline: str = "",
    benchmark: str = "comparison",
    items: int | Mapping[str, int] = 1,
    tokens: int | Mapping[str, int] = 0,
    budget_s: float = 5.0,
    min_blocks: int = 5,
    max_blocks: int = 200,
    precision: float = 0.01,
    threshold: float = 0.05,
    seed: int = 0,
    threads: int | None = 1,
    part: str = "",
    batch_size: int | Mapping[str, int] = 1,
    parameters: Mapping[str, Any] | None = None,
    counters: Mapping[str, Mapping[str, int]] | None = None,
    gc: GcPolicy = "off",
    aa: bool = True,
    control: bool = True,
    one_way: bool = False,
    process: int = 0,
    run: Run | None = None,
    progress: bool = True,
) -> Comparison:
    """Run `candidates` (name to a call without arguments) against `baseline` (empty: the first).

    `items`, `tokens` and `batch_size` are those of one call, one number or one per name;
    throughput is items by time. Stops when every ratio's interval is narrower than
    ± `precision` (relative), at `budget_s` seconds (warm-up included), or at `max_blocks`, but
    takes `min_blocks` blocks in any case. `aa=False` saves the baseline's second copy, and with
    it the noise floor. `one_way` is for slow calls: a block runs each candidate once, see
    `blocks`. Raises UserError for fewer than two candidates or impossible numbers.

        c = compare_interleaved({"old": f, "new": g}, items=32, budget_s=5)
        c.ratio("new").sentence(); c.noise_floor; c.stopped_because
    """
    names = tuple(candidates)
    baseline = baseline or (names[0] if names else "")
    if len(names) < 2 or baseline not in candidates or {AA_CONTROL, CONTROL} & set(names):
        raise UserError(
            f"A comparison needs two or more candidates, one of them the baseline '{baseline}', "
            f"none called '{AA_CONTROL}' or '{CONTROL}'; got {', '.join(names) or 'none'}."
        )
    if budget_s <= 0 or min_blocks < 2 or max_blocks < min_blocks:
        raise UserError(
            f"budget_s={budget_s}, min_blocks={min_blocks}, max_blocks={max_blocks}; expected a "
            "budget above 0 and at least 2 blocks."
        )
    runners = dict(candidates)
    if aa:
        runners[AA_CONTROL] = candidates[baseline]
    labels = {
        name: Labels(
            benchmark=benchmark,
            implementation=name,
            part=part,
            batch_size=_of(batch_size, baseline if name == AA_CONTROL else name),
            parameters=as_json(parameters or {}),
            items=_of(items, baseline if name == AA_CONTROL else name),
            tokens=_of(tokens, baseline if name == AA_CONTROL else name),
            counters=as_json((counters or {}).get(baseline if name == AA_CONTROL else name, {})),
            gc=gc,
            process=process,
        )
        for name in runners
    }
    if any(label.items < 1 for label in labels.values()):
        raise UserError("The items of one call are below 1; a throughput needs work.")
    begin = time.perf_counter()
    with (
        conditions(threads=threads, gc=gc),
        tqdm(total=budget_s, desc=benchmark, unit="s", disable=not progress, leave=False) as bar,
    ):
        samples, loops = warm_up(runners, labels, budget_s * _WARM_UP_SHARE)
        blocks = Blocks(
            runners, labels, loops, baseline=baseline, seed=seed, with_control=control,
            one_way=one_way,
        )  # fmt: skip
        logs: dict[str, Logs] = {}
        reason = ""
        while not reason:
            samples += blocks.next()
            bar.update(max(0.0, round(min(budget_s, time.perf_counter() - begin), 2) - bar.n))
            logs = {name: np.array(rows) for name, rows in blocks.logs.items()}
            done = len(logs[baseline])
            if done < min_blocks:
                continue
            if time.perf_counter() - begin >= budget_s:
                reason = f"the budget of {budget_s:g} s was spent"
            elif done >= max_blocks:
                reason = f"{max_blocks} blocks were measured"
            elif done % 5 == 0 and _widest(logs, names, baseline, seed) <= precision:
                reason = f"every interval is within ± {precision:.1%}"
    return Comparison(
        benchmark=benchmark,
        baseline=baseline,
        names=names,
        samples=_labelled(samples),
        run=run or Run.here(threads=threads or 0, seed=seed),
        threshold=threshold,
        stopped_because=reason,
        seconds=time.perf_counter() - begin,
        logs=logs,
    )


def _of(value: int | Mapping[str, int], name: str) -> int:
    return value if isinstance(value, int) else value[name]


def _widest(logs: Mapping[str, Logs], names: tuple[str, ...], baseline: str, seed: int) -> float:
    return max(
        exp(location(logs[baseline] - logs[n], seed=seed, resamples=499).half_width) - 1.0
        for n in names
        if n != baseline
    )


def _labelled(samples: list[Sample]) -> tuple[Sample, ...]:
    groups: dict[str, list[Sample]] = {}
    for s in samples:
        groups.setdefault(s.implementation, []).append(s)
    return tuple(s for group in groups.values() for s in with_outliers(group))
