"""The serving notebook's own steps: forecast against live, goodput, runs of a tiny model."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tests.conftest import rows_of
from tests.tiny_model import write_tiny_model

from batchgauge.errors import UserError
from batchgauge.experiments.context import Context
from batchgauge.experiments.serving import figures, forecast, sections, study, trouble, workers_run
from batchgauge.experiments.serving.forecast import RunKind, compare, verdict
from batchgauge.experiments.serving.live import serve
from batchgauge.experiments.serving.study import (
    ServingQuestion,
    prepare,
    rehearse,
    rules_of,
    scheduler_of,
)
from batchgauge.experiments.serving.workers_run import Answers
from batchgauge.reporting import Section, profile_named
from batchgauge.serving.policies import PriorityClasses
from batchgauge.simulate.arrivals import Arrivals
from batchgauge.simulate.events import simulate
from batchgauge.simulate.server import POSITIONS, ROWS, STEP_S, Host, Server
from batchgauge.simulate.steps import StepTable
from batchgauge.statistics import Interval


def moments(times_s: list[float], *, policy="static", load=0.8, seeds=4, slower=1.0):
    """Requests that arrive at 0, with answers after these times, the same for each seed."""
    rows = [
        (policy, load, "Poisson", seed, i, 0.0, slower * t / 2, slower * t, slower * t)
        for seed in range(seeds)
        for i, t in enumerate(times_s)
    ]
    columns = ["request", "arrival_s", "first_s", "done_s", "returned_s"]
    return pd.DataFrame(rows, columns=[*forecast.KIND, "seed", *columns])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.95, 1.05, "held"), (0.85, 1.02, "undecided"), (1.2, 1.3, "failed"), (0.5, 0.8, "failed"),
     (0.0, math.inf, "undecided")],
)  # fmt: skip
def test_a_figure_is_held_failed_or_undecided_by_its_interval(low, high, said):
    """Against a bound of 10 %."""
    assert verdict(Interval(1.0, low, high), 0.10) == said


def test_forecast_over_live_is_above_one_where_the_forecast_is_slower():
    """A forecast of 1.3 times the live times fails by exactly that."""
    times = np.linspace(1.0, 3.0, 20).tolist()
    table = compare(moments(times, slower=1.3), moments(times))
    assert set(table["figure"]) == {"mean", "p90"}  # 4 x 20 requests are enough for p90
    assert table["forecast_over_live"].to_numpy() == pytest.approx(1.3)
    assert set(table["verdict"]) == {"failed"}
    few = compare(moments(times[:4]), moments(times[:4]))
    assert set(few["figure"]) == {"mean"}
    assert set(few["verdict"]) == {"held"}
    for shown, series in ((table, 4), (few, 2)):
        layers = figures.draw_forecast(shown).spec["layer"]
        colours = next(
            layer["encoding"]["color"]["scale"]
            for layer in layers
            if "color" in layer.get("encoding", {})
        )
        assert len(colours["domain"]) == len(colours["range"]) == series


def test_a_p90_that_is_off_by_little_noise_is_decided():
    """Runs of 24 waits with a long tail, each forecast 5 % off: a p90 holds within 15 %."""
    verdicts = []
    for draw in range(10):
        rng = np.random.default_rng(draw)
        live = moments([1.0] * 24, seeds=5)
        live["returned_s"] = 0.2 + rng.exponential(1.0, len(live))
        said = live.assign(returned_s=live["returned_s"] * np.exp(rng.normal(0, 0.05, len(live))))
        table = compare(said, live)
        verdicts += table[table["time_to"].eq("whole answer") & table["figure"].eq("p90")][
            "verdict"
        ].tolist()
    assert len(verdicts) == 10
    assert verdicts.count("held") >= 9


def test_the_course_keeps_every_change_of_a_count():
    """One panel a policy; of rows whose count stays, the first of all and the last are drawn."""
    counts = {"running": [8, 8, 8, 2], "waiting": [0, 3, 3, 0]}
    steps = pd.DataFrame(
        {"at_s": [1.0, 2.0, 3.0, 4.0], "loop_s": 0.5, **counts, "policy": "static", "load": 0.8,
         "shape": "Poisson", "seed": 1}
    )  # fmt: skip
    both = pd.concat([steps, steps.assign(policy="continuous", waiting=0)])
    chart = figures.draw_course(both, pd.DataFrame({"seed": [1]}), 0.8)
    assert chart.title == (
        "While steps run, requests that wait: 1.5 under static batching, 0.0 under continuous "
        "batching"
    )
    drawn = rows_of(chart)
    assert set(drawn["panel"]) == {
        f"{policy}: 6.5 a step,\nbusy 50 % of the time" for policy in ("Static", "Continuous")
    }
    first = drawn[drawn["panel"].str.startswith("Static")]
    points = first.groupby("series")[["at_s", "requests"]].apply(lambda g: g.to_numpy().tolist())
    assert points["under way"] == [[1, 8], [3, 8], [4, 2]]
    assert points["waiting"] == [[1, 0], [3, 3], [4, 0]]


def test_goodput_counts_answers_in_time_seed_by_seed():
    """Static answers half of its requests in time, continuous all: twice as many."""
    live = pd.concat(
        [moments([1.0, 9.0]), moments([1.0, 2.0], policy="continuous")], ignore_index=True
    )
    table = forecast.goodput_gain(live, 0.8, 5.0, "static").set_index("policy")
    assert table.loc["continuous", "value"] == pytest.approx(2.0)
    assert table.loc["static", "in_time_share"] == pytest.approx(0.5)
    none = forecast.goodput_gain(live, 0.8, 0.5, "static").set_index("policy")
    assert none.loc["continuous", "value"] == pytest.approx(1.0)  # none in time, either way


def test_waits_are_of_the_first_token_between_tokens_and_of_the_answer():
    """Five tokens leave four gaps; requests of one have none; few requests have no percentile."""
    times = np.linspace(1.0, 3.0, 20).tolist()
    live = moments(times).assign(tokens=5)
    live.loc[live["request"] == 19, "tokens"] = 1
    row = forecast.waits(live).iloc[0]
    assert row["requests"] == 80
    assert row["p50_first_token_ms"] == pytest.approx(1000.0)  # half of 2 s
    assert row["p90_answer_ms"] == pytest.approx(1e3 * np.percentile(np.repeat(times, 4), 90))
    assert row["p50_inter_token_ms"] == pytest.approx(1e3 * np.median(times[:19]) / 2 / 4)
    assert "p99_answer_ms" not in row  # 80 are too few
    assert set(forecast.waits(live[live["seed"] == 0])) == {
        *forecast.KIND, "requests", "p50_first_token_ms", "p50_inter_token_ms", "p50_answer_ms"
    }  # fmt: skip


def test_answers_of_one_token_leave_no_gap_to_speak_of():
    """The sentence has the other two medians; of too few requests it has none."""
    live = moments(np.linspace(1.0, 3.0, 20).tolist()).assign(tokens=1)
    said = sections.waits(Section("live", {"requests": live}, ""), load=0.8).finding
    assert "static 1,000 ms until the first token, 2,000 for the answer." in said
    few = Section("live", {"requests": live.head(1)}, "")
    assert "too few requests for one" in sections.waits(few, load=0.8).finding


def test_where_nothing_is_decoded_every_step_shows_the_schedulers_share():
    """Answers of one token are done with their prompt."""
    kind = {"policy": "static", "load": 0.8, "shape": "Poisson", "rows": 0}
    steps = pd.DataFrame([kind | {"seed": s, "own_s": 1.0, "loop_s": 50.0} for s in (0, 1)])
    assert trouble.scheduler_share(steps.assign(prompt_positions=9), 8).value == pytest.approx(0.02)


def test_rules_say_what_the_simulated_server_says():
    """Batching, order, most requests, ageing."""
    rules = rules_of(Server("dynamic", 5, max_wait_s=0.5, order="priority", ageing_s=3.0))
    assert (rules.batch, rules.batching.together) == (5, True)
    assert rules.batching.max_wait_s == 0.5
    assert rules.order == PriorityClasses(3.0)
    assert not rules_of(Server("continuous")).batching.together


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"max_batch": 0}, "max_batch is 0"), ({"length_scale": 0.0}, "length_scale 0.0"),
     ({"latency_target_ms": -1.0}, "latency_target_ms is -1.0"), ({"seeds": -2}, "seeds is -2")],
)  # fmt: skip
def test_questions_that_make_no_sense_are_refused(wrong, said):
    """One sentence each."""
    with pytest.raises(UserError, match=said):
        ServingQuestion(**wrong)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A tiny model, quickly."""
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    context = Context(profile_named("smoke"), model=str(path))
    return prepare(context, ServingQuestion(max_batch=4, requests=6, seeds=2))


def at_once(lengths: list[tuple[int, int]], ranks: list[int] | None = None) -> Arrivals:
    """Requests of these prompt and answer lengths, all there at 0."""
    context, generated = (np.array(part, np.int64) for part in zip(*lengths, strict=True))
    rank = np.array(ranks or [0] * len(lengths), np.int64)
    return Arrivals(np.zeros(len(lengths)), context, generated, rank)


@pytest.mark.parametrize("policy", ["static", "dynamic", "continuous"])
def test_every_request_is_answered_once_with_all_its_tokens(case, policy):
    """Moments are in order; static answers come with the whole batch."""
    arrivals = at_once([(5, 3), (20, 6), (3, 1), (9, 4), (4, 5)])
    run = serve(scheduler_of(case, policy), arrivals)
    frame = run.requests
    assert frame["tokens"].tolist() == arrivals.generated.tolist()
    assert (frame["first_s"] <= frame["done_s"]).all()
    assert (frame["done_s"] <= frame["returned_s"]).all()
    assert not frame["cancelled"].any()
    assert (len(set(frame["returned_s"][:4])) == 1) == (policy != "continuous")
    assert run.steps["rows"].max() <= 4
    assert (run.steps["own_s"] >= 0.0).all()


def test_a_cancelled_request_ends_half_way_and_gives_its_room_back(case):
    """The others are answered; nothing of the cache stays taken."""
    scheduler = scheduler_of(case, "continuous")
    run = serve(scheduler, at_once([(5, 8), (5, 8), (5, 8)]), cancelled=frozenset({1}))
    assert run.requests["cancelled"].tolist() == [False, True, False]
    assert run.requests["tokens"].tolist() == [8, 4, 8]
    assert scheduler.loop.used_positions == 0


def test_the_forecast_is_of_the_very_requests_that_are_served(case):
    """Arrivals agree request by request; every kind and seed is there; a date stands in it."""
    what = [RunKind("static", 0.5), RunKind("continuous", 0.8, "bursty")]
    fast = replace(case, limit=500.0)
    written = forecast.forecast(fast, what, fast.seeds)
    requests, steps = forecast.measure(fast, what)
    keys = [*forecast.KIND, "seed", "request"]
    both = written.merge(requests, on=keys, suffixes=("_forecast", "_live"))
    assert len(both) == len(written) == len(requests) == 2 * 2 * 6
    assert both["arrival_s_forecast"].to_numpy() == pytest.approx(both["arrival_s_live"])
    assert written["written_at"].str.match(r"\d{4}-\d\d-\d\dT").all()
    assert set(steps["policy"]) == {"static", "continuous"}


def test_the_schedulers_share_is_of_steps_with_a_full_batch():
    """Steps with prompts, or with fewer rows, do not count."""

    def run(seed, own, loop, rows=4, prompt=0):
        return ("static", 0.8, "Poisson", seed, own, loop, rows, prompt)

    columns = ["policy", "load", "shape", "seed", "own_s", "loop_s", "rows", "prompt_positions"]
    rows = [run(0, 1.0, 100.0), run(1, 1.0, 100.0), run(0, 50.0, 1.0, 3), run(1, 9.0, 1.0, 4, 5)]
    share = trouble.scheduler_share(pd.DataFrame(rows, columns=columns), 4)
    assert share.value == pytest.approx(0.01)


def test_an_engine_without_a_loop_is_refused_in_one_sentence():
    """Continuous batching needs our own engine."""
    context = Context(profile_named("smoke"), engine_spec="tests.user_engine:make_engine")
    with pytest.raises(UserError, match="cannot join the engine"):
        study.loop_engine(context)


def test_loads_that_make_no_sense_are_refused(case):
    """None, and one of nothing."""
    for loads in ([], [0.0]):
        with pytest.raises(UserError, match="expected shares above 0"):
            sections.kinds(case, loads, 0.8)


def test_a_smoke_run_has_the_highest_load_only(case):
    """Others have all loads, one of them with bursts too; the forecast says how many requests."""
    whole = replace(case, context=replace(case.context, budget=profile_named("default")))
    found = {(k.load, k.shape) for k in sections.kinds(whole, [0.5, 0.8], 0.8)}
    assert found == {(0.5, "Poisson"), (0.8, "Poisson"), (0.8, "bursty")}
    quick = {(k.load, k.shape) for k in sections.kinds(case, [0.5, 0.8], 0.8)}
    assert quick == {(0.8, "Poisson"), (0.8, "bursty")}
    written = sections.write_forecast(whole, sections.kinds(whole, [0.8], 0.8)[:1])
    assert len(written.frame) == whole.requests * len(whole.seeds)
    assert f"of {whole.requests} requests" in written.sentence()


def test_what_a_killed_worker_lost_is_said():
    """An answer given twice, or with other tokens, is no answer given once."""
    sound = Answers({"0": (1, 2), "1": (3,)}, Counter("01"), 1.0)
    hurt = Answers({"0": (1, 2), "1": (4,)}, Counter("0011"), 2.0, 1, killed_at=1)
    said = workers_run.sentence(sound, hurt)
    assert "with one killed as 1 were answered in 2.0 s" in said
    assert "0 of 2 exactly once" in said
    assert "1 with the tokens" in said


def test_nobody_is_said_to_be_killed_who_was_not():
    """Where all requests were answered before."""
    sound = Answers({"0": (1,)}, Counter("0"), 1.0)
    assert "no worker was killed" in workers_run.sentence(sound, replace(sound, seconds=1.2))
    assert sound.disturbance == "no worker killed"


STEPS = StepTable((1.0, 11.0), (0.1, 0.2), (0.0, 0.05, 0.06, 0.08, 0.09), 1e-5, 1e-4, True)


def test_requests_that_come_at_once_are_simulated_step_by_step_as_they_are_served(case):
    """Rows and prompt positions of every step: what a rehearsal compares is the same work."""
    arrivals = at_once([(5, 3), (20, 6), (3, 1), (9, 4), (4, 5), (7, 2)])
    for policy in ("static", "continuous"):
        real = serve(scheduler_of(case, policy), arrivals).steps
        told = simulate(arrivals, STEPS, case.servers[policy]).steps
        assert real["rows"].tolist() == told[:, ROWS].tolist()
        assert real["prompt_positions"].tolist() == told[:, POSITIONS].tolist()


def test_a_rehearsal_finds_how_much_slower_steps_are_and_what_is_beside_them(case, monkeypatch):
    """Invented: steps with a prompt 1.25 and others 1.1 times as long; 1 ms a step beside."""
    alone = Host(token_s=1e-5)
    servers = {name: replace(server, host=alone) for name, server in case.servers.items()}
    case = replace(case, steps=replace(case.steps, table=STEPS, host=alone), servers=servers)

    def invented(name, arrivals):
        told = simulate(arrivals, STEPS, servers[name]).steps
        reads = told[:, POSITIONS] > 0
        loop_s = told[:, STEP_S] * np.where(reads, 1.25, 1.1)
        own_s = 0.001 + 0.002 * len(arrivals) * reads / reads.sum()
        columns = {"at_s": np.cumsum(loop_s + own_s), "loop_s": loop_s, "own_s": own_s}
        columns["prompt_positions"] = told[:, POSITIONS]
        return SimpleNamespace(steps=pd.DataFrame(columns))

    monkeypatch.setattr(study, "scheduler_of", lambda _, name: name)
    monkeypatch.setattr(study, "serve", invented)
    for _ in range(2):  # the work that an earlier rehearsal found beside steps is not found again
        steps = rehearse(case, 3).steps
        assert steps.table(0, 0, 11, 5.0) == pytest.approx(1.25 * STEPS(0, 0, 11, 5.0))
        assert steps.table(3, 50, 0, 0.0) == pytest.approx(1.1 * STEPS(3, 50, 0, 0.0))
        host = steps.host
        assert (host.step_s, host.request_s, host.token_s) == pytest.approx((1e-3, 2e-3, 1e-5))
        case = replace(case, servers=rehearse(case, 3).servers)


def test_judged_is_the_forecast_that_was_renewed_before_each_run(case):
    """The first one, far too long here, stands beside it; both are on record."""
    kinds = [RunKind("static", 0.8), RunKind("continuous", 0.8)]
    fast = replace(case, limit=500.0)
    early = sections.write_forecast(fast, kinds)
    for name in ("first_s", "returned_s"):
        early.frame[name] = early.frame["arrival_s"] + 100.0
    live = sections.run_live(fast, kinds, early)
    table, requests = live.frames()["compared"], live.frames()["requests"]
    assert (table["early_over_live"] > 10 * table["forecast_over_live"]).all()
    assert f"0 held and {len(table)} failed" in live.sentence()
    assert (table["early_over_live"] > 10 * table["followed_over_live"]).all()
    told = requests["forecast_returned_s"] - requests["arrival_s"]
    means = 1e3 * told.groupby(requests["policy"]).mean()
    row = table[table["figure"].eq("mean") & table["time_to"].eq("whole answer")]
    assert row.set_index("policy")["forecast_ms"].to_dict() == pytest.approx(means.to_dict())
    assert (requests["written_at"] >= early.frame["written_at"].iloc[0]).all()
