"""What to size for, and what the advisor answers: data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from batchgauge.errors import UserError
from batchgauge.sizing.cost_model import Metric, Over
from batchgauge.statistics import Interval
from batchgauge.text import figures

Objective = Literal["throughput", "latency", "balanced"]
_CHOICES = {
    "objective": ("throughput", "latency", "balanced"),
    "latency_metric": ("request", "ttft", "inter_token"),
    "latency_over": ("p95", "mean"),
}
WAIT_PRICE = 0.25  # of throughput, that each further part of waiting must buy


@dataclass(frozen=True, slots=True)
class SizingConfig:
    """Objective and budgets of a suggestion.

    objective            "throughput" (most tokens or texts a second, at the price of waiting
                         below), "latency" (soonest answer) or "balanced" (most throughput per
                         latency, Kleinrock's power)
    latency_budget_ms    upper bound on the latency of a batch
    latency_metric       what that bounds: a whole "request", its first token ("ttft") or one
                         decode step ("inter_token")
    latency_over         over which batches: 95 of 100 ("p95") or the "mean"
    wait_price           how many percent more throughput each percent more latency must buy;
                         0: throughput at any wait
    memory_budget_bytes  upper bound on the peak of weights and batch
    max_batch_size       largest size to consider
    threads              BLAS threads of whoever asks

    A budget of None is none; so are 0 in notebook parameters, which have no None.
    Raises UserError for anything that makes no sense.
    """

    objective: Objective = "throughput"
    latency_budget_ms: float | None = None
    latency_metric: Metric = "request"
    memory_budget_bytes: float | None = None
    max_batch_size: int = 256
    threads: int = 1
    latency_over: Over = "p95"
    wait_price: float = WAIT_PRICE

    def __post_init__(self) -> None:
        if not 0.0 <= self.wait_price <= 1.0:
            raise UserError(f"wait_price is {self.wait_price}; expected a number from 0 to 1.")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"Unknown {name} {value!r}; expected one of {', '.join(choices)}.")
        for name in ("latency_budget_ms", "memory_budget_bytes", "max_batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; expected a number above 0.")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> SizingConfig:
        """From a mapping such as a notebook's parameters; 0 as a budget means none.

        Raises UserError for a name that is no setting or a value of the wrong type.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(parameters) - known)
        if unknown:
            names = ", ".join(sorted(known))
            raise UserError(f"Unknown sizing setting {unknown[0]!r}; expected some of {names}.")
        return cls(**{name: _typed(name, value) for name, value in parameters.items()})


def _typed(name: str, value: Any) -> Any:
    """The value as its field wants it; 0 for a budget becomes None."""
    if name in _CHOICES:
        return value  # checked by name
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        if name.endswith(("_ms", "_bytes")):
            return value or None
        if value is not None and float(value).is_integer():
            return int(value)
    kind = "number (0: no budget)" if name.endswith(("_ms", "_bytes")) else "whole number"
    raise UserError(f"The sizing setting {name} is {value!r}; expected a {kind}.")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One size with its prediction; `rejected` says why it is not the suggestion, or is empty."""

    size: int
    throughput_per_s: Interval
    latency_ms: Interval
    memory_bytes: Interval
    on_front: bool = False
    rejected: str = ""


@dataclass(frozen=True, slots=True)
class BatchSizeSuggestion:
    """The suggested size and everything behind it.

    binding     what stopped a larger throughput: "latency budget", "memory budget",
                "largest batch size" (where the search ended, no property of the machine) or
                "none" (a larger batch does not pay for its wait)
    trust       "high", "fair" or "low", with the reason in `trust_reason`
    unit        what throughput counts: "tokens" or "texts"
    """

    size: int
    throughput_per_s: Interval
    latency_ms: Interval
    memory_bytes: Interval
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
            return "No budget stops it: a larger batch does not pay for its wait"
        if self.binding == "largest batch size":
            return (
                "The search ended at this size, the largest that was considered: a larger one may "
                "pay as well"
            )
        return f"Limited by the {self.binding}"

    def sentence(self) -> str:
        """The suggestion in words, with its intervals."""
        rate, wait, memory = self.throughput_per_s, self.latency_ms, self.memory_bytes
        peak = f", peak memory {memory.value / 2**20:,.0f} MiB" if memory.value else ""
        return (
            f"Run batches of {self.size}: {rate.value:,.0f} {self.unit}/s predicted "
            f"({rate.low:,.0f} to {rate.high:,.0f}), {in_words(self.latency_metric)} "
            f"{figures(wait.value)} ms ({figures(wait.low)} to {figures(wait.high)}){peak}. "
            f"{self.limit}. Trust: {self.trust} ({self.trust_reason})."
        )


def in_words(metric: Metric) -> str:
    """The latency metric as it reads in a sentence."""
    return {
        "request": "latency of a request",
        "ttft": "time to first token",
        "inter_token": "inter-token latency",
    }[metric]
