"""Which batch size to run: the answer, its reasons, and how far to trust it.

Every size is priced by the cost and memory models. Sizes that break a budget at the
upper end of their interval fall out, so do sizes that another one beats in both
throughput and latency; what is left is the Pareto front, and the objective picks a
point on it. The suggestion carries the prediction with intervals, the constraint
that stopped it, and a reason for each rejected size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from batchgauge.errors import UserError
from batchgauge.machine.hardware import HardwareProfile
from batchgauge.sizing.cost_model import BatchTimes, CostModel, Metric, batch_times
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.memory_model import MemoryModel
from batchgauge.sizing.suggestion import (
    METRICS,
    OBJECTIVES,
    BatchSizeSuggestion,
    Candidate,
    Estimate,
    Objective,
    in_words,
)

# Two sizes whose predicted throughput differs by less are the same to the advisor; it
# takes the one that answers sooner.
SAME = 0.005


def suggest_batch_size(
    *,
    workload: Lengths,
    cost_model: CostModel,
    hardware: HardwareProfile | None = None,
    memory_model: MemoryModel | None = None,
    objective: Objective = "throughput",
    latency_budget_ms: float | None = None,
    latency_metric: Metric = "request",
    memory_budget_bytes: float | None = None,
    max_batch_size: int = 256,
    context_length: int | None = None,
) -> BatchSizeSuggestion:
    """The batch size for this workload on this machine under these budgets.

    Args:
        workload: lengths of the requests; batches are drawn from them.
        cost_model: calibrated or prior costs of the model on the machine.
        hardware: where the memory budget comes from when none is given (what is free).
        memory_model: predicts peaks; without one, memory is neither checked nor known.
        objective: "throughput" (most tokens or texts a second), "latency" (soonest
            answer) or "balanced" (most throughput per latency, Kleinrock's power).
        latency_budget_ms: upper bound on the mean latency of a batch.
        latency_metric: what that bounds: a whole "request", its first token ("ttft") or
            one decode step ("inter_token").
        memory_budget_bytes: upper bound on the peak of weights and batch.
        max_batch_size: largest size to consider.
        context_length: the model's limit; a longer request is an error at any size.

    A budget counts as kept when it is kept with 95 % confidence: memory by the upper end of
    its interval, latency by the one-sided limit. Where only the point prediction keeps it,
    the size is given with low trust.

    Raises UserError for budgets that are not positive, for an unknown objective or
    metric, and when even a batch of one breaks a budget: the message says which, and
    what would be needed.
    """
    check_request(objective, latency_metric, latency_budget_ms, memory_budget_bytes, max_batch_size)
    if context_length is not None:
        workload.check_context(context_length)
    if memory_budget_bytes is None and hardware is not None and memory_model is not None:
        # What is free does not count the weights that this process already holds.
        memory_budget_bytes = hardware.memory_available_bytes + memory_model.weight_bytes
        if hardware.simulated:
            memory_budget_bytes = hardware.memory_available_bytes
    sizes = range(1, max_batch_size + 1)
    times = [batch_times(cost_model, workload, size) for size in sizes]
    priced = [_price(row, workload, cost_model, memory_model, latency_metric) for row in times]
    fits_memory, careful_memory = _within(priced, "memory_bytes", memory_budget_bytes)
    fits_both, careful_latency = _within(
        fits_memory, "latency_ms", latency_budget_ms, cost_model.one_sided
    )
    if not fits_both:
        budgets = (memory_budget_bytes, latency_budget_ms)
        raise UserError(_impossible(priced, fits_memory, *budgets, latency_metric))
    front = _front(fits_memory)
    reachable = [row for row in front if row in fits_both] or fits_both
    chosen = _choose(reachable, objective)
    binding = _binding(chosen, reachable, front, fits_memory, priced, objective)
    trust, why = _trust(cost_model, memory_model, careful=careful_memory and careful_latency)
    on_front = {row.size for row in front}
    rows = tuple(
        Candidate(
            row.size,
            row.throughput_per_s,
            row.latency_ms,
            row.memory_bytes,
            row.size in on_front,
            _reason(row, chosen, fits_memory, fits_both, front, objective),
        )
        for row in priced
    )
    return BatchSizeSuggestion(
        chosen.size,
        chosen.throughput_per_s,
        chosen.latency_ms,
        chosen.memory_bytes,
        binding,
        rows,
        trust,
        why,
        objective,
        latency_metric,
        "tokens" if workload.generates else "texts",
    )


def check_request(
    objective: str,
    metric: str,
    latency_budget_ms: float | None,
    memory_budget_bytes: float | None,
    max_batch_size: int,
) -> None:
    """Raise UserError for an unknown name or a budget that is not positive."""
    if objective not in OBJECTIVES:
        raise UserError(
            f"Unknown objective {objective!r}; expected one of {', '.join(OBJECTIVES)}."
        )
    if metric not in METRICS:
        raise UserError(f"Unknown latency {metric!r}; expected one of {', '.join(METRICS)}.")
    for name, value in (
        ("latency_budget_ms", latency_budget_ms),
        ("memory_budget_bytes", memory_budget_bytes),
        ("max_batch_size", max_batch_size),
    ):
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}; expected a number above 0.")


def _price(
    times: BatchTimes,
    workload: Lengths,
    cost_model: CostModel,
    memory_model: MemoryModel | None,
    metric: Metric,
) -> Candidate:
    latency = times.latency_ms(metric)
    memory = memory_model.peak_bytes(workload, times.size) if memory_model else 0.0
    bounds = memory_model.interval(memory) if memory_model else (0.0, 0.0)
    half = cost_model.half_width_at(times.size, workload)
    return Candidate(
        times.size,
        Estimate(times.throughput_per_s, *cost_model.interval(times.throughput_per_s, half)),
        Estimate(latency, *cost_model.interval(latency, half)),
        Estimate(memory, *bounds),
    )


def _within(
    rows: Sequence[Candidate], name: str, budget: float | None, share: float = 1.0
) -> tuple[list[Candidate], bool]:
    """Rows that keep the budget, and whether `share` of their upper half-interval does too."""
    if budget is None:
        return list(rows), True
    estimates = [getattr(row, name) for row in rows]
    careful = [
        row
        for row, e in zip(rows, estimates, strict=True)
        if e.value + share * (e.high - e.value) <= budget
    ]
    if careful:
        return careful, True
    return [row for row in rows if getattr(row, name).value <= budget], False


def _front(rows: Sequence[Candidate]) -> list[Candidate]:
    """Rows that no other row beats in throughput without being later, by rising latency."""
    front: list[Candidate] = []
    for row in sorted(rows, key=lambda r: (r.latency_ms.value, -r.throughput_per_s.value)):
        if not front or row.throughput_per_s.value > front[-1].throughput_per_s.value:
            front.append(row)
    return front


def _choose(rows: Sequence[Candidate], objective: Objective) -> Candidate:
    if objective == "latency":
        return min(rows, key=lambda r: (r.latency_ms.value, r.size))
    if objective == "balanced":
        return max(rows, key=lambda r: r.throughput_per_s.value / r.latency_ms.value)
    best = max(row.throughput_per_s.value for row in rows)
    good = [row for row in rows if row.throughput_per_s.value >= (1.0 - SAME) * best]
    return min(good, key=lambda r: r.latency_ms.value)


def _binding(
    chosen: Candidate,
    reachable: Sequence[Candidate],
    front: Sequence[Candidate],
    fits_memory: Sequence[Candidate],
    priced: Sequence[Candidate],
    objective: Objective,
) -> str:
    """What would have to give for the objective to choose otherwise."""
    if _choose(front, objective).size != chosen.size and len(reachable) < len(front):
        return "latency budget"
    if len(fits_memory) < len(priced) and _choose(_front(priced), objective).size != chosen.size:
        return "memory budget"
    if objective == "throughput" and chosen.size == priced[-1].size:
        return "largest batch size"
    return "none"


def _reason(
    row: Candidate,
    chosen: Candidate,
    fits_memory: Sequence[Candidate],
    fits_both: Sequence[Candidate],
    front: Sequence[Candidate],
    objective: Objective,
) -> str:
    if row.size == chosen.size:
        return ""
    if row not in fits_memory:
        return f"over the memory budget: may need {row.memory_bytes.high / 2**20:,.0f} MiB"
    if row not in fits_both:
        return f"over the latency budget: may take {row.latency_ms.high:,.0f} ms"
    if row not in front:
        better = next(
            r
            for r in front
            if r.latency_ms.value <= row.latency_ms.value
            and r.throughput_per_s.value >= row.throughput_per_s.value
        )
        return f"beaten by {better.size}, which is both faster and sooner"
    if objective == "throughput":
        change = row.throughput_per_s.value / chosen.throughput_per_s.value - 1.0
        if change > 0.0:
            return f"only {100 * change:.1f} % more throughput, for a longer wait"
        return f"{100 * -change:.0f} % less throughput"
    change = row.latency_ms.value / chosen.latency_ms.value - 1.0
    return (
        f"{100 * abs(change):.0f} % {'more' if change > 0 else 'less'} latency, worse by objective"
    )


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


def _impossible(
    priced: Sequence[Candidate],
    fits_memory: Sequence[Candidate],
    memory_budget: float | None,
    latency_budget: float | None,
    metric: Metric,
) -> str:
    """Which budget fails already at a batch of one, and what would be needed."""
    if memory_budget is not None and not fits_memory:
        need = min(row.memory_bytes.value for row in priced)
        return (
            f"No batch size fits the memory budget of {memory_budget / 2**20:,.0f} MiB: "
            f"a batch of 1 already needs {need / 2**20:,.0f} MiB; give at least that."
        )
    least = min(fits_memory, key=lambda row: row.latency_ms.value)
    return (
        f"No batch size keeps the latency budget of {latency_budget:,.0f} ms: "
        f"the soonest, a batch of {least.size}, has {in_words(metric)} "
        f"{least.latency_ms.value:,.0f} ms; give at least that, or shorten the requests."
    )
