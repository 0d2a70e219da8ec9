"""What a gate says of a benchmark: the verdict on its ratios, and on the work it did.

Leaves out how ratios come about (`rounds`, `compare`) and their error rates (`sequential`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd

from batchgauge.measuring.gate.sequential import Logs, Look, SequentialDesign
from batchgauge.statistics import minimum_detectable_change, relative
from batchgauge.text import counted, percent

Status = Literal[
    "slower", "slower, but within the threshold", "no change seen", "faster", "could not see",
    "layout-sensitive",
]  # fmt: skip
# A slow-down of the threshold and this much more must be excluded to say that none was seen.
SEEN = 0.02
BLIND = 0.05  # or, when the time is up, one of this size
LEAST_SAID = 1e-4  # a smaller share of false alarms is said to be below it
_TOLERANT = ("bytes", "instructions")
_TOLERANCE = 0.01
_LEAST_BYTES = 16384.0  # free lists and caches move by some kilobytes
_IMPROVES = ("padded_positions",)  # exact, but fewer are no reason to stop
_CORE = 0.4  # of the rounds
_APART = 5.0  # as wide as the core, and there is more than one group
_MANY = 16  # rounds; fewer fall into groups by chance


@dataclass(frozen=True, slots=True)
class Change:
    """One benchmark, new against base; numbers but `blocks` and `seconds` are relative (0.1).

    `change` is time of new ÷ time of base − 1, +0.1 is 10 % slower. `work` names deterministic
    counters that changed for the worse, "" when none did. `blocks` counts the units of the
    interval: rounds, where fresh processes ran, else blocks; `most` is how many rounds there
    would have been. `layout` is how far rounds are off that lie apart from the others, 0 when
    none do. `false_alarm` is how often such a benchmark fails where nothing changed, at this
    noise; NaN where that is not known.
    """

    benchmark: str
    change: float
    low: float
    high: float
    minimum_detectable_change: float
    threshold: float
    blocks: int
    status: Status
    work: str = ""
    layout: float = 0.0
    false_alarm: float = math.nan
    seconds: float = math.nan
    most: int = 0
    base_ms: float = math.nan
    new_ms: float = math.nan

    @property
    def fails(self) -> bool:
        """True when a gate should stop: slower beyond the threshold, or other work than before."""
        return self.status == "slower" or bool(self.work)

    @property
    def blind(self) -> bool:
        """True when a slow-down of interest would not have been seen."""
        return self.status == "could not see"

    @property
    def verdict(self) -> str:
        """The status in words, with its size where the layout decides."""
        size = f" ± {percent(self.layout, 1)}" if self.status == "layout-sensitive" else ""
        return self.status + size


def judged(ratios: Logs, design: SequentialDesign) -> tuple[Status, Look, float]:
    """Verdict on log ratios [rounds], what the look at them shows, and the layout's part."""
    look = design.look(ratios)
    centre, width, layout = _modes(ratios)
    margin = math.log1p(design.threshold)
    seen = margin + math.log1p(SEEN)
    low, high = centre - width / 2.0, centre + width / 2.0  # of the rounds that agree
    status: Status
    if look.beyond:
        status = "layout-sensitive" if layout and low <= margin else "slower"
    elif look.high < 0.0:
        status = "layout-sensitive" if layout and high >= 0.0 else "faster"
    elif look.low > 0.0:
        within: Status = "slower, but within the threshold"
        status = "layout-sensitive" if layout and low <= 0.0 else within
    elif layout and centre + width < seen:
        status = "layout-sensitive"
    else:
        sees = look.high < max(seen, math.log1p(BLIND))
        status = "no change seen" if sees else "could not see"
    return status, look, layout


def is_over(look: Look, design: SequentialDesign) -> bool:
    """Whether the answer is clear: surely slower, or surely not by much more than may be."""
    return look.beyond or look.high < math.log1p(design.threshold) + math.log1p(SEEN)


def _modes(ratios: Logs) -> tuple[float, float, float]:
    """Where most rounds agree (log), how closely, and how far the others are off (relative).

    The shortest interval with `_CORE` of the rounds (Rousseeuw & Leroy 1988) is compared with
    the range of all but a tenth at each end: of one normal group that is 2.4 times as wide,
    where some processes are slow for their whole life, much more. The last is 0 for one group.
    """
    if ratios.size < _MANY:
        return math.nan, math.nan, 0.0
    x = np.sort(ratios)
    count = math.ceil(_CORE * x.size)
    widths = x[count - 1 :] - x[: x.size - count + 1]
    first = int(np.argmin(widths))
    width, most = float(widths[first]), float(np.subtract(*np.percentile(x, [90, 10])))
    off = relative(most / 2.0) if most > max(_APART * width, SEEN) else 0.0
    return float(x[first : first + count].mean()), width, off


def change_of(
    benchmark: str,
    ratios: Logs,
    design: SequentialDesign,
    *,
    counters: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {}),
    **more: float,
) -> Change:
    """The verdict on one benchmark after its rounds; `more` are further fields of `Change`."""
    status, look, layout = judged(ratios, design)
    half = (look.high - look.low) / 2.0
    errors = half / look.error if half else 1.0
    return Change(
        benchmark=benchmark,
        change=relative(look.middle),
        low=relative(look.low),
        high=relative(look.high),
        minimum_detectable_change=minimum_detectable_change(half, errors),
        threshold=design.threshold,
        blocks=ratios.size,
        status=status,
        work=changed_work(*counters),
        layout=layout,
        most=design.most,
        false_alarm=design.fails(0.0, look, ratios.size),
        **more,
    )


def changed_work(base: Mapping[str, float], new: Mapping[str, float]) -> str:
    """Which counters differ for the worse, e.g. `tokens 50 → 52`.

    Bytes and instructions count when they grow by more than 1 % (bytes: and 16 KiB), padded
    positions when they grow; fewer are no reason to stop.
    """
    notes = []
    for key in sorted(set(base) & set(new)):
        change = new[key] - base[key]
        if key.endswith(_TOLERANT):
            least = _LEAST_BYTES if key.endswith("bytes") else 0.0
            differs = change > max(_TOLERANCE * abs(base[key]), least)
        else:
            differs = change > 0.0 if key in _IMPROVES else change != 0.0
        if differs:
            notes.append(f"{key} {base[key]:g} → {new[key]:g}")
    return ", ".join(notes)


def frame_of(changes: Sequence[Change]) -> pd.DataFrame:
    """One row a benchmark."""
    return pd.DataFrame([{**asdict(c), "fails": c.fails} for c in changes])


def exit_code(changes: Sequence[Change], *, blind_fails: bool = False) -> int:
    """1 when something fails; else 2 where `blind_fails` and something was not seen; else 0."""
    if any(c.fails for c in changes):
        return 1
    return 2 if blind_fails and any(c.blind for c in changes) else 0


def conclusion(changes: Sequence[Change]) -> str:
    """What fails and what was not seen, in a sentence or two."""
    failing = [c.benchmark for c in changes if c.fails]
    blind = [c.benchmark for c in changes if c.blind]
    count = len(changes)
    said = [f"{len(failing)} of {count} benchmarks fail: {', '.join(failing)}."] if failing else []
    if blind:
        said.append(f"{len(blind)} of {count} could not be seen: {', '.join(blind)}.")
    return " ".join(said) or f"None of {count} benchmarks fails."


def false_alarms(changes: Sequence[Change]) -> str:
    """How often a pull request fails that changes nothing, over all benchmarks that it ran."""
    rates = np.array([c.false_alarm for c in changes])
    if not rates.size or np.isnan(rates).any():
        return ""
    fails = float(1.0 - np.prod(1.0 - rates))
    share = percent(fails, 2) if fails >= LEAST_SAID else f"less than {percent(LEAST_SAID, 2)}"
    return (
        f"A pull request that changes nothing fails in {share} of cases at the noise seen here, "
        f"over {counted(rates.size, 'benchmark')}."
    )
