"""What the speedup notebook measures: three ladders, S(b) at every size, and every goal."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from batchgauge.baseline import engine_rungs, tokenizer_rungs
from batchgauge.baseline.stats import LOOKUP_BASELINE, LOOKUP_RUNGS, STATS_BASELINE, STATS_RUNGS
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.experiments.context import TYPICAL, Context, checked_sizes
from batchgauge.experiments.scaling import SLACK
from batchgauge.experiments.speedup import goals_engine, goals_tokenizing
from batchgauge.experiments.speedup.goals import Goal, as_frame, ratio, seconds
from batchgauge.experiments.speedup.ladder import ALONE, CUMULATIVE, Ladder, climb
from batchgauge.measuring import Labels, Stopping, measure
from batchgauge.request import BatchResponse, BatchResult, BatchStats
from batchgauge.workload import exact_requests, texts


def check(context: Context, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes in rising order. Raises UserError for a foreign implementation or bad sizes."""
    for what, name in (("tokenizer", context.tokenizer_name), ("engine", context.engine_name)):
        if name.partition(":")[0] != "numpy":
            raise UserError(
                f"The ladders take the core's own implementations apart; {what} is '{name}', "
                "expected 'numpy' (the peers notebook compares foreign ones)."
            )
    return checked_sizes(sizes, 100, "S(b)")


def _forms(context: Context) -> tuple[str, ...]:
    every = (ALONE, CUMULATIVE)
    return context.budget.choose(smoke=(CUMULATIVE,), default=every, thorough=every)


def _inference_work(context: Context, rungs: int) -> tuple[int, tuple[str, ...]]:
    """Requests of the ladder of inference, and its forms, for what the model costs."""
    rows, forms = context.budget.choose(smoke=2, default=2, thorough=8), _forms(context)
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
        context.budget.share(0.3), forms=forms, slow=True,
    )  # fmt: skip
    return _climb(context, ladder, choose(smoke=2, default=4, thorough=20))


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


def measure_goals(context: Context) -> pd.DataFrame:
    """Every goal of the core, one after the other."""
    model = context.model
    tokenizer = BPETokenizer.from_gguf(model or None, threads=1)
    engine = context.engine
    assert isinstance(engine, BatchInferenceEngine)  # `check` has seen to it
    groups: list[Callable[[], list[Goal]]] = [
        partial(goals_tokenizing.against_peers, context, tokenizer, model),
        partial(goals_tokenizing.strict, context, tokenizer),
        partial(goals_tokenizing.against_baseline, context, tokenizer, model),
        partial(goals_engine.decode, context, engine),
        partial(goals_engine.prefill, context, engine),
        partial(goals_engine.ragged, context, engine),
        partial(goals_engine.memory, context, engine),
        partial(goals_engine.load, context),
        partial(statistics, context),
    ]
    if context.budget.name == "smoke":  # shows that everything works; the rest takes minutes
        groups = [groups[1], groups[3], groups[-1]]
    goals: list[Goal] = []
    for group in tqdm(groups, desc="Goals", leave=False):
        goals += group()
        gc.collect()
    of_model = {"decode", "prefill", "ragged", "memory", "load"}
    goals = [replace(g, weights=context.weights_kept) if g.part in of_model else g for g in goals]
    return as_frame(goals, comparable=context.is_reference)


def statistics(context: Context) -> list[Goal]:
    """Statistics of 100 and 10,000 items, and look-up among 100,000 against among 10."""
    rng = np.random.default_rng(context.seed)
    goals = []
    for count, target in ((100, 50.0), (10_000, 1000.0)):
        call = partial(BatchStats.from_durations, rng.lognormal(1, 0.5, count), 1.0)
        stopping = Stopping(seconds(context) / 4, least=10, most=1000)
        times = 1e3 * measure(call, Labels("statistics"), stopping=stopping).steady_ms
        low, high = np.percentile(times, [2.5, 97.5])
        goals.append(
            Goal("statistics", f"{count:,} items", target, "lower", float(np.median(times)),
                 float(low), float(high), "µs", "median; central 95 % of samples")
        )  # fmt: skip

    def finder(count: int) -> Callable[[], object]:
        rows = (BatchResponse(str(i), i, 1.0) for i in range(count))
        return partial(BatchResult.of(rows, 1.0).get_by_id, str(count - 1))

    goals.append(
        ratio(
            context,
            "statistics", "look-up among 100,000 responses over look-up among 10, in time", 1.5,
            {"of 10": finder(10), "of 100,000": finder(100_000)}, invert=True,
        )
    )  # fmt: skip
    return goals
