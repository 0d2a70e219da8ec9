"""What follows from the measured job layer: efficiencies, simulated jobs, goals and the sentence.

Works on the rows that `jobs.measure` gives, and on invented ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.reporting import Score
from batchgauge.simulate.scaling import fit_scaling
from batchgauge.statistics import Interval, mean_ratio, percentile
from batchgauge.text import span

WORKERS = 2
SLOWER = 3.0
BEYOND = (4, 8)  # workers that are not here
TOKENIZING, GENERATING = "tokenizing", "generating"
ONE, TWO = "1 worker", "2 workers"
PLAIN, LAYER = "plain loop", "job layer"
AUTO = "auto"
EMPTY, COLD = "empty task", "cold start to first answer"
SOUND, SLOW, KILLED = "both sound", f"one {SLOWER:g} × slower", "one killed"
OVERHEAD, SIZES = "in process", "batch size"
LINE = 2000  # characters of a document


@dataclass(frozen=True)
class Trouble:
    """What befalls workers: time factors of each, and a worker that ends at a time and comes back.

    `lost` parts that it had, running or waiting, are done at the end, one at a time.
    """

    speeds: tuple[float, ...] = (1.0,) * WORKERS
    dies_s: float = np.inf
    back_s: float = np.inf
    lost: int = 2


def makespan(parts: int, part_s: float, trouble: Trouble) -> float:
    """Seconds of a job of equal parts in one queue; the last worker is the one that dies."""
    free = [0.0] * len(trouble.speeds)
    mortal, again, waiting, ended = len(free) - 1, 0, parts, 0.0
    dead = False
    while waiting:
        worker = int(np.argmin(free))
        end = free[worker] + part_s * trouble.speeds[worker]
        if worker == mortal and not dead and end > trouble.dies_s:
            dead, again = True, min(trouble.lost, waiting)
            waiting -= again
            free[worker] = trouble.back_s
            continue
        waiting -= 1
        free[worker] = end
        ended = max(ended, end)
    return ended + again * part_s * min(trouble.speeds)


def rests_on(rows: pd.DataFrame) -> str:
    """What the efficiencies rest on: `6 blocks, 12 worker processes`."""
    blocks = [len(_values(rows, work, TWO)) for work in (TOKENIZING, GENERATING)]
    starts = len(_values(rows, COLD, "workers started"))
    return f"{span(blocks)} blocks, {WORKERS * starts} worker processes"


def results(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a figure: value, 95 % interval, unit, whether measured, simulated or extrapolated."""
    found: list[dict[str, Any]] = []

    def add(what: str, value: Interval | float, unit: str, basis: str = "measured") -> None:
        if not isinstance(value, Interval):
            value = Interval(value, value, value)
        ends = {"value": value.value, "low": value.low, "high": value.high}
        found.append({"what": what, **ends, "unit": unit, "basis": basis})

    empty = _values(rows, EMPTY, "round trip")
    add(f"{EMPTY}, median", percentile(empty, 50), "ms")
    if np.isfinite(high := percentile(empty, 90)):
        add(f"{EMPTY}, p90", high, "ms")
    add(COLD, float(np.median(_values(rows, COLD, "first answer"))), "s")
    for work in (TOKENIZING, GENERATING):
        by_size = {n: _values(rows, work, way) for n, way in ((1, ONE), (WORKERS, TWO))}
        add(_efficiency(work, 1), 1.0, "of one worker")
        ratio = mean_ratio(by_size[WORKERS] / WORKERS, by_size[1])
        add(_efficiency(work, WORKERS), ratio, "of one worker")
        fit = fit_scaling({n: v.tolist() for n, v in by_size.items()}, "USL")
        for workers in BEYOND:
            far = fit.predict(workers)
            ends = Interval(*(v / workers for v in (far.value, far.low, far.high)))
            add(_efficiency(work, workers), ends, "of one worker", "extrapolated")
    for way, seconds in simulated(rows).items():
        add(way, _value(rows, way, "job, s"), "s")
        add(way, seconds, "s", "simulated")
    add(
        "outputs that differ",
        sum(_value(rows, w, "differs") for w in (SOUND, SLOW, KILLED)),
        "jobs",
    )
    layer, plain = (_values(rows, OVERHEAD, way) for way in (LAYER, PLAIN))
    extra = mean_ratio(layer, plain)
    add(OVERHEAD, Interval(*(100 * (v - 1) for v in (extra.value, extra.low, extra.high))), "%")
    sizes = rows[(rows["measure"] == SIZES) & rows["way"].str.isdigit()]
    best = str(sizes.groupby("way", sort=False)["value"].median().idxmax())
    add(AUTO, mean_ratio(_values(rows, SIZES, AUTO), _values(rows, SIZES, best)), "of the best")
    add("size of auto", _value(rows, SIZES, "size chosen"), "prompts")
    add("best fixed size", int(best), "prompts")
    add("advice", _value(rows, SIZES, "advice, s"), "s")
    return pd.DataFrame(found)


def simulated(rows: pd.DataFrame) -> dict[str, float]:
    """What the three jobs should take, by what a part took with both workers busy.

    A worker that was killed is back after as long as the workers took to start.
    """
    parts = int(_value(rows, SOUND, "parts"))
    opened_s = _value(rows, TOKENIZING, "opened, s")
    mb_per_s = float(np.median(_values(rows, TOKENIZING, TWO)))
    part_s = WORKERS * _value(rows, TOKENIZING, "part, MB") / mb_per_s
    dies_s = np.inf if (after := _values(rows, KILLED, "after, s")).size == 0 else after[0]
    back_s = dies_s + _value(rows, COLD, "workers started") + opened_s
    sound = Trouble()
    troubles = {
        SOUND: sound,
        SLOW: replace(sound, speeds=(1.0,) * (WORKERS - 1) + (SLOWER,)),
        KILLED: replace(sound, dies_s=dies_s - opened_s, back_s=back_s - opened_s),
    }
    return {way: opened_s + makespan(parts, part_s, t) for way, t in troubles.items()}


def _efficiency(work: str, workers: int) -> str:
    return f"{work}, {workers} worker{'s' * (workers > 1)}"


def _values(rows: pd.DataFrame, measure: str, way: str) -> np.ndarray:
    """Values of one way by block."""
    mine = rows[(rows["measure"] == measure) & (rows["way"] == way)]
    return mine.sort_values("block")["value"].to_numpy(np.float64)


def _value(rows: pd.DataFrame, measure: str, way: str) -> float:
    return float(_values(rows, measure, way)[0])


def scores(table: pd.DataFrame) -> list[Score]:
    """The goals of the job layer against what was measured."""
    named = _named(table)
    work = "Jobs: efficiency of two workers,"
    two = [named[_efficiency(name, WORKERS)] for name in (TOKENIZING, GENERATING)]
    over, beside = "Jobs: overhead in process over a plain loop", "the best fixed batch size"
    return [
        Score("jobs_tokenizing", f"{work} tokenizing", 0.92, *_ends(two[0])),
        Score("jobs_generating", f"{work} generating", 0.92, *_ends(two[1])),
        Score("jobs_overhead", over, 2.0, *_ends(named[OVERHEAD]), "%", "lower"),
        Score("jobs_auto", f"Jobs: auto against {beside}", 0.97, *_ends(named[AUTO])),
    ]


def _ends(row: Mapping[str, Any]) -> tuple[float, float, float]:
    return row["value"], row["low"], row["high"]


def _named(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The rows that no simulation gave, by what they say."""
    rows = table[table["basis"] != "simulated"].to_dict("records")
    return {str(row["what"]): {str(k): v for k, v in row.items()} for row in rows}


def sentence(table: pd.DataFrame) -> str:
    """Every figure against its goal or against what was simulated."""
    named = _named(table)
    said = {r["what"]: r["value"] for r in table.to_dict("records") if r["basis"] == "simulated"}
    p90 = named.get(f"{EMPTY}, p90")
    empty = f"{named[f'{EMPTY}, median']['value']:.1f} ms" + (
        f" (p90 {p90['value']:.1f} ms)" if p90 else ""
    )
    jobs = "; ".join(
        f"{way}: {named[way]['value']:.1f} s, simulated {seconds:.1f} s"
        for way, seconds in said.items()
    )
    differ = int(named["outputs that differ"]["value"])
    far = [named[_efficiency(work, BEYOND[-1])] for work in (TOKENIZING, GENERATING)]
    return (
        f"On {WORKERS} worker processes of one thread each an empty task takes {empty}, and a cold "
        f"start {named[COLD]['value']:.1f} s to the first answer. "
        f"{' '.join(score.sentence() for score in scores(table))} Auto chose "
        f"{named['size of auto']['value']:.0f} in {named['advice']['value']:.1f} s, and the best "
        f"fixed size was {named['best fixed size']['value']:.0f}. A tokenizing job with {jobs}; "
        f"{'all outputs are the same bytes' if not differ else f'{differ} outputs differ'}. "
        f"Extrapolated to {BEYOND[-1]} workers, not measured: efficiency {far[0]['low']:.2f} to "
        f"{far[0]['high']:.2f} tokenizing, {far[1]['low']:.2f} to {far[1]['high']:.2f} generating."
    )
