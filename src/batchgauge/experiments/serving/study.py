"""What the serving notebook's sections share: step times, traffic, policies, the target.

Servers are described once, as the simulator's `Server`, and made real by `rules_of`: what is
forecast and what runs cannot differ in a setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.errors import UserError
from batchgauge.experiments.context import Context, whole
from batchgauge.experiments.serving.live import serve
from batchgauge.experiments.step_times import StepTimes, measure_steps
from batchgauge.experiments.traffic import PATIENCE, affordable_scale, longest_of, unloaded_s
from batchgauge.serving.admission import open_scheduler
from batchgauge.serving.policies import BATCHINGS, ORDERS
from batchgauge.serving.scheduler import Rules, Scheduler
from batchgauge.simulate.arrivals import Arrivals, bursty
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import capacity, rate_text
from batchgauge.simulate.server import POSITIONS, STEP_S, Host, Server
from batchgauge.simulate.steps import StepTable
from batchgauge.workload import request_lengths

CHUNK = 256  # prompt tokens a step of continuous batching
MAX_WAIT_S = 0.25  # of dynamic batching
SHAPES: Mapping[str, float] = {"Poisson": 1.0, "bursty": 4.0}  # squared variation of the gaps
BACKGROUND = 0.5  # share of requests of the low class
SAMPLE = 800  # requests that capacity is simulated with


@dataclass(frozen=True)
class ServingQuestion:
    """What the notebook asks about. Raises UserError for what makes no sense.

    max_batch           most requests under way
    latency_target_ms   until the whole answer; 0: `PATIENCE` times an unloaded request
    length_scale        lengths against those of the Azure trace
    requests, seeds     of a run, and runs of each kind; 0: by the profile
    """

    max_batch: int = 8
    latency_target_ms: float = 0.0
    length_scale: float = 1 / 40
    requests: int = 0
    seeds: int = 0

    def __post_init__(self) -> None:
        whole(max_batch=self.max_batch)
        if not 0.0 <= self.latency_target_ms < math.inf or not 0.0 < self.length_scale < math.inf:
            raise UserError(
                f"latency_target_ms is {self.latency_target_ms} and length_scale "
                f"{self.length_scale}; expected numbers from 0, the second above."
            )
        for name in ("requests", "seeds"):
            if (value := getattr(self, name)) != 0:
                whole(**{name: value})


@dataclass(frozen=True)
class ServingCase:
    """What the sections share.

    steps     what a step costs, as calibrated
    servers   the policies, by name, as the simulator knows them
    limit     requests a second that static batching manages
    target_s  until the whole answer
    """

    context: Context
    question: ServingQuestion
    steps: StepTimes
    servers: Mapping[str, Server]
    limit: float
    target_s: float
    longest: int

    @property
    def engine(self) -> BatchInferenceEngine:
        """The context's engine, which has a loop."""
        return loop_engine(self.context)

    @property
    def requests(self) -> int:
        """Of one run."""
        return self.question.requests

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the runs of one kind."""
        first = self.context.seed
        return tuple(range(first, first + self.question.seeds))

    def arrivals(self, load: float, seed: int, shape: str = "Poisson", count: int = 0) -> Arrivals:
        """Requests that come at `load` of static batching's capacity."""
        return _drawn(
            self.question.length_scale, self.longest, count or self.requests, seed,
            rate=load * self.limit, burstiness=SHAPES[shape],
        )  # fmt: skip


def loop_engine(context: Context) -> BatchInferenceEngine:
    """The context's engine. Raises UserError for one that requests cannot join under way."""
    if not isinstance(context.engine, BatchInferenceEngine):
        raise UserError(
            f"Requests cannot join the engine '{context.engine_name}' between steps; expected our "
            "own: numpy, numpy:file or numpy:bfloat16."
        )
    return context.engine


def _drawn(
    scale: float, longest: int, count: int, seed: int, *, rate: float, burstiness: float
) -> Arrivals:
    context, generated = request_lengths(count, scale=scale, longest=longest, seed=seed)
    return bursty(
        rate, context, generated, burstiness=burstiness, background=BACKGROUND, seed=seed
    ).at_rate(rate)


def prepare(context: Context, question: ServingQuestion) -> ServingCase:
    """Load the engine, calibrate it, and settle lengths, capacity and target.

    Raises UserError for an engine without a loop, and for a batch that it does not take.
    """
    most = loop_engine(context).max_batch_size()
    if question.max_batch > most:
        raise UserError(f"max_batch is {question.max_batch}; the engine takes {most}.")
    choose = context.budget.choose
    requests = question.requests or choose(smoke=6, default=24, thorough=120)
    seeds = question.seeds or choose(smoke=2, default=8, thorough=12)
    every = 3 * seeds * 3 * requests  # three policies, at two loads and with bursts
    scale = affordable_scale(context, question.length_scale, every, 3.0)
    question = replace(question, length_scale=scale, requests=requests, seeds=seeds)
    longest = longest_of(context)
    drawn = {"rate": 1.0, "burstiness": 1.0}
    sample = _drawn(question.length_scale, longest, SAMPLE, context.seed, **drawn)
    steps = measure_steps(context, sample, question.max_batch, longest)
    steps = replace(steps, table=replace(steps.table, one_pass=True))
    plain = Server("static", question.max_batch)
    servers: Mapping[str, Server] = {
        "static": plain,
        "dynamic": replace(plain, batching="dynamic", max_wait_s=MAX_WAIT_S),
        "continuous": replace(plain, batching="continuous", chunk_tokens=CHUNK),
    }
    case = ServingCase(context, question, steps, servers, 1.0, 1.0, longest)
    case = rehearse(case, context.seed, choose(smoke=2, default=8, thorough=8))
    table, servers = case.steps.table, case.servers
    target_s = question.latency_target_ms / 1e3
    target_s = target_s or PATIENCE * unloaded_s(sample, table, servers["continuous"])
    return replace(case, limit=capacity(sample, table, servers["static"]), target_s=target_s)


def scheduler_of(case: ServingCase, policy: str, **changes: object) -> Scheduler:
    """A scheduler of our engine that does what the simulated server of this name does."""
    server = replace(case.servers[policy], **changes)  # type: ignore[arg-type]
    chunk = CHUNK if server.batching == "continuous" else None
    return open_scheduler(case.engine, rules_of(server), prefill_tokens=chunk)


def rehearse(case: ServingCase, draw: int, batches: int = 3) -> ServingCase:
    """The case with step times, and Python's work, as they are now around the scheduler.

    So many full batches of requests, drawn by `draw`, come at once and are served statically and
    continuously; the simulator makes the same steps, but where the engine cuts a prompt elsewhere.
    What is beside the model's work in steps without a prompt counts for every step, the rest for
    the requests.
    """
    sample = case.arrivals(1.0, case.context.seed, count=SAMPLE).at_once()
    count = batches * case.question.max_batch
    arrivals = sample.picked(np.random.default_rng(draw).integers(SAMPLE, size=count))
    live = {
        case.servers[name]: serve(scheduler_of(case, name), arrivals).steps
        for name in ("static", "continuous")
    }
    real = pd.concat(live.values(), ignore_index=True)
    gaps = [
        (steps["at_s"].diff() - steps["loop_s"]).fillna(steps["own_s"]) for steps in live.values()
    ]
    own, bare = pd.concat(gaps, ignore_index=True), real["prompt_positions"] == 0
    step_s = float(own[bare].median()) if bare.any() else 0.0
    request_s = max(0.0, float(own.sum()) - step_s * len(own)) / (len(arrivals) * len(live))
    host = replace(case.steps.host, request_s=request_s, step_s=step_s)
    steps = replace(case.steps, table=paced(case.steps.table, arrivals, live), host=host)
    servers = {name: replace(server, host=host) for name, server in case.servers.items()}
    return replace(case, steps=steps, servers=servers)


def paced(table: StepTable, arrivals: Arrivals, live: Mapping[Server, pd.DataFrame]) -> StepTable:
    """The table at the speed that the steps of live runs had, by server.

    Steps with a prompt, and those without, are as many times slower as theirs are together.
    """
    bare = [replace(server, host=Host(token_s=server.host.token_s)) for server in live]
    told = np.concatenate([simulate(arrivals, table, server).steps for server in bare])
    real = pd.concat(live.values(), ignore_index=True)
    reads = (real["prompt_positions"] > 0, told[:, POSITIONS] > 0)
    prefill, decode = (
        float(told[there, STEP_S].sum() / real["loop_s"][here].sum())
        if here.any() and there.any() else 1.0
        for here, there in (reads, [~which for which in reads])
    )  # fmt: skip
    return table.faster(prefill, decode)


def rules_of(server: Server) -> Rules:
    """The scheduler's rules that do what the simulated server does."""
    batching = BATCHINGS[server.batching](server.max_wait_s)
    order = ORDERS[server.order](server.ageing_s)
    return Rules(server.max_batch, order, batching)


def sentence(case: ServingCase) -> str:
    """How long requests are, what static batching manages, and when an answer is in time."""
    sample = case.arrivals(1.0, case.context.seed, count=SAMPLE)
    prompt, answer = (np.percentile(a, [50, 90]) for a in (sample.context, sample.generated))
    return (
        f"Requests bring {prompt[0]:.0f} tokens and take {answer[0]:.0f} (medians; p90 "
        f"{prompt[1]:.0f} and {answer[1]:.0f}). Static batches of {case.question.max_batch} manage "
        f"{rate_text(case.limit)} requests/s; loads below are shares of that. An answer is in "
        f"time when all of it is there within {1e3 * case.target_s:,.0f} ms."
    )
