"""What the speedup notebook measures in its own process: three ladders, and goals of memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from batchgauge.baseline import engine_rungs, tokenizer_rungs
from batchgauge.baseline.stats import LOOKUP_BASELINE, LOOKUP_RUNGS, STATS_BASELINE, STATS_RUNGS
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.errors import UserError
from batchgauge.experiments.context import TYPICAL, Context
from batchgauge.experiments.scaling import SLACK
from batchgauge.experiments.speedup import goals_engine
from batchgauge.experiments.speedup.goals import Goal
from batchgauge.experiments.speedup.ladder import ALONE, CUMULATIVE, Ladder, climb
from batchgauge.request import BatchResponse, BatchResult
from batchgauge.workload import exact_requests, texts


def check(context: Context) -> None:
    """Raises UserError for a foreign implementation."""
    for what, name in (("tokenizer", context.tokenizer_name), ("engine", context.engine_name)):
        if name.partition(":")[0] != "numpy":
            raise UserError(
                f"The ladders take the core's own implementations apart; {what} is '{name}', "
                "expected 'numpy' (the peers notebook compares foreign ones)."
            )


def _forms(context: Context) -> tuple[str, ...]:
    every = (ALONE, CUMULATIVE)
    return context.budget.choose(smoke=(CUMULATIVE,), default=every, thorough=every)


def _inference_work(context: Context, rungs: int) -> tuple[int, tuple[str, ...]]:
    """Requests of the ladder of inference, and its forms, for what the model costs."""
    forms = context.budget.choose(
        smoke=(CUMULATIVE,), default=(CUMULATIVE,), thorough=(ALONE, CUMULATIVE)
    )
    rows = context.budget.choose(smoke=2, default=2, thorough=8)
    blocks = context.budget.choose(smoke=2, default=4, thorough=20) * (rungs + 2)
    limit = SLACK * context.budget.share(0.3)
    one = context.cost.batch_s(1, TYPICAL // 2, 3)  # the baseline takes twice ours, about
    while rows > 1 and len(forms) * blocks * rows * one > limit:
        rows //= 2
        context.note(f"Ladder of inference: batches of {rows}.")
    if len(forms) > 1 and len(forms) * blocks * rows * one > limit:
        forms = (CUMULATIVE,)
        context.note("Ladder of inference: ideas on top of each other only, none alone.")
    return rows, forms


def _path(context: Context) -> Path | None:
    return Path(context.model) if context.model else None


def _climb(context: Context, ladder: Ladder, min_blocks: int) -> pd.DataFrame:
    return climb(ladder, min_blocks=min_blocks, seed=context.seed, threads=context.threads)


def climb_tokenizing(context: Context, characters: int, count: int) -> pd.DataFrame:
    """The ladder of tokenizing, on `count` warm texts of so many characters."""
    path = _path(context)
    ladder = Ladder(
        "tokenizing", lambda: tokenizer_rungs.baseline(path), tokenizer_rungs.tokenizer_rungs(path),
        texts("prose", characters, count, context.seed), count, context.budget.share(0.15),
        forms=_forms(context),
    )  # fmt: skip
    return _climb(context, ladder, context.budget.min_blocks)


def climb_inference(context: Context) -> pd.DataFrame:
    """The ladder of inference, on a few requests of unequal length."""
    path, choose = _path(context), context.budget.choose
    new = choose(smoke=1, default=2, thorough=16)
    every = engine_rungs.engine_rungs(path)
    rungs = choose(smoke=every[-2:], default=every, thorough=every)
    rows, forms = _inference_work(context, len(rungs))
    work = exact_requests([9, 17, 12, 24, 30, 40, 21, 33][:rows], [new] * rows)
    ladder = Ladder(
        "inference", lambda: engine_rungs.baseline(path), rungs, work, rows,
        context.budget.share(0.12), forms=forms, slow=True,
    )  # fmt: skip
    return _climb(context, ladder, choose(smoke=4, default=4, thorough=20))


def climb_statistics(context: Context) -> pd.DataFrame:
    """The ladders of statistics (1,000 items) and of looking up 100 of 10,000 responses."""
    rng = np.random.default_rng(context.seed)
    times = rng.lognormal(1.0, 0.5, 1000)
    result = BatchResult.of((BatchResponse(str(i), i, 1.0) for i in range(10_000)), 1.0)
    wanted = [str(i) for i in rng.integers(0, 10_000, 100)]
    works = (
        ("statistics", STATS_BASELINE, STATS_RUNGS, (times, 1.0), 1000),
        ("look-up", LOOKUP_BASELINE, LOOKUP_RUNGS, (result, wanted), 100),
    )
    share, forms = context.budget.share(0.02), _forms(context)
    tables = [
        _climb(
            context, Ladder(part, base, rungs, work, items, share, forms), context.budget.min_blocks
        )
        for part, base, rungs, work, items in works
    ]
    return pd.concat(tables, ignore_index=True)


def measure_goals(context: Context) -> list[Goal]:
    """The goals that are not of speed; a smoke run has none, as they take a while."""
    engine = context.engine
    assert isinstance(engine, BatchInferenceEngine)  # `check` has seen to it
    if context.budget.name == "smoke":
        return []
    goals = [*goals_engine.growth(context, engine), *goals_engine.load(context)]
    return [replace(g, weights=context.weights_kept) for g in goals]
