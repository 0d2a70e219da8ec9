"""Profiler overhead: how much each profiler slows a call, measured in this run.

Each tool's runs alternate with plain runs, and the slow-down is the ratio of
medians. The published medians beside it are other people's, on other code.
"""

from __future__ import annotations

import contextlib
import cProfile
import importlib
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd

from batchgauge.clock import timed
from batchgauge.errors import UserError
from batchgauge.profiling.calls import ProfilerUnavailableError, attached_py_spy
from batchgauge.profiling.lines import plain_function

# Medians over benchmark programs, rounded: Berger et al., "Triangulating Python Performance
# Issues with Scalene", OSDI 2023.
PUBLISHED: dict[str, float] = {
    "py-spy": 1.02,
    "pyinstrument": 1.7,
    "cProfile": 1.7,
    "line_profiler": 2.2,
    "memray": 4.0,
    "memory_profiler": 37.0,
    "tracemalloc": float("nan"),
}


_SECONDS = 0.08  # wall time of one plain run, in so many calls as that takes


@contextlib.contextmanager
def _watched(tool: str, functions: list[Callable[..., object]]) -> Iterator[None]:
    """Run the body under `tool`; ImportError where it is missing."""
    if tool == "py-spy":
        with attached_py_spy():
            time.sleep(0.2)  # it reads the libraries' symbols at first
            yield
    elif tool == "pyinstrument":
        import pyinstrument

        with pyinstrument.Profiler(async_mode="disabled"):
            yield
    elif tool == "cProfile":
        with cProfile.Profile():
            yield
    elif tool == "memray":
        import memray

        with tempfile.TemporaryDirectory() as folder, memray.Tracker(Path(folder) / "a.bin"):
            yield
    elif tool == "tracemalloc":
        tracemalloc.start()
        try:
            yield
        finally:
            tracemalloc.stop()
    else:
        options = {"backend": "psutil"} if tool == "memory_profiler" else {}
        profiler = importlib.import_module(tool).LineProfiler(**options)
        for function in filter(None, map(plain_function, functions)):
            profiler.add_function(function)
        with profiler:
            yield


def measure_overhead(
    call: Callable[[], object],
    functions: Iterable[Callable[..., object]],
    *,
    tools: Iterable[str] = tuple(PUBLISHED),
    rounds: int = 5,
    limit_s: float = 5.0,
) -> pd.DataFrame:
    """Slow-down of `call` under each of `tools`; the line tools watch `functions`.

    One row a tool: tool, plain_ms, watched_ms (medians), slowdown, published_slowdown, rounds,
    note (why a tool could not run, empty otherwise). A tool stops after `limit_s` seconds,
    with at least one round. Attaching and writing results is not counted, only the call.
    Raises UserError for a tool that is not in `PUBLISHED`.
    """
    watched_functions = list(functions)
    call()
    often = max(1, round(_SECONDS * 1e3 / timed(call).wall_ms))
    rows = []
    for tool in tools:
        if tool not in PUBLISHED:
            raise UserError(f"Unknown profiler '{tool}'; expected one of {', '.join(PUBLISHED)}.")
        plain: list[float] = []
        watched: list[float] = []
        note = ""
        repeat = 1 if tool == "memory_profiler" else often  # asks the system at every line
        end = time.perf_counter() + limit_s
        try:
            while len(watched) < rounds and (not watched or time.perf_counter() < end):
                plain.append(timed(call, repeat).wall_ms)
                with _watched(tool, watched_functions):
                    watched.append(timed(call, repeat).wall_ms)
        except ImportError:
            note = "not installed"
        except (ProfilerUnavailableError, RuntimeError) as error:
            note = str(error)
        usual = statistics.median(plain)
        slow = statistics.median(watched) if watched else float("nan")
        rows.append((tool, usual, slow, slow / usual, PUBLISHED[tool], len(watched), note))
    columns = [
        "tool", "plain_ms", "watched_ms", "slowdown", "published_slowdown", "rounds", "note",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)
