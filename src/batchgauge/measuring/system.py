"""What the system says of a call: CPU use, context switches, page faults, hardware events.

Counters of the process come from `resource` and `psutil`. Instructions, cache misses and
mispredicted branches come from `perf stat` where the kernel lets it count, from
`valgrind --tool=cachegrind` where asked (*simulated*, and slow), and are otherwise empty
with the reason. Instruction counts do not drift with the neighbours, yet are not quite free of
noise: hash seed, heap layout and SIMD dispatch move them; the hash seed is fixed here.
Achieved bandwidth and flop/s against the machine's peaks are in `profiling.roofline`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from batchgauge.clock import timed

EVENTS = ("instructions", "cache-references", "cache-misses", "branches", "branch-misses")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one stretch of work used of this process and its children.

    `cpu_utilisation` is CPU seconds ÷ wall seconds: 1.0 is one core busy all the time.
    Page faults are -1 where the system does not tell.
    """

    wall_ms: float
    cpu_ms: float
    voluntary_switches: int
    involuntary_switches: int
    minor_faults: int
    major_faults: int

    @property
    def cpu_utilisation(self) -> float:
        """CPU time over wall time."""
        return self.cpu_ms / self.wall_ms


def usage(fn: Callable[[], object]) -> Usage:
    """Run `fn` once and say what it used."""
    process = psutil.Process()
    switches, faults = process.num_ctx_switches(), _faults()
    elapsed = timed(fn)
    after, later = process.num_ctx_switches(), _faults()
    known = faults[0] >= 0
    return Usage(
        wall_ms=elapsed.wall_ms,
        cpu_ms=elapsed.cpu_ms,
        voluntary_switches=after.voluntary - switches.voluntary,
        involuntary_switches=after.involuntary - switches.involuntary,
        minor_faults=later[0] - faults[0] if known else -1,
        major_faults=later[1] - faults[1] if known else -1,
    )


def _faults() -> tuple[int, int]:
    try:
        import resource
    except ImportError:  # not on Windows
        return -1, -1
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt, used.ru_majflt


@dataclass(frozen=True, slots=True)
class Events:
    """Hardware events of one command; `source` is `perf`, `cachegrind (simulated)` or ``.

    When `counts` is empty, `reason` says why.
    """

    source: str
    counts: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""


def hardware_events(
    command: Sequence[str], *, simulate: bool = False, timeout_s: float = 120.0
) -> Events:
    """Count events while `command` runs, with a fixed hash seed.

    `simulate` falls back to cachegrind (about 50 times slower) where the kernel offers no
    hardware events.
    """
    counted = _perf(command, timeout_s)
    if counted.counts or not simulate:
        return counted
    simulated = _cachegrind(command, timeout_s)
    if simulated.counts:
        return simulated
    return Events("", reason=f"{counted.reason}; {simulated.reason}")


def _run(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str] | None:
    environment = {**os.environ, "PYTHONHASHSEED": "0", "LC_ALL": "C"}
    try:
        return subprocess.run(
            list(command), capture_output=True, text=True, timeout=timeout_s, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _perf(command: Sequence[str], timeout_s: float) -> Events:
    if shutil.which("perf") is None:
        return Events("", reason="perf is not installed")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "perf.csv"
        done = _run(
            ["perf", "stat", "-x,", "-o", str(report), "-e", ",".join(EVENTS), *command], timeout_s
        )
        text = report.read_text(encoding="utf-8") if report.exists() else ""
    counts = parse_perf(text)
    if done is None or done.returncode:
        return Events("", reason="the command or perf failed")
    return Events("perf", counts) if counts else Events("", reason="the kernel counts no events")


def parse_perf(text: str) -> dict[str, int]:
    """Event counts from `perf stat -x,`; events that could not be counted are left out."""
    rows = (line.split(",") for line in text.splitlines())
    return {
        row[2].partition(":")[0].replace("-", "_"): int(row[0])
        for row in rows
        if len(row) > 2 and row[0].isdigit()
    }


def _cachegrind(command: Sequence[str], timeout_s: float) -> Events:
    if shutil.which("valgrind") is None:
        return Events("", reason="valgrind is not installed")
    done = _run(
        ["valgrind", "--tool=cachegrind", "--branch-sim=yes", "--cache-sim=yes",
         "--cachegrind-out-file=/dev/null", *command],
        timeout_s,
    )  # fmt: skip
    counts = parse_cachegrind(done.stderr) if done is not None else {}
    if not counts:
        return Events("", reason="cachegrind failed or took too long")
    return Events("cachegrind (simulated)", counts)


def parse_cachegrind(text: str) -> dict[str, int]:
    """Totals from cachegrind's summary: instructions, last-level misses, mispredicted branches."""
    wanted = {"I refs": "instructions", "LL misses": "cache_misses", "Mispredicts": "branch_misses"}
    total = re.compile(r"^==\d+==\s+(I\s+refs|LL misses|Mispredicts):\s+([\d,]+)", re.MULTILINE)
    found = total.findall(text)
    return {wanted[" ".join(name.split())]: int(n.replace(",", "")) for name, n in found}
