"""How each stage scales with threads and processes on this machine, measured.

Four ways to use a second core: two BLAS threads in one call, two Python threads, two
processes, and none. Each way gets short slots in which it repeats a stage's work; ways
are interleaved within a block, so that a ratio compares neighbours in time. A stage
that needs the GIL gains nothing from Python threads; one that is bound by memory
bandwidth gains little from anything.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from batchgauge.clock import repeated
from batchgauge.experiments.context import Context
from batchgauge.machine.identity import Run
from batchgauge.measuring.record import Sample, to_frame
from batchgauge.protocols import Engine
from batchgauge.workload import exact_requests, texts

Call = Callable[[], object]
Pair = tuple[dict[str, Call], dict[str, Call]]  # the same stages for two threads
WAYS = ("one thread", "two BLAS threads", "two Python threads", "two processes")
STAGES = ("tokenize", "detokenize", "prefill", "decode", "memory stream")


def batch_sizes(context: Context) -> dict[str, int]:
    """Texts or requests in one call of each stage."""
    prefill, decode = (2, 4) if context.budget.name == "smoke" else (4, 8)
    sizes = (32, 32, prefill, decode, 1)
    return dict(zip(STAGES, sizes, strict=True))


def make_stages(context: Context, engine: Engine | None = None) -> dict[str, Call]:
    """One call a stage; each is a fraction of a second, a smoke run's less.

    tokenize and detokenize: 32 texts of 2,000 characters. prefill: 4 prompts of 32
    tokens. decode: 8 rows, 6 tokens after a prompt of 2. memory stream: a copy of
    64 MB, which does nothing but use bandwidth. `engine` takes the place of the context's.
    """
    quick, sizes = context.budget.name == "smoke", batch_sizes(context)
    rows, count = sizes["prefill"], sizes["decode"]
    prefill = exact_requests([16 if quick else 32] * rows, [1] * rows)
    decode = exact_requests([2] * count, [2 if quick else 6] * count)
    passages = texts("prose", 2000, sizes["tokenize"])
    ids = context.tokenizer.encode_many(passages).tolist()
    source = np.ones(16_000_000, np.float32)
    target = np.empty_like(source)
    engine = engine or context.engine
    return {
        "tokenize": partial(context.tokenizer.encode_many, passages),
        "detokenize": partial(context.tokenizer.decode_many, ids),
        "prefill": partial(engine.infer_batch, prefill),
        "decode": partial(engine.infer_batch, decode),
        "memory stream": partial(np.copyto, target, source),
    }


def stage_pair(context: Context) -> Pair:
    """The stages for two threads: two tokenizers, and two engines unless the engine is ours.

    Our engine keeps nothing between or during calls, so two threads may share its weights.
    """
    shared = context.engine if context.engine.name == "numpy" else None
    return make_stages(context), make_stages(_alone(context), shared)


def _alone(context: Context) -> Context:
    """The same names with nothing opened yet, for one thread each; another process can have it."""
    return replace(context, threads=1)


def calls_per_s(call: Call, seconds: float) -> float:
    """Calls a second over at least `seconds` and at least one call."""
    return 1e3 / repeated(call, seconds).wall_ms


_remote: dict[str, Any] = {}  # the other process's own stages, and the barrier


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _open_remote(context: Context, barrier: Any) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    stages = make_stages(context)
    threadpool_limits(1)
    _remote.update(stages=stages, barrier=barrier)
    for call in stages.values():
        call()


def _run_remote(stage: str, seconds: float) -> float:
    _remote["barrier"].wait(timeout=60)
    return calls_per_s(_remote["stages"][stage], seconds)


@contextmanager
def another_process(
    context: Context, stages: Mapping[str, Call]
) -> Iterator[Callable[[str, float], float]]:
    """A function (stage, seconds) -> calls a second of this process and another one together."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    with ProcessPoolExecutor(1, spawn, _open_remote, (_alone(context), barrier)) as pool:

        def run(stage: str, seconds: float) -> float:
            other = pool.submit(_run_remote, stage, seconds)
            barrier.wait(timeout=60)
            return calls_per_s(stages[stage], seconds) + other.result()

        pool.submit(os.getpid).result()  # waits until the other process is warm, however long
        yield run


def measure_parallel(
    context: Context, pair: Pair, *, blocks: int, slot_s: float, budget_s: float = math.inf
) -> pd.DataFrame:
    """Throughput of every stage in every way, one row a block: stage, way, block, calls_per_s.

    Stops after the block in which `budget_s` is used up, but not before the second.
    """
    first, second = pair
    rows = []
    with another_process(context, first) as in_processes, ThreadPoolExecutor(2) as threads:

        def run(way: str, stage: str, seconds: float) -> float:
            with threadpool_limits(2 if way == "two BLAS threads" else 1):
                if way == "two processes":
                    return in_processes(stage, seconds)
                if way != "two Python threads":
                    return calls_per_s(first[stage], seconds)
                both = [threads.submit(calls_per_s, s[stage], seconds) for s in pair]
                return sum(each.result() for each in both)

        for stage in STAGES:  # the other process warmed itself
            second[stage]()
            run("two BLAS threads", stage, 0.0)
        begin = time.perf_counter()
        for block in tqdm(range(blocks), desc="blocks"):
            if block >= 2 and time.perf_counter() - begin > budget_s:
                break
            ways = WAYS if block % 2 == 0 else WAYS[::-1]
            for stage in STAGES:
                rows += [(stage, way, block, run(way, stage, slot_s)) for way in ways]
    return pd.DataFrame(rows, columns=["stage", "way", "block", "calls_per_s"])


def as_records(measured: pd.DataFrame, context: Context) -> pd.DataFrame:
    """The measurements as records, one row a slot: wall time is seconds of work per call.

    CPU time is not taken: it would be that of two processes.
    """
    sizes = batch_sizes(context)
    places = measured.groupby("block").cumcount()
    samples = [
        Sample(
            benchmark=f"parallel/{row['stage']}",
            implementation=row["way"],
            part=row["stage"],
            batch_size=sizes[row["stage"]],
            parameters="{}",
            process=0,
            block=row["block"],
            position=int(place),
            is_warmup=False,
            inner_loops=1,
            wall_ms=1e3 / row["calls_per_s"],
            cpu_ms=math.nan,
            items=sizes[row["stage"]],
            tokens=0,
            gc="on",
        )
        for row, place in zip(measured.to_dict("records"), places, strict=True)
    ]
    return to_frame(samples, Run.here(threads=0, seed=context.seed, weights=context.weights_kept))


def throughputs(measured: pd.DataFrame, stage: str, way: str) -> dict[int, list[float]]:
    """Calls a second by number of workers (1 and 2), block by block, for a law of scaling."""
    rows = measured[measured["stage"] == stage].sort_values("block")
    return {
        n: rows.loc[rows["way"] == name, "calls_per_s"].tolist()
        for n, name in ((1, WAYS[0]), (2, way))
    }


def gil_makers(pair: Pair) -> dict[str, Callable[[], Call]]:
    """For each stage of our own code, a function that gives first one call, then the other."""
    return {
        name: partial(next, iter([stages[name] for stages in pair]))
        for name in STAGES
        if name != "memory stream"
    }
