"""The roadmap notebook's questions, one function each: measured or simulated, drawn, worded.

Left out: what a batch costs and which size to choose (04), other engines (06).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from batchgauge import extras
from batchgauge.errors import UserError
from batchgauge.experiments.context import whole
from batchgauge.experiments.roadmap import (
    async_points,
    figures,
    ideas,
    jobs,
    jobs_results,
    machines,
    parallel,
    policies,
    study,
    validation,
)
from batchgauge.experiments.roadmap.study import Case
from batchgauge.experiments.traffic import MEAN_BOUND
from batchgauge.profiling.parallelism import probe_gil
from batchgauge.reporting import Answer, Score, Section
from batchgauge.reporting.tables import basis
from batchgauge.simulate.roadmap import IN_TIME, rank
from batchgauge.simulate.scaling import predictions
from batchgauge.text import counted, percent, ratio, sentences

Scenario, prepare = study.Scenario, study.prepare
_USELESS = 0.5  # share by which a simulated mean is so far off that nothing follows from it
SIMULATED = 100_000  # requests that the simulator's speed is aimed at


def traffic(case: Case) -> Section:
    """What arrives, how often, and whether today's server keeps up."""
    return Section(
        "traffic", {}, f"{study.traffic_sentence(case)} {study.stability_sentence(case)}"
    )


def step_times(case: Case) -> Section:
    """What a decode step costs by its size, as calibrated."""
    table = study.calibration_table(case)
    return Section(
        "roadmap_step_time", {"step_times": table}, study.calibration_sentence(case),
        picture=partial(figures.draw_step_time, table) if table["step_ms"].all() else None,
        picture_caption="Measured time of a decode step, and of one token of it, by batch size; "
        "bands are the calibration's own 95 % interval.",
        rests_on="1 calibration, 1 process",
    )  # fmt: skip


def check_simulation(case: Case, *, loads: Sequence[float]) -> Section:
    """The same arrivals on the real engine and simulated, at `loads` of capacity."""
    choose = case.context.budget.choose
    count = choose(smoke=4, default=10, thorough=200)
    seeds = choose(smoke=1, default=4, thorough=5)
    loads = choose(smoke=loads[:1], default=loads, thorough=loads)
    checked = validation.validate(case, requests=count, seeds=seeds, loads=loads)
    value, *ends = checked.worst
    low, high = (None if end is None else 100 * end for end in ends)
    score = Score(
        "simulation_error", "Roadmap: simulated mean time to the answer, off by at most",
        100 * MEAN_BOUND, 100 * value, low, high, "%", "lower",
    )  # fmt: skip
    return Section(
        "roadmap_validation",
        {
            "validation": checked.figures,
            "validation_requests": checked.requests,
            "validation_batches": checked.batches,
        },
        checked.sentence(),
        checked.figures,
        "Simulated against real, with the bounds that were set beforehand.",
        partial(figures.draw_validation, checked.figures),
        "Times of the simulation over those of the real engine, 95 % intervals over seeds; dashed: "
        "the bounds.",
        [score],
    )


def simulator_speed(case: Case) -> Section:
    """How long it takes to simulate `SIMULATED` requests (scaled up in a smoke run)."""
    amount = case.context.budget.choose(
        smoke=SIMULATED // 10, default=SIMULATED, thorough=SIMULATED
    )
    seconds = policies.time_simulator(case, amount) * SIMULATED / amount
    label = f"Roadmap: simulating {SIMULATED:,} requests"
    score = Score("simulation_speed", label, 30.0, seconds, unit="s", better="lower")
    return Section("simulator", {}, targets=[score])


def compare_policies(case: Case, *, loads: tuple[float, float]) -> Section:
    """Every policy at the rate asked for, and three of them from one load of today's to another."""
    seeds = case.context.budget.choose(smoke=2, default=4, thorough=10)
    curves = policies.policy_curves(case, loads=np.linspace(*loads, 10).tolist(), seeds=seeds)
    table = policies.compare_policies(case)
    return Section(
        "roadmap_policies", {"policies": table, "policy_curves": curves},
        policies.policies_sentence(table, case), table[policies.SHOWN],
        "Simulated at the rate asked for; p99 needs 662 requests.",
        partial(figures.draw_policy_curves, curves, case.target_s, case.rate),
        "Simulated p90 from arrival to the first visible text (without streaming: the whole "
        "answer) against the arrival rate: median and range over seeds.",
    )  # fmt: skip


def compare_classes(case: Case) -> Section:
    """Two classes of requests in one queue that is overloaded, by the queue's order."""
    table = policies.compare_classes(case)
    caption = (
        f"Two classes in one dynamic queue, {percent(policies.OVERLOAD - 1)} above its capacity."
    )
    said = policies.classes_sentence(table, case)
    return Section("classes", {"classes": table}, said, table[policies.SHOWN_CLASSES], caption)


def second_core(case: Case, *, workers: Sequence[int]) -> tuple[Section, Section]:
    """What a second core gives each stage; and two laws of scaling, read at `workers`.

    Raises UserError for no workers, and for a number that is no whole one from 1.
    """
    _check_counts("workers", workers)
    budget = case.context.budget
    blocks, slot_s = budget.choose(smoke=(2, 0.02), default=(10, 0.04), thorough=(20, 0.3))
    measured = parallel.measure_parallel(
        case.context, case.stages, blocks=blocks, slot_s=slot_s, budget_s=budget.share(0.2)
    )
    gains = machines.gains(measured)
    laws = machines.fits(measured, case.seed)
    scaling = predictions(laws, workers)
    curves = predictions(laws, range(1, max(workers) + 1))
    return Section(
        "roadmap_parallel",
        {"parallel_gains": gains, "parallel_samples": parallel.as_records(measured, case.context)},
        machines.gains_sentence(gains),
        picture=partial(figures.draw_gains, gains),
        picture_caption="Throughput of a stage with a second core, three ways, over one thread; "
        "95 % intervals over blocks. The memory stream is a plain copy: what the shared bandwidth "
        "allows.",
    ), Section(
        "roadmap_scaling", {"scaling": scaling}, machines.extrapolation_sentence(scaling),
        picture=partial(figures.draw_scaling, curves, workers),
        picture_caption="Universal Scalability Law through the measurements at 1 and 2; the band "
        "runs from pure contention to pure coherence, and beyond 2 it is extrapolated.",
        rests_on=basis(gains),
    )  # fmt: skip


def asynchronous(case: Case) -> Section:
    """The functions an async pipeline would begin at, and what it could give at most."""
    if not case.context.is_ours:
        said = "Left out: this is about the project's own functions, and the engine is another."
        return Section("async_points", {}, said)
    budget = case.context.budget
    gil = probe_gil(
        parallel.gil_makers(case.stages),
        seconds=budget.choose(smoke=0.03, default=0.08, thorough=0.5),
        rounds=budget.choose(smoke=1, default=3, thorough=5),
    )
    points = async_points.conversion_points(gil)
    caption = "The functions an async pipeline would begin at, with what was measured of each."
    said = async_points.overlap_sentence(case)
    return Section("async_points", {"async_points": points}, said, points, caption)


def other_machines(case: Case, *, max_batch: int) -> Section:
    """Machines that are not here, predicted, in batches of at most `max_batch`."""
    if case.context.facts is None:
        said = "Left out: nobody knows this engine's model, so nothing can be predicted of it."
        return Section("roadmap_machines", {}, said)
    table = machines.predict_machines(case, most=max_batch)
    return Section(
        "roadmap_machines", {"machines_predicted": table}, machines.machines_sentence(table), table,
        "Predicted best batch, speed-up and price of a million generated tokens; the break-even "
        "price is what an hour may cost before tokens are cheaper here.",
        partial(figures.draw_machines, table),
        "Generated tokens per second under continuous batching, kept busy. Only the first row "
        "rests on measurements.",
        rests_on="predicted from 1 calibration",
    )  # fmt: skip


def many_machines(case: Case, *, sizes: Sequence[int]) -> Section:
    """One batch job on several machines like this one, `sizes` of them.

    Raises UserError for no sizes, and for one that is no whole number from 1.
    """
    _check_counts("sizes", sizes)
    job = case.context.budget.choose(smoke=400, default=2000, thorough=10_000)
    table = machines.distribute(case, requests=job, sizes=sizes)
    return Section(
        "roadmap_distributed", {"distributed": table},
        machines.distribute_sentence(case, table, job), machines.first_measurements(case, table),
        "What to measure before choosing what distributes the work, and what this study expects.",
        partial(figures.draw_distributed, table),
        "Simulated efficiency of a batch job against one sound machine.",
        rests_on=f"simulated, {counted(job, 'request')}",
    )  # fmt: skip


def measured_jobs(case: Case) -> Section:
    """The job layer on worker processes: empty tasks, starts, efficiency, trouble, overhead."""
    if extras.missing("distributed"):
        said = f"Left out: Dask is not installed here; {extras.remedy('distributed')}."
        return Section("roadmap_jobs", {}, said)
    rows = jobs.measure(case.context)
    table = jobs_results.results(rows)
    scores = jobs_results.scores(table)
    assert scores[0].goal is not None
    return Section(
        "roadmap_jobs", {"jobs": table, "jobs_blocks": rows}, jobs_results.sentence(table),
        picture=partial(figures.draw_jobs, table, scores[0].goal),
        picture_caption="Throughput over that of one worker times their number: at two measured, "
        "95 % intervals over blocks; beyond by the Universal Scalability Law, not measured.",
        rests_on=jobs_results.rests_on(rows),
        targets=scores,
    )  # fmt: skip


def ranking(
    case: Case, gains: Section, checked: Section, *, loads: Sequence[float]
) -> tuple[Section, Section]:
    """Every candidate alone over today's server; then the software ones on top of each other.

    `gains` is what a second core gives, the first of `second_core`, `checked` how the simulation
    did; `loads` are arrival rates as shares of today's capacity, beside the rate asked for.
    Where the simulation does not describe the engine, nothing is recommended.
    """
    candidates = ideas.make_ideas(case, gains.frame)
    seeds = case.context.budget.choose(smoke=3, default=8, thorough=20)
    runs = ideas.run_sweep(case, candidates, loads=loads, seeds=seeds)
    ranked, useless = rank(runs, candidates, case.rate), _useless(checked)
    if useless:
        ranked = ranked.assign(recommendation="")
    rungs = ideas.pick_rungs(ranked, candidates)
    stacked = ideas.run_sweep(case, rungs, loads=loads, seeds=seeds)
    ladder = ideas.ladder(rungs, stacked, case)
    return Section(
        "roadmap_ranking", {"ranking": ranked, "runs": runs},
        useless or ideas.ranking_sentence(ranked, case), ideas.readable(ranked),
        "Candidate improvements, ranked by the lower end of the gain in the share in time, then by "
        f"the rate that is sustained with {percent(IN_TIME)} in time, then by p90 waiting.",
        partial(figures.draw_ranking, ranked),
        "Simulated gain of each candidate over today's server, 95 % intervals over seeds. Right "
        "of the dotted line is better.",
        rests_on=f"simulated, {counted(seeds, 'seed')}",
    ), Section(
        "roadmap_ladder", {"ladder": ladder}, ideas.ladder_sentence(ladder, stacked, case),
        picture=partial(figures.draw_ladder, ladder),
        picture_caption="The software candidates on top of each other, each row on top of the rows "
        "above; 95 % intervals over seeds.",
        rests_on=f"simulated, {counted(seeds, 'seed')}",
    )  # fmt: skip


def built(case: Case, folder: Path) -> Section:
    """What notebook 08 measured live of continuous batching, on our engine, when it last ran.

    From its CSV files in `folder`, and with their date: in a study it runs after this page.
    """
    if not case.context.is_ours:
        said = "Continuous batching is not run live on this engine: notebook 08 runs another."
        return Section("built", {}, said)
    names = ("compared", "goodput", "forecast")
    compared, goodput, forecast = files = [folder / f"serving_{name}.csv" for name in names]
    if not all(file.is_file() for file in files):
        return Section(
            "built", {}, "Continuous batching was not run live here yet: notebook 08 does."
        )
    rows, gains = pd.read_csv(compared), pd.read_csv(goodput).set_index("policy")
    began = datetime.fromisoformat(pd.read_csv(forecast, nrows=1)["written_at"].iloc[0])
    gain, verdicts = gains.to_dict("index")["continuous"], rows["verdict"].value_counts()
    said = "; ".join(
        f"{policy}: {int((part['verdict'] == 'held').sum())} of {len(part)}"
        for policy, part in rows.groupby("policy", sort=False)
    )
    return Section(
        "built", {},
        f"Continuous batching was built and run live (notebook 08, the run of "
        f"{began:%Y-%m-%d %H:%M} UTC): {ratio(gain['value'], gain['low'], gain['high'])} as many "
        "answers in time as static batches. "
        f"Figures of its forecast that held: {said}; {verdicts.get('failed', 0)} failed, "
        f"{verdicts.get('undecided', 0)} are undecided.",
    )  # fmt: skip


def answer(ranked: Section, checked: Section) -> Answer:
    """What to build first, and how far the simulation can be trusted."""
    if useless := _useless(checked):
        return Answer(useless, ranked.name)
    first, *rest = sentences(ranked.sentence())
    off = _furthest_off(checked)
    others = [said for said in rest if said.startswith(("Hardware: ", "It costs: "))]
    trust = f"Simulated; its mean time to an answer was off by at most {percent(off, 1)}"
    if off > MEAN_BOUND:
        trust += f", beyond the bound of {percent(MEAN_BOUND)}: take the gains for a guess"
    return Answer(" ".join([first, *others, f"{trust}."]), ranked.name)


def _furthest_off(checked: Section) -> float:
    """How far the simulation's mean time to an answer was off at most, as a share."""
    return max(score.value for score in checked.scores()) / 100


def _useless(checked: Section) -> str:
    """Why nothing can be recommended; empty where something can."""
    off = _furthest_off(checked)
    return (
        ""
        if off <= _USELESS
        else "Nothing is recommended: the simulation's mean time to an answer was off by "
        f"{percent(off, 1)}, so it does not describe this engine, nor do its gains."
    )


def _check_counts(name: str, counts: Sequence[int]) -> None:
    if not counts:
        raise UserError(f"{name} is empty; expected whole numbers of at least 1.")
    for count in counts:
        whole(**{name: count})
