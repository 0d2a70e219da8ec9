"""The speedup notebook: three ladders, S(b) at every size, and every goal in one table."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from batchgauge.baseline import engine_rungs, tokenizer_rungs
from batchgauge.baseline.stats import LOOKUP_BASELINE, LOOKUP_RUNGS, STATS_BASELINE, STATS_RUNGS
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.experiments.context import checked_sizes
from batchgauge.experiments.speedup import goals_engine, goals_peers, goals_tokenizing
from batchgauge.experiments.speedup.by_size import (
    OVER_BASELINE,
    inference_by_size,
    tokenizing_by_size,
)
from batchgauge.experiments.speedup.goals import Bench, Goal, as_frame
from batchgauge.experiments.speedup.goals import summary as goals_summary
from batchgauge.experiments.speedup.goals_engine import requests
from batchgauge.experiments.speedup.ladder import ALONE, CUMULATIVE, Ladder, climb
from batchgauge.measuring import measure
from batchgauge.request import BatchResponse, BatchResult, BatchStats
from batchgauge.workload import texts

if TYPE_CHECKING:
    from batchgauge.reporting import Report
    from batchgauge.reporting.profiles import Profile


@dataclass(frozen=True, slots=True)
class Study:
    """What the speedup notebook measures, section by section."""

    budget: Profile
    model: str
    sizes: tuple[int, ...]
    threads: int
    seed: int

    @classmethod
    def open(
        cls,
        budget: Profile,
        *,
        tokenizer: str,
        engine: str,
        model: str,
        batch_sizes: Sequence[int],
        threads: int,
        seed: int,
    ) -> Study:
        """Check the parameters. Raises UserError for a foreign implementation or bad sizes."""
        for what, name in (("tokenizer", tokenizer), ("engine", engine)):
            if name != "numpy":
                raise UserError(
                    f"The ladders take the core's own implementations apart; {what} is '{name}', "
                    "expected 'numpy' (the peers notebook compares foreign ones)."
                )
        sizes = checked_sizes(batch_sizes, 100, "S(b)")
        return cls(budget, model, sizes, threads, seed)

    def _bench(self, share: float) -> Bench:
        return Bench(self.budget, self.budget.share(share), self.seed, self.threads)

    def _climb(self, ladder: Ladder, min_blocks: int) -> pd.DataFrame:
        return climb(ladder, min_blocks=min_blocks, seed=self.seed, threads=self.threads)

    @property
    def _forms(self) -> tuple[str, ...]:
        every = (ALONE, CUMULATIVE)
        return self.budget.choose(smoke=(CUMULATIVE,), default=every, thorough=every)

    @property
    def _path(self) -> Path | None:
        return Path(self.model) if self.model else None

    def climb_tokenizing(self) -> pd.DataFrame:
        """The ladder of tokenizing, on 32 warm texts of 200 characters."""
        ladder = Ladder(
            "tokenizing", lambda: tokenizer_rungs.baseline(self._path),
            tokenizer_rungs.tokenizer_rungs(self._path), texts("prose", 200, 32, self.seed), 32,
            self.budget.share(0.15), forms=self._forms,
        )  # fmt: skip
        return self._climb(ladder, self.budget.min_blocks)

    def climb_inference(self) -> pd.DataFrame:
        """The ladder of inference, on a few requests of unequal length."""
        rows = self.budget.choose(smoke=2, default=2, thorough=8)
        new = self.budget.choose(smoke=1, default=2, thorough=16)
        every = engine_rungs.engine_rungs(self._path)
        rungs = self.budget.choose(smoke=every[-2:], default=every, thorough=every)
        work = requests([9, 17, 12, 24, 30, 40, 21, 33][:rows], [new] * rows)
        ladder = Ladder(
            "inference", lambda: engine_rungs.baseline(self._path),
            rungs, work, rows, self.budget.share(0.3),
            forms=self._forms, slow=True,
        )  # fmt: skip
        return self._climb(ladder, self.budget.choose(smoke=2, default=4, thorough=20))

    def climb_statistics(self) -> pd.DataFrame:
        """The ladders of statistics (1,000 items) and of looking up 100 of 10,000 responses."""
        rng = np.random.default_rng(self.seed)
        times = rng.lognormal(1.0, 0.5, 1000)
        result = BatchResult.of((BatchResponse(str(i), i, 1.0) for i in range(10_000)), 1.0)
        wanted = [str(i) for i in rng.integers(0, 10_000, 100)]
        share = self.budget.share(0.02)
        both = (
            Ladder(
                "statistics",
                STATS_BASELINE,
                STATS_RUNGS,
                (times, 1.0),
                1000,
                share,
                forms=self._forms,
            ),
            Ladder(
                "look-up",
                LOOKUP_BASELINE,
                LOOKUP_RUNGS,
                (result, wanted),
                100,
                share,
                forms=self._forms,
            ),
        )
        tables = [self._climb(ladder, self.budget.min_blocks) for ladder in both]
        return pd.concat(tables, ignore_index=True)

    def tokenizing_by_size(self) -> pd.DataFrame:
        """S(b) of tokenizing at every size."""
        return tokenizing_by_size(self._bench(0.008), self.sizes, model=self.model)

    def inference_by_size(self) -> pd.DataFrame:
        """S(b) of inference at every size, the largest at most 4 in a smoke run."""
        most = self.budget.choose(smoke=4, default=100, thorough=100)
        sizes = [size for size in self.sizes if size <= most] or [1]
        return inference_by_size(self._bench(0.14), sizes, model=self.model)

    def goals(self) -> pd.DataFrame:
        """Every goal of the core, measured now."""
        return measure_all(self.budget, model=self.model, seed=self.seed, threads=self.threads)


def score(report: Report, words: pd.DataFrame, reached: pd.DataFrame) -> None:
    """Put tokenizing over the baseline and the goals of decode on the scorecard."""
    over = words[(words["implementation"] == OVER_BASELINE) & (words["batch_size"] <= 32)]
    row = over.iloc[-1]
    size = row["batch_size"]
    report.score(
        "tokenizing_over_baseline", label=f"Tokenizing at batch {size} over our baseline",
        goal=100.0, value=row["value"], low=row["low"], high=row["high"], unit="×",
    )  # fmt: skip
    decode = reached[reached["goal"] == "S(8) of decode alone"].iloc[0]
    report.score(
        "decode_batch_8", label="Decode alone, S(8)", goal=5.0, value=decode["value"],
        low=decode["low"], high=decode["high"], unit="×",
    )  # fmt: skip


def summary(words: pd.DataFrame, answers: pd.DataFrame, reached: pd.DataFrame) -> str:
    """The answer: how high each ladder goes, which rungs paid most and not at all, the goals."""
    parts = []
    for table in (words, answers):
        whole = table[(table["form"] == CUMULATIVE) & (table["status"] == "ok")]
        if whole.empty:
            continue
        top, best = whole.iloc[-1], whole.sort_values("step_x").iloc[-1]
        idle = int((whole["step_low_x"] <= 1).sum())
        parts.append(
            f"{str(top['part']).capitalize()}: {top['speedup_x']:.3g} × "
            f"[{top['low_x']:.3g}, {top['high_x']:.3g}] over the baseline, most of it from "
            f"“{best['rung']}” ({best['step_x']:.3g} ×); {idle} of {len(whole)} rungs did not pay."
        )
    return " ".join([*parts, goals_summary(reached)])


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
        partial(goals_peers.against_peers, bench, engine, model),
    ]
    if budget.name == "smoke":  # shows that everything works; the rest takes minutes
        groups = [groups[1], groups[3], groups[-2]]
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
