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
from threadpoolctl import threadpool_limits

from batchgauge.errors import UserError
from batchgauge.experiments.context import Context
from batchgauge.experiments.roadmap.parallel import Pair, stage_pair
from batchgauge.experiments.scaling import SLACK
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.simulate.arrivals import Arrivals, bursty, read_trace
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import capacity, rate_text, stability
from batchgauge.simulate.roadmap import Setup
from batchgauge.simulate.server import Host, Server
from batchgauge.simulate.steps import StepTable
from batchgauge.sizing import CostModel, Extent, calibrate_engine
from batchgauge.sizing.probes import SteadyProbe, engine_probe
from batchgauge.text import percent
from batchgauge.workload import exact_requests, request_lengths, texts

BUSY = 0.8  # share of today's capacity that arrives when no rate is given
PATIENCE = 10.0  # latency target in unloaded requests when none is given
LONGEST = 512  # tokens of a prompt or an answer after scaling

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
    quick = context.budget.name == "smoke"
    server, max_batch = scenario.server(), scenario.max_batch
    scenario.traffic(1)(1.0, context.seed)  # a trace that cannot be read is said first
    tokenizer = context.tokenizer
    begin = time.perf_counter()
    engine = context.engine
    load_s = time.perf_counter() - begin
    scenario = shortened(context, scenario)
    longest = min(LONGEST, (context.room or 2 * LONGEST) // 2)
    traffic = scenario.traffic(
        context.budget.choose(smoke=200, default=800, thorough=2000), longest
    )
    sample = traffic(1.0, context.seed)
    if max_batch > engine.max_batch_size():
        raise UserError(f"max_batch is {max_batch}; the engine takes {engine.max_batch_size()}.")
    with threadpool_limits(context.threads, user_api="blas"):
        probe = SteadyProbe(engine_probe(engine), settle_runs=5 if quick else 15)
        positions = min(context.positions(128 if quick else 512), longest // 2)
        rest = (4, 3, 1) if quick else (6, 3, 4)  # sizes, steps, repeats
        costs = calibrate_engine(probe, Extent(max_batch, positions, *rest))
        request_s, token_s = host_seconds(engine, tokenizer, sample)
    whole = StepTable.from_costs(costs, max_batch=max_batch)
    table = without_host(whole, token_s)
    server = replace(server, host=Host(request_s, token_s))
    limit = capacity(sample, table, server)
    own_rate = read_trace(scenario.trace).rate if scenario.trace else BUSY * limit
    alone = simulate(_typical(sample), table, replace(server, batching="continuous"))
    return Case(
        context, scenario, load_s, probe, costs, whole, traffic,
        today=Setup(server, table, price_per_hour=scenario.own_price_per_hour),
        limit=limit,
        rate=scenario.arrival_rate or own_rate,
        target_s=scenario.latency_target_ms / 1e3 or PATIENCE * float(alone.returned_s[0]),
    )  # fmt: skip


def shortened(context: Context, scenario: Scenario) -> Scenario:
    """The scenario with lengths for which the model's cost leaves time to replay requests.

    So many of them are replayed in real time, at half the capacity, under two policies.
    """
    requests = 2 * 2 * context.budget.choose(smoke=8, default=72, thorough=400)
    mean = (1155 * scenario.length_scale / 2, 211 * scenario.length_scale / 2)
    each = mean[0] * context.cost.position_s + mean[1] * (
        context.cost.step_s / 4 + context.cost.row_s
    )
    factor = min(1.0, SLACK * context.budget.share(0.5) / (requests * each))
    if factor >= 1.0:
        return scenario
    context.note(f"Lengths of traffic: {factor:.2g} times those of the parameter length_scale.")
    return replace(scenario, length_scale=factor * scenario.length_scale)


def _typical(sample: Arrivals) -> Arrivals:
    """One request of median lengths, alone."""
    context, generated = (
        np.array([np.median(lengths)], np.int64) for lengths in (sample.context, sample.generated)
    )
    return Arrivals(np.zeros(1), context, generated, np.zeros(1, np.int64))


def host_seconds(
    engine: Engine, tokenizer: Tokenizer, sample: Arrivals, *, repeats: int = 5
) -> tuple[float, float]:
    """Seconds of Python's own work for a request (tokenize, detokenize) and for a token (sample).

    The first by the tokenizer on texts of the traffic's mean length; the second from the
    engine's stages, 0 where it does not say them.
    """
    length = max(1, int(sample.context.mean()) * 4)  # about four characters a token
    seconds = []
    for text in texts("prose", length, 1 + repeats):
        begin = time.perf_counter()
        tokenizer.decode(tokenizer.encode(text))
        seconds.append(time.perf_counter() - begin)
    request_s = float(np.median(seconds[1:]))  # the first warms caches
    return request_s, _sample_s(engine)


def _sample_s(engine: Engine) -> float:
    result = engine.infer_batch(exact_requests([4] * 4, [8] * 4))
    tokens = result.counters.get("generated_tokens", 32)
    return result.stages_ms.get("sample", 0.0) / 1e3 / max(tokens, 1)


def without_host(table: StepTable, token_s: float) -> StepTable:
    """The table less what Python does for each token of a step, which the server adds itself."""
    decode = tuple(max(s - n * token_s, 1e-9) for n, s in enumerate(table.decode_s))
    return replace(table, decode_s=(0.0, *decode[1:]))


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
    return (
        f"A decode step takes {first['step_ms']:.1f} ms for one sequence and "
        f"{last['step_ms']:.1f} ms for {last['batch_size']:.0f}: a token costs "
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
