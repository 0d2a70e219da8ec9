"""What serving costs and bears: the scheduler, a second core, classes, cancelled requests."""

from __future__ import annotations

import pandas as pd

from batchgauge.experiments.serving.live import LiveRun, serve
from batchgauge.experiments.serving.study import ServingCase, scheduler_of
from batchgauge.machine import preflight
from batchgauge.statistics import Interval, location, mean_ratio

OVERLOAD = 1.6  # of static batching's capacity: a queue forms under continuous batching too
EVERY = 10  # one request in so many is cancelled


def scheduler_share(steps: pd.DataFrame, rows: int) -> Interval:
    """The scheduler's own time over the loop's, in steps that decode `rows` rows and no prompt.

    A value a seed, whose runs follow each other; where fewer than two have such steps, one a
    step. Where no step is such, those that decode anything; where none does, all.
    """
    decodes = steps["rows"] > 0
    full = steps[(steps["rows"] == rows) & (steps["prompt_positions"] == 0)]
    if full.empty:
        full = steps[decodes] if decodes.any() else steps
    sums = full.groupby("seed")[["own_s", "loop_s"]].sum()
    shares = sums["own_s"] / sums["loop_s"]
    return location(shares if len(shares) > 1 else full["own_s"] / full["loop_s"])


def two_cores(case: ServingCase, rounds: int) -> pd.DataFrame:
    """Seconds to answer the same requests, all there at once, on one thread and on two.

    One row a round and number of threads, which take turns: seconds, tokens_per_s.
    """
    arrivals = case.arrivals(1.0, case.context.seed).at_once()
    tokens, rows = int(arrivals.generated.sum()), []
    for number in range(rounds):
        for threads in (1, 2) if number % 2 else (2, 1):
            with preflight.limit_threads(threads):
                run = serve(scheduler_of(case, "continuous"), arrivals)
            seconds = float(run.requests["returned_s"].max())
            rows.append((number, threads, seconds, tokens / seconds))
    return pd.DataFrame(rows, columns=["round", "threads", "seconds", "tokens_per_s"])


def second_core_gain(table: pd.DataFrame) -> Interval:
    """Throughput of two threads over one, with a 95 % interval over rounds."""
    rates = table.pivot_table(index="round", columns="threads", values="tokens_per_s")
    return mean_ratio(rates[2], rates[1])


def by_order(case: ServingCase) -> pd.DataFrame:
    """Share in time of each class when too much comes, first come first served and by class.

    One row an order and class: requests, in_time_share, mean_answer_ms.
    """
    arrivals = case.arrivals(OVERLOAD, case.context.seed, count=2 * case.requests)
    rows = []
    for order in ("fifo", "priority"):
        changes = {"order": order, "ageing_s": 10 * case.target_s}
        run = serve(scheduler_of(case, "continuous", **changes), arrivals)
        waited = run.requests["returned_s"] - run.requests["arrival_s"]
        for name, times in waited.groupby(run.requests["class"]):
            share = float((times <= case.target_s).mean())
            rows.append((order, name, len(times), share, 1e3 * float(times.mean())))
    columns = ["order", "class", "requests", "in_time_share", "mean_answer_ms"]
    return pd.DataFrame(rows, columns=columns)


def cancelled_tenth(case: ServingCase, load: float) -> tuple[LiveRun, LiveRun, int]:
    """A run without and one with every tenth request cancelled half-way; positions still taken.

    The last is what of the KV cache was not given back: 0 where all is well.
    """
    arrivals = case.arrivals(load, case.context.seed)
    gone = frozenset(range(EVERY // 2, len(arrivals), EVERY))
    whole = serve(scheduler_of(case, "continuous"), arrivals)
    scheduler = scheduler_of(case, "continuous")
    cut = serve(scheduler, arrivals, cancelled=gone)
    return whole, cut, scheduler.loop.used_positions
