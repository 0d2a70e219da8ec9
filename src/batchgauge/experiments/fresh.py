"""Measuring in fresh processes, and what their records say: rates and ratios over processes.

Processes differ from each other, by where their memory happens to lie, more than calls of one
do; so a process is the unit of evidence. Within one, all take turns, and a ratio is that of
neighbours in time. With a single process (a smoke run) its blocks are the units, and
the table says so. What a process does is in `turns`, or any function of its number.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import numpy as np
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.statistics import Estimate, over_processes

T = TypeVar("T")
KEY = ["part", "implementation", "weights", "threads", "batch_size", "tokens", "characters"]


def each(work: Callable[[int], T], *, processes: int, budget_s: float = math.inf) -> list[T]:
    """What `work` gives in so many fresh processes, one after the other, by their number.

    Fewer where `budget_s` has no room for one more like those before; one at least. `work` is
    sent there, so it is a function of a module or a partial of one. Raises UserError when a
    process dies, and what `work` raises.
    """
    spawn, found, begin = multiprocessing.get_context("spawn"), list[T](), time.perf_counter()
    for process in range(processes):
        spent_s = time.perf_counter() - begin
        if process and spent_s * (process + 1) / process > budget_s:
            break
        try:
            with ProcessPoolExecutor(1, spawn) as pool:
                found.append(pool.submit(work, process).result())
        except BrokenProcessPool:
            raise UserError("A fresh process died while measuring; is there memory?") from None
    return found


def _logs(samples: pd.DataFrame, **wanted: object) -> pd.Series:
    """Log of tokens a second of each block [process, block] of the rows that are `wanted`."""
    rows = samples[~samples["is_warmup"]]
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    logs = pd.Series(np.log(1e3 * rows["tokens"] / rows["wall_ms"]), index=rows.index)
    found: pd.Series = logs.groupby([rows["process"], rows["block"]]).median()
    return found


def over(logs: pd.Series) -> Estimate:
    """Where the values of blocks lie, by process: an index [process, block]."""
    return over_processes(logs.to_numpy(), logs.index.get_level_values("process"))


def _processes(samples: pd.DataFrame) -> int:
    return len(set(samples["process"]))


def rates(samples: pd.DataFrame) -> pd.DataFrame:
    """Tokens a second of each engine, shape and number of threads, with 95 % intervals.

    `processes` is how many the interval rests on; 1 means that it is over blocks of one.
    """
    rows = []
    for key, part in samples.groupby(KEY, sort=False):
        logs = _logs(part)
        blocks = len(logs) // max(1, _processes(part))
        rows.append((*key, *_exp(over(logs)), _processes(part), blocks))
    columns = ["tokens_per_s", "low", "high", "processes", "blocks_each"]
    return pd.DataFrame(rows, columns=[*KEY, *columns])


def rate(samples: pd.DataFrame, wanted: Mapping[str, object]) -> Estimate | None:
    """Log of tokens a second of the rows that are `wanted`; None where there are none."""
    logs = _logs(samples, **wanted)
    return None if logs.empty else over(logs)


def gain(
    samples: pd.DataFrame, one: Mapping[str, object], other: Mapping[str, object]
) -> Estimate | None:
    """Log of the throughput of `one` kind of rows ÷ that of the `other`, of neighbours in time.

    Each names columns and values; None where there are no such rows.
    """
    both = (_logs(samples, **one) - _logs(samples, **other)).dropna()
    return None if both.empty else over(both)


def ratio(
    samples: pd.DataFrame, one: Mapping[str, object], other: Mapping[str, object]
) -> tuple[float, float, float] | None:
    """`gain` as a ratio with its 95 % interval."""
    found = gain(samples, one, other)
    return None if found is None else _exp(found)


def spread(samples: pd.DataFrame, wanted: Mapping[str, object]) -> float:
    """How far the blocks of some rows differ: 90th over 10th percentile of their times, less 1."""
    logs = _logs(samples, **wanted)
    return (
        math.nan if logs.empty else math.expm1(float(np.subtract(*np.percentile(logs, [90, 10]))))
    )


def ahead(samples: pd.DataFrame, over: Mapping[str, object], under: Mapping[str, object]) -> int:
    """1 where (nearly) all blocks of `over` are quicker than those of `under`, -1 slower, else 0.

    From the 10th to the 90th percentile: what can be said where no ratio can.
    """
    a, b = (np.percentile(_logs(samples, **wanted), [10, 90]) for wanted in (over, under))
    return int(a[0] > b[1]) - int(a[1] < b[0])


def _exp(middle: Estimate) -> tuple[float, float, float]:
    low, high = (min(max(v, -50.0), 50.0) for v in (middle.low, middle.high))
    return math.exp(middle.value), math.exp(low), math.exp(high)


def rests_on(samples: pd.DataFrame) -> str:
    """What intervals are over, in words."""
    return in_words(_processes(samples))


def in_words(processes: int) -> str:
    """What an interval from so many processes is over."""
    return f"{processes} fresh processes" if processes > 1 else "the blocks of one fresh process"
