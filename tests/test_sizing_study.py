"""The batch-sizing notebook's logic on invented times: scenarios, judging, tables, sentences."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from tests.conftest import chart_of, rows_of

mpl.use("agg")

from batchgauge.experiments.batch_sizing import (
    bench,
    exams,
    figures,
    measured,
    peaks,
    runs,
    sections,
    sentences,
    study,
    tables,
)
from batchgauge.experiments.batch_sizing.sweep import sweep_engine, sweep_tokenizer
from batchgauge.files import write_csv
from batchgauge.reporting import Report, Section
from batchgauge.sizing import (
    CostModel,
    Lengths,
    MemoryModel,
    ModelShape,
    SizingConfig,
    simulated_profiles,
)
from batchgauge.sizing.calibration import Extent, calibrate_engine, calibrate_tokenizer
from batchgauge.sizing.cost_model import batch_times
from batchgauge.sizing.memory_model import Peak
from batchgauge.text import percent

SHAPE = ModelShape(30, 576, 9, 3, 64, 1536, 49152, 2048, 538_000_000)
MEMORY = MemoryModel.from_shape(SHAPE)
WORKS = {
    "short": Lengths.uniform(8, 8),
    "medium": Lengths.uniform(32, 16),
    "ragged traffic": Lengths((4, 30, 60), (2, 9, 16)),
}
TEXTS = ["a few words", "rather more words than that"] * 5


def engine(rows: int, prompt: int, steps: int) -> tuple[float, float]:
    """An invented engine: 18 ms alone, else 25 + 1.2 b, linear prefill and context."""
    context = rows * (prompt + (steps + 1) / 2.0)
    return 5.0 + 1.3 * rows * prompt, (18.0 if rows == 1 else 25.0 + 1.2 * rows) + 0.003 * context


def texts(size: int) -> tuple[int, float]:
    """An invented tokenizer."""
    return 20 * size, 0.05 + 0.002 * size


@pytest.fixture(scope="module")
def judged():
    """Calibrated, asked, swept and judged, without a clock that matters."""
    plan = bench.effort("smoke", 1)
    models = {
        ("engine", 1): calibrate_engine(engine, Extent(8, 64)),
        ("tokenizer", 1): calibrate_tokenizer(texts, max_batch_size=plan.tokenizer_largest),
    }
    questions = study.scenarios(WORKS, models, MEMORY, TEXTS, plan)
    prior = CostModel.prior(SHAPE, simulated_profiles()[0])
    advice = study.advise(questions, models, MEMORY, {1: prior})
    wanted = advice.wanted()
    sweeps = {
        ("engine", 1): sweep_engine(engine, largest=8, passes=1, max_positions=96),
        ("tokenizer", 1): sweep_tokenizer(
            texts, largest=plan.tokenizer_largest, passes=1, also=wanted["tokenizer", 1]
        ),
    }
    peaks = [Peak(size, 8, 4, 0.0) for size in (4, 8)]
    peaks = [Peak(p.rows, 8, 4, MEMORY.batch_bytes(p.plan())) for p in peaks]
    scored = study.judge(advice, sweeps, peaks, MEMORY.weight_bytes)
    return models, advice, sweeps, scored


def test_an_advisor_with_the_right_model_is_nearly_perfect(judged):
    """On noiseless machines every score is high and no budget is broken."""
    scored = judged[3]
    rows = scored[scored["strategy"] == study.ADVISOR]
    assert rows["score"].median() >= 0.98
    assert not (rows["late"] | rows["over_memory"]).any()
    medians = dict(study.summaries(scored)[["strategy", "median_score"]].to_numpy().tolist())
    assert medians[study.ADVISOR] > medians["always 1"]
    assert rows["fair_score"].isna().all()  # of one pass, luck cannot be told apart


def test_scenarios_cover_what_they_should(judged):
    """Both parts, budgets of both kinds and an impossible one are asked."""
    questions = judged[1].questions
    assert {q.part for q in questions} == {"engine", "tokenizer"}
    assert any(q.memory_budget_bytes for q in questions)
    assert {q.latency_metric for q in questions} == {"request", "ttft", "inter_token"}
    impossible = next(q for q in questions if "impossible" in q.name)
    assert judged[1].sizes[study.ADVISOR, impossible.name] == 0
    assert len({q.name for q in questions}) == len(questions)


def test_errors_and_drift_follow_the_sweep(judged):
    """A right model holds; the same model made 8 % too slow does not."""
    errors = study.fresh_errors(judged[0], judged[2])
    assert errors["relative_error"].abs().median() < 0.01
    noisy = errors.assign(
        fresh_ms=errors["fresh_ms"]
        * np.exp(0.01 * np.random.default_rng(0).normal(size=len(errors)))
    )
    assert not study.drift(noisy).noticed
    assert study.drift(noisy, wrong=1.08).noticed


def test_stability_of_an_unchanged_model_is_one(judged, monkeypatch):
    """The same calibration again gives the same sizes."""
    models, advice, _, _ = judged
    monkeypatch.setattr(runs, "recalibrate", lambda _: [models["engine", 1]])
    section = sections.stability(invented_bench(), advice, MEMORY)
    assert (section.frame["same_share"] == 1.0).all()
    assert "Calibrated 2 times" in section.sentence()
    assert "runs for 100 % of" in section.sentence()


def table_of(section):
    """The table that readers see."""
    return section.shown


def whole_batch(sweep_ms):
    """One whole batch of 10 ms, and what its phases take together."""
    table = pd.DataFrame({"measured_ms": [10.0], "sweep_ms": [sweep_ms], "model_ms": [10.0]})
    return Section("whole", {"whole_batches": table}, sentences.whole_sentence(table))


def scores_of(scored, monkeypatch):
    """The sections of a judgement."""
    monkeypatch.setattr(study, "judge", lambda *_, **__: scored)
    return sections.judge(study.Advice([], {}), {}, MEMORY, [], whole_batch(10.0))


def invented_bench():
    """What the sections ask a bench for, of the invented engine."""
    return SimpleNamespace(
        works=WORKS,
        threads=1,
        largest=8,
        shape=SHAPE,
        engine=None,
        cost=lambda models: models["engine", 1],
    )


def test_cost_errors_name_what_was_never_calibrated(judged):
    """Errors and timings are written; curve and dots are those of the frame."""
    models, _, sweeps, _ = judged
    section = sections.cost_errors(models, sweeps)
    assert list(section.frames()) == ["cost_errors", "sweep"]
    assert len(section.frames()["sweep"]) == sum(len(s.timings) for s in sweeps.values())
    rows, which = study.unseen(section.frame, "prefill")
    assert which == "never calibrated"
    assert not rows["calibrated"].any()
    off = 100 * rows["relative_error"].abs().median()
    assert f"prefill {off:.1f} % (90 % of {len(rows)} sizes never" in section.sentence()
    chart = chart_of(section)
    assert chart.title.endswith(f"{off:.1f} % for prefill")
    drawn = dict(list(rows_of(chart).groupby("phase")))
    for panel, phase in zip(sorted(map(str, drawn)), ("decode", "prefill"), strict=True):
        rows = section.frame[section.frame["phase"] == phase]
        for column in ("size", "predicted_ms", "fresh_ms"):
            assert drawn[panel][column].tolist() == pytest.approx(rows[column].tolist(), rel=1e-5)
        assert (drawn[panel]["calibrated"] == "yes").tolist() == rows["calibrated"].tolist()
        assert (drawn[panel]["low"] < drawn[panel]["predicted_ms"]).all()


def test_memory_is_judged_on_fresh_peaks(monkeypatch):
    """Errors of 0 on what was fitted do not hide one of 10 % on what was not."""

    def peak(rows, factor):
        blank = Peak(rows, 8, 4, 0.0)
        return Peak(rows, 8, 4, factor * MEMORY.batch_bytes(blank.plan()))

    fresh = [peak(4, 1.0), peak(6, 1 / 1.1)]
    monkeypatch.setattr(peaks, "fit_memory", lambda *_: (MEMORY, [peak(2, 1.0)]))
    monkeypatch.setattr(peaks, "fresh_peaks", lambda *_: fresh)
    model, seen, section = sections.memory(invented_bench())
    assert (model, seen) == (MEMORY, fresh)
    (score,) = section.scores()
    assert score.value == pytest.approx(10.0)
    assert "On 2 fresh batches" in section.sentence()
    assert "at most 10.0 %" in section.sentence()
    assert section.frame["use"].tolist() == ["fitted", "fresh", "fresh"]
    chart = chart_of(section)
    assert chart.title == "The peak memory of fresh batches is predicted within 10.0 %"
    assert rows_of(chart)["error"].tolist() == pytest.approx([0.0, 0.0, 10.0])


def test_scores_are_those_of_the_advisor(judged, tmp_path, monkeypatch):
    """The scorecard has median, tenth percentile and broken budgets of the advisor alone."""
    strategies, scenarios = scores_of(judged[3], monkeypatch)
    every = judged[3][judged[3]["strategy"] == study.ADVISOR]
    ours = every[every["informative"]]
    values = {score.key: score.value for score in strategies.scores()}
    assert values == pytest.approx(
        {
            "sizing_accuracy": ours["score"].median(),
            "sizing_accuracy_p10": ours["score"].quantile(0.1),
            "sizing_violations": 0.0,
        }
    )
    assert f"median score is {ours['score'].median():.3f}" in strategies.sentence()
    assert table_of(scenarios)["scenario"].tolist() == every["scenario"].tolist()
    assert f"In {len(every) - len(ours)} further scenarios" in scenarios.sentence()
    chart, table = chart_of(strategies), table_of(strategies)
    drawn = rows_of(chart)
    for series, column in ((figures.MEDIAN, "median_score"), (figures.WORST, "p10_score")):
        rows = drawn[drawn["series"] == series]
        assert rows["name"].tolist() == table["strategy"].tolist()
        assert rows["score"].tolist() == pytest.approx(table[column].tolist(), rel=1e-5)
        assert (rows["low"] <= rows["score"]).all()
    first, second = (next(s.goal for s in strategies.scores() if s.key == key)
                     for key in ("sizing_accuracy_p10", "sizing_accuracy"))  # fmt: skip
    assert f"goals {first:.2f} and {second:.2f}" in str(chart.spec["layer"])
    assert f"(goal {second:.2f})" in strategies.sentence()
    report = Report.begin(
        "batch_sizing", title="t", question="q", profile="smoke", out_dir=tmp_path
    )
    report.show(strategies, scenarios)
    again = pd.read_csv(tmp_path / "data" / "batch_sizing_scores.csv")
    pd.testing.assert_frame_equal(again, judged[3].reset_index(drop=True), check_dtype=False)


def test_phases_that_do_not_add_up_judge_nothing(judged):
    """Then neither score nor scenario is told, and the answer says why."""
    models, advice, sweeps, _ = judged
    added = whole_batch(400.0)
    assert "cannot be timed apart" in added.sentence()
    assert "cannot be timed apart" not in whole_batch(12.0).sentence()
    strategies, scenarios = sections.judge(advice, sweeps, None, [], added)
    assert not strategies.scores()
    assert (strategies.shown, scenarios.shown) == (None, None)
    own = tables.suggest(WORKS["short"], models["engine", 1], None, 8, None, None)
    answer = sections.answer(own, strategies, Section("chosen", {}))
    assert "not scored" in answer.text
    assert [tile.place for tile in answer.tiles] == ["size"]


def test_steps_that_take_no_time_are_named(judged):
    """No error is infinite: where a fresh time is zero, the phase is left out and named."""
    models, _, sweeps, _ = judged
    instant = sweep_engine(lambda *_: (1.0, 0.0), largest=8, passes=1, max_positions=64)
    section = sections.cost_errors(models, {**sweeps, ("engine", 1): instant})
    assert "no time that can be told: decode" in section.sentence()
    assert "inf" not in section.sentence()
    assert "nan" not in section.sentence()


def test_budgets_of_a_quick_engine_are_not_zero():
    """Budgets of less than ten milliseconds keep their figures."""
    quick = calibrate_engine(lambda *a: tuple(t / 1e3 for t in engine(*a)), Extent(8, 64))
    table = tables.budget_table(WORKS["short"], quick, None, 8)
    assert float(table["latency_budget_ms"].iloc[-1]) > 0.0
    assert table["no memory budget"].iloc[-1] != "none: latency"


def test_broken_budgets_are_scored(judged, monkeypatch):
    """A size that was late or took too much memory is a violation, either way."""
    scored = judged[3].copy()
    ours = scored.index[(scored["strategy"] == study.ADVISOR) & scored["informative"]]
    scored.loc[ours[0], "late"] = True
    scored.loc[ours[:2], "over_memory"] = True
    (strategies, _), count = scores_of(scored, monkeypatch), len(ours)
    broken = next(s for s in strategies.scores() if s.key == "sizing_violations")
    assert broken.value == pytest.approx(100 * 2 / count)
    assert broken.better == "lower"


def test_a_dense_sweep_marks_suggestion_and_best():
    """The title's share is that of the suggested size, and so are the diamonds."""
    one = {"batch_size": [1, 2, 4], "predicted_tokens_per_s": [50.0, 90.0, 99.0]}
    names = ["short", *(f"drawn {i}" for i in range(8))]
    dense = pd.concat(
        pd.DataFrame({"workload": name, **one, "fresh_tokens_per_s": [50.0, 100.0, 80.0 + i]})
        for i, name in enumerate(names)
    )
    section = sections._dense(dense, dict.fromkeys(names, 4))
    assert section.sentence().endswith(
        "gets 84 % in the median of 9 workloads, at worst 80 % ('short', size 4)."
    )
    chart = chart_of(section)
    assert chart.title == "Every suggested size gets 80 % of the best or more"
    drawn = rows_of(chart)
    assert drawn["series"].nunique() == sections.LINES == 6  # those furthest from the best
    short = drawn[drawn["series"] == "short"]
    assert short["batch_size"].tolist() == [1, 2, 4]
    assert short["share"].tolist() == [50.0, 100.0, 80.0]
    marked = pd.DataFrame(chart.spec["layer"][-1]["data"]["values"])
    assert marked["batch_size"].tolist() == [4] * 6
    assert sorted(marked["share"]) == [80.0 + i for i in range(6)]


@pytest.mark.parametrize("times_alone", [1.5, 30.0])
def test_sizes_are_drawn_under_their_budget(judged, monkeypatch, times_alone):
    """Every workload's sizes are there; the sentence's best size keeps the budget."""
    models, advice, sweeps, _ = judged
    monkeypatch.setattr(sections, "OWN", "short")
    invented = invented_bench()
    dense = sections.dense_sweep(invented, models, sweeps, advice)
    assert set(dense.frame["workload"]) == set(WORKS)
    predicted = sections.try_budgets(invented, models, MEMORY)
    section = sections.throughput_latency(
        invented, models, predicted, dense, times_alone=times_alone
    )
    frame, chart = section.frame, chart_of(section)
    assert set(frame["workload"]) == set(WORKS)
    assert frame.groupby("workload")["suggested"].sum().tolist() == [1] * len(WORKS)
    assert (frame["memory_mib"] > 0).all()
    assert len(rows_of(chart)) == len(frame)
    alone = batch_times(models["engine", 1], WORKS["short"], 1)
    budget = times_alone * alone.latency_ms("request", "p95")
    late = [
        batch_times(sweeps["engine", 1].costs, WORKS[name], size).latency_ms("request", "p95")
        for name, size in zip(frame["workload"], frame["batch_size"], strict=True)
    ]
    assert frame["latency_ms"].tolist() == late  # as the suggestion's and the budgets'
    params = {p["name"]: p for p in chart.spec["params"]}
    assert set(params) == {"workload", "latency_budget", "room"}
    bind, asked = params["latency_budget"]["bind"], budget
    budget = params["latency_budget"]["value"]  # the sentence is about what the slider says
    assert bind["min"] <= budget <= bind["max"]
    assert asked <= budget < asked + bind["step"] or budget == bind["max"]
    assert budget / bind["step"] == pytest.approx(round(budget / bind["step"]))
    sliders = [{**p["bind"], "value": p["value"]} for n, p in params.items() if n != "workload"]
    assert all(len(str(s[key])) <= 8 for s in sliders for key in ("min", "max", "step", "value"))
    rows = frame[frame["workload"] == "short"]
    best = rows[rows["latency_ms"] <= budget].sort_values("tokens_per_s").iloc[-1]
    assert f"atches of {best['batch_size']:.0f} do {best['tokens_per_s']:,.0f} tokens/s" in (
        section.sentence()
    )
    assert predicted.sentence().startswith("Predicted: Batches of ")
    impossible = sentences.budget_sentence(frame, "short", 0.001)
    assert impossible.endswith("no size answers within 0.001 ms")


def test_late_batches_are_counted_by_phase(judged, monkeypatch):
    """Numbers of the sentence and crosses of the picture come from the run."""
    run = pd.DataFrame(
        {
            "at_s": [0.1, 0.2, 0.3],
            "phase": ["before", "disturbed", "after"],
            "within_budget": [True, False, True],
            "latency_ms": [90.0, 130.0, 80.0],
            "batch_size": [4, 2, 3],
        }
    )
    monkeypatch.setattr(runs, "adaptive_run", lambda *_: (run, 100.0))
    section = sections.adaptive(invented_bench(), dict(judged[0]))
    assert section.sentence() == (
        "Budget 100 ms. before: 0 of 1 batches late, mean size 4; disturbed: 1 of 1 batches late, "
        "mean size 2; after: 0 of 1 batches late, mean size 3."
    )
    chart = chart_of(section)
    assert chart.title.startswith("67 % of 3 batches within budget; back at size 3")
    drawn = rows_of(chart)
    waits = drawn[drawn["panel"] == figures.LATENCY]
    assert waits["limit"].tolist() == [100.0] * 3
    assert waits.loc[waits["series"] == figures.OVER, "value"].tolist() == [130.0]
    assert drawn.loc[drawn["panel"] == figures.SIZE, "value"].tolist() == [4, 2, 3]


def test_sentences_carry_the_numbers_of_their_data(judged, monkeypatch):
    """Results in sentences come from the frames that they describe."""
    models, _, sweeps, scored = judged
    whole = pd.DataFrame({"sweep_ms": [11.0], "model_ms": [10.0], "measured_ms": [10.0]})
    assert "10.0 %" in sentences.whole_sentence(whole)
    invented = invented_bench()
    total = sum(
        batch_times(sweeps["engine", 1].costs, work, size).request_ms / 1e3
        for work in WORKS.values()
        for size in sweeps["engine", 1].sizes
    )
    assert f"would take {total:,.0f} s" in sections.search_cost(invented, models, sweeps).sentence()
    monkeypatch.setattr(runs, "calibrate", lambda _: models)
    table = sections.calibrate(invented)[1].frame
    assert table[["part", "threads"]].to_numpy().tolist() == [["engine", 1], ["tokenizer", 1]]
    strategies, _ = scores_of(scored, monkeypatch)
    own = tables.suggest(WORKS["short"], models["engine", 1], MEMORY, 8, None, 64)
    answer = sections.answer(own, strategies, Section("chosen", {}))
    assert answer.text.startswith(f"For these requests run batches of {own.size}: ")
    theirs = sections.answer(own, strategies, Section("chosen", {}), searched(0.9))
    assert theirs.text.startswith("Run 12 requests in a batch: 9 tokens")
    assert f"The cost model says batches of {own.size}: " in theirs.text
    assert theirs.tiles[0].value == "Run 12 requests in a batch"
    told = scored[scored["informative"]] if scored["informative"].any() else scored
    ours = told[told["strategy"] == study.ADVISOR]
    assert f"tenth of {ours['scenario'].nunique()} scenarios" in answer.text
    assert f"reaches {percent(ours['score'].quantile(0.1))} of the best" in answer.text
    others = told[told["strategy"] != study.ADVISOR].groupby("strategy")["score"].quantile(0.1)
    assert f"') {percent(others.max())}; it breaks" in answer.text
    assert (answer.figure, [t.place for t in answer.tiles]) == ("chosen", ["size", "gain"])
    shown = table_of(sections.suggestion(own))
    assert own.size not in set(shown["batch_size"])
    assert shown["why_not"].all()
    blind = tables.suggest(WORKS["short"], models["engine", 1], None, 8, None, 64)
    assert "memory_mib" not in table_of(sections.suggestion(blind))
    assert "memory" not in blind.sentence()


def test_the_reference_speed_is_that_of_the_controls():
    """Quantiles of the controls over the reference, fast first."""
    few = SimpleNamespace(reference_ms=10.0, controls_ms=[10.0] * 8 + [8.0, 20.0, 20.0])
    many = SimpleNamespace(reference_ms=4.0, controls_ms=[4.0] * 8)
    probe: Any = SimpleNamespace(few=few, many=many)
    said = sections.reference_speed(probe).sentence()
    assert "of a few rows 10 ms (its 11 runs took 1.00 to 2.00 times that" in said
    assert "of many 4 ms (its 8 runs took 1.00 to 1.00 times that" in said


def test_the_budget_table_says_which_budget_fails():
    """Cells hold a size, or name the budget that already a batch of one breaks."""
    model = calibrate_engine(engine, Extent(8, 64))
    assert tables.suggestion_text(WORKS["short"], model, MEMORY, 8, None, 64).startswith("8 (")
    assert tables.suggestion_text(WORKS["short"], model, MEMORY, 8, 1.0, 64) == "none: latency"
    assert tables.suggestion_text(WORKS["short"], model, MEMORY, 8, None, 0.001) == "none: memory"


def test_simulated_machines_are_labelled():
    """Every row of the table of invented machines says that it is simulated."""
    table = tables.simulated_table(SHAPE, MEMORY, WORKS["short"])
    assert table["machine"].str.contains("simulated").all()
    assert (table["trust"] == "low").all()


def test_an_engine_without_a_shape_is_asked_nothing_about_memory():
    """No shape, no memory model: no scenario has a memory budget, no table a memory column."""
    stranger: Any = SimpleNamespace(shape=None, engine=SimpleNamespace(name="stranger"))
    memory, peaks, said = sections.memory(stranger)
    assert (memory, peaks, dict(said.frames()), said.draw()) == (None, [], {}, None)
    assert "'stranger' does not show its model's shape" in said.sentence()
    assert not sections.simulated(stranger, None, workload="short").frames()
    assert bench.shape_of(type("Stranger", (), {"name": "stranger"})()) is None
    plan = bench.effort("smoke", 1)
    cost = calibrate_engine(engine, Extent(8, 64))
    words_cost = calibrate_tokenizer(texts, max_batch_size=plan.tokenizer_largest)
    models = {("engine", 1): cost, ("tokenizer", 1): words_cost}
    questions = study.scenarios(WORKS, models, None, TEXTS, plan)
    assert questions
    assert all(q.memory_budget_bytes is None for q in questions)
    assert "no memory budget" in tables.budget_table(WORKS["short"], cost, None, 8)


def test_threads_asked_for_are_swept():
    """A thread count of one's own is part of the effort, and is what is shown."""
    plan = bench.effort("smoke", 3)
    assert dict(plan.largest)[3] == 6


def test_every_frame_comes_back_from_its_csv(judged, monkeypatch, tmp_path):
    """What the sections write is read back equal: numbers to the last digits, texts whole."""
    models, advice, sweeps, scored = judged
    peaks_seen = [
        Peak(size, 8, 4, MEMORY.batch_bytes(Peak(size, 8, 4, 0.0).plan())) for size in (4, 8)
    ]
    monkeypatch.setattr(runs, "recalibrate", lambda _: [models["engine", 1]] * 2)
    monkeypatch.setattr(runs, "calibrate", lambda _: models)
    monkeypatch.setattr(peaks, "fit_memory", lambda *_: (MEMORY, peaks_seen))
    monkeypatch.setattr(peaks, "fresh_peaks", lambda *_: peaks_seen)
    opened = invented_bench()
    shown = [
        sections.calibrate(opened)[1],
        sections.memory(opened)[2],
        sections.cost_errors(models, sweeps),
        sections.dense_sweep(opened, models, sweeps, advice),
        *scores_of(scored, monkeypatch),
        sections.stability(opened, advice, MEMORY),
        sections.simulated(opened, MEMORY, workload="ragged traffic"),
    ]
    names = set()
    for section in shown:
        for name, frame in section.frames().items():
            path = write_csv(frame, tmp_path / f"{name}.csv")
            found = pd.read_csv(path, keep_default_na=False, na_values=[""])
            pd.testing.assert_frame_equal(
                found, frame.reset_index(drop=True), check_dtype=False, rtol=1e-12
            )
            names.add(name)
    assert names >= {
        "calibrations",
        "memory",
        "cost_errors",
        "sweep",
        "dense_sweep",
        "scores",
        "stability",
        "simulated",
    }


def searched(within):
    """A measured answer that is near the best with a probability."""
    said = ["Run 12 requests in a batch: 9 tokens per second.", "It is within 2 %."]
    decision = SimpleNamespace(within={0.95: within})
    found: Any = SimpleNamespace(
        setting=12.0, found=SimpleNamespace(decision=decision), sentences=lambda: said
    )
    return found


@pytest.mark.parametrize(
    ("fields", "above"),
    [({}, "each 1 % more latency has to buy 0.25 % more"),
     ({"latency_budget_ms": 90.0}, "within the budget. The suggestion above is for callers who"),
     ({"objective": "balanced"}, "above is for the objective 'balanced'.")],
)  # fmt: skip
def test_two_answers_say_what_each_is_for(fields, above):
    """Measured whole batches go for throughput; the suggestion by the cost model may not."""
    ours: Any = SimpleNamespace(model=SimpleNamespace(config=object()))
    server: Any = SimpleNamespace(model="a name")
    sure, unsure = (searched(within) for within in (0.9, 0.05))
    config = SizingConfig(**fields)
    trusted: Any = SimpleNamespace(trust="high")
    doubted: Any = SimpleNamespace(trust="low")
    assert above in measured.purpose(config, ours, sure, trusted)
    assert measured.purpose(config, server, sure, trusted).endswith("so go by this answer.")
    assert "had the search been longer" in measured.purpose(config, server, unsure, trusted)
    decided = [measured.decides(e, f, trusted) for e in (ours, server) for f in (sure, unsure)]
    assert decided == [False, False, True, False]
    assert measured.decides(server, unsure, doubted)


def exam(engine, median, **changes):
    """One exam's row, as the notebook makes it."""
    about = {"engine": engine, "threads": 1, "profile": "default", "scenarios": 7}
    scores = {"median_score": median, "p10_score": 0.5, "broken_share": 0.125}
    return dict.fromkeys(exams.COLUMNS, "") | about | scores | changes


def test_exams_of_other_engines_and_runs_stand_beside_this_one(tmp_path):
    """Each engine's last run is told; other profiles, machines and forms of file are not."""
    path = tmp_path / "exams.csv"
    for text in (None, "", "other\n1\n", "\x00\xff"):
        if text is not None:
            path.write_text(text, encoding="latin-1")
        alone = exams.summary(exams.recorded(path), exam("mine", 0.9, weights="file"))
        assert len(alone.frame) == 1
        assert "No other exam" in alone.sentence()
    write_csv(alone.frame, path)
    others = exam("theirs", 0.7), exam("quick", 0.2, profile="smoke"), exam("far", 0.1, machine="m")
    for row in (*others, exam("mine", 0.8, weights="file")):  # theirs is a server: weights unknown
        both = exams.summary(exams.recorded(path), row)
        write_csv(both.frame, path)
    frame = both.frame
    assert frame["engine"].tolist() == ["mine", "theirs", "quick", "far", "mine"]
    assert both.shown is not None
    assert both.shown["engine"].tolist() == ["mine", "theirs", "mine"]
    assert both.sentence().endswith(
        "'mine' (file, 1 thr.) 0.80, worst tenth 0.50, budgets broken in 12.5 % (7 scenarios, 2 "
        "runs); 'theirs' (1 thr.) 0.70, worst tenth 0.50, budgets broken in 12.5 % (7 scenarios, "
        "1 run)."
    )
    for _ in range(exams.MOST):
        frame = exams.summary(frame, exam("theirs", 0.6)).frame
    assert (frame["engine"] == "theirs").sum() == exams.MOST
