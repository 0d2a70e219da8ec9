"""The batch-sizing notebook's questions, one function each: run, drawn and put into words.

Their order is that of the notebook: what is measured to judge the advice comes after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median

import numpy as np
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.experiments.batch_sizing import figures, peaks, runs, sentences, study, tables
from batchgauge.experiments.batch_sizing.bench import Bench, Key
from batchgauge.experiments.batch_sizing.scoring import GOAL, MEMORY_GOAL, P10_GOAL
from batchgauge.experiments.batch_sizing.study import ADVISOR, OWN, Advice, unseen
from batchgauge.experiments.batch_sizing.sweep import FreshSweep
from batchgauge.reporting import Score, Section
from batchgauge.sizing import BatchSizeSuggestion, CostModel, MemoryModel
from batchgauge.sizing.cost_model import batch_times
from batchgauge.sizing.memory_model import Peak
from batchgauge.sizing.probes import SteadyProbe
from batchgauge.text import counted, percent
from batchgauge.text import figures as rounded

Costs = Mapping[Key, CostModel]
LINES = 6  # of the dense sweep's picture
answer = sentences.answer


def machine(bench: Bench) -> Section:
    """What is known of the machine."""
    table = pd.DataFrame(bench.hardware.facts(), columns=["what", "value"])
    return Section("machine", {}, "", table, "What the process may use, and how fast it is.")


def calibrate(bench: Bench) -> tuple[dict[Key, CostModel], Section]:
    """Cost models by part and threads; what they cost, and how wrong they say they may be."""
    models = runs.calibrate(bench)
    table = pd.DataFrame(
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
    caption = "Calibrations: what they cost, and how wrong they say they may be."
    return models, Section("calibrations", {"calibrations": table}, "", table, caption)


def memory(bench: Bench) -> tuple[MemoryModel | None, Sequence[Peak], Section]:
    """The memory model, and fresh peaks that it never saw.

    None and no peaks for an engine that does not show its model's shape: it is calibrated,
    swept and scored like any other, but its memory is neither predicted nor checked.
    """
    if bench.shape is None:
        finding = (
            f"The engine '{bench.engine.name}' does not show its model's shape: its memory is "
            "neither predicted nor checked here, and memory budgets are not asked about."
        )
        return None, [], Section("sizing_memory_check", {}, finding)
    model, fitted = peaks.fit_memory(bench.engine, bench.shape)
    fresh = peaks.fresh_peaks(bench.engine, bench.largest)
    table = tables.peaks_table(model, fitted, fresh)
    rows = table[table["use"] == "fresh"]
    off = (rows["predicted_bytes"] - rows["measured_bytes"]).abs()
    worst = 100 * float((off / rows["measured_bytes"]).max())
    whole = 100 * (off / (model.weight_bytes + rows["measured_bytes"])).max()
    finding = (
        f"On {len(rows)} fresh batches the predicted peak above the weights is off by at most "
        f"{worst:.1f} %; of the whole, weights included, by at most {whole:.2f} %."
    )
    score = Score(
        "memory_prediction_error", "Memory prediction, worst error on fresh batches",
        MEMORY_GOAL, worst, unit="%", better="lower",
    )  # fmt: skip
    section = Section(
        "sizing_memory_check", {"memory": table}, finding,
        picture=partial(figures.memory_check, table, MEMORY_GOAL),
        picture_caption="Predicted over measured peak memory of a batch, above the weights.",
        rests_on=f"{counted(len(table), 'batch', 'batches')}, 1 process",
        targets=[score],
    )  # fmt: skip
    return model, fresh, section


def advise(bench: Bench, models: Costs, memory: MemoryModel | None) -> Advice:
    """The advisor's sizes for all scenarios; their seed moves the budgets a little."""
    questions = study.scenarios(
        bench.works, runs.alone(bench), memory, bench.texts, bench.effort,
        threads=bench.threads, seed=bench.exam_seed,
    )  # fmt: skip
    return study.advise(questions, models, memory, bench.priors)


def suggestion(own: BatchSizeSuggestion) -> Section:
    """A suggestion in words, and the sizes that were not chosen, thinned to a page."""
    rejected = [
        {
            "batch_size": row.size,
            "throughput_per_s": row.throughput_per_s.value,
            "latency_ms": row.latency_ms.value,
            **({"memory_mib": known / 2**20} if (known := row.memory_bytes.value) else {}),
            "why_not": row.rejected,
        }
        for row in own.rejected
    ]
    return Section(
        "suggestion", {}, own.sentence(),
        pd.DataFrame(rejected[:: max(1, len(rejected) // 12)]),
        "Your own question (prompts of the workload): sizes that were not chosen, each with its "
        "reason.",
    )  # fmt: skip


def sweep(bench: Bench, advice: Advice) -> dict[Key, FreshSweep]:
    """Everything timed anew and densely, the suggested sizes among it."""
    return runs.fresh_sweeps(bench, advice.wanted())


def cost_errors(models: Costs, sweeps: Mapping[Key, FreshSweep]) -> Section:
    """How far the cost models were off on fresh times."""
    errors = study.fresh_errors(models, sweeps)
    timings = pd.DataFrame(
        {"part": part, **row} for (part, _), sweep in sweeps.items() for row in sweep.rows()
    )
    halves = {t: model.half_width for (part, t), model in models.items() if part == "engine"}
    off, timeless = {}, []
    for phase in ("decode", "prefill", "tokenize"):
        rows, which = unseen(errors, phase)
        shares = 100 * rows["relative_error"].abs()
        off[phase] = (shares[np.isfinite(shares)], which)
        if len(shares) > len(off[phase][0]):
            timeless.append(phase)
    medians = {
        phase: float(percent.median()) for phase, (percent, _) in off.items() if len(percent)
    }
    parts = [
        f"{phase} {percent.median():.1f} % (90 % of {len(percent)} sizes {which} below "
        f"{percent.quantile(0.9):.1f} %)"
        for phase, (percent, which) in off.items()
        if len(percent)
    ]
    return Section(
        "sizing_cost_curves", {"cost_errors": errors, "sweep": timings},
        f"Median error of the model on fresh times: {'; '.join(parts)}."
        + f" Left out, as it took no time that can be told: {' and '.join(timeless)} of some sizes."
        * bool(timeless),
        picture=partial(figures.cost_curves, errors, halves, medians),
        picture_caption="The cost model with its 95 % band over fresh times; filled marks are "
        "sizes that the calibration had measured. Errors are medians over the others.",
        rests_on=sentences.passes(next(s for (part, _), s in sweeps.items() if part == "engine")),
    )  # fmt: skip


def reference_speed(probe: SteadyProbe) -> Section:
    """How much the machine's speed varied, by the control batches beside every run."""
    return Section("reference_speed", {}, sentences.reference_sentence(probe))


def dense_sweep(
    bench: Bench, models: Costs, sweeps: Mapping[Key, FreshSweep], advice: Advice
) -> Section:
    """Throughput of every size, without budgets, beside what was predicted and suggested."""
    threads = bench.threads
    dense = tables.dense_throughput(bench.works, sweeps["engine", threads], bench.cost(models))
    suggested = {
        name: advice.sizes[ADVISOR, study.scenario_name(name, None, threads)]
        for name in bench.works
    }
    return _dense(dense, suggested, sentences.passes(sweeps["engine", threads]))


def _dense(dense: pd.DataFrame, suggested: Mapping[str, int], rests_on: str = "") -> Section:
    shares = {}
    for name, rows in dense.groupby("workload", sort=False):
        rates = rows.set_index("batch_size")["fresh_tokens_per_s"]
        shares[str(name)] = float(rates[suggested[str(name)]] / rates.max())
    worst = sorted(shares, key=lambda name: shares[name])
    shown = dense[dense["workload"].isin(worst[:LINES])]
    return Section(
        "sizing_dense_sweep", {"dense_sweep": dense},
        f"Of the best fresh throughput the suggested size gets {percent(median(shares.values()))} "
        f"in the median of {counted(len(shares), 'workload')}, at worst "
        f"{percent(shares[worst[0]])} ('{worst[0]}', size {suggested[worst[0]]}).",
        picture=partial(figures.dense_sweep, shown, suggested),
        picture_caption=f"No budgets: throughput of every size, of the (at most {LINES}) workloads "
        "whose suggestion (diamond) is furthest from the best.",
        rests_on=rests_on,
    )  # fmt: skip


def judge(
    advice: Advice,
    sweeps: Mapping[Key, FreshSweep],
    memory: MemoryModel | None,
    fresh_peaks: Sequence[Peak],
    whole: Section,
    *,
    seed: int = 1,
) -> tuple[Section, Section]:
    """The strategies against the best of the fresh sweep; then the advisor's scenarios, each.

    Where the phases that were swept are not what `whole` batches take, nothing is judged by them.
    """
    if not sentences.adds_up(whole.frame):
        said = (
            "Not judged: on this engine, phases added up are not what whole batches take, so the "
            "sweep is no yardstick."
        )
        return Section("sizing_scores", {}, said), Section("scenarios", {})
    weights = memory.weight_bytes if memory else 0
    scored = study.judge(advice, sweeps, fresh_peaks, weights, seed=seed)
    table = study.summaries(scored)
    every = scored[scored["strategy"] == ADVISOR]
    ours = every[every["informative"]] if every["informative"].any() else every
    middle, bottom = (study.score_quantile(ours, share) for share in (0.5, 0.1))
    broken = study.broken_share(ours)
    scores = [
        Score(
            "sizing_accuracy", f"Sizing advice, median score over {len(ours)} scenarios", GOAL,
            middle.value, middle.low, middle.high,
        ),
        Score(
            "sizing_accuracy_p10", "Sizing advice, 10th percentile of the score", P10_GOAL,
            bottom.value, bottom.low, bottom.high,
        ),
        Score(
            "sizing_violations", "Sizing advice that breaks a budget", 2.0, 100 * broken.value,
            100 * broken.low, 100 * broken.high, "%", "lower",
        ),
    ]  # fmt: skip
    strategies = Section(
        "sizing_scores", {"scores": scored}, sentences.scores_sentence(table), table,
        "The same in numbers. Distance: octaves between suggested and best size. Good share: "
        "sizes that would have scored 0.9 or more.",
        partial(
            figures.strategies, study.spread(scored), table, ADVISOR,
            (P10_GOAL, GOAL),
        ),
        "Score of a strategy over the scenarios, median and 10th percentile, 95 % intervals over "
        "workloads and threads: throughput over that of the best size under the same budgets, 0 "
        "where a budget was broken.",
        scores,
        rests_on=f"{counted(len(ours), 'scenario')}, 1 process",
    )  # fmt: skip
    columns = ["scenario", "part", "suggested", "best", "score", "good_share", "informative"]
    scenarios = Section(
        "scenarios", {},
        f"{sentences.flatness_sentence(ours)} {sentences.open_sentence(every)}", every[columns],
        "Every scenario: what was suggested, what was best, and the score.",
    )  # fmt: skip
    return strategies, scenarios


def try_budgets(bench: Bench, models: Costs, memory: MemoryModel | None) -> Section:
    """Throughput against latency as predicted, for every workload, with budgets to move.

    Latency is that of 95 of 100 batches.
    """
    frame = tables.choices(bench.works, bench.cost(models), memory, bench.largest)
    budget_ms = float(frame.loc[frame["workload"] == OWN, "latency_ms"].max())
    return _budgets(
        "sizing_predicted", frame, "Predicted", budget_ms, "predicted from 1 calibration"
    )


def throughput_latency(
    bench: Bench, models: Costs, predicted: Section, dense: Section, *, times_alone: float
) -> Section:
    """`predicted`, measured afresh; the budget is so many times what one request alone takes."""
    frame = tables.measured_choices(dense.frame, predicted.frame)
    alone = batch_times(bench.cost(models), bench.works[OWN], 1)
    budget_ms = times_alone * alone.latency_ms("request", "p95")
    return _budgets("sizing_throughput_latency", frame, "Measured", budget_ms, dense.rests_on)


def _budgets(
    name: str, frame: pd.DataFrame, basis: str, budget_ms: float, rests_on: str
) -> Section:
    budget_ms = figures.settable(frame["latency_ms"], budget_ms)  # as the page's slider says it
    said = sentences.budget_sentence(frame, OWN, budget_ms)
    how = (
        "A dot a batch size. The diamond is what the advisor says without budgets, the star the "
        "best size within them: move the budgets, choose the workload."
    )
    picture = partial(figures.throughput_latency, frame, OWN, budget_ms, said)
    short = name.removeprefix("sizing_")
    return Section(
        name, {short: frame}, f"{basis}: {said}.",
        picture=picture, picture_caption=f"{basis} throughput against latency. {how}",
        rests_on=rests_on,
    )  # fmt: skip


def whole_batches(bench: Bench, models: Costs, sweeps: Mapping[Key, FreshSweep]) -> Section:
    """Whole batches for real beside the sum of their phases."""
    measured = sweeps["engine", bench.threads].costs
    table = runs.run_whole(
        bench,
        {"sweep": measured, "model": bench.cost(models)},
        sweeps["engine", bench.threads].sizes,
    )
    caption = (
        "Whole batches, run for real, beside the sum of the sweep's phases and the cost model."
    )
    return Section(
        "whole", {"whole_batches": table}, sentences.whole_sentence(table), table, caption
    )


def drift(errors: Section, *, wrong: float = 1.0) -> Section:
    """Whether the model holds on the fresh times, its predictions multiplied by `wrong`."""
    try:
        said = study.drift(errors.frame, wrong).sentence
    except UserError as problem:  # a quick engine's steps may be too short to be told from nothing
        said = f"left out. {problem}"
    slow = f"The same check of a model made {100 * (wrong - 1.0):.0f} % too slow"
    what = "Drift check" if wrong == 1.0 else slow
    return Section("drift", {}, f"{what}: {said}")


def stability(bench: Bench, advice: Advice, memory: MemoryModel | None) -> Section:
    """Whether further calibrations give the same advice."""
    models = runs.recalibrate(bench)
    table = study.stability(advice, models, memory)
    return Section("stability", {"stability": table}, sentences.stable_sentence(table, len(models)))


def search_cost(bench: Bench, models: Costs, sweeps: Mapping[Key, FreshSweep]) -> Section:
    """What the advice cost beside what it replaces."""
    swept = sweeps["engine", bench.threads]
    exhaustive_s = tables.exhaustive_seconds(bench.works, swept)
    first = next(model.seconds for (part, _), model in models.items() if part == "engine")
    return Section(
        "search_cost", {},
        f"Search cost: the calibration took {first:.1f} s. Running every workload once at every "
        f"swept size would take {exhaustive_s:,.0f} s (computed from the measured times): "
        f"{100 * first / exhaustive_s:.1f} % of that (goal at most 10 %), and "
        f"{100 * first / swept.seconds:.0f} % of this notebook's own sweep, which times phases "
        "once for all workloads.",
    )  # fmt: skip


def adaptive(bench: Bench, models: Costs) -> Section:
    """The adaptive sizer on a real queue, disturbed in the middle third."""
    run, budget_ms = runs.adaptive_run(bench, bench.cost(models))
    parts = [
        f"{phase}: {(~rows['within_budget']).sum()} of {len(rows)} batches late, "
        f"mean size {rows['batch_size'].mean():.0f}"
        for phase, rows in run.groupby("phase", sort=False)
    ]
    return Section(
        "sizing_adaptive", {"adaptive": run},
        f"Budget {rounded(budget_ms)} ms. {'; '.join(parts)}.",
        picture=partial(figures.adaptive, run, budget_ms),
        picture_caption="The adaptive sizer on a real queue: batch size, latency of each batch, "
        "and the budget; crosses are late.",
        rests_on=f"{counted(len(run), 'batch', 'batches')}, 1 process",
    )  # fmt: skip


def budgets(bench: Bench, models: Costs, memory: MemoryModel | None, *, workload: str) -> Section:
    """The advisor's answers for some budgets."""
    table = tables.budget_table(bench.works[workload], bench.cost(models), memory, bench.largest)
    caption = (
        f"Suggested size for '{workload}' by latency budget (rows) and memory for the batch "
        "(columns)."
    )
    return Section("budgets", {}, "", table, caption)


def simulated(bench: Bench, memory: MemoryModel | None, *, workload: str) -> Section:
    """The advice on machines that do not exist; nothing for an engine without a shape."""
    if bench.shape is None or memory is None:
        return Section("simulated", {})
    table = tables.simulated_table(bench.shape, memory, bench.works[workload])
    caption = (
        "Simulated machines, priced by their rooflines, nothing measured; objective: balanced."
    )
    return Section("simulated", {"simulated": table}, "", table, caption)
