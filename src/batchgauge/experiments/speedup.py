"""The speedup notebook: three ladders, and every goal in one table."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.tokenizer import BPETokenizer
from batchgauge.experiments import goals_engine, goals_tokenizing
from batchgauge.experiments.goals import Bench, Goal, as_frame
from batchgauge.measuring import measure
from batchgauge.reporting.profiles import Profile
from batchgauge.request import BatchResponse, BatchResult, BatchStats


def measure_all(budget: Profile, *, model: str, seed: int, threads: int) -> pd.DataFrame:
    """Every goal of the core on `model` (empty: the default), one after the other."""
    bench = Bench(budget, budget.share(0.008), seed, threads)
    tokenizer = BPETokenizer.from_gguf(model or None)
    engine = BatchInferenceEngine.from_gguf(model or None)
    groups: list[Callable[[], list[Goal]]] = [
        partial(goals_tokenizing.against_peers, bench, tokenizer, model),
        partial(goals_tokenizing.strict, bench, tokenizer),
        partial(goals_tokenizing.against_baseline, bench, tokenizer, model),
        partial(goals_engine.decode, bench, engine),
        partial(goals_engine.prefill, bench, engine),
        partial(goals_engine.ragged, bench, engine),
        partial(goals_engine.memory, bench, engine),
        partial(goals_engine.load, bench, model),
        partial(statistics, bench),
    ]
    goals: list[Goal] = []
    for group in tqdm(groups, desc="Goals", leave=False):
        goals += group()
        gc.collect()
    return as_frame(goals)


def statistics(bench: Bench) -> list[Goal]:
    """Statistics of 100 and 10,000 items, and look-up among 100,000 against among 10."""
    rng = np.random.default_rng(bench.seed)
    goals = []
    for count, target in ((100, 50.0), (10_000, 1000.0)):
        call = partial(BatchStats.from_durations, rng.lognormal(1, 0.5, count), 1.0)
        times = 1e3 * measure(call, name="statistics", budget_s=bench.seconds / 4).steady_ms
        low, high = np.percentile(times, [2.5, 97.5])
        goals.append(
            Goal("statistics", f"{count:,} items", target, "lower", float(np.median(times)),
                 float(low), float(high), "µs", "median; central 95 % of samples")
        )  # fmt: skip

    def finder(count: int) -> Callable[[], object]:
        rows = (BatchResponse(str(i), i, 1.0) for i in range(count))
        return partial(BatchResult.of(rows, 1.0).get_by_id, str(count - 1))

    goals.append(
        bench.ratio(
            "statistics", "look-up among 100,000 responses over look-up among 10, in time", 1.5,
            {"of 10": finder(10), "of 100,000": finder(100_000)}, invert=True,
        )
    )  # fmt: skip
    return goals
