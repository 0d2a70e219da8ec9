"""The real notebooks, run once with the smoke profile through the study; what they write."""

from __future__ import annotations

import json
import re

import nbformat
import pandas as pd
import pytest
from tests.conftest import PROJECT

from batchgauge.errors import UserError
from batchgauge.measuring import read
from batchgauge.reporting.index import read_facts, scorecard
from batchgauge.reporting.study import books, run_study

pytestmark = pytest.mark.slow
BOOKS = books(PROJECT / "notebooks")
REPORTS = [book.report for book in BOOKS]


def test_no_notebook_failed(smoke_study):
    """The study came to its end; what went wrong otherwise, in its own words."""
    failures = smoke_study / "failures.txt"
    assert not failures.exists(), failures.read_text()


@pytest.mark.parametrize("report", REPORTS)
def test_a_report_is_whole(smoke_study, report):
    """HTML, Markdown and notebook are there, the page is small and asks for nothing outside."""
    reports = smoke_study / "reports"
    html = (reports / f"{report}.html").read_text()
    assert len(html) < 3_000_000
    assert not re.search(r"(src|href)=[\"'](https?:)?//[^\"']+\.(js|css|png|svg|woff2?)", html)
    assert "<script src" not in html
    assert 'class="answer"' in html
    assert (reports / f"{report}.md").read_text().startswith("# ")
    nbformat.validate(nbformat.read(reports / "notebooks" / f"{report}.ipynb", as_version=4))


@pytest.mark.parametrize("report", REPORTS)
def test_the_facts_name_real_files(smoke_study, report):
    """Every file that a report says it wrote is there; every CSV has rows and names."""
    facts = json.loads((smoke_study / "data" / f"{report}_facts.json").read_text())
    assert facts["answer"]
    assert facts["findings"]
    assert facts["profile"] == "smoke"
    for file in facts["files"]:
        path = smoke_study / file
        assert path.is_file(), file
        if path.suffix == ".csv":
            frame = pd.read_csv(path)
            assert len(frame), file
            assert not [c for c in frame.columns if re.search(r"\s|^Unnamed", c)], file


def test_every_table_of_samples_is_read_back(smoke_study):
    """Whatever is called samples has the record's columns, and the record's reader takes it."""
    paths = sorted((smoke_study / "data").rglob("*samples*.csv"))
    assert len(paths) >= 4
    for path in paths:
        assert len(read(path)) == len(pd.read_csv(path)), path


@pytest.mark.parametrize("report", REPORTS)
def test_every_picture_is_described(smoke_study, report):
    """Each picture of a notebook came through the report, with alt text and caption."""
    notebook = nbformat.read(smoke_study / "reports" / "notebooks" / f"{report}.ipynb", 4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if {"image/png", "image/svg+xml"} & set(output.get("data", {})):
                marks = output.metadata["batchgauge"]
                assert len(marks["alt"]) > 10, cell.source
                assert marks["caption"], cell.source


@pytest.mark.parametrize("report", REPORTS)
def test_no_raw_values_in_the_prose(smoke_study, report):
    """Generated sentences have no nan, no Python objects, no unrounded numbers."""
    facts = json.loads((smoke_study / "data" / f"{report}_facts.json").read_text())
    for sentence in [facts["answer"], *facts["findings"]]:
        assert not re.search(r"\bnan\b|<[a-z]+ object|\d\.\d{6,}|np\.float64", sentence), sentence


def test_the_index_has_every_report(smoke_study):
    """Front page: each report linked, the study's targets on the scorecard."""
    html = (smoke_study / "reports" / "index.html").read_text()
    for report in REPORTS:
        assert f'href="{report}.html"' in html
    keys = {row.score.key for row in scorecard(read_facts(smoke_study, REPORTS))}
    assert {"tokenizing_batch_32", "memory_overhead", "statistics_100_items"} <= keys
    assert html.count('<tr><th scope="row">') == len(keys)


@pytest.mark.parametrize(
    ("notebook", "parameters", "said"),
    [
        ("01", {"model": "no-such-model.gguf"}, "no-such-model.gguf"),
        ("01", {"workload": "no-such-file.txt"}, "no-such-file.txt"),
        ("01", {"inference_batch_sizes": "[0, 4]"}, "batch"),
        ("00", {"engine": "nonsense"}, "nonsense"),
        ("00", {"threads": "0"}, "thread"),
    ],
)
def test_bad_input_fails_with_one_sentence(tmp_path, notebook, parameters, said):
    """A parameter that cannot be used stops the study with one sentence and no page."""
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        run_study(
            profile="smoke",
            parameters=parameters,
            only=[notebook],
            out_dir=tmp_path,
            notebooks=PROJECT / "notebooks",
        )
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "reports").glob("*.html"))
