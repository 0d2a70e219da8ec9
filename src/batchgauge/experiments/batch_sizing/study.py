"""The batch-sizing notebook's questions: which scenarios, which strategies, how good, how flat.

Decides nothing by itself: suggestions come from `sizing`, truths from fresh sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.experiments.batch_sizing.bench import Effort, Key
from batchgauge.experiments.batch_sizing.scoring import (
    SizingScenario,
    ask,
    fixed_size_rules,
    judged_by,
    same_step,
    score,
)
from batchgauge.experiments.batch_sizing.sweep import FreshSweep
from batchgauge.sizing import CostModel, Lengths, MemoryModel
from batchgauge.sizing.cost_model import BatchTimes, Costs, batch_times
from batchgauge.sizing.drift import Drift, check_drift
from batchgauge.sizing.memory_model import Peak
from batchgauge.statistics import WIDER, Interval, clustered_proportion
from batchgauge.text import percent

ADVISOR, PRIOR = "advisor", "roofline, uncalibrated"
OWN = "prompts"  # the workload whose question is the notebook's own
ASKED_ABOUT = ["part", "threads", "workload"]  # by these, scenarios share their prices
DRAWS = 1000  # of a bootstrap


MEMORY_WORK = Lengths.uniform(8, 4)


def scenarios(
    works: Mapping[str, Lengths],
    alone: Mapping[Key, Costs],
    memory: MemoryModel | None,
    sample: Sequence[str],
    plan: Effort,
    *,
    threads: int = 1,
    seed: int = 0,
) -> list[SizingScenario]:
    """All questions: workloads × latency budgets × memory budgets × threads, both parts.

    Latency budgets are multiples of what a batch of one takes by `alone`, a measurement apart
    from calibration and sweep, so that they bind at small, middle and large sizes on any
    machine; 0.5 is impossible on purpose. The seed moves each multiple by up to a tenth, so
    that another seed asks other questions.
    `threads` are those that all is asked about; about others, less.
    """
    rng = np.random.default_rng(seed)
    found: list[SizingScenario] = []
    for count, most in plan.largest:
        first = count == threads
        for name, work in works.items():
            if not first and name in {"prompts", "long prompt"}:
                continue
            one = batch_times(alone["engine", count], work, 1).latency_ms("request", "p95")
            for about in (None, 1.3, 1.6, 2.0, 2.5, 3.6, 5.0) if first else (None, 2.0, 3.0, 4.5):
                factor = about and round(about * float(rng.uniform(0.9, 1.1)), 3)
                label = scenario_name(name, factor, count)
                budget = None if factor is None else factor * one
                found.append(
                    SizingScenario(
                        label, "engine", work, most, budget, threads=count, workload=name
                    )
                )
    largest, short = dict(plan.largest)[threads], works["short"]

    def add(name: str, work: Lengths, budget: float | None, **more: Any) -> None:
        label = f"{name}, {threads} thr."
        whose = next((known for known, lengths in works.items() if lengths is work), "memory")
        more |= {"threads": threads, "workload": whose}
        found.append(SizingScenario(label, "engine", work, largest, budget, **more))

    single = batch_times(alone["engine", threads], short, 1)
    step: dict[str, Any] = {"latency_metric": "inter_token"}
    add("impossible latency", short, 0.5 * single.request_ms)
    add("first token ≤ 5× alone", short, 5 * single.ttft_ms, latency_metric="ttft")
    if single.inter_token_ms > 0.0:  # some engines take as long whatever they generate
        add("step ≤ 1.5× alone", short, 1.5 * single.inter_token_ms, **step)
        add("step ≤ 2.5× alone", works["ragged traffic"], 2.5 * single.inter_token_ms, **step)
    if memory:
        rooms = {
            f"memory for {percent(share)} of the largest": memory.peak_bytes(
                MEMORY_WORK, max(1, round(share * largest))
            )
            for share in (0.3, 0.6, 0.9)
        }
        rooms["memory below the weights"] = 0.9 * memory.weight_bytes
        for name, room in rooms.items():
            add(name, MEMORY_WORK, None, memory_budget_bytes=room)
    found += _tokenizer_scenarios(alone["tokenizer", 1], sample, plan.tokenizer_largest)
    return found


def _tokenizer_scenarios(cost: Costs, sample: Sequence[str], largest: int) -> list[SizingScenario]:
    work = Lengths.texts(sample)
    one = batch_times(cost, work, 8).request_ms
    return [
        SizingScenario(
            f"texts, {_budget(f)} of 8", "tokenizer", work, largest, f and f * one, workload="texts"
        )
        for f in (None, 1.5, 4.0, 16.0)
    ]


def scenario_name(workload: str, factor: float | None, threads: int) -> str:
    """How a scenario of a workload is called."""
    return f"{workload}, {_budget(factor)}, {threads} thr."


def _budget(factor: float | None) -> str:
    return "no budget" if factor is None else f"latency ≤ {factor:g}×"


@dataclass(frozen=True)
class Advice:
    """What was asked before anything was swept: strategy and scenario to size (0: none fits)."""

    questions: Sequence[SizingScenario]
    sizes: Mapping[tuple[str, str], int]

    def wanted(self) -> dict[Key, set[int]]:
        """Sizes that the sweep must include, by part and threads."""
        wanted: dict[Key, set[int]] = {}
        for scenario in self.questions:
            for strategy in (ADVISOR, PRIOR):
                size = self.sizes.get((strategy, scenario.name), 0)
                if size:
                    wanted.setdefault((scenario.part, scenario.threads), set()).add(size)
        return wanted


def advise(
    questions: Sequence[SizingScenario],
    models: Mapping[Key, CostModel],
    memory: MemoryModel | None,
    priors: Mapping[int, CostModel],
) -> Advice:
    """The advisor's answers, and those of a roofline that nobody calibrated, for comparison."""
    sizes: dict[tuple[str, str], int] = {}
    for scenario in questions:
        model = memory if scenario.part == "engine" else None
        key = (scenario.part, scenario.threads)
        sizes[ADVISOR, scenario.name] = ask(scenario, models[key], model)
        if scenario.part == "engine" and scenario.threads in priors:
            sizes[PRIOR, scenario.name] = ask(scenario, priors[scenario.threads], model)
    return Advice(questions, sizes)


def judge(
    advice: Advice,
    sweeps: Mapping[Key, FreshSweep],
    peaks: Sequence[Peak],
    weight_bytes: int,
    *,
    seed: int = 1,
) -> pd.DataFrame:
    """One row a scenario and strategy: score against the best of the fresh sweep.

    By batches that the advisor has not drawn (drawn by `seed`): a size is late
    where more than 5 % of them are. Of a single pass no fair score is known.

    Peaks of the memory scenarios' requests lie on the straight line between those measured.
    """
    even = (MEMORY_WORK.inputs[0], MEMORY_WORK.new_tokens[0])
    known = sorted((p.rows, p.peak_bytes) for p in peaks if (p.prompt_tokens, p.new_tokens) == even)
    columns = zip((0, 0.0), *known, strict=True)  # no batch, no bytes
    rows, held = (np.asarray(column, dtype=np.float64) for column in columns)

    def measured(work: Lengths, size: int) -> float:
        return weight_bytes + float(np.interp(size, rows, held)) if work is MEMORY_WORK else 0.0

    works = [question.lengths for question in advice.questions]
    again = {id(work): replace(work, seed=work.seed + seed + 1) for work in works}
    times = dict[tuple[int, int, int], BatchTimes]()

    def times_of(costs: Costs, work: Lengths) -> Callable[[int], BatchTimes]:
        def of(size: int) -> BatchTimes:
            key = (id(costs), id(work), size)
            if key not in times:
                times[key] = batch_times(costs, again[id(work)], size)
            return times[key]

        return of

    found = []
    for scenario in advice.questions:
        sweep = sweeps[scenario.part, scenario.threads]
        truth, *halves = (
            judged_by(scenario, times_of(costs, scenario.lengths), sweep.sizes, measured)
            for costs in (sweep.costs, *sweep.halves)
        )
        tried = {s: advice.sizes.get((s, scenario.name)) for s in (ADVISOR, PRIOR)}
        for strategy, size in {**tried, **fixed_size_rules(truth)}.items():
            if size is not None:
                scored = score(scenario, strategy, size, truth, halves)
                found.append(scored if halves else replace(scored, fair_score=math.nan))
    return pd.DataFrame(found).assign(exam_seed=seed)


def summaries(scores: pd.DataFrame) -> pd.DataFrame:
    """The goals' figures by strategy, best median first, over scenarios that tell something.

    Where the best size is the largest that was swept, the sweep did not see the end: such a
    scenario is left out, unless all are such. Shares of broken budgets include scenarios that
    no size keeps.
    """
    groups = _telling(scores).groupby("strategy", sort=False)
    frame = pd.DataFrame(
        {
            "scenarios": groups.size(),
            "median_score": groups["score"].median(),
            "p10_score": groups["score"].quantile(0.1),
            "median_fair_score": groups["fair_score"].median(),
            "p10_fair_score": groups["fair_score"].quantile(0.1),
            "late_share": groups["late"].mean(),
            "over_memory_share": groups["over_memory"].mean(),
            "median_log2_distance": groups["log2_distance"].median(),
            "median_good_share": groups["good_share"].median(),
        }
    ).reset_index()
    return frame.sort_values(["median_score", "p10_score"], ascending=False, ignore_index=True)


def _telling(scores: pd.DataFrame) -> pd.DataFrame:
    told = scores[scores["informative"]]
    return told if len(told) else scores


def spread(scores: pd.DataFrame) -> pd.DataFrame:
    """Median and worst tenth of every strategy's score with 95 % intervals, over the same.

    A row a strategy (`name`) and figure (`series`): `score`, `low`, `high`.
    """
    told = _telling(scores).groupby("strategy")
    rows = []
    for name in summaries(scores)["strategy"]:
        for series, share in (("median", 0.5), ("worst tenth", 0.1)):
            found = score_quantile(told.get_group(name), share)
            rows.append((name, series, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["name", "series", "score", "low", "high"])


def stability(
    advice: Advice, reruns: Sequence[CostModel], memory: MemoryModel | None
) -> pd.DataFrame:
    """The same questions after each recalibration: same size up to one step, or not."""
    rows = []
    for scenario in advice.questions:
        if scenario.part != "engine" or scenario.threads != reruns[0].threads:
            continue
        first = advice.sizes[ADVISOR, scenario.name]
        again = [ask(scenario, model, memory) for model in reruns]
        same = [same_step(first, size) for size in again]
        rows.append(
            {
                "scenario": scenario.name,
                "first": first,
                **{f"again_{number}": size for number, size in enumerate(again, 1)},
                "same_share": float(np.mean([True, *same])),
            }
        )
    return pd.DataFrame(rows)


def score_quantile(scores: pd.DataFrame, share: float, seed: int = 0) -> Interval:
    """A quantile of the scores of scenarios, with its 95 % interval.

    Questions about one workload on so many threads share what is wrong with its prices, so these
    groups are drawn anew (cluster bootstrap: Davison & Hinkley 1997, section 3.8), not scenarios.
    `WIDER`, as all intervals here are: it holds the value of another run, of other workloads.
    """
    groups = [group.to_numpy() for _, group in scores.groupby(ASKED_ABOUT)["score"]]
    rng, value = np.random.default_rng(seed), float(scores["score"].quantile(share))
    drawn = rng.integers(len(groups), size=(DRAWS, len(groups)))
    draws = [np.quantile(np.concatenate([groups[i] for i in some]), share) for some in drawn]
    low, high = (value + WIDER * (end - value) for end in np.quantile(draws, (0.025, 0.975)))
    return Interval(value, max(0.0, float(low)), min(1.0, float(high)))


def broken_share(scores: pd.DataFrame) -> Interval:
    """The share of scenarios in which a budget was broken, with its interval over such groups."""
    broken = (scores["late"] | scores["over_memory"]).groupby([scores[k] for k in ASKED_ABOUT])
    return clustered_proportion(broken.sum(), broken.count())


def fresh_errors(models: Mapping[Key, CostModel], sweeps: Mapping[Key, FreshSweep]) -> pd.DataFrame:
    """Model against fresh sweep, one row a phase and size; `calibrated` marks sizes it was fed."""
    rows = []
    for key, model in models.items():
        costs = sweeps[key].costs
        grids = {
            "prefill": (costs.prefill_positions, costs.prefill_values_ms, model.prefill),
            "decode": (costs.decode_rows, costs.decode_values_ms, model.decode),
        }
        for phase, (sizes, fresh, curve) in grids.items():
            if key[0] == "tokenizer" and phase == "decode":
                continue
            for size, ms in zip(sizes, fresh, strict=True):
                rows.append(
                    {
                        "part": key[0],
                        "threads": key[1],
                        "phase": phase if key[0] == "engine" else "tokenize",
                        "size": size,
                        "fresh_ms": ms,
                        "predicted_ms": float(curve(size)),
                        "calibrated": size in curve.knots,
                    }
                )
    frame = pd.DataFrame(rows)
    return frame.assign(relative_error=frame["predicted_ms"] / frame["fresh_ms"] - 1.0)


def unseen(errors: pd.DataFrame, phase: str) -> tuple[pd.DataFrame, str]:
    """Errors of a phase on sizes that were not calibrated, and how to call those sizes.

    A smoke run may calibrate at every size that it sweeps; then these are all there are.
    """
    rows = errors[errors["phase"] == phase]
    fresh = rows[~rows["calibrated"]]
    return (fresh, "never calibrated") if len(fresh) else (rows, "calibrated, all there are")


def drift(errors: pd.DataFrame, wrong: float = 1.0) -> Drift:
    """Whether the model of the first thread count holds on fresh decode times.

    `wrong` multiplies its predictions, to show that a model that is off is noticed.
    """
    rows = errors[(errors["phase"] == "decode") & (errors["threads"] == errors["threads"].min())]
    return check_drift((wrong * rows["predicted_ms"]).tolist(), rows["fresh_ms"].tolist())
