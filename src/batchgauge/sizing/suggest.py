"""Which batch size to run: the answer, its reasons, and how far to trust it.

Every size is priced by the cost and memory models. Sizes that break a budget at the
upper end of their interval fall out, so do sizes that another one beats in both
throughput and latency; what is left is the Pareto front, and the objective picks a
point on it. The suggestion carries the prediction with intervals, the constraint
that stopped it, and a reason for each rejected size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from batchgauge.errors import UserError
from batchgauge.machine.hardware import HardwareProfile
from batchgauge.sizing.cost_model import BatchTimes, CostModel, Metric, batch_times
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.memory_model import MemoryModel
from batchgauge.sizing.suggestion import (
    BatchSizeSuggestion,
    Candidate,
    SizingConfig,
    in_words,
)
from batchgauge.statistics import Interval
from batchgauge.text import figures

# Two sizes whose predicted throughput differs by less are the same to the advisor; it
# takes the one that answers sooner.
SAME = 0.005


def suggest_batch_size(
    workload: Lengths,
    cost_model: CostModel,
    config: SizingConfig = SizingConfig(),
    *,
    memory_model: MemoryModel | None = None,
    hardware: HardwareProfile | None = None,
) -> BatchSizeSuggestion:
    """The batch size for this workload on this machine under the budgets of `config`.

    Args:
        workload: lengths of the requests; batches are drawn from them.
        cost_model: calibrated or prior costs of the model on the machine.
        config: objective, budgets, and the largest size to consider.
        memory_model: predicts peaks; without one, memory is neither checked nor known.
        hardware: where the memory budget comes from when none is given (what is free).

    A budget counts as kept when it is kept with 95 % confidence: memory by the upper end of
    its interval, latency by the one-sided limit. Where only the point prediction keeps it,
    the size is given with low trust.

    Raises UserError when even a batch of one breaks a budget: the message says which, and
    what would be needed.
    """
    memory_budget, metric = config.memory_budget_bytes, config.latency_metric
    if memory_budget is None and hardware is not None and memory_model is not None:
        # What is free does not count the weights that this process already holds.
        held = 0 if hardware.simulated else memory_model.weight_bytes
        memory_budget = hardware.memory_available_bytes + held
    times = _times(cost_model, workload, config.max_batch_size)
    waits = [row.latency_ms(metric, config.latency_over) for row in times]
    peaks = _peaks(memory_model, workload, config.max_batch_size)
    priced = [
        _price(*row, workload, cost_model, memory_model)
        for row in zip(times, waits, peaks, strict=True)
    ]
    fits_memory, careful_memory = _within(priced, "memory_bytes", memory_budget)
    if memory_budget is not None and not fits_memory:
        raise UserError(_over_memory(priced, memory_budget))
    fits_both, careful_latency = _within(
        fits_memory, "latency_ms", config.latency_budget_ms, cost_model.one_sided
    )
    if config.latency_budget_ms is not None and not fits_both:
        raise UserError(_too_late(fits_memory, config.latency_budget_ms, metric))
    choice = _Choice(priced, fits_memory, fits_both, config)
    trust, why = _trust(cost_model, memory_model, careful=careful_memory and careful_latency)
    chosen = choice.chosen
    return BatchSizeSuggestion(
        size=chosen.size,
        throughput_per_s=chosen.throughput_per_s,
        latency_ms=chosen.latency_ms,
        memory_bytes=chosen.memory_bytes,
        binding=choice.binding(),
        candidates=tuple(
            replace(row, on_front=row in choice.front, rejected=choice.reason(row))
            for row in priced
        ),
        trust=trust,
        trust_reason=why,
        objective=config.objective,
        latency_metric=metric,
        unit="tokens" if workload.generates else "texts",
    )


@lru_cache(maxsize=32)  # the same requests are asked about under many budgets
def _times(costs: CostModel, workload: Lengths, most: int) -> tuple[BatchTimes, ...]:
    return tuple(batch_times(costs, workload, size) for size in range(1, most + 1))


@lru_cache(maxsize=32)
def _peaks(memory: MemoryModel | None, workload: Lengths, most: int) -> tuple[float, ...]:
    return tuple(memory.peak_bytes(workload, n) if memory else 0.0 for n in range(1, most + 1))


def _price(
    times: BatchTimes,
    latency: float,
    memory: float,
    workload: Lengths,
    cost_model: CostModel,
    memory_model: MemoryModel | None,
) -> Candidate:
    bounds = memory_model.interval(memory) if memory_model else (0.0, 0.0)
    half = cost_model.half_width_at(times.size, workload)
    return Candidate(
        times.size,
        Interval(times.throughput_per_s, *cost_model.interval(times.throughput_per_s, half)),
        Interval(latency, *cost_model.interval(latency, half)),
        Interval(memory, *bounds),
    )


def _within(
    rows: Sequence[Candidate], name: str, budget: float | None, share: float = 1.0
) -> tuple[list[Candidate], bool]:
    """Rows that keep the budget, and whether `share` of their upper half-interval does too."""
    if budget is None:
        return list(rows), True
    estimates = [(row, getattr(row, name)) for row in rows]
    careful = [row for row, e in estimates if e.value + share * (e.high - e.value) <= budget]
    if careful:
        return careful, True
    return [row for row, e in estimates if e.value <= budget], False


def _front(rows: Sequence[Candidate]) -> list[Candidate]:
    """Rows that no other row beats in throughput without being later, by rising latency."""
    front: list[Candidate] = []
    for row in sorted(rows, key=lambda r: (r.latency_ms.value, -r.throughput_per_s.value)):
        if not front or row.throughput_per_s.value > front[-1].throughput_per_s.value:
            front.append(row)
    return front


def _choose(rows: Sequence[Candidate], aim: SizingConfig) -> Candidate:
    if aim.objective == "latency":
        return min(rows, key=lambda r: (r.latency_ms.value, r.size))
    if aim.objective == "balanced":
        return max(rows, key=lambda r: r.throughput_per_s.value / r.latency_ms.value)

    def worth(row: Candidate) -> float:
        wait = float(max(row.latency_ms.value, 1e-9) ** aim.wait_price)
        return row.throughput_per_s.value / wait

    best = max(map(worth, rows))
    good = [row for row in rows if worth(row) >= (1.0 - SAME) * best]
    return min(good, key=lambda r: r.latency_ms.value)


@dataclass
class _Choice:
    """The size that the objective picks, and why not another."""

    priced: Sequence[Candidate]
    fits_memory: Sequence[Candidate]
    fits_both: Sequence[Candidate]
    aim: SizingConfig

    def __post_init__(self) -> None:
        self.front = _front(self.fits_memory)
        self.reachable = [row for row in self.front if row in self.fits_both] or self.fits_both
        self.chosen = _choose(self.reachable, self.aim)

    def binding(self) -> str:
        """What would have to give for the objective to choose otherwise."""
        size, aim = self.chosen.size, self.aim
        fewer_in_time = len(self.reachable) < len(self.front)
        if fewer_in_time and _choose(self.front, aim).size != size:
            return "latency budget"
        fewer_fit = len(self.fits_memory) < len(self.priced)
        if fewer_fit and _choose(_front(self.priced), aim).size != size:
            return "memory budget"
        if aim.objective == "throughput" and size == self.priced[-1].size:
            return "largest batch size"
        return "none"

    def reason(self, row: Candidate) -> str:
        """Why this size is not the suggestion; empty for the suggestion itself."""
        chosen = self.chosen
        if row is chosen:
            return ""
        if row not in self.fits_memory:
            return f"over the memory budget: may need {row.memory_bytes.high / 2**20:,.0f} MiB"
        if row not in self.fits_both:
            return f"over the latency budget: may take {figures(row.latency_ms.high)} ms"
        if row not in self.front:
            better = next(
                r
                for r in self.front
                if r.latency_ms.value <= row.latency_ms.value
                and r.throughput_per_s.value >= row.throughput_per_s.value
            )
            return f"beaten by {better.size}, which is both faster and sooner"
        if self.aim.objective == "throughput":
            change = row.throughput_per_s.value / chosen.throughput_per_s.value - 1.0
            if change > 0.0:
                wait = row.latency_ms.value / chosen.latency_ms.value - 1.0
                return f"only {100 * change:.1f} % more throughput for {100 * wait:.0f} % more wait"
            return f"{100 * -change:.0f} % less throughput"
        change = row.latency_ms.value / chosen.latency_ms.value - 1.0
        way = "more" if change > 0 else "less"
        return f"{100 * abs(change):.0f} % {way} latency, worse by objective"


def _trust(
    cost: CostModel, memory: MemoryModel | None, *, careful: bool
) -> tuple[Literal["high", "fair", "low"], str]:
    if cost.source == "roofline prior":
        return "low", "a roofline guess, nothing was measured here"
    if not careful:
        return "low", "the budget lies within the prediction's own error"
    said = f"predictions were {100 * cost.error:.1f} % off on sizes not calibrated on"
    if cost.error <= 0.05 and (memory is None or memory.fitted):
        return "high", said
    return ("fair" if cost.error <= 0.15 else "low"), said


def _over_memory(priced: Sequence[Candidate], budget: float) -> str:
    need = min(row.memory_bytes.value for row in priced)
    return (
        f"No batch size fits the memory budget of {budget / 2**20:,.0f} MiB: "
        f"a batch of 1 already needs {need / 2**20:,.0f} MiB; give at least that."
    )


def _too_late(rows: Sequence[Candidate], budget: float, metric: Metric) -> str:
    least = min(rows, key=lambda row: row.latency_ms.value)
    return (
        f"No batch size keeps the latency budget of {figures(budget)} ms: "
        f"the soonest, a batch of {least.size}, has {in_words(metric)} "
        f"{figures(least.latency_ms.value)} ms; give at least that, or shorten the requests."
    )
