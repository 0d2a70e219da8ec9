"""Who is next, and when a batch begins: the policies of a scheduler.

An order gives each submission a key that never changes: linear ageing adds the same to
everybody's claim, so "class, minus time waited" is "arrival + class x ageing". The smallest
key is next, and nobody is served before the one who is next. The simulator's `Server` has
the same orders and the same three kinds of batching (`batchgauge.simulate.server`).

Left out: policies that look at the deadline, or share by user.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from batchgauge.core.generation import Generation
from batchgauge.errors import UserError

Key = tuple[float, float]


@dataclass(slots=True, eq=False)
class Submission:
    """A request in a scheduler. Times in seconds of the scheduler's clock.

    priority    class; 0 is the most urgent
    deadline_s  when it must be over
    number      how many came before it
    key         what its order says of it; see `place`
    """

    one: Generation
    priority: int
    arrived_s: float
    number: int
    deadline_s: float = math.inf
    key: Key = (0.0, 0.0)

    @property
    def place(self) -> tuple[Key, int]:
        """Its place in the queue, the smallest first: by key, then by arrival."""
        return self.key, self.number


class Order(ABC):
    """Which of those who wait is next."""

    @abstractmethod
    def key(self, coming: Submission) -> Key:
        """The place of a submission in the queue."""

    def may_evict(self, coming: Submission, running: Submission) -> bool:
        """Whether `running` may be thrown out so that `coming` has room: never, unless said."""
        return False


def _check_ageing(ageing_s: float) -> None:
    if not ageing_s >= 0.0:
        raise UserError(f"Ageing is {ageing_s} s; expected 0 or more, or infinity for none.")


@dataclass(frozen=True)
class Fifo(Order):
    """First come, first served."""

    def key(self, coming: Submission) -> Key:
        """By arrival."""
        return coming.arrived_s, 0.0


@dataclass(frozen=True)
class PriorityClasses(Order):
    """By class, then arrival; `ageing_s` of waiting make up for one class (infinity: never)."""

    ageing_s: float = math.inf

    def __post_init__(self) -> None:
        _check_ageing(self.ageing_s)

    def key(self, coming: Submission) -> Key:
        """Class and arrival, or both in one."""
        if math.isinf(self.ageing_s):
            return coming.priority, coming.arrived_s
        return coming.arrived_s + self.ageing_s * coming.priority, coming.priority

    def may_evict(self, coming: Submission, running: Submission) -> bool:
        """Where the class is more urgent and its place before the other's, who may be aged."""
        return coming.priority < running.priority and coming.place < running.place


def limit_tokens(one: Generation) -> float:
    """The prediction that every request uses all tokens that it may: prompt and `max_tokens`."""
    return float(len(one.prompt) + one.limit)


@dataclass(frozen=True)
class ShortestFirst(Order):
    """The fewest tokens first, as `predict` says (prompt and answer; see `limit_tokens`).

    `ageing_s` of waiting make up for `mean_tokens` (infinity: never). What runs has been paid
    for: nobody is thrown out.
    """

    predict: Callable[[Generation], float] = limit_tokens
    ageing_s: float = math.inf
    mean_tokens: float = 256.0

    def __post_init__(self) -> None:
        _check_ageing(self.ageing_s)
        if not self.mean_tokens > 0.0:
            raise UserError(f"mean_tokens is {self.mean_tokens}; expected a number above 0.")

    def key(self, coming: Submission) -> Key:
        """Length and arrival, or both in one."""
        tokens = self.predict(coming.one)
        if math.isinf(self.ageing_s):
            return tokens, coming.arrived_s
        return coming.arrived_s + self.ageing_s * tokens / self.mean_tokens, tokens


@dataclass(frozen=True)
class Batching:
    """When requests that wait may join.

    together    a batch begins when nobody is under way, and its answers are handed over when
                all of it is done; else requests join at any step and answers are free at once
    max_wait_s  a batch begins when it is full or its oldest request has waited so long;
                infinity: when it is full or nobody else will come
    """

    name: str
    together: bool = False
    max_wait_s: float = math.inf

    def __post_init__(self) -> None:
        if not self.max_wait_s >= 0.0:
            raise UserError(f"max_wait_s is {self.max_wait_s}; expected 0 or more.")


CONTINUOUS = Batching("continuous")
STATIC = Batching("static", together=True)


def dynamic(max_wait_s: float = 0.05) -> Batching:
    """Batches that wait for `max_wait_s` at most."""
    return Batching("dynamic", together=True, max_wait_s=max_wait_s)


# All by name: orders by their `ageing_s`, batchings by their `max_wait_s`.
ORDERS: Mapping[str, Callable[[float], Order]] = {
    "fifo": lambda _ageing_s: Fifo(),
    "priority": PriorityClasses,
    "shortest": lambda ageing_s: ShortestFirst(ageing_s=ageing_s),
}
BATCHINGS: Mapping[str, Callable[[float], Batching]] = {
    "continuous": lambda _max_wait_s: CONTINUOUS,
    "dynamic": dynamic,
    "static": lambda _max_wait_s: STATIC,
}
