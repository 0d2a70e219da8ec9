"""A scheduler with known truth, for tests only: continuous batching as servers do it.

`Plan` says what a server is like: step times, slots, KV memory, noise, limits. `Scheduler` runs
it step by step on any clock; `simulate` drives it in virtual time by a closed loop or by Poisson
arrivals, which is how truth is computed. `tests/scheduler_server.py` serves the same scheduler
over HTTP in real time. Times in seconds.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from batchgauge.sizing.advice.records import Asked, Run


@dataclass(frozen=True)
class Plan:
    """A server: a step of b requests takes base + each·b (in tiles), prompts on top.

    tile          rows that cost as much as a whole tile of them; 1: none
    dip           a step of more than so many rows takes `dip_cost` times as long up to 4/3 of it
    kv_tokens     beyond so many tokens held, a step takes `swap` times as long
    noise         standard deviation of a step's logarithm; grows with rows by `noise_each`
    slow          factor of the second mode; the mode changes about every `mode_s`
    most          requests at once beyond which more are refused with 429; 0: none
    """

    base_s: float = 0.02
    each_s: float = 0.001
    prompt_s: float = 0.0002
    slots: int = 10_000
    tile: int = 1
    dip: int = 0
    dip_cost: float = 1.0
    kv_tokens: int = 10**9
    swap: float = 1.0
    noise: float = 0.02
    noise_each: float = 0.0
    slow: float = 1.0
    mode_s: float = 3.0
    most: int = 0
    prompt_tokens: tuple[int, ...] = (16,)
    new_tokens: tuple[int, ...] = (8,)
    think_s: tuple[float, float] = (0.001, 0.004)  # from an answer to the next request

    def step_s(self, rows: int, prompt: int, held: int) -> float:
        """Seconds of one step without noise."""
        tiled = self.tile * -(-rows // self.tile)
        step = self.base_s + self.each_s * tiled + self.prompt_s * prompt
        if self.dip and self.dip < rows <= self.dip * 4 // 3:
            step *= self.dip_cost
        return step * (self.swap if held > self.kv_tokens else 1.0)


@dataclass
class Job:
    """A request under way."""

    slot: int
    due_s: float
    prompt: int
    new: int
    first_s: float = math.nan
    done: int = 0


@dataclass
class Scheduler:
    """Waiting and running requests; `step` runs one iteration."""

    plan: Plan
    rng: np.random.Generator
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    is_slow: bool = False

    @property
    def inside(self) -> int:
        """Requests waiting or running."""
        return len(self.waiting) + len(self.running)

    def step(self) -> tuple[float, list[Job]]:
        """Seconds of the next iteration, and the jobs that get a token at its end."""
        plan, prompt = self.plan, 0
        while self.waiting and len(self.running) < plan.slots:
            job = self.waiting.popleft()
            prompt += job.prompt
            self.running.append(job)
        rows = len(self.running)
        held = sum(j.prompt + j.done for j in self.running)
        seconds = plan.step_s(rows, prompt, held)
        sigma = plan.noise + plan.noise_each * rows
        if sigma:
            seconds *= math.exp(sigma * self.rng.standard_normal() - sigma**2 / 2)
        if plan.slow > 1.0:
            if self.rng.random() < seconds / plan.mode_s:
                self.is_slow = not self.is_slow
            seconds *= plan.slow if self.is_slow else 1.0
        return seconds, list(self.running)

    def finish(self, jobs: list[Job], now_s: float) -> list[Job]:
        """Give each of the jobs its token; those that are done leave."""
        over = []
        for job in jobs:
            job.done += 1
            if job.done == 1:
                job.first_s = now_s
            if job.done >= job.new:
                over.append(job)
        if over:
            gone = set(map(id, over))
            self.running = [j for j in self.running if id(j) not in gone]
        return over


def simulate(
    plan: Plan, setting: float, *, is_open: bool = False, cycles: float = 4, least_s: float = 1.0,
    seed: int = 0,
) -> Run:  # fmt: skip
    """A run in virtual time: so many requests at once, or Poisson arrivals of that rate.

    At least `cycles` of each slot, or 200 arrivals (200 a cycle from 10 cycles on).
    """
    play = _Play(plan, setting, np.random.default_rng(seed), is_open, cycles, least_s)
    return play.run()


class _Play:
    """One run in virtual time: arrivals [(due, slot)] in a heap, and what became of them."""

    def __init__(self, plan, setting, rng, is_open, cycles, least_s):
        self.plan, self.setting, self.rng, self.is_open = plan, setting, rng, is_open
        self.cycles, self.least_s = cycles, least_s
        self.scheduler, self.asked, self.now = Scheduler(plan, rng), [], 0.0
        self.lengths = list(zip(plan.prompt_tokens, plan.new_tokens, strict=True))
        self.order, self.taken = rng.permutation(len(self.lengths)), 0
        self.warm: set[int] = set()
        self.begin, self.deadline = None, math.inf
        self.arrivals = [(0.0, slot) for slot in range(int(setting))]
        if is_open:
            usual = min(200, max(60, int(6 * least_s * setting)))
            count = max(int(setting * least_s), usual if cycles < 10 else int(200 * cycles))
            due = np.cumsum(rng.exponential(1.0 / setting, size=count)).tolist()
            self.begin, self.deadline = 0.3 * due[-1], due[-1]
            self.arrivals = [(t, i) for i, t in enumerate(due)]

    def run(self) -> Run:
        """Play it to its end."""
        while self.arrivals or self.scheduler.inside:
            if not self.scheduler.inside:
                self.now = max(self.now, self.arrivals[0][0])
            self._admit_arrived()
            if not self.scheduler.inside:
                continue
            seconds, jobs = self.scheduler.step()
            self.now += seconds
            self._admit_arrived()  # who comes during a step meets those that end with it
            for job in self.scheduler.finish(jobs, self.now):
                self._done(job)
        end = min(self.deadline, self.now)
        return Run(
            "open" if self.is_open else "closed", self.setting, self.asked, self.begin or 0.0, end
        )

    def _admit_arrived(self) -> None:
        while self.arrivals and self.arrivals[0][0] <= self.now:
            self._admit(*heapq.heappop(self.arrivals))

    def _admit(self, due: float, slot: int) -> None:
        if self.plan.most and self.scheduler.inside >= self.plan.most:
            self.asked.append(Asked(slot, due, due, math.nan, due, None, 429, "429"))
            if not self.is_open and due < self.deadline:
                self.warm.add(slot)
                heapq.heappush(self.arrivals, (due + 0.05, slot))
            return
        prompt, new = self.lengths[self.order[self.taken % len(self.order)]]
        self.taken += 1
        self.scheduler.waiting.append(Job(slot, due, prompt, new))

    def _done(self, job: Job) -> None:
        now = self.now
        self.asked.append(
            Asked(job.slot, job.due_s, job.due_s, job.first_s, now, job.new, letters=job.prompt)
        )
        if self.is_open:
            return
        self.warm.add(job.slot)
        if self.begin is None and len(self.warm) >= int(self.setting):
            wave = np.mean([a.end_s - a.due_s for a in self.asked if a.is_ok])
            self.begin, self.deadline = now, now + max(self.least_s, self.cycles * float(wave))
        if now < self.deadline:
            heapq.heappush(self.arrivals, (now + self.rng.uniform(*self.plan.think_s), job.slot))
