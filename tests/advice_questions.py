"""Seeded questions to the advisor over the scheduler of `tests/scheduler.py`, with their truth.

Truth is computed: every setting is simulated for long in virtual time, and the best that keeps
the targets is known. Seeds below `JUDGED` are for tuning, those from it on for judging only.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from tests.scheduler import Plan, simulate

from batchgauge.sizing.advice.decision import Question
from batchgauge.sizing.advice.load import first_rates, rates, whole_settings
from batchgauge.sizing.advice.observe import Objective, observe
from batchgauge.sizing.advice.records import Run

JUDGED = 1000
KINDS = ("compute", "cap", "memory", "refusals", "queue")


@dataclass(frozen=True)
class Asking:
    """A question, the server it is about, and what limits that server."""

    seed: int
    kind: str
    plan: Plan
    question: Question
    largest: int

    @property
    def is_open(self) -> bool:
        """True for arrivals at a rate."""
        return self.kind == "queue"

    @functools.cached_property
    def candidates(self) -> np.ndarray:
        """The settings that can be advised."""
        if not self.is_open:
            return whole_settings(self.largest)
        return rates(truth_rate(self.plan, 48))

    @property
    def truth(self) -> tuple[np.ndarray, np.ndarray]:
        """Logarithm of the value [c], and whether all targets are kept [c], of long runs."""
        return self._swept[:2]

    @property
    def sweep_requests(self) -> int:
        """Requests that an exhaustive sweep takes which is as sure as the truth."""
        return self._swept[2]

    @functools.cached_property
    def _swept(self) -> tuple[np.ndarray, np.ndarray, int]:
        return self.sweep(self.plan)

    def sweep(self, plan: Plan) -> tuple[np.ndarray, np.ndarray, int]:
        """The truth of a plan, and the requests that it takes to see it at every setting."""
        values, kept, requests = [], [], 0
        for setting in self.candidates.tolist():
            cycles = 20 if self.is_open else max(12, 600 / setting)
            run = simulate(
                plan, setting, is_open=self.is_open, cycles=cycles, seed=77,
                least_s=40 * plan.mode_s if plan.slow > 1 else 1.0,
            )  # fmt: skip
            requests += len(run.asked)
            seen = observe(run, 1.0, self.question.objective, self.question.targets, tokens=True)
            values.append(seen.value)
            kept.append(
                seen.run.refused_share <= 0.01
                and all(
                    seen.metrics[name][0] <= math.log(target)
                    for name, target in self.question.targets.items()
                )
            )
        return np.array(values), np.array(kept), requests

    def true_names(self) -> set[str]:
        """What may be said to limit the server, found by taking its own limits away.

        Where the best rises by more than 5 % without them, only they are right.
        """
        if self.is_open:
            return {"queue"}
        free = replace(self.plan, slots=10_000, kv_tokens=10**9, most=0)
        (values, kept), (more, still, _) = self.truth, self.sweep(free)
        if more[still].max() > values[kept].max() + math.log(1.05):
            return {self.kind}
        return {self.kind, "compute", "largest setting"}

    def score(self, index: int | None) -> tuple[float, bool]:
        """Share of the best value that an advice has, and whether it breaks a target."""
        values, kept = self.truth
        if index is None:
            return float(not kept.any()), False
        if not kept.any():
            return 0.0, True
        share = math.exp(values[index] - values[kept].max())
        return (share, False) if kept[index] else (0.0, True)


def truth_rate(plan: Plan, at_once: int) -> float:
    """Requests a second that so many at once get."""
    run = simulate(plan, at_once, cycles=10, seed=78)
    return math.exp(observe(run, 1.0, "throughput", {}, tokens=False).value)


def asking(seed: int) -> Asking:
    """One question."""
    rng = np.random.default_rng([seed, 4])
    kind = KINDS[seed % len(KINDS)]
    largest = int(rng.choice([32, 48, 64]))
    base = rng.uniform(0.02, 0.04)
    each = base * math.exp(rng.uniform(-4.5, -1.5))
    if kind == "compute":
        each = base * math.exp(rng.uniform(-1.8, -0.3))
    lengths = rng.integers(2, 9, size=1 if rng.random() < 0.4 else 24)
    prompts = rng.integers(4, 60, size=lengths.size)
    extra: dict[str, Any] = {}
    if kind == "cap":
        extra["slots"] = int(rng.integers(3, largest // 2))
    if kind == "memory":
        full = float((prompts + lengths / 2).mean())
        extra["kv_tokens"] = int(full * rng.integers(4, largest // 2))
        extra["swap"] = rng.uniform(1.4, 3.0)
    if kind == "refusals":
        extra["most"] = int(rng.integers(3, largest // 2))
    if rng.random() < 0.25:
        extra["tile"] = int(rng.choice([4, 8]))
    if rng.random() < 0.2:
        extra["slow"], extra["mode_s"] = rng.uniform(1.05, 1.3), rng.uniform(0.5, 2.0)
    plan = Plan(
        base, each, prompt_s=base * 10 ** rng.uniform(-3, -2), noise=10 ** rng.uniform(-2.5, -1),
        noise_each=10 ** rng.uniform(-5, -3.5), prompt_tokens=tuple(prompts.tolist()),
        new_tokens=tuple(lengths.tolist()), **extra,
    )  # fmt: skip
    targets: dict[str, float] = {}
    if kind == "queue" or rng.random() < 0.5:
        alone = observe(simulate(plan, 1, cycles=40, seed=79), 1.0, "throughput", {}, tokens=True)
        name = str(rng.choice(["ttft", "inter_token", "latency"]))
        factor = math.exp(rng.uniform(0.5, 2.2)) if rng.random() > 0.08 else 0.5
        if kind == "queue":
            factor = max(factor, 2.5)
        targets[name] = factor * math.exp(alone.metrics[name][0])
    objective: Objective = "goodput" if targets and rng.random() < 0.5 else "throughput"
    return Asking(seed, kind, plan, Question(objective, targets, 120.0, seed), largest)


class VirtualTarget:
    """The scheduler under the load that the search asks for, in virtual time."""

    def __init__(self, asked: Asking) -> None:
        self.asked, self.now, self.runs = asked, 0.0, 0
        self.unit = "requests per second" if asked.is_open else "requests at once"
        self.candidates = asked.candidates
        self.first = first_rates(self.candidates) if asked.is_open else None
        self.requests = SimpleNamespace(letters=np.array(asked.plan.prompt_tokens, np.float64))

    def run(self, setting: float, least_s: float, cycles: int, most_s: float) -> Run:
        """One run; the clock goes on as it would have."""
        self.runs += 1
        found = simulate(
            self.asked.plan, setting, is_open=self.asked.is_open, cycles=cycles, least_s=least_s,
            seed=1000 * self.asked.seed + self.runs,
        )  # fmt: skip
        self.now += max(a.end_s for a in found.asked)
        return found
