"""The user's own function under every profiler, in child processes with a time limit.

A target is an import path `module:callable`. It is called without arguments, or
with `batch_size` when it has a parameter of that name. Each tool runs in a
process of its own (`python -m batchgauge.profiling.target`), so that a target
that hangs, exits or crashes takes nothing else with it. The current folder is
searched first, as Python itself would.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import pandas as pd

from batchgauge.clock import timed
from batchgauge.errors import UserError
from batchgauge.profiling.allocations import (
    AllocationProfile,
    memory_lines,
    memory_timeline,
    track_allocations,
)
from batchgauge.profiling.calls import ProfilerUnavailableError, sample_calls
from batchgauge.profiling.lines import LineProfile, functions_of, plain_function, profile_lines
from batchgauge.profiling.stacks import StackProfile

TOOLS = ("calls", "lines", "allocations", "memory_lines", "memory_timeline")


@dataclass
class TargetProfiles:
    """What was seen of a target; a tool that could not run is None and named in `notes`."""

    target: str
    plain_s: float
    calls: StackProfile | None = None
    lines: LineProfile | None = None
    allocations: AllocationProfile | None = None
    memory_lines: pd.DataFrame | None = None
    memory_timeline: pd.DataFrame | None = None
    notes: dict[str, str] = field(default_factory=dict)


def load_target(target: str, batch_size: int = 8) -> tuple[Callable[[], object], FunctionType]:
    """The call without arguments, and the function behind it, of `module:callable`.

    Raises UserError when the path is not of that form, does not import, names nothing
    callable, or needs arguments that nobody gives.
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise UserError(f"The target '{target}' is no import path; expected module:callable.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"The target's module '{module_name}' does not import: {_said(error)}"
        ) from error
    for name in path.split("."):
        found = getattr(found, name, None)
    function = plain_function(found)
    if not callable(found) or function is None:
        raise UserError(
            f"The target '{target}' names no Python function; expected module:callable."
        )
    parameters = inspect.signature(found).parameters.values()
    given = {"batch_size": batch_size} if any(p.name == "batch_size" for p in parameters) else {}
    open_ended = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in open_ended]
    if missing := [name for name in needed if name not in given]:
        raise UserError(
            f"The target '{target}' needs {', '.join(missing)}; expected a function without "
            "required arguments (batch_size apart)."
        )
    return lambda: found(**given), function


def profile_target(
    target: str, *, batch_size: int = 8, tools: Iterable[str] = TOOLS, limit_s: float = 60.0
) -> TargetProfiles:
    """Profile `target` with each of `tools`, at most `limit_s` seconds of wall time a tool.

    A plain run comes first: UserError says so when the target does not import, raises, or
    has not returned at the limit. A tool that fails later is named in `notes` only.
    """
    wanted = list(tools)
    unknown = [tool for tool in wanted if tool not in TOOLS]
    if unknown:
        raise UserError(f"Unknown tool '{unknown[0]}'; expected some of {', '.join(TOOLS)}.")
    plain_s = _in_child(target, "plain", batch_size, 0.0, limit_s)
    profiles = TargetProfiles(target, float(plain_s))
    for tool in wanted:
        try:
            setattr(profiles, tool, _in_child(target, tool, batch_size, float(plain_s), limit_s))
        except UserError as error:
            profiles.notes[tool] = str(error)
    return profiles


def _in_child(target: str, tool: str, batch_size: int, plain_s: float, limit_s: float) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.pickle"
        command = [
            sys.executable, "-m", "batchgauge.profiling.target",
            target, tool, str(batch_size), str(plain_s), str(out),
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, said = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"The target '{target}' had not returned after {limit_s:g} s ({tool}); expected a "
                "function that ends, or a larger time limit."
            ) from None
        finally:
            _end(process)
        if not out.exists():
            lines = said.decode(errors="replace").strip().splitlines()
            raise UserError(
                f"The target '{target}' ended its process (exit code {process.returncode}, {tool}):"
                f" {lines[-1] if lines else 'it said nothing.'}"
            )
        with out.open("rb") as file:
            kind, value = pickle.load(file)  # noqa: S301 - written by our own child just now
    if kind == "error":
        raise UserError(value)
    return value


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and what it started, if any of it is still there."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()


def _run_tool(tool: str, call: Callable[[], object], function: FunctionType, plain_s: float) -> Any:
    functions = functions_of(sys.modules[function.__module__])
    if function not in functions:
        functions.insert(0, function)
    if tool == "plain":
        return timed(call).wall_ns / 1e9
    if tool == "calls":
        return sample_calls(call, seconds=1.0)
    if tool == "lines":
        repeat = max(1, min(200, int(0.2 / (plain_s + 1e-6))))
        seen = sample_calls(call, seconds=0.3)
        return profile_lines(call, functions, repeat=repeat, seen=seen)
    if tool == "allocations":
        return track_allocations(call, calls=3, python_objects=True)
    return memory_lines(call, function) if tool == "memory_lines" else memory_timeline(call)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _main(arguments: list[str]) -> None:
    target, tool, batch_size, plain_s, out = arguments
    try:
        call, function = load_target(target, int(batch_size))
        answer: tuple[str, Any] = ("value", _run_tool(tool, call, function, float(plain_s)))
    except (UserError, ProfilerUnavailableError) as error:
        answer = ("error", str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's function raises
        answer = ("error", f"The target '{target}' raised {_said(error)}")
    partial = Path(f"{out}.partial")
    partial.write_bytes(pickle.dumps(answer))
    partial.replace(out)


if __name__ == "__main__":
    _main(sys.argv[1:])
