"""Notebook 05's sections on decisions and rates: what they say, draw, write and score."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from tests.conftest import rows_of
from tests.test_gate import stored

mpl.use("agg")

from batchgauge.errors import UserError
from batchgauge.experiments.regression import decisions, runs, sections
from batchgauge.files import write_csv
from batchgauge.measuring.gate.judging import Change, judged
from batchgauge.measuring.gate.process import GatePlan, ProcessLayout
from batchgauge.measuring.gate.revisions import PACKAGE, copy
from batchgauge.measuring.gate.rounds import GateResult, Round
from batchgauge.measuring.gate.sequential import SequentialDesign
from batchgauge.reporting import profile_named
from batchgauge.reporting.project import project_root
from batchgauge.request import BatchStats


def picture_of(section):
    """The figure of a section that has one."""
    return section.draw()[0]


def table_of(section):
    """The table that readers see."""
    return section.shown


def title_of(figure):
    """The title of a picture with one panel."""
    return figure.title


def changes(slowdown=0.12):
    """One benchmark that is slower, and one that is not."""
    slow = Change("slow", slowdown, 0.10, 0.14, 0.03, 0.01, 16, "slower")
    still = Change("still", -0.004, -0.02, 0.01, 0.03, 0.01, 8, "no change seen")
    return [
        replace(c, false_alarm=0.001, seconds=20.0, most=64, base_ms=2.0) for c in (slow, still)
    ]


def plan():
    """The notebook's plan in a smoke run."""
    return sections.plan(profile_named("smoke"), threads=1, seed=3, tokenizer="x", engine="numpy")


def test_an_engine_that_does_not_exist_ends_it_at_once():
    """Before the first decision, though no default benchmark runs the engine."""
    with pytest.raises(UserError, match="nonsense"):
        sections.plan(profile_named("smoke"), threads=1, seed=3, tokenizer="x", engine="nonsense")


@pytest.fixture
def taken(monkeypatch):
    """What a default run of the notebook takes, from a gate that measures nothing."""
    seen = []

    def measured(_, new, plan):
        seen.append((new.slow, plan.seed))
        rows = [Round(c.benchmark, 1, ProcessLayout(1, 2, 3, 4), 0.1, 2.0, 2.2) for c in changes()]
        return GateResult(changes(), rows, [], {})

    monkeypatch.setattr(decisions, "gate", measured)
    found = sections.take(plan(), profile_named("default"))
    assert [slow for slow, _ in seen] == [0.0, 0.05]
    assert seen[0][1] != seen[1][1]  # other layouts
    return found


def test_decisions_have_their_conditions(taken):
    """One row a benchmark and injection, one a round; both of the same run."""
    rows = taken.decisions
    assert rows["injection"].tolist() == ["none", "none", "wait", "wait"]
    assert rows["slowdown"].tolist() == [0.0, 0.0, 0.05, 0.05]
    assert rows["run_id"].nunique() == taken.rounds["run_id"].nunique() == 1
    assert {"load", "machine", "versions", "git_commit", "threads"} <= set(rows)
    assert taken.rounds["layout"].unique().tolist() == ["1/2/3/4"]


def test_each_injection_is_drawn_in_percent(taken):
    """Points, threshold, title and finding: each from its column."""
    same, slowed = sections.decided(taken)
    assert same.sentence() == (
        "The same code twice: 1 of 2 benchmarks fail, after 8 to 16 rounds and 20 s a benchmark "
        "at most. A pull request that changes nothing fails in 0.20 % of cases at the noise seen "
        "here, over 2 benchmarks."
    )
    assert slowed.sentence().startswith("Slowed down by 5 % by a busy wait: 1 of 2 benchmarks")
    figure = picture_of(slowed)
    rows = rows_of(figure)
    assert rows["change"].tolist() == [12.0, -0.4]
    assert rows["name"].tolist() == ["slow", "still"]
    places = [layer["encoding"].get("x", {}).get("datum") for layer in figure.spec["layer"]]
    assert {at for at in places if at is not None} == {0, 1.0}  # no change, the threshold
    words = [layer["mark"].get("text") for layer in figure.spec["layer"]]
    assert "threshold 1 %" in words
    assert title_of(figure) == "Slowed down by 5 % by a busy wait: 1 of 2 benchmarks fail"
    assert slowed.frame["injection"].unique().tolist() == ["wait"]
    assert table_of(same)["change_percent"].tolist() == [12.0, -0.4]


def test_rates_are_those_of_the_record_and_of_this_run(taken, tmp_path):
    """Counts add up over runs; false alarms are better low, detection is better high."""
    before = taken.decisions.assign(run_id="earlier", status="no change seen", fails=False)
    decisions.append(before, taken.rounds.assign(run_id="earlier"), tmp_path)
    section = sections.gate_rates(taken, tmp_path)
    table = section.frames()["gate_rates"].query("slowdown == 0.05 and benchmark == 'slow'")
    assert table[["runs", "decisions", "slower"]].to_numpy().tolist() == [[2, 2, 1]]
    assert len(section.frames()["decisions"]) == 8
    scores = {s.key: s for s in section.scores()}
    assert {key: s.better for key, s in scores.items()} == {
        "gate_false_alarms": "lower",
        "gate_finds_5_percent": "higher",
        "gate_seconds": "lower",
    }
    assert scores["gate_false_alarms"].value == 25.0
    assert scores["gate_false_alarms"].verdict == "open"
    assert scores["gate_seconds"].value == 20.0
    assert "unchanged code in 1 of 4 decisions [" in section.sentence()
    assert "a slow-down of 5 % in 1 of 4 decisions" in sections.answer(section, taken).text
    drawn = rows_of(picture_of(section)).set_index("name")["rate"]
    shares = {
        "0 % · slow": 50,
        "0 % · still": 0,
        "5 % · slow": 50,
        "5 % · still": 0,
    }
    assert drawn.to_dict() == shares
    assert title_of(picture_of(section)) == "8 decisions of the gate, real, in 2 runs"
    decisions.append(taken.decisions, taken.rounds, tmp_path)  # the record grows
    assert len(decisions.recorded(tmp_path)[0]) == 8
    for name in ("1558273e1849", "001558273184"):  # what a number would look like
        folder = tmp_path / name
        decisions.append(taken.decisions.assign(git_commit=name, run_id=name), taken.rounds, folder)
        read, _ = decisions.recorded(folder)
        assert set(read["git_commit"]) == set(read["run_id"]) == {name}


def test_other_work_fails_too(taken):
    """A benchmark whose time is as before and whose work is not fails; that is in the rates."""
    rows = taken.decisions.assign(status="no change seen", fails=[False, True, False, False])
    table = decisions.rates(rows, by=("slowdown",)).set_index("slowdown")
    assert table[["failed", "rate", "slower"]].to_numpy().tolist() == [[1, 0.5, 0], [0, 0.0, 0]]
    assert "unchanged code in 1 of 2 decisions [" in sections.rates_sentence(rows)


def test_injections_are_read_from_text():
    """None, or a kind with its percent; anything else is refused in a sentence."""
    texts = ["none", "wait=5", "code=3"]
    assert [str(decisions.Injection.parse(text)) for text in texts] == texts
    for bad in ("", "wait", "none=5", "wait=0", "wait=x", "sleep=5", "code=100"):
        with pytest.raises(UserError, match="no injection"):
            decisions.Injection.parse(bad)


def test_code_is_changed_in_the_tree_alone():
    """The copy's call does the same and runs a loop first; what cannot be changed is refused."""
    package = project_root() / PACKAGE
    options = runs.suite_options(tokenizer="numpy", model="", threads=1, seed=0)
    fast = GatePlan(["statistics/items=1000"], package / "suite.py", options)
    with copy(package) as tree:
        decisions._change(tree / PACKAGE, fast.benchmarks[0], 7.4)
        changed = (tree / PACKAGE / "request.py").read_text()
        original = (package / "request.py").read_text()
        assert changed.startswith(original)
        added = changed.removeprefix(original)
    call = BatchStats.__dict__["from_durations"]
    owner: Any = type("BatchStats", (), {"from_durations": call})
    exec(added, {"BatchStats": owner})  # noqa: S102 - the text that the tree was given
    assert owner.__dict__["from_durations"] is not call
    assert owner.from_durations.__func__.__name__ == "slow"
    assert added.endswith(", 7)\n")
    with pytest.raises(UserError, match="Code is changed for"):
        decisions._changeable(GatePlan(["lookup/items=10"], package / "suite.py", options))


def test_a_change_of_code_is_as_large_as_the_gate_sees_it(monkeypatch):
    """A pilot that is seen as half as large as it should be makes the change twice as large."""
    package = project_root() / PACKAGE
    options = runs.suite_options(tokenizer="numpy", model="", threads=1, seed=0)
    plan = GatePlan(["statistics/items=1000"], package / "suite.py", options)
    piloted = []

    def seen(_base, new, plan):
        text = (new.source / PACKAGE.name / "request.py").read_text()
        piloted.append(int(text.rsplit(", ", 1)[1].rstrip().rstrip(")")))
        changes = [SimpleNamespace(benchmark=plan.benchmarks[0], change=decisions.PILOT / 2)]
        return SimpleNamespace(changes=changes)

    monkeypatch.setattr(decisions, "gate", seen)
    turns = decisions._turns(package.parent, package, plan)
    assert turns[plan.benchmarks[0]] == pytest.approx(2 * piloted[0] / decisions.PILOT, rel=0.05)


def rejudged(record, rounds):
    """The verdicts of the record by today's rule, on the recorded rounds, in their order."""
    keys = ["run_id", "decision", "benchmark"]
    ratios = {key: g["log_ratio"].to_numpy() for key, g in rounds.groupby(keys)}
    return [
        judged(ratios[row[0], row[1], row[2]], SequentialDesign(int(row[3]), float(row[4])))[0]
        for row in record[[*keys, "most", "threshold"]].itertuples(index=False)
    ]


def test_recorded_decisions_are_those_of_todays_rule():
    """Every decision on record, judged anew on its rounds, has the verdict that stands there."""
    record, rounds = decisions.recorded(project_root() / "data" / "regression")
    if record.empty:
        pytest.skip("there is no record here")
    assert rejudged(record, rounds) == record["status"].tolist()
    keys = ["run_id", "decision", "benchmark"]
    assert not record.duplicated(keys).any()
    assert record["machine"].notna().all()


def test_a_record_is_judged_anew_from_its_rounds():
    """A verdict that does not follow from its rounds is found."""
    rng = np.random.default_rng(0)
    run = {"run_id": "a", "decision": 0, "benchmark": "x"}
    rounds = pd.DataFrame([{**run, "log_ratio": r} for r in 0.05 + rng.normal(0, 0.005, 16)])
    record = pd.DataFrame([{**run, "most": 64, "threshold": 0.01, "status": "no change seen"}])
    assert rejudged(record, rounds) == ["slower"]


def test_a_stored_run_that_compares_is_drawn_and_one_that_does_not_is_said(tmp_path, monkeypatch):
    """The newest file counts; another machine's has a sentence and no picture."""

    def against(now):
        monkeypatch.setattr(runs, "run_suite", lambda *_, **__: now)
        return sections.stored("*", str(tmp_path), seconds=1.0)

    empty = against(stored())
    assert empty.sentence() == "There is no stored baseline yet."
    own = sections.stored("*", str(tmp_path), seconds=1.0, engine="my_engine:make")
    assert "None of these benchmarks runs the engine 'my_engine:make'" in own.sentence()
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


def test_a_smoke_plan_is_one_short_decision():
    """The least number of rounds on one cheap benchmark, with the notebook's seed and subject."""
    assert plan().rounds == 8
    assert (plan().seed, plan().options["tokenizer"]) == (3, "x")
    assert plan().benchmarks == ["statistics/items=1000"]


def test_a_summary_leaves_warm_up_out():
    """Median and throughput are those of the steady samples."""
    frame = stored(noise=0.0)
    frame.loc[frame["block"] == 0, ["is_warmup", "wall_ms"]] = [True, 1e6]
    table = runs.summary(frame).set_index("benchmark")
    assert table.loc["still", "median_ms"] == pytest.approx(3.0)
    assert table.loc["changed", "items_per_s"] == pytest.approx(2 / 5e-3)
    assert set(table["samples"]) == {29}


def test_every_frame_comes_back_from_its_csv(taken, tmp_path):
    """Rounds, decisions and error rates are read back equal."""
    for section in (*sections.decided(taken), sections.gate_rates(taken, tmp_path)):
        for name, frame in section.frames().items():
            path = write_csv(frame, tmp_path / f"{name}.csv")
            found = pd.read_csv(path, keep_default_na=False, na_values=["nan"])
            expected = frame.reset_index(drop=True)
            pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-12)


def test_the_suite_is_measured_with_its_work():
    """One table of samples; peak bytes are among the counters, tokens are the benchmark's own."""
    frame = runs.run_suite("statistics/items=100", seconds=0.01, min_samples=2)
    assert frame["benchmark"].unique().tolist() == ["statistics/items=100"]
    assert frame["implementation"].unique().tolist() == ["numpy"]
    counters = json.loads(frame["counters"].iloc[0])
    assert counters["durations"] == 100
    assert counters["peak_bytes"] > 0
