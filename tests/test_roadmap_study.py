"""The roadmap notebook's own steps on a tiny real engine: replay, ideas, predictions, plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tests.tiny_model import write_tiny_model

from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.errors import UserError
from batchgauge.experiments.roadmap import figures as roadmap_figures
from batchgauge.experiments.roadmap import ideas as roadmap_ideas
from batchgauge.experiments.roadmap import machines as roadmap_machines
from batchgauge.experiments.roadmap import parallel
from batchgauge.experiments.roadmap import plans as roadmap_plans
from batchgauge.experiments.roadmap import policies as roadmap_policies
from batchgauge.experiments.roadmap import study as roadmap
from batchgauge.experiments.roadmap.replay import Pace, batch_times, compare, replay
from batchgauge.simulate.arrivals import Arrivals, poisson
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import capacity
from batchgauge.simulate.roadmap import Setup, rank
from batchgauge.simulate.server import Server
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
def engine(tmp_path_factory):
    """Our own engine on a tiny model."""
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return BatchInferenceEngine.from_gguf(path)


@pytest.fixture(scope="module")
def case(engine) -> roadmap.Case:
    """A case whose step times are given, so that nothing here depends on the machine."""
    traffic = roadmap.make_traffic(
        "", count=150, length_scale=1 / 16, burstiness=1.0, background=0.5
    )
    server = Server("static", 8, host_request_s=1e-3, host_token_s=1e-4)
    today = Setup(server, TABLE, price_per_hour=0.1)
    limit = capacity(traffic(1.0, 0), TABLE, server)
    return roadmap.Case(
        parallel.Specs(), engine, engine.tokenizer, 2.0,
        SteadyProbe(engine_probe(engine), settle_runs=1), COSTS, TABLE, traffic, today, limit,
        0.8 * limit, 3.0,
    )  # fmt: skip


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


def test_a_replay_refuses_what_infer_batch_cannot_do(engine):
    """Continuous batching and several workers have no real counterpart here."""
    for server in (Server("continuous"), Server("static", workers=2)):
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
    assert table["met"].all()
    off = compare("dynamic", real.assign(returned_s=real["returned_s"] + 5.0), run)
    assert not off["met"].iloc[0]


def test_a_pace_lies_between_its_controls_and_forgives_one_that_was_interrupted():
    """Interpolated over the median of three; 1 where no control ever ran."""
    assert Pace(lambda: 2.0, 0.1).curve()(7.0) == 1.0
    told = Pace(lambda: 1.0, 0.1)
    told.times_s, told.paces = [0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 9.0, 2.0, 2.0]
    curve = told.curve()
    assert [curve(t) for t in (-1.0, 0.0, 1.5, 2.0, 9.0)] == [1.0, 1.0, 1.5, 2.0, 2.0]


def test_an_idle_server_runs_controls_and_still_serves_everyone(engine):
    """Controls run only in gaps that are long enough, at times inside the replay."""
    told = Pace(lambda: 1.0, 0.001)
    arrivals = short_stream()
    real = replay(engine, arrivals, Server("dynamic", 5, max_wait_s=0.02), pace=told)
    assert real["request"].tolist() == list(range(12))
    assert told.times_s == sorted(told.times_s)
    assert told.times_s
    assert max(told.times_s) < real["returned_s"].max()
    busy = Pace(lambda: 1.0, 1e9)
    real = replay(engine, arrivals, Server("static", 5), pace=busy)
    assert len(busy.times_s) == real["batch"].nunique()


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
        ({"arrival_rate": -1.0}, "negative"),
        ({"latency_target_ms": -1.0}, "negative"),
        ({"max_batch": 0}, "batches of 0"),
        ({"trace": "/nowhere/trace.csv"}, "cannot be read"),
        ({"length_scale": 0.0}, "scale"),
        ({"background": 1.5}, "share from 0 to 1"),
    ],
)
def test_bad_parameters_are_named_before_the_model_is_loaded(changes, said):
    """Each wrong parameter is one clear sentence, and no engine is opened for it."""
    with pytest.raises(UserError, match=said):
        roadmap.prepare(parallel.Specs(engine="no.such:engine"), **changes)


def test_a_trace_becomes_streams_at_any_rate(tmp_path):
    """A user's trace is cut, shortened and stretched; seeds begin elsewhere in it."""
    lines = [f"{t},{100 + t},{50 + t}" for t in range(60)]
    file = tmp_path / "trace.csv"
    file.write_text("timestamp,context_tokens,generated_tokens\n" + "\n".join(lines))
    traffic = roadmap.make_traffic(
        str(file), count=20, length_scale=0.1, burstiness=1.0, background=0.0
    )
    one, two = traffic(4.0, 0), traffic(4.0, 1)
    assert len(one) == 20
    assert one.rate == pytest.approx(4.0)
    assert one.context.max() <= 16
    assert not np.array_equal(one.context, two.context)


def test_the_host_part_moves_but_does_not_change_the_total():
    """A step without Python's share plus that share is the step as measured."""
    bare = roadmap.without_host(TABLE, 1e-3)
    for rows in (1, 4, 8):
        assert bare(rows, 0, 0, 0.0) + rows * 1e-3 == pytest.approx(TABLE(rows, 0, 0, 0.0))


def test_policies_are_compared_and_instability_is_said(case):
    """Every policy has its row; far above capacity the sentence says unstable."""
    table = roadmap_policies.compare_policies(case)
    assert table["policy"].is_unique
    assert {"static", "dynamic", "continuous"} <= set(table["policy"])
    assert (table["padding_waste"] == 0.0).all()
    crowd = replace(case, rate=10 * case.limit)
    assert "Unstable" in roadmap.stability_sentence(crowd)
    said = roadmap_policies.policies_sentence(roadmap_policies.compare_policies(crowd), crowd)
    assert "queues that grow without end" in said


def test_priority_helps_the_first_class_at_the_others_cost(case):
    """Under a crowd, the share in time rises for one class and falls for the other."""
    table = roadmap_policies.compare_classes(case)
    share = table.set_index(["order", "class"])["in_time_share"].to_dict()
    assert share["priority", "interactive"] > share["first come", "interactive"]
    assert share["priority", "background"] < share["first come", "background"]


# --- machines, ideas, plans ---------------------------------------------------------------


def test_machines_are_predicted_and_labelled(case):
    """Only this machine is measured; a twice as high price doubles the price of a token."""
    table = roadmap_machines.predict_machines(case, price_per_hour=2.0, most=32)
    assert table["basis"].tolist() == ["measured steps", *["predicted"] * (len(table) - 1)]
    dear = roadmap_machines.predict_machines(case, price_per_hour=4.0, most=32)
    ratio = dear["price_per_million_tokens"] / table["price_per_million_tokens"]
    assert ratio.tolist() == pytest.approx([1.0, *[2.0] * (len(table) - 1)])
    assert roadmap_machines.machines_sentence(table).startswith("Predicted, not measured")
    with pytest.raises(UserError, match="above 0"):
        roadmap_machines.predict_machines(case, price_per_hour=0.0)


def test_a_shared_queue_bears_a_straggler_better_than_shards(case):
    """With one slow machine the queue keeps more of its efficiency; nothing exceeds ideal."""
    table = roadmap_machines.distribute(case, requests=400)
    rows = table[(table["trouble"] == "one machine 3 × slower") & (table["machines"] == 4)]
    assert (rows["queue_efficiency"] > rows["shards_efficiency"]).all()
    assert table["queue_efficiency"].max() <= 1.0 + 1e-9


def test_the_ranking_names_every_item_of_phase_7(case, gains):
    """All seven items are in the table, predicted hardware is labelled, sentences have numbers."""
    ideas = roadmap_ideas.make_ideas(case, gains, price_per_hour=2.0)
    runs = roadmap_ideas.run_sweep(case, ideas, seeds=2)
    table = rank(runs, ideas, case.rate)
    assert set(table["item"]) == {
        "async pipeline", "CPU parallelism", "GPU batching", "priority queues",
        "dynamic batching", "streaming", "distributed batches",
    }  # fmt: skip
    predicted = table[table["basis"] == "predicted hardware"]
    assert predicted["item"].tolist() == ["GPU batching"]
    assert f"{case.rate:.2g} requests/s" in roadmap_ideas.ranking_sentence(table, case)
    rungs = roadmap_ideas.pick_rungs(table, ideas)
    items = [rung.item for rung in rungs]
    assert len(items) == len(set(items))
    assert not any(rung.hardware for rung in rungs)
    ladder = roadmap_ideas.ladder(rungs, roadmap_ideas.run_sweep(case, rungs, seeds=2), case)
    assert ladder["idea"].tolist() == [rung.name for rung in rungs]
    for figure, rows in (
        (roadmap_figures.draw_ranking(table), table),
        (roadmap_figures.draw_ladder(ladder), ladder),
    ):
        assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(rows["idea"])


def test_more_load_changes_the_ranking(case, gains):
    """At a tenth of capacity waiting for a batch is what hurts; far above it, only speed helps."""
    ideas = roadmap_ideas.make_ideas(case, gains, price_per_hour=2.0)
    calm, crowd = (replace(case, rate=factor * case.limit) for factor in (0.1, 3.0))
    first = [
        rank(roadmap_ideas.run_sweep(at, ideas, seeds=2), ideas, at.rate)["item"].iloc[0]
        for at in (calm, crowd)
    ]
    assert first[0] == "dynamic batching"
    assert first[1] in {"GPU batching", "distributed batches"}


def test_the_conversion_points_exist_and_are_advised_by_what_was_measured():
    """Every named function is there; the advice follows the length of a call and the GIL."""
    gil = pd.DataFrame(
        {
            "call": ["tokenise", "detokenise", "prefill", "decode"],
            "alone_ms": [0.5, 50.0, 300.0, 200.0],
            "gil": ["takes turns", "holds the GIL", "releases the GIL", "takes turns"],
            "lock_free_share": [0.0, 0.0, 0.9, 0.3],
        }
    )
    advice = roadmap_plans.conversion_points(gil)["advice"].tolist()
    assert advice[0].startswith("leave it")
    assert advice[1].startswith("a process")
    assert advice[2] == "asyncio.to_thread"
    assert "without gaining time" in advice[3]


def test_scaling_is_fitted_for_both_ways(gains):
    """Throughputs by block become a law for each stage, way and form."""
    rows = [
        {"stage": stage, "way": way, "block": block, "calls_per_s": speed}
        for stage in STAGES
        for block in range(4)
        for way, speed in zip(WAYS, (10.0, 12.0, 11.0, 18.0), strict=True)
    ]
    measured = pd.DataFrame(rows)
    table = roadmap_machines.gains(measured)
    assert set(table["stage"]) == set(gains["stage"])
    processes = table[table["way"] == WAYS[3]]["value"].tolist()
    assert processes == pytest.approx([1.8] * len(STAGES))
    laws = roadmap_machines.fits(measured)
    assert laws["decode, two processes, USL"].predict(2).value == pytest.approx(1.8)
