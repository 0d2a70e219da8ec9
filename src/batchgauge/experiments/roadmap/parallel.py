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
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from batchgauge.machine.identity import Run
from batchgauge.measuring.record import Sample, to_frame
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.registry import open_engine, open_tokenizer
from batchgauge.sizing.probes import probe_items
from batchgauge.workload import texts

Work = Callable[[], object]
WAYS = ("one thread", "two BLAS threads", "two Python threads", "two processes")
STAGES = ("tokenise", "detokenise", "prefill", "decode", "memory stream")


@dataclass(frozen=True)
class Specs:
    """What to run, in a form that another process can open: registry names and a model path.

    `quick` stages do a fraction of the work, which shows only that they run.
    """

    tokenizer: str = "numpy"
    engine: str = "numpy"
    model: str = ""
    quick: bool = False


def batch_sizes(*, quick: bool = False) -> dict[str, int]:
    """Texts or requests in one call of each stage."""
    prefill, decode = (2, 4) if quick else (4, 8)
    sizes = (32, 32, prefill, decode, 1)
    return dict(zip(STAGES, sizes, strict=True))


def make_stages(engine: Engine, tokenizer: Tokenizer, *, quick: bool = False) -> dict[str, Work]:
    """One call a stage; each is a fraction of a second, a quick one less.

    tokenise and detokenise: 32 texts of 2,000 characters. prefill: 4 prompts of 32
    tokens. decode: 8 rows, 6 tokens after a prompt of 2. memory stream: a copy of
    64 MB, which does nothing but use bandwidth.
    """
    sizes = batch_sizes(quick=quick)
    prefill = probe_items(sizes["prefill"], 16 if quick else 32, 1)
    decode = probe_items(sizes["decode"], 2, 2 if quick else 6)
    passages = texts("prose", 2000, sizes["tokenise"])
    ids = tokenizer.encode_many(passages).tolist()
    source = np.ones(16_000_000, np.float32)
    target = np.empty_like(source)
    return {
        "tokenise": partial(tokenizer.encode_many, passages),
        "detokenise": partial(tokenizer.decode_many, ids),
        "prefill": partial(engine.infer_batch, prefill),
        "decode": partial(engine.infer_batch, decode),
        "memory stream": partial(np.copyto, target, source),
    }


def stage_pair(specs: Specs, engine: Engine) -> tuple[dict[str, Work], dict[str, Work]]:
    """The stages for two threads: two tokenizers, and two engines unless the engine is ours.

    Our engine keeps nothing between or during calls, so two threads may share its weights.
    """
    other = engine if engine.name == "numpy" else open_engine(specs.engine, specs.model or None)
    first, second = (
        make_stages(one, open_tokenizer(specs.tokenizer, specs.model or None), quick=specs.quick)
        for one in (engine, other)
    )
    return first, second


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


_remote: dict[str, Any] = {}  # the other process's own stages, and the barrier


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _open_remote(specs: Specs, barrier: Any) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    engine = open_engine(specs.engine, specs.model or None)
    tokenizer = open_tokenizer(specs.tokenizer, specs.model or None)
    threadpool_limits(1)
    _remote.update(stages=make_stages(engine, tokenizer, quick=specs.quick), barrier=barrier)
    for work in _remote["stages"].values():
        work()


def _run_remote(stage: str, seconds: float) -> float:
    _remote["barrier"].wait(timeout=60)
    return calls_per_s(_remote["stages"][stage], seconds)


@contextmanager
def another_process(
    specs: Specs, stages: Mapping[str, Work]
) -> Iterator[Callable[[str, float], float]]:
    """A function (stage, seconds) -> calls a second of this process and another one together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    with ProcessPoolExecutor(1, context, _open_remote, (specs, barrier)) as pool:

        def run(stage: str, seconds: float) -> float:
            other = pool.submit(_run_remote, stage, seconds)
            barrier.wait(timeout=60)
            return calls_per_s(stages[stage], seconds) + other.result()

        run(STAGES[-1], 0.0)  # waits until the other process is warm
        yield run


def measure_parallel(
    specs: Specs,
    pair: tuple[dict[str, Work], dict[str, Work]],
    *,
    blocks: int,
    slot_s: float,
    budget_s: float = math.inf,
    progress: Callable[[range], Any] = lambda blocks: blocks,
) -> pd.DataFrame:
    """Throughput of every stage in every way, one row a block: stage, way, block, calls_per_s.

    Stops after the block in which `budget_s` is used up, but not before the second.
    """
    first, second = pair
    rows = []
    with another_process(specs, first) as in_processes, ThreadPoolExecutor(2) as threads:

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
        for block in progress(range(blocks)):
            if block >= 2 and time.perf_counter() - begin > budget_s:
                break
            ways = WAYS if block % 2 == 0 else WAYS[::-1]
            for stage in STAGES:
                rows += [
                    {
                        "stage": stage,
                        "way": way,
                        "block": block,
                        "calls_per_s": run(way, stage, slot_s),
                    }
                    for way in ways
                ]
    return pd.DataFrame(rows)


def as_records(measured: pd.DataFrame, *, quick: bool = False, seed: int = 0) -> pd.DataFrame:
    """The measurements as records, one row a slot: wall time is seconds of work per call.

    CPU time is not taken: it would be that of two processes.
    """
    sizes = batch_sizes(quick=quick)
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
    return to_frame(samples, Run.here(threads=0, seed=seed))


def throughputs(measured: pd.DataFrame, stage: str, way: str) -> dict[int, list[float]]:
    """Calls a second by number of workers (1 and 2), block by block, for a law of scaling."""
    rows = measured[measured["stage"] == stage].sort_values("block")
    return {
        n: rows.loc[rows["way"] == name, "calls_per_s"].tolist()
        for n, name in ((1, WAYS[0]), (2, way))
    }


def gil_makers(pair: tuple[dict[str, Work], dict[str, Work]]) -> dict[str, Callable[[], Work]]:
    """For each stage of our own code, a function that gives first one call, then the other."""
    return {
        name: partial(next, iter([stages[name] for stages in pair]))
        for name in STAGES
        if name != "memory stream"
    }
