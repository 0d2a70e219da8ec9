"""What is known of a curve over settings from few noisy runs: posterior samples, not one fit.

A curve is a mean plus a Gaussian process (Rasmussen & Williams, "Gaussian Processes for Machine
Learning", 2006, ch. 2), both over the logarithm of the setting. The mean is a law that servers
follow: a rate saturates, n / (n + h), until a cap of its own, in whole tiles of requests where
steps cost the same for a part of one, and may fall at a cliff, at once or over a few settings; a
latency grows as h + n and may jump where requests begin to wait, or, where so many arrive a
second, as 1 / (1 - n / c) towards a capacity c (Kleinrock, "Queueing Systems", 1975, ch. 3).
Which law, how smooth the rest and how much runs of one setting differ is not decided but averaged
over, by marginal likelihood (Hoeting et al., "Bayesian model averaging", Statistical Science 14,
1999): a single best fit would state too small a risk.

m runs · c candidate settings · L laws · S samples
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy

Array = npt.NDArray[np.float64]
Kind = Literal["rate", "latency", "latency by arrivals"]

_LEVEL = 30.0  # standard deviation of the unknown level, in logarithms: any
_JITTER = 1e-9
_HALVES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e5)  # settings at which half the limit is reached
_PLACES = 24  # places of a cap that are told apart
_CAPACITIES = 40
_TILES = (4, 8, 16)  # requests
_WIDTHS = (1e-9, 0.15, 0.5)  # doublings over which a cliff falls
_NEAREST = 1e-2  # to the capacity, as a share of it: beyond, no run is long enough to tell


@dataclass(frozen=True, slots=True)
class Prior:
    """What curves may look like, of one kind; logarithms throughout.

    amplitudes  of the smooth rest; with `lengths` in doublings of the setting
    between     standard deviations between runs of one setting, beyond what a run shows itself
    drops       depths of a cliff (a rate), or heights of a jump (a latency)
    has_change  prior probability of a cap, and of a cliff or jump
    queues      prior probability that a latency grows towards a capacity
    tiled       prior probability that a rate without a cap grows in tiles
    """

    amplitudes: tuple[float, ...]
    lengths: tuple[float, ...]
    between: tuple[float, ...]
    drops: tuple[float, ...]
    has_change: tuple[float, float]
    queues: float = 0.0
    tiled: float = 0.0


PRIORS: dict[Kind, Prior] = {
    "rate": Prior(
        (0.005, 0.02, 0.08),
        (0.12, 0.5, 2.0),
        (0.001, 0.008, 0.03, 0.1),
        (0.1, 0.3, 0.8, 2.5),
        (0.5, 0.4),
        tiled=0.3,
    ),
    "latency": Prior(
        (0.02, 0.08, 0.3), (0.5, 2.0), (0.005, 0.03, 0.1), (0.5, 1.5, 3.0), (0.0, 0.5)
    ),
}
PRIORS["latency by arrivals"] = replace(PRIORS["latency"], queues=0.7)


@dataclass(frozen=True, slots=True)
class Seen:
    """Runs of one quantity: settings [m], its logarithm [m], and the variance of that [m]."""

    settings: Array
    logs: Array
    variances: Array


def sample(kind: Kind, seen: Seen, candidates: Array, count: int, seed: int) -> Array:
    """Curves that agree with what was seen: logarithms at the candidates, float64 [S, c]."""
    prior, rng = PRIORS[kind], np.random.default_rng(seed)
    at_seen, at_candidates, log_prior = _laws(kind, prior, seen.settings, candidates)
    here, there = np.log2(seen.settings), np.log2(candidates)
    center = float(np.average(seen.logs, weights=1.0 / (seen.variances + 1e-4)))
    residuals = (seen.logs - center)[None, :] - at_seen  # [L, m]
    choices = list(product(prior.amplitudes, prior.lengths, prior.between))
    scores, factors = [], []
    for amplitude, length, between in choices:
        among = _matern(here, here, amplitude, length) + _LEVEL**2
        among[np.diag_indices_from(among)] += seen.variances + between**2 + _JITTER
        lower = scipy.linalg.cholesky(among, lower=True)
        white = scipy.linalg.solve_triangular(lower, residuals.T, lower=True)  # [m, L]
        fit = -0.5 * (white**2).sum(axis=0) - np.log(np.diag(lower)).sum()
        scores.append(fit + log_prior)
        factors.append(lower)
    weights = np.exp(np.stack(scores) - np.max(scores))  # [choices, L]
    picks = rng.choice(weights.size, size=count, p=weights.ravel() / weights.sum())
    found = np.empty((count, candidates.size))
    for number, (amplitude, length, _) in enumerate(choices):
        rows = np.flatnonzero(picks // weights.shape[1] == number)
        if not rows.size:
            continue
        laws = picks[rows] % weights.shape[1]
        across = _matern(there, here, amplitude, length) + _LEVEL**2  # [c, m]
        gain = scipy.linalg.cho_solve((factors[number], True), across.T).T
        left = _matern(there, there, amplitude, length) + _LEVEL**2 - gain @ across.T
        spread = _root(left)
        means = at_candidates[laws] + residuals[laws] @ gain.T
        found[rows] = means + rng.standard_normal((rows.size, candidates.size)) @ spread.T
    return found + center


def _matern(a: Array, b: Array, amplitude: float, length: float) -> Array:
    """Matérn's covariance of order 3/2, float64 [a, b]."""
    far = np.sqrt(3.0) * np.abs(a[:, None] - b[None, :]) / length
    return np.asarray(amplitude**2 * (1.0 + far) * np.exp(-far))


def _root(covariance: Array) -> Array:
    """A square root of a covariance that rounding may have made slightly indefinite."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2.0)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)))


def _laws(kind: Kind, prior: Prior, seen: Array, candidates: Array) -> tuple[Array, Array, Array]:
    """The laws at the runs [L, m] and at the candidates [L, c], and their log prior [L]."""
    at = np.concatenate([seen, candidates])
    parts = list(_each_law(kind, prior, candidates, at))
    laws = np.concatenate([law for law, _ in parts])
    log_prior = np.concatenate([np.full(len(law), np.log(p / len(law))) for law, p in parts])
    return laws[:, : seen.size], laws[:, seen.size :], log_prior


def _each_law(
    kind: Kind, prior: Prior, candidates: Array, at: Array
) -> Iterator[tuple[Array, float]]:
    """Groups of laws [L, at], each with the prior probability of the group.

    A cliff or a jump may lie between any two candidates.
    """
    halves = np.array(_HALVES)[:, None]
    cap_p, drop_p = prior.has_change
    between = np.sqrt(candidates[1:] * candidates[:-1])[:, None]  # [c - 1, 1]
    past = np.log2(at[None, :] / between)  # doublings, [c - 1, at]
    after = np.concatenate([np.clip(past / width, 0.0, 1.0) for width in _WIDTHS])
    drops = np.array(prior.drops)[:, None, None] * after[None]  # [drops, widths * (c - 1), at]
    if kind != "rate":
        if prior.queues:
            ends = candidates[candidates.size // 4], 1.6 * candidates[-1]
            capacities = np.geomspace(*ends, _CAPACITIES)[:, None]
            queue = -np.log(np.maximum(1.0 - at[None, :] / capacities, _NEAREST))
            yield np.concatenate([queue, queue / 2.0]), prior.queues
        rest = 1.0 - prior.queues
        plain = np.log(halves + at[None, :])
        yield plain, rest * (1.0 - drop_p)
        # Behind a jump requests wait their turn: the wait grows with those in front.
        behind = np.log(np.maximum(at[None, :] / between, 1.0))
        jumps = np.array(prior.drops)[:, None, None] * (past > 0)[None]  # [drops, c - 1, at]
        yield _sums(plain, (jumps + behind[None]).reshape(-1, at.size)), rest * drop_p
        return
    cliffs = -drops.reshape(-1, at.size)
    plain = -np.log1p(halves / at[None, :])
    tiled = _tiled(_HALVES[:-1], at)
    yield plain, (1.0 - prior.tiled) * (1.0 - cap_p) * (1.0 - drop_p)
    yield _sums(plain, cliffs), (1.0 - prior.tiled) * (1.0 - cap_p) * drop_p
    yield tiled, prior.tiled * (1.0 - cap_p) * (1.0 - drop_p)
    yield _sums(tiled[::2], cliffs), prior.tiled * (1.0 - cap_p) * drop_p
    yield _capped(_HALVES, _PLACES, candidates, at), cap_p * (1.0 - drop_p)
    yield _sums(_capped(_HALVES[1::2], _PLACES // 2, candidates, at), cliffs), cap_p * drop_p


def _capped(halves: Sequence[float], places: int, candidates: Array, at: Array) -> Array:
    """Laws that are flat from a cap on, float64 [L, at]; caps evenly in their logarithm."""
    caps = np.unique(np.geomspace(candidates[0], candidates[-1], places + 2))[1:-1]
    reached = np.minimum(at[None, :], caps[:, None])  # [caps, at]
    laws = -np.log1p(np.array(halves)[:, None, None] / reached[None])
    return np.asarray(laws.reshape(-1, at.size))


def _tiled(halves: Sequence[float], at: Array) -> Array:
    """Laws of steps that cost as much for a part of a tile as for the whole, float64 [L, at]."""
    tiles = np.array(_TILES, dtype=np.float64)[:, None]
    whole = tiles * np.ceil(at[None, :] / tiles)  # [tiles, at]
    laws = np.log(at) - np.log(np.array(halves)[:, None, None] + whole[None])
    return np.asarray(laws.reshape(-1, at.size))


def _sums(a: Array, b: Array) -> Array:
    """Every row of `a` plus every row of `b`."""
    return np.asarray((a[:, None, :] + b[None, :, :]).reshape(-1, a.shape[1]))
