"""Which machine, which software, which run: what every measured row carries with it.

Nothing here identifies a person or a network: the machine's id is a digest of its
processor, cores, memory and system, so that two runs can be told to be comparable. What
changes from boot to boot or from moment to moment is no part of it: the actual clock rate,
what the kernel keeps of the memory, free memory, kernel version, host name, BLAS threads.
Leaves out the BLAS kernels in use; `batchgauge.machine.preflight` names those.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import platform
import re
import sys
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from batchgauge.machine.limits import command_output, usable_cores
from batchgauge.text import counted

_PACKAGES = ("numpy", "numba", "batchgauge")
_GIB = 1 << 30
# A hypervisor may write the rate of the moment into the processor's name.
_CLOCK = re.compile(r"\s*(?:@|\bT)?\s*\d+(?:\.\d+)?\+?\s*[kMG]Hz\b", re.IGNORECASE)
# Arm's registered implementers, as /proc/cpuinfo numbers them.
_IMPLEMENTERS = {
    "0x41": "Arm",
    "0x42": "Broadcom",
    "0x43": "Cavium",
    "0x46": "Fujitsu",
    "0x48": "HiSilicon",
    "0x4e": "NVIDIA",
    "0x50": "APM",
    "0x51": "Qualcomm",
    "0x53": "Samsung",
    "0x61": "Apple",
    "0x6d": "Microsoft",
    "0xc0": "Ampere",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Processor, cores this process may use, memory and system of one machine."""

    cpu: str
    cores: int
    memory_gib: float
    system: str

    @classmethod
    @functools.cache
    def here(cls) -> Machine:
        """The machine that runs this."""
        memory_gib = installed_gib(int(psutil.virtual_memory().total))
        system = f"{platform.system()} {platform.machine()}"
        return cls(cpu_name(), usable_cores(), memory_gib, system)

    @property
    def id(self) -> str:
        """Ten hex digits; equal ids mean equal processor, cores, memory and system."""
        return hashlib.sha256(self.describe().encode()).hexdigest()[:10]

    def describe(self) -> str:
        """One line, e.g. `AMD EPYC (25-1-1), 2 cores, 24 GiB, Linux x86_64`."""
        cores = counted(self.cores, "core")
        return f"{self.cpu}, {cores}, {self.memory_gib:g} GiB, {self.system}"


@dataclass(frozen=True, slots=True)
class Run:
    """One measuring session: what its rows have in common.

    `threads` is the limit the samples were taken under, `workload` a digest of the data the
    benchmarks worked on ("" when it does not matter), `weights` how the engine keeps its own
    ("" without an engine).
    """

    run_id: str
    machine: Machine
    versions: str
    git_commit: str
    threads: int
    seed: int
    workload: str
    timestamp: str
    weights: str = ""

    @classmethod
    def here(cls, *, threads: int = 1, seed: int = 0, workload: str = "", weights: str = "") -> Run:
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
            weights=weights,
        )


def installed_gib(total_bytes: int) -> float:
    """GiB of memory as installed, from what the system says is there.

    A kernel keeps a few percent for itself, another one at each boot, so the size is rounded up
    to a step of 1/8 of the power of two below it (64 GiB: 4 GiB), of which 1 % is forgiven.
    """
    if total_bytes <= 0:
        return 0.0
    gib = 0.99 * total_bytes / _GIB
    step = 2.0 ** (math.floor(math.log2(gib)) - 3)
    return math.ceil(gib / step) * step


def cpu_name(root: Path | str = "/") -> str:
    """The processor's name and, where the system tells it, its generation in brackets.

    No clock rate: one that stands in the name is taken out. The generation is family, model and
    stepping, which tell processors apart that are sold under one name; on Arm the parts' numbers.
    Where a system names no processor, its architecture.
    """
    name = ""
    if sys.platform.startswith("linux"):
        name = _linux_name(Path(root))
    elif sys.platform == "darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string")
    elif sys.platform == "win32":
        name = _windows_name()
    name = " ".join(_CLOCK.sub("", name).split())
    return name or _CLOCK.sub("", platform.processor()).strip() or platform.machine()


def _linux_name(root: Path) -> str:
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = (part.strip() for part in line.partition(":"))
        if colon and value:
            found.setdefault(key.lower(), []).append(value)
    if parts := found.get("cpu part"):
        makers = found.get("cpu implementer", [])
        maker = _IMPLEMENTERS.get(makers[0].lower(), makers[0]) if makers else "Arm"
        kinds = "/".join(sorted(set(parts)))  # a hybrid has several, in any order
        generation = f"{maker} part {kinds}"
    else:
        numbers = (found.get(key, [""])[0] for key in ("cpu family", "model", "stepping"))
        generation = "-".join(number for number in numbers if number.isdecimal())
    # Names as x86, Arm's boards, POWER, MIPS and RISC-V write them.
    for key in ("model name", "hardware", "cpu", "cpu model", "uarch"):
        if names := found.get(key):
            return f"{names[0]} ({generation})" if generation else names[0]
    return generation


def _windows_name() -> str:
    if sys.platform != "win32":  # for the type checker, which knows registries on Windows only
        return ""
    import winreg

    try:
        path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0])
    except OSError:
        return ""


def _output(*command: str) -> str:
    return command_output(*command, timeout_s=20.0).strip()


@functools.cache
def versions() -> str:
    """Python and the packages that decide about speed, e.g. `python 3.13.1; numpy 2.3.0`."""
    python = f"{platform.python_implementation().lower()} {platform.python_version()}"
    return "; ".join([python, *installed(_PACKAGES)])


def installed(packages: Iterable[str]) -> list[str]:
    """Name and version of those of `packages` that are there."""
    found = []
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return found


@functools.cache
def git_commit(folder: Path = Path(__file__).parents[1]) -> str:
    """The commit of the code that is measured, with `+` when its files differ; else `unknown`."""
    commit = _output("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    wanted = ("status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{commit}+" if _output("git", "-C", str(folder), *wanted) else commit
