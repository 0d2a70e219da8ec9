"""The same question answered by measuring whole batches: `batchgauge suggest` in the notebook.

Where an engine does not show its model, this is the answer to go by: the calibrations above
assume that times follow our own engine's laws.
"""

from __future__ import annotations

import math

import pandas as pd

from batchgauge.advise import Load, suggest
from batchgauge.errors import UserError
from batchgauge.experiments.batch_sizing.bench import Bench
from batchgauge.experiments.context import Context
from batchgauge.protocols import Engine
from batchgauge.reporting import Section
from batchgauge.sizing.advice.answer import MeasuredAdvice
from batchgauge.sizing.advice.decision import Question
from batchgauge.sizing.advice.observe import METRICS
from batchgauge.sizing.automatic import shows_its_model
from batchgauge.sizing.suggestion import BatchSizeSuggestion, SizingConfig

_TARGETS = {"request": "latency", "ttft": "ttft", "inter_token": "inter_token"}


def decides(engine: Engine, found: MeasuredAdvice, own: BatchSizeSuggestion) -> bool:
    """Whether to go by this answer rather than by the calibration's laws, which are our engine's.

    So where the engine does not show its model, and the search came to something or the
    calibration's own suggestion is not to be trusted either.
    """
    if shows_its_model(engine) or found.setting is None:
        return False
    return found.found.decision.within[0.95] >= 0.5 or own.trust != "high"


def purpose(
    config: SizingConfig, engine: Engine, found: MeasuredAdvice, own: BatchSizeSuggestion
) -> str:
    """What this answer is for, and what the suggestion by the cost model."""
    if decides(engine, found, own):
        return "This engine does not show its model, so go by this answer."
    if not shows_its_model(engine):
        return (
            "This engine does not show its model, so this answer would count for more, had the "
            "search been longer; `batchgauge suggest` takes a budget."
        )
    said = "This answer is for throughput at any wait, as in a job."
    if config.latency_budget_ms:
        said = "This answer is for throughput at any wait within the budget."
    other = f"is for the objective '{config.objective}'"
    if config.objective == "throughput":
        other = (
            "is for callers who wait for a batch: each 1 % more latency has to buy "
            f"{config.wait_price:.2f} % more throughput, so it may be smaller"
        )
    return f"{said} The suggestion above {other}."


def advice(
    context: Context, bench: Bench, own: BatchSizeSuggestion
) -> tuple[MeasuredAdvice | None, Section]:
    """The measured advice where the page is to go by it, in words, and its runs.

    The latency budget, where there is one, is taken for the 95th percentile.
    """
    budget = bench.config.latency_budget_ms
    targets = {_TARGETS[bench.config.latency_metric]: budget} if budget else {}
    question = Question("throughput", targets, context.budget.share(0.5), context.seed)
    load = Load(context.workload, max_tokens=context.tokens(16), largest=bench.largest)
    try:
        found = suggest(context.engine, question, load)
    except UserError as problem:
        return None, Section("measured_advice", {}, f"Measuring whole batches failed: {problem}")
    runs = pd.DataFrame(
        {
            found.found.unit.replace(" ", "_"): seen.setting,
            found.value_unit.replace(" ", "_"): math.exp(seen.value),
            **{
                f"{name}_p95_ms": math.exp(seen.metrics[name][0]) if name in seen.metrics else None
                for name in METRICS
            },
            "refused_percent": 100 * seen.run.refused_share,
        }
        for seen in found.found.observations
    )
    said = " ".join([purpose(bench.config, context.engine, found, own), *found.sentences()])
    return found if decides(context.engine, found, own) else None, Section(
        "measured_advice", {"measured_advice": runs}, said, runs,
        "The runs that the answer rests on, in their order.",
    )  # fmt: skip
