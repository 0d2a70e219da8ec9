"""The roadmap notebook's questions about serving: what a step costs, what policies do.

Everything shared by its sections is one `Case`: the engine, what its steps cost here, the
traffic, today's server and the latency target. Step times are measured, traffic has
the shape of real requests (or is the user's trace), and servers are simulated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.experiments.context import Context
from batchgauge.experiments.roadmap.parallel import Pair, stage_pair
from batchgauge.experiments.step_times import measure_steps
from batchgauge.experiments.traffic import (
    LONGEST,
    PATIENCE,
    affordable_scale,
    longest_of,
    unloaded_s,
)
from batchgauge.protocols import Engine
from batchgauge.simulate.arrivals import Arrivals, bursty, read_trace
from batchgauge.simulate.metrics import capacity, rate_text, stability
from batchgauge.simulate.roadmap import Setup
from batchgauge.simulate.server import Server
from batchgauge.simulate.steps import StepTable
from batchgauge.sizing import CostModel
from batchgauge.sizing.probes import SteadyProbe
from batchgauge.text import figures, percent
from batchgauge.workload import request_lengths

BUSY = 0.8  # share of today's capacity that arrives when no rate is given

Traffic = Callable[[float, int], Arrivals]


@dataclass(frozen=True)
class Scenario:
    """What the notebook asks about: today's server, its traffic, prices of an hour.

    policy                `static`, `dynamic, priority`, `continuous, shortest` and the like
    max_batch             most requests in a batch
    arrival_rate          requests per second; 0: the trace's own, or `BUSY` of today's capacity
    latency_target_ms     until the client sees text; 0: `PATIENCE` times an unloaded request
    trace                 file of a request trace; empty: drawn in the shape of real traffic
    length_scale          lengths against the real ones
    burstiness            squared variation of the gaps between drawn arrivals
    background            share of requests of the low class
    price_per_hour        of a machine that is predicted; own_price_per_hour of this one

    Raises UserError for a rate, target or price that makes no sense.
    """

    policy: str = "static"
    max_batch: int = 8
    arrival_rate: float = 0.0
    latency_target_ms: float = 0.0
    trace: str = ""
    length_scale: float = 1 / 16
    burstiness: float = 1.0
    background: float = 0.5
    price_per_hour: float = 2.0
    own_price_per_hour: float = 0.1

    def __post_init__(self) -> None:
        for name in ("arrival_rate", "latency_target_ms", "own_price_per_hour"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number from 0.")
        if not 0.0 < self.price_per_hour < math.inf:
            raise UserError(f"price_per_hour is {self.price_per_hour}; expected a price above 0.")

    def server(self) -> Server:
        """Today's server. Raises UserError for a policy that is unknown or no possible batch."""
        batching, _, order = (part.strip() for part in self.policy.partition(","))
        return Server(batching, self.max_batch, order=order or "fifo")  # type: ignore[arg-type]  # checked there

    def traffic(self, count: int, longest: int = LONGEST) -> Traffic:
        """Streams of `count` requests: in the shape of real traffic, or cut from the trace.

        No prompt or answer is longer than `longest` tokens.

        A seed draws other lengths, gaps and classes, or begins elsewhere in the trace.
        """
        if not self.trace:

            def drawn(rate: float, seed: int) -> Arrivals:
                context, generated = request_lengths(
                    count, scale=self.length_scale, longest=longest, seed=seed
                )
                shape = {"burstiness": self.burstiness, "background": self.background}
                return bursty(rate, context, generated, seed=seed, **shape)

            return drawn

        @cache
        def read(seed: int) -> Arrivals:
            return read_trace(self.trace, background=self.background, seed=seed)

        def cut(rate: float, seed: int) -> Arrivals:
            whole = read(seed)
            start = int(np.random.default_rng(seed).integers(0, max(1, len(whole) - count + 1)))
            return whole.window(start, count).shortened(self.length_scale, longest).at_rate(rate)

        return cut


@dataclass(frozen=True)
class Case:
    """What the notebook's questions share.

    context        the engine, the tokenizer and the budget
    scenario       what is asked about
    load_s         seconds that the engine took to open
    probe          asks the engine what a size costs, at one reference speed of the machine
    costs, table   t(b, lengths) as calibrated, and as the simulator looks it up
    traffic        (arrivals per second, seed) -> a stream of requests
    today          the server as it is: the policy asked for, this machine, no streaming
    limit          requests per second that today's server manages at most
    """

    context: Context
    scenario: Scenario
    load_s: float
    probe: SteadyProbe
    costs: CostModel
    table: StepTable
    traffic: Traffic
    today: Setup
    limit: float
    rate: float
    target_s: float

    @property
    def engine(self) -> Engine:
        """The context's engine."""
        return self.context.engine

    @property
    def seed(self) -> int:
        """Of lengths, gaps and classes."""
        return self.context.seed

    @cached_property
    def stages(self) -> Pair:
        """One call a stage, for each of two threads."""
        return stage_pair(self.context)


def prepare(context: Context, scenario: Scenario) -> Case:
    """Check every parameter, load the engine, calibrate it, and settle rate and target.

    Raises UserError for anything that makes no sense, before the model is loaded where that
    is possible.
    """
    server, max_batch = scenario.server(), scenario.max_batch
    scenario.traffic(1)(1.0, context.seed)  # a trace that cannot be read is said first
    _ = context.tokenizer  # a name that is none is said before the model loads
    begin = time.perf_counter()
    engine = context.engine
    load_s = time.perf_counter() - begin
    # so many requests are replayed in real time under two policies
    requests = 2 * context.budget.choose(smoke=8, default=72, thorough=400)
    scale = affordable_scale(context, scenario.length_scale, requests, 0.5)
    scenario, longest = replace(scenario, length_scale=scale), longest_of(context)
    traffic = scenario.traffic(
        context.budget.choose(smoke=200, default=800, thorough=2000), longest
    )
    sample = traffic(1.0, context.seed)
    if max_batch > engine.max_batch_size():
        raise UserError(f"max_batch is {max_batch}; the engine takes {engine.max_batch_size()}.")
    steps = measure_steps(context, sample, max_batch, longest)
    server, table = replace(server, host=steps.host), steps.table
    limit = capacity(sample, table, server)
    own_rate = read_trace(scenario.trace).rate if scenario.trace else BUSY * limit
    return Case(
        context, scenario, load_s, steps.probe, steps.costs, steps.whole, traffic,
        today=Setup(server, table, price_per_hour=scenario.own_price_per_hour),
        limit=limit,
        rate=scenario.arrival_rate or own_rate,
        target_s=scenario.latency_target_ms / 1e3 or PATIENCE * unloaded_s(sample, table, server),
    )  # fmt: skip


def traffic_sentence(case: Case) -> str:
    """How long the requests are, how often they come, and when they are in time."""
    sample = case.traffic(case.rate, 0)
    context, generated = (np.percentile(a, [50, 90]) for a in (sample.context, sample.generated))
    return (
        f"Requests bring {context[0]:.0f} tokens and take {generated[0]:.0f} (medians; p90 "
        f"{context[1]:.0f} and {generated[1]:.0f}), come {rate_text(case.rate)} times a second, "
        f"and are in time when the first text is there within {1e3 * case.target_s:.0f} ms. "
        f"Today's server: {policy_name(case.today.server)}, no streaming."
        + (f" The trace: {'; '.join(sample.notes)}." if sample.notes else "")
    )


def calibration_table(case: Case) -> pd.DataFrame:
    """Milliseconds of a decode step by batch size, and what that makes a token cost."""
    sizes = np.arange(1, case.today.server.max_batch + 1)
    step = case.costs.decode_ms(sizes, np.zeros_like(sizes))
    return pd.DataFrame(
        {
            "batch_size": sizes,
            "step_ms": step,
            "step_low_ms": [case.costs.interval(s)[0] for s in step],
            "step_high_ms": [case.costs.interval(s)[1] for s in step],
            "token_ms": step / sizes,
        }
    )


def calibration_sentence(case: Case) -> str:
    """What batching shares on this machine, and the calibration's own error."""
    first, *_, last = calibration_table(case).to_dict("records")
    if not min(first["step_ms"], last["step_ms"]) > 0.0:
        return "A decode step takes too little to be told from none."
    return (
        f"A decode step takes {figures(first['step_ms'])} ms for one sequence and "
        f"{figures(last['step_ms'])} ms for {last['batch_size']:.0f}: a token costs "
        f"{first['token_ms'] / last['token_ms']:.1f} times less in the larger batch. On sizes that "
        f"the calibration had not seen, its error was {percent(case.costs.error, 1)}."
    )


def stability_sentence(case: Case) -> str:
    """Whether today's server keeps up with the rate that was asked for."""
    return stability(case.rate, case.limit, f"today's server ({policy_name(case.today.server)})")


def policy_name(server: Server) -> str:
    """A server in a few words."""
    order = "" if server.order == "fifo" else f", {server.order}"
    return f"{server.batching}{order}, batches of {server.max_batch}"
