"""Submissions in an order: those that wait, the next one first."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from batchgauge.serving.policies import Submission

SPARE = 64  # entries of those who left, beside as many as are there, until they are swept


class Heap:
    """Submissions by a number; those that are no longer `there` are dropped on the way."""

    def __init__(
        self, by: Callable[[Submission], object], there: Callable[[Submission], bool]
    ) -> None:
        self._by, self._there = by, there
        self._entries: list[tuple[object, int, Submission]] = []
        self._sweep_at = SPARE

    def push(self, one: Submission) -> None:
        """Put one in; a sweep from time to time keeps memory to those that are there."""
        heappush(self._entries, (self._by(one), one.number, one))
        if len(self._entries) > self._sweep_at:
            self._entries = [entry for entry in self._entries if self._there(entry[2])]
            heapify(self._entries)
            self._sweep_at = 2 * len(self._entries) + SPARE

    def first(self) -> Submission | None:
        """The one with the smallest number."""
        while self._entries:
            found = self._entries[0][2]
            if self._there(found):
                return found
            heappop(self._entries)
        return None


class WaitingQueue:
    """Who waits, in the order of their places."""

    def __init__(self) -> None:
        self._waiting: dict[str, Submission] = {}
        self._heap = Heap(lambda one: one.key, self.__contains__)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, one: object) -> bool:
        """Whether a submission, or one of this id, waits."""
        if isinstance(one, Submission):
            return self._waiting.get(one.one.id) is one
        return one in self._waiting

    def push(self, one: Submission) -> None:
        """Let it wait."""
        self._waiting[one.one.id] = one
        self._heap.push(one)

    def remove(self, name: str) -> Submission | None:
        """Take the one of this id out; None if there is none."""
        return self._waiting.pop(name, None)

    def next(self) -> Submission | None:
        """The one whose key is smallest; None if nobody waits."""
        return self._heap.first() if self._waiting else None

    def oldest_s(self) -> float:
        """When the one arrived who waits longest; there must be one."""
        return min(one.arrived_s for one in self._waiting.values())
