"""A real engine fed by arrivals in real time, and the simulation of the same compared with it.

The driver sleeps until requests arrive, forms batches by the same rules as the
simulated server (static or dynamic, any queue order, one worker) and calls
`infer_batch`. Prompts are random ids of exact lengths and end tokens are ignored, so
that the engine does exactly the work that was simulated. A small control batch may run
before every batch and while nothing is due: its time says how fast the machine is then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.experiments.traffic import MEAN_BOUND, P90_BOUND
from batchgauge.protocols import Engine
from batchgauge.request import (
    PERCENTILE_FLOOR,
    BatchItem,
    InferenceBatchRequest,
    InferenceBatchResponse,
)
from batchgauge.simulate.arrivals import Arrivals
from batchgauge.simulate.events import simulate
from batchgauge.simulate.server import Server, SimulatedRun, queue_order
from batchgauge.simulate.steps import StepTime
from batchgauge.statistics import FEWEST, location
from batchgauge.workload import exact_requests


@dataclass
class Pace:
    """How slow the machine is at each time, by a control that is run between other work.

    `control` gives its time over that at the reference speed and takes about `lasts_s`.
    Between the controls the pace is interpolated, each taken as the median of itself and
    its two neighbours; before the first one and without any, it is the nearest, or 1.
    """

    control: Callable[[], float]
    lasts_s: float
    times_s: list[float] = field(default_factory=list)
    paces: list[float] = field(default_factory=list)

    def measure(self, begin: float) -> None:
        """Run the control once; `begin` is when the clock of `times_s` stood at 0."""
        start = time.perf_counter()
        self.paces.append(self.control())
        self.times_s.append((start + time.perf_counter()) / 2 - begin)

    def curve(self) -> Callable[[float], float]:
        """The pace at a time in seconds."""
        if not self.paces:
            return lambda _: 1.0
        padded = np.array([self.paces[0], *self.paces, self.paces[-1]])  # [controls + 2]
        middle = np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0)  # [controls]
        times = np.array(self.times_s)
        return lambda now: float(np.interp(now, times, middle))


def replay(
    engine: Engine,
    arrivals: Arrivals,
    server: Server,
    *,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    pace: Pace | None = None,
) -> pd.DataFrame:
    """Serve `arrivals` with a real engine in real time; one row a request.

    Columns: request, batch, arrival_s, start_s (taken from the queue), called_s, first_s
    (NaN where the engine does not say), returned_s, all seconds since the beginning, and tokens
    (as many as were asked for where nobody counted, 1 where none came). `progress` gets the
    number of requests that each batch finished; `pace` is measured before every batch, which
    delays it (the server has `batch_s` then), and while the next one is far enough away. Raises
    UserError for a policy that `infer_batch` cannot follow, and when the engine answers with an
    error.
    """
    if server.batching == "continuous" or server.fleet.workers != 1:
        raise UserError("A replay needs static or dynamic batching and one worker: infer_batch.")
    requests = exact_requests(arrivals.context.tolist(), arrivals.generated.tolist(), seed=seed)
    place = np.argsort(queue_order(arrivals, server))
    times = arrivals.times_s.tolist()
    waiting: list[int] = []
    rows: list[tuple[float, ...]] = []
    arrived = batches = 0
    begin = time.perf_counter()
    while len(rows) < len(times):
        # One time for both, or a pause between forms half a batch.
        now = time.perf_counter() - begin
        while arrived < len(times) and times[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        act = _next_batch_s(times, arrived, waiting, server)
        if act > now:
            if pace and act - now > 1.5 * pace.lasts_s:
                pace.measure(begin)
            else:
                time.sleep(max(0.0, begin + act - time.perf_counter()))
            continue
        waiting.sort(key=place.__getitem__)
        chosen, waiting = waiting[: server.max_batch], waiting[server.max_batch :]
        start = time.perf_counter() - begin
        if pace:
            pace.measure(begin)
        called = time.perf_counter() - begin
        answers = _answers(engine, [requests[i] for i in chosen])
        end = time.perf_counter() - begin
        rows += [
            (i, batches, times[i], start, called, called + a.ttft_ms / 1e3, end,
             requests[i].data.max_tokens if a.tokens_generated is None
             else max(1, a.tokens_generated))
            for i, a in zip(chosen, answers, strict=True)
        ]  # fmt: skip
        batches += 1
        if progress:
            progress(len(chosen))
    columns = ["request", "batch", "arrival_s", "start_s", "called_s", "first_s", "returned_s"]
    return pd.DataFrame(rows, columns=[*columns, "tokens"]).sort_values(
        "request", ignore_index=True
    )


def _next_batch_s(
    times: Sequence[float], arrived: int, waiting: Sequence[int], server: Server
) -> float:
    """When the next batch begins: full, due, or (static) with the last request of all."""
    missing = server.max_batch - len(waiting)
    full = times[min(arrived + missing, len(times)) - 1] if missing > 0 else 0.0
    if server.batching == "static":
        return full
    is_last = arrived + missing > len(times)
    due = times[min(waiting, default=arrived)] + server.max_wait_s
    return due if is_last else min(full, due)


def _answers(
    engine: Engine, items: Sequence[BatchItem[InferenceBatchRequest]]
) -> list[InferenceBatchResponse]:
    answers = []
    for response in engine.infer_batch(items).responses:
        if response.data is None:
            raise UserError(f"The engine failed on a replayed request: {response.error}")
        answers.append(response.data)
    return answers


def compare(
    policy: str, real: pd.DataFrame, run: SimulatedRun, corrected: SimulatedRun | None = None
) -> pd.DataFrame:
    """Real against simulated: mean and p90 of the time to the answer and to the first token.

    One row a figure: real, simulated, and their ratio; beside it that of a simulation whose
    steps followed the control (`corrected`). p90 is left out below its percentile floor, the
    first token where the engine does not say it.
    """
    arrival, corrected = run.arrivals.times_s, corrected or run
    pairs = {
        "answer": ("returned_s", run.returned_s, corrected.returned_s),
        "first token": ("first_s", run.first_s, corrected.first_s),
    }
    rows = []
    for name, (column, *both) in pairs.items():
        measured, simulated, followed = (
            times - arrival for times in (real[column].to_numpy(), *both)
        )
        if np.isnan(measured).any():
            continue
        figures = [("mean", np.mean)]
        if measured.size >= PERCENTILE_FLOOR[90]:
            figures.append(("p90", partial(np.percentile, q=90)))
        for figure, of in figures:
            real_s, simulated_s, followed_s = (
                float(of(x)) for x in (measured, simulated, followed)
            )
            ratios = simulated_s / real_s, followed_s / real_s
            rows.append((policy, name, figure, 1e3 * real_s, 1e3 * simulated_s, *ratios))
    columns = ["policy", "time_to", "figure", "real_ms", "simulated_ms"]
    return pd.DataFrame(rows, columns=[*columns, "simulated_over_real", "corrected_over_real"])


def judged(runs: pd.DataFrame) -> pd.DataFrame:
    """Figures of several seeds, by policy and load, with 95 % intervals over seeds and verdicts.

    "met" where the whole interval lies within the bound, "missed" where none of it does,
    "undecided" between, "too few" below four seeds. What is scored is the simulation as it is;
    the one that followed the control stands beside it.
    """
    rows = []
    for key, some in runs.groupby(["policy", "load", "time_to", "figure"], sort=False):
        found = location(np.log(some["simulated_over_real"])).exp()
        beside = location(np.log(some["corrected_over_real"])).exp()
        bound = MEAN_BOUND if key[3] == "mean" else P90_BOUND
        inside = [1 - bound <= end <= 1 + bound for end in (found.low, found.high)]
        beyond = found.low > 1 + bound or found.high < 1 - bound
        verdict = "met" if all(inside) else "missed" if beyond else "undecided"
        verdict = verdict if len(some) >= FEWEST else "too few"
        low, high = (v if 0 < v < 100 else np.nan for v in (found.low, found.high))
        rows.append(
            (*key, some["real_ms"].mean(), some["simulated_ms"].mean(), found.value, low, high,
             beside.value, bound, verdict, len(some))
        )  # fmt: skip
    columns = ["policy", "load", "time_to", "figure", "real_ms", "simulated_ms"]
    ratios = ["simulated_over_real", "low", "high", "corrected_over_real"]
    return pd.DataFrame(rows, columns=[*columns, *ratios, "bound", "verdict", "seeds"])


def batch_times(
    real: pd.DataFrame,
    arrivals: Arrivals,
    step_s: StepTime,
    pace: Callable[[float], float] = lambda _: 1.0,
) -> pd.DataFrame:
    """The batches that really ran: their measured time, and the step times' for the same batch.

    One row a batch: size, prompt tokens, steps, pace (at its beginning), measured_ms,
    predicted_ms (at the pace of the time). What is wrong here is wrong in t(b, lengths), what
    is wrong only in `compare` is wrong in the queue.
    """
    rows = []
    for _, batch in real.groupby("batch"):
        members = batch["request"].to_numpy(np.int64)
        together = arrivals.at_once().picked(members)
        start = float(batch["called_s"].iloc[0])
        run = simulate(
            together, step_s, Server("static", members.size), pace=partial(_later, pace, start)
        )
        measured = float(batch["returned_s"].iloc[0]) - start
        rows.append(
            {
                "size": members.size,
                "prompt_tokens": int(together.context.sum()),
                "steps": int(together.generated.max()),
                "pace": pace(start),
                "measured_ms": 1e3 * measured,
                "predicted_ms": 1e3 * float(run.returned_s.max()),
            }
        )
    return pd.DataFrame(rows)


def _later(pace: Callable[[float], float], start: float, now: float) -> float:
    return pace(start + now)
