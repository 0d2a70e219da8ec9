"""Compare a new run with a stored one: per benchmark the ratio of times, interval, verdict.

`change` is time of new ÷ time of base − 1: +0.10 is 10 % slower. The two runs were not
interleaved, so the machine's drift between them is in the ratio: on a shared machine, gate
on `batchgauge compare --against` (see `gate`), not on stored files. Deterministic work
counters are compared exactly, bytes and instructions may grow by 1 %: what is beyond is no noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.measuring.gate.judging import BLIND, Change, Status, changed_work
from batchgauge.measuring.gate.sequential import Logs
from batchgauge.measuring.paired import AA_CONTROL, CONTROL
from batchgauge.statistics import Estimate, difference, minimum_detectable_change, relative

# Files of two sessions carry the machine's drift; the interleaved gate has its own, lower one.
THRESHOLD = 0.05


def compare_runs(
    base: pd.DataFrame,
    new: pd.DataFrame,
    *,
    threshold: float = THRESHOLD,
    thresholds: Mapping[str, float] | None = None,
    allow_other_machine: bool = False,
) -> list[Change]:
    """Changes of every benchmark that both runs have, in the base's order.

    `threshold` is relative; `thresholds` replaces it for benchmarks by name. What is slower
    must be beyond it surely in the whole, and in both halves. Raises UserError (exit code 2)
    when the runs do not compare: other machine, other workload or seed, no common benchmark,
    one sample only.
    """
    _check_comparable(base, new, allow_other_machine=allow_other_machine)
    ours, theirs = _steady(base), _steady(new)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise UserError("The two runs have no benchmark in common; nothing to compare.")
    limits = thresholds or {}
    return [_change(name, ours[name], theirs[name], limits.get(name, threshold)) for name in shared]


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
    seen = minimum_detectable_change(whole.half_width, 1.96)
    again = all(
        np.median(n) - np.median(b) > math.log1p(threshold)
        for b, n in zip(*(_halves(rows) for rows in (base, new)), strict=True)
    )
    medians = [float(np.exp(np.median(_per_item(rows)))) for rows in (base, new)]
    calls = [float(rows["items"].iloc[0]) for rows in (base, new)]
    return Change(
        benchmark=name,
        change=relative(whole.value),
        low=relative(whole.low),
        high=relative(whole.high),
        minimum_detectable_change=seen,
        threshold=threshold,
        blocks=min(x.size for x in logs),
        status=_status(whole, seen, threshold, again=again),
        work=changed_work(_counters(base), _counters(new)),
        base_ms=medians[0] * calls[0],
        new_ms=medians[1] * calls[1],
    )


def _status(whole: Estimate, seen: float, threshold: float, *, again: bool) -> Status:
    """The verdict on two stored runs; `again`: both halves were beyond the threshold."""
    if whole.low > math.log1p(threshold):
        return "slower" if again else "could not see"  # a burst of other load
    if whole.low > 0.0:
        return "slower, but within the threshold"
    if whole.high < 0.0:
        return "faster"
    return "no change seen" if seen <= max(threshold, BLIND) else "could not see"


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
