"""Two studies side by side: verdicts that flip, intervals that hold the other's value."""

import json

import pandas as pd
import pytest
from click.testing import CliRunner

from batchgauge.errors import UserError
from batchgauge.reporting.commands import report
from batchgauge.reporting.repeat import agree, sentence, two_runs


def study(folder, scores, unit="×", machine="one machine"):
    """A folder with the facts of one report: {key: (goal, value, low, high)}."""
    rows = [
        {"key": key, "label": f"the {key}", "goal": goal, "value": value, "low": low, "high": high,
         "unit": unit, "better": "higher", "verdict": "anything"}
        for key, (goal, value, low, high) in scores.items()
    ]  # fmt: skip
    (folder / "data").mkdir(parents=True)
    path = folder / "data" / "invented_facts.json"
    facts = {"report": "invented", "machine": machine, "scores": rows}
    path.write_text(json.dumps(facts), encoding="utf-8")
    return folder


def test_runs_that_agree(tmp_path):
    """Both intervals hold the other's value; a score without interval has none to hold."""
    one = study(tmp_path / "a", {"x": (1.0, 2.0, 1.5, 2.5), "y": (1.0, 3.0, None, None)})
    other = study(tmp_path / "b", {"x": (1.0, 2.2, 1.7, 2.7), "y": (1.0, 3.1, None, None)})
    table = two_runs(one, other)
    assert table["key"].tolist() == ["x", "y"]
    assert (table["held"].tolist(), table["of"].tolist()) == ([2, 0], [2, 0])
    assert agree(table)
    assert "2 of 2 intervals hold the other run's value: 100 %" in sentence(table)
    done = CliRunner().invoke(report, ["--out", str(one), "--against", str(other)])
    assert done.exit_code == 0
    assert "the x: 2 [1.5, 2.5] and 2.2 [1.7, 2.7] ×" in done.output
    assert "the y: 3 and 3.1 ×" in done.output
    assert "machine" not in done.output
    assert len(pd.read_csv(one / "data" / "two_runs.csv")) == 2


def test_a_verdict_that_flips_is_named(tmp_path):
    """From met to missed is no agreement, nor are intervals that hold nothing of each other."""
    one = study(tmp_path / "a", {"x": (1.0, 2.0, 1.5, 2.5), "y": (1.0, 5.0, 4.9, 5.1)})
    other = study(tmp_path / "b", {"x": (1.0, 0.5, 0.4, 0.6), "y": (1.0, 5.0, 4.9, 5.1)})
    table = two_runs(one, other)
    assert table["flips"].tolist() == [True, False]
    assert not agree(table)
    assert "1 go from met to not met or back (the x). 2 of 4 intervals" in sentence(table)
    done = CliRunner().invoke(report, ["--out", str(one), "--against", str(other)])
    assert done.exit_code != 0


def test_a_report_of_one_run_does_not_agree_with_itself(tmp_path):
    """Both folders have it from the same run: it says nothing about a second one."""
    one, other = (study(tmp_path / name, {"x": (1.0, 2.0, 1.5, 2.5)}) for name in "ab")
    with pytest.raises(UserError, match="no score"):
        two_runs(one, other)


def test_what_cannot_be_compared_is_left_out_or_said(tmp_path):
    """A score that has another unit now is not compared; other machines are named."""
    one = study(tmp_path / "a", {"x": (1.0, 2.0, 1.5, 2.5)})
    percent = study(tmp_path / "b", {"x": (100.0, 200.0, 150.0, 250.0)}, unit="%")
    with pytest.raises(UserError, match="no score"):
        two_runs(one, percent)
    other = study(tmp_path / "c", {"x": (1.0, 2.0, 1.5, 2.5)}, machine="another")
    done = CliRunner().invoke(report, ["--out", str(one), "--against", str(other)])
    assert "They ran on different machines: one machine and another." in done.output


def test_folders_without_a_study_are_refused(tmp_path):
    """No facts, broken facts, and no score in common: one sentence each."""
    one = study(tmp_path / "a", {"x": (1.0, 2.0, 1.5, 2.5)})
    strange = study(tmp_path / "b", {"z": (1.0, 2.0, 1.5, 2.5)})
    broken = study(tmp_path / "c", {})
    (broken / "data" / "broken_facts.json").write_text("{", encoding="utf-8")
    for other, said in ((tmp_path, "no study"), (strange, "no score"), (broken, "holds no facts")):
        with pytest.raises(UserError, match=said):
            two_runs(one, other)
