"""What the roadmap says of the job layer, on invented times; and its measurement once, by Dask."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
from tests.conftest import chart_of, rows_of
from tests.tiny_model import write_tiny_model

from batchgauge.experiments.context import Context
from batchgauge.experiments.roadmap import jobs, jobs_results, sections
from batchgauge.experiments.roadmap.jobs_results import Trouble, makespan
from batchgauge.experiments.roadmap.study import Case
from batchgauge.files import write_csv
from batchgauge.reporting import profile_named
from batchgauge.simulate.arrivals import Arrivals
from batchgauge.simulate.events import simulate
from batchgauge.simulate.server import Fleet, Server


def invented(*, efficiency: float = 0.95, overhead: float = 1.01, auto: float = 1.0):
    """Six blocks with a wobble that cancels in ratios; 8 parts of 0.1 s, a kill after 0.25 s."""
    rows = []

    def add(measure, way, values):
        for block, value in enumerate(np.atleast_1d(values)):
            rows.append({"measure": measure, "way": way, "block": block, "value": float(value)})

    pace = np.array([1.0, 1.1, 0.9, 1.05, 0.97, 1.2])
    near = pace * np.array([1.001, 0.999, 1.002, 0.998, 1.0, 1.0])
    part_s = 0.1
    rate = 16.4 / part_s
    add(jobs_results.TOKENIZING, "part, MB", 16.4)
    add(jobs_results.EMPTY, "round trip", np.linspace(4.0, 6.0, 101))
    add(jobs_results.COLD, "workers started", 2.0)
    add(jobs_results.COLD, "first answer", 3.5)
    for work in (jobs_results.TOKENIZING, jobs_results.GENERATING):
        add(work, "opened, s", 0.5)
        add(work, jobs_results.TWO, 2 * rate * near / np.median(near))
        add(work, jobs_results.ONE, rate * pace / efficiency / np.median(near))
    for way, seconds in (
        (jobs_results.SOUND, 0.9),
        (jobs_results.SLOW, 1.2),
        (jobs_results.KILLED, 1.5),
    ):
        add(way, "job, s", seconds)
        add(way, "differs", 0.0)
    add(jobs_results.SOUND, "parts", 8)
    add(jobs_results.KILLED, "after, s", 0.75)
    add(jobs_results.OVERHEAD, jobs_results.PLAIN, pace)
    add(jobs_results.OVERHEAD, jobs_results.LAYER, overhead * near)
    for size, speed in (("1", 30.0), ("8", 100.0), ("32", 90.0), (jobs_results.AUTO, auto * 100.0)):
        add(jobs_results.SIZES, size, speed * (near if size == jobs_results.AUTO else pace))
    add(jobs_results.SIZES, "advice, s", 0.2)
    add(jobs_results.SIZES, "size chosen", 8)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("speeds", [(1.0, 1.0), (1.0, 3.0), (1.0, 1.0, 2.5)])
@pytest.mark.parametrize("parts", [1, 7, 24])
def test_the_plan_of_a_job_is_what_the_simulator_says(speeds, parts):
    """Parts of one queue on workers of their own speeds end when the event simulator's do."""
    ones = np.ones(parts, np.int64)
    server = Server("static", 1, fleet=Fleet(len(speeds), speeds=speeds))
    arrivals = Arrivals(np.zeros(parts), ones, ones, np.zeros(parts, np.int64))
    run = simulate(arrivals, lambda *_: 0.1, server)
    step = float(run.returned_s.min())  # what one part takes there
    assert makespan(parts, step, Trouble(speeds)) == pytest.approx(float(run.returned_s.max()))


def test_a_killed_worker_loses_its_parts_and_helps_again_when_it_is_back():
    """8 parts of 1 s on two: 4 s; a kill at 1.5 s leaves five for one and the lost at the end."""
    assert makespan(8, 1.0, Trouble()) == 4.0
    dead = Trouble(dies_s=1.5)
    assert makespan(8, 1.0, dead) == 5.0 + 2.0
    assert makespan(8, 1.0, Trouble(dies_s=1.5, back_s=2.0)) == 4.0 + 2.0
    assert makespan(8, 1.0, Trouble(dies_s=99.0)) == 4.0


def test_results_are_the_ratios_that_went_in():
    """Efficiency, overhead and `auto` come out as they were invented, with narrow intervals."""
    table = jobs_results.results(invented(efficiency=0.9, overhead=1.03, auto=0.98)).set_index(
        "what"
    )
    for what, value in (
        ("tokenizing, 2 workers", 0.9),
        ("generating, 2 workers", 0.9),
        (jobs_results.OVERHEAD, 3.0),
        (jobs_results.AUTO, 0.98),
        ("best fixed size", 8),
        (f"{jobs_results.EMPTY}, median", 5.0),
        (f"{jobs_results.EMPTY}, p90", 5.8),
        (jobs_results.COLD, 3.5),
    ):
        assert table.loc[what, "value"] == pytest.approx(value, rel=0.02), what
    far = table[table["basis"] == "extrapolated"]
    assert len(far) == 4
    assert (far["value"] < 0.9).all()


def test_simulated_jobs_begin_when_all_is_loaded():
    """0.5 s of loading, 8 parts of 0.1 s: 0.9 s; three times slower on one, and killed."""
    said = jobs_results.simulated(invented())
    assert said[jobs_results.SOUND] == pytest.approx(0.9)
    assert said[jobs_results.SLOW] == pytest.approx(0.5 + 0.6)
    assert said[jobs_results.KILLED] == pytest.approx(0.5 + makespan(8, 0.1, Trouble(dies_s=0.25)))


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, ["met", "met", "met", "met"]),
        ({"efficiency": 0.8, "overhead": 1.1, "auto": 0.9}, ["missed"] * 4),
    ],
)
def test_goals_are_judged_and_said(changes, verdicts):
    """Each goal is met or missed by its interval, and the sentence says so."""
    table = jobs_results.results(invented(**changes))
    scores = jobs_results.scores(table)
    assert [score.verdict for score in scores] == verdicts
    said = jobs_results.sentence(table)
    assert all(score.sentence() in said for score in scores)
    assert "Extrapolated to 8 workers, not measured" in said
    assert "all outputs are the same bytes" in said
    assert "one killed: 1.5 s, simulated" in said


def test_few_empty_tasks_have_no_p90_and_other_bytes_are_said():
    """16 tasks give no p90; an output that differs is no success."""
    rows = invented()
    rows = rows[(rows["measure"] != jobs_results.EMPTY) | (rows["block"] < 16)].copy()
    rows.loc[(rows["measure"] == jobs_results.KILLED) & (rows["way"] == "differs"), "value"] = 1.0
    table = jobs_results.results(rows)
    assert f"{jobs_results.EMPTY}, p90" not in set(table["what"])
    assert "p90" not in jobs_results.sentence(table)
    assert "1 outputs differ" in jobs_results.sentence(table)


def test_without_dask_the_section_is_one_sentence(monkeypatch):
    """Nothing is measured, and the extra is named."""
    monkeypatch.setattr("batchgauge.extras.missing", lambda *_: ("distributed",))
    section = sections.measured_jobs(cast("Case", SimpleNamespace()))
    assert not section.frames()
    assert section.draw() is None
    assert "batchgauge[distributed]" in section.sentence()


def test_the_section_is_written_and_drawn(monkeypatch, tmp_path):
    """Frames come back from their CSV; the picture has the table's numbers."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(jobs, "measure", lambda _: invented())
    section = sections.measured_jobs(cast("Case", SimpleNamespace(context=None)))
    for name, frame in section.frames().items():
        write_csv(frame, tmp_path / f"{name}.csv")
        read = pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False, na_values=[""])
        pd.testing.assert_frame_equal(read, frame, check_dtype=False, rtol=1e-12)
    chart = chart_of(section)
    assert chart.title == "Efficiency of two workers: 95 % tokenizing, 95 % generating"
    drawn, table = rows_of(chart), section.frame.set_index("what")
    assert drawn["name"].str.endswith(" workers").all()
    assert set(drawn["series"]) == {"measured", "extrapolated"}
    for column in ("value", "low", "high"):
        wanted = 100 * table.loc[drawn["name"], column]
        assert drawn[column].tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


def test_everything_is_measured_once_on_two_workers(tmp_path, monkeypatch):
    """A smoke run on a tiny model: every figure is there, and the outputs are the same bytes."""
    pytest.importorskip("distributed")
    model = write_tiny_model(tmp_path / "tiny.gguf")
    few = replace(jobs.AMOUNTS["smoke"], lines=16, starts=2)
    monkeypatch.setitem(jobs.AMOUNTS, "smoke", few)
    context = Context(profile_named("smoke"), engine_spec="numpy", model=str(model))
    rows = jobs.measure(context)
    assert jobs_results.rests_on(rows) == "2 blocks, 4 worker processes"
    table = jobs_results.results(rows).set_index("what")
    assert table.loc["outputs that differ", "value"] == 0
    assert (table["value"].drop(jobs_results.OVERHEAD) >= 0).all()
    assert np.isfinite(table["value"]).all()
