"""A real engine fed by arrivals in real time, and the simulator's word held against it.

The driver sleeps until requests arrive, forms batches by the same rules as the
simulated server (static or dynamic, any queue order, one worker) and calls
`infer_batch`. Prompts are random ids of exact lengths and end tokens are ignored, so
that the engine does exactly the work that was simulated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.protocols import Engine
from batchgauge.request import (
    PERCENTILE_FLOOR,
    BatchItem,
    InferenceBatchRequest,
    InferenceBatchResponse,
)
from batchgauge.simulate.arrivals import Arrivals
from batchgauge.simulate.events import simulate
from batchgauge.simulate.server import Run, Server, queue_order
from batchgauge.simulate.steps import StepTime

MEAN_BOUND, P90_BOUND = 0.10, 0.15  # the validation's own goals, relative


def to_requests(
    arrivals: Arrivals, *, vocab_size: int = 256, seed: int = 0
) -> list[BatchItem[InferenceBatchRequest]]:
    """Requests of exactly the arrivals' lengths: random prompt ids, end tokens ignored."""
    rng = np.random.default_rng(seed)
    return [
        BatchItem(
            str(i),
            InferenceBatchRequest(
                tuple(rng.integers(0, vocab_size, size=context).tolist()),
                max_tokens=generated,
                ignore_eos=True,
            ),
        )
        for i, (context, generated) in enumerate(
            zip(arrivals.context.tolist(), arrivals.generated.tolist(), strict=True)
        )
    ]


def replay(
    engine: Engine,
    arrivals: Arrivals,
    server: Server,
    *,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> pd.DataFrame:
    """Serve `arrivals` with a real engine in real time; one row a request.

    Columns: request, batch, arrival_s, start_s, first_s (NaN where the engine does not
    tell), returned_s, tokens, all seconds since the beginning. `progress` is told how
    many requests each batch finished. Raises UserError for a policy that `infer_batch`
    cannot follow, and when the engine answers with an error or the wrong length.
    """
    if server.batching == "continuous" or server.workers != 1:
        raise UserError("A replay needs static or dynamic batching and one worker: infer_batch.")
    requests = to_requests(arrivals, seed=seed)
    place = np.argsort(queue_order(arrivals, server))
    times = arrivals.times_s.tolist()
    waiting: list[int] = []
    rows: list[dict[str, float]] = []
    arrived = batches = 0
    begin = time.perf_counter()
    while len(rows) < len(times):
        now = time.perf_counter() - begin
        while arrived < len(times) and times[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        last = arrived == len(times)
        deadline = min(waiting, default=-1)
        due = times[deadline] + server.max_wait_s if waiting else np.inf
        full = len(waiting) >= server.max_batch
        if not (full or (waiting and (last if server.batching == "static" else now >= due))):
            upcoming = np.inf if last else times[arrived]
            wake = upcoming if server.batching == "static" else min(upcoming, due)
            time.sleep(max(0.0, begin + wake - time.perf_counter()))
            continue
        waiting.sort(key=place.__getitem__)
        chosen, waiting = waiting[: server.max_batch], waiting[server.max_batch :]
        start = time.perf_counter() - begin
        answers = _answers(engine, [requests[i] for i in chosen])
        end = time.perf_counter() - begin
        for i, answer in zip(chosen, answers, strict=True):
            rows.append(
                {
                    "request": i,
                    "batch": batches,
                    "arrival_s": times[i],
                    "start_s": start,
                    "first_s": start + answer.ttft_ms / 1e3,
                    "returned_s": end,
                    "tokens": answer.tokens_generated,
                }
            )
        batches += 1
        if progress:
            progress(len(chosen))
    return pd.DataFrame(rows).sort_values("request", ignore_index=True)


def _answers(
    engine: Engine, items: Sequence[BatchItem[InferenceBatchRequest]]
) -> list[InferenceBatchResponse]:
    answers = []
    for item, response in zip(items, engine.infer_batch(items).responses, strict=True):
        if response.data is None:
            raise UserError(f"The engine failed on a replayed request: {response.error}")
        if response.data.tokens_generated != item.data.max_tokens:
            raise UserError(
                f"The engine generated {response.data.tokens_generated} tokens instead of "
                f"{item.data.max_tokens}; a replay needs an engine that obeys ignore_eos."
            )
        answers.append(response.data)
    return answers


def compare(policy: str, real: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Real against simulated: mean and p90 of the time to the answer and to the first token.

    One row a figure: real, simulated, their ratio, the bound, whether it was met. p90 is
    left out below its percentile floor, the first token where the engine does not tell it.
    """
    arrival = run.arrivals.times_s
    pairs = {
        "answer": (real["returned_s"].to_numpy() - arrival, run.returned_s - arrival),
        "first token": (real["first_s"].to_numpy() - arrival, run.first_s - arrival),
    }
    rows = []
    for name, (measured, simulated) in pairs.items():
        if np.isnan(measured).any():
            continue
        figures = [("mean", MEAN_BOUND, measured.mean(), simulated.mean())]
        if measured.size >= PERCENTILE_FLOOR[90]:
            figures.append(("p90", P90_BOUND, *np.percentile([measured, simulated], 90, axis=1)))
        for figure, bound, real_s, simulated_s in figures:
            ratio = float(simulated_s / real_s)
            rows.append(
                {
                    "policy": policy,
                    "time_to": name,
                    "figure": figure,
                    "real_ms": 1e3 * float(real_s),
                    "simulated_ms": 1e3 * float(simulated_s),
                    "simulated_over_real": ratio,
                    "bound": bound,
                    "met": abs(ratio - 1.0) <= bound,
                }
            )
    return pd.DataFrame(rows)


def batch_times(real: pd.DataFrame, arrivals: Arrivals, step_s: StepTime) -> pd.DataFrame:
    """The batches that really ran: their measured time, and the step times' for the same batch.

    One row a batch: size, prompt tokens, steps, measured_ms, predicted_ms. What is wrong
    here is wrong in t(b, lengths), what is wrong only in `compare` is wrong in the queue.
    """
    rows = []
    for _, batch in real.groupby("batch"):
        members = batch["request"].to_numpy(np.int64)
        together = Arrivals(
            np.zeros(members.size),
            arrivals.context[members],
            arrivals.generated[members],
            arrivals.rank[members],
        )
        run = simulate(together, step_s, Server("static", members.size))
        measured = float((batch["returned_s"] - batch["start_s"]).iloc[0])
        rows.append(
            {
                "size": members.size,
                "prompt_tokens": int(together.context.sum()),
                "steps": int(together.generated.max()),
                "measured_ms": 1e3 * measured,
                "predicted_ms": 1e3 * float(run.returned_s.max()),
            }
        )
    return pd.DataFrame(rows)
