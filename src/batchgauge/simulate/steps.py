"""How long one step of a batch server takes, as a table made from any cost model.

A step works on `rows` sequences that decode one token each, reading `kv_tokens` cached
positions in all, and on `prefill_tokens` prompt positions with `pairs` query-key pairs
between them (a whole prompt of L tokens has L (L + 1) / 2). Either half may be zero.
The cost model is `batchgauge.sizing`'s, measured or a roofline; the table makes its
answers cheap enough to be asked for every step.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from batchgauge.errors import UserError
from batchgauge.sizing.cost_model import Costs

_MANY = 1_000_000  # tokens; far enough to read a slope from


class StepTime(Protocol):
    """Seconds that a step takes; any function of this shape drives the simulator."""

    def __call__(self, rows: int, kv_tokens: float, prefill_tokens: int, pairs: float) -> float:
        """Seconds of one step."""


@dataclass(frozen=True)
class StepTable:
    """Step times by look-up; prefill and decode of one step follow each other.

    positions, prefill_s   prefill sizes, rising, and the seconds of each; straight between
                           and beyond them
    decode_s               seconds of a decode step with 0, 1, 2, … rows; straight beyond
    pair_s, kv_s           seconds for each query-key pair of a prefill, and for each
                           cached token that a decode step reads
    one_pass               a step with both halves runs them through the layers together and
                           reads the weights once: decoding then adds to a prefill of all
                           positions what it costs more than a prefill of its rows
    """

    positions: tuple[float, ...]
    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    pair_s: float = 0.0
    kv_s: float = 0.0
    one_pass: bool = False

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.positions, self.positions[1:], strict=False))
        if len(self.positions) != len(self.prefill_s) or len(self.positions) < 2 or not rising:
            raise UserError("Step times need at least two rising prefill sizes with a time each.")
        if len(self.decode_s) < 2 or min(self.prefill_s) <= 0.0 or min(self.decode_s[1:]) < 0.0:
            raise UserError("Step times need a decode time for one row, and no negative times.")

    @classmethod
    def from_costs(cls, costs: Costs, *, max_batch: int, one_pass: bool = False) -> StepTable:
        """The table of a cost model, for up to `max_batch` rows and 8,192 positions a prefill.

        Prefill sizes are whole numbers about 15 % apart. Raises UserError for no row.
        """
        if max_batch < 1:
            raise UserError("Step times need a batch of at least 1.")
        sizes = np.unique(np.geomspace(1, 8192, 64).round().astype(int)).tolist()
        rows = np.arange(1, max_batch + 2, dtype=np.float64)
        decode = costs.decode_ms(rows, np.zeros_like(rows)) / 1e3
        deep = costs.decode_ms(rows[:1], np.full(1, float(_MANY)))[0] / 1e3
        prefill = (costs.prefill_ms(sizes, np.zeros(len(sizes))) / 1e3).tolist()
        square = float(costs.prefill_ms(sizes[-1], _MANY) / 1e3 - prefill[-1]) / _MANY
        return cls(
            positions=tuple(map(float, sizes)),
            prefill_s=tuple(prefill),
            decode_s=(0.0, *decode.tolist()),
            pair_s=2.0 * square,  # the cost model counts a prompt's squared length, twice the pairs
            kv_s=float(deep - decode[0]) / _MANY,
            one_pass=one_pass,
        )

    def __call__(self, rows: int, kv_tokens: float, prefill_tokens: int, pairs: float) -> float:
        """Seconds of one step."""
        seconds = 0.0
        if prefill_tokens and rows and self.one_pass:
            more = self._prefill(prefill_tokens + rows) - self._prefill(rows)
            seconds = max(0.0, more) + self.pair_s * pairs  # a measured curve may fall
        elif prefill_tokens:
            seconds = self._prefill(prefill_tokens) + self.pair_s * pairs
        if rows:
            table = self.decode_s
            beyond = rows - len(table) + 1
            if beyond > 0:
                seconds += table[-1] + beyond * max(table[-1] - table[-2], 0.0)
            else:
                seconds += table[rows]
            seconds += self.kv_s * kv_tokens
        return seconds

    def _prefill(self, tokens: int) -> float:
        at, times = self.positions, self.prefill_s
        right = min(max(bisect_left(at, tokens), 1), len(at) - 1)
        left = right - 1
        slope = (times[right] - times[left]) / (at[right] - at[left])
        return times[left] + slope * (tokens - at[left])

    def faster(self, prefill: float, decode: float) -> StepTable:
        """The same machine with prefill and decode `prefill` and `decode` times as fast."""
        if min(prefill, decode) <= 0.0:
            raise UserError("A machine's speed-up is 0 or less; expected a factor above 0.")
        return replace(
            self,
            prefill_s=tuple(s / prefill for s in self.prefill_s),
            decode_s=tuple(s / decode for s in self.decode_s),
            pair_s=self.pair_s / prefill,
            kv_s=self.kv_s / decode,
        )
