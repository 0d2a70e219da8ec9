"""Batch speedup S(b) over batch sizes, for calls that are short and for calls that are long.

Short calls (tokenizing) go through `measuring.compare_interleaved`, one comparison a
size. Long ones (inference) share their slow side: a block runs every item alone once and
then every batch size, in one direction and then the other, and S(b) of a block is the
time of the batch's own items alone ÷ the time of the batch. Both in fresh processes, over
which intervals are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.measuring.verdicts import Ratio

R = TypeVar("R")
ONE_BY_ONE = "one at a time"
BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Sweep:
    """S(b) of one or more implementations: `table` has one row a size, `samples` one a sample."""

    what: str
    table: pd.DataFrame
    samples: pd.DataFrame


def row(
    ratio: Ratio, batch_size: int, implementation: str, processes: int, **columns: float
) -> dict[str, Any]:
    """One row of a sweep's table: the ratio of a batch to its items one at a time, and more."""
    return {
        "implementation": implementation,
        "batch_size": batch_size,
        "speedup_x": ratio.value,
        "low_x": ratio.low,
        "high_x": ratio.high,
        "verdict": ratio.verdict,
        "processes": processes,
        **columns,
    }


@dataclass(frozen=True, slots=True)
class Timed(Generic[R]):
    """One long call: which block, how many items, when in the block, how long, what came out."""

    block: int
    position: int
    batch_size: int
    item: int  # of a single; -1 for a batch
    wall_ms: float
    result: R


def run_blocks(
    alone: Callable[[int], R], together: Callable[[int], R], sizes: Sequence[int], *, blocks: int
) -> list[Timed[R]]:
    """Blocks of long calls: `alone(i)` for every item below max(sizes), `together(b)` for every b.

    A warm-up of the smallest and the largest call comes first and is not kept. Block k runs
    forwards when k is even, backwards when it is odd.
    """
    largest = max(sizes)
    plan: list[tuple[int, int]] = [(1, i) for i in range(largest)] + [(b, -1) for b in sizes]
    alone(0)
    together(largest)
    timings: list[Timed[R]] = []
    for block in range(blocks):
        for position, (size, item) in enumerate(plan if block % 2 == 0 else plan[::-1]):
            started = perf_counter()
            result = together(size) if item < 0 else alone(item)
            wall_ms = 1e3 * (perf_counter() - started)
            timings.append(Timed(block, position, size, item, wall_ms, result))
    return timings


def block_ratios(
    timings: Sequence[Timed[R]], batch_size: int, cost_ms: Callable[[Timed[R]], float]
) -> npt.NDArray[np.float64]:
    """Log of (cost of the batch's items alone ÷ cost of the batch), one value a block [blocks]."""
    logs = []
    for block in sorted({t.block for t in timings}):
        mine = [t for t in timings if t.block == block]
        single = sum(cost_ms(t) for t in mine if 0 <= t.item < batch_size)
        batch = sum(cost_ms(t) for t in mine if t.item < 0 and t.batch_size == batch_size)
        logs.append(math.log(single / batch))
    return np.array(logs)
