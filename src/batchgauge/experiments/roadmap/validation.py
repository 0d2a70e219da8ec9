"""Is the simulator right? The same arrivals on the real engine and in the simulation.

Compared are times to the answer and to the first token under static and dynamic
batching; continuous batching has no real counterpart here yet, so its simulation rests
on the same step times without a check of its own. The machine's speed, which other load on
it changes, is measured by a control batch before every batch and whenever the server is
idle; the simulator's step times follow it. Nothing else of a replay reaches the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from batchgauge.experiments.roadmap.replay import Pace, batch_times, compare, replay
from batchgauge.experiments.roadmap.study import LONGEST, Case
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import capacity
from batchgauge.simulate.server import Host, Server
from batchgauge.sizing.drift import FEWEST, check_drift
from batchgauge.text import percent

SHORTER = 0.5  # lengths against the case's own, so that enough requests fit in the time
POLICIES: tuple[Literal["static", "dynamic"], ...] = ("static", "dynamic")


@dataclass(frozen=True)
class Validation:
    """Real runs against simulated ones.

    figures     one row a policy and figure (`replay.compare`)
    requests    one row a policy and request: seconds until the answer, real and simulated
    batches     one row a batch that really ran (`replay.batch_times`)
    """

    figures: pd.DataFrame
    requests: pd.DataFrame
    batches: pd.DataFrame

    @property
    def worst(self) -> float:
        """Largest relative error of a mean time to the answer."""
        return max(
            abs(float(row["simulated_over_real"]) - 1.0)
            for row in self.figures.to_dict("records")
            if (row["figure"], row["time_to"]) == ("mean", "answer")
        )

    def sentence(self) -> str:
        """Which bounds were met, and where the error lies."""
        rows = self.figures.to_dict("records")
        met = sum(row["met"] for row in rows)
        far = max(rows, key=lambda row: abs(row["simulated_over_real"] - 1.0) / row["bound"])
        off = far["simulated_over_real"] - 1.0
        return (
            f"{met} of {len(rows)} figures lie within their bounds; the worst against its bound "
            f"is the {far['figure']} time to the {far['time_to']} under {far['policy']} batching "
            f"({percent(off, 1, sign=True)}, bound ±{percent(far['bound'])}). "
            f"{self._over_batches()}"
        )

    def _over_batches(self) -> str:
        """How far step times were off where batches really ran, if enough of them did."""
        if len(self.batches) < FEWEST:
            return f"{len(self.batches)} batches ran: not enough to judge the step times by."
        drift = check_drift(
            self.batches["predicted_ms"].tolist(), self.batches["measured_ms"].tolist()
        )
        return (
            f"Over the {len(self.batches)} batches that really ran, time was {drift.ratio:.3f} × "
            f"what the step times say (95 % interval {drift.low:.3f} to {drift.high:.3f})."
        )


def validate(case: Case, *, requests: int, load: float) -> Validation:
    """Replay the same arrivals on the real engine and in the simulator, static and dynamic.

    They come at `load` of the capacity; near 1, a small error of t(b) grows without bound.
    Raises UserError as `replay` does.
    """
    figures, rows, batches = [], [], []
    with (
        tqdm(total=requests * len(POLICIES), desc="requests, in real time") as bar,
        threadpool_limits(case.context.threads, user_api="blas"),
    ):
        for policy in POLICIES:
            control_s = case.probe.reference_ms / 1e3
            server = Server(
                policy, case.today.server.max_batch, max_wait_s=0.25, host=Host(batch_s=control_s)
            )
            arrivals = case.traffic(1.0, case.seed).first(requests).shortened(SHORTER, LONGEST)
            arrivals = arrivals.at_rate(load * capacity(arrivals, case.table, server))
            control = Pace(case.probe.pace, control_s)
            real = replay(
                case.engine, arrivals, server, seed=case.seed, progress=bar.update, pace=control
            )
            pace = control.curve()
            run = simulate(arrivals, case.table, server, pace=pace)
            figures.append(compare(policy, real, run))
            begin = arrivals.times_s
            columns = {
                "policy": policy,
                "arrival_s": begin,
                "real_answer_ms": 1e3 * (real["returned_s"] - begin),
                "simulated_answer_ms": 1e3 * (run.returned_s - begin),
                "pace": [pace(t) for t in begin],
            }
            rows.append(pd.DataFrame(columns))
            batches.append(batch_times(real, arrivals, case.table, pace).assign(policy=policy))
    joined = (pd.concat(frames, ignore_index=True) for frames in (figures, rows, batches))
    return Validation(*joined)
