"""The roadmap notebook's questions about serving: what a step costs, what policies do.

Everything shared by its cells is one `Case`: the engine, what its steps cost here, the
traffic, today's server and the latency target. Step times are measured, traffic has
the shape of real requests (or is the user's trace), and servers are simulated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from batchgauge.errors import UserError
from batchgauge.experiments.roadmap.parallel import Specs
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.registry import open_engine, open_tokenizer
from batchgauge.simulate.arrivals import Arrivals, bursty, read_trace
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import capacity, stability
from batchgauge.simulate.roadmap import Setup
from batchgauge.simulate.server import Server
from batchgauge.simulate.steps import StepTable
from batchgauge.sizing import CostModel, calibrate_engine
from batchgauge.sizing.probes import SteadyProbe, engine_probe, probe_items
from batchgauge.workload import request_lengths, texts

BUSY = 0.8  # share of today's capacity that arrives when no rate is given
PATIENCE = 10.0  # latency target in unloaded requests when none is given
LONGEST = 512  # tokens of a prompt or an answer after scaling

Traffic = Callable[[float, int], Arrivals]


@dataclass(frozen=True)
class Case:
    """What the notebook's questions share.

    probe          asks the engine what a size costs, at one reference speed of the machine
    costs, table   t(b, lengths) as calibrated, and as the simulator looks it up
    traffic        (arrivals per second, seed) -> a stream of requests
    today          the server as it is: the policy asked for, this machine, no streaming
    limit          requests per second that today's server manages at most
    """

    specs: Specs
    engine: Engine
    tokenizer: Tokenizer
    load_s: float
    probe: SteadyProbe
    costs: CostModel
    table: StepTable
    traffic: Traffic
    today: Setup
    limit: float
    rate: float
    target_s: float
    threads: int = 1


def parse_policy(policy: str, **changes: Any) -> Server:
    """A server from words such as `static`, `dynamic, priority` or `continuous, shortest`.

    `changes` are further fields of the server. Raises UserError for other words.
    """
    batching, _, order = (part.strip() for part in policy.partition(","))
    return Server(batching, order=order or "fifo", **changes)  # type: ignore[arg-type]  # checked there


def make_traffic(
    trace: str, *, count: int, length_scale: float, burstiness: float, background: float
) -> Traffic:
    """Streams of `count` requests: drawn in the shape of real traffic, or cut from a trace.

    A seed draws other lengths, gaps and classes, or begins elsewhere in the trace.
    """
    if not trace:

        def drawn(rate: float, seed: int) -> Arrivals:
            context, generated = request_lengths(
                count, scale=length_scale, longest=LONGEST, seed=seed
            )
            shape = {"burstiness": burstiness, "background": background}
            return bursty(rate, context, generated, seed=seed, **shape)

        return drawn

    @cache
    def read(seed: int) -> Arrivals:
        return read_trace(trace, background=background, seed=seed)

    def cut(rate: float, seed: int) -> Arrivals:
        whole = read(seed)
        start = int(np.random.default_rng(seed).integers(0, max(1, len(whole) - count + 1)))
        return whole.window(start, count).shortened(length_scale, LONGEST).at_rate(rate)

    return cut


def prepare(
    specs: Specs,
    *,
    policy: str = "static",
    max_batch: int = 8,
    arrival_rate: float = 0.0,
    latency_target_ms: float = 0.0,
    trace: str = "",
    length_scale: float = 1 / 16,
    burstiness: float = 1.0,
    background: float = 0.5,
    own_price_per_hour: float = 0.1,
    threads: int = 1,
    count: int = 600,
    quick: bool = False,
    seed: int = 0,
) -> Case:
    """Check every parameter, load the engine, calibrate it, and settle rate and target.

    A rate of 0 becomes `BUSY` of today's capacity (or the trace's own rate), a target
    of 0 becomes `PATIENCE` times an unloaded request. Raises UserError for anything
    that makes no sense, before the model is loaded where that is possible.
    """
    server = parse_policy(policy, max_batch=max_batch)
    if min(arrival_rate, latency_target_ms, own_price_per_hour) < 0.0:
        raise UserError("A rate, a latency target or a price is negative; expected 0 or more.")
    traffic = make_traffic(
        trace,
        count=count,
        length_scale=length_scale,
        burstiness=burstiness,
        background=background,
    )
    sample = traffic(1.0, seed)
    tokenizer = open_tokenizer(specs.tokenizer, specs.model or None)
    begin = time.perf_counter()
    engine = open_engine(specs.engine, specs.model or None, threads)
    load_s = time.perf_counter() - begin
    if max_batch > engine.max_batch_size():
        raise UserError(f"max_batch is {max_batch}; the engine takes {engine.max_batch_size()}.")
    with threadpool_limits(threads, user_api="blas"):
        probe = SteadyProbe(engine_probe(engine), settle_runs=5 if quick else 15)
        costs = calibrate_engine(
            probe,
            max_batch_size=max_batch,
            max_positions=128 if quick else 512,
            sizes=4 if quick else 6,
            steps=3,
            repeats=1 if quick else 4,
        )
        request_s, token_s = host_seconds(engine, tokenizer, sample)
    whole = StepTable.from_costs(costs, max_batch=max_batch)
    table = without_host(whole, token_s)
    server = replace(server, host_request_s=request_s, host_token_s=token_s)
    today = Setup(server, table, price_per_hour=own_price_per_hour)
    limit = capacity(sample, table, server)
    own_rate = read_trace(trace).rate if trace else BUSY * limit
    alone = simulate(_typical(sample), table, replace(server, batching="continuous"))
    target = latency_target_ms / 1e3 or PATIENCE * float(alone.returned_s[0])
    return Case(
        specs, engine, tokenizer, load_s, probe, costs, whole, traffic, today, limit,
        arrival_rate or own_rate, target, threads,
    )  # fmt: skip


def _typical(sample: Arrivals) -> Arrivals:
    """One request of median lengths, alone."""
    context, generated = (
        np.array([np.median(lengths)], np.int64) for lengths in (sample.context, sample.generated)
    )
    return Arrivals(np.zeros(1), context, generated, np.zeros(1, np.int64))


def host_seconds(
    engine: Engine, tokenizer: Tokenizer, sample: Arrivals, *, repeats: int = 5
) -> tuple[float, float]:
    """Seconds of Python's own work for a request (tokenise, detokenise) and for a token (sample).

    The first by the tokenizer on texts of the traffic's mean length; the second from the
    engine's stages, 0 where it does not tell them.
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
    result = engine.infer_batch(probe_items(4, 4, 8))
    tokens = result.counters.get("generated_tokens", 32)
    return result.stages_ms.get("sample", 0.0) / 1e3 / max(tokens, 1)


def without_host(table: StepTable, token_s: float) -> StepTable:
    """The table less what Python does for each token of a step, which the server adds itself."""
    decode = tuple(max(s - n * token_s, 1e-9) for n, s in enumerate(table.decode_s))
    return replace(table, decode_s=(0.0, *decode[1:]))


def check_price(price_per_hour: float) -> None:
    """Raise UserError for a price that is not above 0, before anything long runs."""
    if not price_per_hour > 0.0:
        raise UserError(f"price_per_hour is {price_per_hour}; expected a price above 0.")


def traffic_sentence(case: Case) -> str:
    """How long the requests are, how often they come, and when they are in time."""
    sample = case.traffic(case.rate, 0)
    context, generated = (np.percentile(a, [50, 90]) for a in (sample.context, sample.generated))
    return (
        f"Requests bring {context[0]:.0f} tokens and take {generated[0]:.0f} (medians; p90 "
        f"{context[1]:.0f} and {generated[1]:.0f}), come {case.rate:.2g} times a second, and are "
        f"in time when the first text is there within {1e3 * case.target_s:.0f} ms. Today's "
        f"server: {policy_name(case.today.server)}, no streaming."
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
        f"the calibration had not seen, its error was {case.costs.error:.1%}."
    )


def stability_sentence(case: Case) -> str:
    """Whether today's server keeps up with the rate that was asked for."""
    return stability(case.rate, case.limit, f"today's server ({policy_name(case.today.server)})")


def policy_name(server: Server) -> str:
    """A server in a few words."""
    order = "" if server.order == "fifo" else f", {server.order}"
    return f"{server.batching}{order}, batches of {server.max_batch}"
