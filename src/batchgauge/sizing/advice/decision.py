"""What to advise on what is known, how sure that is, and which run would tell most.

Every posterior sample is a world: a value and a feasibility for each candidate. Advice
maximises the expected share of that world's best, less a stated price of waiting; a broken
target costs more than any throughput gains. The next run is the one that is expected to raise
the advice most for its seconds (knowledge gradient: Frazier, Powell & Dayanik, INFORMS Journal
on Computing 21, 2009), by reweighting the samples with outcomes drawn from them. Few samples
agree with an outcome where much is unknown, and the best of few means is high by chance: what
the same weights raise on shuffled samples is taken off.

S samples · c candidates · H outcomes thought of
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from batchgauge.errors import UserError
from batchgauge.sizing.advice.observe import METRICS, Objective

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# A doubling of the setting, which about doubles what a request waits, has to bring this share.
PRICE = 0.005
# What breaking a target costs, in shares of the best: 1 % risk must bring 2 % throughput.
PENALTY = 2.0
OUTCOMES = 24  # H
MOST_BROKEN = 0.02  # probability of a broken target that advice may have
# Curves are smoother than the samples, which allow for much: by so much, in log-odds, was what
# samples say of simulated curves too modest, on seeds that `make soak` does not judge by.
_TOO_MODEST = 1.3


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the objective, targets of 95th percentiles in ms, and seconds to spend."""

    objective: Objective = "throughput"
    targets: Mapping[str, float] = field(default_factory=dict)
    budget_s: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in {"throughput", "goodput"}:
            raise UserError(f"The objective is {self.objective!r}; expected throughput or goodput.")
        if self.objective == "goodput" and not self.targets:
            raise UserError("Goodput counts answers that keep a target; expected at least one.")
        for name, target in self.targets.items():
            if name not in METRICS:
                raise UserError(f"Unknown target {name!r}; expected one of {', '.join(METRICS)}.")
            if not 0.0 < target < math.inf:
                raise UserError(f"The target of {name} is {target} ms; expected above 0.")
        if not 0.0 < self.budget_s < math.inf:
            raise UserError(f"The budget is {self.budget_s} s; expected above 0.")


@dataclass(frozen=True, slots=True)
class Beliefs:
    """Samples of what is not known.

    values   logarithm of throughput or goodput, float64 [S, c]
    metrics  name -> logarithm of a percentile in ms, float64 [S, c]
    targets  name -> its target in ms
    taken    whether the server takes all requests, bool [S, c]
    """

    candidates: Array
    values: Array
    metrics: Mapping[str, Array]
    targets: Mapping[str, float]
    taken: Bools

    def keeps(self) -> Bools:
        """Whether every target is kept and every request taken, bool [S, c]."""
        kept = self.taken.copy()
        for name, target in self.targets.items():
            kept &= self.metrics[name] <= np.log(target)
        return kept

    def shares(self) -> Array:
        """Value over the best of those that keep the targets, float64 [S, c]; 0 where broken."""
        kept = self.keeps()
        values = np.where(kept, self.values, -np.inf)
        best = values.max(axis=1, keepdims=True)
        return np.where(kept, np.exp(self.values - np.where(np.isfinite(best), best, 0.0)), 0.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """The advice on present beliefs. `index` is None where no setting is likely to keep all.

    within    share of the best -> probability that the advice reaches it
    regret    expected share of the best that is missed
    keeps     probability that the advised setting keeps every target
    any_keeps probability that some setting does
    """

    index: int | None
    within: Mapping[float, float]
    regret: float
    keeps: float
    any_keeps: float


def decide(beliefs: Beliefs, among: Bools | None = None) -> Decision:
    """The advice, and how sure it is; one of the candidates in `among` [c] where that is given."""
    worth = _utilities(beliefs).mean(axis=0)
    if among is not None:
        worth[:-1][~among] = -np.inf
    chosen = int(np.argmax(worth))
    return judge(beliefs, None if chosen == beliefs.candidates.size else chosen)


def judge(beliefs: Beliefs, chosen: int | None) -> Decision:
    """How sure the advice of this candidate is (None: that no setting keeps every target)."""
    shares, kept = beliefs.shares(), beliefs.keeps()
    some = float(kept.any(axis=1).mean())
    if chosen is None:
        return Decision(None, {0.98: 1.0 - some, 0.95: 1.0 - some}, some, 0.0, some)
    mine = shares[:, chosen]
    within = {share: float((mine >= share).mean()) for share in (0.98, 0.95)}
    return Decision(chosen, within, float(1.0 - mine.mean()), float(kept[:, chosen].mean()), some)


def calibrated(decision: Decision) -> Decision:
    """The decision with probabilities as they came true, which the samples' are not quite.

    One shift of their log-odds (Platt, "Probabilistic outputs for support vector machines", 1999,
    with a slope of 1): none and certain stay what they are. That no setting keeps every target is
    another question, and left as it is.
    """
    if decision.index is None:
        return decision
    odds = math.exp(_TOO_MODEST)
    within = {share: odds * p / (1.0 + (odds - 1.0) * p) for share, p in decision.within.items()}
    return replace(decision, within=within)


def _utilities(beliefs: Beliefs) -> Array:
    """What each advice is worth in each sample, float64 [S, c + 1]; the last one is "none"."""
    kept = beliefs.keeps()
    ahead = np.log2(beliefs.candidates / beliefs.candidates[0])
    worth = np.where(kept, beliefs.shares() - PRICE * ahead, -PENALTY)
    none = np.where(kept.any(axis=1), 0.0, 1.0)
    return np.hstack([worth, none[:, None]])


def gains(beliefs: Beliefs, noise: Mapping[str, Array], seed: int) -> Array:
    """Expected rise of the advice's worth by one more run at each candidate, float64 [c].

    `noise` is the standard deviation of a run's logarithm at each candidate [c], under
    "value" and the names of the metrics.
    """
    rng = np.random.default_rng(seed)
    worth = _utilities(beliefs)
    samples = beliefs.values.shape[0]
    found = np.empty(beliefs.candidates.size)
    known = {"value": beliefs.values, **{n: beliefs.metrics[n] for n in beliefs.targets}}
    for place in range(found.size):
        truths = rng.choice(samples, OUTCOMES, replace=False)
        fit = np.zeros((OUTCOMES, samples))
        for name, values in known.items():
            here, sd = values[:, place], float(noise[name][place])
            seen = here[truths] + sd * rng.standard_normal(OUTCOMES)
            fit -= 0.5 * ((seen[:, None] - here[None, :]) / sd) ** 2
        taken = beliefs.taken[:, place]
        fit = np.where(taken[truths][:, None] == taken[None, :], fit, -np.inf)
        weights = np.exp(fit - fit.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        shuffled = worth[rng.permutation(samples)]
        rise = (weights @ worth).max(axis=1) - (weights @ shuffled).max(axis=1)
        found[place] = float(rise.mean())
    return np.maximum(found, 0.0)
