"""Percentiles of times that were seen one after the other, and how sure they are."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy

from batchgauge.request import PERCENTILE_FLOOR

Array = npt.NDArray[np.float64]

# Standard error of a normal 95th percentile: 2.11 standard deviations over the square root of n.
_NORMAL_P95 = 2.11
_ENOUGH = 80  # values from which order statistics tell a percentile's error
_LEAST_P95_SD = 0.005
_BATCHES = 8  # consecutive requests in so many batches show how much neighbours have in common


def p95_log(values: Array) -> tuple[float, float]:
    """Logarithm of the 95th percentile of [n] values, and its standard deviation.

    Hyndman & Fan's type 8, nearly unbiased in small samples.
    """
    logs = np.log(np.maximum(values, 1e-3))
    middle = float(np.quantile(logs, 0.95, method="median_unbiased"))
    spread = float(logs.std(ddof=1))
    n = values.size / alike(logs)
    sd = _NORMAL_P95 * spread / math.sqrt(n)
    if n >= _ENOUGH:  # the distance of order statistics (Woodruff, JASA 47, 1952)
        reach = 1.96 * math.sqrt(0.95 * 0.05 / n)
        low, high = np.quantile(logs, [0.95 - reach, min(1.0, 0.95 + reach)])
        sd = min(sd, float(high - low) / (2 * 1.96))
    return middle, max(sd, _LEAST_P95_SD)


def alike(values: Array) -> float:
    """Variance of the mean of values [n] in time order, over that of n independent ones; >= 1.

    Neighbours in time share the server's state; by how much, batch means say (Law & Kelton,
    "Simulation Modeling and Analysis", ch. 9).
    """
    spread = float(values.std(ddof=1)) if values.size >= 4 * _BATCHES else 0.0
    if not spread:
        return 1.0
    means = [float(part.mean()) for part in np.array_split(values, _BATCHES)]
    return max(1.0, float(np.var(means, ddof=1)) * values.size / _BATCHES / spread**2)


def percentile_interval(values: Array, percent: int = 95) -> tuple[float, float, float] | None:
    """A percentile with its 95 % interval by order statistics; None below its floor of samples."""
    n = values.size
    if n < PERCENTILE_FLOOR[percent]:
        return None
    ordered = np.sort(values)
    low, high = np.ceil(scipy.special.bdtrik([0.025, 0.975], n, percent / 100)).astype(int)
    point = float(np.quantile(ordered, percent / 100))
    return point, float(ordered[max(0, low - 1)]), float(ordered[min(n - 1, high)])
