"""Experiments on invented numbers: what their sections say, draw, write and score."""

import json
import re
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("agg")

from tests.conftest import chart_of, rows_of
from tests.tiny_model import write_tiny_model

from batchgauge.errors import UserError
from batchgauge.experiments.baseline import costs
from batchgauge.experiments.baseline import runs as baseline_runs
from batchgauge.experiments.baseline import sections as baseline
from batchgauge.experiments.baseline.inference import InferenceSweep, Sweep, blocks
from batchgauge.experiments.baseline.inference import sweep as sweep_of
from batchgauge.experiments.baseline.runs import Measured, PageWork
from batchgauge.experiments.context import Context, checked_sizes
from batchgauge.experiments.speedup import processes as speedup_processes
from batchgauge.experiments.speedup import runs as speedup_runs
from batchgauge.experiments.speedup import sections as speedup
from batchgauge.experiments.speedup.goals import Goal
from batchgauge.experiments.speedup.ladder import ALONE, CUMULATIVE
from batchgauge.reporting import Report, Score, Section, profile_named
from batchgauge.request import BatchResponse, BatchResult, InferenceBatchResponse
from batchgauge.text import Markdown
from batchgauge.workload import Prompt, to_items


@pytest.fixture
def context():
    """A smoke context whose engine and tokenizer do not exist, because nobody asks for them."""
    return Context(profile_named("smoke"), "no such tokenizer", "no such engine")


@pytest.fixture
def report(tmp_path):
    """A report that writes below a temporary folder."""
    return Report.begin("invented", title="t", question="q", profile="smoke", out_dir=tmp_path)


def speedups(sizes=(1, 8, 32), name="numpy"):
    """A table of S(b) = √b with intervals of a tenth to both sides."""
    value = np.sqrt(sizes)
    return pd.DataFrame(
        {
            "implementation": name, "batch_size": sizes, "speedup_x": value, "low_x": 0.9 * value,
            "high_x": 1.1 * value, "verdict": "faster",
            "prompt_tokens": 24.0,
        }
    )  # fmt: skip


def test_a_context_opens_nothing_before_it_is_asked(context):
    """Names are looked up late; numbers are checked at once."""
    assert not {"engine", "tokenizer"} & set(vars(context))
    with pytest.raises(UserError, match="no such engine"):
        context.batch_sizes([1], "inference")
    with pytest.raises(UserError, match="threads is 0"):
        Context(profile_named("smoke"), threads=0)


def test_sizes_and_tokens_are_checked(context):
    """Sorted, without doubles, within what the engine takes; a smoke run's are few."""
    context.__dict__["engine"] = SimpleNamespace(max_batch_size=lambda: 16)
    assert context.preflight().shown is not None
    assert context.batch_sizes([16, 2, 2, 1], "inference") == (1, 2)
    assert context.batch_sizes([16, 8], "inference") == (8,)
    assert context.tokens(12) == 4
    assert checked_sizes([8, 1, 8], 8, "tokenizing") == (1, 8)
    for sizes in ([], [0], [True], ["4"], [17]):
        with pytest.raises(UserError, match="inference batch size"):
            context.batch_sizes(sizes, "inference")
    for tokens in (0, True, 1.5):
        with pytest.raises(UserError, match="max_tokens"):
            context.tokens(tokens)


def test_two_blocks_are_not_enough_for_an_interval():
    """It is said instead of an interval that holds everything."""
    row = {"speedup_x": 2.0, "low_x": 0.1, "high_x": 40.0, "verdict": "too few"}
    assert baseline.interval(row) == "2.00 × (too few for an interval)"
    row["verdict"] = "inconclusive"
    assert baseline.interval(row) == "2.00 × (too unstable for an interval)"
    assert baseline.interval({**row, "low_x": 1.0, "high_x": 4.9}) == "2.00 × [1.00, 4.90]"
    wide = Score("s", "S(8)", 3.0, 2.0, 0.1, 40.0, "×")
    assert wide.measured() == "2.00 × (too unstable for an interval)"
    assert wide.verdict == "open"


def test_show_does_all_of_a_result(report, tmp_path):
    """CSV files that read back equal, the picture, the finding, the score; then nothing twice."""
    table = pd.DataFrame({"batch_size": [1, 8], "speedup_x": [1.0, 3.25], "what": ["a", "=b, c"]})
    said = Markdown("S(8) is **{}** ×.").format(3.25)
    calls = []

    def picture():
        calls.append(1)
        return mpl.figure.Figure()

    score = Score("s8", "S(8)", 3.0, 3.25, 3.1, 3.4, "×")
    report.show(
        Section("curve", {"one": table, "two": table[:1]}, said, table, "t", picture, "c", [score]),
        Section("words", {}, "Only words."),
        Section("silent", {"three": table}),
    )
    report.answer("a")
    facts = json.loads(report.finish().read_text("utf-8"))
    assert len(calls) == 1
    assert facts["findings"] == [said, "Only words."]
    assert [(s["key"], s["verdict"]) for s in facts["scores"]] == [("s8", "met")]
    assert set(facts["files"]) == {
        *(f"data/invented_{name}.csv" for name in ("one", "two", "three")),
        "reports/figures/curve.png",
    }
    assert (tmp_path / "reports/figures/curve.png").stat().st_size > 0
    for name, wanted in (("one", table), ("two", table[:1])):
        read = pd.read_csv(tmp_path / f"data/invented_{name}.csv")
        pd.testing.assert_frame_equal(read, wanted)


def test_baseline_sections(context, monkeypatch):
    """S(b) with its target on the scorecard, latencies, and an answer made of both."""
    table, samples = speedups(), pd.DataFrame({"wall_ms": [1.0]})
    phases = pd.DataFrame(
        {
            "batch_size": [1, 32], "decode_tokens_per_s": [100.0, 900.0],
            "decode_speedup_x": [1.0, 9.0], "decode_low_x": [1.0, 8.0],
            "decode_high_x": [1.0, 10.0],
            **{f"{w}_{q}_ms": [v, 4 * v] for w in ("ttft", "inter_token")
               for q, v in (("least", 9.0), ("median", 10.0), ("most", 12.0))},
        }
    )  # fmt: skip
    sweep = InferenceSweep("Inference", table, samples, phases, pd.DataFrame({"answer": ["x"]}))
    monkeypatch.setattr(baseline_runs, "tokenizing", lambda *_: Sweep("Tokenizing", table, samples))
    monkeypatch.setattr(baseline_runs, "requests", lambda *_: sweep)
    done = Measured(context, PageWork((1, 32), 9, (1, 32), 4), [])
    tokens = baseline.tokenizing(done, target=(16, 3.0))
    assert set(tokens.frames()) == {"tokenizing", "tokenizing_samples"}
    assert "S(32) = 5.66 × [5.09, 6.22], faster" in tokens.sentence()
    assert "oise" not in tokens.sentence() + tokens.picture_caption  # nothing here is an A/A run
    (score,) = tokens.scores()  # of batch 8: the largest that is not above the target's 16
    assert score.label == "Tokenizing texts of 9 characters, S(8)"
    assert (score.value, score.verdict) == (8**0.5, "open")
    chart = chart_of(tokens)
    assert "target at batch 16: 3 ×" in json.dumps(chart.spec, ensure_ascii=False)
    assert rows_of(chart)["value"].tolist() == pytest.approx(table["speedup_x"], rel=1e-5)
    whole, waits, answers = baseline.inference(done, target=(8, 3.0))
    assert "S(8) of whole requests (24 tokens, 4 new" in whole.scores()[0].label
    assert whole.table() is None
    drawn = chart_of(waits)
    assert len(set(rows_of(drawn)["panel"])) == 2
    assert drawn.title.startswith(
        "In batches of 32 instead of 1 the first token takes 4.0 × as long"
    )
    assert "median TTFT goes from 10 to 40 ms" in waits.sentence()
    assert "100 to 900 tokens/s" in waits.sentence()
    assert answers.shown is not None
    assert list(answers.shown["answer"]) == ["x"]
    for columns, said in (
        (["ttft_median_ms"], "no latencies"),
        (["inter_token_median_ms"], "median TTFT goes from 10 to 40 ms; its chunks"),
        (["decode_speedup_x"], "how long decoding took is not known"),
    ):
        assert said in baseline.latency_sentence(phases.assign(**dict.fromkeys(columns, np.nan)))
    reasoned = phases.assign(first_answer_median_ms=[20.0, 80.0])
    assert "behind its reasoning: 80 ms" in baseline.latency_sentence(reasoned)


def test_batches_are_over_their_own_items_alone(context):
    """S(b) divides the b items alone by the batch, block by block and process by process."""
    items = to_items([Prompt(str(i), "list", "p", 9) for i in range(4)], max_tokens=3)

    class Engine:
        """Answers at once: three tokens a request, decode time by the size of the batch."""

        def infer_batch(self, chosen):
            """Times as a clock would tell them: 6 ms a batch for each request and 12 for all."""
            wall = 6.0 * len(chosen) + 12.0
            answer = InferenceBatchResponse(
                "x", 3, prompt_tokens=5, ttft_ms=wall, decode_ms=wall / 2
            )
            rows = [BatchResponse(item.id, answer, wall) for item in chosen]
            return BatchResult.of(rows, wall)

    context.__dict__["engine"] = Engine()
    timings = [blocks(context, items, [1, 4], count=2) for _ in range(4)]
    sweep = sweep_of(context, items, [1, 4], 3, timings)
    assert (sweep.table["processes"] == 4).all()
    assert sweep.table["batch_size"].tolist() == [1, 4]
    phases = sweep.phases.set_index("batch_size")
    assert phases.loc[4, "decode_speedup_x"] == pytest.approx(4 * 18 / 36)
    assert phases.loc[1, "decode_low_x"] == pytest.approx(1.0)
    assert phases.loc[4, "decode_tokens_per_s"] == pytest.approx(1e3 * 4 * 2 / 18)
    assert phases.loc[4, "ttft_median_ms"] == 36.0
    assert set(sweep.samples["batch_size"]) == {1, 4}
    assert sweep.answers["answer"].tolist() == ["x"] * 4


def test_baseline_memory_says_what_it_does_not_know(context, monkeypatch):
    """An engine that cannot say what must exist has no overhead and no score."""
    table = pd.DataFrame(
        {
            "batch_size": [1, 8], "peak_bytes": [2**20, 2**21], "weights_bytes": [2**29] * 2,
            "overhead_percent": [1.0, 6.0], "peak_per_item_bytes": [2**20, 2**18],
            "overhead_beside_weights_percent": [20.0, 31.0],
        }
    )  # fmt: skip
    monkeypatch.setattr(costs, "memory", lambda *_: table)
    known = baseline.memory(context, sizes=(1, 8), max_tokens=1)
    assert "peaks at 2.0 MiB beside 512 MiB of weights, 0.25 MiB an item" in known.sentence()
    assert known.sentence().endswith("is 6.0 % with the weights in it, 31 % beside them.")
    assert [s.verdict for s in known.scores()] == ["missed"]
    phases = pd.DataFrame({"batch_size": [1, 8], "ttft_median_ms": np.nan})
    assert baseline.cost_words(phases, table) == "It costs 0.2 MiB a request"
    monkeypatch.undo()


def test_memory_of_an_engine_that_does_not_count_it(context, monkeypatch):
    """Libraries allocate where Python does not see it: no peak, but what the process holds."""
    prompts = [Prompt(str(i), "list", "p", 9) for i in range(2)]
    monkeypatch.setattr(costs, "short_prompts", lambda *_: prompts)
    answer = InferenceBatchResponse("x", 1)

    def infer_batch(items):
        return BatchResult.of([BatchResponse(i.id, answer, 1.0) for i in items], 1.0)

    context.__dict__["engine"] = SimpleNamespace(infer_batch=infer_batch)
    here = baseline.memory(context, sizes=(1, 2), max_tokens=1)
    assert here.frame["peak_per_item_bytes"].isna().all()
    assert not here.scores()
    assert re.search(r"2 takes is not known: .* process holds [\d,]+ MiB", here.sentence())
    phases = pd.DataFrame({"batch_size": [1, 2], "ttft_median_ms": np.nan})
    assert baseline.cost_words(phases, here.frame) == "What memory it costs is not known"
    context.engine.ask = None  # a server's engine has it
    far = baseline.memory(context, sizes=(1, 2), max_tokens=1)
    assert far.frame["process_bytes"].isna().all()
    assert "another process" in far.sentence()


def test_variation_is_said_and_drawn_by_parameter(context, monkeypatch):
    """One panel a parameter, and the change from its first to its last value."""
    table = pd.DataFrame(
        {
            "parameter": ["temperature", "temperature", "max_tokens"], "value": [0.0, 1.5, 4],
            "batch_size": 4, "median_tokens_per_s": [100.0, 50.0, 100.0],
            "least_tokens_per_s": 40.0, "most_tokens_per_s": 120.0,
        }
    )  # fmt: skip
    monkeypatch.setattr(baseline_runs, "variation", lambda *_: table)
    section = baseline.variation(context, sizes=(4,), max_tokens=4)
    assert "temperature from 0 to 1.5: -50 %" in section.sentence()
    chart = chart_of(section)
    assert list(dict.fromkeys(rows_of(chart)["panel"])) == ["temperature", "max tokens"]
    assert chart.title == (
        "At batch 4 throughput changes most with temperature: -50 % from 0 to 1.5"
    )
    unknown = table.assign(median_tokens_per_s=np.nan)
    monkeypatch.setattr(baseline_runs, "variation", lambda *_: unknown)
    assert "does not say" in chart_of(baseline.variation(context, sizes=(4,), max_tokens=4)).title


def test_a_smoke_run_varies_every_parameter(tmp_path):
    """Two values of each, the first and the last, of a model without a chat template too."""
    base = write_tiny_model(tmp_path / "m.gguf", chat_template=None)
    small = Context(profile_named("smoke"), model=str(base))
    table = baseline_runs.variation(small, (4,), 2)
    values = table.groupby("parameter", sort=False)["value"].agg(list)
    assert values["temperature"] == [0.0, 1.5]
    assert values["max_tokens"] == [1, 4]
    assert len(values["prompt_characters"]) == 2
    assert "no chat template: prompts go in as they are" in " ".join(small.notes)


def rungs(part="tokenizing"):
    """A ladder of two rungs that work and one that is broken."""
    nan = np.nan
    rows = [
        ("cache", CUMULATIVE, "ok", 4.0, 3.9, 4.1, 4.0, 3.9, 4.1),
        ("trick", CUMULATIVE, "broken", nan, nan, nan, nan, nan, nan),
        ("blocks", CUMULATIVE, "ok", 3.6, 3.5, 3.7, 0.9, 0.85, 0.95),
        ("cache", ALONE, "ok", 4.2, 4.0, 4.4, nan, nan, nan),
    ]
    columns = [
        "rung", "form", "status", "speedup_x", "low_x", "high_x", "step_x", "step_low_x",
        "step_high_x",
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    verdicts = ["faster", "", "slower", ""]
    return table.assign(
        part=part, idea="i", peak_change_bytes=-2000, weights="", threads=1, step_verdict=verdicts
    )


def test_a_ladder_says_what_paid(context, monkeypatch):
    """Every rung has its line and its bar; a broken one has no number."""
    monkeypatch.setattr(speedup_runs, "climb_tokenizing", lambda *_: rungs())
    section = speedup.ladder_of_tokenizing(context, characters=200, texts=32)
    lines = section.sentence().splitlines()
    assert [line.split(":")[0] for line in lines] == ["- cache", "- trick", "- blocks"]
    assert lines[0].endswith("it paid.")
    assert lines[1] == "- trick: broken, not timed."
    assert lines[2].endswith("it cost.")
    assert section.shown is not None
    assert section.shown["alone_x"].dropna().tolist() == [4.2]
    chart = chart_of(section)
    (names,) = {tuple(layer["encoding"]["y"]["sort"]) for layer in chart.spec["layer"][:2]}
    assert names == ("", "cache", "trick (broken)", "blocks")  # the words of lines come first
    assert sorted(rows_of(chart)["speedup_x"]) == [3.6, 4.0, 4.2]


def test_speedup_goals_and_answer(context, monkeypatch):
    """A missed goal says what its ladder tried; the answer counts rungs and goals."""
    goals = [
        Goal("decode", "S(8) of decode behind 32", 5.0, "higher", 4.0, 3.8, 4.2),
        Goal("memory", "overhead", 2.0, "lower", 1.0, unit="%"),
        Goal("memory", "peer", 2.0, "lower", unit="%"),
        Goal("load", "load time", 1.0, "lower", 1.0, 0.9, 1.1),
    ]
    monkeypatch.setattr(speedup_runs, "measure_goals", lambda _: goals)
    ladder = Section("ladder", {"ladder": rungs("inference")})
    monkeypatch.setattr(
        speedup_processes, "goals", lambda *_: [Goal("prefill", "x", 1.0, "higher")]
    )
    monkeypatch.setattr(Context, "is_reference", True)
    measured = speedup.Processes(pd.DataFrame(), pd.DataFrame(), {})
    met = speedup.reached(context, {"decode": ladder}, measured)
    verdicts = ["not measured", "missed", "met", "not measured", "open"]
    assert met.frame["verdict"].tolist() == verdicts
    assert met.frame["tried"].tolist() == ["", "cache 4.00 ×; blocks 0.90 ×", "", "", ""]
    assert [s.verdict for s in met.scores()] == ["missed"]
    over = Section("over", {}, "All of it does 100 × the work.")
    answered = speedup.answer([ladder], over, met)
    said = answered.text
    assert answered.figure == "ladder"
    assert said.startswith(
        "All of it does 100 × the work. The largest step of inference was “cache”"
    )
    assert "1 of 2 rungs were not seen to pay; a call's memory peaks 2 kB below the" in said
    assert said.endswith("Of 5 goals: 1 met, 1 undecided, 1 not met, 2 not measured.")
    assert "Missed: S(8)" in met.sentence()
    unsure = rungs("inference").assign(step_verdict="inconclusive")
    said = speedup.answer([Section("ladder", {"ladder": unsure})], over, met).text
    assert "largest step" not in said
    assert "No single step of inference was seen to pay; a call's" in said


def test_what_is_over_the_baseline_is_scored(monkeypatch):
    """The score is that of tokenizing in its largest batch."""
    rows = [("tokenizing", 32, 200.0, 190.0, 210.0, 5), ("inference", 8, 9.0, 8.0, 10.0, 5)]
    columns = ["part", "batch_size", "value", "low", "high", "processes"]
    table = pd.DataFrame(rows, columns=columns)
    monkeypatch.setattr(speedup_processes, "over_baseline", lambda _: table)
    done = speedup.Processes(pd.DataFrame({"process": range(5)}), pd.DataFrame(), {})
    (score,) = speedup.over_the_baseline(done, target=100.0).scores()
    assert (score.value, score.verdict) == (200.0, "met")


def test_the_ladders_are_the_cores_own(context):
    """Another implementation is refused."""
    with pytest.raises(UserError, match="no such tokenizer"):
        speedup.check(context)
