"""The batch-sizing notebook's logic on invented times: scenarios, judging, tables, sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from batchgauge.experiments.batch_sizing import runs, study, tables, words
from batchgauge.experiments.batch_sizing.sweep import sweep_engine, sweep_tokenizer
from batchgauge.sizing import CostModel, Lengths, MemoryModel, ModelShape, simulated_profiles
from batchgauge.sizing.calibration import calibrate_engine, calibrate_tokenizer
from batchgauge.sizing.memory_model import Peak

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
    plan = runs.effort("smoke", 1)
    models = {
        ("engine", 1): calibrate_engine(engine, max_batch_size=8, max_positions=64),
        ("tokenizer", 1): calibrate_tokenizer(texts, max_batch_size=plan.tokenizer_largest),
    }
    questions = study.scenarios(WORKS, models, MEMORY, TEXTS, plan)
    prior = CostModel.prior(SHAPE, simulated_profiles()[0])
    advice = study.advise(questions, models, MEMORY, {1: prior})
    wanted = advice.wanted(questions)
    sweeps = {
        ("engine", 1): sweep_engine(engine, largest=8, passes=1, max_positions=64),
        ("tokenizer", 1): sweep_tokenizer(
            texts, largest=plan.tokenizer_largest, passes=1, also=wanted["tokenizer", 1]
        ),
    }
    peaks = [Peak(size, 8, 4, 0.0) for size in (4, 8)]
    peaks = [Peak(p.rows, 8, 4, MEMORY.batch_bytes(p.plan())) for p in peaks]
    scored = study.judge(questions, advice, sweeps, peaks, MEMORY.weight_bytes)
    return models, questions, advice, sweeps, scored


def test_an_advisor_with_the_right_model_is_nearly_perfect(judged):
    """On noiseless machines every score is high and no budget is broken."""
    scored = judged[4]
    rows = scored[scored["strategy"] == study.ADVISOR]
    assert rows["score"].median() >= 0.98
    assert not (rows["late"] | rows["over_memory"]).any()
    medians = dict(study.summaries(scored)[["strategy", "median_score"]].to_numpy().tolist())
    assert medians[study.ADVISOR] > medians["always 1"]


def test_scenarios_cover_what_they_should(judged):
    """Both parts, budgets of both kinds and an impossible one are asked."""
    questions = judged[1]
    assert {q.part for q in questions} == {"engine", "tokenizer"}
    assert any(q.memory_budget_bytes for q in questions)
    assert {q.latency_metric for q in questions} == {"request", "ttft", "inter_token"}
    impossible = next(q for q in questions if "impossible" in q.name)
    assert judged[2].sizes[study.ADVISOR, impossible.name] == 0
    assert len({q.name for q in questions}) == len(questions)


def test_errors_and_drift_follow_the_sweep(judged):
    """A right model holds; the same model made 8 % too slow does not."""
    errors = study.fresh_errors(judged[0], judged[3])
    assert errors["relative_error"].abs().median() < 0.01
    noisy = errors.assign(
        fresh_ms=errors["fresh_ms"]
        * np.exp(0.01 * np.random.default_rng(0).normal(size=len(errors)))
    )
    assert not study.drift(noisy).noticed
    assert study.drift(noisy, wrong=1.08).noticed


def test_stability_of_an_unchanged_model_is_one(judged):
    """The same calibration again gives the same sizes."""
    models, questions, advice, _, _ = judged
    table = study.stability(questions, advice, [models["engine", 1]], MEMORY)
    assert (table["same_share"] == 1.0).all()
    assert "100 %" in words.stable(table, 1)


def test_sentences_carry_the_numbers_of_their_data(judged):
    """Results in sentences come from the frames that they describe."""
    models, _, _, sweeps, scored = judged
    table = study.summaries(scored)
    row = table[table["strategy"] == study.ADVISOR].iloc[0]
    assert f"{row['median_score']:.3f}" in words.scores(table)
    run = pd.DataFrame(
        {
            "phase": ["before", "disturbed"],
            "within_budget": [True, False],
            "batch_size": [4, 2],
        }
    )
    assert "disturbed: 1 of 1 batches late" in words.adaptive(run, 100.0)
    assert "10.0 %" in words.whole(
        pd.DataFrame({"sweep_ms": [11.0], "model_ms": [10.0], "measured_ms": [10.0]})
    )
    assert tables.exhaustive_seconds(WORKS, sweeps["engine", 1]) > 0.0
    assert len(words.calibrations(models)) == 2


def test_the_budget_table_says_which_budget_fails():
    """Cells hold a size, or name the budget that already a batch of one breaks."""
    model = calibrate_engine(engine, max_batch_size=8, max_positions=64)
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
    assert runs.shape_of(type("Stranger", (), {"name": "stranger"})()) is None
    plan = runs.effort("smoke", 1)
    cost = calibrate_engine(engine, max_batch_size=8, max_positions=64)
    words_cost = calibrate_tokenizer(texts, max_batch_size=plan.tokenizer_largest)
    models = {("engine", 1): cost, ("tokenizer", 1): words_cost}
    questions = study.scenarios(WORKS, models, None, TEXTS, plan)
    assert questions
    assert all(q.memory_budget_bytes is None for q in questions)
    assert "no memory budget" in tables.budget_table(WORKS["short"], cost, None, 8)


def test_threads_asked_for_are_swept():
    """A thread count of one's own is part of the effort, and is what is shown."""
    plan = runs.effort("smoke", 3)
    assert dict(plan.largest)[3] == 6
    assert plan.main_threads == 3
