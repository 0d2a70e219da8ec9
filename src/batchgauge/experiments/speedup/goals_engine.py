"""Goals of the engine that are not of speed: memory that grows, load."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import numpy.typing as npt

from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.experiments.context import Context
from batchgauge.experiments.speedup.goals import Goal
from batchgauge.statistics import location

SETTLED = 50  # steps before the first that counts


def growth(context: Context, engine: BatchInferenceEngine) -> list[Goal]:
    """Growth of memory over many decode steps; notebook 01 has the overhead of a batch."""
    steps = context.budget.choose(smoke=60, default=150, thorough=1000)
    steps = max(20, min(steps, int(context.budget.share(0.6) / context.cost.step_s)))
    steps = min(steps, (context.room or steps + SETTLED + 2) - SETTLED - 2)
    grown = _growth_bytes(engine, steps)
    return [
        Goal(
            "memory", f"growth over {steps} decode steps", 4096.0, "lower", grown, unit="bytes",
            note="traced bytes beyond the cache, last tenth against first tenth",
        )
    ]  # fmt: skip


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


def load(context: Context) -> list[Goal]:
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
    return [
        Goal(
            "load", goal, target, "lower", *_interval(column), unit, text,
        )
        for (goal, target, unit), column, text in zip(goals, table, notes, strict=True)
    ]  # fmt: skip


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Geometric mean of positive values [processes] with its 95 % interval."""
    found = location(np.log(values)).exp()
    return found.value, found.low, found.high
