"""Decode, prefill and tokenizing in fresh processes: by weights mode, threads and engine.

Processes differ from each other, by where their memory happens to lie, more than calls of one
do; so a process is the unit of evidence. Within one, all engines take turns, and a ratio is
that of neighbours in time. With a single process (a smoke run) its blocks are the units, and
the table says so. Leaves out whether answers are equal: notebook 06 compares them.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from batchgauge import workload
from batchgauge.adapters.own import NumpyStepper
from batchgauge.adapters.stepped import SteppedEngine, Stepper
from batchgauge.clock import timed
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.machine.identity import Run
from batchgauge.machine.limits import performance_cores
from batchgauge.measuring import Estimate, location
from batchgauge.measuring.record import Amount, Labels, Sample, to_frame
from batchgauge.measuring.timing import Conditions
from batchgauge.registry import open_engine, weights_of

CONTEXT = 32  # positions that a decode step looks back on at first
TEXT = 4_000_000  # characters of a tokenizing call, repeated: over 10 ms, threads awake for most
PAUSE_S = 0.005  # in which threads of the engine before go to sleep
KEY = ["part", "implementation", "weights", "threads", "batch_size", "tokens", "characters"]


@dataclass(frozen=True, slots=True)
class Entrant:
    """One engine on one file; `weights` is how it keeps them, where its spec does not say."""

    name: str
    spec: str
    model: str = ""
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a process measures: each entrant at each size, length and number of threads."""

    entrants: tuple[Entrant, ...]
    decode_sizes: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()  # tokens of the one prompt of a prefill
    readers: tuple[str, ...] = ()  # names of entrants that prefill; empty: all
    texts: tuple[tuple[int, int], ...] = ()  # texts of a batch, characters of each
    threads: tuple[int, ...] = (1,)
    blocks: int = 3
    seed: int = 0
    model: str = ""  # of the tokenizer


def thread_counts() -> tuple[int, ...]:
    """1, 2, 4 … and all full-speed cores."""
    most = performance_cores()
    return tuple(sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {most}))


def measure(plan: Plan, *, processes: int, budget_s: float = math.inf) -> pd.DataFrame:
    """Records of so many fresh processes, one row a call.

    Of fewer where `budget_s` has no room for one more like those before; of one at least.

    An entrant that cannot be opened has no rows. Raises UserError when a process dies.
    """
    spawn, frames, begin = multiprocessing.get_context("spawn"), [], time.perf_counter()
    for process in range(processes):
        spent_s = time.perf_counter() - begin
        if process and spent_s * (process + 1) / process > budget_s:
            break
        try:
            with ProcessPoolExecutor(1, spawn) as pool:
                frames.append(pool.submit(_in_process, plan, process).result())
        except BrokenProcessPool:
            names = ", ".join(e.name for e in plan.entrants)
            raise UserError(f"A fresh process that ran {names} died; is there memory?") from None
    return pd.concat(frames, ignore_index=True)


def _in_process(plan: Plan, process: int) -> pd.DataFrame:
    steppers = _open(plan)
    kept = {e.name: e.weights or weights_of(e.spec) for e in plan.entrants}
    run, frames = Run.here(seed=plan.seed), []
    for part, shape, calls in _works(plan, steppers):
        for threads in plan.threads:
            for stepper in steppers.values():
                if hasattr(stepper, "set_threads"):
                    stepper.set_threads(threads)
            with Conditions(threads).held():
                samples = _take_turns(plan, part, shape, calls(threads), process, threads)
            frame = to_frame(samples, run).assign(threads=threads, **shape)
            frames.append(frame.assign(weights=frame["implementation"].map(kept).fillna("")))
    return pd.concat(frames, ignore_index=True)


def _open(plan: Plan) -> dict[str, Stepper]:
    found: dict[str, Stepper] = {}
    for entrant in plan.entrants:
        try:
            engine = open_engine(entrant.spec, entrant.model or None, 1)
        except UserError:
            if weights_of(entrant.spec) and entrant.spec.startswith("numpy"):
                raise
            continue  # a peer that is not installed
        if isinstance(engine, BatchInferenceEngine):
            found[entrant.name] = NumpyStepper(engine.model)
        elif isinstance(engine, SteppedEngine):
            found[entrant.name] = engine.stepper
    return found


Calls = dict[str, Callable[[], object]]


def _works(
    plan: Plan, steppers: dict[str, Stepper]
) -> Iterator[tuple[str, dict[str, int], Callable[[int], Calls]]]:
    """Part, shape, and the calls with so many threads."""
    rng = np.random.default_rng(plan.seed)
    for batch in plan.decode_sizes:
        room = (plan.blocks + 1) * len(plan.threads)
        steps: Calls = {}
        for name, stepper in steppers.items():
            rows = rng.integers(0, stepper.vocab_size, (batch, CONTEXT)).tolist()
            with Conditions(performance_cores()).held():
                stepper.prefill(rows, room)
            steps[name] = partial(stepper.decode, np.arange(batch, dtype=np.int32))
        shape = {"batch_size": batch, "tokens": batch, "characters": 0}
        yield "decode", shape, partial(_same, steps)
    for length in plan.prompts:
        prompts: Calls = {}
        for name, stepper in steppers.items():
            if plan.readers and name not in plan.readers:
                continue
            ids = rng.integers(0, stepper.vocab_size, (1, length)).tolist()
            prompts[name] = partial(stepper.prefill, ids, 1)
        shape = {"batch_size": 1, "tokens": length, "characters": 0}
        yield "prefill", shape, partial(_same, prompts)
    tokenizers = {n: BPETokenizer.from_gguf(plan.model or None, threads=n) for n in plan.threads}
    for count, characters in plan.texts:
        texts = workload.texts("prose", characters, count, plan.seed)
        tokens = len(tokenizers[plan.threads[0]].encode_many(texts).ids)
        shape = {"batch_size": count, "tokens": tokens, "characters": characters}
        yield "tokenize", shape, partial(_tokenizing, tokenizers, texts)


def _same(calls: Calls, _threads: int) -> Calls:
    return calls


def _tokenizing(tokenizers: Mapping[int, BPETokenizer], texts: list[str], threads: int) -> Calls:
    return {"numpy": partial(tokenizers[threads].encode_many, texts)}


def _take_turns(
    plan: Plan, part: str, shape: dict[str, int], calls: Calls, process: int, threads: int
) -> list[Sample]:
    """Each call once a block, in turning order; the first block is a warm-up."""
    text = shape["batch_size"] * shape["characters"]
    loops = max(20, TEXT // text) if part == "tokenize" else 1
    benchmark = f"{part}/batch={shape['batch_size']}/threads={threads}"
    amount = Amount(shape["batch_size"], shape["tokens"], shape["batch_size"])
    samples = []
    for block in range(plan.blocks + 1):
        names = list(calls) if block % 2 else list(calls)[::-1]
        for position, name in enumerate(names):
            if threads > 1:
                time.sleep(PAUSE_S)
            place = {"block": block, "position": position, "is_warmup": block == 0}
            samples.append(
                Labels(benchmark, name, part, shape, process).sample(
                    amount, timed(calls[name], loops), **place
                )
            )
    return samples


def _logs(samples: pd.DataFrame, **wanted: object) -> pd.Series:
    """Log of tokens a second by unit: the process's median, or a block of the only process."""
    rows = samples[~samples["is_warmup"]]
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    logs = np.log(1e3 * rows["tokens"] / rows["wall_ms"])
    unit = rows["process"] if _processes(samples) > 1 else rows["block"]
    found: pd.Series = pd.Series(logs, index=rows.index).groupby(unit).median()
    return found


def _processes(samples: pd.DataFrame) -> int:
    return len(set(samples["process"]))


def rates(samples: pd.DataFrame) -> pd.DataFrame:
    """Tokens a second of each engine, shape and number of threads, with 95 % intervals.

    `processes` is how many the interval rests on; 1 means that it is over blocks of one.
    """
    rows = []
    for key, part in samples.groupby(KEY, sort=False):
        middle = location(_logs(part))
        rows.append((*key, *_exp(middle), _processes(part)))
    return pd.DataFrame(rows, columns=[*KEY, "tokens_per_s", "low", "high", "processes"])


def ratio(
    samples: pd.DataFrame, over: Mapping[str, object], under: Mapping[str, object]
) -> tuple[float, float, float] | None:
    """Throughput of the rows `over` ÷ that of `under`, within processes, with its 95 % interval.

    Each names columns and values; None where there are no such rows.
    """
    both = (_logs(samples, **over) - _logs(samples, **under)).dropna()
    return None if both.empty else _exp(location(both))


def _exp(middle: Estimate) -> tuple[float, float, float]:
    low, high = (min(max(v, -50.0), 50.0) for v in (middle.low, middle.high))
    return math.exp(middle.value), math.exp(low), math.exp(high)


def rests_on(samples: pd.DataFrame) -> str:
    """What intervals are over, in words."""
    count = _processes(samples)
    return f"{count} fresh processes" if count > 1 else "the blocks of one fresh process"
