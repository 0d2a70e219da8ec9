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
from batchgauge.experiments.bottlenecks import kernels, sentences
from batchgauge.experiments.bottlenecks import sections as bottlenecks
from batchgauge.experiments.context import Context
from batchgauge.profiling.findings import rank_findings
from batchgauge.profiling.stacks import Frame, StackProfile
from batchgauge.reporting import Report, profile_named

SMOKE = profile_named("smoke")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """The parts of a smoke run of a tiny model with a long context."""
    model = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", context_length=1024)
    return bottlenecks.start(Context(SMOKE, model=str(model)), batch_size=3)


@pytest.fixture
def report(tmp_path, monkeypatch):
    """A report that writes below a temporary folder, and reads back every frame that it writes."""
    write = Report.csv

    def written(report, frame, name):
        path = write(report, frame, name)
        read = pd.read_csv(path, keep_default_na=False, na_values=[""])
        whole = frame.reset_index(drop=True)
        texts = whole.select_dtypes(["object", "string"]).columns  # no text is an empty one
        read[texts], whole[texts] = (f[texts].astype(object).fillna("") for f in (read, whole))
        pd.testing.assert_frame_equal(read, whole, check_dtype=False, rtol=1e-12, obj=name)
        return path

    monkeypatch.setattr(Report, "csv", written)
    return Report.begin(
        "bottleneck_analysis", title="t", question="q", profile="smoke", out_dir=tmp_path
    )


def test_bytes_and_operations_of_kernels_are_those_of_the_weights(subject):
    """The matrices' bytes are the model's own, and a larger batch adds operations, not weights."""
    assert subject.model is not None
    one, eight = kernels.kernels(subject.model, 1), kernels.kernels(subject.model, 8)
    matrices = [k for k in one if k.name in {"QKV", "output", "MLP", "head"}]
    config = subject.model.config
    gains_and_frequencies = 4 * ((2 * config.layers + 1) * config.d_model + config.head_dim // 2)
    unpadded = subject.model.weights_bytes - gains_and_frequencies
    moved = sum(k.bytes_moved for k in matrices)
    assert moved == pytest.approx(unpadded)  # with the zeros that fill up blocks
    for small, large in zip(one, eight, strict=True):
        assert large.flops == pytest.approx(8 * small.flops)
        if small in matrices:
            assert large.bytes_moved == small.bytes_moved


def test_every_kernel_runs_and_can_run_again(subject):
    """Kernels leave their caches as they found them, so that calls repeat."""
    assert subject.model is not None
    for kernel in kernels.kernels(subject.model, 2):
        for _ in range(20):
            kernel.call()


def test_stages_of_a_batch_add_up(subject):
    """Named and unassigned stages together are the whole wall time at every size."""
    frame = kernels.stages(subject, [1, 3])
    assert set(frame["batch_size"]) == {1, 3}
    assert list(frame.groupby("batch_size")["share"].sum()) == pytest.approx([1.0, 1.0], abs=0.02)


def test_padding_table_knows_what_a_rectangle_wastes(subject):
    """Equal lengths waste nothing; lengths 1 : 7 around the mean waste three sevenths."""
    frame = kernels.padding(subject, 48).set_index("spread")
    assert frame["rectangle_waste"]["all equal"] == 0.0
    assert frame["rectangle_waste"]["± 75 %"] == pytest.approx(3 / 7, abs=0.01)
    assert (frame["engine_waste"] == 0.0).all()


def test_decode_hotspots_add_up_to_one_step(subject):
    """Kernels and the rest share a decode step among them, each with its floor ratio."""
    rows = [
        {"kernel": name, "batch_size": 3, "measured_ms": ms, "ratio": 2.0, "bound": "memory"}
        for name, ms in [
            ("QKV", 10.0), ("attention", 5.0), ("output", 5.0), ("MLP", 40.0), ("head", 20.0),
            ("decode", 100.0), ("prefill", 300.0),
        ]
    ]  # fmt: skip
    spots = found.hotspots(subject, pd.DataFrame(), pd.DataFrame(rows))
    decode = {s.where: s for s in spots if s.part == "decode (numpy)"}
    assert sum(s.share for s in decode.values()) == pytest.approx(1.0)
    assert decode["MLP"].share == pytest.approx(0.4)
    assert math.isnan(decode["norms, rotations and the rest"].ratio)
    assert rank_findings(list(decode.values()))["where"].iloc[0] == "MLP"


def test_a_function_of_prefill_promises_no_more_than_prefill(subject, monkeypatch):
    """Where the roofline knows prefill, no function of it is a hotspot without a floor."""
    stack = StackProfile("py-spy", "s", (((Frame("run", "a.py", 1, "native"),), 1.0),), 1.0, 9)
    monkeypatch.setattr(subject, "samples", {"prefill (numpy)": stack, "tokenizing (numpy)": stack})
    names = ("QKV", "attention", "output", "MLP", "head", "decode", "prefill")
    row = {"batch_size": 3, "measured_ms": 10.0, "ratio": 1.0, "bound": "compute"}
    roofline = pd.DataFrame([{"kernel": name, **row} for name in names])
    stages = pd.DataFrame(
        {"batch_size": 3, "stage": ["prefill", "decode"], "share": [0.4, 0.6], "wall_ms": 1.0}
    )
    parts = {spot.part for spot in found.hotspots(subject, stages, roofline)}
    assert "tokenizing (numpy)" in parts
    assert "prefill (numpy)" not in parts


def show_all(report, subject):
    """Every section of the page, as the notebook shows them."""
    stages = bottlenecks.stages(subject, sizes=[1, 3])
    report.show(stages, bottlenecks.padding(subject, mean_tokens=48))
    report.show(*bottlenecks.calls(subject, seconds=0.3))
    for hottest, listings in bottlenecks.lines(subject, functions=3):
        report.show(hottest)
        assert all("</table>" in listing._repr_html_() for listing in listings)
    report.show(*bottlenecks.memory(subject), *bottlenecks.resident_memory(subject, rows=8))
    roofline = bottlenecks.roofline(subject, sizes=[1, 3])
    report.show(roofline, *bottlenecks.system(subject))
    ranked = bottlenecks.findings(subject, stages, roofline)
    report.show(ranked)
    report.answer(bottlenecks.answer(subject, ranked))


def test_sections_write_their_files_and_the_answer(subject, report):
    """A whole page: CSV for every section, flame graphs as PNG and SVG, an answer with numbers."""
    show_all(report, subject)
    facts = json.loads(report.finish().read_text(encoding="utf-8"))
    written = {path.name for path in (report.out_dir / "data").glob("*.csv")}
    expected = ("calls", "lines", "allocations", "stages", "padding", "roofline", "system")
    assert written >= {f"bottleneck_analysis_{name}.csv" for name in (*expected, "findings")}
    assert "%" in facts["answer"]
    figures = report.out_dir / "reports" / "figures"
    for svg in figures.glob("*.svg"):
        ET.parse(svg)  # noqa: S314 - our own output
        assert svg.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    here = str(Path(bottlenecks.__file__).parents[3])
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
    subject = bottlenecks.start(Context(SMOKE), target="my_work:work", tools=["calls", "lines"])
    show_all(report, subject)
    report.show(bottlenecks.parallelism(subject), bottlenecks.profiler_overhead(subject, rounds=1))
    facts = json.loads(report.finish().read_text(encoding="utf-8"))
    assert "hot" in facts["answer"]
    assert bottlenecks.NO_ENGINE in facts["findings"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"tools": ["gdb"]}, "Unknown tool"),
        ({"target": "nowhere"}, "module:callable"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(wrong, says):
    """Bad notebook parameters become one sentence before anything is loaded."""
    with pytest.raises(UserError, match=says):
        bottlenecks.start(Context(SMOKE), **wrong)


def test_gil_sentence_doubts_itself_on_a_busy_machine():
    """Where even sgemm gains nothing from two threads, the sentence says why."""
    frame = pd.DataFrame(
        {"call": ["sgemm 512³"], "gil": ["releases the GIL"], "two_thread_speedup": [1.1]}
    )
    assert "not free" in sentences.gil_sentence(frame)
    assert "not free" not in sentences.gil_sentence(frame.assign(two_thread_speedup=1.95))
