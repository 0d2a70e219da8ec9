"""Hardware detection: control groups of recorded trees, other systems by monkeypatching."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from batchgauge.errors import UserError
from batchgauge.machine import hardware, limits, rates

GIB = 1 << 30


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write a recorded /proc and /sys below `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


V2 = {
    "proc/self/cgroup": "0::/docker/abc\n",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
    "sys/fs/cgroup/docker/cpu.max": "400000 100000\n",
    "sys/fs/cgroup/docker/memory.max": "max\n",
    "sys/fs/cgroup/docker/abc/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/docker/abc/memory.max": f"{2 * GIB}\n",
    "sys/fs/cgroup/docker/abc/memory.current": f"{GIB}\n",
    "sys/fs/cgroup/docker/abc/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
}
V1 = {
    "proc/self/cgroup": "5:cpu,cpuacct:/kube/pod\n3:memory:/kube/pod\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/kube/pod/cpu.cfs_quota_us": "300000\n",
    "sys/fs/cgroup/cpu,cpuacct/kube/pod/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/kube/pod/memory.limit_in_bytes": f"{GIB}\n",
    "sys/fs/cgroup/memory/kube/pod/memory.usage_in_bytes": f"{GIB // 4}\n",
    "sys/fs/cgroup/memory/kube/pod/memory.stat": "total_inactive_file 0\n",
}


def test_cgroup_version_2_takes_the_tightest_of_the_parents(tmp_path):
    """The group's own quota and limit win over its parents' looser ones; cache is not in use."""
    found = limits.read_cgroup(tree(tmp_path, V2))
    assert found == limits.CgroupLimits(2, 1.5, 2 * GIB, GIB - GIB // 2)


def test_cgroup_version_2_parent_limit_counts(tmp_path):
    """A parent that allows less than its child is what holds."""
    files = V2 | {"sys/fs/cgroup/docker/cpu.max": "50000 100000\n"}
    assert limits.read_cgroup(tree(tmp_path, files)).cores == 0.5


def test_cgroup_version_1_reads_quota_and_limit(tmp_path):
    """Version 1 names: -1 and the huge number mean no limit at the top, the pod's own count."""
    found = limits.read_cgroup(tree(tmp_path, V1))
    assert found == limits.CgroupLimits(1, 3.0, GIB, GIB // 4)


def test_cgroup_path_of_the_host_inside_a_container(tmp_path):
    """Where the path in /proc does not exist below the mount, the mount's own files count."""
    files = {
        "proc/self/cgroup": "0::/../../elsewhere\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu\n",
        "sys/fs/cgroup/cpu.max": "200000 100000\n",
    }
    assert limits.read_cgroup(tree(tmp_path, files)).cores == 2.0


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "garbage\n", "sys/fs/cgroup/cgroup.controllers": ""},
        {"sys/fs/cgroup/cgroup.controllers": "", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        {"sys/fs/cgroup/cgroup.controllers": "", "sys/fs/cgroup/memory.max": "what\n"},
    ],
)
def test_no_cgroup_limit_is_no_limit(tmp_path, files):
    """Missing, unlimited and unreadable control groups set no limit."""
    found = limits.read_cgroup(tree(tmp_path, files))
    assert found.cores is None
    assert found.memory_bytes is None


def test_usable_cores_and_memory_obey_the_group(tmp_path, monkeypatch):
    """Quota rounds down to at least one core; memory is the limit less what is in use."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert limits.usable_cores(tree(tmp_path / "a", V2)) == 1
    assert limits.usable_cores(tree(tmp_path / "b", V1)) == 3
    assert limits.usable_cores(tmp_path / "none") == 8
    machine = type("M", (), {"total": 64 * GIB, "available": 32 * GIB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    assert limits.usable_memory(tmp_path / "a") == (2 * GIB, 2 * GIB - GIB // 2)
    assert limits.usable_memory(tmp_path / "none") == (64 * GIB, 32 * GIB)


def test_cores_without_affinity_calls(monkeypatch, tmp_path):
    """Without affinity (macOS) the machine's cores count; Windows answers through psutil."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    assert limits.usable_cores(tmp_path) == 10
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _: [0, 1, 2], raising=False)
    assert limits.usable_cores(tmp_path) == 3


def test_caches_on_linux_macos_and_windows(monkeypatch, tmp_path):
    """Each system's own way of telling cache sizes is read; instruction caches are left out."""
    base = "sys/devices/system/cpu/cpu0/cache/index"
    files = {
        f"{base}0/level": "1\n",
        f"{base}0/type": "Data\n",
        f"{base}0/size": "48K\n",
        f"{base}1/level": "1\n",
        f"{base}1/type": "Instruction\n",
        f"{base}1/size": "32K\n",
        f"{base}3/level": "3\n",
        f"{base}3/type": "Unified\n",
        f"{base}3/size": "32M\n",
    }
    monkeypatch.setattr(sys, "platform", "linux")
    assert hardware.read_caches(tree(tmp_path, files)) == {"L1d": 48 << 10, "L3": 32 << 20}
    monkeypatch.setattr(sys, "platform", "darwin")
    answers = {"hw.l1dcachesize": "65536\n", "hw.l2cachesize": "4194304\n"}
    monkeypatch.setattr(hardware, "command_output", lambda *c: answers.get(c[-1], ""))
    assert hardware.read_caches() == {"L1d": 65536, "L2": 4194304}
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(hardware, "command_output", lambda *_: "2048\r\n32768\r\n")
    assert hardware.read_caches() == {"L2": 2048 << 10, "L3": 32768 << 10}


def test_gpus_are_read_from_nvidia_smi(monkeypatch):
    """Rows of nvidia-smi become GPUs; a row that is no GPU is left out."""
    text = "NVIDIA A100-SXM4-80GB, 81920\nerror line\n"
    monkeypatch.setattr(hardware, "command_output", lambda *_: text)
    assert hardware.find_gpus() == ("NVIDIA A100-SXM4-80GB",)


def test_commands_that_are_missing_or_hang_give_nothing(monkeypatch):
    """A missing tool, a failing one and one that never ends are all no answer."""
    assert limits.command_output("no-such-program-anywhere") == ""

    def hang(*_, **__):
        raise subprocess.TimeoutExpired("x", 5)

    monkeypatch.setattr(subprocess, "run", hang)
    assert limits.command_output("nvidia-smi") == ""


def test_this_machine_is_described():
    """Detection works here: at least one core, some memory, a BLAS, an identity."""
    found = hardware.detect_hardware(measure=False)
    assert found.cores >= 1
    assert 0 < found.memory_available_bytes <= found.memory_bytes
    assert found.identity
    assert found.flops_per_s == 0.0
    assert not found.simulated
    assert dict(found.facts())["cores usable"] == str(found.cores)


def test_rates_are_measured_once_per_machine(tmp_path, monkeypatch):
    """The second question is answered from the cache; another machine is measured anew."""
    calls = []

    def measure(threads):
        calls.append(threads)
        return rates.Rates(threads, 1e10, 1e11)

    monkeypatch.setattr(rates, "measure_rates", measure)
    first = rates.cached_rates(2, "here", folder=tmp_path)
    assert rates.cached_rates(2, "here", folder=tmp_path) == first
    rates.cached_rates(2, "there", folder=tmp_path)
    assert calls == [2, 2]
    for path in tmp_path.glob("rates-here-*.json"):
        path.write_text("{broken", encoding="utf-8")
    assert rates.cached_rates(2, "here", folder=tmp_path) == first


def test_rates_are_real_numbers():
    """A measurement gives positive rates, and more flops than bytes on any machine with caches."""
    found = rates.measure_rates(1, megabytes=16, order=128)
    assert found.bandwidth_bytes_per_s > 0.0
    assert found.flops_per_s > 0.0
    assert json.dumps(found.flops_per_s)


def test_cache_folder(monkeypatch, tmp_path):
    """A folder of our own in the user's cache folder, or where the variable says."""
    monkeypatch.delenv("BATCHGAUGE_CACHE", raising=False)
    assert "batchgauge" in rates.cache_folder().parts
    assert rates.cache_folder().is_absolute()
    monkeypatch.setenv("BATCHGAUGE_CACHE", str(tmp_path))
    assert rates.cache_folder() == tmp_path


def test_rates_belong_to_a_blas_core_type(monkeypatch, tmp_path):
    """Another BLAS core type on the same processor is measured anew; its threads do not matter."""
    calls = []

    def measure(threads):
        calls.append(threads)
        return rates.Rates(threads, 1e10, 1e11)

    monkeypatch.setattr(rates, "measure_rates", measure)
    for blas in (("openblas SkylakeX", 2), ("openblas SkylakeX", 1), ("openblas Haswell", 2)):
        monkeypatch.setattr(rates, "blas_identity", lambda blas=blas: blas)
        rates.cached_rates(1, "here", folder=tmp_path)
    assert calls == [1, 1]


def test_simulated_machines_say_so():
    """Every invented profile is labelled simulated and has rates."""
    for profile in hardware.simulated_profiles():
        assert "simulated" in profile.label()
        assert np.isfinite(profile.bandwidth_bytes_per_s)
        assert profile.flops_per_s > 0.0


def test_impossible_profiles_are_refused():
    """No cores, negative memory and threads below 1 are user errors."""
    for bad in (
        {"cores": 0, "memory_bytes": 1, "memory_available_bytes": 1},
        {"cores": 1, "memory_bytes": -1, "memory_available_bytes": 1},
        {"cores": 1, "memory_bytes": 1, "memory_available_bytes": 1, "flops_per_s": -1.0},
    ):
        with pytest.raises(UserError):
            hardware.HardwareProfile("x", **bad)
    with pytest.raises(UserError):
        hardware.detect_hardware(threads=0)
