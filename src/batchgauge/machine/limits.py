"""What this process may use: cores by affinity and quota, memory by limit and by what is free.

Linux control groups (versions 1 and 2), CPU affinity and `MemAvailable` are read
from their files; macOS and Windows answer through psutil. All file access goes
through a `root` folder, so that a recorded tree can stand in for a machine. What
the hardware itself is (caches, SIMD, rates) is `hardware`'s business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

# Version 1 writes "no limit" as the largest page-aligned signed 64-bit number.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """A control group's limits; None where it sets none. Cores may be a fraction."""

    version: int = 0
    cores: float | None = None
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None


def read_cgroup(root: Path | str = "/") -> CgroupLimits:
    """The tightest limits of this process's control group and its parents.

    Reads `<root>/proc/self/cgroup` and `<root>/sys/fs/cgroup`; version 2 wins where
    both are mounted with limits. Anything missing or unreadable counts as no limit.
    """
    root = Path(root)
    lines = _read(root / "proc/self/cgroup").splitlines()
    paths = {
        name: path
        for _, names, path in (line.split(":", 2) for line in lines if line.count(":") >= 2)
        for name in names.split(",")
    }
    mount = root / "sys/fs/cgroup"
    if (mount / "cgroup.controllers").exists():
        return _version_2(mount, paths.get("", "/"))
    if (mount / "memory").exists() or (mount / "cpu").exists() or (mount / "cpu,cpuacct").exists():
        return _version_1(mount, paths)
    return CgroupLimits()


def usable_cores(root: Path | str = "/") -> int:
    """Cores this process may keep busy: affinity, then the control group's quota (rounded down).

    At least 1, whatever a quota of half a core says.
    """
    quota = read_cgroup(root).cores
    cores = _affinity()
    return max(1, min(cores, int(quota))) if quota is not None else cores


def usable_memory(root: Path | str = "/") -> tuple[int, int]:
    """(total, available) bytes for this process: the machine's, or its control group's if less."""
    machine = psutil.virtual_memory()
    group = read_cgroup(root)
    total, available = int(machine.total), int(machine.available)
    if group.memory_bytes is not None:
        total = min(total, group.memory_bytes)
        available = min(available, max(0, group.memory_bytes - (group.memory_used_bytes or 0)))
    return total, available


def _affinity() -> int:
    """Cores that the scheduler gives this process (Linux, Windows), else all that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    try:
        return len(psutil.Process().cpu_affinity() or ()) or os.cpu_count() or 1
    except (AttributeError, psutil.Error):  # macOS offers no affinity
        return os.cpu_count() or 1


def _version_2(mount: Path, path: str) -> CgroupLimits:
    cores: list[float] = []
    limits: list[int] = []
    used: int | None = None
    for folder in _upwards(mount, path):
        quota = _read(folder / "cpu.max").split()
        if len(quota) == 2 and quota[0] != "max" and int(quota[1]) > 0:
            cores.append(int(quota[0]) / int(quota[1]))
        limit = _number(folder / "memory.max")
        if limit is not None:
            limits.append(limit)
            if limit == min(limits):
                # Page cache that can be dropped at once is not really in use.
                droppable = _stat(folder / "memory.stat", "inactive_file")
                used = max(0, (_number(folder / "memory.current") or 0) - droppable)
    return CgroupLimits(2, min(cores, default=None), min(limits, default=None), used)


def _version_1(mount: Path, paths: dict[str, str]) -> CgroupLimits:
    cores: list[float] = []
    limits: list[int] = []
    used: int | None = None
    cpu = mount / "cpu" if (mount / "cpu").exists() else mount / "cpu,cpuacct"
    for folder in _upwards(cpu, paths.get("cpu", "/")):
        quota, period = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota is not None and quota > 0 and period:
            cores.append(quota / period)
    for folder in _upwards(mount / "memory", paths.get("memory", "/")):
        limit = _number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _NO_LIMIT:
            limits.append(limit)
            if limit == min(limits):
                droppable = _stat(folder / "memory.stat", "total_inactive_file")
                used = max(0, (_number(folder / "memory.usage_in_bytes") or 0) - droppable)
    return CgroupLimits(1, min(cores, default=None), min(limits, default=None), used)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The group's folder and its parents up to the mount point.

    Inside a container the path of the host often does not exist below the mount;
    then only the mount point itself, which is the container's own group, remains.
    """
    folder = mount / path.strip("/")
    while folder != mount and mount in folder.parents:
        if folder.is_dir():
            yield folder
        folder = folder.parent
    yield mount


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _stat(path: Path, key: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0
