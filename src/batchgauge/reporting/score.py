"""What a report hands to its first screen and to the study's: scores, answer, tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from batchgauge.reporting import tables
from batchgauge.text import UNSTABLE, WIDE

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Score:
    """One row of the scorecard: what was aimed at, what was measured, with its 95 % interval."""

    key: str
    label: str
    goal: float | None
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    better: Better = "higher"
    of_model: bool = False  # the goal was set for the reference model on our engine
    comparable: bool = True  # and this is it

    def __post_init__(self) -> None:
        for name in ("goal", "value", "low", "high"):  # NumPy's numbers are no JSON
            number = getattr(self, name)
            object.__setattr__(self, name, None if number is None else float(number))

    @property
    def verdict(self) -> Literal["met", "missed", "open", "measured", "not comparable"]:
        """`open` when the interval holds the goal; `measured` when there is no goal."""
        if self.goal is None:
            return "measured"
        if not self.comparable:
            return "not comparable"
        sign = 1 if self.better == "higher" else -1
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        distances = sorted(sign * (bound - self.goal) for bound in (low, high))
        if distances[0] >= 0:
            return "met"
        return "open" if distances[1] >= 0 else "missed"

    def sentence(self) -> str:
        """The row in words, e.g. `Batch of 8: 3.1 × [2.9, 3.3], goal ≥ 3 ×: open.`"""
        words = {
            "met": "met",
            "missed": "not met",
            "open": "undecided, the interval holds the goal",
            "not comparable": "not comparable, the goal is another model's or engine's",
        }
        text = f"{self.label}: {self.measured()}"
        return f"{text}." if self.goal is None else f"{text}; {self.aim()}: {words[self.verdict]}."

    def measured(self) -> str:
        """Value, interval and unit."""
        text = tables.number(self.value)
        if self._is_wide():
            return f"{text} {self.unit}".rstrip() + f" {UNSTABLE}"
        if self.low is not None and self.high is not None:
            text += f" [{tables.number(self.low)}, {tables.number(self.high)}]"
        return f"{text} {self.unit}".strip()

    def _is_wide(self) -> bool:
        """Whether the interval of a ratio (no share, and no count) says next to nothing."""
        if self.low is None or self.high is None:
            return False
        if self.unit == "%":
            return self.high - self.low > 100.0  # more than shares can differ
        return self.unit in {"×", ""} and self.high > max(2.0, WIDE * max(self.low, 0.0))

    def aim(self) -> str:
        """The goal with its direction and unit; empty when there is none."""
        if self.goal is None:
            return ""
        sign = "≥" if self.better == "higher" else "≤"
        return f"goal {sign} {self.goal:,.6g} {self.unit}".strip()


def scores_of(facts: Mapping[str, Any]) -> list[Score]:
    """The scores in what a report wrote about itself; verdicts are judged anew."""
    return [
        Score(**{name: value for name, value in score.items() if name != "verdict"})
        for score in facts["scores"]
    ]


@dataclass(frozen=True, slots=True)
class Tile:
    """What a report answers on the study's first screen.

    `place` is the tile it belongs to: `size`, `gain`, `time` (the three questions), `noise` or
    `peers`; `value` is the figure in a few words, `text` the rest of the sentence.
    """

    place: Literal["size", "gain", "time", "noise", "peers"]
    value: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a report's question: a sentence or two, text or `Markdown`.

    `figure` names the shown figure that decides, which stands beside it; `tiles` go to the study's
    front page.
    """

    text: str
    figure: str = ""
    tiles: Sequence[Tile] = ()
