"""The bottleneck study on a tiny model: kernels, stages, findings, and the page's sections."""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

mpl.use("agg")

from tests.tiny_model import write_tiny_model

from batchgauge.errors import UserError
from batchgauge.experiments.bottlenecks import findings as found
from batchgauge.experiments.bottlenecks import kernels, pictures
from batchgauge.experiments.bottlenecks import report as section
from batchgauge.experiments.bottlenecks import study as bottlenecks
from batchgauge.profiling.findings import rank_findings
from batchgauge.reporting import Report


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A smoke study of a tiny model with a long context."""
    model = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", context_length=1024)
    return bottlenecks.start(profile="smoke", model=str(model), batch_size=3)


@pytest.fixture
def report(tmp_path):
    """A report that writes below a temporary folder."""
    return Report.begin(
        "bottleneck_analysis", title="t", question="q", profile="smoke", out_dir=tmp_path
    )


def test_bytes_and_operations_of_kernels_are_those_of_the_weights(study):
    """The matrices' bytes are the model's own, and a larger batch adds operations, not weights."""
    assert study.model is not None
    one, eight = kernels.kernels(study.model, 1), kernels.kernels(study.model, 8)
    matrices = [k for k in one if k.name in {"QKV", "output", "MLP", "head"}]
    config = study.model.config
    gains_and_frequencies = 4 * ((2 * config.layers + 1) * config.d_model + config.head_dim // 2)
    unpadded = study.model.weights_bytes - gains_and_frequencies
    moved = sum(k.bytes_moved for k in matrices)
    assert moved == pytest.approx(unpadded)  # with the zeros that fill up blocks
    for small, large in zip(one, eight, strict=True):
        assert large.flops == pytest.approx(8 * small.flops)
        if small in matrices:
            assert large.bytes_moved == small.bytes_moved


def test_every_kernel_runs_and_can_run_again(study):
    """Kernels leave their caches as they found them, so that calls repeat."""
    assert study.model is not None
    for kernel in kernels.kernels(study.model, 2):
        for _ in range(20):
            kernel.call()


def test_stages_of_a_batch_add_up(study):
    """Named and unassigned stages together are the whole wall time at every size."""
    frame = kernels.stages(study)
    assert set(frame["batch_size"]) == {1, 3}
    assert list(frame.groupby("batch_size")["share"].sum()) == pytest.approx([1.0, 1.0], abs=0.02)


def test_padding_table_knows_what_a_rectangle_wastes(study):
    """Equal lengths waste nothing; lengths 1 : 7 around the mean waste three sevenths."""
    frame = kernels.padding(study).set_index("spread")
    assert frame["rectangle_waste"]["all equal"] == 0.0
    assert frame["rectangle_waste"]["± 75 %"] == pytest.approx(3 / 7, abs=0.01)
    assert (frame["engine_waste"] == 0.0).all()


def test_decode_hotspots_add_up_to_one_step(study):
    """Kernels and the rest share a decode step among them, each with its floor ratio."""
    rows = [
        {"kernel": name, "batch_size": 3, "measured_ms": ms, "ratio": 2.0, "bound": "memory"}
        for name, ms in [
            ("QKV", 10.0), ("attention", 5.0), ("output", 5.0), ("MLP", 40.0), ("head", 20.0),
            ("decode", 100.0), ("prefill", 300.0),
        ]
    ]  # fmt: skip
    spots = found.hotspots(study, pd.DataFrame(), pd.DataFrame(rows))
    decode = {s.where: s for s in spots if s.part == "decode (numpy)"}
    assert sum(s.share for s in decode.values()) == pytest.approx(1.0)
    assert decode["MLP"].share == pytest.approx(0.4)
    assert math.isnan(decode["norms, rotations and the rest"].ratio)
    assert rank_findings(list(decode.values()))["where"].iloc[0] == "MLP"


def test_sections_write_their_files_and_the_answer(study, report):
    """A whole page: CSV for every section, flame graphs as PNG and SVG, an answer with numbers."""
    stages = section.stages(report, study)
    section.calls(report, study)
    section.lines(report, study)
    section.memory(report, study)
    roofline = section.roofline(report, study)
    section.system(report, study)
    section.findings(report, study, stages, roofline)
    facts = json.loads(report.finish().read_text(encoding="utf-8"))
    written = {path.name for path in (report.out_dir / "data").glob("*.csv")}
    expected = ("calls", "lines", "allocations", "stages", "padding", "roofline", "system")
    assert written >= {f"bottleneck_analysis_{name}.csv" for name in (*expected, "findings")}
    assert "%" in facts["answer"]
    figures = report.out_dir / "reports" / "figures"
    for svg in figures.glob("*.svg"):
        ET.parse(svg)  # noqa: S314 - our own output
        assert svg.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    here = str(Path(section.__file__).parents[3])
    assert not [p.name for p in (report.out_dir / "data").iterdir() if here in p.read_text()]
    lines = pd.read_csv(report.out_dir / "data" / "bottleneck_analysis_lines.csv")
    assert list(lines.groupby("part")["share"].sum()) == pytest.approx(
        [1.0] * lines["part"].nunique()
    )


def test_a_target_of_the_users_takes_the_place_of_the_parts(tmp_path, monkeypatch, report):
    """With a target, its hot function leads the findings and the engine's sections say why not."""
    (tmp_path / "my_work.py").write_text(
        "def hot():\n    return sum(i * i for i in range(40_000))\n\n"
        "def work():\n    return hot()\n"
    )
    monkeypatch.chdir(tmp_path)
    study = bottlenecks.start(profile="smoke", target="my_work:work", tools=["calls", "lines"])
    stages, roofline = section.stages(report, study), section.roofline(report, study)
    assert stages.empty
    assert roofline.empty
    section.calls(report, study)
    section.lines(report, study)
    section.memory(report, study)
    section.parallelism(report, study)
    section.cost_of_looking(report, study)
    section.findings(report, study, stages, roofline)
    facts = json.loads(report.finish().read_text(encoding="utf-8"))
    assert "hot" in facts["answer"]
    assert section.NO_ENGINE in facts["findings"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"threads": -1}, "threads"),
        ({"tools": ["gdb"]}, "Unknown tool"),
        ({"profile": "quick"}, "profile"),
        ({"target": "nowhere"}, "module:callable"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(wrong, says):
    """Bad notebook parameters become one sentence before anything is loaded."""
    with pytest.raises(UserError, match=says):
        bottlenecks.start(**({"profile": "smoke"} | wrong))


def test_gil_sentence_doubts_itself_on_a_busy_machine():
    """Where even sgemm gains nothing from two threads, the sentence says why."""
    frame = pd.DataFrame(
        {"call": ["sgemm 512³"], "gil": ["releases the GIL"], "two_thread_speedup": [1.1]}
    )
    assert "not free" in pictures.gil_sentence(frame)
    assert "not free" not in pictures.gil_sentence(frame.assign(two_thread_speedup=1.95))
