"""Where an async pipeline would begin in our own code, and what it could give.

The functions are named and must exist; what is said of them is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

import pandas as pd

from batchgauge.experiments.roadmap.study import Case
from batchgauge.simulate.metrics import capacity
from batchgauge.text import percent

SHORT_MS = 5.0  # a call below this may stay in the event loop


# Where async or streaming would begin in our own code: function, stage, what it would become.
POINTS = (
    (
        "batchgauge.core.tokenizer.batch_tokenizer:BatchTokenizer.encode_batch", "tokenize",
        "await in another thread while the engine decodes",
    ),
    (
        "batchgauge.core.tokenizer.batch_tokenizer:BatchTokenizer.decode_batch", "detokenize",
        "await in another thread, per answer, as answers end",
    ),
    (
        "batchgauge.core.engine:BatchInferenceEngine.infer_batch", "prefill",
        "an async generator of tokens instead of one return",
    ),
    (
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
    for where, stage, becomes in POINTS:
        resolve_name(where)
        row = measured[stage]
        found = (row["alone_ms"], row["gil"], row["lock_free_share"], _advice(row))
        rows.append((where.replace(":", "."), stage, *found, becomes))
    columns = ["function", "stage", "call_ms", "gil", "lock_free_share", "advice", "becomes"]
    return pd.DataFrame(rows, columns=columns)


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
    beside = capacity(
        sample, case.today.step_s, replace(server, host=replace(server.host, overlap=True))
    )
    host_ms = 1e3 * server.host.request_s
    return (
        f"Tokenizing and detokenizing cost {host_ms:.2f} ms a request and sampling "
        f"{1e6 * server.host.token_s:.0f} µs a token; hidden behind the model entirely, that "
        f"raises capacity by {percent(beside / apart - 1, 1)} ({apart:.2f} to {beside:.2f} "
        "requests/s). "
        + (
            "An async pipeline pays for this workload."
            if beside / apart > 1.05
            else "For this workload an async pipeline is worth its code for streaming and for "
            "remote engines, not for speed."
        )
    )
