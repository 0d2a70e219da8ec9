"""Sampling call profiles of a callable: py-spy where it may look, pyinstrument elsewhere.

py-spy samples this very process from outside and sees into compiled code, so
that BLAS and NumPy time is told from the interpreter's. It needs permission to
read another process (on Linux we grant it to it ourselves; macOS wants root);
without, pyinstrument samples from inside: its innermost frame is a Python line
or a built-in, and an operator such as `@` counts as the Python line it is on.
Only the main thread's stacks below the call are kept. A profiled run is never a
timed run: the wall time here serves to check that the shares add up.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from batchgauge import extras
from batchgauge.clock import repeated
from batchgauge.errors import UserError
from batchgauge.profiling.stacks import UNNAMED, Frame, StackProfile, with_kinds
from batchgauge.text import percent

# Samples a second. Each stops the process while its stack is unwound, which takes over 10 ms on
# some machines: at 100 a second such a process hardly moves.
RATE_HZ = 40
LIMIT_S = 60  # then py-spy lets go, and the call goes on unseen
_MARKER = repeated.__name__  # the frame that the calls are below
_LOOP = [("(loop around the call)", __file__, 0)]  # samples between two calls
_RAW_FRAME = re.compile(r"^(?P<name>.*) \((?P<file>.*?)(?::(?P<line>\d+))?\)$")
_PR_SET_PTRACER = 0x59616D61


class ProfilerUnavailableError(UserError):
    """A profiler is missing or not permitted here; the message says which and why."""

    @classmethod
    def absent(cls, tool: str) -> ProfilerUnavailableError:
        """`tool` is not installed: with the command that installs it."""
        return cls(f"{tool} is not installed; {extras.remedy('profile')}.")


def profiler_module(name: str) -> Any:
    """A profiler's module, imported. Raises ProfilerUnavailableError where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ProfilerUnavailableError.absent(name) from error


def sample_calls(
    call: Callable[[], object], *, seconds: float = 1.0, tool: str = "auto"
) -> StackProfile:
    """Sample `call`, repeated for at least `seconds`, and give its stacks in seconds.

    `tool` is `py-spy`, `pyinstrument` or `auto` (py-spy, else pyinstrument with the
    reason in the profile's note). Raises ProfilerUnavailableError when the tool asked
    for cannot run, UserError for an unknown tool.
    """
    if tool == "pyinstrument":
        return _with_pyinstrument(call, seconds)
    if tool == "py-spy":
        return _with_py_spy(call, seconds)
    if tool != "auto":
        raise UserError(f"Unknown sampler '{tool}'; expected py-spy, pyinstrument or auto.")
    try:
        return _with_py_spy(call, seconds)
    except ProfilerUnavailableError as error:
        profile = _with_pyinstrument(call, seconds)
        return replace(profile, note=f"{error} pyinstrument took its place. {profile.note}")


def _with_pyinstrument(call: Callable[[], object], seconds: float) -> StackProfile:
    pyinstrument = profiler_module("pyinstrument")
    with pyinstrument.Profiler(interval=1e-3, async_mode="disabled") as profiler:
        spent = repeated(call, seconds)
    stacks = []
    for record, weight in profiler.last_session.frame_records:
        parts = [entry.split("\x01")[0].split("\x00") for entry in record]
        places = [
            (name, file, _current_line(entry, line))
            for (name, file, line), entry in zip(parts, record, strict=True)
        ]
        at = next((i for i, place in enumerate(places) if place[0] == _MARKER), None)
        if at is not None:
            stacks.append((with_kinds(places[at + 1 :] or _LOOP), float(weight)))
    note = "Compiled code is seen from Python only: an operator counts as the line it is on."
    wall = spent.wall_ns / 1e9
    return StackProfile("pyinstrument", "s", tuple(stacks), wall, len(stacks), spent.loops, note)


def _current_line(entry: str, first_line: str) -> int:
    """The line being run, from pyinstrument's `l` attribute; else where the function begins."""
    for attribute in entry.split("\x01")[1:]:
        if attribute.startswith("l"):
            return int(attribute[1:])
    return int(first_line)


def py_spy_path() -> str | None:
    """The py-spy of this environment, else one on the PATH, else None."""
    beside = shutil.which("py-spy", path=sysconfig.get_path("scripts"))
    return beside or shutil.which("py-spy")


@contextlib.contextmanager
def _may_be_traced() -> Iterator[None]:
    """Let a child process read this one where the Yama module of Linux would forbid it."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None:
        libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # any process of this user
    try:
        yield
    finally:
        if libc is not None:
            libc.prctl(_PR_SET_PTRACER, 0, 0, 0, 0)


@contextlib.contextmanager
def attached_py_spy(raw: Path | None = None) -> Iterator[None]:
    """py-spy samples this process while the body runs, and writes its raw stacks to `raw`.

    Raises ProfilerUnavailableError when it is missing, or may not or could not sample.
    """
    spy = py_spy_path()
    if spy is None:
        raise ProfilerUnavailableError.absent("py-spy")
    if sys.platform == "win32":
        raise ProfilerUnavailableError("py-spy cannot be stopped by an interrupt on Windows.")
    with tempfile.TemporaryDirectory() as folder, _may_be_traced():
        out = raw or Path(folder) / "stacks.txt"
        command = [
            spy, "record", "--pid", str(os.getpid()), "--rate", str(RATE_HZ),
            "--duration", str(LIMIT_S),
            "--threads", "--idle", "--full-filenames", "--format", "raw", "--output", str(out),
            *(["--native"] if sys.platform == "linux" else []),
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            _wait_until_sampling(process)
            yield
        finally:
            said = _stop(process)
        if not out.exists() or not out.stat().st_size:
            raise ProfilerUnavailableError(f"py-spy wrote no samples: {_last_line(said)}")


def _with_py_spy(call: Callable[[], object], seconds: float) -> StackProfile:
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "stacks.txt"
        with attached_py_spy(raw):
            spent = repeated(call, seconds)
        text = raw.read_text(encoding="utf-8", errors="replace")
    wall = spent.wall_ns / 1e9
    stacks, samples = _parse_raw(text, wall)
    if not samples:
        raise ProfilerUnavailableError("py-spy saw none of the call's stacks.")
    coverage = samples / (RATE_HZ * wall)
    note = f"{samples} samples, {percent(coverage)} of those due at {RATE_HZ} a second."
    return StackProfile("py-spy", "s", stacks, wall, samples, spent.loops, note)


def _wait_until_sampling(process: subprocess.Popen[bytes], limit_s: float = 10.0) -> None:
    """Return when py-spy says that it samples; raise when it ends or is silent instead."""
    assert process.stdout is not None
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + limit_s
        while b"Sampling" not in said and selector.select(timeout=deadline - time.monotonic()):
            chunk = os.read(process.stdout.fileno(), 4096)
            if not chunk:
                break
            said += chunk
    if b"Sampling" not in said:
        text = said.decode(errors="replace")
        raise ProfilerUnavailableError(f"py-spy may not sample here: {_last_line(text)}")


def _stop(process: subprocess.Popen[bytes]) -> str:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)  # py-spy writes its file on Ctrl-C
    try:
        said, _ = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    return said.decode(errors="replace")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing."


def _parse_raw(text: str, wall: float) -> tuple[tuple[tuple[tuple[Frame, ...], float], ...], int]:
    """Stacks below the marker of py-spy's raw format, weighted so that they add up to `wall`."""
    counted = []
    for row in text.splitlines():
        path, _, number = row.rpartition(" ")
        entries = path.split(";")
        at = next((i for i, e in enumerate(entries) if e.startswith(f"{_MARKER} (")), None)
        if at is None or not number.isdigit():
            continue
        places: list[tuple[str, str, int]] = []
        for entry in entries[at + 1 :]:
            match = _RAW_FRAME.match(entry)
            name, file, line = match.group("name", "file", "line") if match else (entry, "", None)
            if name.startswith("0x"):  # just-in-time code and stripped libraries have no names
                name = UNNAMED
            if not places or places[-1][:2] != (name, file) or name != UNNAMED:
                places.append((name, file, int(line or 0)))
        counted.append((with_kinds(places or _LOOP), int(number)))
    samples = sum(number for _, number in counted)
    scale = wall / samples if samples else 0.0
    return tuple((frames, number * scale) for frames, number in counted), samples
