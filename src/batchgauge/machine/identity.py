"""Which machine, which software, which run: what every measured row carries with it.

Nothing here identifies a person or a network: the machine's id is a digest of its
processor, cores, memory and system, so that two runs can be told to be comparable.
Leaves out the BLAS kernels in use; `batchgauge.machine.preflight` names those.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

_PACKAGES = ("numpy", "numba", "batchgauge")


@dataclass(frozen=True, slots=True)
class Machine:
    """Processor, cores this process may use, memory and system of one machine."""

    cpu: str
    cores: int
    memory_gib: int
    system: str

    @classmethod
    def here(cls) -> Machine:
        """The machine that runs this."""
        return _here()

    @property
    def id(self) -> str:
        """Ten hex digits; equal ids mean equal processor, cores, memory and system."""
        return hashlib.sha256(self.describe().encode()).hexdigest()[:10]

    def describe(self) -> str:
        """One line, e.g. `AMD EPYC, 2 cores, 23 GiB, Linux x86_64`."""
        return f"{self.cpu}, {self.cores} cores, {self.memory_gib} GiB, {self.system}"


@dataclass(frozen=True, slots=True)
class Run:
    """One measuring session: what its rows have in common.

    `threads` is the BLAS thread limit the samples were taken under, `workload` a digest
    of the data the benchmarks worked on ("" when it does not matter).
    """

    run_id: str
    machine: Machine
    versions: str
    git_commit: str
    threads: int
    seed: int
    workload: str
    timestamp: str

    @classmethod
    def here(cls, *, threads: int = 1, seed: int = 0, workload: str = "") -> Run:
        """A new run on this machine, now, from the commit that is checked out."""
        return cls(
            run_id=uuid.uuid4().hex[:12],
            machine=Machine.here(),
            versions=versions(),
            git_commit=git_commit(),
            threads=threads,
            seed=seed,
            workload=workload,
            timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
        )


@functools.cache
def _here() -> Machine:
    process = psutil.Process()
    usable = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else None
    return Machine(
        cpu=_cpu_name(),
        cores=usable or psutil.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        system=f"{platform.system()} {platform.machine()}",
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def versions() -> str:
    """Python and the packages that decide about speed, e.g. `python 3.13.1; numpy 2.3.0`."""
    found = [f"{platform.python_implementation().lower()} {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return "; ".join(found)


@functools.cache
def git_commit(folder: Path = Path(__file__).parents[1]) -> str:
    """The commit of the code that is measured, with `+` when its files differ; else `unknown`."""
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{commit}+" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
