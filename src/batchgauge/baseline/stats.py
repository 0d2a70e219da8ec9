"""Batch statistics the way one writes them first, and the rungs from there to the shipped form.

The baseline is the standard library's `statistics` and a search through the list;
the shipped form is `BatchStats.from_durations` and `BatchResult.get_by_id`. All
rungs give the same numbers to rounding.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgauge.baseline.rung import Rung, Work
from batchgauge.request import PERCENTILE_FLOOR, BatchResponse, BatchResult, BatchStats, T

Durations = Sequence[float] | npt.NDArray[np.float64]


def baseline_stats(durations_ms: Durations, total_duration_ms: float) -> BatchStats:
    """`BatchStats` by `statistics.quantiles`, sorting anew for every percentile asked for."""

    def percentile(q: int) -> float:
        if len(durations_ms) < PERCENTILE_FLOOR[q]:
            return math.nan
        cuts = statistics.quantiles(durations_ms, n=100, method="inclusive")
        return float(cuts[q - 1])

    return BatchStats(
        len(durations_ms), total_duration_ms, *(percentile(q) for q in PERCENTILE_FLOOR)
    )


def sort_once_stats(durations_ms: Durations, total_duration_ms: float) -> BatchStats:
    """The baseline with one sort in plain Python, shared by all percentiles."""
    ordered = sorted(durations_ms)
    last = len(ordered) - 1

    def percentile(q: int) -> float:
        if len(ordered) < PERCENTILE_FLOOR[q]:
            return math.nan
        below, rest = divmod(last * q, 100)
        low, high = ordered[below], ordered[min(below + 1, last)]
        return float(low + (high - low) * rest / 100)

    return BatchStats(len(ordered), total_duration_ms, *(percentile(q) for q in PERCENTILE_FLOOR))


def numpy_percentile_stats(durations_ms: Durations, total_duration_ms: float) -> BatchStats:
    """The baseline with one call of `numpy.percentile`, the obvious library function."""
    times = np.asarray(durations_ms, dtype=np.float64)  # [N]
    wanted = [q for q, floor in PERCENTILE_FLOOR.items() if times.size >= floor]
    values = dict(zip(wanted, np.percentile(times, wanted).tolist(), strict=True)) if wanted else {}
    return BatchStats(
        times.size, total_duration_ms, *(values.get(q, math.nan) for q in PERCENTILE_FLOOR)
    )


def find_by_id(responses: Sequence[BatchResponse[T]], item_id: str) -> BatchResponse[T]:
    """Look-up by id the first way: walk the responses until it is found. Raises KeyError."""
    for response in responses:
        if response.id == item_id:
            return response
    raise KeyError(item_id)


def _lookup_walking(result: BatchResult[T], ids: Sequence[str]) -> list[T | None]:
    return [find_by_id(result.responses, item_id).data for item_id in ids]


def _lookup_indexed(result: BatchResult[T], ids: Sequence[str]) -> list[T | None]:
    return [result.get_by_id(item_id).data for item_id in ids]


def _on_work(compute: Callable[..., Any]) -> Callable[[], Work]:
    return lambda: lambda work: compute(*work)


def _rungs(*ideas: tuple[str, str, Callable[..., Any]]) -> tuple[Rung, ...]:
    """Rungs that are the same alone and on top of the others."""
    return tuple(Rung(name, idea, _on_work(fn), _on_work(fn)) for name, idea, fn in ideas)


# Work of these rungs: (durations_ms, total_duration_ms) to BatchStats.
STATS_BASELINE = _on_work(baseline_stats)
STATS_RUNGS = _rungs(
    ("sort once", "All percentiles share one sort instead of sorting for each.", sort_once_stats),
    ("numpy.percentile", "One call of the library function that everybody reaches for.",
     numpy_percentile_stats),
    ("NumPy sort, own interpolation",
     "One vectorised sort; four interpolations by hand need no general machinery.",
     BatchStats.from_durations),
)  # fmt: skip

# Work of these rungs: (BatchResult, ids to look up) to the data found.
LOOKUP_BASELINE = _on_work(_lookup_walking)
LOOKUP_RUNGS = _rungs(
    ("index by id", "A dict from id to position replaces walking through the responses.",
     _lookup_indexed),
)  # fmt: skip
