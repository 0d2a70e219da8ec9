"""What the sizing notebook's tables say, in sentences made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from batchgauge.experiments.batch_sizing.scoring import GOAL, P10_GOAL
from batchgauge.experiments.batch_sizing.study import ADVISOR, OWN
from batchgauge.experiments.batch_sizing.sweep import FreshSweep
from batchgauge.reporting import Answer, Section, Tile
from batchgauge.sizing.advice.answer import MeasuredAdvice
from batchgauge.sizing.probes import SteadyProbe
from batchgauge.sizing.suggestion import BatchSizeSuggestion
from batchgauge.text import counted, percent, span
from batchgauge.text import figures as rounded

_ADDS_UP = 0.5  # by so large a share phases together may be off whole batches; beyond: noise


def scores_sentence(table: pd.DataFrame) -> str:
    """The advisor's figures against the goals, and the best other strategy beside it."""
    row, other = ours_and_best_other(table)
    fair = (
        "; with the best size picked and judged on different passes, which takes away the luck of "
        f"the best, {row['median_fair_score']:.3f} and {row['p10_fair_score']:.3f}"
        if math.isfinite(row["median_fair_score"])
        else ""
    )
    return (
        f"Over {row['scenarios']} scenarios the advisor's median score is "
        f"{row['median_score']:.3f} (goal {GOAL:.2f}), its 10th percentile {row['p10_score']:.3f} "
        f"(goal {P10_GOAL:.2f}){fair}. It broke a latency budget in {percent(row['late_share'])} "
        f"and a memory budget in {percent(row['over_memory_share'])} of them. It is typically "
        f"{row['median_log2_distance']:.2f} octaves from the best size. The other strategy with "
        f"the best worst tenth, '{other['strategy']}', has a median of "
        f"{other['median_score']:.3f}, a 10th percentile of {other['p10_score']:.3f}, and broke "
        f"budgets in {percent(other['late_share'] + other['over_memory_share'])}."
    )


def open_sentence(scored: pd.DataFrame) -> str:
    """How many scenarios tell nothing, because the sweep ended before the best size."""
    apart = scored[~scored["informative"]]
    if apart.empty:
        return "In every scenario the best size lies below the largest that was swept."
    return (
        f"In {len(apart)} further scenarios the best size is the largest that was swept, so "
        f"they are not scored above; the advice reaches {100 * apart['score'].median():.0f} % of "
        "it there (median)."
    )


def flatness_sentence(scored: pd.DataFrame) -> str:
    """How easy the question was: shares of sizes that would have done."""
    without = scored["scenario"].str.contains("no budget")
    said = []
    for where, rows in (("without a budget", without), ("under a budget", ~without)):
        share = scored.loc[rows, "good_share"].median()
        if pd.notna(share):  # some scenario is of this kind
            said.append(f"{where} {percent(share)}")
    return f"How flat is it? Of all sizes would have scored 0.9 or more: {', '.join(said)}."


def at_size(
    frames: Mapping[str, pd.DataFrame], workload: str, own: BatchSizeSuggestion
) -> tuple[float, float, str]:
    """Throughput and latency (ms, 95th percentile) at the suggested size, and on what they rest.

    Measured afresh where one of `frames` has that size of the workload, else predicted.
    """
    for frame in frames.values():
        mine = frame[(frame["workload"] == workload) & (frame["batch_size"] == own.size)]
        for row in mine.to_dict("records"):
            return row["tokens_per_s"], row["latency_ms"], "measured"
    return own.throughput_per_s.value, own.latency_ms.value, "predicted"


def budget_sentence(frame: pd.DataFrame, workload: str, budget_ms: float) -> str:
    """What the suggested size gives, and the best one under a latency budget."""
    rows = frame[frame["workload"] == workload]
    told = "batches of {} do {:,.0f} tokens/s and answer in {} ms (95th percentile)".format
    ours = rows[rows["suggested"]]
    parts = [
        told(row["batch_size"], row["tokens_per_s"], rounded(row["latency_ms"]))
        for row in ours.to_dict("records")
    ]
    within = rows[rows["latency_ms"] <= budget_ms]
    if within.empty:
        parts.append(f"no size answers within {rounded(budget_ms)} ms")
    elif not (best := within.sort_values("tokens_per_s").iloc[-1])["suggested"]:
        rate = f"{best['tokens_per_s']:,.0f} tokens/s"
        size = f"batches of {best['batch_size']:.0f}"
        parts.append(f"within {rounded(budget_ms)} ms {size} do {rate}")
    said = "; ".join(parts)
    return said[0].upper() + said[1:]


def adds_up(table: pd.DataFrame) -> bool:
    """Whether whole batches take what their phases take together, by half in the median."""
    return bool((table["sweep_ms"] / table["measured_ms"] - 1.0).abs().median() <= _ADDS_UP)


def passes(sweep: FreshSweep) -> str:
    """How often each size was timed: `4 passes, 1 process`."""
    counts = pd.DataFrame(sweep.rows()).groupby(["phase", "rows", "units"]).size()
    return f"{span(counts.tolist())} {'pass' if counts.max() == 1 else 'passes'}, 1 process"


def whole_sentence(table: pd.DataFrame) -> str:
    """Whether phases added up are a real batch."""
    swept, model = (
        100 * (table[column] / table["measured_ms"] - 1.0).abs()
        for column in ("sweep_ms", "model_ms")
    )
    return (
        f"{counted(len(table), 'whole batch', 'whole batches')}, run for real: "
        f"phases of the sweep added up are off by {swept.median():.1f} % (median; worst "
        f"{swept.max():.1f} %), the cost model by "
        f"{model.median():.1f} % (worst {model.max():.1f} %)."
        + " So phases of this engine cannot be timed apart, and what follows from them (here and "
        "below: predictions, sweep, budgets) says nothing about it." * (not adds_up(table))
    )


def stable_sentence(table: pd.DataFrame, reruns: int) -> str:
    """How often a new calibration changes the advice."""
    enough = float((table["same_share"] >= 0.8).mean())
    return (
        f"Calibrated {reruns + 1} times, the advisor gave the same size up to one step (4, or a "
        f"fifth of the size) in at least 4 of 5 runs for {100 * enough:.0f} % of {len(table)} "
        f"scenarios; over all of them in {100 * table['same_share'].mean():.0f} % of runs. The "
        "repeats ran one round per size, less than the calibration itself."
    )


def ours_and_best_other(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The rows of the advisor, and of the rule whose worst tenth is the best but for it."""
    ours = table[table["strategy"] == ADVISOR].iloc[0]
    others = table[table["strategy"] != ADVISOR]
    return ours, others.sort_values(["p10_score", "median_score"], ascending=False).iloc[0]


def answer(
    own: BatchSizeSuggestion, strategies: Section, chosen: Section,
    whole: MeasuredAdvice | None = None,
) -> Answer:  # fmt: skip
    """What to run for the workload's requests, what stops it, and how good such advice is here.

    Where whole batches decide, their answer comes first, and the cost model's beside it.
    """
    rate, latency, basis = at_size(chosen.frames(), OWN, own)
    gives = (
        f"{rate:,.0f} {own.unit}/s, answered in {rounded(latency)} ms ({basis}, 95th percentile)"
    )
    run = f"For these requests run batches of {own.size}: {gives}. {own.limit}."
    if whole:
        run = (
            f"{' '.join(whole.sentences()[:2])} The cost model says batches of {own.size}: "
            f"{gives}. {own.limit}."
        )
    size = Tile(
        "size", f"Run batches of {own.size}",
        f"{rate:,.0f} {own.unit}/s {basis}; 95 of 100 batches are answered in {rounded(latency)} "
        f"ms. {own.limit}.",
    )  # fmt: skip
    if whole:
        size = Tile("size", whole.sentences()[0].partition(":")[0], whole.sentences()[1])
    if strategies.shown is None:
        measured = " ".join(whole.sentences()[:2]) if whole else own.sentence()
        said = f"{measured} Phases of this engine cannot be timed apart, so advice is not scored."
        return Answer(said, chosen.name, [size])
    row, other = ours_and_best_other(strategies.shown)
    broken = row["late_share"] + row["over_memory_share"]
    text = (
        f"{run} In the worst tenth of {row['scenarios']} scenarios the advice still reaches "
        f"{percent(row['p10_score'])} of the best size's throughput, the best other rule "
        f"('{other['strategy']}') {percent(other['p10_score'])}; it breaks a budget in "
        f"{percent(broken)}."
    )
    rule = Tile(
        "gain", "",
        f"In the worst tenth of scenarios the advice reaches {percent(row['p10_score'])} of the "
        f"best size, the best other rule ('{other['strategy']}') {percent(other['p10_score'])}.",
    )  # fmt: skip
    return Answer(text, chosen.name, [size, rule])


def reference_sentence(probe: SteadyProbe) -> str:
    """At what speed times are told, and how much it varied by the controls."""
    said = []
    for rows, steady in (("a few rows", probe.few), ("many", probe.many)):
        slow, fast = (q / steady.reference_ms for q in np.quantile(steady.controls_ms, (0.9, 0.1)))
        said.append(
            f"of {rows} {rounded(steady.reference_ms)} ms (its {len(steady.controls_ms)} runs took "
            f"{fast:.2f} to {slow:.2f} times that, 10th to 90th percentile)"
        )
    return (
        "Times of this page are told at one reference speed, at which the control batch beside "
        f"every run takes, {'; '.join(said)}. So much would a single raw time vary."
    )
