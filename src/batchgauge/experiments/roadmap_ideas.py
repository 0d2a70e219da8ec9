"""Phase 7's list as changes to today's server, and the places in our code that they begin at.

Each idea is simulated alone on top of today's server, then all software ideas on top of
each other. What an idea costs is known from the code and said in words; what it gains
comes from the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import Any

import pandas as pd

from batchgauge.experiments.parallel import WAYS
from batchgauge.experiments.roadmap import Case
from batchgauge.experiments.roadmap_machines import predicted_costs, process_sharing
from batchgauge.simulate.metrics import capacity
from batchgauge.simulate.roadmap import IN_TIME, Idea, Setup, rank, sweep
from batchgauge.simulate.steps import StepTable
from batchgauge.sizing import simulated_profiles

LOADS = (0.3, 0.6, 0.9, 1.2, 1.6, 2.4)  # of today's capacity, beside the rate asked for
ACCELERATOR = "GPU, 80 GB"
MACHINES = 4  # of the distributed idea
SHORT_MS = 5.0  # a call below this may stay in the event loop


def with_server(setup: Setup, **changes: Any) -> Setup:
    """The set-up with other fields of its server."""
    return replace(setup, server=replace(setup.server, **changes))


def make_ideas(case: Case, gains: pd.DataFrame, *, price_per_hour: float) -> tuple[Idea, ...]:
    """Phase 7, item by item; `gains` are the measured factors of a second core."""
    two = {
        row["stage"]: max(row["value"], 1e-3)
        for row in gains.to_dict("records")
        if row["way"] == WAYS[1]
    }
    sharing = process_sharing(case, gains)
    profile = next(p for p in simulated_profiles() if p.name == ACCELERATOR)
    costs, shared_s, _ = predicted_costs(case.specs.model, profile)
    size = case.today.server.max_batch
    gpu = StepTable.from_costs(costs, max_batch=size, shared_s=shared_s)
    step = case.today.step_s
    assert isinstance(step, StepTable)
    threaded = step.faster(two["prefill"], two["decode"])

    def server(item: str, name: str, cost: str, **changes: Any) -> Idea:
        return Idea(item, name, lambda setup: with_server(setup, **changes), cost)

    return (
        server(
            "dynamic batching", "dynamic batching", "small: a queue and a timer before infer_batch",
            batching="dynamic",
        ),
        server(
            "dynamic batching", "continuous batching",
            "large: the engine must let requests join between decode steps", batching="continuous",
        ),
        Idea(
            "streaming", "streaming", lambda setup: replace(setup, streaming=True),
            "medium: infer_batch must hand out tokens while it runs",
        ),
        server(
            "async pipeline", "async pipeline",
            "small: tokenise and detokenise in another thread", overlap=True,
        ),
        server(
            "priority queues", "priority queue with ageing", "small: a heap instead of a list",
            order="priority", ageing_s=10 * case.target_s,
        ),
        server(
            "priority queues", "shortest first with ageing",
            "medium: needs a prediction of the answer's length; simulated with the true one",
            order="shortest", ageing_s=case.target_s,
        ),
        Idea(
            "CPU parallelism", "two BLAS threads",
            lambda setup: replace(setup, step_s=threaded), "none: a thread limit; a second core",
        ),
        server(
            "CPU parallelism", "two processes",
            "medium: a queue between processes; the weights twice in memory, a second core",
            workers=2, sharing=sharing,
        ),
        Idea(
            "GPU batching", f"{ACCELERATOR} (predicted)",
            lambda setup: replace(
                with_server(setup, host_token_s=0.0), step_s=gpu, price_per_hour=price_per_hour
            ),
            "large: another engine (an adapter is there), and the machine", predicted=True,
            hardware=True,
        ),
        Idea(
            "distributed batches", f"{MACHINES} machines like this one",
            lambda setup: with_server(setup, workers=MACHINES),
            "large: a shared queue, retries, deployment; the machines", hardware=True,
        ),
    )  # fmt: skip


def sweep_rates(case: Case) -> list[float]:
    """The rates to simulate: fixed shares of today's capacity, and the rate asked for."""
    return sorted({*(load * case.limit for load in LOADS), case.rate})


def run_sweep(
    case: Case,
    ideas: Sequence[Idea],
    *,
    seeds: int,
    progress: Callable[[Sequence[float]], Sequence[float]] = list,
) -> pd.DataFrame:
    """Every idea at every rate and seed."""
    return sweep(
        case.today,
        ideas,
        case.traffic,
        rates=sweep_rates(case),
        seeds=range(seeds),
        target_s=case.target_s,
        progress=progress,
    )


def ranking_sentence(table: pd.DataFrame, case: Case) -> str:
    """The answer: what to build first at this rate, and what not."""
    rows = table.to_dict("records")
    build = [row for row in rows if row["recommendation"].startswith(("build", "buy"))]
    leave = [row["idea"] for row in rows if row not in build]
    first = (
        f"build {build[0]['idea']} first: {build[0]['goodput_gain']:.2f} × as many requests in "
        f"time [{build[0]['goodput_gain_low']:.2f}, {build[0]['goodput_gain_high']:.2f}], p90 "
        f"waiting {build[0]['waiting_gain']:.1f} × shorter"
        if build
        else "none of the ideas pays"
    )
    return (
        f"At {case.rate:.2g} requests/s and a target of {1e3 * case.target_s:.0f} ms until the "
        f"first text, {first}."
        + (f" Beyond chance nothing speaks for {', '.join(leave)}." if leave else "")
    )


def ladder(rungs: Sequence[Idea], runs: pd.DataFrame, case: Case) -> pd.DataFrame:
    """The software ideas on top of each other: one row a rung, in the order given."""
    table = rank(runs, rungs, case.rate).set_index("idea").loc[[rung.name for rung in rungs]]
    kept = [
        "goodput_gain", "goodput_gain_low", "goodput_gain_high", "waiting_gain",
        "waiting_gain_low", "waiting_gain_high", "sustained_requests_per_s",
    ]  # fmt: skip
    return table[kept].reset_index()


def ladder_sentence(table: pd.DataFrame, runs: pd.DataFrame, case: Case) -> str:
    """How far the software ideas get together."""
    last = table.to_dict("records")[-1]
    share = runs[(runs["idea"] == "today") & (runs["arrival_rate"] == case.rate)]
    return (
        f"Together they bring {last['goodput_gain']:.2f} × the requests in time "
        f"[{last['goodput_gain_low']:.2f}, {last['goodput_gain_high']:.2f}] (today "
        f"{share['in_time_share'].mean():.0%} come in time) and sustain "
        f"{last['sustained_requests_per_s']:.2g} requests/s with {IN_TIME:.0%} in time."
    )


@dataclass(frozen=True)
class Point:
    """A place in our own code where async or streaming would begin: `where` must exist."""

    where: str
    stage: str
    becomes: str


POINTS = (
    Point(
        "batchgauge.core.tokenizer:BatchTokenizer.encode_batch", "tokenise",
        "await in another thread while the engine decodes",
    ),
    Point(
        "batchgauge.core.tokenizer:BatchTokenizer.decode_batch", "detokenise",
        "await in another thread, per answer, as answers end",
    ),
    Point(
        "batchgauge.core.engine:BatchInferenceEngine.infer_batch", "prefill",
        "an async generator of tokens instead of one return",
    ),
    Point(
        "batchgauge.core.model:LlamaModel.decode", "decode",
        "the step to run in another thread; between two steps requests may join",
    ),
)  # fmt: skip


def conversion_points(gil: pd.DataFrame) -> pd.DataFrame:
    """Where async/await would pay: our own functions by name, with what was measured of each.

    `gil` has one row a stage as `profiling.parallelism.probe_gil` gives it. Raises
    AttributeError when a named function is gone: then this list is out of date.
    """
    measured = gil.set_index("call").to_dict("index")
    rows = []
    for point in POINTS:
        resolve_name(point.where)
        row = measured[point.stage]
        rows.append(
            {
                "function": point.where.replace(":", "."),
                "stage": point.stage,
                "call_ms": row["alone_ms"],
                "gil": row["gil"],
                "other_thread_progress": row["other_thread_progress"],
                "advice": _advice(row),
                "becomes": point.becomes,
            }
        )
    return pd.DataFrame(rows)


def _advice(row: Mapping[Any, Any]) -> str:
    if row["alone_ms"] < SHORT_MS:
        return "leave it: shorter than an event loop minds"
    if row["gil"] == "releases the GIL":
        return "asyncio.to_thread"
    return "a process of its own: a thread would hold up the event loop"


def overlap_sentence(case: Case) -> str:
    """What overlapping tokenizing and detokenizing with inference can give at most, as measured."""
    server = case.today.server
    sample = case.traffic(1.0, 0)
    apart = capacity(sample, case.today.step_s, server)
    beside = capacity(sample, case.today.step_s, replace(server, overlap=True))
    host_ms = 1e3 * server.host_request_s
    return (
        f"Tokenizing and detokenizing cost {host_ms:.2f} ms a request and sampling "
        f"{1e6 * server.host_token_s:.0f} µs a token; hidden behind the model entirely, that "
        f"raises capacity by {beside / apart - 1:.1%} ({apart:.2f} to {beside:.2f} requests/s). "
        + (
            "An async pipeline pays for this workload."
            if beside / apart > 1.05
            else "For this workload an async pipeline is worth its code for streaming and for "
            "remote engines, not for speed."
        )
    )


def distributed_criteria() -> pd.DataFrame:
    """Which existing engine would carry the distributed plan, by what the plan needs.

    From the projects' own documentation (Ray 2.x, Dask 2025, vLLM 0.1x); features, not
    measurements.
    """
    columns = ("criterion", "Ray Data", "Dask", "vLLM")
    rows = (
        ("runs our own engine as it is", "yes, as a class per actor", "yes, as a task or actor",
         "no, its own models"),
        ("model loaded once a worker", "yes, actor pool", "by hand, actor or worker plugin", "yes"),
        ("batching inside a worker", "by batch size; continuous with vLLM", "by hand",
         "yes, continuous"),
        ("sharding and balancing", "yes, streaming blocks", "yes, work stealing",
         "data-parallel ranks behind a router"),
        ("retries after a lost machine", "yes, blocks are run again",
         "yes, a task 3 times by default", "by the client or by Ray"),
        ("data larger than memory", "yes, streamed and spilled", "yes, partitions", "no"),
        ("priority and latency targets", "no, throughput only", "task priorities",
         "yes, priority scheduling"),
        ("needs a GPU", "no", "no", "in practice; a CPU back end exists"),
    )  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def first_measurements(case: Case, distributed: pd.DataFrame) -> pd.DataFrame:
    """What to measure before choosing: each with the number that this study expects."""
    most = int(distributed["machines"].max())
    rows = distributed[distributed["machines"] == most].to_dict("records")
    _, slow, fails = (row["queue_efficiency"] for row in rows)
    batch_s = 1.0 / case.limit * case.today.server.max_batch
    return pd.DataFrame(
        [
            {
                "measure_first": "time of an empty task through the scheduler",
                "expected_here": f"below 1 % of a batch, {10 * batch_s:.1f} ms",
            },
            {
                "measure_first": "time until a cold worker answers its first request",
                "expected_here": f"{case.load_s:.1f} s for loading",
            },
            {
                "measure_first": f"efficiency on {most} machines, one slowed down on purpose",
                "expected_here": f"{slow:.0%}",
            },
            {
                "measure_first": f"efficiency on {most} machines, each killed once",
                "expected_here": f"{fails:.0%}",
            },
        ]
    )
