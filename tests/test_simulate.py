"""The simulated server: it loses nothing, agrees with theory, and follows its policies."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.poisson import poisson

from batchgauge.errors import UserError
from batchgauge.simulate.arrivals import Arrivals, bursty, read_trace
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import (
    by_class,
    capacity,
    first_text_s,
    inter_token_ms,
    stability,
    summarise,
)
from batchgauge.simulate.server import (
    HELD,
    IN_BATCH,
    PADDED,
    POSITIONS,
    ROWS,
    STALL_S,
    STEP_S,
    Fleet,
    Host,
    Server,
    SimulatedRun,
)
from batchgauge.simulate.steps import StepTable
from batchgauge.sizing.cost_model import CostModel
from batchgauge.sizing.curve import Curve
from batchgauge.workload import request_lengths

STEPS = StepTable(
    positions=(1.0, 1000.0),
    prefill_s=(0.0105, 0.51),
    decode_s=(0.0, 0.035, 0.036, 0.038, 0.04, 0.042, 0.045, 0.048, 0.05),
    pair_s=1e-7,
    kv_s=1e-6,
)
SERVERS = {
    "static": Server(),
    "padded": Server(padded=True),
    "dynamic": Server("dynamic", max_wait_s=0.2),
    "continuous": Server("continuous"),
    "chunked": Server("continuous", chunk_tokens=32),
    "preempting": Server("continuous", preempt=True, kv_limit_tokens=600, max_batch=16),
    "chunked and preempting": Server(
        "continuous", chunk_tokens=16, preempt=True, kv_limit_tokens=600, max_batch=16
    ),
    "three workers": Server("dynamic", fleet=Fleet(3, (1.0, 1.5, 2.0))),
    "failing": Server("continuous", fleet=Fleet(2, mtbf_s=20.0, restart_s=3.0)),
    "failing static": Server(fleet=Fleet(2, mtbf_s=20.0, restart_s=3.0)),
    "priority": Server("continuous", order="priority", ageing_s=5.0),
    "shortest": Server("continuous", order="shortest"),
}


def traffic(count: int = 400, rate: float = 4.0, seed: int = 0) -> Arrivals:
    """Requests in the shape of real traffic, a tenth as long."""
    context, generated = request_lengths(count, scale=0.1, longest=500, seed=seed)
    return poisson(rate, context, generated, background=0.5, seed=seed)


def constant(seconds: float):
    """A step that always takes `seconds`."""
    return lambda *_: seconds


def by_prompt(_rows, _kv_tokens, prefill_tokens, _pairs):
    """A step that takes 0.1 ms for each prompt token and nothing else."""
    return prefill_tokens / 10_000


def stream(times, context=10, generated=5, rank=0) -> Arrivals:
    """A hand-made stream; single numbers stand for all requests."""
    n = len(times)
    full = [np.broadcast_to(np.asarray(a, np.int64), n).copy() for a in (context, generated, rank)]
    return Arrivals(np.asarray(times, np.float64), *full)


# --- conservation -----------------------------------------------------------------


def check_conserved(run: SimulatedRun) -> None:
    """Causal order for every request; token counts add up when nothing was begun again."""
    times = run.arrivals.times_s
    assert (times <= run.start_s + 1e-9).all()
    assert (run.start_s < run.first_s).all()
    assert (run.first_s <= run.done_s).all()
    assert (run.done_s <= run.returned_s).all()
    if not run.retries.any():  # every token is computed exactly once
        decoded = run.arrivals.generated.sum() - len(run.arrivals)
        assert run.steps[:, ROWS].sum() == decoded
        prompts = run.steps[:, POSITIONS].sum() - run.steps[:, PADDED].sum()
        assert prompts == run.arrivals.context.sum()


@pytest.mark.parametrize("name", SERVERS)
def test_every_request_ends_once_and_no_token_is_lost(name):
    """Under every policy all requests end, in causal order, and tokens add up."""
    run = simulate(traffic(), STEPS, SERVERS[name])
    check_conserved(run)
    came, left = np.sort(run.arrivals.times_s), np.sort(run.returned_s)
    moments = np.sort(np.concatenate([came, left]))
    present = np.searchsorted(came, moments, "right") - np.searchsorted(left, moments, "right")
    in_system = (present[:-1] * np.diff(moments)).sum()  # Little 1961: L = lambda W, both times T
    assert in_system == pytest.approx((run.returned_s - run.arrivals.times_s).sum(), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.integers(1, 60), st.integers(1, 30), st.integers(0, 1)),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(["static", "dynamic", "continuous"]),
    st.sampled_from(["fifo", "priority", "shortest"]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.booleans(),
)
def test_conservation_holds_for_any_stream(rows, batching, order, max_batch, workers, tight):
    """Whatever arrives and whatever the policy, nothing is lost and memory holds."""
    rows.sort()
    arrivals = Arrivals(
        np.array([r[0] for r in rows]), *(np.array([r[i] for r in rows]) for i in (1, 2, 3))
    )
    continuous = batching == "continuous"
    server = Server(
        batching,
        max_batch,
        order=order,
        fleet=Fleet(workers),
        kv_limit_tokens=95 if tight else 0,
        preempt=tight and continuous,
        chunk_tokens=7 if tight and continuous else 0,
    )
    run = simulate(arrivals, STEPS, server)
    check_conserved(run)
    assert run.steps[:, IN_BATCH].max() <= max_batch
    if tight:
        assert run.steps[:, HELD].max() <= 95


def test_time_in_batch_agrees_with_the_steps_own_count():
    """Little's law inside the server: occupancy by steps equals the requests' time in service."""
    run = simulate(traffic(), STEPS, Server("continuous"))
    by_steps = (run.steps[:, IN_BATCH] * run.steps[:, STEP_S]).sum()
    assert by_steps == pytest.approx((run.done_s - run.start_s).sum(), rel=1e-9)


# --- queueing theory --------------------------------------------------------------


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_single_server_with_constant_service_is_an_m_d_1_queue(load):
    """Mean wait is load / (2 mu (1 - load)) (Pollaczek 1930, Khinchine 1932)."""
    arrivals = poisson(load, np.ones(60_000, np.int64), np.ones(60_000, np.int64), seed=1)
    run = simulate(arrivals, constant(1.0), Server("continuous", 1))
    waited = (run.start_s - arrivals.times_s)[2_000:].mean()
    assert waited == pytest.approx(load / (2 * (1 - load)), rel=0.06)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_single_server_with_exponential_service_is_an_m_m_1_queue(load):
    """Mean stay is 1 / (mu - lambda); p90 of the stay is exponential as well."""
    rng = np.random.default_rng(2)
    context = np.maximum(1, np.rint(rng.exponential(10_000, size=80_000))).astype(np.int64)
    arrivals = poisson(load, context, np.ones_like(context), seed=3)
    run = simulate(arrivals, by_prompt, Server("continuous", 1))
    stay = (run.done_s - arrivals.times_s)[2_000:]
    assert stay.mean() == pytest.approx(1 / (1 - load), rel=0.08)
    assert np.percentile(stay, 90) == pytest.approx(math.log(10) / (1 - load), rel=0.1)


def test_two_workers_with_exponential_service_are_an_m_m_2_queue():
    """Mean wait follows Erlang C for two servers."""
    rng = np.random.default_rng(4)
    context = np.maximum(1, np.rint(rng.exponential(10_000, size=60_000))).astype(np.int64)
    arrivals = poisson(1.4, context, np.ones_like(context), seed=5)
    server = Server("continuous", 1, fleet=Fleet(2))
    run = simulate(arrivals, by_prompt, server)
    load = 0.7
    must_wait = 2 * load**2 / (1 + load)  # Erlang C with two servers
    waited = (run.start_s - arrivals.times_s)[2_000:].mean()
    assert waited == pytest.approx(must_wait / (2 - 1.4), rel=0.08)


# --- policies ---------------------------------------------------------------------


def test_static_waits_for_a_full_batch_and_returns_it_together():
    """Four requests, batches of two: pairs begin when full and return as one."""
    arrivals = stream([0.0, 5.0, 6.0, 9.0], generated=[1, 3, 1, 1])
    run = simulate(arrivals, constant(1.0), Server("static", 2))
    assert run.start_s.tolist() == [5.0, 5.0, 9.0, 9.0]
    assert run.first_s.tolist() == [6.0, 6.0, 10.0, 10.0]
    assert run.returned_s.tolist() == [8.0, 8.0, 10.0, 10.0]


def test_static_lets_the_last_partial_batch_go():
    """When nobody else will come, a batch that is not full is served."""
    run = simulate(stream([0.0, 1.0, 2.0]), constant(1.0), Server("static", 2))
    assert run.start_s[2] == run.returned_s[0]


def test_dynamic_goes_when_full_or_when_waited_enough():
    """A pair goes at once, a lone request after max_wait_s."""
    arrivals = stream([0.0, 0.1, 50.0], generated=1)
    run = simulate(arrivals, constant(1.0), Server("dynamic", 2, max_wait_s=2.0))
    assert run.start_s.tolist() == [0.1, 0.1, 52.0]


def test_continuous_joins_a_running_batch():
    """A late request begins at the next step, not after the batch."""
    arrivals = stream([0.0, 2.5], generated=[10, 2])
    run = simulate(arrivals, constant(1.0), Server("continuous", 2))
    assert run.start_s.tolist() == [0.0, 3.0]
    assert run.returned_s.tolist() == [11.0, 5.0]  # 1 prefill + 9 decode + 1 stall


def test_priority_goes_first_and_shortest_goes_first():
    """Among the waiting, the high class respectively the shortest is taken first."""
    arrivals = stream([0.0, 0.1, 0.2], generated=[3, 5, 2], rank=[0, 1, 0])
    start = simulate(arrivals, constant(1.0), Server("continuous", 1, order="priority")).start_s
    assert start[2] < start[1]
    arrivals = stream([0.0, 0.1, 0.2, 0.3], generated=[3, 9, 2, 5])
    start = simulate(arrivals, constant(1.0), Server("continuous", 1, order="shortest")).start_s
    assert np.argsort(start).tolist() == [0, 2, 3, 1]


def test_ageing_prevents_starvation():
    """Under a flood of the high class, the low class starves without ageing and not with it."""
    n = 300
    times = np.maximum(0.0, np.linspace(-5.0, 285.0, n))  # a few at once, then over capacity
    arrivals = stream(times, generated=1, rank=[0, 1, *[0] * (n - 2)])
    slow = constant(1.0)
    starved = simulate(arrivals, slow, Server("continuous", 1, order="priority"))
    aged = simulate(arrivals, slow, Server("continuous", 1, order="priority", ageing_s=5.0))
    assert starved.start_s[1] - arrivals.times_s[1] > 250
    assert aged.start_s[1] - arrivals.times_s[1] < 25


def test_preemption_holds_the_limit_and_throws_out_the_youngest():
    """Two grow until memory is full; the younger goes back and finishes later."""
    arrivals = stream([0.0, 0.0], context=10, generated=20)
    server = Server("continuous", 2, kv_limit_tokens=40, preempt=True)
    run = simulate(arrivals, constant(1.0), server)
    assert run.retries.tolist() == [0, 1]
    assert run.steps[:, HELD].max() <= 40
    assert run.done_s[1] > run.done_s[0]


def test_memory_reserved_to_the_end_never_preempts():
    """Without preemption the second waits until the first is done."""
    arrivals = stream([0.0, 0.0], context=10, generated=20)
    run = simulate(arrivals, constant(1.0), Server("continuous", 2, kv_limit_tokens=40))
    assert run.start_s[1] == run.done_s[0]
    assert not run.retries.any()


def test_chunked_prefill_keeps_decoding_smooth():
    """A long prompt stalls running sequences unless it is read in chunks."""
    arrivals = stream([0.0, 1.0], context=[10, 2000], generated=[200, 5])
    whole = simulate(arrivals, STEPS, Server("continuous"))
    chunked = simulate(arrivals, STEPS, Server("continuous", chunk_tokens=50))
    longest = []
    for run in (whole, chunked):
        steps = run.steps[run.steps[:, ROWS] > 0]
        longest.append((steps[:, STEP_S] + steps[:, STALL_S]).max())
    assert longest[1] < longest[0] / 5


def test_inter_token_percentiles_count_every_gap():
    """A lone request of 1001 tokens with one-second steps has gaps of a second only."""
    run = simulate(stream([0.0], generated=1001), constant(1.0), Server("continuous"))
    assert inter_token_ms(run) == {50: 1000.0, 90: 1000.0, 99: 1000.0}


def test_overlap_hides_the_smaller_part():
    """With overlap a step lasts as long as the longer of device and host, not both."""
    arrivals = stream([0.0], generated=11)
    apart = simulate(arrivals, constant(1.0), Server("continuous", host=Host(token_s=0.4)))
    beside = simulate(
        arrivals, constant(1.0), Server("continuous", host=Host(token_s=0.4, overlap=True))
    )
    assert apart.done_s[0] == pytest.approx(11 * 1.4)
    assert beside.done_s[0] == pytest.approx(11.0)


def test_fixed_work_of_a_step_is_paid_by_each():
    """A lone request of eleven tokens takes eleven steps."""
    run = simulate(
        stream([0.0], generated=11), constant(1.0), Server("continuous", host=Host(step_s=0.1))
    )
    assert run.done_s[0] == pytest.approx(11 * 1.1)


def test_fixed_work_of_a_batch_is_paid_once_by_each_batch():
    """Four requests one at a time pay it four times, together once; continuous has none."""
    arrivals = poisson(1.0, np.full(4, 10), np.full(4, 3), seed=0).at_once()
    extra = {}
    for name, server in (
        ("alone", Server("static", 1)),
        ("together", Server("static", 4)),
        ("continuous", Server("continuous", 4)),
    ):
        with_it = simulate(
            arrivals, STEPS, replace(server, host=Host(batch_s=0.5))
        ).returned_s.max()
        extra[name] = with_it - simulate(arrivals, STEPS, server).returned_s.max()
    assert extra == pytest.approx({"alone": 2.0, "together": 0.5, "continuous": 0.0})


def test_stragglers_and_shared_bandwidth_slow_steps():
    """A worker with factor 2 takes twice as long; two busy workers pay the sharing factor."""
    arrivals = stream([0.0, 0.0], generated=1)
    slow = simulate(arrivals, constant(1.0), Server("continuous", 1, fleet=Fleet(2, speeds=(2.0,))))
    assert sorted(slow.done_s.tolist()) == [1.0, 2.0]
    server = Server("continuous", 1, fleet=Fleet(2, (1.0, 1.5)))
    assert simulate(arrivals, constant(1.0), server).done_s.max() == pytest.approx(1.5)


def test_failed_workers_lose_their_batch_and_nothing_else():
    """Requests of a failed worker are begun again; all end, later than without failures."""
    arrivals = traffic()
    sound = simulate(arrivals, STEPS, Server("dynamic", fleet=Fleet(2)))
    failing = simulate(
        arrivals, STEPS, Server("dynamic", fleet=Fleet(2, mtbf_s=10.0, restart_s=5.0, seed=1))
    )
    assert failing.retries.sum() > 0
    assert failing.returned_s.mean() > sound.returned_s.mean()


def test_workers_that_never_finish_are_said_to_be_so():
    """A mean time between failures far below a batch's time ends with a clear sentence."""
    with pytest.raises(UserError, match="fail more often than a batch takes"):
        simulate(stream([0.0]), constant(10.0), Server("continuous", fleet=Fleet(mtbf_s=0.1)))


# --- numbers about a run ------------------------------------------------------------


def test_the_same_seed_gives_the_same_run():
    """Runs are equal to the last bit for one seed, and differ between seeds."""
    server = SERVERS["failing"]
    one, two = (simulate(traffic(seed=7), STEPS, server) for _ in range(2))
    assert np.array_equal(one.steps, two.steps)
    assert np.array_equal(one.returned_s, two.returned_s)
    assert not np.array_equal(one.arrivals.times_s, traffic(seed=8).times_s)


def test_streaming_shows_text_earlier_and_never_later():
    """First text with streaming comes no later than without, for every request."""
    run = simulate(traffic(), STEPS, Server("dynamic"))
    assert (first_text_s(run, streaming=True) <= first_text_s(run, streaming=False)).all()


def test_a_hand_made_run_has_the_metrics_of_its_definition():
    """Two requests in a padded batch of four: fill, padding, tokens and goodput by hand."""
    arrivals = stream([0.0, 0.0], context=[10, 30], generated=[1, 3])
    numbers = summarise(
        simulate(arrivals, constant(1.0), Server("static", 4, padded=True)), target_s=2.0
    )
    assert numbers["padding_waste"] == pytest.approx(20 / (60 + 2))
    assert numbers["fill_ratio"] == pytest.approx((2 + 1 + 1) / 3 / 4)
    assert numbers["throughput_tokens_per_s"] == pytest.approx(4 / 3)
    assert numbers["in_time_share"] == 0.0
    assert math.isnan(numbers["p50_latency_ms"])


def test_no_percentile_from_too_few_samples():
    """p90 needs 64 requests, p99 needs 662, for each class on its own."""
    table = by_class(simulate(traffic(700), STEPS, Server("continuous")), target_s=1.0)
    assert table["p90_latency_ms"].notna().all()
    assert table["p99_latency_ms"].isna().all()
    assert table["requests"].sum() == 700


def test_an_unstable_queue_is_said_to_be_so():
    """Above capacity the sentence says unstable; and waiting really grows with time."""
    limit = capacity(traffic(600), STEPS, Server("dynamic"))
    assert stability(limit * 0.8, limit).startswith("Stable")
    assert "Unstable" in stability(limit * 1.5, limit)
    run = simulate(traffic(600, rate=limit * 1.5), STEPS, Server("dynamic"))
    stay = run.returned_s - run.arrivals.times_s
    assert stay[-100:].mean() > 2 * stay[100:200].mean()


def test_continuous_batching_serves_more_than_static_on_ragged_lengths():
    """Ragged answers leave places empty in a static batch."""
    arrivals = traffic(600)
    assert capacity(arrivals, STEPS, Server("continuous")) > 1.1 * capacity(
        arrivals, STEPS, Server("static")
    )


@pytest.mark.parametrize("batching", ["dynamic", "continuous"])
def test_a_hundred_thousand_requests_take_few_events(batching):
    """The work is bounded by steps, not by steps times batch; 100,000 requests stay feasible."""
    context, generated = request_lengths(100_000, scale=0.1, longest=500)
    began = time.process_time()
    run = simulate(poisson(4.0, context, generated), STEPS, Server(batching, max_batch=32))
    assert (run.returned_s > 0).all()
    assert len(run.steps) <= generated.sum()
    assert time.process_time() - began < 300  # a hang guard, not a speed claim


# --- step times -------------------------------------------------------------------


COSTS = CostModel(
    prefill=Curve((1.0, 64.0, 512.0), (30.0, 60.0, 300.0)),
    decode=Curve((1.0, 4.0, 16.0), (30.0, 36.0, 80.0)),
    square_ms=2e-4,
    context_ms=3e-3,
)


def test_the_table_answers_like_the_cost_model():
    """Prefill, decode, pairs and context cost the same as in the sizing package's cost model."""
    table = StepTable.from_costs(COSTS, max_batch=16)
    for rows, context in [(1, 50), (7, 900), (16, 4000)]:
        expected = float(COSTS.decode_ms(rows, context)) / 1e3
        assert table(rows, context, 0, 0.0) == pytest.approx(expected)
    for tokens in (1, 64, 200, 512, 3000):
        expected = float(COSTS.prefill_ms(tokens, tokens**2)) / 1e3
        assert table(0, 0, tokens, tokens**2 / 2) == pytest.approx(expected, rel=0.02)


def test_a_mixed_step_in_one_pass_reads_the_weights_once():
    """Decoding adds what it costs more than a prefill of its rows; factors divide."""
    apart = StepTable.from_costs(COSTS, max_batch=16)
    table = replace(apart, one_pass=True)
    assert table(4, 100, 0, 0.0) == apart(4, 100, 0, 0.0)
    assert table(0, 0, 64, 0.0) == apart(0, 0, 64, 0.0)
    assert apart(4, 100, 64, 0.0) == apart(4, 100, 0, 0.0) + apart(0, 0, 64, 0.0)
    beyond = table(4, 100, 0, 0.0) - table(0, 0, 4, 0.0)
    assert table(4, 100, 60, 0.0) == pytest.approx(table(0, 0, 64, 0.0) + beyond)
    fast = table.faster(2.0, 4.0)
    assert fast(0, 0, 64, 1e4) == pytest.approx(table(0, 0, 64, 1e4) / 2)
    assert fast(4, 100, 0, 0.0) == pytest.approx(table(4, 100, 0, 0.0) / 4)


# --- bad input --------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    """`path`, with `text` in it."""
    path.write_text(text, encoding="utf-8")
    return path


def test_the_azure_trace_is_read_as_it_is(tmp_path):
    """Its column names, seven-digit fractions and zone suffixes work; times begin at 0."""
    for zone in ("", "+00:00"):
        file = write(
            tmp_path / "azure.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            f"2023-11-16 18:15:46.6805900{zone},374,44\n"
            f"2023-11-16 18:15:50.9951690{zone},396,109\n",
        )
        trace = read_trace(file)
        assert trace.times_s == pytest.approx([0.0, 4.314579])
        assert trace.context.tolist() == [374, 396]
        assert trace.generated.tolist() == [44, 109]


def test_a_trace_in_seconds_with_priorities_is_read(tmp_path):
    """Numeric timestamps stay as they are; zero generated tokens count as one."""
    file = write(
        tmp_path / "own.csv",
        "generated_tokens,timestamp,context_tokens,priority\n3,0.5,7,1\n0,2,9,0\n",
    )
    trace = read_trace(file)
    assert trace.times_s.tolist() == [0.5, 2.0]
    assert trace.generated.tolist() == [3, 1]
    assert trace.rank.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "text", "times_s", "context", "generated", "notes"),
    [
        (  # BurstGPT: a failure has no answer
            "burst.csv",
            ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
            "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,0,0,0,API log\n"
            "118,GPT-4,1087,230,1317,Conversation log\n"),
            [5.0, 118.0], [472, 1087], [18, 230], ("3 rows", "1 without an answer dropped"),
        ),
        (
            "vidur.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0.25,10,3\n1.5,20,0\n",
            [0.25, 1.5], [10, 20], [3, 1], ("times are seconds",),
        ),
        (
            "mooncake.jsonl",
            ('{"timestamp": 500, "input_length": 6955, "output_length": 52, "hash_ids": [1, 2]}\n'
            '{"timestamp": 3500, "input_length": 12, "output_length": 1, "hash_ids": []}\n'),
            [0.5, 3.5], [6955, 12], [52, 1], ("times are 0.001 s",),
        ),
        (
            "semicolons.csv",
            "\ufefftimestamp;context_tokens;generated_tokens\r\n0,5;7;1\r\n2;9;2\r\n",
            [0.5, 2.0], [7, 9], [1, 2], ("times are seconds",),
        ),
        ("tabs.tsv", "timestamp\tcontext_tokens\tgenerated_tokens\n1\t7\t1\n", [1.0], [7], [1], ()),
        *(
            (
                f"{unit}.csv",
                ("timestamp,context_tokens,generated_tokens\n"
                f"{1_700_000_000 * scale},7,1\n{1_700_000_003 * scale},9,2\n"),
                [0.0, 3.0], [7, 9], [1, 2], (f"times are {unit} since 1970",),
            )
            for unit, scale in (("s", 1), ("ms", 10**3), ("µs", 10**6), ("ns", 10**9))
        ),
    ],
)  # fmt: skip
def test_traces_that_people_have_are_read_as_they_are(
    tmp_path, name, text, times_s, context, generated, notes
):
    """Public traces, separators and units of time; what was dropped is counted and kept."""
    trace = read_trace(write(tmp_path / name, text))
    assert trace.times_s == pytest.approx(times_s, abs=1e-5)
    assert trace.context.tolist() == context
    assert trace.generated.tolist() == generated
    assert all(note in "; ".join(trace.notes) for note in notes)
    assert trace.window(0, 1).notes == trace.at_once().notes == trace.notes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("when,context_tokens,generated_tokens\n1,2,3\n", "expected timestamp, context_tokens"),
        ("timestamp,context_tokens,generated_tokens\n", "no rows"),
        ("", "is empty"),
        ("timestamp,context_tokens,generated_tokens\n1,2\n", "generated_tokens 'nan' in row 1"),
        ("timestamp,context_tokens,generated_tokens\n1,True,3\n", "context_tokens 'True'"),
        ("timestamp,context_tokens,generated_tokens\n1,0,3\n", "context_tokens '0' in row 1"),
        ("timestamp,context_tokens,generated_tokens\ninf,2,3\n", "timestamp 'inf' in row 1"),
        ("Timestamp,Request tokens,Response tokens\n1,5,0\n", "no row with an answer"),
        ('{"timestamp": 1, "input_length": 5}\n', "has the columns"),
        ('{"timestamp": 1, "input_length": 5, "output_length": "x"}\n', "generated_tokens 'x'"),
        ("timestamp,context_tokens,generated_tokens\n2e9,2,3\n1e9,2,3\n", "sorted by time: row 2"),
        ("timestamp,context_tokens,generated_tokens\n5,2,3\n4,2,3\n", "not sorted: request 2"),
        ("timestamp,context_tokens,generated_tokens\n-1,2,3\n", "negative"),
        ("timestamp,context_tokens,generated_tokens\n1,2,-3\n", "generated_tokens '-3' in row 1"),
        ("timestamp,context_tokens,generated_tokens\n1,2.5,3\n", "context_tokens '2.5'"),
        ("timestamp,context_tokens,generated_tokens\n1,2,3,4\n", "more fields than names"),
        ("timestamp,context_tokens,generated_tokens\nsoon,2,3\n", "timestamp 'soon' in row 1"),
        (
            "timestamp,context_tokens,generated_tokens\n2024-01-02,2,3\n2024-01-01,2,3\n",
            "not sorted by time: row 2",
        ),
    ],
)
def test_a_bad_trace_is_named(tmp_path, text, said):
    """Each kind of bad trace raises one sentence that says what was wrong, and where."""
    with pytest.raises(UserError, match=said):
        read_trace(write(tmp_path / "bad.csv", text))
    with pytest.raises(UserError, match="cannot be read"):
        read_trace(tmp_path / "missing.csv")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Fleet(0), "0 workers"),
        (lambda: Server(max_batch=0), "batches of 0"),
        (
            lambda: Server("adaptive"),  # type: ignore[arg-type]  # the point
            "'adaptive, fifo' is unknown",
        ),
        (lambda: Server(max_wait_s=-1.0), "at least 0"),
        (lambda: Host(token_s=math.nan), "at least 0"),
        (lambda: Server(preempt=True), "need continuous batching"),
        (lambda: poisson(0.0, np.ones(3, np.int64), np.ones(3, np.int64)), "rate is 0.0"),
        (lambda: stream([]), "no requests"),
        (lambda: stream([1.0, 0.5]), "not sorted"),
        (lambda: stream([0.0], context=0), "no tokens"),
        (lambda: stream([0.0, 0.0]).at_rate(2.0), "cannot be changed"),
        (
            lambda: simulate(stream([0.0]), STEPS, Server(kv_limit_tokens=14)),
            "needs 15 tokens of KV cache; the limit is 14",
        ),
        (lambda: summarise(simulate(stream([0.0]), STEPS, Server()), target_s=0.0), "0 ms"),
        (lambda: StepTable((1.0,), (1.0,), (0.0, 1.0)), "two rising prefill sizes"),
        (lambda: StepTable((1.0, 2.0), (1.0, 2.0), (0.0,)), "decode time for one row"),
        (lambda: StepTable.from_costs(COSTS, max_batch=0), "batch of at least 1"),
        (lambda: STEPS.faster(0.0, 1.0), "factor above 0"),
    ],
)
def test_bad_input_is_named(make, said):
    """What cannot be simulated raises one clear sentence."""
    with pytest.raises(UserError, match=said):
        make()


# --- arrivals ---------------------------------------------------------------------


def test_arrival_patterns_have_the_rate_and_burstiness_asked_for():
    """Gaps have mean 1 / rate and the squared coefficient of variation asked for."""
    ones = np.ones(40_000, np.int64)
    for burstiness in (0.5, 1.0, 4.0):
        gaps = np.diff(bursty(5.0, ones, ones, burstiness=burstiness, seed=3).times_s)
        assert gaps.mean() == pytest.approx(0.2, rel=0.05)
        assert gaps.var() / gaps.mean() ** 2 == pytest.approx(burstiness, rel=0.1)


def test_a_stream_can_be_stretched_and_shortened():
    """at_rate keeps the pattern and sets the rate; shortened keeps lengths at 1 or more."""
    arrivals = traffic()
    assert arrivals.at_rate(9.0).rate == pytest.approx(9.0)
    small = arrivals.shortened(0.01, 3)
    assert small.context.min() == 1
    assert small.context.max() <= 3


def test_bursts_wait_longer_than_an_even_stream():
    """At the same rate, burstier arrivals see a longer mean wait."""
    context, generated = request_lengths(1000, scale=0.1, longest=500)
    stay = []
    for burstiness in (1.0, 8.0):
        arrivals = bursty(2.5, context, generated, burstiness=burstiness, seed=1)
        run = simulate(arrivals, STEPS, Server("continuous"))
        stay.append((run.returned_s - arrivals.times_s).mean())
    assert stay[1] > 1.2 * stay[0]
