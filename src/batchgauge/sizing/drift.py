"""Does a cost model still hold? Fresh measurements against its predictions, with an alarm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from batchgauge.errors import UserError
from batchgauge.statistics import mean_ratio

FEWEST = 3  # sizes that a check needs
TOLERANCE = 0.05  # of the mean ratio


@dataclass(frozen=True)
class Drift:
    """How fresh measurements compare with a model's predictions.

    ratio      geometric mean of measured / predicted, with a 95 % interval
    noticed    True when the model is off by more than the tolerance, beyond chance
    """

    ratio: float
    low: float
    high: float
    samples: int
    noticed: bool
    sentence: str


def check_drift(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> Drift:
    """Compare predictions with fresh measurements of the same sizes.

    The alarm needs both: a mean ratio beyond `TOLERANCE`, and a t interval that
    excludes 1. A model that is 8 % wrong is noticed from a handful of sizes.
    Raises UserError for fewer than `FEWEST` pairs or times that are not positive.
    """
    if len(predicted_ms) != len(measured_ms) or len(measured_ms) < FEWEST:
        raise UserError("A drift check needs at least three sizes, each predicted and measured.")
    if min(*predicted_ms, *measured_ms) <= 0.0:
        raise UserError("A drift check got a time that is not positive; expected milliseconds.")
    ratio = mean_ratio(measured_ms, predicted_ms)
    low, high, off = ratio.low, ratio.high, 100.0 * (ratio.value - 1.0)
    noticed = abs(math.log(ratio.value)) > math.log1p(TOLERANCE) and not low <= 1.0 <= high
    n = len(measured_ms)
    said = f"fresh times are {abs(off):.1f} % {'above' if off > 0 else 'below'} the model's"
    where = f"(95 % interval {100 * (low - 1):+.1f} to {100 * (high - 1):+.1f} %, {n} sizes)"
    verdict = "the cost model is wrong here: calibrate again" if noticed else "the model holds"
    return Drift(ratio.value, low, high, n, noticed, f"{verdict}; {said} {where}.")
