"""The roofline of this machine, and how far each kernel is from it.

Floor time = max(bytes / bandwidth, flops / rate), with the bandwidth and the
single-precision matrix rate measured here and now on as many threads as the
kernels use (Williams, Waterman & Patterson, "Roofline", CACM 52(4), 2009).
Callers say how many bytes a kernel must move and how many operations it must
do; nothing is known here of what it computes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from batchgauge import extras
from batchgauge.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Peaks:
    """What this machine reaches: read bandwidth in bytes/s and sgemm rate in flop/s."""

    bandwidth_bytes_per_s: float
    flops_per_s: float
    threads: int

    @property
    def ridge_flops_per_byte(self) -> float:
        """Arithmetic intensity at which a kernel stops waiting for memory."""
        return self.flops_per_s / self.bandwidth_bytes_per_s

    def floor_s(self, bytes_moved: float, flops: float) -> float:
        """The least time in seconds that moving these bytes and doing these flops can take."""
        return max(bytes_moved / self.bandwidth_bytes_per_s, flops / self.flops_per_s)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A call to place on the roofline.

    `bytes_moved` and `flops` are what it must move and do at the least (a fused
    multiply-add is two operations), at `batch_size`.
    """

    name: str
    call: Callable[[], object]
    bytes_moved: float
    flops: float
    batch_size: int = 1


def measure_peaks(
    *, threads: int = 1, seconds: float = 1.5, megabytes: int = 192, order: int = 1024
) -> Peaks:
    """Measure read bandwidth and sgemm rate on `threads` BLAS threads within about `seconds`.

    Bandwidth is the best of a dot product and a matrix-vector product that read `megabytes`
    once, well beyond the caches; the rate is the best product of two square matrices of `order`.
    The best, not the mean: neighbours on the machine can only take away. Raises UserError
    for fewer than one thread.
    """
    from threadpoolctl import threadpool_limits

    if threads < 1:
        raise UserError(f"threads is {threads}; expected at least 1.")
    stream = np.ones(megabytes * 2**20 // 4, dtype=np.float32)
    left = np.random.default_rng(0).standard_normal((order, order), dtype=np.float32)
    out = np.empty_like(left)
    with threadpool_limits(limits=threads, user_api="blas"):
        matrix, vector = stream.reshape(-1, 1024), stream[:1024]
        read_s = min(
            _best_s(lambda: np.dot(stream, stream), seconds / 4),
            _best_s(lambda: np.matmul(matrix, vector), seconds / 4),
        )
        gemm_s = _best_s(lambda: np.matmul(left, left, out=out), seconds / 2)
    return Peaks(stream.nbytes / read_s, 2.0 * order**3 / gemm_s, threads)


def _durations_s(call: Callable[[], object], seconds: float, at_least: int = 3) -> list[float]:
    call()
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < at_least or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        durations.append(time.perf_counter() - begin)
    return durations


def _best_s(call: Callable[[], object], seconds: float) -> float:
    return min(_durations_s(call, seconds))


def place(kernels: Sequence[Kernel], peaks: Peaks, *, seconds: float = 5.0) -> pd.DataFrame:
    """Time each kernel (its share of `seconds`, at least 3 calls) and place it on the roofline.

    One row a kernel: kernel, batch_size, bytes_moved, flops, intensity_flops_per_byte,
    floor_ms, measured_ms (median), ratio (measured over floor; 1 is the machine's limit),
    bound (`memory` or `compute`), achieved_flops_per_s, calls.
    """
    rows = []
    for kernel in kernels:
        durations = _durations_s(kernel.call, seconds / len(kernels))
        rows.append(placed(kernel, peaks, statistics.median(durations), len(durations)))
    return pd.DataFrame(rows)


def placed(kernel: Kernel, peaks: Peaks, measured_s: float, calls: int = 1) -> dict[str, object]:
    """The row of `place` for a kernel that took `measured_s`."""
    floor_s = peaks.floor_s(kernel.bytes_moved, kernel.flops)
    intensity = kernel.flops / kernel.bytes_moved
    return {
        "kernel": kernel.name,
        "batch_size": kernel.batch_size,
        "bytes_moved": kernel.bytes_moved,
        "flops": kernel.flops,
        "intensity_flops_per_byte": intensity,
        "floor_ms": 1e3 * floor_s,
        "measured_ms": 1e3 * measured_s,
        "ratio": measured_s / floor_s,
        "bound": "memory" if intensity < peaks.ridge_flops_per_byte else "compute",
        "achieved_flops_per_s": kernel.flops / measured_s,
        "calls": calls,
    }


_MARKERS = "osD^vPXhp*"


def draw_roofline(frame: pd.DataFrame, peaks: Peaks, *, title: str) -> Figure:
    """Kernels below the roof: marker is the kernel, shade the batch size, dashes the distance."""
    extras.require("A roofline as a figure", "study", "matplotlib")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(9.0, 5.2), layout="constrained")
    lowest = min(0.1, 0.5 * float(frame["intensity_flops_per_byte"].min()))
    highest = max(
        4 * peaks.ridge_flops_per_byte, 2 * float(frame["intensity_flops_per_byte"].max())
    )
    xs = np.geomspace(lowest, highest, 200)
    roof = np.minimum(xs * peaks.bandwidth_bytes_per_s, peaks.flops_per_s) / 1e9
    ax.plot(xs, roof, color="#222222", linewidth=1.6)
    ax.annotate(
        f"memory: {peaks.bandwidth_bytes_per_s / 1e9:.1f} GB/s", (xs[40], roof[40]),
        xytext=(0, 10), textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    ax.annotate(
        f"sgemm: {peaks.flops_per_s / 1e9:.0f} Gflop/s", (xs[-1], roof[-1]), xytext=(0, 5),
        textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    sizes = sorted(frame["batch_size"].unique())
    shades = dict(
        zip(sizes, plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(sizes))), strict=True)
    )
    for marker, (name, rows) in zip(
        _MARKERS * 9, frame.groupby("kernel", sort=False), strict=False
    ):
        ax.scatter(
            rows["intensity_flops_per_byte"], rows["achieved_flops_per_s"] / 1e9, marker=marker,
            s=64, c=[shades[b] for b in rows["batch_size"]], edgecolor="white", linewidth=0.6,
            zorder=3,
        )  # fmt: skip
        ax.scatter([], [], marker=marker, color="#555555", s=45, label=str(name))
    for row in frame.to_dict("records"):
        limit = min(
            row["intensity_flops_per_byte"] * peaks.bandwidth_bytes_per_s, peaks.flops_per_s
        )
        at = [row["intensity_flops_per_byte"]] * 2
        ax.plot(at, [row["achieved_flops_per_s"] / 1e9, limit / 1e9], ":", color="#999999", lw=0.8)
    for size in sizes:
        ax.scatter([], [], marker="s", color=shades[size], s=45, label=f"batch {size}")
    ax.set(
        xscale="log", yscale="log", xlabel="arithmetic intensity (flop per byte moved)",
        ylabel="rate (Gflop/s)",
    )  # fmt: skip
    ax.set_title(title, loc="left", fontsize=11)
    ax.grid(visible=True, which="major", color="#e5e5e5", linewidth=0.6)
    fig.legend(loc="outside right upper", fontsize=8, frameon=False)
    return fig
