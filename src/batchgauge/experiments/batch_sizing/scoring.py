"""How good was the advice: suggestions and fixed-size rules against the best of a fresh sweep.

    score  = T(suggested) / T(best), both measured, under the same constraints;
             0 when the suggestion breaks a constraint
    regret = 1 - score

Of many noisy sizes the luckiest looks best, which makes this a little too low however good
the advice. So there is a `fair_score` beside it: the best is picked on one half of the
sweep's passes and both sizes are compared on the other half, both ways round; it may
therefore lie a little above 1.

When no size keeps the constraints the right answer is to say so: that scores 1, a
size scores 0 and counts as a violation; refusing although a size would do scores 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from batchgauge.errors import UserError
from batchgauge.sizing.cost_model import BatchTimes, CostModel, Metric
from batchgauge.sizing.curve import TILE
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.memory_model import MemoryModel
from batchgauge.sizing.suggest import suggest_batch_size
from batchgauge.sizing.suggestion import SizingConfig

GOAL, P10_GOAL = 0.97, 0.90  # of the advice: median and 10th percentile of its scores
MEMORY_GOAL = 5.0  # percent that a memory prediction may be off
GOOD = 0.9  # naive sizes at or above this score count as good enough
Peaks = Callable[[Lengths, int], float]


@dataclass(frozen=True)
class SizingScenario:
    """One question to the advisor: requests, budgets, largest size, threads.

    `workload` says whose requests they are: several questions may be about the same.
    """

    name: str
    part: str
    lengths: Lengths
    max_batch_size: int
    latency_budget_ms: float | None = None
    latency_metric: Metric = "request"
    memory_budget_bytes: float | None = None
    threads: int = 1
    workload: str = ""


@dataclass(frozen=True, slots=True)
class Truth:
    """What the sweep says about one size: its times, its memory, and whether it is allowed."""

    size: int
    times: BatchTimes
    memory_bytes: float
    late: bool
    over_memory: bool

    @property
    def allowed(self) -> bool:
        """True when it keeps both budgets."""
        return not (self.late or self.over_memory)


@dataclass(frozen=True, slots=True)
class ScenarioScore:
    """How one strategy did in one scenario; `suggested` is 0 for "no size fits"."""

    scenario: str
    workload: str
    part: str
    threads: int
    strategy: str
    suggested: int
    best: int
    score: float
    fair_score: float
    late: bool
    over_memory: bool
    log2_distance: float
    good_share: float
    informative: bool  # the best size is not the largest that was swept


def ask(scenario: SizingScenario, cost: CostModel, memory: MemoryModel | None = None) -> int:
    """The advisor's size for a scenario; 0 when it says that none fits.

    It is asked for throughput at any wait within the budgets, which has one right answer.
    """
    config = SizingConfig(
        "throughput", scenario.latency_budget_ms, scenario.latency_metric,
        scenario.memory_budget_bytes, scenario.max_batch_size, wait_price=0.0,
    )  # fmt: skip
    try:
        return suggest_batch_size(scenario.lengths, cost, config, memory_model=memory).size
    except UserError:
        return 0


def judged_by(
    scenario: SizingScenario,
    times_of: Callable[[int], BatchTimes],
    sizes: Sequence[int],
    peaks: Peaks | None = None,
) -> dict[int, Truth]:
    """Every swept size of a scenario by its times: late is what 5 % of the batches are later than.

    Sizes above the scenario's largest are left out.
    """
    found = {}
    for size in sizes:
        if size > scenario.max_batch_size:
            continue
        times = times_of(size)
        memory = peaks(scenario.lengths, size) if peaks else 0.0
        wait = times.latency_ms(scenario.latency_metric, "p95")
        late = _over(wait, scenario.latency_budget_ms)
        found[size] = Truth(size, times, memory, late, _over(memory, scenario.memory_budget_bytes))
    return found


def score(
    scenario: SizingScenario,
    strategy: str,
    suggested: int,
    truth: Mapping[int, Truth],
    halves: Sequence[Mapping[int, Truth]] = (),
) -> ScenarioScore:
    """ScenarioScore a suggested size (0: "none fits") against the best of the sweep.

    `halves` are the truths of both halves of the passes; without them the fair score is the
    score. Raises UserError when the suggested size is not part of the sweep.
    """
    allowed = [row for row in truth.values() if row.allowed]
    best = max(allowed, key=lambda row: row.times.throughput_per_s, default=None)
    rates = [row.times.throughput_per_s if row.allowed else 0.0 for row in truth.values()]
    top = best.times.throughput_per_s if best else math.inf
    good = float(np.mean([rate >= GOOD * top for rate in rates]))
    asked = (scenario.name, scenario.workload, scenario.part, scenario.threads)
    base = (*asked, strategy, suggested)
    informative = best is None or best.size < max(truth)
    if suggested == 0:
        right, size = float(best is None), best.size if best else 0
        distance = math.nan if best else 0.0
        return ScenarioScore(*base, size, right, right, False, False, distance, good, informative)
    if suggested not in truth:
        raise UserError(f"The size {suggested} was not swept; it cannot be scored.")
    row = truth[suggested]
    if best is None:
        broken = (row.late, row.over_memory)
        return ScenarioScore(*base, 0, 0.0, 0.0, *broken, math.nan, good, informative)
    fair = [_against_best(suggested, allowed, *pair) for pair in permutations(halves, 2)]
    value = row.times.throughput_per_s / top
    found = (value, math.exp(np.mean(np.log(fair))) if fair else value)
    values = found if row.allowed else (0.0, 0.0)
    distance = abs(math.log2(suggested / best.size))
    broken = (row.late, row.over_memory)
    return ScenarioScore(*base, best.size, *values, *broken, distance, good, informative)


def _against_best(
    suggested: int,
    allowed: Sequence[Truth],
    picking: Mapping[int, Truth],
    judging: Mapping[int, Truth],
) -> float:
    """Throughput of the suggested size ÷ that of the size that looks best in other passes."""
    best = max(allowed, key=lambda row: picking[row.size].times.throughput_per_s).size
    ours, theirs = (judging[size].times.throughput_per_s for size in (suggested, best))
    return ours / theirs


def fixed_size_rules(truth: Mapping[int, Truth]) -> dict[str, int]:
    """What the usual rules of thumb, blind to costs, would run, by name.

    "halve on failure" starts at the largest size and halves until the budgets hold;
    "largest that fits" minds memory only, as those who fill the memory do; "double until it
    breaks" goes up in powers of two and keeps the last that held.
    """
    sizes = sorted(truth)
    largest = max(sizes)
    fits = [size for size in sizes if not truth[size].over_memory]

    def swept(size: int) -> int:
        return max((s for s in sizes if s <= max(1, size)), default=sizes[0])

    halved = largest
    while halved > 1 and not truth[swept(halved)].allowed:
        halved //= 2
    doubled = 1
    while 2 * doubled <= largest and truth[swept(2 * doubled)].allowed:
        doubled *= 2
    return {
        "always 1": 1,
        "fixed 8": swept(min(8, largest)),
        "fixed 32": swept(min(32, largest)),
        "largest that fits": max(fits, default=1),
        "halve on failure": swept(halved),
        "double until it breaks": swept(doubled),
    }


def same_step(a: int, b: int) -> bool:
    """True when two suggestions are the same up to one step: a tile, or a fifth of the size."""
    return abs(a - b) <= max(TILE, 0.2 * max(a, b)) if a and b else a == b


def _over(value: float, budget: float | None) -> bool:
    return budget is not None and value > budget
