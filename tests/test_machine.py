"""What a process may use and which machine it is on, on recorded trees of many systems."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tests.test_sizing_hardware import GIB, V1, V2, tree

from batchgauge import measuring
from batchgauge.core.kernels import products
from batchgauge.machine import hardware, identity, limits
from batchgauge.measuring.gate import process
from batchgauge.sizing import automatic

CPU = "sys/devices/system/cpu/cpu"
GROUP = "sys/fs/cgroup/docker/abc/"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Linux on 16 logical CPUs with 64 GiB, 32 of them free."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    memory = SimpleNamespace(total=64 * GIB, available=32 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


# --- memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "total", "available"),
    [
        ({"memory.high": "max"}, 2.0, 1.5),
        ({"memory.high": f"{GIB}"}, 1.0, 0.5),
        ({"memory.high": f"{3 * GIB}"}, 2.0, 1.5),
        ({"memory.max": "max", "memory.high": f"{GIB}"}, 1.0, 0.5),
        ({"memory.max": "max", "memory.high": "max"}, 64.0, 32.0),
        ({"../memory.high": f"{GIB}"}, 1.0, 1.0),
        ({"../../memory.high": f"{GIB}"}, 1.0, 1.0),
        # A parent with room for more, of which the neighbours hold nearly all.
        ({"../memory.max": f"{8 * GIB}", "../memory.current": f"{8 * GIB - GIB // 4}"}, 2.0, 0.25),
        ({"memory.high": f"{GIB // 4}"}, 0.25, 0.0),
        ({"memory.swap.max": "0", "memory.swap.high": "1", "memory.low": "1", "memory.min": "1"},
         2.0, 1.5),
        ({"memory.max": "²", "memory.high": "1e9"}, 64.0, 32.0),
        ({"memory.max": "-1", "memory.high": "9" * 5000}, 64.0, 32.0),
        ({"memory.current": "what", "memory.stat": "inactive_file\n\ninactive_file x y\n"},
         2.0, 2.0),
    ],
)  # fmt: skip
def test_version_2_counts_what_throttles_and_what_kills(tmp_path, changes, total, available):
    """The lowest of memory.high and memory.max of group and parents; the least room of them."""
    root = tree(tmp_path, V2)
    tree(root, {GROUP + name: text for name, text in changes.items()})
    assert limits.usable_memory(root) == (total * GIB, available * GIB)


@pytest.mark.parametrize(
    ("changes", "total"),
    [
        ({"memory.soft_limit_in_bytes": "1"}, 1.0),
        ({"memory.memsw.limit_in_bytes": "1"}, 1.0),
        ({"memory.stat": f"hierarchical_memory_limit {GIB // 2}\n"}, 0.5),
        ({"memory.stat": "hierarchical_memory_limit 9223372036854771712\n"}, 1.0),
        ({"memory.limit_in_bytes": "9223372036854771712"}, 64.0),
        ({"memory.limit_in_bytes": "lots"}, 64.0),
    ],
)
def test_version_1_counts_parents_that_cannot_be_seen(tmp_path, changes, total):
    """memory.stat tells the tightest limit above; a soft limit is none, nor is one with swap."""
    root = tree(
        tmp_path, V1 | {f"sys/fs/cgroup/memory/kube/pod/{n}": t for n, t in changes.items()}
    )
    assert limits.usable_memory(root)[0] == total * GIB


def test_limits_of_the_process_itself_count(tmp_path):
    """`ulimit -v` and `-d` bound what can be allocated, less what already is; huge pages too."""
    text = "Max {} {} unlimited bytes\n"
    files = {
        "proc/self/limits": "Limit  Soft Limit  Hard Limit  Units\n"
        + text.format("address space       ", 8 * GIB)
        + text.format("data size           ", "unlimited"),
        "proc/self/status": f"VmPeak: {9 << 20} kB\nVmSize:\t{3 << 20} kB\nVmData:\t{1 << 20} kB\n",
    }
    assert limits.usable_memory(tree(tmp_path, files)) == (8 * GIB, 5 * GIB)
    tree(tmp_path, {"proc/self/limits": text.format("data size ", 2 * GIB)})
    assert limits.usable_memory(tmp_path) == (2 * GIB, GIB)
    tree(
        tmp_path,
        {"proc/self/limits": "Max data size much\n", "proc/meminfo": "Hugetlb: 4194304 kB\n"},
    )
    assert limits.usable_memory(tmp_path) == (60 * GIB, 32 * GIB)


# --- cores --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", None),
        ("150000 100000", 1.5),
        ("150000", 1.5),
        ("max", None),
        ("", None),
        ("many 100000", None),
        ("150000 often", 1.5),
        ("150000 0", 1.5),
        ("-1 100000", None),
        ("²0 100000", None),
    ],
)
def test_any_text_in_a_quota_is_a_number_or_no_limit(tmp_path, text, cores):
    """A quota without a period has the kernel's; words are no limit; a burst adds nothing."""
    files = V2 | {
        "sys/fs/cgroup/docker/cpu.max": "max 100000\n",
        f"{GROUP}cpu.max": text,
        f"{GROUP}cpu.max.burst": "900000\n",
    }
    assert limits.read_cgroup(tree(tmp_path, files)).cores == cores


def test_files_that_are_no_text_set_no_limit(tmp_path):
    """Bytes that are no UTF-8 are read past."""
    root = tree(tmp_path, V2)
    for name in ("cpu.max", "memory.max", "memory.stat", "cpuset.cpus.effective"):
        (root / GROUP / name).write_bytes(b"\xff\xfe\x00\x81")
    assert limits.read_cgroup(root) == limits.CgroupLimits(2, 4.0)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        (V2 | {f"{GROUP}cpuset.cpus.effective": "0-1,5\n"}, {0, 1, 5}),
        (V2 | {"sys/fs/cgroup/docker/cpuset.cpus.effective": "3\n"}, {3}),
        (V2 | {f"{GROUP}cpuset.cpus.effective": "\n"}, set(range(16))),
        (V2 | {f"{GROUP}cpuset.cpus.effective": "0-1,x\n"}, set(range(16))),
        (V2 | {f"{GROUP}cpuset.cpus.effective": "90-95\n"}, set(range(16))),
        (
            {
                "proc/self/cgroup": "2:cpuset:/pod\n",
                "sys/fs/cgroup/cpuset/cpuset.cpus": "0-15\n",
                "sys/fs/cgroup/cpuset/pod/cpuset.cpus": "0-7\n",
                "sys/fs/cgroup/cpuset/pod/cpuset.effective_cpus": "2-3\n",
            },
            {2, 3},
        ),
    ],
)
def test_the_set_of_cpus_counts(tmp_path, files, cpus):
    """Both versions' sets are met with the affinity; nonsense and foreign CPUs are no set."""
    assert limits.usable_cpus(tree(tmp_path, files)) == cpus


def test_both_versions_at_once(tmp_path):
    """A hybrid mount: quota of version 1, memory.high of version 2, wherever they are mounted."""
    files = {
        "proc/self/cgroup": "4:memory:/pod\n1:cpu,cpuacct:/pod\n0::/pod\n",
        "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "32 31 0:29 / /my\\040groups/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "too short\n",
        "my groups/cpu/pod/cpu.cfs_quota_us": "300000\n",
        "my groups/cpu/pod/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/unified/cgroup.controllers": "",
        "sys/fs/cgroup/unified/pod/memory.high": f"{3 * GIB}\n",
        "sys/fs/cgroup/unified/pod/cpu.max": "400000 100000\n",
    }
    assert limits.read_cgroup(tree(tmp_path, files)) == limits.CgroupLimits(1, 3.0, 3 * GIB, 0)
    (tmp_path / "proc/self/mountinfo").unlink()
    assert limits.read_cgroup(tmp_path) == limits.CgroupLimits(2, 4.0, 3 * GIB, 0)


def test_a_container_that_sees_a_part_of_the_hierarchy(tmp_path):
    """The mounted part begins at the container's own group; a neighbour's mount is not read."""
    mount = "41 31 0:38 {} {} rw - cgroup2 cgroup2 rw\n"
    files = {
        "proc/self/cgroup": "0::/docker/abc/inner\n",
        "proc/self/mountinfo": mount.format("/docker/other", "/other")
        + mount.format("/docker/abc", "/sys/fs/cgroup"),
        "other/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/cpu.max": "500000 100000\n",
        "sys/fs/cgroup/inner/cpu.max": "600000 100000\n",
    }
    assert limits.read_cgroup(tree(tmp_path, files)).cores == 5.0
    tree(tmp_path, {"proc/self/cgroup": "0::/\n"})  # a namespace hides the names above
    assert limits.read_cgroup(tmp_path).cores == 1.0


HYBRID = {  # 4 performance cores of two threads each, 8 efficiency cores
    "sys/devices/cpu_core/cpus": "0-7\n",
    "sys/devices/cpu_atom/cpus": "8-15\n",
    **{f"{CPU}{c}/topology/thread_siblings_list": f"{c & ~1}-{c | 1}\n" for c in range(8)},
    **{f"{CPU}{c}/topology/thread_siblings_list": f"{c}\n" for c in range(8, 16)},
}
ARM = {f"{CPU}{c}/cpu_capacity": f"{s}\n" for c, s in enumerate([250] * 8 + [870] * 6 + [1024] * 2)}
THREADS = {f"{CPU}{c}/topology/core_cpus_list": f"{c % 8},{c % 8 + 8}\n" for c in range(16)}


@pytest.mark.parametrize(
    ("files", "affinity", "best"),
    [
        ({}, range(16), tuple(range(16))),
        (HYBRID, range(16), (0, 2, 4, 6)),
        (HYBRID, (1, 2, 3, 9), (1, 2)),
        (HYBRID, (8, 9, 12), (8, 9, 12)),
        (HYBRID | {"sys/devices/cpu_core/cpus": "what"}, (8, 9), (8, 9)),
        # From Linux 6.12 on such a processor tells capacities too.
        (HYBRID | {f"{CPU}{c}/cpu_capacity": "1024" for c in range(16)}, range(16), (0, 2, 4, 6)),
        (ARM, range(16), tuple(range(8, 16))),
        (ARM, range(4), tuple(range(4))),
        (THREADS, range(16), tuple(range(8))),
        (THREADS, (3, 11, 12), (3, 12)),
        ({"sys/devices/cpu_core/cpus": "0-15\n"}, range(16), tuple(range(16))),
    ],
)
def test_performance_cores(tmp_path, monkeypatch, files, affinity, best):
    """One CPU of each full-speed core that the process may use, of whatever kind there are."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(affinity))
    assert limits.performance_cpus(tree(tmp_path, files)) == best
    assert limits.performance_cores(tmp_path) == len(best)
    assert limits.usable_cores(tmp_path) == len(tuple(affinity))


def test_a_quota_and_a_set_bound_performance_cores(tmp_path):
    """Four performance cores, of which a set leaves three and a quota two and a half."""
    assert limits.performance_cores(tree(tmp_path, V2 | HYBRID)) == 1
    group = {f"{GROUP}cpu.max": "250000 100000\n", f"{GROUP}cpuset.cpus.effective": "0-5\n"}
    assert limits.performance_cores(tree(tmp_path, group)) == 2
    assert limits.performance_cpus(tmp_path) == (0, 2, 4)


@pytest.mark.parametrize(
    ("told", "cores"),
    [
        ({"hw.perflevel0.physicalcpu": "4\n", "hw.physicalcpu": "8\n"}, 4),
        ({"hw.physicalcpu": "6\n"}, 6),
        ({"hw.physicalcpu": "none"}, 5),
    ],
)
def test_performance_cores_elsewhere(tmp_path, monkeypatch, told, cores):
    """MacOS tells its performance cores, else the physical ones; psutil knows those too."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 12 if logical else 5)
    monkeypatch.setattr(limits, "command_output", lambda *c: told.get(c[-1], ""))
    assert limits.performance_cores(tmp_path) == cores


def test_an_affinity_that_is_refused_is_asked_otherwise(tmp_path, monkeypatch):
    """A sandbox that forbids the call does not stop the count."""

    def refuse(_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _: [1, 2], raising=False)
    assert limits.usable_cpus(tmp_path) == {1, 2}


@pytest.mark.parametrize(
    ("found", "said", "left"),
    [(16, "", 4), (16, "16", 16), (3, "", 3), (12, "", 12), (4, "", 4)],
)
def test_blas_takes_performance_cores_where_nobody_says(monkeypatch, found, said, left):
    """All 16 logical CPUs become 4 threads; a variable or a limit of somebody's own stays."""
    library = SimpleNamespace(num_threads=found)
    library.set_num_threads = lambda n: setattr(library, "num_threads", n)
    monkeypatch.setattr(products, "_blas", lambda: library)
    monkeypatch.setattr(limits, "performance_cores", lambda _: 4)
    monkeypatch.setattr(products, "usable_cpus", lambda: frozenset(range(16)))
    for name in limits.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    products.choose_threads()
    assert library.num_threads == left


@pytest.mark.parametrize(
    ("said", "pool", "expected"),
    [({}, False, 4), ({}, True, 1), ({"OMP_NUM_THREADS": "3"}, True, 3),
     ({"NUMBA_NUM_THREADS": "2"}, False, 2), ({"OMP_NUM_THREADS": "400"}, False, 8),
     ({"OMP_NUM_THREADS": "0"}, False, 4), ({"MKL_NUM_THREADS": "all"}, False, 4),
     ({"OMP_NUM_THREADS": "x", "NUMBA_NUM_THREADS": "5"}, False, 5)],
)  # fmt: skip
def test_threads_where_the_caller_does_not_say(monkeypatch, said, pool, expected):
    """A variable's number, within the CPUs; one in a process of a pool; else full-speed cores."""
    monkeypatch.setattr(limits, "performance_cores", lambda _: 4)
    monkeypatch.setattr(limits, "usable_cpus", lambda _: frozenset(range(8)))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object() if pool else None)
    for name in limits.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert limits.default_threads() == expected


# --- identity -----------------------------------------------------------------------------

X86 = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\n"
    "model name\t: Intel(R) Xeon(R) CPU @ 2.20GHz\nstepping\t: 7\ncpu MHz\t\t: 2200.152\n"
    "bogomips\t: 4400.30\n\n"
)


def named(tmp_path, text):
    """The processor's name by such a /proc/cpuinfo."""
    return identity.cpu_name(tree(tmp_path, {"proc/cpuinfo": text}))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (X86 * 2, "Intel(R) Xeon(R) CPU (6-85-7)"),
        (X86.replace("2200.152", "3399.871").replace("4400.30", "6799.74") * 2,
         "Intel(R) Xeon(R) CPU (6-85-7)"),
        (X86.replace("2.20GHz", "2.25GHz"), "Intel(R) Xeon(R) CPU (6-85-7)"),
        (X86.replace("model\t\t: 85", "model\t\t: 79"), "Intel(R) Xeon(R) CPU (6-79-7)"),
        ("model name : Intel(R) Xeon(R) Platinum 8269CY CPU T 3.10GHz\n",
         "Intel(R) Xeon(R) Platinum 8269CY CPU"),
        ("model name\t: AMD EPYC 7B12\ncpu MHz : 2249.998\n", "AMD EPYC 7B12"),
        ("processor : 0\nBogoMIPS : 243.75\nCPU implementer : 0x41\nCPU part : 0xd0c\n",
         "Arm part 0xd0c"),
        ("CPU implementer : 0x41\nCPU part : 0xd0b\n\nCPU implementer : 0x41\nCPU part : 0xd05\n",
         "Arm part 0xd05/0xd0b"),
        ("CPU implementer : 0x99\nCPU part : 0x001\nHardware : BCM2835\n",
         "BCM2835 (0x99 part 0x001)"),
        ("cpu : POWER9, altivec supported\nclock : 2300.000000MHz\n", "POWER9, altivec supported"),
        ("hart : 0\nuarch : sifive,u74-mc\n", "sifive,u74-mc"),
    ],
)  # fmt: skip
def test_a_processors_name_has_no_clock_rate(tmp_path, text, name):
    """Names of many systems: their generation, never how fast they happen to run."""
    assert named(tmp_path, text) == name


def test_a_processor_without_a_name_is_its_architecture(tmp_path, monkeypatch):
    """No cpuinfo, an empty one and bytes that are no text leave the architecture."""
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    assert identity.cpu_name(tmp_path) == "s390x"
    assert named(tmp_path, "") == "s390x"
    (tmp_path / "proc/cpuinfo").write_bytes(b"\xff\xfe: \x81\n")
    assert identity.cpu_name(tmp_path) == "s390x"


def test_names_on_macos_and_windows(monkeypatch):
    """Sysctl's brand without its rate; the registry's name, and what Python knows without one."""
    monkeypatch.setattr(sys, "platform", "darwin")
    brand = "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz\n"
    monkeypatch.setattr(identity, "command_output", lambda *_, **__: brand)
    assert identity.cpu_name() == "Intel(R) Core(TM) i7-9750H CPU"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(identity, "_windows_name", lambda: "AMD Ryzen 7 5800X 8-Core Processor  ")
    assert identity.cpu_name() == "AMD Ryzen 7 5800X 8-Core Processor"
    monkeypatch.setattr(identity, "_windows_name", lambda: "")
    monkeypatch.setattr(platform, "processor", lambda: "AMD64 Family 25 Model 33")
    assert identity.cpu_name() == "AMD64 Family 25 Model 33"


@pytest.mark.parametrize("installed", [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 256, 384, 768, 1024])
def test_memory_of_a_machine_is_what_is_installed(installed):
    """What a kernel keeps, up to a twentieth and other at each boot, does not change the size."""
    kept = [0.0, 0.002, 0.01, 0.02, 0.031, 0.035, 0.045]
    sizes = {identity.installed_gib(int(installed * GIB * (1 - share))) for share in kept}
    sizes |= {identity.installed_gib(installed * GIB + (5 << 20))}
    assert sizes == {float(installed)}


def test_one_machine_has_one_identity(monkeypatch, tmp_path):
    """Measuring, hardware profile and calibrations name the same machine by the same id."""
    here = identity.Machine.here()
    assert measuring.Run.here().machine is here
    assert hardware.detect_hardware(measure=False).identity == here.id
    assert hardware.detect_hardware(measure=False).name == here.cpu
    seen = []

    def calibrate(*_, identity):
        seen.append(identity)
        raise ZeroDivisionError

    monkeypatch.setattr(automatic, "calibrate_engine", calibrate)
    engine = SimpleNamespace(name="x", max_batch_size=lambda: 4)
    with pytest.raises(ZeroDivisionError):
        automatic.optimal_for_engine(engine, cache=tmp_path)
    assert seen[0].machine == here.id


def test_an_identity_stays_over_boots_and_moments(monkeypatch):
    """Clock, free and reserved memory, kernel, host name and BLAS threads are no part of it."""

    def here(release, node, total, available):
        memory = SimpleNamespace(total=total, available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(platform, "release", lambda: release)
        monkeypatch.setattr(platform, "node", lambda: node)
        identity.Machine.here.cache_clear()
        found = identity.Machine.here()
        identity.Machine.here.cache_clear()
        return found

    one = here("6.1.0", "a", int(15.52 * GIB), 9 * GIB)
    assert here("6.8.0", "b", int(15.48 * GIB), GIB).id == one.id
    assert one.memory_gib == 16
    assert here("6.1.0", "a", int(31.1 * GIB), GIB).id != one.id


def test_pinning_does_not_change_the_machine(monkeypatch):
    """A process that confines itself to one core for a while is still on the same machine."""
    monkeypatch.undo()  # the affinity that there really is
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity here")
    identity.Machine.here.cache_clear()
    with measuring.pinned([min(limits.usable_cpus())]):
        inside = identity.Machine.here()
    assert inside.cores == limits.usable_cores()
    identity.Machine.here.cache_clear()


@pytest.mark.parametrize(
    ("best", "threads", "everywhere", "cpus"),
    [
        ((0, 2, 4, 6), 1, False, [6]),  # not CPU 15, an efficiency core
        ((0, 2, 4, 6), 2, False, [4, 6]),
        ((0, 2), 4, False, [12, 13, 14, 15]),
        ((0, 2, 4, 6), 1, True, list(range(16))),
    ],
)
def test_the_gate_times_on_full_speed_cores(monkeypatch, best, threads, everywhere, cpus):
    """A worker is kept on the last performance cores; where they are too few, on the last CPUs."""
    kept: list[list[int]] = []
    monkeypatch.setattr(process, "performance_cpus", lambda: best)
    monkeypatch.setattr(process, "usable_cpus", lambda: frozenset(range(16)))
    fake = SimpleNamespace(cpu_affinity=kept.append)
    monkeypatch.setattr(psutil, "Process", lambda _: fake)
    worker: Any = object.__new__(process.Worker)
    worker._process, worker._threads = SimpleNamespace(pid=1), threads
    worker.settle(everywhere=everywhere)
    assert kept == [cpus]
