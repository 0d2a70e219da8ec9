"""What a step of a batch server costs with this engine, in the form that a simulation needs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from batchgauge.experiments.context import Context
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.simulate.arrivals import Arrivals
from batchgauge.simulate.server import Host
from batchgauge.simulate.steps import StepTable
from batchgauge.sizing import CostModel, Extent, calibrate_engine
from batchgauge.sizing.probes import SteadyProbe, engine_probe
from batchgauge.workload import exact_requests, texts


@dataclass(frozen=True)
class StepTimes:
    """Step times of an engine.

    probe    asks the engine what a size costs, at one reference speed of the machine
    costs    t(b, lengths) as calibrated
    whole    the same as a table
    table    the table less `host`, which a simulated server adds itself
    host     Python's own work for a request and a token
    """

    probe: SteadyProbe
    costs: CostModel
    whole: StepTable
    table: StepTable
    host: Host


def measure_steps(context: Context, sample: Arrivals, max_batch: int, longest: int) -> StepTimes:
    """Calibrate the context's engine for batches and prompts of so many; some seconds.

    `sample` says how long requests are, `longest` the most tokens of a prompt.
    """
    quick = context.budget.name == "smoke"
    with threadpool_limits(context.threads, user_api="blas"):
        probe = SteadyProbe(engine_probe(context.engine), settle_runs=3 if quick else 15)
        positions = min(context.positions(32 if quick else 512), longest // 2)
        rest = (4, 3, 1) if quick else (6, 3, 4)  # sizes, steps, repeats
        costs = calibrate_engine(probe, Extent(max_batch, positions, *rest))
        request_s, token_s = host_seconds(context.engine, context.tokenizer, sample)
    whole = StepTable.from_costs(costs, max_batch=max_batch)
    return StepTimes(probe, costs, whole, without_host(whole, token_s), Host(request_s, token_s))


def host_seconds(engine: Engine, tokenizer: Tokenizer, sample: Arrivals) -> tuple[float, float]:
    """Seconds of Python's own work for a request (tokenize, detokenize) and for a token (sample).

    The first by the tokenizer on texts of the traffic's mean length; the second from the
    engine's stages, 0 where it does not say them.
    """
    length = max(1, int(sample.context.mean()) * 4)  # about four characters a token
    seconds = []
    for text in texts("prose", length, 6):
        begin = time.perf_counter()
        tokenizer.decode(tokenizer.encode(text))
        seconds.append(time.perf_counter() - begin)
    result = engine.infer_batch(exact_requests([4] * 4, [8] * 4))
    tokens = result.counters.get("generated_tokens", 32)
    token_s = result.stages_ms.get("sample", 0.0) / 1e3 / max(tokens, 1)
    return float(np.median(seconds[1:])), token_s  # the first text warms caches


def without_host(table: StepTable, token_s: float) -> StepTable:
    """The table less what Python does for each token of a step, which the server adds itself."""
    decode = tuple(max(s - n * token_s, 1e-9) for n, s in enumerate(table.decode_s))
    return replace(table, decode_s=(0.0, *decode[1:]))
