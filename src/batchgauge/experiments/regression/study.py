"""Where suite and measuring meet: a run of the suite, and what notebook 05 shows of the gate."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from batchgauge import suite
from batchgauge.errors import UserError
from batchgauge.machine.limits import performance_cores
from batchgauge.measuring import Estimate, Run, allocations, measure, proportion, read
from batchgauge.measuring.gate.compare import Change, compare_runs, frame_of
from batchgauge.measuring.gate.instructions import count as count_instructions
from batchgauge.measuring.gate.process import FEWEST, THRESHOLD, Plan, Side
from batchgauge.measuring.gate.rounds import Evidence, Result, decide, measure_round
from batchgauge.measuring.gate.trial import SLOWDOWNS, simulate
from batchgauge.measuring.statistics import change_points
from batchgauge.redaction import redacted

CHEAP = "tokenise/batch=32/chars=200,statistics/items=1000,lookup/items=1000"


def run_suite(
    patterns: str = "*",
    *,
    seconds: float = 2.0,
    progress: bool = False,
    min_samples: int = 6,
    **subject: Any,
) -> pd.DataFrame:
    """Measure the benchmarks that match, `seconds` each: one row a sample.

    `subject` are the arguments of `suite.Subject`.
    """
    subject_ = suite.Subject(**subject)
    run = Run.here(threads=subject_.threads, seed=subject_.seed, workload=subject_.workload_digest)
    frames = []
    for benchmark in tqdm(suite.select(patterns), desc="suite", disable=not progress):
        prepared = benchmark.prepare(subject_)
        work = {**prepared.counters, "peak_bytes": allocations(prepared.call).peak_bytes}
        if (instructions := count_instructions(prepared.call)) is not None:
            work["instructions"] = instructions  # passes of their own, before any timing
        measurement = measure(
            prepared.call,
            name=benchmark.name,
            implementation=_implementation(benchmark.part, subject_),
            items=prepared.items,
            tokens=prepared.tokens,
            part=benchmark.part,
            batch_size=benchmark.batch_size,
            parameters=benchmark.parameters,
            counters=work,
            budget_s=seconds,
            min_samples=min_samples,
            max_samples=60,
            threads=subject_.threads,
            run=run,
        )
        frames.append(measurement.to_frame())
    return pd.concat(frames, ignore_index=True)


def _implementation(part: str, subject: suite.Subject) -> str:
    if part in {"tokenise", "detokenise"}:
        return subject.tokenizer_spec
    return redacted(subject.engine_spec) if part in {"prefill", "decode", "end_to_end"} else "numpy"


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a benchmark: median time of one call, throughput, samples; warm-up left out."""
    steady = frame[~frame["is_warmup"]]
    rows = []
    for name, part in steady.groupby("benchmark", sort=False):
        median = float(np.median(part["wall_ms"]))
        items, tokens = int(part["items"].iloc[0]), int(part["tokens"].iloc[0])
        rows.append(
            {
                "benchmark": name,
                "median_ms": median,
                "items_per_s": items / median * 1e3,
                "tokens_per_s": tokens / median * 1e3 if tokens else np.nan,
                "samples": len(part),
            }
        )
    return pd.DataFrame(rows)


def real_round(
    slow: float,
    *,
    seconds: float,
    processes: int,
    patterns: str = CHEAP,
    **subject: Any,
) -> Result:
    """This checkout against itself, slowed down by `slow` (0.1 = 10 %): one real round.

    `subject` are the arguments of `suite.Subject`.
    """
    source = Path(suite.__file__).parents[1]
    plan = Plan(
        [b.name for b in suite.select(patterns)],
        Path(suite.__file__),
        subject,
        seconds=seconds,
        processes=processes,
        least=processes,
        seed=int(subject.get("seed", 0)),
    )
    evidence, samples, problems = measure_round(
        Side("this", source), Side("this again", source, slow), plan
    )
    return Result([], samples, {name: [e] for name, e in evidence.items()}, problems)


def history(folder: Path, benchmark: str) -> pd.DataFrame:
    """Stored runs of one benchmark, oldest first: timestamp, median_ms, new_level.

    Reads every CSV of samples in `folder`; `new_level` marks change points.
    """
    rows = []
    for path in sorted(folder.glob("*.csv")):
        frame = read(path)
        part = frame[(frame["benchmark"] == benchmark) & ~frame["is_warmup"]]
        for _, one in part.groupby("run_id"):
            rows.append(
                {
                    "timestamp": one["timestamp"].iloc[0],
                    "git_commit": one["git_commit"].iloc[0],
                    "median_ms": float(np.median(one["wall_ms"])),
                }
            )
    table = pd.DataFrame(rows, columns=["timestamp", "git_commit", "median_ms"])
    table = table.sort_values("timestamp", ignore_index=True)
    points = change_points(np.log(table["median_ms"].to_numpy(np.float64)))
    return table.assign(new_level=table.index.isin(points))


def changes_of(result: Result, threshold: float = THRESHOLD) -> list[Change]:
    """The gate's word on each benchmark of a real round."""
    return [decide(name, rounds, threshold) for name, rounds in result.evidence.items()]


def trial(result: Result, *, trials: int, seed: int = 0) -> pd.DataFrame:
    """The gate's rates per benchmark, simulated with the noise that a real A/A round showed.

    Beside the columns of `gate_trial.simulate`: benchmark, and seconds (mean wall time of a
    gate run). A round has as many process rounds as fit in the gate's time, at the wall time
    that the real ones took. Benchmarks are simulated side by side, on all cores.
    """
    each = partial(_trial, trials=trials, seed=seed)
    cases = [(name, evidence) for name, (evidence,) in result.evidence.items()]
    if len(cases) == 1:
        return _trial(cases[0], trials=trials, seed=seed)
    with ProcessPoolExecutor(performance_cores(), mp_context=get_context("spawn")) as pool:
        tables = tqdm(pool.map(each, cases), total=len(cases), desc="simulating")
        return pd.concat(list(tables), ignore_index=True)


def _trial(case: tuple[str, Evidence], *, trials: int, seed: int) -> pd.DataFrame:
    name, evidence = case
    usual = Plan([], Path(), {})
    noise = np.concatenate([evidence.ratios, evidence.twins])
    fit = int(usual.seconds / evidence.seconds)
    processes = min(max(fit, FEWEST), usual.processes)
    table = simulate(noise, processes=processes, trials=trials, seed=seed)
    return table.assign(benchmark=name, seconds=table["processes"] * evidence.seconds)


def overall(table: pd.DataFrame, slowdown: float, threshold: float = THRESHOLD) -> Estimate:
    """The rate over all benchmarks at one slow-down, with its exact binomial interval."""
    rows = table[(table["slowdown"] == slowdown) & (table["threshold"] == threshold)]
    return proportion(int(rows["found"].sum()), int(rows["trials"].sum()))


def in_words(table: pd.DataFrame) -> str:
    """The simulated rates in a sentence or two."""
    same, three, five, ten, twenty = (overall(table, s) for s in SLOWDOWNS)
    usual = table[table["threshold"] == THRESHOLD].set_index("slowdown")["seconds"]
    return (
        f"With the noise of this machine the gate fails unchanged code in {same.value:.1%} of runs "
        f"[{same.low:.1%}, {same.high:.1%}]; it finds a slow-down of 3 % in {three.value:.0%}, of "
        f"5 % in {five.value:.0%}, of 10 % in {ten.value:.0%} and of 20 % in {twenty.value:.0%}. A "
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
        return [], f"The stored baseline '{files[-1].name}' does not compare: {problem}"
    failing = [c.benchmark for c in changes if c.fails]
    return changes, (
        f"Against the stored baseline '{files[-1].name}', {len(failing)} of {len(changes)} "
        "benchmarks fail; the drift of the machine between the two sessions is in these numbers."
    )


def change_table(changes: list[Change]) -> pd.DataFrame:
    """The changes in percent, ready to be shown."""
    frame = frame_of(changes)
    percent = ["change", "low", "high", "noise_floor", "minimum_detectable_change"]
    shown = (frame[percent] * 100).round(2).add_suffix("_percent")
    return pd.concat([frame[["benchmark", "status"]], shown, frame[["blocks", "work"]]], axis=1)
