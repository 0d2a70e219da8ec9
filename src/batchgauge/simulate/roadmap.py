"""Which idea to build next: every idea simulated against today's server, and ranked.

An idea changes a set-up (server, step times, streaming, price); it is run on the same
arrivals as today's set-up, seed by seed, so that the ratio of the two is free of what
differs between streams. Gains are geometric means of those ratios with a 95 % t interval
over seeds. Everything here is simulated; how far to trust it is the validation's matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.simulate.arrivals import INTERACTIVE, Arrivals
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import first_text_s, rate_text
from batchgauge.simulate.server import Server
from batchgauge.simulate.steps import StepTime
from batchgauge.statistics import Interval, location, mean_ratio

PAYS = 1.05  # a gain counts when its whole interval lies above
IN_TIME = 0.9  # a rate is sustained when this share of its requests is served in time


@dataclass(frozen=True)
class Setup:
    """A server as it stands: policy, step times, whether answers are streamed, price."""

    server: Server
    step_s: StepTime
    streaming: bool = False
    price_per_hour: float = 0.0


@dataclass(frozen=True)
class Idea:
    """One candidate improvement: how it changes a set-up, and what building it costs.

    item        the heading it belongs to; name says the variant
    change      set-up before -> set-up after
    cost        what it takes, in words
    predicted   True when the step times are of hardware that was not measured
    hardware    True when it needs machines that are not there
    validated   False while nothing real was held against a simulation of this kind
    """

    item: str
    name: str
    change: Callable[[Setup], Setup]
    cost: str
    predicted: bool = False
    hardware: bool = False
    validated: bool = True


def outcome(setup: Setup, arrivals: Arrivals, target_s: float) -> dict[str, float]:
    """What one run is compared by: goodput, p90 until the first text, tokens and price.

    Goodput adds half a request, so that a ratio exists where nothing came in time.
    """
    run = simulate(arrivals, setup.step_s, setup.server)
    first = first_text_s(run, streaming=setup.streaming)
    span = float(run.returned_s.max() - arrivals.times_s[0])
    tokens = float(arrivals.generated.sum())
    hours = span / 3600 * setup.server.fleet.workers
    interactive = first[arrivals.rank == INTERACTIVE]
    return {
        "goodput_requests_per_s": (float((first <= target_s).sum()) + 0.5) / span,
        "in_time_share": float((first <= target_s).mean()),
        "p90_first_text_ms": 1e3 * float(np.percentile(first, 90)),
        "interactive_p90_first_text_ms": 1e3 * float(np.percentile(interactive, 90))
        if interactive.size
        else np.nan,
        "throughput_tokens_per_s": tokens / span,
        "price_per_million_tokens": setup.price_per_hour * hours / tokens * 1e6,
    }


def sweep(
    today: Setup,
    ideas: Sequence[Idea],
    traffic: Callable[[float, int], Arrivals],
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    target_s: float,
    progress: Callable[[Sequence[float]], Iterable[float]] = iter,
) -> pd.DataFrame:
    """Run today's set-up and every idea at each rate and seed: one row a run.

    `traffic` makes the arrivals of a rate and a seed; `progress` may wrap the rates in
    a progress bar.
    """
    setups = {"today": today} | {idea.name: idea.change(today) for idea in ideas}
    if len(setups) != len(ideas) + 1:
        raise UserError("Two ideas have the same name, or one is called 'today'.")
    rows = []
    for rate in progress(rates):
        for seed in seeds:
            arrivals = traffic(rate, seed)
            for name, setup in setups.items():
                numbers = outcome(setup, arrivals, target_s)
                rows.append({"idea": name, "arrival_rate": rate, "seed": seed, **numbers})
    return pd.DataFrame(rows)


def gain(runs: pd.DataFrame, idea: str, rate: float, metric: str, *, better: int = 1) -> Interval:
    """An idea's ratio over today at one rate; `better` = -1 for times, where less is more."""
    at_rate = runs[runs["arrival_rate"] == rate].set_index(["idea", "seed"])[metric]
    after, before = at_rate[idea].to_numpy(), at_rate["today"].to_numpy()
    if len(after) < 2:
        raise UserError("An interval over seeds needs at least two seeds.")
    return mean_ratio(after, before) if better > 0 else mean_ratio(before, after)


def sustained(runs: pd.DataFrame, idea: str) -> float:
    """The largest swept rate at which the idea serves `IN_TIME` of the requests; 0 for none."""
    share = runs[runs["idea"] == idea].groupby("arrival_rate")["in_time_share"].mean()
    return float(share.index[share >= IN_TIME].max()) if (share >= IN_TIME).any() else 0.0


def sustained_gain(runs: pd.DataFrame, idea: str) -> tuple[Interval, bool]:
    """The rate sustained over today's, by seed, and whether it ends where the sweep does.

    Rates between those swept lie on straight lines of the share in time; a share in time
    saturates at 1, a rate does not. NaN where one of them sustains none of the rates in some
    seed: a static batch that waits to be full is late at low rates, too.
    """

    def rates(name: str) -> tuple[list[float], bool]:
        table = runs[runs["idea"] == name].pivot_table(
            index="arrival_rate", columns="seed", values="in_time_share"
        )
        at = table.index.to_numpy(dtype=np.float64)
        found = [_crossing(at, table[seed].to_numpy()) for seed in table]
        return found, max(found) >= at[-1]

    (after, ends), (before, _) = rates(idea), rates("today")
    if min(*after, *before) <= 0.0:
        return Interval(math.nan, math.nan, math.nan), ends
    return mean_ratio(after, before), ends


def _crossing(rates: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]) -> float:
    """The highest rate at which `IN_TIME` is kept, on straight lines; 0 where it never is."""
    kept = np.flatnonzero(shares >= IN_TIME)
    if not kept.size:
        return 0.0
    i = int(kept[-1])
    if i == rates.size - 1:
        return float(rates[-1])
    share = (shares[i] - IN_TIME) / (shares[i] - shares[i + 1])
    return float(rates[i] + share * (rates[i + 1] - rates[i]))


def condition(runs: pd.DataFrame, idea: str) -> str:
    """When the idea pays, read from the sweep: the rates at which its gain is beyond chance."""
    rates = sorted(runs["arrival_rate"].unique())
    pays = [
        rate
        for rate in rates
        if gain(runs, idea, rate, "goodput_requests_per_s").low > PAYS
        or gain(runs, idea, rate, "p90_first_text_ms", better=-1).low > PAYS
    ]
    if not pays:
        return "at none of the simulated rates"
    if len(pays) == len(rates):
        return (
            f"at every simulated rate ({rate_text(rates[0])} to {rate_text(rates[-1])} requests/s)"
        )
    if pays == rates[-len(pays) :]:
        return f"from {rate_text(pays[0])} requests/s on"
    if pays == rates[: len(pays)]:
        return f"up to {rate_text(pays[-1])} requests/s"
    return "at " + ", ".join(map(rate_text, pays)) + " requests/s"


def recommend(goodput: Interval, waiting: Interval, idea: Idea, price: Interval) -> str:
    """What follows from the intervals, by fixed rules; requests in time first, then waiting."""
    if goodput.high < 1 / PAYS:
        return "leave: fewer requests come in time"
    if goodput.low > PAYS or waiting.low > PAYS:
        what = "more in time" if goodput.low > PAYS else "shorter waiting only"
        if not idea.hardware:
            return f"build: {what}"
        if price.high < 1.0:
            return f"buy: {what}, and cheaper a token"
        return f"buy when the target demands it: {what}, at {price.value:.1f} × the price a token"
    return "not at this rate"


def rank(runs: pd.DataFrame, ideas: Sequence[Idea], rate: float) -> pd.DataFrame:
    """The ranked table at one arrival rate, one row an idea, best first.

    Sorted by the lower end of the gain in the share served in time at this rate (in steps of
    5 %, less is chance), then by the sustained rate, then by the gain in p90 waiting.
    """
    rows = []
    for idea in ideas:
        goodput = gain(runs, idea.name, rate, "goodput_requests_per_s")
        waiting = gain(runs, idea.name, rate, "p90_first_text_ms", better=-1)
        first = gain(runs, idea.name, rate, "interactive_p90_first_text_ms", better=-1)
        tokens = gain(runs, idea.name, rate, "throughput_tokens_per_s")
        price = gain(runs, idea.name, rate, "price_per_million_tokens")
        sustains, ends = sustained_gain(runs, idea.name)
        in_time, today = (_shares(runs, name, rate) for name in (idea.name, "today"))
        basis = "predicted hardware" if idea.predicted else "measured step times"
        rows.append(
            {
                "item": idea.item,
                "idea": idea.name,
                **goodput.columns("goodput_gain"),
                **waiting.columns("waiting_gain"),
                "interactive_waiting_gain": first.value,
                "throughput_gain": tokens.value,
                "price_per_token_ratio": price.value,
                "sustained_requests_per_s": sustained(runs, idea.name),
                "sustained_today_per_s": sustained(runs, "today"),
                **sustains.columns("sustained_gain"),
                "sustained_ends": "at the highest rate swept" if ends else "between rates swept",
                "in_time_share": float(in_time.mean()),
                "in_time_today": float(today.mean()),
                "in_time_gain_low": location(in_time - today).low,
                "pays": condition(runs, idea.name),
                "cost": idea.cost,
                "recommendation": recommend(goodput, waiting, idea, price),
                "basis": basis if idea.validated else f"{basis}, not validated",
            }
        )
    table = pd.DataFrame(rows)
    shares = (table["in_time_gain_low"] / 0.05).round()
    order = np.lexsort((-table["waiting_gain_low"], -table["sustained_requests_per_s"], -shares))
    table = table.iloc[order].reset_index(drop=True)
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def _shares(runs: pd.DataFrame, idea: str, rate: float) -> npt.NDArray[np.float64]:
    """Shares in time by seed [seeds]."""
    at = runs[(runs["arrival_rate"] == rate) & (runs["idea"] == idea)].sort_values("seed")
    return at["in_time_share"].to_numpy(dtype=np.float64)


def combine(ideas: Sequence[Idea]) -> list[Idea]:
    """The ideas on top of each other, in the order given: one idea a rung."""

    def on_top(below: Idea, idea: Idea) -> Idea:
        return replace(
            idea,
            name=f"+ {idea.name}",
            change=lambda setup: idea.change(below.change(setup)),
            predicted=below.predicted or idea.predicted,
            hardware=below.hardware or idea.hardware,
            validated=below.validated and idea.validated,
        )

    return list(accumulate(ideas, on_top))
