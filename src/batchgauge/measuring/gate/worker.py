"""One process of the regression gate: prepares and times benchmarks on request.

Run by path, never imported: `python -P worker.py SUITE OPTIONS ORDER`, with PYTHONPATH at the
revision under test; ORDER seeds the order in which modules are imported. Only the standard
library, the given suite file and the revision's own package with what it needs are imported,
so both revisions are timed by the same code. Requests and answers are JSON, one a line, on
standard input and output:

    {"where": true}                      -> {"package": FOLDER}
    {"describe": NAME}                   -> {"loops": 7, "items": 32, "tokens": 50, …}
    {"prepare": NAME, "loops": 7}        -> {}
    {"sample": NAME, "loops": 7, "slow": 0.1} -> {"wall_ns": 1, "cpu_ns": 1} for all loops

`describe` compiles and caches what the benchmark needs and counts its work; `prepare` only
builds it and runs it warm. `slow` prolongs the timed stretch by that fraction in a busy wait:
an injected slow-down.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAMPLE_NS = 2_000_000
# What the suite imports anyway, in any revision; those that one has not are left out.
MODULES = ["numpy", "fnmatch", "hashlib", "functools", "itertools", "dataclasses"]
MODULES += [f"batchgauge.{name}" for name in ("errors", "request", "protocols", "workload")]
MODULES += [f"batchgauge.{name}" for name in ("registry", "core.model_facts")]


def main() -> None:
    """Answer requests until standard input ends."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints is no answer
        _import_in_order(int(sys.argv[3]))
        suite = _load(Path(sys.argv[1]), "batchgauge_gate_suite")
        subject = suite.Subject(**json.loads(sys.argv[2]))
        benchmarks = {b.name: b for b in suite.BENCHMARKS}
        calls: dict[str, Callable[[], object]] = {}
        gc.disable()
        for line in sys.stdin:
            request: dict[str, Any] = json.loads(line)
            answer: dict[str, Any]
            try:
                if "where" in request:
                    package = sys.modules["batchgauge"].__file__ or ""
                    answer = {"package": str(Path(package).parent)}
                elif "describe" in request:
                    answer = _describe(benchmarks[request["describe"]], subject)
                elif "prepare" in request:
                    name = request["prepare"]
                    calls[name] = benchmarks[name].prepare(subject).call
                    answer = {}
                    _sample(calls[name], request["loops"], 0.0)
                else:
                    call = calls[request["sample"]]
                    answer = _sample(call, request["loops"], request.get("slow", 0.0))
            except Exception as problem:  # noqa: BLE001 - told to the parent, which decides
                answer = {"error": f"{type(problem).__name__}: {problem}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _import_in_order(seed: int) -> None:
    """Import `MODULES` in the order of `seed`."""
    for name in random.Random(seed).sample(MODULES, len(MODULES)):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _describe(benchmark: Any, subject: Any) -> dict[str, Any]:
    """Build the benchmark's call, run it warm, say how many loops fill a sample and its work."""
    prepared = benchmark.prepare(subject)
    call = prepared.call
    loops = 1
    while True:
        took = _sample(call, loops, 0.0)["wall_ns"]
        if took >= SAMPLE_NS or loops >= 1 << 20:
            break
        loops = max(loops * 2, min(loops * 50, int(1.2 * loops * SAMPLE_NS / max(took, 1))))
    return {
        "loops": loops,
        "wall_ns": took,
        "items": prepared.items,
        "tokens": prepared.tokens,
        "counters": {**prepared.counters, "peak_bytes": _peak_bytes(call), **_instructions(call)},
        "part": benchmark.part,
        "batch_size": benchmark.batch_size,
        "parameters": dict(benchmark.parameters),
    }


def _instructions(call: Callable[[], object]) -> dict[str, int]:
    """Instructions of one warm call by this revision's counter; nothing where none is counted."""
    counter = _load(Path(__file__).with_name("instructions.py"), "batchgauge_gate_instructions")
    found = counter.count(call)
    return {} if found is None else {"instructions": found}


def _peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that one warm call holds at a time, above what it found."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        return max(0, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


def _sample(call: Callable[[], object], loops: int, slow: float) -> dict[str, int]:
    cpu = time.process_time_ns()
    begin = time.perf_counter_ns()
    for _ in range(loops):
        call()
    if slow:
        end = begin + int((time.perf_counter_ns() - begin) * (1.0 + slow))
        while time.perf_counter_ns() < end:
            pass
    wall = time.perf_counter_ns() - begin
    return {"wall_ns": wall, "cpu_ns": time.process_time_ns() - cpu}


if __name__ == "__main__":
    main()
