"""What this process may use: cores by affinity, set and quota; memory by limit and what is free.

Linux control groups (versions 1, 2 and both at once), CPU affinity, resource limits and the
kinds of cores are read from their files; macOS and Windows answer through `sysctl` and psutil.
All file access goes through a `root` folder, so that a recorded tree can stand in for a
machine. Every count of cores in this package is one of the two here: `usable_cores`, what may
be kept busy, and `performance_cores`, what a default number of threads comes from.
What the hardware itself is (caches, SIMD, rates) is `hardware`'s business.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from batchgauge.errors import UserError

# Version 1 writes "no limit" as the largest page-aligned signed 64-bit number.
_NO_LIMIT = 1 << 60
# Who sets one of these says how many threads computing takes; Numba's comes last, BLAS ignores it.
VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_PERIOD_US = 100_000  # the kernel's own, where a quota comes without one
# A core of less than this share of the best one's capacity is an efficiency core; of Arm's three
# tiers the two upper ones stay.
_FULL_CAPACITY = 0.5


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """A control group's limits; None where it sets none. Cores may be a fraction.

    `memory_bytes` is the tightest limit of the group and its parents, `memory_used_bytes` what
    of it is gone: as much as leaves the room of that one of them which has least left.
    `cpus` is the set that the group is confined to.
    """

    version: int = 0
    cores: float | None = None
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    cpus: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy: its controllers (none: version 2), where, and which group that is."""

    point: Path
    controllers: frozenset[str] = frozenset()
    group: str = "/"


def read_cgroup(root: Path | str = "/") -> CgroupLimits:
    """The tightest limits of this process's control group and its parents.

    Reads `<root>/proc/self/cgroup` and the hierarchies that `<root>/proc/self/mountinfo` names,
    else those at `<root>/sys/fs/cgroup`. Where both versions are mounted, both count. What
    throttles counts like what kills (`memory.high`, `memory.max`); swap, version 1's soft limit
    and bursts of a quota are no limits. Anything missing or unreadable counts as no limit.
    """
    root = Path(root)
    paths: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if colon:
            paths |= dict.fromkeys(names.split(","), path)
    mounts = _mounts(root)
    levels = {
        name: [folder for mount in _of(mounts, name, paths) for folder in _upwards(mount, paths)]
        for name in ("", "cpu", "memory", "cpuset")
    }
    quotas = [_quota_2(f) for f in levels[""]] + [_quota_1(f) for f in levels["cpu"]]
    limits = [_memory_2(f) for f in levels[""]] + [_memory_1(f) for f in levels["memory"]]
    sets = [_cpus(f / "cpuset.cpus.effective") for f in levels[""]]
    sets += [
        _cpus(f / "cpuset.effective_cpus") or _cpus(f / "cpuset.cpus") for f in levels["cpuset"]
    ]
    bounds = [pair for pair in limits if pair is not None]
    smallest = min((limit for limit, _ in bounds), default=None)
    room = min((max(0, limit - used) for limit, used in bounds), default=0)
    named = [cpus for cpus in sets if cpus]
    return CgroupLimits(
        version=1 if any(m.controllers for m in mounts) else 2 if mounts else 0,
        cores=min((quota for quota in quotas if quota is not None), default=None),
        memory_bytes=smallest,
        memory_used_bytes=None if smallest is None else smallest - min(room, smallest),
        cpus=frozenset.intersection(*named) if named else None,
    )


def usable_cpus(root: Path | str = "/") -> frozenset[int]:
    """Numbers of the logical CPUs this process may run on: affinity, within the group's set."""
    cpus = _affinity()
    allowed = read_cgroup(root).cpus
    return cpus & allowed or cpus if allowed else cpus


def usable_cores(root: Path | str = "/") -> int:
    """Logical CPUs this process may keep busy: `usable_cpus`, then the quota (rounded down).

    At least 1, whatever a quota of half a core says.
    """
    return _within_quota(len(usable_cpus(root)), root)


def performance_cpus(root: Path | str = "/") -> tuple[int, ...]:
    """One logical CPU of each full-speed core this process may run on, by number.

    Work that is shared evenly waits for the slowest, and two threads of one core share its
    multipliers: so efficiency cores of a hybrid processor are left out, and of simultaneous
    threads one a core counts. A process confined to efficiency cores gets those. Windows does
    not tell the kinds apart here, nor macOS which CPU is which: there the lowest numbers stand
    for as many cores.
    """
    cpus = usable_cpus(root)
    if not sys.platform.startswith("linux"):
        return tuple(sorted(cpus))[: _physical_cores() or len(cpus)]
    system = Path(root) / "sys/devices"
    chosen = cpus
    if _cpus(system / "cpu_atom/cpus"):
        chosen = cpus & (_cpus(system / "cpu_core/cpus") or cpus) or cpus
    else:
        folder = system / "system/cpu"
        capacity = {cpu: _number(folder / f"cpu{cpu}/cpu_capacity") or 0 for cpu in cpus}
        most = max(capacity.values())
        chosen = frozenset(c for c in cpus if capacity[c] >= _FULL_CAPACITY * most)
    first: dict[frozenset[int], int] = {}
    for cpu in sorted(chosen):
        topology = system / f"system/cpu/cpu{cpu}/topology"
        siblings = _cpus(topology / "thread_siblings_list") or _cpus(topology / "core_cpus_list")
        first.setdefault(siblings or frozenset({cpu}), cpu)
    return tuple(first.values())


def performance_cores(root: Path | str = "/") -> int:
    """How many threads to take where nobody has said: `performance_cpus` within the quota."""
    return _within_quota(len(performance_cpus(root)), root)


def default_threads(root: Path | str = "/") -> int:
    """Threads of an engine where the caller does not say: `performance_cores`, unless less is due.

    The first of `VARIABLES` that holds a number from 1 on says how many, up to the CPUs that
    may be used; the start-up of a Dask worker sets some of them. A process that
    `multiprocessing` started, as those of a pool are, takes one: its siblings have the others.
    """
    for name in VARIABLES:
        value = os.environ.get(name, "").strip()
        if value.isascii() and value.isdigit() and int(value):
            return min(int(value), len(usable_cpus(root)))
    return 1 if multiprocessing.parent_process() is not None else performance_cores(root)


def checked_threads(threads: object) -> int:
    """That number of threads. Raises UserError for one that this machine does not have."""
    most = os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= most:
        raise UserError(
            f"threads is {threads!r}; expected a whole number from 1 to {most}, the processors "
            "of this machine."
        )
    return threads


def usable_memory(root: Path | str = "/") -> tuple[int, int]:
    """(total, available) bytes for this process: the machine's, or what a limit leaves of them.

    Limits are those of the control group and of the process itself (`ulimit -v`, `ulimit -d`);
    memory that is set aside as huge pages is not there for ordinary use.
    """
    root = Path(root)
    machine = psutil.virtual_memory()
    group = read_cgroup(root)
    huge = _stat(root / "proc/meminfo", "Hugetlb:") << 10
    total = max(0, int(machine.total) - huge)
    bounds = [(total, total - int(machine.available))]
    if group.memory_bytes is not None:
        bounds.append((group.memory_bytes, group.memory_used_bytes or 0))
    limits = _read(root / "proc/self/limits")
    for limit, size in (("address space", "VmSize:"), ("data size", "VmData:")):
        found = re.search(rf"^Max {limit} +(\d{{1,19}}) ", limits, re.MULTILINE | re.ASCII)
        if found:
            bounds.append((int(found[1]), _stat(root / "proc/self/status", size) << 10))
    return min(b for b, _ in bounds), min(max(0, min(b - used, b)) for b, used in bounds)


def _within_quota(cores: int, root: Path | str) -> int:
    quota = read_cgroup(root).cores
    return max(1, cores if quota is None else min(cores, int(quota)))


def _affinity() -> frozenset[int]:
    """CPUs that the scheduler gives this process (Linux, Windows), else all that there are."""
    with contextlib.suppress(AttributeError, OSError):
        return frozenset(os.sched_getaffinity(0))
    with contextlib.suppress(AttributeError, OSError, psutil.Error):  # macOS has no affinity
        if found := psutil.Process().cpu_affinity():
            return frozenset(found)
    return frozenset(range(os.cpu_count() or 1))


def _physical_cores() -> int:
    """Cores of the fastest kind by `sysctl` or psutil; 0 where neither knows."""
    if sys.platform == "darwin":
        for key in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            if (count := _whole(command_output("sysctl", "-n", key).strip()) or 0) > 0:
                return count
    return psutil.cpu_count(logical=False) or 0


def command_output(*command: str, timeout_s: float = 5.0) -> str:
    """What a command prints; empty when it is missing, fails or takes longer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _mounts(root: Path) -> list[_Mount]:
    """The control-group hierarchies that are mounted below `root`."""
    found = []
    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in {"cgroup", "cgroup2"}:
            continue
        group, point = (_unescaped(text) for text in fields[3:5])
        controllers = frozenset(kind[2].split(",") if kind[0] == "cgroup" else ())
        found.append(_Mount(root / point.lstrip("/"), controllers, group))
    if found:
        return found
    base = root / "sys/fs/cgroup"
    second = [p for p in (base, base / "unified") if (p / "cgroup.controllers").exists()]
    names = ("cpu", "cpu,cpuacct", "cpuacct,cpu", "memory", "cpuset")
    first = [_Mount(base / n, frozenset(n.split(","))) for n in names if (base / n).is_dir()]
    return [_Mount(point) for point in second] + first


def _unescaped(text: str) -> str:
    """A path of mountinfo, where blanks and backslashes are written in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _of(mounts: list[_Mount], controller: str, paths: dict[str, str]) -> list[_Mount]:
    """The mounts of a controller ("" is version 2) that hold this process's group.

    A container may see other groups too; where no mount is known to hold its own, the first is
    taken, which is then its own or a parent's.
    """
    some = [m for m in mounts if (controller in m.controllers if controller else not m.controllers)]
    path = PurePosixPath(paths.get(controller, "/"))
    return [m for m in some if path.is_relative_to(m.group)] or some[:1]


def _upwards(mount: _Mount, paths: dict[str, str]) -> Iterator[Path]:
    """The group's folder and its parents up to the mount point.

    Inside a container the path of the host often does not exist below the mount;
    then only the mount point itself, which is the container's own group, remains.
    """
    names = [n for n in (*sorted(mount.controllers), "") if n in paths]
    path = PurePosixPath(paths[names[0]] if names else "/")
    if path.is_relative_to(mount.group):
        path = path.relative_to(mount.group)
    folder = mount.point.joinpath(*path.parts[path.is_absolute() :])
    while ".." not in path.parts and folder != mount.point:
        if folder.is_dir():
            yield folder
        folder = folder.parent
    yield mount.point


def _quota_2(folder: Path) -> float | None:
    quota, period = [*(_whole(word) for word in _read(folder / "cpu.max").split()), None, None][:2]
    return quota / (period or _PERIOD_US) if quota and min(quota, period or 1) > 0 else None


def _quota_1(folder: Path) -> float | None:
    quota, period = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / (period or _PERIOD_US) if quota and min(quota, period or 1) > 0 else None


def _memory_2(folder: Path) -> tuple[int, int] | None:
    """(limit, in use), if there is a limit; page cache that can be dropped is not in use."""
    both = [_number(folder / f"memory.{name}") for name in ("max", "high")]
    limit = min((n for n in both if n is not None and n >= 0), default=None)
    if limit is None:
        return None
    droppable = _stat(folder / "memory.stat", "inactive_file")
    return limit, max(0, (_number(folder / "memory.current") or 0) - droppable)


def _memory_1(folder: Path) -> tuple[int, int] | None:
    """The same of version 1, whose statistics tell the limit of parents that cannot be seen."""
    stat = folder / "memory.stat"
    both = [_number(folder / "memory.limit_in_bytes"), _stat(stat, "hierarchical_memory_limit")]
    limit = min((n for n in both if n is not None and 0 < n < _NO_LIMIT), default=None)
    if limit is None:
        return None
    droppable = _stat(stat, "total_inactive_file")
    return limit, max(0, (_number(folder / "memory.usage_in_bytes") or 0) - droppable)


def _cpus(path: Path) -> frozenset[int] | None:
    """A list of CPUs such as `0-3,8`; None where it is missing, empty or no such list."""
    found: set[int] = set()
    for part in _read(path).strip().split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip(), re.ASCII)
        if not match:
            return None
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found) or None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def _whole(text: str) -> int | None:
    """A whole number of at most 64 bits; None for "max" and anything else."""
    return int(text) if re.fullmatch(r"-?\d{1,20}", text, re.ASCII) else None


def _number(path: Path) -> int | None:
    return _whole(_read(path).strip())


def _stat(path: Path, key: str) -> int:
    """The whole number behind `key` in a file of keys and values; 0 where there is none."""
    for line in _read(path).splitlines():
        name, *values = line.split()[:2] or [""]
        if name == key and values:
            return max(0, _whole(values[0]) or 0)
    return 0
