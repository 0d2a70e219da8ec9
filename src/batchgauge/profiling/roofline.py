"""How far kernels are from this machine's roofline (`machine.rates`), measured and drawn.

Callers say how many bytes a kernel must move and how many operations it must do; nothing is
known here of what it computes.
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
from batchgauge.clock import timed
from batchgauge.machine.rates import Rates, evictor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def place(
    kernels: Sequence[Kernel], rates: Rates, *, seconds: float = 5.0
) -> tuple[pd.DataFrame, Rates]:
    """Time each kernel (its share of `seconds`, at least 3 calls) and place it on the roofline.

    Caches are emptied before every call, as a floor counts bytes from memory. A kernel that
    takes less than its floor in the median raises the rates for all, so that none does in the
    end: the rates as they are then come second.

    One row a kernel: kernel, batch_size, bytes_moved, flops, intensity_flops_per_byte,
    floor_ms, measured_ms (median), ratio (measured over floor; 1 is the machine's limit),
    bound (`memory` or `compute`), achieved_flops_per_s, calls.
    """
    evict, found = evictor(), []
    for kernel in kernels:
        kernel.call()
        durations: list[float] = []
        end = time.perf_counter() + seconds / len(kernels)
        while len(durations) < 3 or time.perf_counter() < end:
            evict()
            durations.append(timed(kernel.call).wall_ns / 1e9)
        found.append((kernel, statistics.median(durations), len(durations)))
    for kernel, middle, _ in found:
        rates = rates.raised(middle, kernel.bytes_moved, kernel.flops)
    rows = [placed(kernel, rates, middle, calls) for kernel, middle, calls in found]
    return pd.DataFrame(rows), rates


def placed(kernel: Kernel, rates: Rates, measured_s: float, calls: int = 1) -> dict[str, object]:
    """The row of `place` for a kernel that took `measured_s`."""
    floor_s = rates.floor_s(kernel.bytes_moved, kernel.flops)
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
        "bound": "memory" if intensity < rates.ridge_flops_per_byte else "compute",
        "achieved_flops_per_s": kernel.flops / measured_s,
        "calls": calls,
    }


_MARKERS = "osD^vPXhp*"


def draw_roofline(frame: pd.DataFrame, rates: Rates, *, title: str) -> Figure:
    """Kernels below the roof: marker is the kernel, shade the batch size, dashes the distance."""
    extras.require("A roofline as a figure", "study", "matplotlib")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(9.0, 5.2), layout="constrained")
    lowest = min(0.1, 0.5 * float(frame["intensity_flops_per_byte"].min()))
    highest = max(
        4 * rates.ridge_flops_per_byte, 2 * float(frame["intensity_flops_per_byte"].max())
    )
    xs = np.geomspace(lowest, highest, 200)
    roof = np.minimum(xs * rates.bandwidth_bytes_per_s, rates.flops_per_s) / 1e9
    ax.plot(xs, roof, color="#222222", linewidth=1.6)
    ax.annotate(
        f"memory: {rates.bandwidth_bytes_per_s / 1e9:.1f} GB/s", (xs[40], roof[40]),
        xytext=(0, 10), textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    ax.annotate(
        f"sgemm: {rates.flops_per_s / 1e9:.0f} Gflop/s", (xs[-1], roof[-1]), xytext=(0, 5),
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
            row["intensity_flops_per_byte"] * rates.bandwidth_bytes_per_s, rates.flops_per_s
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
