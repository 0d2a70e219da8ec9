"""How a scheduler decides, what it refuses with, and what it records of a step."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchgauge.errors import UserError
from batchgauge.serving.policies import CONTINUOUS, Batching, Fifo, Order
from batchgauge.sizing.adaptive import AdaptiveBatchSizer

DEADLINE_PASSED = "The deadline passed"  # how the error of such a request begins


class ClosedError(UserError):
    """The scheduler takes no more requests."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a scheduler decides. Raises UserError for what makes no sense.

    batch    requests under way, at most; the loop's slots where those are fewer
    preempt  whether the order may throw out requests that are under way
    sizer    lowers the batch by what a step of the loop took that only decoded (batching
             together: by what the whole batch took)
    """

    batch: int = 8
    order: Order = field(default_factory=Fifo)
    batching: Batching = CONTINUOUS
    preempt: bool = False
    sizer: AdaptiveBatchSizer | None = None

    def __post_init__(self) -> None:
        value: object = self.batch
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"batch is {value!r}; expected a whole number from 1 on.")
        if self.preempt and self.batching.together:
            raise UserError("Preemption needs continuous batching.")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: when it ended on the scheduler's clock, what it did, and what it cost.

    rows and prompt_positions are what the model computed, `waiting`, `running` and
    `used_positions` what was there as it began; own_s is all but the loop's step.
    """

    at_s: float
    loop_s: float
    own_s: float
    rows: int
    prompt_positions: int
    waiting: int
    running: int
    used_positions: int
