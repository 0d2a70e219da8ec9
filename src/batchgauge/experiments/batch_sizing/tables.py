"""Tables of the batch-sizing notebook: peaks, dense throughput, sizes by budget, simulation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from batchgauge.errors import UserError
from batchgauge.experiments.batch_sizing.sweep import FreshSweep, dense_sizes
from batchgauge.sizing import (
    BatchSizeSuggestion,
    CostModel,
    Lengths,
    MemoryModel,
    ModelShape,
    SizingConfig,
    simulated_profiles,
    suggest_batch_size,
)
from batchgauge.sizing.cost_model import batch_times
from batchgauge.sizing.memory_model import Peak
from batchgauge.text import figures as rounded


def peaks_table(memory: MemoryModel, fitted: Sequence[Peak], fresh: Sequence[Peak]) -> pd.DataFrame:
    """One row a measured peak, with its prediction."""
    return pd.DataFrame(
        {
            "batch_size": peak.rows,
            "prompt_tokens": peak.prompt_tokens,
            "new_tokens": peak.new_tokens,
            "use": use,
            "measured_bytes": peak.peak_bytes,
            "predicted_bytes": memory.batch_bytes(peak.plan()),
        }
        for use, peaks in (("fitted", fitted), ("fresh", fresh))
        for peak in peaks
    )


def dense_throughput(
    works: Mapping[str, Lengths], sweep: FreshSweep, model: CostModel
) -> pd.DataFrame:
    """Measured and predicted throughput and latency of every swept size, per workload.

    Latency is that of 95 of 100 batches, as budgets and suggestions have it.
    """
    rows = []
    for name, work in works.items():
        for size in sweep.sizes:
            real, said = batch_times(sweep.costs, work, size), batch_times(model, work, size)
            rows.append(
                {
                    "workload": name,
                    "batch_size": size,
                    "fresh_tokens_per_s": real.throughput_per_s,
                    "fresh_latency_ms": real.latency_ms("request", "p95"),
                    "predicted_tokens_per_s": said.throughput_per_s,
                    "predicted_latency_ms": said.latency_ms("request", "p95"),
                }
            )
    return pd.DataFrame(rows)


def choices(
    works: Mapping[str, Lengths], cost: CostModel, memory: MemoryModel | None, largest: int
) -> pd.DataFrame:
    """Every size worth looking at with what is predicted of it, per workload.

    Memory is what the batch takes above the weights (NaN without a memory model); `suggested` is
    the advisor's size where there is no budget.
    """
    rows = []
    weights = memory.weight_bytes if memory else 0
    for name, work in works.items():
        found = suggest(work, cost, memory, largest, None, None)
        sizes = {*dense_sizes(largest), found.size}
        rows += [
            {
                "workload": name,
                "batch_size": row.size,
                "tokens_per_s": row.throughput_per_s.value,
                "latency_ms": row.latency_ms.value,
                "memory_mib": (row.memory_bytes.value - weights) / 2**20 if memory else math.nan,
                "suggested": row.size == found.size,
            }
            for row in found.candidates
            if row.size in sizes
        ]
    return pd.DataFrame(rows)


def measured_choices(dense: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """`predicted`, as `choices` gives it, with the fresh throughput and latency of `dense`."""
    fresh = {"fresh_tokens_per_s": "tokens_per_s", "fresh_latency_ms": "latency_ms"}
    keys = ["workload", "batch_size"]
    left = dense[[*keys, *fresh]].rename(columns=fresh)
    known = predicted[[*keys, "memory_mib", "suggested"]]
    return left.merge(known, on=keys, how="inner")


def exhaustive_seconds(works: Mapping[str, Lengths], sweep: FreshSweep) -> float:
    """What running every workload once at every swept size would take, from measured times."""
    return sum(
        batch_times(sweep.costs, work, size).request_ms / 1e3
        for work in works.values()
        for size in sweep.sizes
    )


def budget_table(
    work: Lengths, cost: CostModel, memory: MemoryModel | None, largest: int
) -> pd.DataFrame:
    """The advisor's answers as a table: suggestions over latency and memory budgets."""
    one = batch_times(cost, work, 1).latency_ms("request", "p95")
    budgets = [None, *(float(f"{one * f:.2g}") for f in (1.5, 2.5, 5.0, 10.0))]
    rows = []
    for latency in budgets:
        row: dict[str, object] = {
            "latency_budget_ms": "none" if latency is None else rounded(latency)
        }
        for room in (8, 16, 64, None) if memory else (None,):
            head = "no memory budget" if room is None else f"weights + {room} MiB"
            row[head] = suggestion_text(work, cost, memory, largest, latency, room)
        rows.append(row)
    return pd.DataFrame(rows)


def suggestion_text(
    work: Lengths,
    cost: CostModel,
    memory: MemoryModel | None,
    largest: int,
    latency_ms: float | None,
    room_mib: float | None,
) -> str:
    """The size for a cell of the table, or which budget fails at 1."""
    try:
        found = suggest(work, cost, memory, largest, latency_ms, room_mib)
    except UserError as problem:
        return "none: memory" if "memory budget" in str(problem) else "none: latency"
    return f"{found.size} ({found.throughput_per_s.value:,.0f} tokens/s)"


def suggest(
    work: Lengths,
    cost: CostModel,
    memory: MemoryModel | None,
    largest: int,
    latency_ms: float | None,
    room_mib: float | None,
) -> BatchSizeSuggestion:
    """One suggestion under budgets; room is above the weights."""
    room = None
    if room_mib is not None and memory is not None:
        room = memory.weight_bytes + room_mib * 2**20
    config = SizingConfig(
        latency_budget_ms=latency_ms, memory_budget_bytes=room, max_batch_size=largest
    )
    return suggest_batch_size(work, cost, config, memory_model=memory)


def simulated_table(shape: ModelShape, memory: MemoryModel, work: Lengths) -> pd.DataFrame:
    """What the advisor would say on machines that do not exist: simulated, from rooflines."""
    rows = []
    for profile in simulated_profiles():
        found = suggest_batch_size(
            work, CostModel.prior(shape, profile), SizingConfig("balanced"),
            memory_model=memory, hardware=profile,
        )  # fmt: skip
        rows.append(
            {
                "machine": profile.label(),
                "bandwidth_gb_per_s": profile.bandwidth_bytes_per_s / 1e9,
                "gflop_per_s": profile.flops_per_s / 1e9,
                "memory_gib": profile.memory_bytes / 2**30,
                "balanced_batch_size": found.size,
                "predicted_tokens_per_s": found.throughput_per_s.value,
                "trust": found.trust,
            }
        )
    return pd.DataFrame(rows)
