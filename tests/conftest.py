"""What several test files share: one smoke study of the real notebooks, and the last commit's."""

from __future__ import annotations

import io
import os
import subprocess
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests import hostile

from batchgauge.core.default_model import default_model_path
from batchgauge.errors import UserError
from batchgauge.lock import locked
from batchgauge.reporting.charts import Chart
from batchgauge.reporting.render import svg
from batchgauge.reporting.study import run_study

if TYPE_CHECKING:
    import pandas as pd

    from batchgauge.reporting import Section

PROJECT = Path(__file__).parents[1]


def chart_of(section: Section) -> Chart:
    """A section's picture, which is a chart with a caption, and can be drawn."""
    drawn = section.draw()
    assert drawn
    chart, caption = drawn
    assert caption
    assert isinstance(chart, Chart)
    assert "<svg" in svg(chart.full("words"), "test")
    return chart


def rows_of(chart: Chart) -> pd.DataFrame:
    """The data that a chart draws."""
    import pandas as pd

    rows = pd.DataFrame(chart.spec["data"]["values"])
    packed = [step["flatten"] for step in chart.spec.get("transform", ()) if "flatten" in step]
    for columns in packed:
        rows = rows.explode(columns, ignore_index=True)
    return rows


@pytest.fixture(scope="session")
def smoke_study(tmp_path_factory):
    """The folder that holds `data/` and `reports/` of one study with the smoke profile.

    Its prompt, its workload, and the model's name and file name are hostile: whatever a page,
    a Markdown version or an executed notebook shows of them has to be text.
    BATCHGAUGE_STUDY names a folder of a finished study to look at instead of running one.
    """
    if finished := os.environ.get("BATCHGAUGE_STUDY"):
        return Path(finished).resolve()
    folder: Path = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one study for all processes of the tests
        folder = folder.parent
    out, given = folder / "study", folder / "given"
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(folder, "tests"))
                break
            except UserError:
                time.sleep(0.5)
        if not out.exists():
            for made in (out, given):
                made.mkdir()
            _study(out, given)
    return out


def _study(out: Path, given: Path) -> None:
    parameters = {
        "prompt": f"{hostile.EVERYTHING.replace(chr(0), '')} Why do ships float?",
        "workload": str(hostile.workload(given)),
        "model": str(hostile.renamed_model(default_model_path(), given)),
    }
    books = PROJECT / "notebooks"
    try:
        run_study(profile="smoke", out_dir=out, notebooks=books, parameters=parameters)
    except UserError as problem:  # a test of its own says so; the other reports are looked at still
        (out / "failures.txt").write_text(str(problem), encoding="utf-8")


@pytest.fixture(scope="session")
def committed(tmp_path_factory):
    """README, notebooks, data and reports of the last commit.

    Not those of the working tree, where `make study` puts a run of one's own.
    """
    wanted = ("README.md", "notebooks", "data", "reports")
    try:
        done = subprocess.run(
            ["git", "archive", "--format=zip", "HEAD", *wanted],
            cwd=PROJECT, capture_output=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git, or no checkout of it: nothing says what was committed")
    out: Path = tmp_path_factory.mktemp("committed")
    with zipfile.ZipFile(io.BytesIO(done.stdout)) as files:
        files.extractall(out)
    return out
