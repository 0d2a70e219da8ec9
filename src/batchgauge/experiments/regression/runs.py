"""What notebook 05 and `batchgauge bench` run: the suite, the gate on this checkout, its trial."""

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
from batchgauge.machine.identity import Run
from batchgauge.machine.limits import performance_cores
from batchgauge.measuring import Amount, Conditions, Labels, Stopping, allocations, measure
from batchgauge.measuring.gate.instructions import count as count_instructions
from batchgauge.measuring.gate.process import FEWEST, THRESHOLD, GatePlan, Side
from batchgauge.measuring.gate.rounds import Evidence, GateResult, decide, measure_round
from batchgauge.measuring.gate.trial import simulate
from batchgauge.redaction import redacted
from batchgauge.registry import weights_of, with_weights
from batchgauge.statistics import Estimate, proportion


def suite_options(
    *, engine: str = "numpy", weights: str = "float32", **subject: Any
) -> dict[str, Any]:
    """Arguments of `suite.Subject`: the weights are part of the engine's spec there.

    Another revision understands them so. Raises UserError as `registry.with_weights` does.
    """
    return {**subject, "engine": with_weights(engine, weights)}


def run_suite(
    patterns: str = "*",
    *,
    seconds: float = 2.0,
    progress: bool = False,
    min_samples: int = 6,
    **subject: Any,
) -> pd.DataFrame:
    """Measure the benchmarks that match, `seconds` each: one row a sample.

    `subject` are the arguments of `suite_options`.
    """
    subject_ = suite.Subject(**suite_options(**subject))
    run = Run.here(
        threads=subject_.threads, seed=subject_.seed, workload=subject_.workload_digest,
        weights=weights_of(subject_.engine_spec),
    )  # fmt: skip
    frames = []
    for benchmark in tqdm(suite.select(patterns), desc="suite", disable=not progress):
        prepared = benchmark.prepare(subject_)
        work = {**prepared.counters, "peak_bytes": allocations(prepared.call).peak_bytes}
        if (instructions := count_instructions(prepared.call)) is not None:
            work["instructions"] = instructions  # passes of their own, before any timing
        part, name = benchmark.part, _implementation(benchmark.part, subject_)
        measurement = measure(
            prepared.call,
            Labels(benchmark.name, name, part, benchmark.parameters),
            Amount(prepared.items, prepared.tokens, benchmark.batch_size, work),
            stopping=Stopping(seconds, min_samples, most=60),
            conditions=Conditions(subject_.threads),
            run=run,
        )
        frames.append(measurement.to_frame())
    return pd.concat(frames, ignore_index=True)


def _implementation(part: str, subject: suite.Subject) -> str:
    if part in {"tokenize", "detokenize"}:
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


def against_itself(plan: GatePlan, slowdown: float = 0.0) -> GateResult:
    """One real round of this checkout against itself, slowed down by `slowdown` (0.1 = 10 %).

    Raises UserError when no benchmark ran.
    """
    source = Path(suite.__file__).parents[1]
    evidence, samples, problems = measure_round(
        Side("this", source), Side("this again", source, slowdown), plan
    )
    if not evidence:
        raise UserError(f"No benchmark ran: {next(iter(problems.values()), 'none was selected')}")
    rounds = {name: [e] for name, e in evidence.items()}
    changes = [decide(name, seen, plan.threshold_of(name)) for name, seen in rounds.items()]
    return GateResult(changes, samples, rounds, problems)


def trial(result: GateResult, *, trials: int, seed: int = 0) -> pd.DataFrame:
    """The gate's rates per benchmark, simulated with the noise that a real A/A round showed.

    Beside the columns of `gate.trial.simulate`: benchmark, and seconds (mean wall time of a
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
    usual = GatePlan([], Path(), {})
    noise = np.concatenate([evidence.ratios, evidence.aa_ratios])
    fit = int(usual.seconds / evidence.seconds)
    processes = min(max(fit, FEWEST), usual.processes)
    table = simulate(noise, processes=processes, trials=trials, seed=seed)
    return table.assign(benchmark=name, seconds=table["processes"] * evidence.seconds)


def overall(table: pd.DataFrame, slowdown: float, threshold: float = THRESHOLD) -> Estimate:
    """The rate over all benchmarks at one slow-down, with its exact binomial interval."""
    rows = table[(table["slowdown"] == slowdown) & (table["threshold"] == threshold)]
    return proportion(int(rows["found"].sum()), int(rows["trials"].sum()))
