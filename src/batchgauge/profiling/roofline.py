"""How far kernels are from this machine's roofline (`machine.rates`).

Callers say how many bytes a kernel must move and how many operations it must do; nothing is
known here of what it computes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from batchgauge.clock import timed
from batchgauge.machine.rates import Rates, evictor


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
