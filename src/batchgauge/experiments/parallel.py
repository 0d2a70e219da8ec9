"""How each stage scales with threads and processes on this machine, measured.

Four ways to use a second core: two BLAS threads in one call, two Python threads, two
processes, and none. Each way gets short slots in which it repeats a stage's work; ways
are interleaved within a block, so that a ratio compares neighbours in time. A stage
that needs the GIL gains nothing from Python threads; one that is bound by memory
bandwidth gains little from anything.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from batchgauge.registry import open_engine, open_tokenizer
from batchgauge.sizing.probes import probe_items
from batchgauge.workload import texts

Work = Callable[[], object]
WAYS = ("one thread", "two BLAS threads", "two Python threads", "two processes")
STAGES = ("tokenise", "detokenise", "prefill", "decode", "memory stream")


@dataclass(frozen=True)
class Specs:
    """What to run, in a form that another process can open: registry names and a model path."""

    tokenizer: str = "numpy"
    engine: str = "numpy"
    model: str = ""


def make_stages(specs: Specs) -> dict[str, Work]:
    """One call a stage, on its own engine and tokenizer; each call is a fraction of a second.

    tokenise and detokenise: 32 texts of 2,000 characters. prefill: 4 prompts of 48
    tokens. decode: 8 rows, 8 tokens after a prompt of 2. memory stream: a copy of
    64 MB, which does nothing but use bandwidth.
    """
    tokenizer = open_tokenizer(specs.tokenizer, specs.model or None)
    engine = open_engine(specs.engine, specs.model or None)
    passages = texts("prose", 2000, 32)
    ids = tokenizer.encode_many(passages).tolist()
    source = np.ones(16_000_000, np.float32)
    target = np.empty_like(source)
    return {
        "tokenise": partial(tokenizer.encode_many, passages),
        "detokenise": partial(tokenizer.decode_many, ids),
        "prefill": partial(engine.infer_batch, probe_items(4, 48, 1)),
        "decode": partial(engine.infer_batch, probe_items(8, 2, 8)),
        "memory stream": partial(np.copyto, target, source),
    }


def calls_per_s(work: Work, seconds: float) -> float:
    """Calls a second over at least `seconds` and at least one call."""
    begin = time.perf_counter()
    count = 0
    while True:
        work()
        count += 1
        wall = time.perf_counter() - begin
        if wall >= seconds:
            return count / wall


_remote: dict[str, Any] = {}  # a worker process's own stages and barrier


def _open_remote(specs: Specs, barrier: Any) -> None:
    threadpool_limits(1)
    _remote.update(stages=make_stages(specs), barrier=barrier)


def _run_remote(stage: str, seconds: float) -> float:
    _remote["barrier"].wait(timeout=60)
    return calls_per_s(_remote["stages"][stage], seconds)


@contextmanager
def two_processes(specs: Specs) -> Iterator[Callable[[str, float], float]]:
    """A function (stage, seconds) -> calls a second of two warm processes together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    with ProcessPoolExecutor(2, context, _open_remote, (specs, barrier)) as pool:

        def run(stage: str, seconds: float) -> float:
            return sum(pool.map(_run_remote, [stage] * 2, [seconds] * 2))

        for stage in STAGES:
            run(stage, 0.0)  # warm
        yield run


def measure_parallel(
    specs: Specs,
    *,
    blocks: int,
    slot_s: float,
    stages: Sequence[str] = STAGES,
    progress: Callable[[range], Any] = lambda blocks: blocks,
) -> pd.DataFrame:
    """Throughput of every stage in every way, one row a block: stage, way, block, calls_per_s."""
    first, second = make_stages(specs), make_stages(specs)
    rows = []
    with two_processes(specs) as in_processes, ThreadPoolExecutor(2) as threads:

        def run(way: str, stage: str) -> float:
            if way == "two processes":
                return in_processes(stage, slot_s)
            with threadpool_limits(2 if way == "two BLAS threads" else 1):
                if way != "two Python threads":
                    return calls_per_s(first[stage], slot_s)
                both = [threads.submit(calls_per_s, s[stage], slot_s) for s in (first, second)]
                return sum(each.result() for each in both)

        for stage in stages:  # warm both ways of limiting, outside the timed slots
            for way in WAYS[:3]:
                with threadpool_limits(2 if way == "two BLAS threads" else 1):
                    first[stage]()
                    second[stage]()
        for block in progress(range(blocks)):
            ways = WAYS if block % 2 == 0 else WAYS[::-1]
            for stage in stages:
                rows += [
                    {"stage": stage, "way": way, "block": block, "calls_per_s": run(way, stage)}
                    for way in ways
                ]
    return pd.DataFrame(rows)


def throughputs(measured: pd.DataFrame, stage: str, way: str) -> dict[int, list[float]]:
    """Calls a second by number of workers (1 and 2), block by block, for a law of scaling."""
    rows = measured[measured["stage"] == stage].sort_values("block")
    return {
        n: rows.loc[rows["way"] == name, "calls_per_s"].tolist()
        for n, name in ((1, WAYS[0]), (2, way))
    }


def cores_available() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gil_calls(stages: Mapping[str, Work]) -> dict[str, Work]:
    """The stages worth probing for the GIL: those of our own code."""
    return {name: work for name, work in stages.items() if name != "memory stream"}
