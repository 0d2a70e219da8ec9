"""Records of one run of a setting: each of its requests, and what they were together.

Times are seconds on one clock. A request's latency counts from when it was due, which in an
open loop may be before it could be sent (no coordinated omission).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
REFUSALS = {408, 429}  # of the codes from 400 to 499, those that are about load


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when it was due, sent, first answered and done; what came.

    `first_s` is NaN where no time of a first token is known, `last_s` is the last token's where
    the answer came later than that (a batch), `tokens` None where nobody counted. `status` is
    that of an answer that is none, `error` what was said; both empty for an answer. `letters`
    are those of the prompt.
    """

    slot: int
    due_s: float
    sent_s: float
    first_s: float
    end_s: float
    tokens: int | None
    status: int = 0
    error: str = ""
    is_empty: bool = False
    last_s: float = math.nan
    letters: int = 0

    @property
    def is_ok(self) -> bool:
        """True for an answer."""
        return not self.status and not self.error

    @property
    def is_unfit(self) -> bool:
        """True for a request that is itself at fault, whatever the load: it is left out."""
        return 400 <= self.status < 500 and self.status not in REFUSALS

    @property
    def is_broken(self) -> bool:
        """True for one that got no answer at all, not even a refusal."""
        return bool(self.error) and not self.status

    @property
    def ttft_ms(self) -> float:
        """Milliseconds from due to the first token."""
        return 1e3 * (self.first_s - self.due_s)

    @property
    def latency_ms(self) -> float:
        """Milliseconds from due to the end."""
        return 1e3 * (self.end_s - self.due_s)

    @property
    def inter_token_ms(self) -> float:
        """Mean milliseconds from token to token; NaN for less than two tokens."""
        tokens = self.tokens or 0
        return 1e3 * (self.until_s - self.first_s) / (tokens - 1) if tokens > 1 else math.nan

    @property
    def until_s(self) -> float:
        """When its last token came."""
        return self.end_s if math.isnan(self.last_s) else self.last_s


@dataclass(frozen=True)
class Run:
    """What happened at one setting.

    kind         "closed" (so many at once), "open" (so many a second) or "batch"
    begin_s      when the warm-up of every slot was over
    deadline_s   when no more requests were sent
    client_cpu   share of one core that the client used; 0 where it is the engine itself
    late_ms      how late requests were sent, 95th percentile
    server       what the server told of itself meanwhile, by name
    """

    kind: Literal["closed", "open", "batch"]
    setting: float
    asked: Sequence[Asked]
    begin_s: float
    deadline_s: float
    client_cpu: float = 0.0
    late_ms: float = 0.0
    server: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def counted(self) -> list[Asked]:
        """Requests sent after the warm-up and early enough to run under full load to their end."""
        inside = [a for a in self.asked if a.due_s >= self.begin_s and a.due_s < self.deadline_s]
        if self.kind != "closed":
            return inside
        typical = float(np.median([a.end_s - a.due_s for a in inside])) if inside else 0.0
        early = [a for a in inside if a.due_s < self.deadline_s - typical]
        return early or inside

    @cached_property
    def answered(self) -> list[Asked]:
        """Those of `counted` that were answered, in the order in which they were due."""
        return sorted((a for a in self.counted if a.is_ok), key=lambda a: a.due_s)

    @property
    def refused_share(self) -> float:
        """Share of requests that were refused or failed, of those that are fit to be answered."""
        return self.share(lambda a: not a.is_ok)

    def share(self, has: Callable[[Asked], bool]) -> float:
        """Share of requests of which something is so, of those that are fit to be answered."""
        fit = [a for a in self.asked if not a.is_unfit]
        rows = [a for a in fit if a.due_s >= self.begin_s] or fit
        return sum(map(has, rows)) / len(rows) if rows else 0.0

    def in_flight(self) -> float:
        """Mean number of requests in flight, by Little's law counted directly."""
        return self._mean_open([(a.sent_s, a.end_s) for a in self.asked])

    def decoding(self) -> float:
        """Mean number of requests between their first and last token; NaN where unknown."""
        if any(math.isnan(a.first_s) for a in self.answered) or not self.answered:
            return math.nan
        return self._mean_open([(a.first_s, a.until_s) for a in self.asked if a.is_ok])

    def _mean_open(self, spans: Sequence[tuple[float, float]]) -> float:
        width = self.deadline_s - self.begin_s
        inside = (
            max(0.0, min(end, self.deadline_s) - max(begin, self.begin_s)) for begin, end in spans
        )
        return sum(inside) / width if width > 0 else math.nan

    def values_of(self, metric: str) -> Array:
        """A metric of all counted answers, milliseconds, without NaN."""
        values = np.array([getattr(a, f"{metric}_ms") for a in self.answered])
        return values[np.isfinite(values)] if values.size else values
