"""What a worker is told and what it tells: plain values that go through a pipe.

A worker is told `Job`, or the id of one that nobody waits for any more. It tells `Ready` once,
then `News` after every step; `Unfit` where it cannot be ready: nor can another of its kind, where
none ever was.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from batchgauge.request import FinishReason, InferenceBatchRequest

# Why a request has no answer: its own fault, too late, or the fault of who runs it.
Failing = Literal["invalid", "deadline", "failed"]


class Job(NamedTuple):
    """A request to run; its prompt is token ids. Lower `priority` goes first."""

    id: str
    request: InferenceBatchRequest
    priority: int = 0
    deadline_s: float | None = None  # from when it came
    arrived_s: float | None = None  # by time.monotonic, which a machine's processes share


class JobEvent(NamedTuple):
    """What became of one request in a step: tokens, and how it ended if it did."""

    id: str
    tokens: tuple[int, ...] = ()
    finish: FinishReason | None = None
    failing: Failing | None = None
    error: str = ""

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after it."""
        return self.finish is not None or self.failing is not None


class State(NamedTuple):
    """A worker's requests, and what its KV cache holds, after a step."""

    waiting: int = 0
    running: int = 0
    kv_used_bytes: int = 0
    kv_bytes: int = 0
    steps: int = 0


class Ready(NamedTuple):
    """A worker that can be told jobs."""

    pid: int
    slots: int


class Unfit(NamedTuple):
    """Why there is no worker: what is the user's to mend, in a sentence."""

    message: str


class News(NamedTuple):
    """All events of a step, and the worker's state after it."""

    events: list[JobEvent]
    state: State
