"""Weights in the study: the parameter, the column, fresh processes, quality; on invented data."""

from __future__ import annotations

import gguf
import numpy as np
import pandas as pd
import pytest
from tests.conftest import rows_of
from tests.tiny_model import write_tiny_model

from batchgauge import workload
from batchgauge.adapters.gguf_copy import copy_as, float32_copy, obstacle
from batchgauge.clock import timed
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.core.model import LlamaModel
from batchgauge.errors import UserError
from batchgauge.experiments import fresh, turns
from batchgauge.experiments.context import Context
from batchgauge.experiments.peers.participants import processor_features
from batchgauge.experiments.speedup import figures, processes, quality
from batchgauge.machine.identity import Run
from batchgauge.machine.rates import Rates
from batchgauge.measuring import read
from batchgauge.measuring.gate.compare import compare_runs
from batchgauge.measuring.record import Sample, to_frame
from batchgauge.registry import weights_of, with_weights
from batchgauge.reporting import Report
from batchgauge.reporting.profiles import profile_named


@pytest.mark.parametrize(
    ("spec", "weights", "expected"),
    [
        ("numpy", "float32", "numpy"),
        ("numpy", "file", "numpy:file"),
        ("numpy:file", "float32", "numpy:file"),
        ("numpy:file", "file", "numpy:file"),
        ("llama-cpp", "file", "llama-cpp"),
        ("llama-cpp", "float32", "llama-cpp"),
        ("transformers:bfloat16,cuda", "bfloat16", "transformers:bfloat16,cuda"),
        ("package.module:factory", "float32", "package.module:factory"),
    ],
)
def test_weights_become_part_of_the_spec(spec, weights, expected):
    """The default says nothing against the spec; another mode goes to our engine."""
    assert with_weights(spec, weights) == expected
    assert (
        Context(profile_named("smoke"), engine_spec=spec, weights=weights).engine_spec == expected
    )


@pytest.mark.parametrize(
    ("spec", "weights", "said"),
    [
        ("numpy", "int8", "expected one of float32, file, bfloat16"),
        ("numpy", "", "expected one of"),
        ("numpy:int8", "float32", "expected one of"),
        ("numpy:file", "bfloat16", "keeps them as file"),
        ("numpy:float32", "file", "keeps them as float32"),
        ("baseline", "file", "keeps them as float32"),
        ("llama-cpp:f32", "file", "keeps them as float32"),
        ("openai:http://127.0.0.1:1/v1", "file", "in its own way"),
        ("package.module:factory", "bfloat16", "in its own way"),
    ],
)
def test_weights_that_contradict_are_refused(spec, weights, said):
    """One sentence, before anything is opened."""
    with pytest.raises(UserError, match=said):
        Context(profile_named("smoke"), engine_spec=spec, weights=weights)


def test_what_is_kept_is_known_by_the_spec():
    """Ours and the peers' by name; nothing is said of a stranger's."""
    specs = ("numpy", "numpy:file", "baseline", "llama-cpp", "llama-cpp:f32")
    expected = ["float32", "file", "float32", "file", "float32"]
    assert [weights_of(spec) for spec in specs] == expected
    assert weights_of("openai:http://x") == weights_of("a.b:c") == ""


def sample(part, ms, **more):
    """A record of 4 items."""
    values = {
        "benchmark": part, "implementation": "numpy", "part": part, "batch_size": 4,
        "parameters": "{}", "process": 0, "block": 0, "position": 0, "is_warmup": False,
        "inner_loops": 1, "wall_ms": ms, "cpu_ms": ms, "items": 4, "tokens": 4,
    }  # fmt: skip
    return Sample(**{**values, **more})


def test_records_carry_weights_and_older_ones_are_read(tmp_path):
    """Parts without an engine have none; a table of before is read, and is float32."""
    samples = [sample(p, 2.0 + 0.1 * b, block=b) for p in ("decode", "tokenize") for b in range(6)]
    frame = to_frame(samples, Run.here(weights="file"))
    assert frame.groupby("part")["weights"].unique().map(list).to_dict() == {
        "decode": ["file"], "tokenize": [""],
    }  # fmt: skip
    old = tmp_path / "old.csv"
    frame.drop(columns="weights").to_csv(old, index=False)
    before = read(old)
    assert before["weights"].unique().tolist() == [""]
    same = to_frame(samples[:6], Run.here(weights="float32"))
    decode = before[before["part"] == "decode"]
    assert [c.benchmark for c in compare_runs(decode, same)] == ["decode"]
    with pytest.raises(UserError, match="different weights"):
        compare_runs(same, frame[frame["part"] == "decode"])


def test_a_csv_has_the_conditions_that_its_frame_does_not_say(tmp_path):
    """What a frame says itself stays."""
    report = Report.begin("mine", title="t", question="q", profile="smoke", out_dir=tmp_path)
    report.columns = Context(profile_named("smoke"), threads=2, weights="file").columns
    path = report.csv(pd.DataFrame({"x": [1], "threads": [7]}), "table")
    assert pd.read_csv(path).to_dict("list") == {"x": [1], "threads": [7], "weights": ["file"]}


def test_copies_in_other_types(tmp_path):
    """Values are those of the format's own package; what it cannot do is said."""
    source = GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf"))
    assert obstacle(source, "Q8_0") == ""
    copy = GGUFFile.open(copy_as(source, tmp_path / "q8.gguf", "Q8_0"))
    for name, tensor in copy.tensors.items():
        matrix = len(tensor.shape) == 2
        assert tensor.layout.name == ("Q8_0" if matrix else "F32")
        kind = gguf.GGMLQuantizationType.Q8_0
        values = source.read(name)
        if matrix:
            values = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        np.testing.assert_array_equal(copy.read(name), values)
    assert copy.metadata["tokenizer.ggml.tokens"] == source.metadata["tokenizer.ggml.tokens"]
    assert "blocks of 256" in obstacle(source, "Q4_K")
    with pytest.raises(UserError, match="cannot be Q4_K"):
        copy_as(source, tmp_path / "q4k.gguf", "Q4_K")
    assert not (tmp_path / "q4k.gguf").exists()


def test_scores_are_those_of_a_prefill(tmp_path):
    """Each position's log-probabilities, and the measures taken of them."""
    model = LlamaModel.load(write_tiny_model(tmp_path / "tiny.gguf"))
    window = [5, 9, 3, 7]
    found = quality.log_probabilities(model, window)
    scores = model.prefill([window[:3]], model.new_cache([3]))[0].astype(np.float64)
    expected = scores - np.log(np.exp(scores).sum())
    np.testing.assert_allclose(found[2], expected, rtol=1e-4, atol=1e-5)
    surprise, divergence, same = quality.compared(found, found, window)
    assert (divergence, same) == (0.0, 1.0)
    assert surprise == pytest.approx(-found[[0, 1, 2], window[1:]].mean(), rel=1e-5)
    reference = np.log(np.array([[0.5, 0.5], [0.5, 0.5]], np.float32))
    other = np.log(np.array([[0.25, 0.75], [0.75, 0.25]], np.float32))
    surprise, divergence, same = quality.compared(other, reference, [0, 1, 1])
    assert divergence == pytest.approx(0.5 * np.log(4 / 3), rel=1e-5)
    assert surprise == pytest.approx(-0.5 * np.log(0.75 * 0.25), rel=1e-5)
    assert same == 0.5


def records(rates, *, processes=3, blocks=2, part="decode", characters=0):
    """Records of fresh processes: {(implementation, weights, threads, batch): tokens a second}."""
    rng = np.random.default_rng(0)
    frames = []
    for process in range(processes):
        pace = np.exp(0.2 * rng.normal())  # of a process, which ratios do not see
        for (name, weights, threads, batch), rate in rates.items():
            rows = [
                sample(part, 1e3 * batch / (rate * pace), implementation=name, batch_size=batch,
                       tokens=batch, process=process, block=b, is_warmup=b == 0)
                for b in range(blocks + 1)
            ]  # fmt: skip
            more = {"threads": threads, "weights": weights, "characters": characters}
            frames.append(to_frame(rows, Run.here()).assign(**more))
    return pd.concat(frames, ignore_index=True)


def test_ratios_are_taken_within_processes():
    """The pace of a process is in rates and not in ratios; with one process, blocks count."""
    samples = records({("a", "file", 1, 1): 10.0, ("b", "file", 1, 1): 40.0})
    over, under = {"implementation": "b"}, {"implementation": "a"}
    assert fresh.ratio(samples, over, under) == pytest.approx((4.0, 4.0, 4.0))
    assert fresh.ratio(samples, over, {"implementation": "nobody"}) is None
    table = fresh.rates(samples).set_index("implementation")
    assert (table["processes"] == 3).all()
    assert (table["high"] / table["low"] > 1.1).all()
    assert "3 fresh processes" in fresh.rests_on(samples)
    alone = samples[samples["process"] == 0]
    assert fresh.ratio(alone, over, under) == pytest.approx((4.0, 4.0, 4.0))
    assert "one fresh process" in fresh.rests_on(alone)


def test_a_sample_is_long_enough_and_the_baseline_warm(tmp_path, monkeypatch):
    """Tokenizing is timed on 4 MB; of whole requests the baseline's first is a warm-up."""
    model, loops = str(write_tiny_model(tmp_path / "tiny.gguf")), []

    def once(call, count):
        loops.append(count)
        return timed(call, 1)

    monkeypatch.setattr(turns, "timed", once)
    entrant = turns.Entrant("ours", "numpy:float32", model)
    plan = turns.Plan((entrant,), requests=(2,), texts=((3, 40),), model=model)
    samples = turns._in_process((plan,), 0)
    whole = samples[samples["part"] == "requests"]
    assert whole[whole["is_warmup"]]["implementation"].tolist() == ["baseline"]
    counts = whole[~whole["is_warmup"]]["implementation"].value_counts()
    assert counts.to_dict() == {"ours": 2, "baseline": 2}
    (text_loops,) = {
        n for n, part in zip(loops, samples["part"], strict=True) if part == "tokenize"
    }
    texts = workload.texts("prose", 40, 3, plan.seed)
    assert text_loops * sum(len(text.encode()) for text in texts) >= 4e6


def test_goals_of_what_was_measured_only():
    """A shape that was not measured has no row; what is slower than its goal is a goal missed."""
    rates = {
        (processes.FLOAT, "float32", 1, 1): 30.0, (processes.FLOAT, "float32", 2, 1): 45.0,
        (processes.FILE, "file", 1, 1): 120.0, (processes.FILE, "file", 2, 1): 210.0,
    }  # fmt: skip
    samples = records(rates, processes=5)
    pairs = {
        goal: (target, fresh.ratio(samples, one, other))
        for _, goal, target, one, other in processes._pairs(samples)
    }
    found = {goal: pair for goal, pair in pairs.items() if pair[1]}
    assert found["weights as in the file over float32, batch 1, one thread"][1] == pytest.approx(
        (4.0, 4.0, 4.0)
    )
    assert found["two threads over one, file, batch 1"][1] == pytest.approx((1.75, 1.75, 1.75))
    assert not any("batch 8" in goal for goal in found)


def test_nothing_is_below_its_floor(tmp_path):
    """Rates that were measured too low are raised by the very records that beat them."""
    model = write_tiny_model(tmp_path / "tiny.gguf")
    rates = {(processes.FLOAT, "float32", 1, size): 1e9 * size for size in (1, 8, 32)}
    reads = records({(processes.FLOAT, "float32", 1, 16): 1e9}, part="prefill")
    samples = pd.concat([records(rates), reads], ignore_index=True)
    context = Context(profile_named("smoke"), model=str(model))
    goals = {g.goal: g for g in processes.limits(context, samples, Rates(1, 1.0, 1.0))}
    assert all(g.value >= 1.0 - 1e-9 for goal, g in goals.items() if "floor" in goal)
    assert goals["share of the sgemm rate at 16 tokens"].value <= 100.0 + 1e-6
    slow = {g.goal: g for g in processes.limits(context, samples, Rates(1, 1e18, 1e18))}
    assert slow["time over the roofline's floor at batch 1"].verdict == "missed"


def test_what_is_over_the_baseline_is_said_with_its_lengths():
    """Texts and requests in their largest batch, over our baseline one at a time."""
    texts = records(
        {("numpy", "", 1, 32): 900.0, ("baseline", "", 1, 32): 3.0},
        part="tokenize over the baseline", processes=5,
    )  # fmt: skip
    whole = records(
        {(processes.FLOAT, "float32", 1, 8): 80.0, ("baseline", "", 1, 1): 10.0},
        part="requests", processes=5,
    )  # fmt: skip
    table = processes.over_baseline(pd.concat([texts, whole], ignore_index=True))
    assert table["value"].tolist() == pytest.approx([300.0, 8.0])
    said = processes.over_baseline_sentence(table)
    assert "Tokenizing in batches of 32 (texts of 200 characters, one thread) does 300 ×" in said
    assert "requests of 16 tokens that get 8" in said
    assert "over 5 fresh processes" in said


def test_scaling_table_sentence_and_picture():
    """Each shape over itself with one thread."""
    rates = {(processes.FILE, "file", n, b): b * 50.0 * n**0.8 for n in (1, 2, 4) for b in (1, 8)}
    table = processes.scaling(records(rates))
    assert table[table["threads"] == 4]["value"].tolist() == pytest.approx([4**0.8] * 2)
    said = processes.scaling_sentence(table)
    assert "4 threads over one: decode 3.03 to 3.03 ×" in said
    assert "3 fresh processes" in said
    chart = figures.scaling(table)
    assert chart.title == "4 threads give 3.03 × (decode) to 3.03 × (decode)"
    drawn = rows_of(chart).groupby("panel")["value"].first()
    assert drawn.to_dict() == pytest.approx({"2 threads": 2**0.8, "4 threads": 4**0.8}, rel=1e-5)
    two = figures.scaling(table[table["threads"] < 4])
    assert rows_of(two)["name"].tolist() == ["decode, batch 1", "decode, batch 8"]
    assert "facet" not in two.spec
    alone = processes.scaling(records({(processes.FILE, "file", 1, 1): 50.0}))
    assert "one full-speed core" in processes.scaling_sentence(alone)
    assert "one full-speed core" in figures.scaling(alone).title


def test_forms_in_table_words_and_picture():
    """Bytes, quality and rates of a form in one row; less weight, less to gain from batches."""
    names = ("float32, own file", "file, own file", "Q4_0")
    rates = {
        (name, mode, 1, size): rate
        for name, mode, pair in zip(
            names, ("float32", "file", "file"), ((20, 300), (80, 320), (90, 330)), strict=True
        )
        for size, rate in zip((1, 32), pair, strict=True)
    }
    rows = [
        (name, mode, window, 64, 100, size, 2.0 + 0.1 * window + worse, worse, 1.0 - worse)
        for name, mode, size, worse in (
            (names[0], "float32", 500 * 2**20, 0.0), (names[1], "file", 100 * 2**20, 0.0),
            (names[2], "file", 70 * 2**20, 0.2),
        )
        for window in range(4)
    ]  # fmt: skip
    columns = ["form", "weights", "window", "window_tokens", "file_bytes", "resident_bytes"]
    windows = pd.DataFrame(rows, columns=[*columns, "surprise", "divergence", "agreement"])
    speed = records(rates)
    table = quality.summary(windows, speed)
    assert table["form"].tolist() == list(names)
    assert table["perplexity"].iloc[0] == pytest.approx(np.exp(2.15))
    assert table["divergence_nats"].tolist() == pytest.approx([0.0, 0.0, 0.2])
    assert table["same_first_percent"].tolist() == pytest.approx([100.0, 100.0, 80.0])
    said = quality.sentence(table, {"Q4_K": "no whole blocks", "Q6_K": "no whole blocks"})
    assert "100 MiB instead of 500" in said
    assert "4.00 × float32's rate" in said
    assert "Left out: Q4_K, Q6_K: no whole blocks." in said
    gained = quality.gains(speed)
    assert "S(32) of decode by weights" in quality.gains_sentence(gained)
    assert "shrinks with them" in quality.gains_sentence(gained)
    level = gained.assign(low=1.0, high=20.0)
    assert "do not tell float32 and file apart" in quality.gains_sentence(level)
    chart = figures.forms(table)
    assert chart.title == (
        "Batch 1: “Q4_0” decodes 4.5 × as fast as “float32, own file” and loses 0.2 nats; "
        "without loss “file, own file” 4.0 ×"
    )
    drawn = rows_of(chart)
    assert drawn["panel"].tolist() == ["Batch 1"] * 3 + ["Batch 32"] * 3
    assert (drawn["y"] > 0).all()  # none at all stands at the foot of a logarithmic axis
    assert "loses nothing" in figures.forms(table.iloc[:2]).title
    assert figures.gains(gained).title == (
        "Batches of 32 gain 15.0 × with “float32, own file”, 3.7 × with “Q4_0”"
    )


def test_the_processor_says_what_it_has(tmp_path):
    """Flags of x86 and Arm, and a system that names none."""
    file = tmp_path / "cpuinfo"
    file.write_text("model name: x\nflags : fpu avx2 avx512f avx512_bf16\n", encoding="utf-8")
    said = processor_features(file)
    assert said.startswith("has AVX2, AVX-512, AVX-512 BF16; lacks AVX-512 VNNI, AMX tiles")
    file.write_text("Features : fp asimd bf16\n", encoding="utf-8")
    assert processor_features(file) == "has NEON, BF16; lacks SVE, I8MM"
    assert "unknown" in processor_features(tmp_path / "none")


def test_the_float32_copy_has_the_same_weights(tmp_path, monkeypatch):
    """The float32 file of a quantised model holds what our loader reads from the model itself."""
    monkeypatch.setenv("BATCHGAUGE_CACHE", str(tmp_path / "cache"))
    source = GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf", quantisation="Q8_0"))
    path = float32_copy(source)
    copy = GGUFFile.open(path)
    assert path.is_relative_to(tmp_path / "cache")
    assert float32_copy(source) == path
    assert copy.tensors.keys() == source.tensors.keys()
    assert all(tensor.layout.name == "F32" for tensor in copy.tensors.values())
    for name in source.tensors:
        np.testing.assert_array_equal(copy.read(name), source.read(name))
    assert copy.metadata["tokenizer.ggml.tokens"] == source.metadata["tokenizer.ggml.tokens"]
    newer = write_tiny_model(tmp_path / "tiny.gguf", quantisation="Q8_0", seed=1)
    assert float32_copy(GGUFFile.open(newer)) != path
    assert not path.exists()
