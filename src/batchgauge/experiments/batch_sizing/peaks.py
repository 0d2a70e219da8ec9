"""Peak memory of real batches: those the memory model is fitted to, and fresh ones to judge it."""

from __future__ import annotations

from collections.abc import Sequence

from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.model import PART, SPARE, TILE
from batchgauge.measuring.memory import allocations
from batchgauge.protocols import Engine
from batchgauge.sizing import MemoryModel, ModelShape
from batchgauge.sizing.memory_model import Peak
from batchgauge.workload import exact_requests

# (rows, prompt tokens, new tokens) of each batch
PREFILL_PEAKS = ((1, 16, 1), (3, 20, 1), (4, 32, 1), (2, 100, 1), (1, 260, 1), (1, 520, 1))
DECODE_PEAKS = ((8, 2, 12), (24, 2, 3), (2, 2, 16))
FRESH_PEAKS = ((6, 20, 8), (5, 40, 6), (10, 60, 3), (3, 100, 16))


def measure_peaks(engine: Engine, batches: Sequence[tuple[int, int, int]]) -> list[Peak]:
    """Peak bytes above the loaded model of batches (rows, prompt, new), traced one by one."""
    peaks = []
    for rows, prompt, new in batches:
        items = exact_requests([prompt] * rows, [new] * rows)
        found = allocations(lambda items=items: engine.infer_batch(items), warm_up=False)  # type: ignore[misc]  # bound now
        peaks.append(Peak(rows, prompt, new, float(found.peak_bytes)))
    return peaks


def fresh_peaks(engine: Engine, largest: int) -> list[Peak]:
    """Peaks of lengths and sizes that the memory model never saw; 8 in and 4 out at many sizes."""
    sizes = range(4, largest + 1, 4) if largest < 16 else range(8, largest + 1, 8)
    return measure_peaks(engine, [*((s, 8, 4) for s in sizes), *FRESH_PEAKS[: 1 + largest // 8]])


def fit_memory(engine: Engine, shape: ModelShape) -> tuple[MemoryModel, list[Peak]]:
    """A memory model fitted to a few small batches, and their peaks.

    The core prefills `PART` positions at a time; beyond `TILE`, only its narrow buffers
    still grow.
    """
    group = engine.model.alike if isinstance(engine, BatchInferenceEngine) else 0
    blank = MemoryModel.from_shape(shape, part=PART, tile=TILE, spare=SPARE, group=group or 1)
    engine.infer_batch(exact_requests([2], [2]))  # what is made once is not the batch's
    prefill, decode = measure_peaks(engine, PREFILL_PEAKS), measure_peaks(engine, DECODE_PEAKS)
    return blank.fitted_to(prefill, decode), [*prefill, *decode]
