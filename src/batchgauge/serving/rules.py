"""How a scheduler decides, what it refuses with, and what it records of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from batchgauge.errors import UserError
from batchgauge.serving.policies import CONTINUOUS, Batching, Fifo, Order
from batchgauge.sizing.adaptive import AdaptiveBatchSizer

DEADLINE_PASSED = "The deadline passed"  # how the error of such a request begins


class QueueFullError(UserError):
    """The queue is full. `retry_after_s` is about how long those who wait will take."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(
            f"The queue is full with {waiting} requests; expected another try in about "
            f"{math.ceil(retry_after_s)} s."
        )
        self.retry_after_s = retry_after_s


class ClosedError(UserError):
    """The scheduler takes no more requests."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a scheduler decides. Raises UserError for what makes no sense.

    batch    requests under way, at most; the loop's slots where those are fewer
    queue    requests that may wait; more are refused
    preempt  whether the order may throw out requests that are under way
    sizer    lowers the batch by what a step of the loop took that only decoded (batching
             together: by what the whole batch took)
    """

    batch: int = 8
    order: Order = field(default_factory=Fifo)
    batching: Batching = CONTINUOUS
    queue: int = 256
    preempt: bool = False
    sizer: AdaptiveBatchSizer | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "queue"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} is {value!r}; expected a whole number from 1 on.")
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
