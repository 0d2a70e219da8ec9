"""How fast requests end, by the last ones: what somebody who is refused is told to wait."""

from __future__ import annotations

RECENT = 0.1  # weight of the last end, once there were enough


class EndPace:
    """Seconds from one end to the next, of the time in which there is something to do.

    A mean in which the last 20 or so ends count most. Times by a clock of the caller's.
    """

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._ends = 0
        self._since_s = 0.0  # the last end, or when somebody came to nobody

    def begin(self, now_s: float) -> None:
        """Somebody comes, and nobody was there: what passed before was idle."""
        self._since_s = now_s

    def end(self, now_s: float) -> None:
        """A request is over."""
        self._ends += 1
        weight = max(RECENT, 1.0 / self._ends)
        self._mean_s += weight * (now_s - self._since_s - self._mean_s)
        self._since_s = now_s

    def each_s(self, now_s: float) -> float:
        """Seconds that an end takes, while somebody is there: at least as long as this one does."""
        return max(self._mean_s, now_s - self._since_s)
