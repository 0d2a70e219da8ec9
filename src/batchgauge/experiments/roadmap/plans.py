"""Where two items of the list would begin: async in our own code, distribution on an engine.

The functions are named and must exist; what is said of them is measured. The engines
for distribution are compared by features from their documentation, and beside them
stands what to measure before choosing one, with the number to expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import Any

import pandas as pd

from batchgauge.experiments.roadmap.study import Case
from batchgauge.simulate.metrics import capacity

SHORT_MS = 5.0  # a call below this may stay in the event loop


@dataclass(frozen=True)
class Point:
    """A place in our own code where async or streaming would begin: `where` must exist."""

    where: str
    stage: str
    becomes: str


POINTS = (
    Point(
        "batchgauge.core.tokenizer.bpe_tokenizer:BatchTokenizer.encode_batch", "tokenise",
        "await in another thread while the engine decodes",
    ),
    Point(
        "batchgauge.core.tokenizer.bpe_tokenizer:BatchTokenizer.decode_batch", "detokenise",
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
                "lock_free_share": row["lock_free_share"],
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
    if row["gil"] == "takes turns":
        return "asyncio.to_thread keeps the event loop alive, without gaining time"
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
