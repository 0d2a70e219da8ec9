"""Is the simulator right? The same arrivals on the real engine and in the simulation.

Compared are times to the answer and to the first token under static and dynamic
batching, at the loads where the simulation is used, over several seeds; a policy that is not
in `POLICIES` has no real counterpart here, and what is simulated of it is "not validated".
The simulation is scored as it is. The machine's speed, which other load on it changes, is
measured by a control batch before every batch and whenever the server is idle; a second
simulation, whose step times follow it, stands beside. Nothing else of a replay reaches either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from batchgauge.experiments.roadmap.replay import Pace, batch_times, compare, judged, replay
from batchgauge.experiments.roadmap.study import Case
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import capacity
from batchgauge.simulate.server import Host, Server
from batchgauge.sizing.drift import FEWEST, check_drift
from batchgauge.text import counted, percent, ratio

POLICIES: tuple[Literal["static", "dynamic"], ...] = ("static", "dynamic")


@dataclass(frozen=True)
class Validation:
    """Real runs against simulated ones.

    figures     one row a policy, load and figure (`replay.judged`)
    requests    one row a policy, load, seed and request: time to the answer, real and simulated
    batches     one row a batch that really ran (`replay.batch_times`)
    """

    figures: pd.DataFrame
    requests: pd.DataFrame
    batches: pd.DataFrame

    @property
    def worst(self) -> tuple[float, float | None, float | None]:
        """Largest relative error of a mean time to the answer, with its interval's ends."""
        rows = [
            row
            for row in self.figures.to_dict("records")
            if (row["figure"], row["time_to"]) == ("mean", "answer")
        ]
        far = max(rows, key=lambda row: abs(row["simulated_over_real"] - 1.0))
        off = [far[name] - 1.0 for name in ("simulated_over_real", "low", "high")]
        if np.isnan(off[1:]).any():
            return abs(off[0]), None, None
        least = 0.0 if off[1] <= 0.0 <= off[2] else min(abs(off[1]), abs(off[2]))
        return abs(off[0]), least, max(abs(off[1]), abs(off[2]))

    def sentence(self) -> str:
        """Which bounds were met, and where the error lies."""
        rows = self.figures.to_dict("records")
        verdicts = self.figures["verdict"].value_counts()
        counts = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())
        far = max(rows, key=lambda row: abs(row["simulated_over_real"] - 1.0) / row["bound"])
        off = far["simulated_over_real"] - 1.0
        ends = [percent(far[end] - 1.0, 1, sign=True) for end in ("low", "high")]
        span = f" [{', '.join(ends)}]" * (far["low"] == far["low"])
        return (
            f"Of {len(rows)} figures against their bounds: {counts}. The worst is the "
            f"{far['figure']} time to the {far['time_to']} under {far['policy']} batching at "
            f"{percent(far['load'])} of capacity ({percent(off, 1, sign=True)}{span}, bound "
            f"±{percent(far['bound'])}; with the control followed "
            f"{percent(far['corrected_over_real'] - 1.0, 1, sign=True)}), over {far['seeds']} "
            f"seeds. {self._over_batches()}"
        )

    def _over_batches(self) -> str:
        """How far step times were off where batches really ran, if enough of them did."""
        told = self.batches[(self.batches[["predicted_ms", "measured_ms"]] > 0.0).all(axis=1)]
        if len(told) < FEWEST:
            return f"{counted(len(told), 'batch', 'batches')} ran: not enough to judge steps by."
        drift = check_drift(told["predicted_ms"].tolist(), told["measured_ms"].tolist())
        return (
            f"Over the {len(told)} batches that really ran, time was "
            f"{ratio(drift.ratio, drift.low, drift.high)} what the step times say."
        )


def validate(case: Case, *, requests: int, seeds: int, loads: Sequence[float]) -> Validation:
    """Replay the same arrivals on the real engine and in the simulator, static and dynamic.

    So many requests of each seed come at each of `loads`, shares of the capacity. Raises
    UserError as `replay` does.
    """
    figures, rows, batches = [], [], []
    runs = list(product(POLICIES, loads, range(case.seed, case.seed + seeds)))
    with (
        tqdm(total=requests * len(runs), desc="requests, in real time") as bar,
        threadpool_limits(case.context.threads, user_api="blas"),
    ):
        for policy, load, seed in runs:
            control_s = case.probe.few.reference_ms / 1e3
            server = Server(
                policy, case.today.server.max_batch, max_wait_s=0.25, host=Host(batch_s=control_s)
            )
            arrivals = case.traffic(1.0, seed).window(0, requests)
            arrivals = arrivals.at_rate(load * capacity(arrivals, case.table, server))
            control = Pace(case.probe.few.pace, control_s)
            real = replay(
                case.engine, arrivals, server, seed=seed, progress=bar.update, pace=control
            )
            arrivals = replace(arrivals, generated=real["tokens"].to_numpy())  # that came
            pace, place = control.curve(), {"policy": policy, "load": load, "seed": seed}
            run = simulate(arrivals, case.table, server)
            followed = simulate(arrivals, case.table, server, pace=pace)
            figures.append(compare(policy, real, run, followed).assign(load=load, seed=seed))
            begin = arrivals.times_s
            columns = {
                **place,
                "arrival_s": begin,
                "real_answer_ms": 1e3 * (real["returned_s"] - begin),
                "simulated_answer_ms": 1e3 * (run.returned_s - begin),
                "pace": [pace(t) for t in begin],
            }
            rows.append(pd.DataFrame(columns))
            batches.append(batch_times(real, arrivals, case.table, pace).assign(**place))
    found, every, ran = (pd.concat(f, ignore_index=True) for f in (figures, rows, batches))
    return Validation(judged(found), every, ran)
