"""Notebook 05's questions, one function each: measured, drawn and put into words.

How the numbers come about is in `batchgauge.measuring.gate`; the benchmarks are declared in
`batchgauge.suite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from batchgauge import suite
from batchgauge.errors import UserError
from batchgauge.experiments.regression import figures, runs
from batchgauge.measuring import Run, read, to_frame
from batchgauge.measuring.gate.compare import Change, compare_runs, frame_of
from batchgauge.measuring.gate.process import THRESHOLD, GatePlan
from batchgauge.measuring.gate.rounds import GateResult
from batchgauge.measuring.gate.trial import SLOWDOWNS
from batchgauge.registry import weights_of
from batchgauge.reporting import Answer, Score, Section, Tile
from batchgauge.reporting.profiles import Profile
from batchgauge.reporting.project import project_root
from batchgauge.text import percent

# What the gate is tried on: cheap calls, as a noisy one would need more rounds than a notebook has.
CHEAP = "tokenize/batch=32/chars=200,statistics/items=1000,lookup/items=1000"


def plan(budget: Profile, **subject: Any) -> GatePlan:
    """Process rounds and seconds that a profile has for this checkout against itself.

    `subject` are the arguments of `runs.suite_options`.
    """
    benchmarks = budget.choose(smoke="statistics/items=1000", default=CHEAP, thorough=CHEAP)
    rounds = budget.choose(smoke=3, default=8, thorough=32)
    return GatePlan(
        [b.name for b in suite.select(benchmarks)],
        Path(suite.__file__),
        runs.suite_options(**subject),
        seconds=budget.choose(smoke=0.4, default=30.0, thorough=90.0),
        processes=rounds,
        least=rounds,  # no early end: the noise is what is looked for
        seed=int(subject["seed"]),
    )


def same_code(plan: GatePlan) -> tuple[GateResult, Section]:
    """Unchanged code against itself: what the gate saw, and its noise floors."""
    seen = runs.against_itself(plan)
    kept = weights_of(plan.options["engine"])
    run = Run.here(threads=int(plan.options["threads"]), seed=plan.seed, weights=kept)
    samples = to_frame(seen.samples, run)
    changes = seen.changes
    alarms = _slower(changes)
    title = f"The same code twice: {alarms} of {len(changes)} benchmarks look slower"
    table = change_table(changes)
    low, high = _floors(table)
    finding = (
        f"The noise floor lies between {low} and {high} with {plan.processes} process rounds; "
        f"{alarms} of {len(changes)} unchanged benchmarks would have been measured a second time."
    )
    section = Section(
        "regression_same_code", {"same_code": samples}, finding, table,
        "Noise floor and minimum detectable change of this machine, today.",
        partial(figures.ratios, frame_of(changes), title),
        "Unchanged code against itself: ratio of times with 95 % interval over process rounds, "
        "on its noise floor.",
    )  # fmt: skip
    return seen, section


def slowed(plan: GatePlan, slowdown: float) -> Section:
    """The same with the third process slowed down on purpose by `slowdown` (0.1 = 10 %)."""
    changes = runs.against_itself(plan, slowdown).changes
    seen = f"{_slower(changes)} of {len(changes)}"
    title = f"Slowed down by {100 * slowdown:g} %: {seen} benchmarks look slower"
    return Section(
        "regression_injected", {"injected": change_table(changes)},
        f"{plan.processes} process rounds saw {seen} injected slow-downs of {100 * slowdown:g} %.",
        picture=partial(figures.ratios, frame_of(changes), title),
        picture_caption=f"An injected slow-down of {100 * slowdown:g} %: one round; the gate "
        "measures again before it fails.",
    )  # fmt: skip


def gate_rates(seen: GateResult, *, trials: int, seed: int) -> Section:
    """False alarms and found slow-downs of simulated gate runs with the noise of `same_code`."""
    rates = runs.trial(seen, trials=trials, seed=seed)
    found = {slowdown: runs.overall(rates, slowdown) for slowdown in SLOWDOWNS}
    goals = (
        ("gate_false_alarms", "false alarms", 0.0, 1.0),
        ("gate_finds_10_percent", "10 % slow-downs found", 0.10, 95.0),
        ("gate_finds_5_percent", "5 % slow-downs found", 0.05, 80.0),
    )
    targets = [
        Score(
            key, f"Regression gate: {label}", goal, 100 * found[slowdown].value,
            100 * found[slowdown].low, 100 * found[slowdown].high, "%",
            "higher" if slowdown else "lower",
        )
        for key, label, slowdown, goal in goals
    ]  # fmt: skip
    title = f"A slow-down of 10 % is found in {percent(found[0.10].value)} of runs"
    return Section(
        "regression_gate_rates", {"gate_rates": rates}, rates_sentence(rates), rates.round(4),
        "Rates of failing gate runs by threshold and slow-down, with exact 95 % intervals.",
        partial(figures.rates, rates, title),
        "The gate's error rates, simulated with this machine's noise: as many process rounds as "
        "fit in 30 s, fewer where the answer is clear; threshold 2 %.",
        targets,
    )  # fmt: skip


def stored(select: str, baseline_dir: str, *, seconds: float, **subject: Any) -> Section:
    """A run of the suite against the newest stored one (of this project, if no folder is named).

    `subject` are the arguments of `suite.Subject`. Raises UserError for a pattern without a
    benchmark.
    """
    folder = Path(baseline_dir) if baseline_dir else project_root() / "data" / "baseline"
    now = runs.run_suite(select, seconds=seconds, progress=True, **subject)
    changes, finding = against_stored(now, folder)
    failing = sum(c.fails for c in changes)
    title = f"{failing} of {len(changes)} benchmarks fail against the stored baseline"
    return Section(
        "regression_stored", {"samples": now}, finding, runs.summary(now).round(4),
        "This run of the suite.",
        partial(figures.ratios, frame_of(changes), title) if changes else None,
        "This run against the stored baseline, threshold 5 %.",
    )  # fmt: skip


def answer(same: Section, rates: Section) -> Answer:
    """How often the gate errs here, and the noise that it has to see through."""
    assert same.shown is not None
    low, high = _floors(same.shown)
    table = rates.frame
    unchanged, five, ten = (runs.overall(table, slowdown) for slowdown in (0.0, 0.05, 0.1))
    said = (
        f"a slow-down of 10 % is found in {percent(ten.value)} of runs, of 5 % in "
        f"{percent(five.value)}; unchanged code fails in {percent(unchanged.value, 1)} "
        f"[{percent(unchanged.low, 1)}, {percent(unchanged.high, 1)}]"
    )
    text = f"With the noise of this machine {said}. Single benchmarks vary by {low} to {high}."
    tile = Tile("noise", f"Noise {low} to {high}", f"{said[0].upper()}{said[1:]}.")
    return Answer(text, rates.name, [tile])


def _floors(table: pd.DataFrame) -> tuple[str, str]:
    """The smallest and the largest noise floor of a `change_table`."""
    floors = table["noise_floor_percent"]
    return f"± {floors.min():.1f} %", f"± {floors.max():.1f} %"


def _slower(changes: Sequence[Change]) -> int:
    return sum(c.status == "slower, not confirmed" for c in changes)


def rates_sentence(table: pd.DataFrame) -> str:
    """The simulated rates in a sentence or two."""
    same, three, five, ten, twenty = (runs.overall(table, s) for s in SLOWDOWNS)
    usual = table[table["threshold"] == THRESHOLD].set_index("slowdown")["seconds"]
    return (
        "With the noise of this machine the gate fails unchanged code in "
        f"{percent(same.value, 1)} of runs "
        f"[{percent(same.low, 1)}, {percent(same.high, 1)}]; it finds a slow-down of 3 % in "
        f"{percent(three.value)}, of "
        f"5 % in {percent(five.value)}, of 10 % in {percent(ten.value)} and of 20 % in "
        f"{percent(twenty.value)}. A "
        f"benchmark takes up to {usual.loc[0.0].max():.0f} s where nothing changed, and up to "
        f"{usual.loc[0.1].max():.0f} s to find 10 %, second round included."
    )


def against_stored(
    new: pd.DataFrame, folder: Path, *, threshold: float = 0.05
) -> tuple[list[Change], str]:
    """Changes against the newest stored baseline, and a sentence; no changes when none compares."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        return [], "There is no stored baseline yet."
    try:
        changes = compare_runs(read(files[-1]), new, threshold=threshold)
    except UserError as problem:
        return [], f"Not comparable with the stored baseline '{files[-1].name}': {problem}"
    failing = [c.benchmark for c in changes if c.fails]
    return changes, (
        f"Against the stored baseline '{files[-1].name}', {len(failing)} of {len(changes)} "
        "benchmarks fail; the drift of the machine between the two sessions is in these numbers."
    )


def change_table(changes: Sequence[Change]) -> pd.DataFrame:
    """The changes in percent, ready to be shown."""
    frame = frame_of(changes)
    shares = ["change", "low", "high", "noise_floor", "minimum_detectable_change"]
    shown = (frame[shares] * 100).round(2).add_suffix("_percent")
    return pd.concat([frame[["benchmark", "status"]], shown, frame[["blocks", "work"]]], axis=1)
