"""Rotary positions: the angles by which pairs of features turn, and their scalings.

Su et al. 2021; linear scaling and "dynamic" NTK as in `transformers`; YaRN (Peng et al.
2023); long and short factors (LongRoPE, Ding et al. 2024); factors of Llama 3.1. Letters:
T positions, n features of a head that turn, n / 2 pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchgauge.core.ops import Floats, Ints, Rotations

Doubles = npt.NDArray[np.float64]
SCALINGS = ("none", "linear", "yarn", "dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class Rotary:
    """What a file says of a rotation. Frequencies are radians per position, [n / 2]."""

    width: int  # n
    base: float
    scaling: str = "none"  # one of SCALINGS
    factor: float = 1.0
    original: int = 0  # positions that the unscaled model was trained with
    magnitude: float = 1.0  # that cosine and sine are multiplied by
    betas: tuple[float, float] = (32.0, 1.0)  # YaRN: turns above which nothing, below which all

    def frequencies(self, factors: Floats | None = None) -> Doubles:
        """Of each pair, as far as they do not depend on lengths; `factors` [n / 2] divide them."""
        found: Doubles = np.power(np.float64(self.base), -self.exponents)
        if factors is not None:
            found /= factors
        if self.scaling == "linear":
            found /= self.factor
        elif self.scaling == "yarn":
            share = self._interpolated()
            found *= share / self.factor + 1.0 - share
        return found

    @property
    def exponents(self) -> Doubles:
        """Of the base, negative ones of which are frequencies: [n / 2]."""
        exponents: Doubles = np.arange(0, self.width, 2) / self.width
        return exponents

    def dynamic_base(self, seen: Ints) -> Doubles:
        """The base [T] for rows that have become so long [T]: NTK scaling beyond the original."""
        beyond = np.maximum(seen / self.original, 1.0)
        grown = self.factor * beyond - (self.factor - 1.0)
        bases: Doubles = self.base * np.power(grown, self.width / (self.width - 2))
        return bases

    def _interpolated(self) -> Doubles:
        """YaRN: how much each pair is slowed down by the factor, from 0 to 1."""

        def pair(turns: float) -> float:  # the one that turns so often within the context
            often = np.log(np.float64(self.original) / (turns * 2.0 * math.pi))
            return float(self.width * often / (2.0 * np.log(np.float64(self.base))))

        first = max(np.floor(pair(self.betas[0])), 0.0)
        last = min(np.ceil(pair(self.betas[1])), self.width - 1.0)
        numbers = np.arange(self.width // 2)
        share: Doubles = np.clip((numbers - first) / max(0.001, last - first), 0.0, 1.0)
        return share


def yarn_magnitude(factor: float) -> float:
    """By how much YaRN enlarges cosine and sine where a file says nothing else."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0


class Turns:
    """Rotations of positions by a `Rotary` and the file's own factors, if it has any.

    `short` [n / 2] divide the frequencies; `long` those of rows that have become longer than
    the original context.
    """

    def __init__(self, rotary: Rotary, short: Floats | None, long: Floats | None = None) -> None:
        self.rotary = rotary
        self._factors = np.float32(1.0) if short is None else short
        with np.errstate(all="ignore"):  # `finite` says it
            self.frequencies = rotary.frequencies(short).astype(np.float32)
            self._long = rotary.frequencies(long).astype(np.float32)

    @property
    def finite(self) -> bool:
        """Whether the frequencies of rows of any length are."""
        return bool(np.isfinite(self.frequencies).all() and np.isfinite(self._long).all())

    def __call__(self, positions: Ints, seen: Ints) -> Rotations:
        """The cos + i sin of positions [T] in rows that have become so long [T]: [T, n / 2]."""
        r, frequencies = self.rotary, self.frequencies.astype(np.float64)
        if r.scaling in {"dynamic", "longrope"}:
            other: Doubles = self._long.astype(np.float64)
            if r.scaling == "dynamic":
                other = np.power(r.dynamic_base(seen)[:, None], -r.exponents) / self._factors
            frequencies = np.where((seen > r.original)[:, None], other, frequencies)
        rotations: Rotations = np.exp(1j * (positions[:, None] * frequencies)).astype(np.complex64)
        if r.magnitude != 1.0:
            rotations *= np.float32(r.magnitude)
        return rotations
