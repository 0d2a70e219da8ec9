"""Notebook 05's questions, one function each: measured, drawn and put into words.

How the numbers come about is in `batchgauge.measuring.gate`; the benchmarks are declared in
`batchgauge.suite`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from batchgauge import suite
from batchgauge.errors import UserError
from batchgauge.experiments.regression import decisions as trial
from batchgauge.experiments.regression import figures, runs
from batchgauge.measuring import read
from batchgauge.measuring.gate.compare import compare_runs
from batchgauge.measuring.gate.judging import Change, false_alarms, frame_of
from batchgauge.measuring.gate.process import GatePlan
from batchgauge.measuring.gate.rounds import GateResult
from batchgauge.measuring.gate.sequential import LEAST
from batchgauge.redaction import redacted
from batchgauge.registry import open_engine
from batchgauge.reporting import Answer, Score, Section, Tile
from batchgauge.reporting.model import is_ours
from batchgauge.reporting.profiles import Profile
from batchgauge.reporting.project import project_root
from batchgauge.text import counted, percent, span

THOROUGH = "none,none,none,wait=5,code=5,wait=3,code=3"


@dataclass(frozen=True, slots=True)
class Taken:
    """Decisions that this run of the notebook took: results by injection, and as tables."""

    results: list[tuple[trial.Injection, GateResult]]
    decisions: pd.DataFrame
    rounds: pd.DataFrame


def plan(budget: Profile, **subject: Any) -> GatePlan:
    """Rounds that a profile has for a decision on this checkout.

    `subject` are the arguments of `runs.suite_options`. Raises UserError for an engine that cannot
    be opened, before anything is measured.
    """
    options = runs.suite_options(**subject)
    if not is_ours(options["engine"]):  # ours is opened where a benchmark runs it
        open_engine(options["engine"], options.get("model") or None, options["threads"])
    few = budget.choose(smoke=True, default=False, thorough=False)
    patterns = "statistics/items=1000" if few else trial.CHEAP
    return trial.planned(patterns, options, rounds=LEAST if few else 64)


def take(plan: GatePlan, budget: Profile) -> Taken:
    """Decisions of the gate on this checkout, unchanged first."""
    names = budget.choose(smoke="none", default="none,wait=5", thorough=THOROUGH)
    injections = [trial.Injection.parse(name) for name in names.split(",")]
    results, decisions, rounds = trial.collect(plan, injections, trial.session(plan))
    return Taken(list(zip(injections, results, strict=True)), decisions, rounds)


def decided(taken: Taken) -> list[Section]:
    """A section for the unchanged code, and one for the first of each injected slow-down."""
    first: dict[str, tuple[trial.Injection, GateResult]] = {}
    for injection, result in taken.results:
        first.setdefault(str(injection), (injection, result))
    return [_decided(i, result.changes, taken.rounds) for i, result in first.values()]


def _decided(
    injection: trial.Injection, changes: Sequence[Change], rounds: pd.DataFrame
) -> Section:
    failing, count = sum(c.fails for c in changes), len(changes)
    how = {"wait": "a busy wait", "code": "a change of its code", "none": ""}[injection.kind]
    what = (
        f"Slowed down by {100 * injection.slowdown:g} % by {how}" if how else "The same code twice"
    )
    key = f"{injection.kind}_{100 * injection.slowdown:g}".replace(".", "_") if how else "same_code"
    rounds_taken = span([c.blocks for c in changes])
    finding = (
        f"{what}: {failing} of {count} benchmarks fail, after {rounds_taken} rounds and "
        f"{max(c.seconds for c in changes):.0f} s a benchmark at most. "
    ) + ("" if how else false_alarms(changes))
    mine = rounds[
        (rounds["injection"] == injection.kind) & (rounds["slowdown"] == injection.slowdown)
    ]
    return Section(
        f"regression_{key}", {key: mine}, finding.strip(), change_table(changes),
        "Change of time, the interval that holds at whichever look it ended, and the verdict.",
        partial(figures.ratios, frame_of(changes), f"{what}: {failing} of {count} benchmarks fail"),
        f"{what}: ratio of times with its 95 % interval over rounds of two fresh processes.",
        rests_on=f"{rounds_taken} rounds, 2 processes each",
    )  # fmt: skip


def gate_rates(taken: Taken, folder: Path | None = None) -> Section:
    """False alarms and found slow-downs of all decisions: those on record, and this run's.

    `folder` holds the record; None for this project's.
    """
    before, _ = trial.recorded(folder or project_root() / "data" / "regression")
    every = pd.concat([before, taken.decisions], ignore_index=True)
    table = trial.rates(every)
    whole = trial.rates(every, by=("slowdown",)).set_index("slowdown")
    goals = (
        ("gate_false_alarms", "false alarms", 0.0, 0.5),
        ("gate_finds_5_percent", "5 % slow-downs found", 0.05, 95.0),
        ("gate_finds_3_percent", "3 % slow-downs found", 0.03, 80.0),
    )
    targets = []
    for key, label, slowdown, goal in goals:
        if slowdown in whole.index:
            value, low, high = (float(100 * whole[c][slowdown]) for c in ("rate", "low", "high"))
            better: Literal["higher", "lower"] = "higher" if slowdown else "lower"
            text = f"Regression gate: {label}"
            targets.append(Score(key, text, goal, value, low, high, "%", better))
    longest = float(every["seconds"].max())
    targets.append(
        Score("gate_seconds", "Regression gate: longest decision", 60.0, longest, unit="s",
              better="lower")
    )  # fmt: skip
    title = f"{len(every)} decisions of the gate, real, in {every['run_id'].nunique()} runs"
    return Section(
        "regression_gate_rates", {"gate_rates": table, "decisions": every},
        rates_sentence(every), table.round(4),
        "How often a benchmark fails, by slow-down; 95 % intervals over runs.",
        partial(figures.rates, table, title),
        "How often the gate fails a benchmark: whole decisions, nothing simulated; "
        f"{span(table['decisions'].tolist())} a row.",
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
    engine = str(subject.get("engine", ""))
    if not is_ours(engine) and not now["part"].isin(suite.ENGINE_PARTS).any():
        finding += (
            f" None of these benchmarks runs the engine '{redacted(engine)}'; `select` with "
            "'decode/*' does."
        )
    failing = sum(c.fails for c in changes)
    title = f"{failing} of {len(changes)} benchmarks fail against the stored baseline"
    return Section(
        "regression_stored", {"samples": now}, finding, runs.summary(now).round(4),
        "This run of the suite.",
        partial(figures.ratios, frame_of(changes), title) if changes else None,
        "This run against the stored baseline, threshold 5 %.",
    )  # fmt: skip


def answer(rates: Section, taken: Taken) -> Answer:
    """How often the gate errs, and what it told of this machine today."""
    same = [
        c for injection, result in taken.results for c in result.changes if not injection.slowdown
    ]
    text = " ".join(filter(None, [rates.sentence(), false_alarms(same)]))
    widths = [100 * (c.high - c.low) / 2 for c in same if math.isfinite(c.high - c.low)]
    value = f"Noise ± {max(widths):.1f} %" if widths else "Noise not known"
    return Answer(text, rates.name, [Tile("noise", value, rates.sentence())])


def rates_sentence(decisions: pd.DataFrame) -> str:
    """The rates of all decisions in a sentence or two."""
    rows = trial.rates(decisions, by=("slowdown",)).to_dict("records")
    parts = []
    for row in rows:
        size = 100 * row["slowdown"]
        parts.append(
            f"{f'a slow-down of {size:g} %' if size else 'unchanged code'} in {row['failed']} of "
            f"{counted(row['decisions'], 'decision')} [{percent(row['low'])}, "
            f"{percent(row['high'])}]"
        )
    times = span([round(row["seconds"]) for row in rows])
    runs = [row["runs"] for row in rows]
    return (
        f"The gate fails {', '.join(parts)}; a decision takes {times} s. Intervals are over "
        f"{span(runs)} {'run' if max(runs) == 1 else 'runs'}; more would narrow them."
    )


def against_stored(new: pd.DataFrame, folder: Path) -> tuple[list[Change], str]:
    """Changes against the newest stored baseline, and a sentence; no changes when none compares."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        return [], "There is no stored baseline yet."
    try:
        changes = compare_runs(read(files[-1]), new)
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
    shares = ["change", "low", "high", "minimum_detectable_change", "layout"]
    shown = (frame[shares] * 100).round(2).add_suffix("_percent")
    return pd.concat([frame[["benchmark", "status"]], shown, frame[["blocks", "work"]]], axis=1)
