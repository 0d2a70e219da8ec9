"""The README: its results are those of the committed data."""

import json

import pandas as pd
import pytest

from batchgauge import UserError
from batchgauge.reporting.readme import BEGIN, END, real_engines, results_block, with_block
from batchgauge.reporting.study import books


def test_results_are_those_of_the_committed_data(committed):
    """The block between the marks is what the committed facts give, to the letter."""
    readme = (committed / "README.md").read_text(encoding="utf-8")
    order = [book.report for book in books(committed / "notebooks")]
    if not any((committed / "data").glob("*_facts.json")):  # before the first study
        assert f"{BEGIN}\n{END}" in readme
        return
    assert with_block(readme, results_block(committed, order)) == readme


def test_a_readme_without_marks_is_refused():
    """Without both marks there is nowhere to write, which is said."""
    with pytest.raises(UserError, match="no block"):
        with_block("# title", "x")
    assert with_block(f"a{BEGIN}old{END}b", "new") == f"a{BEGIN}\nnew\n{END}b"


def test_a_project_without_reports_is_said(tmp_path):
    """No facts, no block."""
    with pytest.raises(UserError, match="no reports"):
        results_block(tmp_path, ["tour"])


@pytest.mark.parametrize(
    ("days", "said"),
    [(("01", "01"), "(2026-12-01)"), (("02", "01"), "(2026-12-01 to 2026-12-02)")],
)
def test_reports_that_were_not_made_on_one_day_say_so(tmp_path, days, said):
    """The block names the first and the last day of its reports, in whatever order they come."""
    for folder in ("data", "reports"):
        (tmp_path / folder).mkdir()
    for name, day in zip(("first", "second"), days, strict=True):
        facts = {
            "report": name, "title": name, "question": "What?", "answer": "This.",
            "scores": [], "files": [], "profile": "smoke", "seed": 0, "seconds": 1.0,
            "git_commit": "", "versions": {}, "machine": "a machine",
            "finished": f"2026-12-{day}T10:00:00",
        }  # fmt: skip
        (tmp_path / "data" / f"{name}_facts.json").write_text(json.dumps(facts))
        (tmp_path / "reports" / f"{name}.html").touch()
    assert said in results_block(tmp_path, ["first", "second"]).splitlines()[0]


def test_advice_for_real_engines_shows_the_worst_answer():
    """One row an engine, with every setting that was advised and the least share of the best."""
    told = {
        "engine": ["one", "one", "other"], "weights": ["file", "file", float("nan")],
        "threads": [1, 1, 2], "max_tokens": 16, "advised_setting": [3, 12, 5], "best_setting": 12,
        "throughput_share": [0.91, 1.02, 0.96], "search_s": [60.0, 80.0, 9.0], "sweep_s": 500.0,
    }  # fmt: skip
    said = "\n".join(real_engines(pd.DataFrame(told)))
    assert "2 of 3 answers within 5 % of the best" in said
    assert "| one | file | 1 | 16 | 3, 12 | 12 | 0.910 | 70 | 500 |" in said
    assert "| other | – | 2 | 16 | 5 | 12 | 0.960 | 9 | 500 |" in said
