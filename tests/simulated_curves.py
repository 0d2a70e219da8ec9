"""Seeded throughput curves of many shapes, for tests only: is a stated probability true?

Shapes are those that servers have been seen to have, written down without regard to the
advisor's own laws: saturation by the step's cost or by a universal scalability law, caps, cliffs,
tiles, dips, bests between powers of two, and noise that grows with the setting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from batchgauge.sizing.advice.decision import Question
from batchgauge.sizing.advice.load import whole_settings
from batchgauge.sizing.advice.observe import Observation
from batchgauge.sizing.advice.records import Run
from batchgauge.sizing.advice.search import Search


@dataclass(frozen=True)
class Curve:
    """True values at the candidates, and the relative noise of a run at each."""

    candidates: np.ndarray
    values: np.ndarray
    noise: np.ndarray

    @classmethod
    def drawn(cls, seed: int) -> Curve:
        """One curve."""
        rng = np.random.default_rng(seed)
        largest = int(rng.choice([16, 32, 64, 128]))
        n = whole_settings(largest)
        if rng.random() < 0.6:
            values = n / (rng.uniform(0.2, 1.0) + n * math.exp(rng.uniform(-5.0, -0.5)))
        else:  # Gunther's universal scalability law
            contention, coherence = rng.uniform(0.0, 0.3), 10 ** rng.uniform(-5.0, -2.5)
            values = n / (1.0 + contention * (n - 1) + coherence * n * (n - 1))
        if rng.random() < 0.4:
            cap = int(math.exp(rng.uniform(0.7, math.log(largest))))
            values = np.where(n > cap, values[np.searchsorted(n, cap)], values)
        if rng.random() < 0.3:
            at = math.exp(rng.uniform(1.0, math.log(largest)))
            values = np.where(n > at, values * rng.uniform(0.3, 0.95), values)
        if rng.random() < 0.3:
            tile = int(rng.choice([4, 8, 16]))
            waste = tile * np.ceil(n / tile) / n
            values = values / (1.0 + rng.uniform(0.05, 0.4) * (waste - 1.0))
        if rng.random() < 0.3:
            center, width = math.exp(rng.uniform(0.7, math.log(largest))), rng.uniform(0.05, 0.4)
            bump = np.exp(-0.5 * (np.log(n / center) / width) ** 2)
            values = values * (1.0 + rng.choice([-0.3, -0.1, 0.05, 0.15]) * bump)
        noise = 10 ** rng.uniform(-2.6, -1.5) * (n / n[0]) ** rng.uniform(0.0, 0.25)
        return cls(n, values * math.exp(rng.uniform(0, 5)), noise)


class _Nothing:
    unit = "requests at once"

    def __init__(self, candidates: np.ndarray) -> None:
        self.candidates = candidates

    def run(self, setting: float, least_s: float, cycles: int, most_s: float) -> Run:
        raise AssertionError


class CurveSearch(Search):
    """The search, with a curve in place of a server and a clock that runs as it measures."""

    def __init__(self, curve: Curve, seed: int, budget_s: float = 60.0) -> None:
        self.curve, self.now = curve, 0.0
        self.noise_rng = np.random.default_rng([seed, 1])
        question = Question(budget_s=budget_s, seed=seed)
        super().__init__(_Nothing(curve.candidates), question, clock=lambda: self.now)

    def _measure(self, setting: float) -> None:
        place = int(np.searchsorted(self.curve.candidates, setting))
        sd, blocks = float(self.curve.noise[place]), 6
        rates = self.curve.values[place] * np.exp(
            sd * math.sqrt(blocks) * self.noise_rng.standard_normal(blocks)
        )
        seconds = 1.0 + 0.05 * setting
        self.now += seconds
        own = float(rates.std(ddof=1) / math.sqrt(blocks) / rates.mean())
        run = Run("closed", setting, [], 0.0, seconds)
        self.observations.append(
            Observation(run, seconds, math.log(rates.mean()), max(0.002, own), blocks - 1, {})
        )


def outcome(seed: int, budget_s: float = 60.0) -> dict[str, float]:
    """What was stated of one curve's advice, and what was true."""
    curve = Curve.drawn(seed)
    found = CurveSearch(curve, seed, budget_s).find()
    index = found.decision.index
    share = float(curve.values[index] / curve.values.max())
    logs = found.beliefs.values[:, index]
    low, high = np.quantile(logs, [0.025, 0.975])
    return {
        "stated_2": found.decision.within[0.98], "true_2": share >= 0.98,
        "stated_5": found.decision.within[0.95], "true_5": share >= 0.95,
        "share": share, "runs": len(found.observations), "regret": found.decision.regret,
        "covered": low <= math.log(curve.values[index]) <= high,
        "setting": float(curve.candidates[index]),
    }  # fmt: skip
