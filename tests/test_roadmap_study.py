"""The roadmap notebook's own steps on a tiny real engine: replay, ideas, predictions, plans."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.conftest import chart_of, rows_of
from tests.poisson import poisson
from tests.tiny_model import write_tiny_model

from batchgauge.adapters.checks import check_generates
from batchgauge.errors import UserError
from batchgauge.experiments import step_times
from batchgauge.experiments.context import Context
from batchgauge.experiments.roadmap import (
    async_points,
    figures,
    ideas,
    machines,
    parallel,
    policies,
    sections,
    study,
    validation,
)
from batchgauge.experiments.roadmap.replay import Pace, batch_times, compare, judged, replay
from batchgauge.experiments.roadmap.study import Case, Scenario, prepare
from batchgauge.files import write_csv
from batchgauge.measuring.record import COLUMNS
from batchgauge.reporting import Report, Section, profile_named
from batchgauge.reporting.charts import Chart
from batchgauge.request import BatchItem
from batchgauge.simulate.arrivals import Arrivals
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import capacity
from batchgauge.simulate.roadmap import Setup, rank
from batchgauge.simulate.server import Fleet, Host, Server
from batchgauge.simulate.steps import StepTable
from batchgauge.sizing.cost_model import CostModel
from batchgauge.sizing.curve import Curve
from batchgauge.sizing.probes import SteadyProbe, engine_probe

COSTS = CostModel(
    prefill=Curve((1.0, 64.0, 512.0), (30.0, 60.0, 300.0)),
    decode=Curve((1.0, 4.0, 8.0), (30.0, 36.0, 45.0)),
    error=0.05,
)
TABLE = StepTable.from_costs(COSTS, max_batch=8)
STAGES, WAYS = parallel.STAGES, parallel.WAYS


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    """Our own engine on a tiny model, in a smoke run."""
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return Context(profile_named("smoke"), model=str(path))


@pytest.fixture(scope="module")
def engine(context):
    """The context's engine."""
    return context.engine


@pytest.fixture(scope="module")
def case(context) -> Case:
    """A case whose step times are given, so that nothing here depends on the machine."""
    traffic = Scenario().traffic(150)
    server = Server("static", 8, host=Host(1e-3, 1e-4))
    today = Setup(server, TABLE, price_per_hour=0.1)
    limit = capacity(traffic(1.0, 0), TABLE, server)
    probe = SteadyProbe(engine_probe(context.engine), settle_runs=1)
    return Case(
        context, Scenario(), 2.0, probe, COSTS, TABLE, traffic, today, limit, 0.8 * limit, 3.0
    )


@pytest.fixture(scope="module")
def gains() -> pd.DataFrame:
    """What a second core gives, as if measured: threads 1.2, processes 1.8."""
    factors = {WAYS[1]: 1.2, WAYS[2]: 1.0, WAYS[3]: 1.8}
    rows = [
        {"stage": stage, "way": way, "value": f, "low": 0.98 * f, "high": 1.02 * f}
        for stage in STAGES
        for way, f in factors.items()
    ]
    return pd.DataFrame(rows)


def run_sweep(case: Case, candidates) -> pd.DataFrame:
    """The candidates at two rates beside the case's own, two seeds each."""
    return ideas.run_sweep(case, candidates, loads=[0.6, 1.2], seeds=2)


def short_stream(count: int = 12) -> Arrivals:
    """Short requests that arrive within a fifth of a second."""
    rng = np.random.default_rng(0)
    context, generated = rng.integers(2, 8, count), rng.integers(1, 5, count)
    return poisson(60.0, context, generated, seed=1)


# --- replay ---------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["static", "dynamic"])
def test_a_replay_serves_every_request_by_the_policys_rules(engine, batching):
    """Each request is answered once, after it arrived, in batches no larger than allowed."""
    arrivals = short_stream()
    server = Server(batching, 5, max_wait_s=0.02)
    real = replay(engine, arrivals, server)
    assert real["request"].tolist() == list(range(12))
    assert (real["start_s"] >= arrivals.times_s).all()
    assert (real["called_s"] >= real["start_s"]).all()
    assert (real["returned_s"] > real["called_s"]).all()
    assert real["tokens"].tolist() == arrivals.generated.tolist()
    sizes = real.groupby("batch").size()
    assert sizes.max() <= 5
    if batching == "static":
        assert sizes.tolist() == [5, 5, 2]


class StopsEarly:
    """An engine that generates two tokens at most, whatever is asked for."""

    name = "early"

    def __init__(self, engine):
        self.engine = engine

    def max_batch_size(self):
        """As the engine's."""
        return self.engine.max_batch_size()

    def infer_batch(self, items):
        """Shorter answers under the same ids."""
        cut = [replace(i.data, max_tokens=min(2, i.data.max_tokens)) for i in items]
        return self.engine.infer_batch(
            [BatchItem(i.id, request) for i, request in zip(items, cut, strict=True)]
        )


def test_an_engine_that_stops_early_is_taken_as_it_is(engine, case):
    """What came is replayed, simulated and said; nothing is refused."""
    early, arrivals = StopsEarly(engine), short_stream()
    assert "2 tokens at most where 4 were asked" in check_generates(early)
    assert check_generates(engine) == ""
    real = replay(early, arrivals, Server("static", 5))
    assert real["tokens"].tolist() == np.minimum(arrivals.generated, 2).tolist()
    other = replace(case, context=replace(case.context))
    other.context.__dict__["engine"] = early
    found = validation.validate(other, requests=4, seeds=1, loads=[0.5])
    assert found.batches["steps"].max() <= 2


def test_a_replay_refuses_what_infer_batch_cannot_do(engine):
    """Continuous batching and several workers have no real counterpart here."""
    for server in (Server("continuous"), Server("static", fleet=Fleet(2))):
        with pytest.raises(UserError, match="static or dynamic batching and one worker"):
            replay(engine, short_stream(), server)


def test_a_run_compared_with_itself_is_within_every_bound():
    """When the real times are the simulated ones, every ratio is 1 and every bound met."""
    context, generated = np.full(100, 20), np.full(100, 5)
    arrivals = poisson(3.0, context, generated, seed=2)
    run = simulate(arrivals, TABLE, Server("dynamic"))
    real = pd.DataFrame({"first_s": run.first_s, "returned_s": run.returned_s})
    table = compare("dynamic", real, run)
    assert table["figure"].tolist() == ["mean", "p90", "mean", "p90"]
    assert table["simulated_over_real"].tolist() == pytest.approx([1.0] * 4)
    assert (judged(over_seeds(table))["verdict"] == "met").all()
    off = compare("dynamic", real.assign(returned_s=real["returned_s"] + 50.0), run)
    assert judged(over_seeds(off))["verdict"].iloc[0] == "missed"
    assert (judged(over_seeds(table, count=2))["verdict"] == "too few").all()
    apart = over_seeds(table)
    apart["simulated_over_real"] = apart["seed"].map({0: 0.95, 1: 1.2, 2: 1.0, 3: 1.1})
    found = judged(apart).iloc[0]
    assert found["verdict"] == "undecided"
    assert found["low"] < 1.1 < found["high"]


def over_seeds(compared, count=4):
    """The same figures of several seeds."""
    seeds = [compared.assign(load=0.5, seed=seed) for seed in range(count)]
    return pd.concat(seeds, ignore_index=True)


def test_a_pace_lies_between_its_controls_and_forgives_one_that_was_interrupted():
    """Interpolated over the median of three; 1 where no control ever ran."""
    assert Pace(lambda: 2.0, 0.1).curve()(7.0) == 1.0
    pace = Pace(lambda: 1.0, 0.1)
    pace.times_s, pace.paces = [0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 9.0, 2.0, 2.0]
    curve = pace.curve()
    assert [curve(t) for t in (-1.0, 0.0, 1.5, 2.0, 9.0)] == [1.0, 1.0, 1.5, 2.0, 2.0]


def test_an_idle_server_runs_controls_and_still_serves_everyone(engine):
    """Controls run only in gaps that are long enough, at times inside the replay."""
    pace = Pace(lambda: 1.0, 0.001)
    arrivals = short_stream()
    real = replay(engine, arrivals, Server("dynamic", 5, max_wait_s=0.02), pace=pace)
    assert real["request"].tolist() == list(range(12))
    assert pace.times_s == sorted(pace.times_s)
    assert pace.times_s
    assert max(pace.times_s) < real["returned_s"].max()
    busy = Pace(lambda: 1.0, 1e9)
    real = replay(engine, arrivals, Server("static", 5), pace=busy)
    assert len(busy.times_s) == real["batch"].nunique()


def test_a_pause_of_the_driver_forms_no_batch_of_half(engine, monkeypatch):
    """When the driver stands still at the wrong moment, a static batch is full all the same."""
    arrivals = short_stream(10)
    fourth = arrivals.times_s[3]
    clock = chain([0.0], repeat(fourth, 5), repeat(1.0))  # by then the others are there too
    fake = SimpleNamespace(perf_counter=lambda: next(clock), sleep=lambda _: None)
    monkeypatch.setattr("batchgauge.experiments.roadmap.replay.time", fake)
    real = replay(engine, arrivals, Server("static", 5))
    assert real.groupby("batch").size().tolist() == [5, 5]


def test_a_simulated_machine_follows_its_pace():
    """Steps that begin while the machine is half as fast take twice as long."""
    arrivals = poisson(0.01, np.full(20, 20), np.full(20, 5), seed=2)
    server = Server("static", 1)
    steady = simulate(arrivals, TABLE, server)
    half = float(arrivals.times_s[9] + 50.0 * (arrivals.times_s[10] > arrivals.times_s[9] + 50.0))
    swayed = simulate(arrivals, TABLE, server, pace=lambda now: 2.0 if now > half else 1.0)
    ratio = (swayed.returned_s - swayed.start_s) / (steady.returned_s - steady.start_s)
    assert set(np.round(ratio, 9)) == {1.0, 2.0}
    assert (np.diff(ratio) >= 0.0).all()


def test_batches_are_priced_one_by_one():
    """A batch's prediction is the simulation of exactly its members."""
    arrivals = short_stream(4)
    real = pd.DataFrame(
        {"request": range(4), "batch": [0, 0, 0, 1], "called_s": 0.0, "returned_s": 1.0}
    )
    table = batch_times(real, arrivals, TABLE)
    assert table["size"].tolist() == [3, 1]
    assert table["measured_ms"].tolist() == [1000.0, 1000.0]
    assert table["prompt_tokens"].sum() == arrivals.context.sum()
    slower = batch_times(real, arrivals, TABLE, lambda _: 1.5)
    assert slower["predicted_ms"].tolist() == pytest.approx(1.5 * table["predicted_ms"])


# --- the case ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": "eager"}, "'eager, fifo' is unknown"),
        ({"policy": "static, random"}, "'static, random' is unknown"),
        ({"arrival_rate": -1.0}, "arrival_rate is -1.0"),
        ({"arrival_rate": float("nan")}, "arrival_rate is nan"),
        ({"latency_target_ms": -1.0}, "latency_target_ms is -1.0"),
        ({"latency_target_ms": float("inf")}, "latency_target_ms is inf"),
        ({"own_price_per_hour": -0.1}, "own_price_per_hour is -0.1"),
        ({"price_per_hour": 0.0}, "price above 0"),
        ({"max_batch": 0}, "batches of 0"),
        ({"trace": "/nowhere/trace.csv"}, "cannot be read"),
        ({"length_scale": 0.0}, "scale"),
        ({"background": 1.5}, "share from 0 to 1"),
    ],
)
def test_bad_parameters_are_named_before_the_model_is_loaded(changes, said):
    """Each wrong parameter is one clear sentence, and no engine is opened for it."""
    with pytest.raises(UserError, match=said):
        prepare(Context(profile_named("smoke"), engine_spec="no.such:engine"), Scenario(**changes))


def test_a_trace_becomes_streams_at_any_rate(tmp_path):
    """A user's trace is cut, shortened and stretched; seeds begin elsewhere in it."""
    lines = [f"{t},{100 + t},{50 + t}" for t in range(60)]
    file = tmp_path / "trace.csv"
    file.write_text("timestamp,context_tokens,generated_tokens\n" + "\n".join(lines))
    traffic = Scenario(trace=str(file), length_scale=0.1, background=0.0).traffic(20)
    one, two = traffic(4.0, 0), traffic(4.0, 1)
    assert len(one) == 20
    assert one.rate == pytest.approx(4.0)
    assert one.context.max() <= 16
    assert not np.array_equal(one.context, two.context)


def test_the_host_part_moves_but_does_not_change_the_total():
    """A step without Python's share plus that share is the step as measured."""
    bare = step_times.without_host(TABLE, 1e-3)
    for rows in (1, 4, 8):
        assert bare(rows, 0, 0, 0.0) + rows * 1e-3 == pytest.approx(TABLE(rows, 0, 0, 0.0))


def test_policies_are_compared_and_instability_is_said(case):
    """Every policy has its row; far above capacity the sentence says unstable."""
    table = policies.compare_policies(case)
    assert table["policy"].is_unique
    assert {"static", "dynamic", "continuous"} <= set(table["policy"])
    assert (table["padding_waste"] == 0.0).all()
    crowd = replace(case, rate=10 * case.limit)
    assert "Unstable" in study.stability_sentence(crowd)
    said = policies.policies_sentence(policies.compare_policies(crowd), crowd)
    assert "queues that grow without end" in said


def test_priority_helps_the_first_class_at_the_others_cost(case):
    """Under a crowd, the share in time rises for one class and falls for the other."""
    table = policies.compare_classes(case)
    share = table.set_index(["order", "class"])["in_time_share"].to_dict()
    assert share["priority", "interactive"] > share["first come", "interactive"]
    assert share["priority", "background"] < share["first come", "background"]


# --- machines, ideas, plans ---------------------------------------------------------------


def test_machines_are_predicted_and_labelled(case):
    """Only this machine is measured; a twice as high price doubles the price of a token."""
    table = machines.predict_machines(case, most=32)
    assert table["basis"].tolist() == ["measured steps", *["predicted"] * (len(table) - 1)]
    dear = machines.predict_machines(replace(case, scenario=Scenario(price_per_hour=4.0)), most=32)
    ratio = dear["price_per_million_tokens"] / table["price_per_million_tokens"]
    assert ratio.tolist() == pytest.approx([1.0, *[2.0] * (len(table) - 1)])
    assert machines.machines_sentence(table).startswith("Predicted, not measured")


def test_a_shared_queue_bears_a_straggler_better_than_shards(case):
    """With one slow machine the queue keeps more of its efficiency; nothing exceeds ideal."""
    table = machines.distribute(case, requests=400, sizes=[1, 4])
    rows = table[(table["trouble"] == "one machine 3 × slower") & (table["machines"] == 4)]
    assert (rows["queue_efficiency"] > rows["shards_efficiency"]).all()
    assert table["queue_efficiency"].max() <= 1.0 + 1e-9


def test_the_ranking_names_every_candidate(case, gains):
    """All seven items are in the table, predicted hardware is labelled; each item has one rung."""
    candidates = ideas.make_ideas(case, gains)
    table = rank(run_sweep(case, candidates), candidates, case.rate)
    assert set(table["item"]) == {
        "async pipeline", "CPU parallelism", "GPU batching", "priority queues",
        "dynamic batching", "streaming", "distributed batches",
    }  # fmt: skip
    predicted = table[table["basis"] == "predicted hardware"]
    assert predicted["item"].tolist() == ["GPU batching"]
    assert f"{case.rate:.2g} requests/s" in ideas.ranking_sentence(table, case)
    rungs = ideas.pick_rungs(table, candidates)
    items = [rung.item for rung in rungs]
    assert len(items) == len(set(items))
    assert not any(rung.hardware for rung in rungs)
    ladder = ideas.ladder(rungs, run_sweep(case, rungs), case)
    assert ladder["idea"].tolist() == [rung.name for rung in rungs]


def test_somebody_elses_engine_is_told_nothing_of_ours(case, gains, tmp_path):
    """No functions of ours, no run of ours, no machine predicted for a model nobody knows."""
    other = Context(case.context.budget, engine_spec="tests.user_engine:make_engine")
    theirs = replace(case, context=other)
    assert "GPU batching" not in {idea.item for idea in ideas.make_ideas(theirs, gains)}
    for section in (
        sections.asynchronous(theirs),
        sections.other_machines(theirs, max_batch=8),
        sections.built(theirs, tmp_path),
    ):
        assert not section.frames()
        assert re.search("the engine is another|nobody knows|runs another", section.sentence())


def test_more_load_changes_the_ranking(case, gains):
    """At a tenth of capacity waiting for a batch is what hurts; far above it, only speed helps."""
    candidates = ideas.make_ideas(case, gains)
    calm, crowd = (replace(case, rate=factor * case.limit) for factor in (0.1, 3.0))
    first = [
        rank(run_sweep(at, candidates), candidates, at.rate)["item"].iloc[0] for at in (calm, crowd)
    ]
    assert first[0] == "dynamic batching"
    assert first[1] in {"GPU batching", "distributed batches"}


def test_the_conversion_points_exist_and_are_advised_by_what_was_measured():
    """Every named function is there; the advice follows the length of a call and the GIL."""
    gil = pd.DataFrame(
        {
            "call": ["tokenize", "detokenize", "prefill", "decode"],
            "alone_ms": [0.5, 50.0, 300.0, 200.0],
            "gil": ["takes turns", "holds the GIL", "releases the GIL", "takes turns"],
            "lock_free_share": [0.0, 0.0, 0.9, 0.3],
        }
    )
    advice = async_points.conversion_points(gil)["advice"].tolist()
    assert advice[0].startswith("leave it")
    assert advice[1].startswith("a process")
    assert advice[2] == "asyncio.to_thread"
    assert "without gaining time" in advice[3]


def test_scaling_is_fitted_for_both_ways():
    """Gains are the ratios by block of every stage and way; laws go through them."""
    table = machines.gains(invented_parallel())
    assert table["stage"].tolist() == [stage for stage in STAGES for _ in WAYS[1:]]
    assert table["value"].tolist() == pytest.approx([1.2, 1.1, 1.8] * len(STAGES))
    laws = machines.fits(invented_parallel(), seed=0)
    assert set(laws) == {
        f"{stage}, {way}, {law}"
        for stage in ("prefill", "decode")
        for way in (WAYS[1], WAYS[3])
        for law in ("Amdahl", "USL")
    }
    assert laws["decode, two processes, USL"].predict(2).value == pytest.approx(1.8)
    assert laws["prefill, two BLAS threads, Amdahl"].predict(2).value == pytest.approx(1.2)


# --- sections and figures -----------------------------------------------------------------


def invented_validation() -> validation.Validation:
    """100 requests a policy whose simulated times are 4 % too long, in batches of 4."""
    frames = []
    for number, policy in enumerate(validation.POLICIES):
        arrivals = poisson(3.0, np.full(100, 20), np.full(100, 5), seed=number)
        run = simulate(arrivals, TABLE, Server(policy, 4))
        stay_ms = 1e3 * (run.returned_s - arrivals.times_s)
        real = pd.DataFrame(
            {
                "request": range(100), "batch": np.arange(100) // 4, "called_s": run.start_s,
                "first_s": arrivals.times_s + (run.first_s - arrivals.times_s) / 1.04,
                "returned_s": arrivals.times_s + stay_ms / 1.04e3,
            }
        )  # fmt: skip
        columns = {"real_answer_ms": stay_ms / 1.04, "simulated_answer_ms": stay_ms, "pace": 1.0}
        place = {"load": 0.8, "seed": 0}
        begin = {"policy": policy, **place, "arrival_s": arrivals.times_s}
        requests = pd.DataFrame({**begin, **columns})
        batches = batch_times(real, arrivals, TABLE).assign(policy=policy)
        seeds = [compare(policy, real, run).assign(load=0.8, seed=seed) for seed in range(4)]
        frames.append((pd.concat(seeds), requests, batches.assign(**place)))
    compared, requests, batches = (
        pd.concat(f, ignore_index=True) for f in zip(*frames, strict=True)
    )
    return validation.Validation(judged(compared), requests, batches)


def invented_parallel() -> pd.DataFrame:
    """Four blocks, each faster, in which threads gain 1.2, Python threads 1.1, processes 1.8."""
    return pd.DataFrame(
        {"stage": stage, "way": way, "block": block, "calls_per_s": speed * (1 + block)}
        for stage in STAGES
        for block in range(4)
        for way, speed in zip(WAYS, (10.0, 12.0, 11.0, 18.0), strict=True)
    )


@pytest.fixture(scope="module")
def shown(case) -> dict[str, Section]:
    """Every section of the notebook by its name, on what is invented instead of measured."""
    gil = pd.DataFrame(
        {
            "call": STAGES[:4],
            "alone_ms": 9.0,
            "gil": "takes turns",
            "lock_free_share": 0.3,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "validate", lambda *_, **__: invented_validation())
        patch.setattr(parallel, "measure_parallel", lambda *_, **__: invented_parallel())
        patch.setattr(sections, "probe_gil", lambda *_, **__: gil)
        second_core, scaling = sections.second_core(case, workers=[1, 2, 4])
        checked = sections.check_simulation(case, loads=[0.5])
        found = [
            sections.traffic(case),
            sections.step_times(case),
            checked,
            sections.simulator_speed(case),
            sections.compare_policies(case, loads=(0.2, 1.2)),
            sections.compare_classes(case),
            second_core,
            scaling,
            sections.asynchronous(case),
            sections.other_machines(case, max_batch=16),
            sections.many_machines(case, sizes=[1, 2]),
            *sections.ranking(case, second_core, checked, loads=[0.5]),
        ]
    return {section.name: section for section in found}


def test_the_sections_write_what_the_reference_run_has(shown, committed, tmp_path, monkeypatch):
    """Every CSV and its columns, every picture and score under the names that are published."""

    def figure(report, drawn, name, *, alt, caption, frames, **_):  # to save it would take a second
        assert frames is not None
        assert isinstance(drawn, Chart)
        assert alt
        assert caption
        report.path("reports", "figures", f"{name}.png")

    monkeypatch.setattr(Report, "figure", figure)
    published = json.loads((committed / "data" / "roadmap_facts.json").read_text("utf-8"))
    report = Report.begin("roadmap", title="t", question="q", profile="smoke", out_dir=tmp_path)
    report.columns = {"weights": "float32", "threads": 1}
    report.show(*shown.values())
    report.answer("a")
    report.finish()
    facts = json.loads((tmp_path / "data" / "roadmap_facts.json").read_text("utf-8"))
    known = {f for f in published["files"] if not f.endswith(".vl.json")}
    assert set(facts["files"]) == {f for f in known if "roadmap_jobs" not in f}  # its own test
    for name in (f for f in facts["files"] if f.endswith(".csv")):
        written, before = (pd.read_csv(folder / name) for folder in (tmp_path, committed))
        samples = name.endswith("_samples.csv")
        assert list(written) == list(COLUMNS if samples else before), name
        assert len(written), name
    keys = [s["key"] for s in published["scores"] if not s["key"].startswith("jobs_")]
    assert [s["key"] for s in facts["scores"]] == keys


def test_every_frame_comes_back_from_its_csv(shown, tmp_path):
    """What was written is read back equal: numbers to the last digits, texts whole.

    Samples have a reader of their own, with its own test.
    """
    for section in shown.values():
        for name in set(section.frames()) - {"parallel_samples"}:
            frame = section.frames()[name]
            write_csv(frame, tmp_path / f"{name}.csv")
            read = pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False, na_values=[""])
            pd.testing.assert_frame_equal(read, frame, check_dtype=False, rtol=1e-12)


@pytest.mark.parametrize("counts", [[], [0], [1, 2.5]])
def test_counts_in_the_cells_are_checked_before_anything_runs(case, counts):
    """No workers or machines, none of one, and a half are said."""
    for section, name in ((sections.second_core, "workers"), (sections.many_machines, "sizes")):
        with pytest.raises(UserError, match=f"{name} is .*whole number"):
            section(case, **{name: counts})


def test_findings_say_what_the_invented_data_hold(shown):
    """The numbers that went in stand in the sentences and scores that come out."""
    (error,) = shown["roadmap_validation"].scores()
    assert (error.value, error.unit) == (pytest.approx(4.0), "%")
    assert error.verdict == "met"
    assert "Of 8 figures against their bounds: 8 met" in shown["roadmap_validation"].sentence()
    assert "at 80 % of capacity (+4.0 % [+4.0 %, +4.0 %]" in shown["roadmap_validation"].sentence()
    assert "decode gains 1.80 ×" in shown["roadmap_parallel"].sentence()
    assert "on 2 machines" in shown["roadmap_distributed"].sentence()
    assert "Stable: " in shown["traffic"].sentence()
    assert "30 ms for one sequence and 45 ms for 8" in shown["roadmap_step_time"].sentence()
    ranked, checked = shown["roadmap_ranking"], shown["roadmap_validation"]
    answer = sections.answer(ranked, checked)
    assert answer.text.startswith(ranked.sentence().split(". ", 1)[0])
    assert answer.text.endswith("mean time to an answer was off by at most 4.0 %.")
    assert answer.figure == "roadmap_ranking"


def test_a_simulation_that_is_far_off_recommends_nothing(shown, case):
    """Neither in the answer nor in the ranking below it."""
    checked = shown["roadmap_validation"]
    (error,) = checked.scores()
    far = replace(checked, targets=[replace(error, value=78.0)])
    ranked, _ = sections.ranking(case, shown["roadmap_parallel"], far, loads=[0.5])
    for said in (sections.answer(ranked, far).text, ranked.sentence()):
        assert said.startswith("Nothing is recommended")
        assert "78.0 %" in said
    assert not ranked.frame["recommendation"].any()


def test_rows_of_the_pictures_are_the_rows_of_the_tables(shown):
    """Ranking, ladder, stages and machines: one row each, named, in the table's order."""
    for name, column in (
        ("roadmap_ranking", "idea"),
        ("roadmap_ladder", "idea"),
        ("roadmap_parallel", "stage"),
        ("roadmap_machines", "machine"),
    ):
        drawn, wanted = (
            [text.removesuffix(" (predicted)") for text in dict.fromkeys(texts)]
            for texts in (rows_of(chart_of(shown[name]))["name"], shown[name].frame[column])
        )
        assert drawn == wanted, name


def test_lines_of_the_pictures_are_the_numbers_of_the_tables(shown):
    """Step times, policies' medians and efficiencies are drawn where the tables have them."""

    def same(rows, column, wanted):
        assert rows[column].tolist() == pytest.approx(list(wanted), rel=1e-5)

    steps = shown["roadmap_step_time"].frame
    drawn = dict(list(rows_of(chart_of(shown["roadmap_step_time"])).groupby("series")))
    same(drawn[figures.STEP], "ms", steps["step_ms"])
    same(drawn[figures.STEP], "high", steps["step_high_ms"])
    same(drawn[figures.TOKEN], "ms", steps["token_ms"])
    curves = shown["roadmap_policies"].data["policy_curves"]
    drawn = dict(list(rows_of(chart_of(shown["roadmap_policies"])).groupby("series")))
    for name, rows in curves.groupby("policy"):
        waits = rows.groupby("arrival_rate")["p90_ms"]
        same(drawn[name], "p90_s", waits.median() / 1e3)
        same(drawn[name], "high", waits.max() / 1e3)
    table = shown["roadmap_distributed"].frame
    drawn = dict(list(rows_of(chart_of(shown["roadmap_distributed"])).groupby("series")))
    same(drawn[figures.QUEUE], "efficiency", 100 * table["queue_efficiency"])
    same(drawn[figures.SHARDS], "efficiency", 100 * table["shards_efficiency"])
    assert drawn[figures.QUEUE]["trouble"].tolist()[:2] == ["No trouble", "One machine 3 × slower"]


def test_titles_state_the_errors_and_what_is_extrapolated(shown):
    """The simulation's errors lie within their bounds; laws go beyond what was measured."""
    chart = chart_of(shown["roadmap_validation"])
    assert chart.title == "Simulated times against their bounds of ±10 % and ±15 %: 8 met"
    assert rows_of(chart)["simulated_over_real"].tolist() == pytest.approx([1.04] * 8)
    chart = chart_of(shown["roadmap_scaling"])
    assert chart.title.startswith("4 workers, extrapolated: at best ")
    drawn = rows_of(chart)
    assert list(dict.fromkeys(drawn["stage"])) == ["Prefill", "Decode"]
    two = drawn[(drawn["series"] == "two processes") & (drawn["workers"] == 2)]
    assert two["value"].tolist()[0] == pytest.approx(1.8, rel=0.01)


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        ([1.0, 2.0, 3.0], "static up to 0.20 requests/s"),
        ([3.0, 1.0, 1.0], "static never"),
    ],
)
def test_a_policy_reaches_as_far_as_every_lower_rate_keeps_the_target(waits, said):
    """A rate in time beyond one that is late does not count."""
    curves = pd.DataFrame(
        {"policy": "static", "arrival_rate": [0.1, 0.2, 0.3], "seed": 0, "p90_ms": waits}
    ).assign(p90_ms=[1e3 * wait for wait in waits])
    assert figures.draw_policy_curves(curves, 2.5, 0.2).title == f"Under the target: {said}"


def test_what_was_built_is_read_from_the_serving_notebooks_files(case, tmp_path):
    """And said to be missing where it was not run."""
    assert "not run live here yet" in sections.built(case, tmp_path).sentence()
    compared = {"policy": ["static", "continuous", "continuous"],
                "verdict": ["held", "failed", "held"]}  # fmt: skip
    goodput = {"policy": ["static", "continuous"], "value": [1.0, 1.9], "low": [1.0, 1.6],
               "high": [1.0, 2.2]}  # fmt: skip
    write_csv(pd.DataFrame(compared), tmp_path / "serving_compared.csv")
    written = {"written_at": ["2026-03-01T09:04:05+00:00"] * 2}
    write_csv(pd.DataFrame(goodput), tmp_path / "serving_goodput.csv")
    write_csv(pd.DataFrame(written), tmp_path / "serving_forecast.csv")
    said = sections.built(case, tmp_path).sentence()
    assert "the run of 2026-03-01 09:04 UTC): 1.90 × [1.60, 2.20]" in said
    assert "static: 1 of 1; continuous: 1 of 2; 1 failed, 0 are undecided" in said


def test_a_single_seed_gives_the_simulation_no_interval(monkeypatch):
    """A smoke run has one: the score is there, in percent, without ends."""
    empty = pd.DataFrame()
    checked: Any = SimpleNamespace(
        worst=(0.04, None, None), figures=empty, requests=empty, batches=empty, sentence=lambda: ""
    )
    monkeypatch.setattr(validation, "validate", lambda *_, **__: checked)
    case: Any = SimpleNamespace(context=SimpleNamespace(budget=profile_named("smoke")))
    (score,) = sections.check_simulation(case, loads=[0.5]).scores()
    assert (score.value, score.low, score.high, score.verdict) == (4.0, None, None, "met")
