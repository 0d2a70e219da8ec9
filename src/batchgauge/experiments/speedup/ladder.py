"""Ablation ladders: what each optimisation is worth, alone and on top of those before it.

A rung's output is compared with the baseline's before anything is timed; one that
differs is reported as broken, one that raises as failed, and neither stops the others.
All rungs of a ladder are measured in one interleaved comparison, alone and cumulatively.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.baseline.rung import Rung, Work
from batchgauge.measuring import (
    Amount,
    Comparison,
    Conditions,
    Design,
    Labels,
    Ratio,
    Stopping,
    compare_interleaved,
    judged,
    location,
)
from batchgauge.measuring.memory import allocations

BASE = "baseline"
ALONE, CUMULATIVE = "alone", "cumulative"


@dataclass(frozen=True, slots=True)
class Ladder:
    """A baseline, the rungs above it, and the work that all of them do."""

    part: str
    make_baseline: Callable[[], Work]
    rungs: Sequence[Rung]
    work: Any
    items: int
    budget_s: float
    forms: tuple[str, ...] = (ALONE, CUMULATIVE)
    slow: bool = False  # calls of a second or so: one in a block


def same(one: Any, other: Any) -> bool:
    """Equality of outputs: sequences and dataclasses by parts, floats to rounding, NaN as NaN."""
    if isinstance(one, float) and isinstance(other, float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    if is_dataclass(one) and type(one) is type(other):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def climb(ladder: Ladder, *, min_blocks: int, seed: int, threads: int) -> pd.DataFrame:
    """One row a rung and form: speedup over the baseline with interval, the step it adds, memory.

    `status` is ok, broken (another output than the baseline's) or the error it raised;
    speedups are NaN unless it is ok. `step_x` is the gain over the rung before it.
    """
    baseline = ladder.make_baseline()
    expected = baseline(ladder.work)
    frames = []
    for form in ladder.forms:
        works, status = _built(ladder, form, expected)
        calls: dict[str, Callable[[], object]] = {BASE: partial(baseline, ladder.work)}
        calls |= {name: partial(work, ladder.work) for name, work in works.items()}
        found = (
            compare_interleaved(
                calls,
                Labels(f"ladder/{ladder.part}/{form}", part=ladder.part),
                Amount(items=ladder.items),
                design=Design(control=False, one_way=ladder.slow),
                stopping=Stopping(ladder.budget_s / len(ladder.forms), min_blocks),
                conditions=Conditions(threads, seed),
            )
            if works
            else None
        )
        peak = {name: allocations(call, warm_up=False).peak_bytes for name, call in calls.items()}
        frames.append(_rows(ladder, form, found, status, peak))
    return pd.concat(frames, ignore_index=True)


def _built(ladder: Ladder, form: str, expected: Any) -> tuple[dict[str, Work], dict[str, str]]:
    """The rungs that give the expected output, and for every rung how it went."""
    works, status = {}, {}
    for rung in ladder.rungs:
        make = rung.make_alone if form == ALONE else rung.make_cumulative
        if make is None:
            continue
        try:
            work = make()
            right = same(work(ladder.work), expected)
        except Exception as problem:  # noqa: BLE001  # a rung that fails is reported, not fatal
            status[rung.name] = f"{type(problem).__name__}: {problem}"
            continue
        status[rung.name] = "ok" if right else "broken"
        if right:
            works[rung.name] = work
    return works, status


def _rows(
    ladder: Ladder,
    form: str,
    found: Comparison | None,
    status: dict[str, str],
    peak: dict[str, int],
) -> pd.DataFrame:
    """One row a rung; verdicts on gains over the baseline and on steps are adjusted together."""
    rows = []
    names = [rung.name for rung in ladder.rungs if status.get(rung.name) == "ok"]
    pairs = pairwise([BASE, *names]) if form != ALONE else ()
    together: list[Ratio] = []
    if found:
        together = judged([*map(found.ratio, names), *(between(found, *pair) for pair in pairs)])
    gains = dict(zip(names, together, strict=False))
    steps = dict(zip(names, together[len(names) :], strict=False))
    for rung in ladder.rungs:
        if rung.name not in status:
            continue
        rows.append(
            {
                "part": ladder.part,
                "rung": rung.name,
                "form": form,
                "status": status[rung.name],
                **_columns(gains.get(rung.name), "speedup_x", ""),
                **_columns(steps.get(rung.name), "step_x", "step_"),
                "noise_floor_percent": 100 * found.noise_floor if found else math.nan,
                "blocks": found.blocks if found else 0,
                "peak_bytes": peak.get(rung.name, math.nan),
                "peak_change_bytes": peak.get(rung.name, math.nan) - peak[BASE],
                "idea": rung.idea,
                "weights": rung.weights or ("float32" if ladder.part == "inference" else ""),
                "threads": rung.threads,
            }
        )
    return pd.DataFrame(rows)


def _columns(ratio: Ratio | None, value: str, prefix: str) -> dict[str, object]:
    """A ratio with its ends and verdict; without numbers where there is none."""
    names = (value, f"{prefix}low_x", f"{prefix}high_x", f"{prefix}verdict")
    found = (ratio.value, ratio.low, ratio.high, ratio.verdict) if ratio else (*[math.nan] * 3, "")
    return dict(zip(names, found, strict=True))


def between(found: Comparison, before: str, name: str) -> Ratio:
    """Throughput of one candidate over another's; its verdict stays open until `judged`."""
    gain = location(found.logs[before] - found.logs[name])
    return Ratio.of(gain, name=name, baseline=before, noise_floor=found.noise_floor)
