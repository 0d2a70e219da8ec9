"""The roadmap notebook's comparison of policies on this machine, and how fast it simulates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from batchgauge.experiments.roadmap.study import Case
from batchgauge.experiments.traffic import LONGEST
from batchgauge.simulate.arrivals import bursty
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import by_class, capacity, first_text_s, rate_text, summarise
from batchgauge.simulate.server import Server
from batchgauge.text import percent
from batchgauge.workload import request_lengths

OVERLOAD = 1.1  # of dynamic batching's capacity: a queue forms
CHUNK = 128  # prompt tokens a step; each chunk reads all weights again
TODAY = "today"
CURVES = ("static", "dynamic", "continuous")
SHOWN = [
    "policy", "capacity_requests_per_s", "stable", "in_time_share", "goodput_requests_per_s",
    "throughput_tokens_per_s", "p50_first_text_ms", "p90_first_text_ms", "p99_first_text_ms",
    "p50_inter_token_ms", "p90_inter_token_ms", "p99_inter_token_ms", "fill_ratio",
    "padding_waste", "retries_per_request",
]  # fmt: skip
SHOWN_CLASSES = [
    "order", "class", "requests", "in_time_share", "p50_first_text_ms", "p90_first_text_ms",
    "p99_first_text_ms", "p90_inter_token_ms",
]  # fmt: skip


def policies(case: Case) -> dict[str, Server]:
    """The policies to compare on this machine, today's first."""
    base = case.today.server
    plain = replace(base, order="fifo", chunk_tokens=0, preempt=False, kv_limit_tokens=0)
    going = replace(plain, batching="continuous")
    sample = case.traffic(case.rate, 0)
    largest = int((sample.context + sample.generated).max())
    mean = int((sample.context + sample.generated).mean())
    tight = max(largest, base.max_batch * mean // 2)
    return {
        TODAY: base,
        "static": replace(plain, batching="static"),
        "dynamic": replace(plain, batching="dynamic"),
        "continuous": going,
        "continuous, chunked prefill": replace(going, chunk_tokens=CHUNK),
        "continuous, half the KV memory": replace(going, preempt=True, kv_limit_tokens=tight),
        "continuous, priority": replace(going, order="priority", ageing_s=10 * case.target_s),
        "continuous, shortest first": replace(going, order="shortest", ageing_s=case.target_s),
    }


def compare_policies(case: Case) -> pd.DataFrame:
    """Every metric of every policy at the case's rate: one row a policy."""
    arrivals = case.traffic(case.rate, case.seed)
    rows = []
    chosen = policies(case)
    for name, server in chosen.items():
        if name == TODAY and server in list(chosen.values())[1:]:
            continue  # it stands there under its own name
        run = simulate(arrivals, case.today.step_s, server)
        limit = capacity(arrivals, case.today.step_s, server)
        row = {"policy": name, "capacity_requests_per_s": limit, "load": case.rate / limit}
        rows.append({**row, "stable": case.rate < limit, **summarise(run, target_s=case.target_s)})
    return pd.DataFrame(rows)


def compare_classes(case: Case) -> pd.DataFrame:
    """Percentiles of each class, first come first served and by priority, under `OVERLOAD`.

    Dynamic batching for both, since a priority queue needs a queue to show what it does:
    one row an order and class.
    """
    plain = policies(case)["dynamic"]
    limit = capacity(case.traffic(1.0, case.seed), case.table, plain)
    arrivals = case.traffic(OVERLOAD * limit, case.seed)
    orders = {
        "first come": plain,
        "priority": replace(plain, order="priority"),
        "priority with ageing": replace(plain, order="priority", ageing_s=2 * case.target_s),
    }
    return pd.concat(
        [
            by_class(simulate(arrivals, case.today.step_s, server), target_s=case.target_s).assign(
                order=name, arrival_rate=arrivals.rate
            )
            for name, server in orders.items()
        ],
        ignore_index=True,
    )


def time_simulator(case: Case, count: int) -> float:
    """Seconds of wall time to simulate `count` requests under continuous batching."""
    context, generated = request_lengths(count, scale=1 / 16, longest=LONGEST, seed=case.seed)
    arrivals = bursty(case.rate, context, generated, burstiness=1.0, seed=case.seed)
    server = replace(case.today.server, batching="continuous")
    begin = time.perf_counter()
    simulate(arrivals, case.today.step_s, server)
    return time.perf_counter() - begin


def policy_curves(case: Case, *, loads: Sequence[float], seeds: int) -> pd.DataFrame:
    """p90 until the first text against the arrival rate: one row a policy, rate and seed.

    `loads` are arrival rates as shares of today's capacity.
    """
    chosen = policies(case)
    rows = []
    for rate in (np.array(loads) * case.limit).tolist():
        for seed in range(seeds):
            arrivals = case.traffic(rate, seed)
            for name in CURVES:
                run = simulate(arrivals, case.today.step_s, chosen[name])
                p90_ms = 1e3 * float(np.percentile(first_text_s(run, streaming=False), 90))
                rows.append({"policy": name, "arrival_rate": rate, "seed": seed, "p90_ms": p90_ms})
    return pd.DataFrame(rows)


def policies_sentence(table: pd.DataFrame, case: Case) -> str:
    """Who serves most in time at the case's rate, and which queues have no end."""
    rows = table.to_dict("records")
    best = max(rows, key=lambda row: row["in_time_share"])
    today = next(r for r in rows if r["policy"] in {TODAY, case.today.server.batching})
    endless = [row["policy"] for row in rows if not row["stable"]]
    return (
        f"At {rate_text(case.rate)} requests/s today's server answers "
        f"{percent(today['in_time_share'])} "
        f"within {1e3 * case.target_s:.0f} ms, {best['policy']} {percent(best['in_time_share'])}. "
        f"Capacity goes from {rate_text(min(r['capacity_requests_per_s'] for r in rows))} to "
        f"{rate_text(max(r['capacity_requests_per_s'] for r in rows))} requests/s. "
        + (
            f"Unstable at this rate, with queues that grow without end: {'; '.join(endless)}."
            if endless
            else "All are stable at this rate."
        )
    )


def classes_sentence(table: pd.DataFrame, case: Case) -> str:
    """What a priority queue moves from one class to the other."""
    cells = {(row["order"], row["class"]): row["in_time_share"] for row in table.to_dict("records")}
    orders, classes = (list(dict.fromkeys(table[column])) for column in ("order", "class"))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{percent(cells[order, name])} ({order})" for order in orders)
        for name in classes
    )
    return (
        f"Overloaded with {rate_text(table['arrival_rate'].iloc[0])} requests/s, answered within "
        f"{1e3 * case.target_s:.0f} ms: {said}. A priority queue adds no capacity; it "
        "decides who waits."
    )
