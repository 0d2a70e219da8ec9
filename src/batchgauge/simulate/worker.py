"""One worker of the simulated server: its batch, its cache and when it fails next. State only."""

from __future__ import annotations

from collections import deque


class Worker:
    """Who is in the batch, how much cache it holds, when the worker's failure comes."""

    __slots__ = (
        "busy_until", "endings", "fails_at", "held", "in_batch", "joined", "kv", "last_token",
        "members", "number", "prefill", "rows", "stack", "steps",
    )  # fmt: skip

    def __init__(self, number: int, fails_at: float) -> None:
        self.number = number
        self.fails_at = fails_at
        self.busy_until = 0.0
        self.steps = 0  # decode steps made
        self.clear()

    def clear(self) -> None:
        """An empty batch."""
        self.rows = 0  # sequences that decode
        self.joined = 0  # of them, new since the last decode step
        self.kv = 0  # tokens that their attention reads
        self.held = 0  # tokens of cache taken or reserved
        self.in_batch = 0  # sequences that decode or wait for prefill
        self.last_token = 0.0
        self.endings: list[tuple[int, int, int]] = []  # heap: (decode step, request, ticket)
        self.prefill: deque[list[int]] = deque()  # [request, tokens to do, tokens done]
        self.members: list[int] = []  # of a static or dynamic batch, which returns as one
        self.stack: list[tuple[int, int]] = []  # (request, ticket) by age, youngest last
