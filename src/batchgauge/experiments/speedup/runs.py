"""What the speedup notebook measures in its own process: three ladders, goals of memory, load."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from batchgauge.baseline import engine_rungs, tokenizer_rungs
from batchgauge.baseline.stats import LOOKUP_BASELINE, LOOKUP_RUNGS, STATS_BASELINE, STATS_RUNGS
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.errors import UserError
from batchgauge.experiments.context import TYPICAL, Context
from batchgauge.experiments.scaling import SLACK
from batchgauge.experiments.speedup.goals import Goal
from batchgauge.experiments.speedup.ladder import ALONE, CUMULATIVE, Ladder, climb
from batchgauge.request import BatchResponse, BatchResult
from batchgauge.statistics import location
from batchgauge.workload import exact_requests, texts

SETTLED = 50  # steps before the first that counts


def check(context: Context) -> None:
    """Raises UserError for a foreign implementation."""
    for what, name in (("tokenizer", context.tokenizer_name), ("engine", context.engine_name)):
        if name.partition(":")[0] != "numpy":
            raise UserError(
                f"The ladders take the core's own implementations apart; {what} is '{name}', "
                "expected 'numpy' (the peers notebook compares foreign ones)."
            )


def _forms(context: Context) -> tuple[str, ...]:
    return (CUMULATIVE,) if context.budget.name == "smoke" else (ALONE, CUMULATIVE)


def _inference_work(context: Context, rungs: int) -> tuple[int, tuple[str, ...]]:
    """Requests of the ladder of inference, and its forms, for what the model costs."""
    forms = (ALONE, CUMULATIVE) if context.budget.name == "thorough" else (CUMULATIVE,)
    rows = context.budget.choose(smoke=2, default=2, thorough=8)
    blocks = context.budget.choose(smoke=2, default=4, thorough=20) * (rungs + 2)
    limit = SLACK * context.budget.share(0.3)
    one = context.cost.batch_s(1, TYPICAL // 2, 3)  # the baseline takes twice ours, about
    while rows > 1 and len(forms) * blocks * rows * one > limit:
        rows //= 2
        context.note(f"Ladder of inference: batches of {rows}.")
    if len(forms) > 1 and len(forms) * blocks * rows * one > limit:
        forms = (CUMULATIVE,)
        context.note("Ladder of inference: ideas on top of each other only, none alone.")
    return rows, forms


def _path(context: Context) -> Path | None:
    return Path(context.model) if context.model else None


def _climb(context: Context, ladder: Ladder, min_blocks: int) -> pd.DataFrame:
    return climb(ladder, min_blocks=min_blocks, seed=context.seed, threads=context.threads)


def climb_tokenizing(context: Context, characters: int, count: int) -> pd.DataFrame:
    """The ladder of tokenizing, on `count` warm texts of so many characters."""
    path = _path(context)
    ladder = Ladder(
        "tokenizing", lambda: tokenizer_rungs.baseline(path), tokenizer_rungs.tokenizer_rungs(path),
        texts("prose", characters, count, context.seed), count, context.budget.share(0.15),
        forms=_forms(context),
    )  # fmt: skip
    return _climb(context, ladder, context.budget.min_blocks)


def climb_inference(context: Context) -> pd.DataFrame:
    """The ladder of inference, on a few requests of unequal length."""
    path, choose = _path(context), context.budget.choose
    new = choose(smoke=1, default=2, thorough=16)
    every = engine_rungs.engine_rungs(path)
    rungs = choose(smoke=every[-2:], default=every, thorough=every)
    rows, forms = _inference_work(context, len(rungs))
    work = exact_requests([9, 17, 12, 24, 30, 40, 21, 33][:rows], [new] * rows)
    ladder = Ladder(
        "inference", lambda: engine_rungs.baseline(path), rungs, work, rows,
        context.budget.share(0.12), forms=forms, slow=True,
    )  # fmt: skip
    return _climb(context, ladder, choose(smoke=4, default=4, thorough=20))


def climb_statistics(context: Context) -> pd.DataFrame:
    """The ladders of statistics (1,000 items) and of looking up 100 of 10,000 responses."""
    rng = np.random.default_rng(context.seed)
    times = rng.lognormal(1.0, 0.5, 1000)
    result = BatchResult.of((BatchResponse(str(i), i, 1.0) for i in range(10_000)), 1.0)
    wanted = [str(i) for i in rng.integers(0, 10_000, 100)]
    works = (
        ("statistics", STATS_BASELINE, STATS_RUNGS, (times, 1.0), 1000),
        ("look-up", LOOKUP_BASELINE, LOOKUP_RUNGS, (result, wanted), 100),
    )
    share, forms = context.budget.share(0.02), _forms(context)
    tables = [
        _climb(
            context, Ladder(part, base, rungs, work, items, share, forms), context.budget.min_blocks
        )
        for part, base, rungs, work, items in works
    ]
    return pd.concat(tables, ignore_index=True)


def measure_goals(context: Context) -> list[Goal]:
    """The goals that are not of speed; a smoke run has none, as they take a while."""
    engine = context.engine
    assert isinstance(engine, BatchInferenceEngine)  # `check` has seen to it
    if context.budget.name == "smoke":
        return []
    goals = [_growth(context, engine), *_load(context)]
    return [replace(g, weights=context.weights_kept) for g in goals]


def _growth(context: Context, engine: BatchInferenceEngine) -> Goal:
    """Growth of memory over many decode steps; notebook 01 has the overhead of a batch."""
    steps = context.budget.choose(smoke=60, default=150, thorough=1000)
    steps = max(20, min(steps, int(context.budget.share(0.6) / context.cost.step_s)))
    steps = min(steps, (context.room or steps + SETTLED + 2) - SETTLED - 2)
    grown = _growth_bytes(engine, steps)
    note = "traced bytes beyond the cache, last tenth against first tenth"
    goal = f"growth over {steps} decode steps"
    return Goal("memory", goal, 4096.0, "lower", grown, unit="bytes", note=note)


def _growth_bytes(engine: BatchInferenceEngine, steps: int) -> float:
    model = engine.model
    cache = model.new_cache([steps + SETTLED + 2])
    model.prefill([[1]], cache)
    token = np.array([1], dtype=np.int32)
    for _ in range(SETTLED):
        model.decode(token, cache)
    held = np.zeros(steps)  # made before, so that noting what is held does not add to it
    tracemalloc.start()
    try:
        for step in range(steps):
            model.decode(token, cache)
            held[step] = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    tenth = max(steps // 10, 1)
    return float(max(0.0, np.median(held[-tenth:]) - np.median(held[:tenth])))


# Seconds to load the weights, peak memory over theirs then, and once an engine is ready too. The
# peak of this process alone: ru_maxrss would also count what its parent held at the fork.
_LOAD = """
import sys, time, resource
from pathlib import Path
from batchgauge.core.model import LlamaModel

def peak_bytes():
    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text().split()
        return int(words[words.index("VmHWM:") + 1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

begin = time.perf_counter()
model = LlamaModel.load(sys.argv[1] or None, sys.argv[2])
seconds = time.perf_counter() - begin
of_model = peak_bytes()
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer, read_metadata
metadata = read_metadata(sys.argv[1] or None)
BatchInferenceEngine(model, BPETokenizer.from_metadata(metadata, threads=1), metadata)
print(seconds, of_model / model.weights_bytes, peak_bytes() / model.weights_bytes)
"""


def _load(context: Context) -> list[Goal]:
    """Seconds from a GGUF to a model in fresh processes, and their peak resident memory."""
    goals = (
        ("load time", 1.0, "s"),
        ("peak resident memory over weights, all of Python included", 1.15, "×"),
    )
    found = []
    for _ in range(context.budget.choose(smoke=1, default=5, thorough=11)):
        command = [sys.executable, "-c", _LOAD, context.model, context.weights_kept]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            note = (done.stderr.strip().splitlines() or ["the process failed"])[-1]
            return [Goal("load", g, t, "lower", unit=u, note=note) for g, t, u in goals]
        found.append([float(x) for x in done.stdout.split()])
    *table, ready = np.array(found).T  # [runs] each
    note = f"over {len(found)} fresh processes"
    notes = (note, f"{note}; {np.median(ready):.2f} × once tokenizer and compiled code are there")
    intervals = [location(np.log(column)).exp() for column in table]
    return [
        Goal("load", goal, target, "lower", i.value, i.low, i.high, unit, text)
        for (goal, target, unit), i, text in zip(goals, intervals, notes, strict=True)
    ]
