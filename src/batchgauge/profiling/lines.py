"""Line profiles: how often each line of chosen functions ran, and what it cost.

Driven by line_profiler's API, because its `%lprun` magic leaves no output under
papermill. `time_ms` of a line holds what it calls; `self_ms` takes out the
profiled functions that the line names, so that shares add up over functions.
Tracing each line slows tight loops many times (see `overhead`): read hits and
shares here, never milliseconds as a benchmark.
"""

from __future__ import annotations

import dis
import inspect
import linecache
import sys
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from batchgauge.errors import UserError
from batchgauge.profiling.calls import profiler_module
from batchgauge.profiling.stacks import StackProfile, is_library


@dataclass(frozen=True)
class LineProfile:
    """Lines of the profiled functions, the wall time of the run, and what tracing took of it.

    `frame` columns: function, file, line, source, hits, time_ms (with callees), self_ms
    (without profiled callees), share (self_ms over all self_ms: adds up to 1), calls (the
    profiled functions that the line names). Lines that never ran have zero hits.
    """

    frame: pd.DataFrame
    wall_ms: float
    tracing_ms: float = 0.0

    @property
    def attributed(self) -> float:
        """Self time of all lines and the tracing between them (`tracing_ms`), over wall time."""
        explained = float(self.frame["self_ms"].sum()) + self.tracing_ms
        return explained / self.wall_ms if self.wall_ms else 0.0

    def hottest(self, count: int = 10) -> pd.DataFrame:
        """The lines with the largest share, hottest first."""
        ran = self.frame[self.frame["hits"] > 0]
        return ran.nlargest(count, "share", keep="first").reset_index(drop=True)

    def functions(self) -> pd.DataFrame:
        """One row a function: self_ms and share, hottest first."""
        sums = self.frame.groupby(["function", "file"], as_index=False)[["self_ms", "share"]].sum()
        return sums.sort_values("share", ascending=False, ignore_index=True)


def plain_function(value: object) -> types.FunctionType | None:
    """The Python function behind `value` (method, property, wrapper), or None if there is none."""
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    value = inspect.unwrap(value) if callable(value) else value
    value = getattr(value, "__func__", value)
    return value if isinstance(value, types.FunctionType) else None


def functions_of(*modules: types.ModuleType) -> list[types.FunctionType]:
    """Every Python function and method that these modules define themselves, in source order."""
    found: dict[types.CodeType, types.FunctionType] = {}
    for module in modules:
        for value in vars(module).values():
            members = list(vars(value).values()) if inspect.isclass(value) else [value]
            for member in members:
                function = plain_function(member)
                if function is not None and function.__module__ == module.__name__:
                    found.setdefault(function.__code__, function)
    return sorted(found.values(), key=lambda f: (f.__module__, f.__code__.co_firstlineno))


def functions_seen(profile: StackProfile, *, smallest: float = 0.01) -> list[types.FunctionType]:
    """The Python functions that a call profile saw with at least `smallest` of the time.

    Library code is left out: only modules outside the standard library and
    site-packages. These are the functions worth a line profile.
    """
    table = profile.table()
    hot = table[table["total_share"] >= smallest]
    names = {
        (file, name.rpartition(".")[2])
        for file, name in zip(hot["file"], hot["function"], strict=True)
    }
    found: list[types.FunctionType] = []
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) or ""
        if file.endswith(".py") and not is_library(file):
            found += [f for f in functions_of(module) if (file, f.__name__) in names]
    return found


def profile_lines(
    call: Callable[[], object],
    functions: Iterable[Callable[..., object]],
    *,
    repeat: int = 1,
    seen: StackProfile | None = None,
) -> LineProfile:
    """Run `call` `repeat` times with line_profiler on `functions`.

    Which line calls which of `functions` is read from the names in the code, and from the
    stacks of `seen` where the call has no name (operators, `__call__`, callbacks).

    Raises ProfilerUnavailableError when line_profiler is missing, UserError when none of
    `functions` is a Python function (compiled code has no lines).
    """
    line_profiler = profiler_module("line_profiler")
    plain = {f.__code__: f for f in map(plain_function, functions) if f is not None}
    if not plain:
        raise UserError("None of the functions to profile by line is a Python function.")
    per_hit_ms = _tracing_ms_per_hit(line_profiler.LineProfiler)
    profiler = line_profiler.LineProfiler(*plain.values())
    with profiler:
        begin = time.perf_counter()
        for _ in range(repeat):
            call()
        wall_ms = 1e3 * (time.perf_counter() - begin)
    stats = profiler.get_stats()
    unit_ms = 1e3 * float(stats.unit)
    hits = {
        (file, first): {line: (count, ticks * unit_ms) for line, count, ticks in rows}
        for (file, first, _), rows in stats.timings.items()
    }
    profiled = list(plain.values())
    edges = _edges(seen, profiled) if seen else {}
    rows = [row for function in profiled for row in _rows(function, hits, profiled, edges)]
    columns = ["function", "file", "line", "source", "hits", "time_ms", "calls"]
    frame, tracing_ms = with_self_time(pd.DataFrame(rows, columns=columns), per_hit_ms)
    return LineProfile(frame, wall_ms, tracing_ms)


def _tracing_ms_per_hit(profiler_class: Callable[..., Any]) -> float:
    """What the tracer spends between two lines, which no line is charged for: median of three."""

    def loop() -> None:
        for _ in range(3000):
            pass

    costs = []
    for _ in range(3):
        profiler = profiler_class(loop)
        with profiler:
            begin = time.perf_counter()
            loop()
            wall_ms = 1e3 * (time.perf_counter() - begin)
        stats = profiler.get_stats()
        rows = [row for lines in stats.timings.values() for row in lines]
        on_lines_ms = 1e3 * stats.unit * sum(ticks for _, _, ticks in rows)
        costs.append((wall_ms - on_lines_ms) / max(1, sum(hits for _, hits, _ in rows)))
    return max(0.0, float(sorted(costs)[1]))


_LOAD = 3.0  # how much dearer tracing gets beside busy neighbours, at most
_LOADS = {"LOAD_METHOD", "LOAD_ATTR", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"}
Hits = dict[tuple[str, int], dict[int, tuple[int, float]]]  # function to line to (hits, ms)
Edges = dict[tuple[str, int], set[str]]  # (file, line) to the functions called there


def _edges(seen: StackProfile, profiled: list[types.FunctionType]) -> Edges:
    """Calls between profiled functions on the sampled stacks, other frames between skipped."""
    names = {(f.__code__.co_filename, f.__name__, f.__qualname__): f.__qualname__ for f in profiled}
    edges: Edges = {}
    for frames, _ in seen.stacks:
        caller: tuple[str, int] | None = None
        for frame in frames:
            last = frame.name.rpartition(".")[2]
            callee = names.get((frame.file, last, frame.name)) or next(
                (q for (file, name, q) in names if file == frame.file and name == last), None
            )
            if callee is None:
                continue
            if caller is not None:
                edges.setdefault(caller, set()).add(callee)
            caller = (frame.file, frame.line)
    return edges


def _rows(
    function: types.FunctionType, hits: Hits, profiled: list[types.FunctionType], edges: Edges
) -> list[tuple[str, str, int, str, int, float, str]]:
    code = function.__code__
    mine = hits.get((code.co_filename, code.co_firstlineno), {})
    source, first = source_of(function)
    named = _names_by_line(code)
    others = [
        f
        for f in profiled
        if f is not function and hits.get((f.__code__.co_filename, f.__code__.co_firstlineno))
    ]
    rows = []
    for line, text in enumerate(source, start=first):
        count, time_ms = mine.get(line, (0, 0.0))
        calls = {f.__qualname__ for f in others if f.__name__ in named.get(line, ())}
        calls |= edges.get((code.co_filename, line), set()) - {function.__qualname__}
        name, file = function.__qualname__, code.co_filename
        rows.append((name, file, line, text.rstrip(), count, time_ms, ";".join(sorted(calls))))
    return rows


def source_of(function: types.FunctionType) -> tuple[list[str], int]:
    """Source lines and the first line's number; empty texts where the source is not there."""
    code = function.__code__
    try:
        linecache.checkcache(code.co_filename)
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        last = max((line for *_, line in code.co_lines() if line), default=code.co_firstlineno)
        return [""] * (last - code.co_firstlineno + 1), code.co_firstlineno
    return lines, first


def _names_by_line(code: types.CodeType) -> dict[int, set[str]]:
    """Names that each line loads as it would to call them, comprehensions inside included."""
    names: dict[int, set[str]] = {}
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = getattr(instruction.positions, "lineno", None) or line
        if instruction.opname in _LOADS:
            names.setdefault(line, set()).add(instruction.argval)
        elif isinstance(instruction.argval, types.CodeType):
            for inner, found in _names_by_line(instruction.argval).items():
                names.setdefault(inner, set()).update(found)
    return names


def with_self_time(frame: pd.DataFrame, per_hit_ms: float) -> tuple[pd.DataFrame, float]:
    """Take each profiled callee's total out of the lines that call it, in proportion to time.

    A callee's total is its lines' time and the tracing between them, which costs up to
    `_LOAD` times `per_hit_ms` a hit on a busy machine. Gives the frame with `self_ms` and
    `share`, and the milliseconds of tracing.
    """
    sums = frame.groupby("function")[["time_ms", "hits"]].sum()
    totals, usual = sums["time_ms"], per_hit_ms * sums["hits"]
    self_ms = frame["time_ms"].copy()
    sites: dict[str, list[int]] = {}
    for position, calls in enumerate(frame["calls"]):
        if frame["hits"].iloc[position]:
            for callee in filter(None, calls.split(";")):
                sites.setdefault(callee, []).append(position)
    tracing_ms = float(usual.drop(list(sites), errors="ignore").sum())
    for callee, positions in sites.items():
        at = frame.index[positions]
        spent = frame.loc[at, "time_ms"]
        whole = float(spent.sum())
        between = min(max(0.0, whole - float(totals[callee])), _LOAD * float(usual[callee]))
        tracing_ms += between
        if whole > 0.0:
            self_ms.loc[at] -= (float(totals[callee]) + between) * spent / whole
    frame["self_ms"] = self_ms.clip(lower=0.0)
    everything = float(frame["self_ms"].sum())
    frame["share"] = frame["self_ms"] / everything if everything else 0.0
    return frame, tracing_ms
