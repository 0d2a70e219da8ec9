"""What the advisor answers with: a suggestion, its candidates, its intervals. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from batchgauge.sizing.cost_model import Metric

Objective = Literal["throughput", "latency", "balanced"]
OBJECTIVES: tuple[Objective, ...] = ("throughput", "latency", "balanced")
METRICS: tuple[Metric, ...] = ("request", "ttft", "inter_token")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One size with its prediction; `rejected` says why it is not the suggestion, or is empty."""

    size: int
    throughput_per_s: Estimate
    latency_ms: Estimate
    memory_bytes: Estimate
    on_front: bool = False
    rejected: str = ""


@dataclass(frozen=True, slots=True)
class BatchSizeSuggestion:
    """The suggested size and everything behind it.

    binding     what stopped a larger throughput: "latency budget", "memory budget",
                "largest batch size" or "none" (throughput has levelled off)
    trust       "high", "fair" or "low", with the reason in `trust_reason`
    unit        what throughput counts: "tokens" or "texts"
    """

    size: int
    throughput_per_s: Estimate
    latency_ms: Estimate
    memory_bytes: Estimate
    binding: str
    candidates: tuple[Candidate, ...]
    trust: Literal["high", "fair", "low"]
    trust_reason: str
    objective: Objective
    latency_metric: Metric
    unit: str

    @property
    def rejected(self) -> tuple[Candidate, ...]:
        """Every other size, each with its reason."""
        return tuple(row for row in self.candidates if row.rejected)

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The Pareto front: no other size that fits is both faster and sooner."""
        return tuple(row for row in self.candidates if row.on_front)

    @property
    def limit(self) -> str:
        """What stops the size, in words without a full stop."""
        if self.binding == "none":
            return "No budget stops it: throughput has levelled off"
        return f"Limited by the {self.binding}"

    def sentence(self) -> str:
        """The suggestion in words, with its intervals."""
        rate, wait, memory = self.throughput_per_s, self.latency_ms, self.memory_bytes
        peak = f"peak memory {memory.value / 2**20:,.0f} MiB" if memory.value else "memory unknown"
        return (
            f"Run batches of {self.size}: {rate.value:,.0f} {self.unit}/s predicted "
            f"({rate.low:,.0f} to {rate.high:,.0f}), {in_words(self.latency_metric)} "
            f"{wait.value:,.0f} ms ({wait.low:,.0f} to {wait.high:,.0f}), "
            f"{peak}. "
            f"{self.limit}. Trust: {self.trust} ({self.trust_reason})."
        )


def in_words(metric: Metric) -> str:
    """The latency metric as it reads in a sentence."""
    return {
        "request": "latency of a request",
        "ttft": "time to first token",
        "inter_token": "inter-token latency",
    }[metric]
