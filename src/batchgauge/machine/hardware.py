"""What this machine offers for batching, or what a simulated one would.

`detect_hardware()` puts together what the process may use (`limits`), what the
processor is (caches, SIMD, BLAS) and how fast it really is (`rates`). Nothing is
required: what a system does not tell is 0 or empty, with a note saying so.
`simulated_profiles()` are invented machines to try the advisor's logic on; they
say that they are simulated wherever they are printed.
"""

from __future__ import annotations

import contextlib
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batchgauge.errors import UserError
from batchgauge.machine.identity import Machine, cpu_name
from batchgauge.machine.limits import command_output, usable_cores, usable_memory
from batchgauge.machine.preflight import blas_identity
from batchgauge.machine.rates import Rates, cached_rates
from batchgauge.text import counted

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """A machine as the advisor sees it; rates hold for `threads` threads.

    `cores` and `memory_available_bytes` are what this process may use, after
    affinity and control-group limits. `caches_bytes` maps "L1d", "L2", "L3" to
    bytes. Rates of 0 mean "not measured".
    """

    name: str
    cores: int
    memory_bytes: int
    memory_available_bytes: int
    bandwidth_bytes_per_s: float = 0.0
    flops_per_s: float = 0.0
    threads: int = 1
    step_overhead_ms: float = 1.0
    identity: str = ""
    system: str = ""
    caches_bytes: tuple[tuple[str, int], ...] = ()
    simd: tuple[str, ...] = ()
    blas: str = ""
    blas_threads: int = 1
    gpus: tuple[str, ...] = ()
    simulated: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.cores < 1 or self.threads < 1:
            raise UserError("A hardware profile needs at least one core and one thread.")
        if min(self.memory_bytes, self.memory_available_bytes) < 0:
            raise UserError("A hardware profile's memory is negative; expected bytes >= 0.")
        if min(self.bandwidth_bytes_per_s, self.flops_per_s, self.step_overhead_ms) < 0.0:
            raise UserError("A hardware profile's rates are negative; expected numbers >= 0.")

    def label(self) -> str:
        """The name as printed in tables: simulated machines say so."""
        return f"{self.name} (simulated)" if self.simulated else self.name

    def facts(self) -> list[tuple[str, str]]:
        """What is known, as (label, value) rows for a table."""
        caches = ", ".join(f"{k} {v / 1024:,.0f} KiB" for k, v in self.caches_bytes)
        threads = counted(self.threads, "thread")
        blas = f"{self.blas}, {counted(self.blas_threads, 'thread')}"
        rows = [
            ("processor", self.label()),
            ("system", self.system),
            ("cores usable", str(self.cores)),
            ("memory", f"{self.memory_bytes / 2**30:.1f} GiB"),
            ("memory available", f"{self.memory_available_bytes / 2**30:.1f} GiB"),
            ("caches", caches),
            ("SIMD", " ".join(self.simd)),
            ("BLAS", blas if self.blas else ""),
            ("bandwidth", f"{self.bandwidth_bytes_per_s / 1e9:.1f} GB/s, {threads}"),
            ("sgemm", f"{self.flops_per_s / 1e9:.0f} GFLOP/s, {threads}"),
            ("GPUs", ", ".join(self.gpus) or "none found"),
        ]
        return [(label, value) for label, value in rows if value]


def detect_hardware(
    *, threads: int = 1, measure: bool = True, root: Path | str = "/", cache: Path | None = None
) -> HardwareProfile:
    """This machine's profile; rates for `threads` BLAS threads.

    `measure=False` skips the rates (they are then 0). `root` is where /proc and
    /sys are read; `cache` is the folder of measured rates. Raises UserError for
    fewer than one thread.
    """
    if threads < 1:
        raise UserError(f"threads is {threads}; expected at least 1.")
    total, available = usable_memory(root)
    identity = Machine.here().id
    blas, blas_threads = blas_identity()
    caches = read_caches(root)
    rates = cached_rates(threads, identity, folder=cache) if measure else Rates(threads, 0.0, 0.0)
    return HardwareProfile(
        name=cpu_name(root),
        cores=usable_cores(root),
        memory_bytes=total,
        memory_available_bytes=available,
        bandwidth_bytes_per_s=rates.bandwidth_bytes_per_s,
        flops_per_s=rates.flops_per_s,
        threads=threads,
        identity=identity,
        system=f"{platform.system()} {platform.machine()}",
        caches_bytes=tuple(sorted(caches.items())),
        simd=_simd(),
        blas=blas,
        blas_threads=blas_threads,
        gpus=find_gpus(),
        notes=() if caches else ("This system does not tell its cache sizes.",),
    )


def read_caches(root: Path | str = "/") -> dict[str, int]:
    """Cache sizes in bytes by name ("L1d", "L2", "L3"); empty where the system tells none."""
    sizes: dict[str, int] = {}
    if sys.platform == "darwin":
        for name, key in (("L1d", "l1dcachesize"), ("L2", "l2cachesize"), ("L3", "l3cachesize")):
            text = command_output("sysctl", "-n", f"hw.{key}").strip()
            if text.isdigit() and int(text) > 0:
                sizes[name] = int(text)
        return sizes
    if sys.platform == "win32":
        query = "Get-CimInstance Win32_Processor | % { $_.L2CacheSize; $_.L3CacheSize }"
        numbers = command_output("powershell", "-NoProfile", "-Command", query).split()
        for name, text in zip(("L2", "L3"), numbers, strict=False):
            if text.isdigit() and int(text) > 0:
                sizes[name] = int(text) << 10  # Windows answers in KiB
        return sizes
    for folder in sorted(Path(root).glob("sys/devices/system/cpu/cpu0/cache/index*")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            level = (folder / "level").read_text(encoding="utf-8").strip()
            kind = (folder / "type").read_text(encoding="utf-8").strip()
            size = (folder / "size").read_text(encoding="utf-8").strip()
            if kind != "Instruction":
                value = int(size[:-1]) * _UNITS[size[-1]]
                sizes[f"L{level}{'d' if level == '1' else ''}"] = value
    return sizes


def find_gpus() -> tuple[str, ...]:
    """Names of the GPUs that `nvidia-smi` lists; else those of a torch that is already imported."""
    query = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    rows = (row.rpartition(",") for row in command_output("nvidia-smi", *query).splitlines())
    found = [name.strip() for name, _, memory in rows if memory.strip().isdigit()]
    torch = sys.modules.get("torch")  # importing it for a look would cost seconds
    if found or torch is None:
        return tuple(found)
    with contextlib.suppress(RuntimeError, AttributeError):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [str(torch.cuda.get_device_name(i)) for i in range(count)]
    return tuple(found)


def simulated_profiles() -> tuple[HardwareProfile, ...]:
    """Invented machines, described by bandwidth, flop rate and memory; all labelled simulated."""
    gib = 1 << 30

    def machine(
        name: str, cores: int, memory_gib: int, bandwidth_gb: float, gflops: float, overhead: float
    ) -> HardwareProfile:
        memory = memory_gib * gib
        rates = (bandwidth_gb * 1e9, gflops * 1e9)
        return HardwareProfile(name, cores, memory, memory, *rates, cores, overhead, simulated=True)

    return (
        machine("laptop, 4 cores", 4, 16, 40.0, 250.0, 1.0),
        machine("server, 64 cores", 64, 256, 300.0, 4_000.0, 1.5),
        machine("GPU, 16 GB", 1, 16, 320.0, 8_000.0, 0.3),
        machine("GPU, 80 GB", 1, 80, 2_000.0, 60_000.0, 0.3),
    )


def _simd() -> tuple[str, ...]:
    """SIMD extensions that NumPy found on this processor."""
    config = np.show_config(mode="dicts") or {}
    extensions = config.get("SIMD Extensions", {})
    return tuple(extensions.get("baseline", ())) + tuple(extensions.get("found", ()))
