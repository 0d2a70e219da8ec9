"""Where suite and measuring meet: a run of the suite, and what notebook 05 shows of the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from batchgauge import suite
from batchgauge.measuring import Run, measure, read
from batchgauge.measuring.gate import Result, measure_round
from batchgauge.measuring.gate_process import Plan, Side
from batchgauge.measuring.statistics import change_points

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
        measurement = measure(
            prepared.call,
            name=benchmark.name,
            implementation=_implementation(benchmark.part, subject_),
            items=prepared.items,
            tokens=prepared.tokens,
            part=benchmark.part,
            batch_size=benchmark.batch_size,
            parameters=benchmark.parameters,
            counters=prepared.counters,
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
    return subject.engine_spec if part in {"prefill", "decode", "end_to_end"} else "numpy"


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
    slow: float, *, seconds: float, processes: int, seed: int = 0, patterns: str = CHEAP
) -> Result:
    """This checkout against itself, slowed down by `slow` (0.1 = 10 %): one real round."""
    source = Path(suite.__file__).parents[1]
    plan = Plan(
        [b.name for b in suite.select(patterns)],
        Path(suite.__file__),
        {"seed": seed},
        seconds=seconds,
        processes=processes,
        seed=seed,
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
