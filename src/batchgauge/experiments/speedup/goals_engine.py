"""Goals of the engine: decode and prefill beside their floors, ragged batches, memory, load."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from batchgauge.core.counts import Count, decode_counts, prefill_counts, total
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.model import TILE, LlamaModel
from batchgauge.experiments.context import Context
from batchgauge.experiments.speedup.goals import Goal, ratio
from batchgauge.experiments.steps import CONTEXT, decode_call
from batchgauge.experiments.ways import quick_ms
from batchgauge.measuring.memory import allocations, memory_overhead
from batchgauge.text import percent
from batchgauge.workload import exact_requests, request_lengths

GEMM = 1024  # order of the product that stands for the machine's sgemm rate


def _floor(count: Count, memory: npt.NDArray[np.float32]) -> tuple[Callable[[], object], float]:
    """A call that does the roofline's binding work of `count`, and its share of that work.

    `memory` [rows, 1024] is what the call may read; at least as much as `count` reads.
    """
    matrix = np.ones((GEMM, GEMM), np.float32)
    out = np.empty_like(matrix)
    gemm = partial(np.matmul, matrix, matrix, out=out)
    stream = memory[: count.bytes // 4 // 1024]
    vector = np.ones(1024, np.float32)
    read = partial(np.matmul, stream, vector)
    gemm_share = 2.0 * GEMM**3 / max(count.flops, 1)
    if quick_ms(read) >= quick_ms(gemm) / gemm_share:
        return read, 1.0
    return gemm, gemm_share


def decode(context: Context, engine: BatchInferenceEngine) -> list[Goal]:
    """S(2), S(8) of decode alone, and the distance from the roofline at 1, 8 and 32."""
    model = engine.model
    steps = {b: decode_call(model, b, CONTEXT) for b in (1, 2, 8, 32)}
    part = "decode"
    goals = [
        ratio(
                context,
            part, f"S({b}) of decode alone" + (": never slower per token than 1" if b == 2 else ""),
            target, {"batch 1": steps[1], f"batch {b}": steps[b]},
            items={"batch 1": 1, f"batch {b}": b},
        )
        for b, target in ((2, 1.0), (8, 5.0))
    ]  # fmt: skip
    each = model.weights.bytes_each
    counts = {b: total(decode_counts(model.config, [CONTEXT + 1] * b, each)) for b in (1, 8, 32)}
    memory = np.ones((max(c.bytes for c in counts.values()) // 4 // 1024, 1024), np.float32)
    for b, target in ((1, 1.15), (8, 1.7), (32, 1.8)):
        floor, share = _floor(counts[b], memory)
        bound = "sgemm rate" if share != 1.0 else "memory bandwidth"
        goals.append(
            ratio(
                context,
                part, f"time over the roofline's floor at batch {b}", target,
                {"floor": floor, "decode": steps[b]}, scale=1 / share, invert=True,
                note=f"bound by {bound}, measured beside it",
            )
        )  # fmt: skip
    return goals


def prefill(context: Context, engine: BatchInferenceEngine) -> list[Goal]:
    """Prefill of 512 tokens (fewer for a slow model) as a share of the sgemm rate beside it."""
    model, T = engine.model, context.positions(512)
    ids = np.random.default_rng(context.seed).integers(0, model.config.vocab_size, T).tolist()
    count = total(prefill_counts(model.config, [T], model.weights.bytes_each))
    matrix = np.ones((GEMM, GEMM), np.float32)
    gemm = partial(np.matmul, matrix, matrix, out=np.empty_like(matrix))
    share = 100.0 * count.flops / (2.0 * GEMM**3)

    def whole() -> object:
        return model.prefill([ids], model.new_cache([T]))

    products_ms, whole_ms = quick_ms(partial(_products, model, T)), quick_ms(whole)
    return [
        ratio(
                context,
            "prefill", f"share of the sgemm rate at {T} tokens", 75.0,
            {"sgemm": gemm, "prefill": whole}, scale=share, unit="%", slow=True,
            note=f"the products with weights alone take {percent(products_ms / whole_ms)} of the "
            "time; "
            "attention, norms and activations the rest",
        )
    ]  # fmt: skip


def _products(model: LlamaModel, positions: int) -> None:
    """The products of a prefill with the layers' weights, and nothing else."""
    c = model.config
    x = np.ones((positions, c.d_model), np.float32)  # [T, D]
    wide = np.ones((positions, c.attention_width), np.float32)  # [T, H E]
    inner = np.ones((TILE, c.d_ff), np.float32)  # [TILE, F]
    for layer in model.weights.layers:
        layer.qkv(x)
        layer.output(wide)
        for first in range(0, positions, TILE):
            tile = x[first : first + TILE]
            layer.gate_up(tile)
            layer.down(inner[: len(tile)])


def ragged(context: Context, engine: BatchInferenceEngine) -> list[Goal]:
    """A batch of 8 with prompts in the shape of real traffic against 8 equal ones, same tokens."""
    lengths, _ = request_lengths(8, scale=0.03, seed=context.seed)
    equal = [int(lengths.sum()) // 8] * 7
    equal.append(int(lengths.sum()) - sum(equal))
    new = [8] * 8
    return [
        ratio(
                context,
            "ragged", "throughput of ragged prompts over equal ones", 85.0,
            {
                "equal": partial(engine.infer_batch, exact_requests(equal, new)),
                "ragged": partial(engine.infer_batch, exact_requests(lengths.tolist(), new)),
            },
            scale=100.0, unit="%", slow=True,
            note=f"prompts of {lengths.min()} to {lengths.max()} tokens",
        )
    ]  # fmt: skip


def memory(context: Context, engine: BatchInferenceEngine) -> list[Goal]:
    """Overhead over what must exist at batch 8 and 32, and growth over many decode steps."""
    goals = []
    for b in (8, 32):
        items = exact_requests([32] * b, [8] * b)
        held = engine.count_bytes([32] * b, [8] * b)
        peak = allocations(partial(engine.infer_batch, items)).peak_bytes
        value = 100 * memory_overhead(held["weights"] + peak, sum(held.values()))
        goals.append(Goal("memory", f"overhead at batch {b}", 2.0, "lower", value, unit="%"))
    steps = context.budget.choose(smoke=60, default=1000, thorough=1000)
    steps = max(20, min(steps, int(context.budget.share(0.6) / context.cost.step_s)))
    steps = min(steps, (context.room or steps) - 2)
    grown = _growth_bytes(engine, steps)
    goals.append(
        Goal(
            "memory", f"growth over {steps} decode steps", 4096.0, "lower", grown, unit="bytes",
            note="traced bytes beyond the cache, last tenth against first tenth",
        )
    )  # fmt: skip
    return goals


def _growth_bytes(engine: BatchInferenceEngine, steps: int) -> float:
    model = engine.model
    cache = model.new_cache([steps + 2])
    model.prefill([[1]], cache)
    token = np.array([1], dtype=np.int32)
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
    note = f"median and range of {len(found)} processes"
    notes = (note, f"{note}; {np.median(ready):.2f} × once tokenizer and compiled code are there")
    return [
        Goal(
            "load", goal, target, "lower", float(np.median(column)), float(column.min()),
            float(column.max()), unit, text,
        )
        for (goal, target, unit), column, text in zip(goals, table, notes, strict=True)
    ]  # fmt: skip
