"""The forecast, written first; the same runs live; and which figures of the forecast held.

A figure holds when the 95 % interval of forecast ÷ live lies within its bound, fails when it
lies outside, and is undecided otherwise. Runs of other seeds are the observations: intervals
are the jackknife's, so that a percentile can be taken over the requests of all seeds together.
Ratios of percentiles are by Harrell and Davis (Biometrika 1982), a weighted mean of all order
statistics: a jackknife of single ones is far too wide.

A machine's speed changes within minutes, so the runs of each seed have a forecast of their own,
written before them on a rehearsal of that moment. Left out: corrections for what comes later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product

import numpy as np
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.experiments.serving.live import serve
from batchgauge.experiments.serving.study import ServingCase, paced, rehearse, scheduler_of
from batchgauge.request import PERCENTILE_FLOOR
from batchgauge.simulate.events import simulate
from batchgauge.statistics import Interval, jackknife, percentile

_Take = Callable[[pd.Series], float]


def _mean(times: pd.Series) -> float:
    return float(times.mean())


def _smooth_p90(times: pd.Series) -> float:
    from scipy.stats.mstats import hdquantiles  # all of SciPy's statistics: a second

    return float(hdquantiles(times.to_numpy(), [0.9])[0])


KIND = ["policy", "load", "shape"]
# figure, its bound, what is stated, and what the ratio is made of
FIGURES: tuple[tuple[str, float, _Take, _Take], ...] = (
    ("mean", 0.10, _mean, _mean),
    ("p90", 0.15, lambda times: float(np.percentile(times, 90)), _smooth_p90),
)
TIMES = {"first token": "first_s", "whole answer": "returned_s"}


@dataclass(frozen=True, slots=True)
class RunKind:
    """What is served: a policy, how much comes, and how evenly."""

    policy: str
    load: float
    shape: str = "Poisson"


def kinds(case: ServingCase, loads: Sequence[float], bursty_load: float) -> list[RunKind]:
    """Every policy at every load, and with bursts at one. Raises UserError for a load below 0.

    A smoke run has the highest even load only.
    """
    if not loads or not all(0.0 < load < math.inf for load in (*loads, bursty_load)):
        raise UserError(f"The loads are {[*loads, bursty_load]}; expected shares above 0.")
    even = case.context.budget.choose(smoke=[max(loads)], default=loads, thorough=loads)
    return [
        RunKind(policy, load, shape)
        for load, shape in [*((load, "Poisson") for load in even), (bursty_load, "bursty")]
        for policy in case.servers
    ]


def forecast(case: ServingCase, what: Iterable[RunKind], seeds: Iterable[int]) -> pd.DataFrame:
    """Simulated moments of every request of every run, and when this was written.

    One row a request: policy, load, shape, seed, request, arrival_s, first_s, done_s,
    returned_s (seconds from the run's beginning), written_at (UTC).
    """
    written = datetime.now(UTC).isoformat(timespec="seconds")
    frames = []
    for kind, seed in product(what, seeds):
        arrivals = case.arrivals(kind.load, seed, kind.shape)
        run = simulate(arrivals, case.steps.table, case.servers[kind.policy])
        moments = {
            "request": range(len(arrivals)), "arrival_s": arrivals.times_s,
            "first_s": run.first_s, "done_s": run.done_s, "returned_s": run.returned_s,
        }  # fmt: skip
        frames.append(_labelled(pd.DataFrame(moments), kind, seed))
    return pd.concat(frames, ignore_index=True).assign(written_at=written)


def measure(
    case: ServingCase, what: Sequence[RunKind], progress: Callable[[int], object] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same runs live: rows as in `forecast`, and one row a step of each run.

    Policies take turns seed by seed, so that a slow minute of the machine meets all of them.
    Before the runs of a seed their forecast is written anew, on a rehearsal of then: columns
    `forecast_first_s` and so on, and `written_at`. `followed_first_s` and so on are simulated
    after the run, at the speed that its steps had.
    """
    requests, steps = [], []
    for seed in case.seeds:
        now = rehearse(case, seed)
        told = forecast(now, what, [seed])
        live = []
        for kind in what:
            arrivals = case.arrivals(kind.load, seed, kind.shape)
            scheduler = scheduler_of(case, kind.policy)
            run = serve(scheduler, arrivals, seed=seed, progress=progress)
            server = now.servers[kind.policy]
            table = paced(now.steps.table, arrivals, {server: run.steps})
            again = simulate(arrivals, table, server)
            followed = {f"followed_{name}": getattr(again, name) for name in TIMES.values()}
            live.append(_labelled(run.requests.assign(**followed), kind, seed))
            steps.append(_labelled(run.steps, kind, seed))
        columns = {f"forecast_{name}": told[name] for name in TIMES.values()}
        requests.append(
            pd.concat(live, ignore_index=True).assign(**columns, written_at=told["written_at"])
        )
    return pd.concat(requests, ignore_index=True), pd.concat(steps, ignore_index=True)


def simulated(live: pd.DataFrame, which: str) -> pd.DataFrame:
    """Simulated moments, `forecast` or `followed`, in rows of `measure`, as in `forecast`'s."""
    return live.assign(**{name: live[f"{which}_{name}"] for name in TIMES.values()})


def _labelled(frame: pd.DataFrame, kind: RunKind, seed: int) -> pd.DataFrame:
    """With what was run; moments to the microsecond."""
    return frame.round(6).assign(policy=kind.policy, load=kind.load, shape=kind.shape, seed=seed)


def compare(written: pd.DataFrame, live: pd.DataFrame) -> pd.DataFrame:
    """Forecast against live: one row a policy, load, shape, time and figure.

    A percentile needs as many requests as its floor asks for, all seeds together.
    """
    rows = []
    for kind, measured in live.groupby(KIND, sort=False):
        said = written.set_index(KIND).loc[[kind]]
        for time_to, column in TIMES.items():
            real, simulated = (
                (f[column] - f["arrival_s"]).set_axis(f["seed"].to_numpy())
                for f in (measured, said)
            )
            for figure, bound, take, smooth in FIGURES:
                if figure == "p90" and len(real) < PERCENTILE_FLOOR[90]:
                    continue
                found = _over(simulated, real, smooth)
                rows.append(
                    (*kind, time_to, figure, 1e3 * take(simulated), 1e3 * take(real), found.value,
                     found.low, found.high, bound, verdict(found, bound),
                     measured["seed"].nunique(), len(real))
                )  # fmt: skip
    columns = ["time_to", "figure", "forecast_ms", "live_ms", "forecast_over_live", "low", "high"]
    return pd.DataFrame(rows, columns=[*KIND, *columns, "bound", "verdict", "seeds", "requests"])


def _over(one: pd.Series, other: pd.Series, take: _Take) -> Interval:
    """What `take` makes of one series by seed ÷ what it makes of the other, seeds left out."""

    def ratio(seeds: set[int]) -> float:
        above, below = (take(values[values.index.isin(seeds)]) for values in (one, other))
        return above / below

    return jackknife(sorted(set(other.index)), ratio)


def waits(live: pd.DataFrame) -> pd.DataFrame:
    """p50, p90 and p99 (ms) of each kind of run: first token, gap between tokens, whole answer.

    A gap is a request's mean; requests of one token have none. All seeds together; a percentile
    that no kind has requests enough for is left out.
    """
    rows = []
    for kind, runs in live.groupby(KIND, sort=False):
        gaps = (runs["done_s"] - runs["first_s"]) / (runs["tokens"] - 1).where(runs["tokens"] > 1)
        times = {
            "first_token": runs["first_s"] - runs["arrival_s"],
            "inter_token": gaps.dropna(),
            "answer": runs["returned_s"] - runs["arrival_s"],
        }
        rows.append(
            dict(zip(KIND, kind, strict=True)) | {"requests": len(runs)}
            | {
                f"p{q}_{name}_ms": 1e3 * percentile(values, q)
                for name, values in times.items()
                for q in (50, 90, 99)
            }
        )  # fmt: skip
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def verdict(ratio: Interval, bound: float) -> str:
    """`held`, `failed` or `undecided`: whether an interval lies within 1 ± bound."""
    if 1.0 - bound <= ratio.low and ratio.high <= 1.0 + bound:
        return "held"
    return "failed" if ratio.high < 1.0 - bound or ratio.low > 1.0 + bound else "undecided"


def goodput_gain(live: pd.DataFrame, load: float, target_s: float, over: str) -> pd.DataFrame:
    """Requests in time of each policy ÷ those of `over`, the same arrivals seed by seed.

    One row a policy: in_time_share, value, low, high, seeds.
    """
    rows = live[(live["load"] == load) & (live["shape"] == "Poisson")]
    good = rows.assign(good=rows["returned_s"] - rows["arrival_s"] <= target_s)
    shares = good.pivot_table(index="policy", columns="seed", values="good", sort=False).T
    least = 0.5 / rows["request"].nunique()  # none in time counts as half of one

    def mean(some: pd.Series) -> float:
        return max(float(some.to_numpy().mean()), least)

    found = []
    for policy in shares:
        gain = _over(shares[policy], shares[over], mean)
        share = shares[policy].mean()
        found.append((policy, share, gain.value, gain.low, gain.high, len(shares)))
    columns = ["policy", "in_time_share", "value", "low", "high", "seeds"]
    return pd.DataFrame(found, columns=columns)
