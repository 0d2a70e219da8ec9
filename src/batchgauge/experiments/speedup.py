"""The speedup notebook: three ladders, S(b) at every size, and every goal in one table."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from batchgauge.baseline.engine import BaselineEngine
from batchgauge.baseline.tokenizer import BaselineTokenizer
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.tokenizer import BPETokenizer
from batchgauge.experiments import goals_engine, goals_tokenizing
from batchgauge.experiments.goals import Bench, Goal, as_frame
from batchgauge.experiments.goals_engine import requests
from batchgauge.experiments.ladder import between
from batchgauge.measuring import compare_interleaved, measure
from batchgauge.reporting import plots
from batchgauge.request import BatchResponse, BatchResult, BatchStats
from batchgauge.workload import texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from batchgauge.reporting.profiles import Profile

BASELINE, STRICT, OVER_BASELINE = "baseline", "same implementation", "over the baseline"


def measure_all(budget: Profile, *, model: str, seed: int, threads: int) -> pd.DataFrame:
    """Every goal of the core on `model` (empty: the default), one after the other."""
    bench = Bench(budget, budget.share(0.007), seed, threads)
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


def tokenizing_by_size(bench: Bench, sizes: Sequence[int], *, model: str) -> pd.DataFrame:
    """Tokenizing at every batch size, strict (over ours, one at a time) and over the baseline."""
    ours, baseline = (
        BPETokenizer.from_gguf(model or None),
        BaselineTokenizer.from_gguf(model or None),
    )
    rows = []
    for size in tqdm(sizes, desc="Tokenizing by batch size", leave=False):
        chosen = texts("prose", 200, size, bench.seed)
        found = compare_interleaved(
            {
                BASELINE: partial(_each, baseline.encode, chosen),
                "one at a time": partial(_each, ours.encode, chosen),
                "batch": partial(ours.encode_many, chosen),
            },
            benchmark=f"speedup/tokenise/batch={size}", items=size, budget_s=bench.seconds,
            min_blocks=bench.budget.min_blocks, seed=bench.seed, threads=bench.threads,
            part="tokenise", control=False, aa=False, progress=False,
        )  # fmt: skip
        strict, over = between(found, "one at a time", "batch"), found.ratio("batch")
        rows += [
            (STRICT, size, strict.value, strict.low, strict.high),
            (OVER_BASELINE, size, over.value, over.low, over.high),
        ]
    return _by_size(rows, "tokenizing")


def inference_by_size(bench: Bench, sizes: Sequence[int], *, model: str) -> pd.DataFrame:
    """Whole requests of one shape at every batch size, strict and over the baseline engine."""
    ours = BatchInferenceEngine.from_gguf(model or None)
    baseline = BaselineEngine.from_gguf(model or None)
    names = {size: f"batch {size}" for size in sorted({1, *sizes})}
    calls: dict[str, Callable[[], object]] = {
        BASELINE: partial(baseline.infer_batch, requests([16], [8]))
    }
    for size, name in names.items():
        calls[name] = partial(ours.infer_batch, requests([16] * size, [8] * size))
    items = {BASELINE: 1} | {name: size for size, name in names.items()}
    found = compare_interleaved(
        calls, benchmark="speedup/inference", items=items,
        budget_s=bench.seconds, min_blocks=bench.budget.choose(smoke=2, default=5, thorough=12),
        seed=bench.seed, threads=bench.threads, part="inference", control=False, aa=False,
    )  # fmt: skip
    rows = []
    for size, name in names.items():
        over = found.ratio(name)
        rows.append((OVER_BASELINE, size, over.value, over.low, over.high))
        if size > 1:
            strict = between(found, names[1], name, scale=size)
            rows.append((STRICT, size, strict.value, strict.low, strict.high))
        else:
            rows.append((STRICT, 1, 1.0, 1.0, 1.0))
    return _by_size(rows, "inference")


def _each(fn: Callable[[str], object], chosen: Sequence[str]) -> list[object]:
    return [fn(text) for text in chosen]


def _by_size(rows: list[tuple[str, int, float, float, float]], part: str) -> pd.DataFrame:
    columns = ["implementation", "batch_size", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).assign(part=part)


def draw_by_size(table: pd.DataFrame, target: tuple[int, float]) -> Figure:
    """S(b), strict and over the baseline, beside the plan's target; logarithmic."""
    fig = plots.speedup(
        table,
        title=by_size_sentence(table),
        target=(target[1], f"plan's target at batch {target[0]}: {target[1]:g} ×"),
        ylabel="speedup (×, logarithmic)",
    )
    ax = fig.axes[0]
    ax.set_yscale("log")
    ax.set_ylim(0.5, 2 * table["high"].max())
    return fig


def by_size_sentence(table: pd.DataFrame) -> str:
    """Both speedups at the largest batch."""
    last = table[table["batch_size"] == table["batch_size"].max()].set_index("implementation")
    strict, over = last.loc[STRICT], last.loc[OVER_BASELINE]
    return (
        f"{str(strict['part']).capitalize()} in batches of {strict['batch_size']}: "
        f"{strict['value']:.2f} × one at a time, {over['value']:.3g} × the baseline"
    )
