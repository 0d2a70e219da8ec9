"""Whether ratios of fresh processes are beyond a threshold, looked at while they come in.

One value a round: log(time new ÷ time base) of two fresh processes. Its location is the 20 %
trimmed mean with the standard error by winsorising (Tukey & McLaughlin 1963; Wilcox,
"Introduction to Robust Estimation and Hypothesis Testing", 4th ed. 2017, ch. 4), so that a few
processes that are slow for their whole life do not decide. It is looked at after fixed numbers
of rounds, and each look spends a part of the error allowed (Lan & DeMets, "Discrete sequential
boundaries for clinical trials", Biometrika 70, 1983): nearly all of it late when it is asked
whether the change is beyond the threshold (O'Brien–Fleming-like), evenly for the interval
(Pocock-like). Critical values are those of normal increments, by recursive integration
(Armitage, McPherson & Rowe, JRSS A 132, 1969), carried to Student's t at the same level
(Jennison & Turnbull, "Group Sequential Methods", 2000, ch. 4.4).

K looks · t share of the most rounds
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import scipy
from scipy.special import ndtr, ndtri, stdtrit

from batchgauge.errors import UserError
from batchgauge.statistics import kept, trimmed

Logs = npt.NDArray[np.float64]
Spending = Callable[[float, float], float]

ALPHA = 0.01  # a benchmark that is slower by just the threshold fails in so many runs
OUTSIDE = 0.025  # of each side of the interval
LEAST = 8  # rounds; a trimmed mean of fewer has hardly a standard error
EVERY = 4  # rounds between two looks
_GRID = 501
_WIDEST = 8.0  # standard deviations that the integration goes out to


def obrien_fleming(share: float, alpha: float) -> float:
    """Error spent when `share` of all rounds are in, at most `alpha`: nearly all of it late."""
    return 2.0 * float(ndtr(ndtri(alpha / 2.0) / math.sqrt(share)))


def pocock(share: float, alpha: float) -> float:
    """Error spent when `share` of all rounds are in, at most `alpha`: about evenly."""
    return alpha * math.log1p((math.e - 1.0) * share)


@lru_cache(maxsize=256)
def critical(looks: tuple[int, ...], alpha: float, spending: Spending) -> tuple[float, ...]:
    """The z [K] that a statistic must pass at each of `looks` (rounds) to reject."""
    shares = [n / looks[-1] for n in looks]
    spent = [0.0, *(spending(t, alpha) for t in shares)]
    found: list[float] = []
    walk = _Walk(0.0)
    for k, t in enumerate(shares):
        wanted = max(spent[k + 1] - spent[k], 1e-15)
        z = scipy.optimize.brentq(
            lambda z, t=t, wanted=wanted: math.log(max(walk.beyond(z, t), 1e-300) / wanted),
            -_WIDEST,
            _WIDEST + 2.0,
            xtol=1e-6,
        )
        found.append(float(z))
        walk.go_on(found[-1], t)
    return tuple(found)


@lru_cache(maxsize=256)
def critical_t(looks: tuple[int, ...], alpha: float, spending: Spending) -> tuple[float, ...]:
    """The same for a trimmed mean ÷ its standard error, at the same level of Student's t."""
    bounds = zip(looks, critical(looks, alpha, spending), strict=True)
    return tuple(float(-stdtrit(kept(n) - 1, ndtr(-z))) for n, z in bounds)


def rejected(looks: tuple[int, ...], bounds: tuple[float, ...], drift: float) -> float:
    """How often a test with these bounds rejects where the last look's mean z is `drift`."""
    walk = _Walk(drift)
    total = 0.0
    for n, z in zip(looks, bounds, strict=True):
        t = n / looks[-1]
        total += walk.beyond(z, t)
        walk.go_on(z, t)
    return total


class _Walk:
    """A Brownian motion with `drift` over t in (0, 1], as far as it was not stopped yet."""

    def __init__(self, drift: float) -> None:
        self._drift = drift
        self._now = 0.0
        self._at = np.zeros(1)
        self._mass = np.ones(1)

    def beyond(self, z: float, t: float) -> float:
        """How likely it goes on until t and is beyond z √t there."""
        step = t - self._now
        far = (z * math.sqrt(t) - self._at - self._drift * step) / math.sqrt(step)
        return float(self._mass @ ndtr(-far))

    def go_on(self, z: float, t: float) -> None:
        """Keep what is below z √t at t."""
        step = t - self._now
        middle, width = self._drift * t, _WIDEST * math.sqrt(t)
        top = min(z * math.sqrt(t), middle + width)
        at = np.linspace(middle - width, top, _GRID)
        moved = at[:, None] - self._at - self._drift * step
        density = np.exp(-(moved**2) / (2.0 * step)) / math.sqrt(math.tau * step) @ self._mass
        weights = np.full(_GRID, at[1] - at[0])
        weights[[0, -1]] /= 2.0
        self._now, self._at, self._mass = t, at, density * weights


@dataclass(frozen=True, slots=True)
class Look:
    """What is known at one look; logs. `beyond`: surely slower than the threshold."""

    middle: float
    low: float
    high: float
    error: float
    beyond: bool


@dataclass(frozen=True)
class SequentialDesign:
    """When to look, and what must be seen; `most` rounds at most, `threshold` relative (0.01)."""

    most: int
    threshold: float

    def __post_init__(self) -> None:
        if self.most < LEAST:
            raise UserError(f"{self.most} rounds are too few to say anything; expected {LEAST}.")

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """The numbers of rounds after which it is looked, the last is `most`."""
        return (*range(LEAST, self.most - EVERY // 2, EVERY), self.most)

    def look(self, ratios: Logs) -> Look:
        """What log ratios [n] say, n one of `looks` (of a number between, the look before's)."""
        k = max(i for i, n in enumerate((0, *self.looks)) if n <= ratios.size) - 1
        if k < 0:
            raise UserError(f"{ratios.size} rounds are too few to look; expected {LEAST} or more.")
        middle, error = trimmed(ratios[: self.looks[k]])
        margin = math.log1p(self.threshold)
        far = critical_t(self.looks, ALPHA, obrien_fleming)[k]
        wide = critical_t(self.looks, OUTSIDE, pocock)[k]
        beyond = middle - margin > far * error
        return Look(middle, middle - wide * error, middle + wide * error, error, beyond)

    def fails(self, change: float, look: Look, rounds: int) -> float:
        """How often a benchmark whose true log ratio is `change` fails, at this look's noise."""
        error = look.error * math.sqrt(rounds / self.most)
        if error == 0.0:
            return float(change > math.log1p(self.threshold))
        drift = (change - math.log1p(self.threshold)) / error
        return rejected(self.looks, critical(self.looks, ALPHA, obrien_fleming), drift)
