"""One process of the regression gate: prepares and times benchmarks on request.

Run by path, never imported: `python -P worker.py SUITE OPTIONS`, with PYTHONPATH at the
revision under test. Only the standard library, the given suite file and the revision's own
package are imported, so both revisions are timed by the same code. Requests and answers are
JSON, one a line, on standard input and output:

    {"where": true}                      -> {"package": FOLDER}
    {"prepare": NAME}                    -> {"loops": 7, "items": 32, "tokens": 50, …}
    {"sample": NAME, "loops": 7, "slow": 0.1} -> {"wall_ns": 1, "cpu_ns": 1} for all loops

`slow` prolongs the timed stretch by that fraction in a busy wait: an injected slow-down.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAMPLE_NS = 2_000_000


def main() -> None:
    """Answer requests until standard input ends."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints is no answer
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
                elif "prepare" in request:
                    answer = _prepare(benchmarks[request["prepare"]], subject, calls)
                else:
                    call = calls[request["sample"]]
                    answer = _sample(call, request["loops"], request.get("slow", 0.0))
            except Exception as problem:  # noqa: BLE001 - told to the parent, which decides
                answer = {"error": f"{type(problem).__name__}: {problem}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _prepare(
    benchmark: Any, subject: Any, calls: dict[str, Callable[[], object]]
) -> dict[str, Any]:
    """Build the benchmark's call, run it warm, and say how many loops fill a sample."""
    prepared = benchmark.prepare(subject)
    call = calls[benchmark.name] = prepared.call
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
