"""What a run was worth: throughput, waiting, smoothness, waste, and requests served in time.

Definitions. First text: arrival until the client sees something, the first token when
answers are streamed, else the whole answer. Latency: arrival until the whole answer.
Inter-token latency: of a request, (last token - first token) / (tokens - 1); of the
server, the time from each token to the next. Fill ratio: sequences in the batch over
places in it, weighted by time, while a worker works. Padding waste: padded positions
over all positions computed. Goodput: requests a second whose first text came within
the target. No percentile is given from fewer samples than PERCENTILE_FLOOR asks for.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.request import PERCENTILE_FLOOR
from batchgauge.simulate.arrivals import CLASS_NAMES, Arrivals
from batchgauge.simulate.events import simulate
from batchgauge.simulate.server import (
    IN_BATCH,
    JOINED,
    PADDED,
    POSITIONS,
    ROWS,
    STALL_S,
    STEP_S,
    Server,
    SimulatedRun,
)
from batchgauge.simulate.steps import StepTime
from batchgauge.statistics import percentile
from batchgauge.text import figures, percent

Floats = npt.NDArray[np.float64]
SHOWN = (50, 90, 99)  # percentiles


def first_text_s(run: SimulatedRun, *, streaming: bool) -> Floats:
    """Seconds [N] from arrival until the client sees the first text."""
    return (run.first_s if streaming else run.returned_s) - run.arrivals.times_s


def _percentiles(name: str, seconds: Floats) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds, each by its column; NaN where there are too few."""
    return {f"p{q}_{name}_ms": 1e3 * percentile(seconds, q) for q in SHOWN}


def summarise(run: SimulatedRun, *, target_s: float) -> dict[str, float]:
    """One number a metric, without streaming; units stand in the names.

    Raises UserError for a target of 0 or less.
    """
    if not target_s > 0.0:
        raise UserError(f"The latency target is {target_s * 1e3:g} ms; expected more than 0.")
    arrivals, steps = run.arrivals, run.steps
    wait = first_text_s(run, streaming=False)
    span = float(run.returned_s.max() - arrivals.times_s[0])
    busy = steps[:, STEP_S]
    positions = steps[:, POSITIONS].sum() + steps[:, ROWS].sum()
    tokens = float(arrivals.generated.sum())
    in_time = float((wait <= target_s).mean())
    served = len(arrivals) / span
    return {
        "requests_per_s": served,
        "throughput_tokens_per_s": tokens / span,
        "in_time_share": in_time,
        "goodput_requests_per_s": in_time * served,
        "mean_first_text_ms": 1e3 * float(wait.mean()),
        **_percentiles("first_text", wait),
        "mean_latency_ms": 1e3 * float(wait.mean()),
        **_percentiles("latency", wait),
        **{f"p{q}_inter_token_ms": v for q, v in inter_token_ms(run).items()},
        "fill_ratio": float((steps[:, IN_BATCH] * busy).sum() / busy.sum()) / run.server.max_batch,
        "padding_waste": float(steps[:, PADDED].sum() / positions),
        "busy_share": float(busy.sum()) / (span * run.server.fleet.workers),
        "retries_per_request": float(run.retries.mean()),
    }


def inter_token_ms(run: SimulatedRun) -> dict[int, float]:
    """Percentiles over all gaps between one token and the next of the same sequence.

    Rows that decoded before wait for the prefills in between, rows that just joined do
    not. The gap of a sequence that was thrown out and begun again is not among them.
    """
    decode = run.steps[run.steps[:, ROWS] > 0.0]
    gaps = np.concatenate([decode[:, STEP_S] + decode[:, STALL_S], decode[:, STEP_S]])
    counts = np.concatenate([decode[:, ROWS] - decode[:, JOINED], decode[:, JOINED]])
    order = np.argsort(gaps)
    reached = np.cumsum(counts[order])  # tokens with a gap up to this one
    total = float(reached[-1]) if reached.size else 0.0
    return {
        q: 1e3 * float(gaps[order][np.searchsorted(reached, q / 100 * total)])
        if total >= PERCENTILE_FLOOR[q]
        else math.nan
        for q in SHOWN
    }


def by_class(run: SimulatedRun, *, target_s: float) -> pd.DataFrame:
    """One row a class of requests: how many, their percentiles, and the share served in time."""
    wait = first_text_s(run, streaming=False)
    gaps = run.arrivals.generated - 1
    own = np.divide(
        run.done_s - run.first_s, gaps, out=np.full(len(gaps), math.nan), where=gaps > 0
    )
    rows = []
    for rank in np.unique(run.arrivals.rank).tolist():
        chosen = run.arrivals.rank == rank
        name = CLASS_NAMES[rank] if rank < len(CLASS_NAMES) else f"class {rank}"
        rows.append(
            {
                "class": name,
                "requests": int(chosen.sum()),
                "in_time_share": float((wait[chosen] <= target_s).mean()),
                **_percentiles("first_text", wait[chosen]),
                **_percentiles("latency", wait[chosen]),
                **_percentiles("inter_token", own[chosen & ~np.isnan(own)]),
            }
        )
    return pd.DataFrame(rows)


def capacity(arrivals: Arrivals, step_s: StepTime, server: Server) -> float:
    """Requests per second that the server manages when work never runs out.

    Simulated with all requests waiting from the beginning; what is left when the queue
    is empty does not count.
    """
    run = simulate(arrivals.at_once(), step_s, server)
    last_start = float(run.start_s.max())
    done = run.returned_s <= last_start
    if not done.any() or last_start <= 0.0:  # everything fitted in the first batches
        return len(arrivals) / float(run.returned_s.max())
    return float(done.sum()) / last_start


def stability(rate: float, limit: float, name: str = "the server") -> str:
    """One sentence: whether the queue stays finite at `rate` when `limit` is the capacity."""
    load = rate / limit
    if load < 1.0:
        return (
            f"Stable: {figures(rate)} requests/s arrive and {name} can serve {figures(limit)} "
            f"(load {percent(load)})."
        )
    return (
        f"Unstable: {figures(rate)} requests/s arrive but {name} can serve only "
        f"{figures(limit)}; the queue grows by {figures(rate - limit)} requests every second, so "
        "waiting times depend on how long one looks and no percentile describes them."
    )


def rate_text(rate: float) -> str:
    """A rate with two digits, or all of them from 100 on: `3.7`, `0.012`, `1,240`."""
    return figures(rate, 2)
