"""Sentences of the batch-sizing notebook, made from its data frames and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from batchgauge.experiments.batch_sizing.runs import Key
from batchgauge.experiments.batch_sizing.study import ADVISOR, unseen
from batchgauge.sizing import CostModel, MemoryModel
from batchgauge.sizing.memory_model import Peak
from batchgauge.sizing.probes import SteadyProbe
from batchgauge.sizing.suggestion import BatchSizeSuggestion


def calibrations(models: Mapping[Key, CostModel]) -> pd.DataFrame:
    """One row a calibration: what it cost, what it measured, how wrong it says it may be."""
    return pd.DataFrame(
        {
            "part": part,
            "threads": threads,
            "calibration_s": model.seconds,
            "sizes": len(model.decode.knots) if part == "engine" else len(model.prefill.knots),
            "held_out_sizes": len(model.held_out),
            "error_percent": 100 * model.error,
            "repeatability_percent": 100 * model.noise if model.noise else float("nan"),
        }
        for (part, threads), model in models.items()
    )


def cost_errors(errors: pd.DataFrame) -> str:
    """How far the cost model was off on fresh times of sizes that it never saw."""
    parts = []
    for phase in ("decode", "prefill", "tokenize"):
        rows, which = unseen(errors, phase)
        if len(rows):
            off = rows["relative_error"].abs()
            parts.append(
                f"{phase} {100 * off.median():.1f} % (90 % of {len(rows)} sizes {which} below "
                f"{100 * off.quantile(0.9):.1f} %)"
            )
    return f"Median error of the model on fresh times: {'; '.join(parts)}."


def memory(model: MemoryModel, fresh: Sequence[Peak]) -> str:
    """How far the memory model was off on peaks that it never saw."""
    whole = max(
        abs(model.batch_bytes(p.plan()) - p.peak_bytes) / (model.weight_bytes + p.peak_bytes)
        for p in fresh
    )
    return (
        f"On {len(fresh)} fresh batches the predicted peak above the weights is off by at most "
        f"{100 * model.worst_error(fresh):.1f} %; of the whole, weights included, by at most "
        f"{100 * whole:.2f} %."
    )


def scores(table: pd.DataFrame) -> str:
    """The advisor's figures against the goals, and the best other strategy beside it."""
    row = table[table["strategy"] == ADVISOR].iloc[0]
    other = table[table["strategy"] != ADVISOR].iloc[0]
    return (
        f"Over {row['scenarios']} scenarios the advisor's median score is "
        f"{row['median_score']:.3f} (goal 0.98), its 10th percentile {row['p10_score']:.3f} "
        f"(goal 0.93); with the best size picked and judged on different passes, which takes away "
        f"the luck of the best, {row['median_fair_score']:.3f} and {row['p10_fair_score']:.3f}. "
        f"It broke a latency budget in {100 * row['late_share']:.0f} % and a memory "
        f"budget in {100 * row['over_memory_share']:.0f} % of them. It is typically "
        f"{row['median_log2_distance']:.2f} octaves from the best size. The best other strategy, "
        f"'{other['strategy']}', has a median of {other['median_score']:.3f}, a 10th percentile "
        f"of {other['p10_score']:.3f}, and broke budgets in "
        f"{100 * (other['late_share'] + other['over_memory_share']):.0f} %."
    )


def flatness(scored: pd.DataFrame) -> str:
    """How easy the question was: shares of sizes that would have done."""
    rows = scored[scored["strategy"] == ADVISOR]
    free = rows.loc[rows["scenario"].str.contains("no budget"), "good_share"]
    tight = rows.loc[~rows["scenario"].str.contains("no budget"), "good_share"]
    return (
        f"How flat is it? Without a budget {100 * free.median():.0f} % of all sizes would have "
        f"scored 0.9 or more, so a guess does well there; under a budget only "
        f"{100 * tight.median():.0f} % would."
    )


def search_cost(models: Mapping[Key, CostModel], sweep_s: float, exhaustive_s: float) -> str:
    """What the advice cost beside what it replaces."""
    engine = [model for (part, _), model in models.items() if part == "engine"]
    first = engine[0].seconds
    return (
        f"Search cost: the calibration took {first:.1f} s. Running every workload once at every "
        f"swept size would take {exhaustive_s:,.0f} s (computed from the measured times): "
        f"{100 * first / exhaustive_s:.1f} % of that (goal at most 10 %), and "
        f"{100 * first / sweep_s:.0f} % of this notebook's own sweep, which times phases once "
        "for all workloads."
    )


def weather(probe: SteadyProbe) -> str:
    """How much the machine's speed swayed, by the control batch beside every run."""
    slow, fast = (q / probe.reference_ms for q in np.quantile(probe.controls_ms, (0.9, 0.1)))
    return (
        f"Times of this page are told at one reference speed, at which the control batch beside "
        f"every run takes {probe.reference_ms:.3g} ms. The {len(probe.controls_ms)} controls took "
        f"{fast:.2f} to {slow:.2f} times that (10th to 90th percentile): so much would a single "
        "raw time sway."
    )


def stable(table: pd.DataFrame, reruns: int) -> str:
    """How often a new calibration changes the advice."""
    enough = float((table["same_share"] >= 0.8).mean())
    return (
        f"Calibrated {reruns + 1} times, the advisor gave the same size up to one step (4, or a "
        f"fifth of the size) in at least 4 of 5 runs for {100 * enough:.0f} % of {len(table)} "
        f"scenarios; over all of them in {100 * table['same_share'].mean():.0f} % of runs. The "
        "repeats ran one round per size, less than the calibration itself."
    )


def whole(table: pd.DataFrame) -> str:
    """Whether phases added up are a real batch."""
    swept = table["sweep_ms"] / table["measured_ms"] - 1.0
    model = table["model_ms"] / table["measured_ms"] - 1.0
    return (
        f"{len(table)} whole batches, run for real: phases of the sweep added up are off by "
        f"{100 * swept.abs().median():.1f} % (median; worst {100 * swept.abs().max():.1f} %), the "
        f"cost model by {100 * model.abs().median():.1f} % (worst {100 * model.abs().max():.1f} %)."
    )


def adaptive(run: pd.DataFrame, budget_ms: float) -> str:
    """What the adaptive sizer did before, during and after the disturbance."""
    parts = []
    for phase, rows in run.groupby("phase", sort=False):
        late = int((~rows["within_budget"]).sum())
        parts.append(
            f"{phase}: {late} of {len(rows)} batches late, "
            f"mean size {rows['batch_size'].mean():.0f}"
        )
    return f"Budget {budget_ms:,.0f} ms. {'; '.join(parts)}."


def answer(
    suggestion: BatchSizeSuggestion, table: pd.DataFrame, errors: pd.DataFrame, workload: str
) -> str:
    """The page's first sentences."""
    row = table[table["strategy"] == ADVISOR].iloc[0]
    decode, which = unseen(errors, "decode")
    off = 100 * decode["relative_error"].abs().median()
    return (
        f"For '{workload}' requests on this machine: batches of {suggestion.size} "
        f"({suggestion.throughput_per_s.value:,.0f} {suggestion.unit}/s predicted). "
        f"{suggestion.limit}. Over {row['scenarios']} scenarios checked on fresh measurements "
        f"the advice reaches {100 * row['median_score']:.1f} % of the best throughput (median; "
        f"10th percentile {100 * row['p10_score']:.1f} %), breaking budgets in "
        f"{100 * (row['late_share'] + row['over_memory_share']):.0f} %; its decode times are "
        f"{off:.1f} % off on sizes {which}."
    )
