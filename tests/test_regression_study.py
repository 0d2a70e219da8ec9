"""Notebook 05's sections on invented changes and rates: what they say, draw, write and score."""

import json

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from tests.conftest import rows_of
from tests.test_gate import stored

mpl.use("agg")

from batchgauge.errors import UserError
from batchgauge.experiments.regression import runs, sections
from batchgauge.files import write_csv
from batchgauge.measuring import read
from batchgauge.measuring.gate.compare import Change, frame_of
from batchgauge.measuring.gate.rounds import Evidence, GateResult
from batchgauge.measuring.gate.trial import simulate
from batchgauge.measuring.record import Sample
from batchgauge.reporting import Report, plots, profile_named
from batchgauge.text import percent


@pytest.fixture(autouse=True)
def theme():
    """Titles stand where the reports have them."""
    plots.use_theme()


def picture_of(section):
    """The figure of a section that has one."""
    return section.draw()[0]


def table_of(section):
    """The table that readers see."""
    return section.shown


def title_of(figure):
    """The title of a picture with one panel."""
    return figure.title


def changes():
    """One benchmark that looks slower by 12 %, and one on its noise floor."""
    return [
        Change("slow", 0.12, 0.10, 0.14, 0.01, 0.03, 0.02, 8, "slower, not confirmed"),
        Change("still", -0.004, -0.02, 0.01, 0.025, 0.03, 0.02, 8, "no significant difference"),
    ]


def plan():
    """The notebook's plan in a smoke run."""
    return sections.plan(profile_named("smoke"), threads=1, seed=3, tokenizer="x", engine="y")


def slowed(slowdown, monkeypatch):
    """The section of an injected slow-down in which `changes` were seen."""
    seen = GateResult(changes(), [], {}, {})
    monkeypatch.setattr(runs, "against_itself", lambda _, slow: seen if slow == slowdown else None)
    return sections.slowed(plan(), slowdown)


def rates_section(table, monkeypatch):
    """The section of simulated rates."""
    monkeypatch.setattr(runs, "trial", lambda *_, **__: table)
    return sections.gate_rates(GateResult([], [], {}, {}), trials=20, seed=0)


def rates(noise=0.01):
    """Error rates of the gate under normal noise, as the notebook has them."""
    drawn = np.random.default_rng(0).normal(0, noise, 40)
    table = simulate(drawn, processes=12, trials=20)
    return table.assign(benchmark="invented", seconds=3.0)


def test_same_code_says_floors_and_alarms(tmp_path, monkeypatch):
    """Samples are written and read back; floors, alarms and the table are those of the changes."""
    samples = [
        Sample("still", "base", "tokenize", 1, "{}", 0, block, 0, False, 1, 3.0, 1.0, 2, 50)
        for block in range(4)
    ]
    seen = GateResult(changes(), samples, {}, {})
    monkeypatch.setattr(runs, "against_itself", lambda _: seen)
    found, section = sections.same_code(plan())
    assert found is seen
    assert section.sentence() == (
        "The noise floor lies between ± 1.0 % and ± 2.5 % with 3 process rounds; 1 of 2 unchanged "
        "benchmarks would have been measured a second time."
    )
    report = Report.begin("regression", title="t", question="q", profile="smoke", out_dir=tmp_path)
    report.show(section)
    assert len(read(tmp_path / "data" / "regression_same_code.csv")) == 4
    assert (tmp_path / "reports" / "figures" / "regression_same_code.png").is_file()
    shown = table_of(section)
    assert shown["change_percent"].tolist() == [12.0, -0.4]
    answer = sections.answer(section, rates_section(rates(), monkeypatch))
    assert answer.text.endswith("Single benchmarks vary by ± 1.0 % to ± 2.5 %.")
    (tile,) = answer.tiles
    assert tile.value == "Noise ± 1.0 % to ± 2.5 %"


def test_ratios_are_drawn_in_percent(monkeypatch):
    """Points, noise bands, threshold: each from its column, times 100."""
    figure = picture_of(slowed(0.1, monkeypatch))
    rows = rows_of(figure)
    assert title_of(figure) == "Slowed down by 10 %: 1 of 2 benchmarks look slower"
    assert rows[["-noise_floor", "noise_floor"]].to_numpy().tolist() == [[-1.0, 1.0], [-2.5, 2.5]]
    assert rows["change"].tolist() == [12.0, -0.4]
    assert rows["name"].tolist() == ["slow", "still"]
    assert "threshold 2 %" in str(figure.spec["layer"])


def test_an_injected_slow_down_is_written_as_changes(monkeypatch):
    """The CSV has one row a benchmark, in percent."""
    section = slowed(0.2, monkeypatch)
    assert section.frame["status"].tolist() == [c.status for c in changes()]
    assert section.sentence() == "3 process rounds saw 1 of 2 injected slow-downs of 20 %."


def test_rates_are_scored_against_their_goals(monkeypatch):
    """False alarms are better low, detection is better high; figure and title follow the table."""
    table = rates()
    section = rates_section(table, monkeypatch)
    scores = {s.key: s for s in section.scores()}
    usual = table[table["threshold"] == 0.02].set_index("slowdown")["rate"]
    assert {key: s.better for key, s in scores.items()} == {
        "gate_false_alarms": "lower",
        "gate_finds_10_percent": "higher",
        "gate_finds_5_percent": "higher",
    }
    assert scores["gate_finds_5_percent"].value == pytest.approx(100 * usual[0.05])
    assert scores["gate_false_alarms"].low <= 100 * usual[0.0] <= scores["gate_false_alarms"].high
    figure = picture_of(section)
    assert title_of(figure) == f"A slow-down of 10 % is found in {percent(usual[0.10])} of runs"
    assert np.allclose(rows_of(figure)["rate"], 100 * usual, rtol=1e-5)


def test_a_stored_run_that_compares_is_drawn_and_one_that_does_not_is_said(tmp_path, monkeypatch):
    """The newest file counts; another machine's has a sentence and no picture."""

    def against(now):
        monkeypatch.setattr(runs, "run_suite", lambda *_, **__: now)
        return sections.stored("*", str(tmp_path), seconds=1.0)

    empty = against(stored())
    assert empty.sentence() == "There is no stored baseline yet."
    assert empty.draw() is None
    write_csv(stored(0.5), tmp_path / "2026-01-01.csv")
    write_csv(stored(), tmp_path / "2026-01-02.csv")
    same = against(stored(1.2, seed=1))
    assert "'2026-01-02.csv', 1 of 2 benchmarks fail" in same.sentence()
    figure = picture_of(same)
    assert title_of(figure) == "1 of 2 benchmarks fail against the stored baseline"
    assert table_of(same)["benchmark"].tolist() == ["still", "changed"]
    other = against(stored(workload="other"))
    assert other.sentence().startswith("Not comparable")
    assert other.draw() is None


def test_a_plan_runs_all_of_its_process_rounds():
    """The checkout against itself: no early end, as the noise is what is looked for."""
    assert plan().least == plan().processes == 3
    assert (plan().seed, plan().options["tokenizer"]) == (3, "x")
    assert plan().benchmarks == ["statistics/items=1000"]


def test_a_round_gives_the_verdicts_of_its_evidence(monkeypatch):
    """The slow-down goes to the third process; where nothing ran, the reason is said."""
    logs = np.array([0.10, 0.11, 0.09])
    evidence = {"a": Evidence(logs, logs - 0.1, ({}, {}))}
    seen = []

    def one_round(*sides_and_plan):
        seen.append([getattr(side, "slow", None) for side in sides_and_plan[:2]])
        return evidence, [], {}

    monkeypatch.setattr(runs, "measure_round", one_round)
    result = runs.against_itself(plan(), 0.1)
    assert seen == [[0.0, 0.1]]
    assert frame_of(result.changes)["change"].tolist() == pytest.approx([np.expm1(0.1)])
    monkeypatch.setattr(runs, "measure_round", lambda *_: ({}, [], {"a": "it is broken"}))
    with pytest.raises(UserError, match="it is broken"):
        runs.against_itself(plan())


def test_a_summary_leaves_warm_up_out():
    """Median and throughput are those of the steady samples."""
    frame = stored(noise=0.0)
    frame.loc[frame["block"] == 0, ["is_warmup", "wall_ms"]] = [True, 1e6]
    table = runs.summary(frame).set_index("benchmark")
    assert table.loc["still", "median_ms"] == pytest.approx(3.0)
    assert table.loc["changed", "items_per_s"] == pytest.approx(2 / 5e-3)
    assert set(table["samples"]) == {29}


def test_every_frame_comes_back_from_its_csv(monkeypatch, tmp_path):
    """Changes and error rates are read back equal; samples have a reader of their own."""
    for section in (slowed(0.1, monkeypatch), rates_section(rates(), monkeypatch)):
        for name, frame in section.frames().items():
            path = write_csv(frame, tmp_path / f"{name}.csv")
            found = pd.read_csv(path, keep_default_na=False, na_values=["nan"])
            pd.testing.assert_frame_equal(found, frame, check_dtype=False, rtol=1e-12)


def test_the_suite_is_measured_with_its_work():
    """One table of samples; peak bytes are among the counters, tokens are the benchmark's own."""
    frame = runs.run_suite("statistics/items=100", seconds=0.01, min_samples=2)
    assert frame["benchmark"].unique().tolist() == ["statistics/items=100"]
    assert frame["implementation"].unique().tolist() == ["numpy"]
    counters = json.loads(frame["counters"].iloc[0])
    assert counters["durations"] == 100
    assert counters["peak_bytes"] > 0


def test_a_trial_has_the_noise_and_the_seconds_of_its_benchmark():
    """Quiet rounds give no false alarm and find 10 %; a gate run takes its rounds' time."""
    noise = np.random.default_rng(0).normal(0, 0.002, 12)
    evidence = {"quiet": [Evidence(noise, -noise, ({}, {}), 2.0)]}
    table = runs.trial(GateResult([], [], evidence, {}), trials=5)
    assert table["benchmark"].unique().tolist() == ["quiet"]
    assert runs.overall(table, 0.0).value == 0.0
    assert runs.overall(table, 0.10).value == 1.0
    assert np.allclose(table["seconds"], 2.0 * table["processes"])
