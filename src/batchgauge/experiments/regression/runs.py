"""What notebook 05 and `batchgauge bench` run: the benchmarks of the suite, one after another."""

from __future__ import annotations

from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from batchgauge import suite
from batchgauge.machine.identity import Run
from batchgauge.measuring import Amount, Conditions, Labels, Stopping, allocations, measure
from batchgauge.measuring.gate.instructions import count as count_instructions
from batchgauge.redaction import redacted
from batchgauge.registry import weights_of, with_weights


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
    return redacted(subject.engine_spec) if part in suite.ENGINE_PARTS else "numpy"


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a benchmark: median time of one call, throughput, samples; warm-up left out."""
    steady = frame[~frame["is_warmup"]].groupby("benchmark", sort=False)
    median, first = steady["wall_ms"].median(), steady[["items", "tokens"]].first()
    return pd.DataFrame(
        {
            "median_ms": median,
            "items_per_s": first["items"] / median * 1e3,
            "tokens_per_s": first["tokens"].where(first["tokens"] > 0) / median * 1e3,
            "samples": steady.size(),
        }
    ).reset_index()
