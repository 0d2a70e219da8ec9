"""Compare a new run with a stored one: per benchmark the ratio of times, interval, verdict.

`change` is time of new ÷ time of base − 1: +0.10 is 10 % slower. The two runs were not
interleaved, so the machine's drift between them is in the ratio: on a shared machine, gate
on `batchgauge compare --against` (see `gate`), not on stored files. Deterministic work
counters are compared exactly, bytes and instructions may grow by 1 %: what is beyond is no noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.measuring.paired import AA_CONTROL, CONTROL
from batchgauge.statistics import Estimate, difference, minimum_detectable_change, relative

Status = Literal[
    "regression", "slower, not confirmed", "faster", "no significant difference", "inconclusive"
]
# Files of two sessions carry the machine's drift; the interleaved gate has its own, lower one.
THRESHOLD = 0.05
_TOLERANT = ("bytes", "instructions")
_TOLERANCE = 0.01
_LEAST_BYTES = 16384.0  # free lists and caches move by some kilobytes

Logs = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Change:
    """One benchmark, new against base; all but `blocks` and texts are relative (0.1 = 10 %).

    `work` names deterministic counters that changed, "" when none did. `blocks` counts the
    units of the interval: processes where several ran, else blocks.
    """

    benchmark: str
    change: float
    low: float
    high: float
    noise_floor: float
    minimum_detectable_change: float
    threshold: float
    blocks: int
    status: Status
    work: str = ""

    @property
    def fails(self) -> bool:
        """True when a gate should stop: a confirmed slow-down, or other work than before."""
        return self.status == "regression" or bool(self.work)


def suspicious(estimate: Estimate, *, threshold: float, noise_floor: float) -> bool:
    """One round of evidence: the interval's low end (log time ratio) is beyond the threshold.

    And its middle is beyond the noise floor (both relative).
    """
    return estimate.low > math.log1p(threshold) and estimate.value > math.log1p(noise_floor)


def classify(
    rounds: Sequence[Estimate], *, threshold: float, noise_floors: Sequence[float], mdc: float
) -> Status:
    """The status after one or two rounds of evidence, each with its own noise floor.

    `regression` needs both.
    """
    seen = [
        suspicious(e, threshold=threshold, noise_floor=floor)
        for e, floor in zip(rounds, noise_floors, strict=True)
    ]
    if all(seen):
        return "regression" if len(rounds) > 1 else "slower, not confirmed"
    if any(seen):
        return "slower, not confirmed"
    first = rounds[0]
    if first.high < 0.0 and -first.value > math.log1p(noise_floors[0]):
        return "faster"
    return "no significant difference" if is_conclusive(mdc, threshold) else "inconclusive"


def is_conclusive(mdc: float, threshold: float) -> bool:
    """Whether a minimum detectable change is small enough to say that nothing changed."""
    return mdc <= max(threshold, 0.05)


def compare_runs(
    base: pd.DataFrame,
    new: pd.DataFrame,
    *,
    threshold: float = THRESHOLD,
    thresholds: Mapping[str, float] | None = None,
    allow_other_machine: bool = False,
) -> list[Change]:
    """Changes of every benchmark that both runs have, in the base's order.

    `threshold` is relative; `thresholds` replaces it for benchmarks by name. The first
    and the second half of each run are the two rounds: a regression must stand out in the
    whole and be beyond the threshold in both halves. Raises UserError (exit code 2) when the
    runs do not compare: other machine, other workload or seed, no common benchmark, one
    sample only.
    """
    _check_comparable(base, new, allow_other_machine=allow_other_machine)
    sides = [_steady(frame) for frame in (base, new)]
    shared = [name for name in sides[0] if name in sides[1]]
    if not shared:
        raise UserError("The two runs have no benchmark in common; nothing to compare.")
    return [
        _change(
            name,
            sides[0][name],
            sides[1][name],
            (thresholds or {}).get(name, threshold),
        )
        for name in shared
    ]


def _check_comparable(base: pd.DataFrame, new: pd.DataFrame, *, allow_other_machine: bool) -> None:
    machines = [set(frame["machine"]) for frame in (base, new)]
    if machines[0] != machines[1] and not allow_other_machine:
        raise UserError(
            f"The runs are from other machines ({'; '.join(sorted(machines[0]))} and "
            f"{'; '.join(sorted(machines[1]))}), so times do not compare; --allow-other-machine "
            "compares all the same, and its verdicts then say nothing about the code."
        )
    columns = (("workload", "workloads or models"), ("seed", "seeds"), ("threads", "threads"))
    for column, what in (*columns, ("weights", "weights")):
        unsaid = "float32" if column == "weights" else ""  # all that there was before
        ours, theirs = ({str(v) or unsaid for v in frame[column]} for frame in (base, new))
        if ours != theirs:
            raise UserError(
                f"The runs have different {what} ({', '.join(sorted(ours))} and "
                f"{', '.join(sorted(theirs))}); measure both with the same."
            )


def _steady(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    rows = frame[~frame["is_warmup"] & ~frame["implementation"].isin([CONTROL, AA_CONTROL])]
    found: dict[str, pd.DataFrame] = {}
    for (benchmark, implementation), part in rows.groupby(
        ["benchmark", "implementation"], sort=False
    ):
        several = len(set(rows.loc[rows["benchmark"] == benchmark, "implementation"])) > 1
        found[f"{benchmark} [{implementation}]" if several else str(benchmark)] = part
    return found


def _change(name: str, base: pd.DataFrame, new: pd.DataFrame, threshold: float) -> Change:
    for side, rows in (("base", base), ("new", new)):
        if len(rows) < 2:
            raise UserError(
                f"'{name}' has one sample only in the {side} run; expected at least 2 to compare."
            )
    logs = [_units(rows) for rows in (base, new)]
    whole = difference(logs[1], logs[0])
    twice = difference(logs[0], logs[0])
    floor = relative(twice.half_width)
    mdc = minimum_detectable_change(twice.half_width)
    status = classify([whole] * 2, threshold=threshold, noise_floors=[floor] * 2, mdc=mdc)
    halves = [_halves(rows) for rows in (base, new)]
    again = all(
        np.median(n) - np.median(b) > math.log1p(threshold) for b, n in zip(*halves, strict=True)
    )
    if status == "regression" and not again:
        status = "slower, not confirmed"
    return Change(
        benchmark=name,
        change=relative(whole.value),
        low=relative(whole.low),
        high=relative(whole.high),
        noise_floor=floor,
        minimum_detectable_change=mdc,
        threshold=threshold,
        blocks=min(x.size for x in logs),
        status=status,
        work=changed_work(_counters(base), _counters(new)),
    )


def _per_item(rows: pd.DataFrame) -> Logs:
    """log(time per item) [samples]."""
    return np.asarray(np.log(rows["wall_ms"] / rows["items"]), np.float64)


def _units(rows: pd.DataFrame) -> Logs:
    """log(time per item), the mean per process where several ran, else per block."""
    keys = rows["process"] if len(set(rows["process"])) > 1 else rows["block"]
    return np.asarray(pd.Series(_per_item(rows)).groupby(keys.to_numpy()).mean(), np.float64)


def _halves(rows: pd.DataFrame) -> tuple[Logs, Logs]:
    """log(time per item) of the first and of the second half, in order of time."""
    logs = _per_item(rows.sort_values(["process", "block", "position"]))
    return logs[: logs.size // 2], logs[logs.size // 2 :]


def _counters(rows: pd.DataFrame) -> dict[str, float]:
    try:
        counters: dict[str, Any] = json.loads(rows["counters"].iloc[0])
        return {key: float(value) for key, value in counters.items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError("A counters column is not JSON of numbers; is the file damaged?") from None


def changed_work(base: Mapping[str, float], new: Mapping[str, float]) -> str:
    """Which counters differ, e.g. `tokens 50 → 52`.

    Bytes and instructions count when they grow by more than 1 % (bytes: and 16 KiB); fewer
    are no reason to stop.
    """
    notes = []
    for key in sorted(set(base) & set(new)):
        change = new[key] - base[key]
        if key.endswith(_TOLERANT):
            least = _LEAST_BYTES if key.endswith("bytes") else 0.0
            differs = change > max(_TOLERANCE * abs(base[key]), least)
        else:
            differs = change != 0.0
        if differs:
            notes.append(f"{key} {base[key]:g} → {new[key]:g}")
    return ", ".join(notes)


def frame_of(changes: Sequence[Change]) -> pd.DataFrame:
    """One row a benchmark."""
    return pd.DataFrame([{**asdict(c), "fails": c.fails} for c in changes])


def exit_code(changes: Sequence[Change]) -> int:
    """0 when nothing fails, else 1."""
    return int(any(c.fails for c in changes))
