"""Ratios and what may be said about them: faster, slower, no difference, not seen, too few.

Takes estimates of log ratios, knows nothing of clocks. Leaves out how they were sampled
(`paired`) and the gate's threshold on stored files (`compare`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from batchgauge.statistics import FEWEST, Estimate, adjusted, minimum_detectable_change
from batchgauge.text import figures, ratio

Verdict = Literal["faster", "slower", "no significant difference", "inconclusive", "too few"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Throughput of `name` ÷ throughput of `baseline` on the same work, with its 95 % interval.

    Above 1 is faster. `p` tests a ratio of 1, `q` is p after Benjamini-Hochberg over the
    candidates or the sweep it was judged with. `noise_floor` and
    `minimum_detectable_change` are relative (0.02 = 2 %), NaN without an A/A run, or where
    it says nothing. `blocks` counts processes where several ran.
    """

    name: str
    baseline: str
    value: float
    low: float
    high: float
    p: float
    q: float
    blocks: int
    noise_floor: float
    minimum_detectable_change: float
    verdict: Verdict
    benchmark: str = ""

    @classmethod
    def of(
        cls,
        estimate: Estimate,
        *,
        name: str,
        baseline: str,
        noise_floor: float = math.nan,
        minimum_detectable_change: float = math.nan,
        benchmark: str = "",
    ) -> Ratio:
        """The ratio whose logarithm was estimated; its verdict stays open until `judged`."""
        found, p = estimate.exp(), estimate.p
        return cls(
            name, baseline, found.value, found.low, found.high, p, p, estimate.n,
            _known(noise_floor), _known(minimum_detectable_change), "inconclusive", benchmark,
        )  # fmt: skip

    def sentence(self) -> str:
        """E.g. `numpy is 3.10 × [2.90, 3.30] as fast as baseline: faster.`"""
        said = ratio(self.value, self.low, self.high, figures)
        return f"{self.name} is {said} as fast as {self.baseline}: {self.verdict}."


def _known(share: float) -> float:
    return share if math.isfinite(share) else math.nan


def judge(
    low: float, high: float, q: float, *, noise_floor: float, mdc: float, threshold: float
) -> Verdict:
    """The verdict on an interval [low, high] of a throughput ratio.

    A difference is one when the interval leaves out 1, survives the adjustment for
    multiple looks (q <= 0.05) and its middle is beyond the noise floor. Otherwise the run
    was `inconclusive` when it could not have seen a change as small as `threshold`; without
    an A/A run (NaN) the interval's own width says what it could have seen.
    """
    bounded = low > 0.0 and math.isfinite(high)
    half = math.log(high / low) / 2.0 if bounded else math.inf
    middle = math.sqrt(low * high) if bounded else 1.0
    floor = 0.0 if math.isnan(noise_floor) else noise_floor
    if q <= 0.05 and abs(math.log(middle)) > math.log1p(floor) and not low <= 1.0 <= high:
        return "faster" if low > 1.0 else "slower"
    seen = minimum_detectable_change(half) if math.isnan(mdc) else mdc
    return "no significant difference" if seen <= threshold else "inconclusive"


def judged(ratios: Sequence[Ratio]) -> list[Ratio]:
    """The ratios of one table, p adjusted together (Benjamini-Hochberg) and judged anew.

    One that rests on fewer than four blocks or processes has no verdict but "too few".
    """
    found = []
    for r, q in zip(ratios, adjusted([r.p for r in ratios]).tolist(), strict=True):
        noise, seen = r.noise_floor, r.minimum_detectable_change
        verdict = judge(r.low, r.high, q, noise_floor=noise, mdc=seen, threshold=0.05)
        found.append(replace(r, q=q, verdict="too few" if r.blocks < FEWEST else verdict))
    return found
