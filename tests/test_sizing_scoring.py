"""Sweep and score: on invented machines, where the best size is known."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import count, permutations, product
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from batchgauge.errors import UserError
from batchgauge.experiments.batch_sizing import sweep as sweep_module
from batchgauge.experiments.batch_sizing.bench import (
    Bench,
    effort,
    engine_workloads,
    two_references,
)
from batchgauge.experiments.batch_sizing.runs import calibrate
from batchgauge.experiments.batch_sizing.scoring import (
    SizingScenario,
    Truth,
    ask,
    fixed_size_rules,
    judged_by,
    same_step,
    score,
)
from batchgauge.experiments.batch_sizing.study import broken_share, score_quantile, summaries
from batchgauge.experiments.batch_sizing.sweep import dense_sizes, sweep_engine, sweep_tokenizer
from batchgauge.request import BatchResponse, BatchResult, InferenceBatchResponse
from batchgauge.sizing import (
    ModelShape,
    SizingConfig,
    automatic,
    optimal_for_engine,
    optimal_for_tokenizer,
    simulated_profiles,
    suggest_batch_size,
)
from batchgauge.sizing.calibration import calibrate_engine
from batchgauge.sizing.cost_model import BatchTimes, batch_times
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.probes import Steady, SteadyProbe, engine_probe, tokenizer_probe
from batchgauge.statistics import proportion
from batchgauge.workload import request_lengths

WORK = Lengths.uniform(16, 16)


def probe(rows: int, prompt: int, steps: int) -> tuple[float, float]:
    """An invented engine: 18 ms alone, else 50 + 1.2 b, tiles of four, linear context."""
    base = 18.0 if rows == 1 else 50.0 + 1.2 * rows
    tail = 8.0 if rows > 4 and rows % 4 else 0.0
    context = rows * (prompt + (steps + 1) / 2.0)
    return 5.0 + 1.3 * rows * prompt + 1e-4 * rows * prompt**2, base + tail + 0.003 * context


@pytest.fixture(scope="module")
def sweep():
    """A sweep of the invented engine."""
    return sweep_engine(probe, largest=64, passes=1)


@pytest.fixture(scope="module")
def model():
    """Its calibration."""
    return calibrate_engine(probe)


def test_the_sweep_is_dense():
    """Every size to 16, every second to 32, every fourth above: not only powers of two."""
    sizes = dense_sizes(66)
    assert set(range(1, 17)) <= set(sizes)
    assert {18, 22, 30, 36, 40, 64, 66} <= set(sizes)


@pytest.mark.parametrize(("memory", "arithmetic"), [(1.4, 1.4), (1.4, 1.0), (1.0, 1.5)])
@pytest.mark.parametrize("run", [(1, 1, 3), (8, 1, 3), (64, 1, 3), (1, 256, 0), (8, 160, 3)])
def test_a_steady_probe_takes_the_changes_of_speed_out(run, memory, arithmetic):
    """Whether others take the memory's bandwidth, arithmetic or both changes no time told."""
    slowness = [1.0, 1.0]

    def passes(positions):  # by the roofline, whose ridge lies at 16 positions
        return max(slowness[0] * 16.0, slowness[1] * positions)

    def swaying(rows, prompt, steps):
        return passes(rows * prompt), passes(rows) if steps else 0.0

    steady = SteadyProbe(swaying, settle_runs=3)
    calm = steady(*run)
    slowness[:] = memory, arithmetic
    steady(*run)  # its controls before were calm ones
    assert steady(*run) == pytest.approx(calm, rel=0.02)
    assert steady.multiplying(16) == pytest.approx(0.5)


def test_two_references_see_the_same_machine():
    """One that begins at half its speed misleads neither."""
    calls = count()
    probes = two_references(lambda: Steady(lambda: 1.0 + (next(calls) < 40)), 50)
    assert [probe.reference_ms for probe in probes] == [1.0, 1.0]
    assert len(probes[0].controls_ms) == 50


def test_the_luckiest_size_is_no_yardstick():
    """The best is picked in one half of the passes and judged in the other."""
    scenario = SizingScenario("", "engine", Lengths.uniform(8, 8), 3)

    def half(*rates):
        times = [BatchTimes(i + 1, 1.0, 1.0, 1.0, rate) for i, rate in enumerate(rates)]
        return {t.size: Truth(t.size, t, 0.0, False, False) for t in times}

    halves = half(100.0, 120.0, 100.0), half(100.0, 100.0, 120.0)  # luck, once here, once there
    together = half(100.0, 110.0, 110.0)
    assert score(scenario, "x", 1, together, halves).fair_score == pytest.approx(1.0)
    assert score(scenario, "x", 1, together).score == pytest.approx(100 / 110)


def test_a_sweep_composes_to_the_true_batch_time(sweep):
    """Phases measured apart add up to the invented machine's own batch."""
    for size in (1, 3, 8, 20, 64):
        prefill, _ = probe(size, 16, 0)
        steps = sum(probe(size, 15 + s, 1)[1] for s in range(1, 16))
        measured = batch_times(sweep.costs, WORK, size).request_ms
        assert measured == pytest.approx(prefill + steps, rel=0.005)


def truths(scenario, costs, sizes, peaks=None):
    """Every swept size by the sweep's own times of the scenario's batches."""
    return judged_by(
        scenario, lambda size: batch_times(costs, scenario.lengths, size), sizes, peaks
    )


def test_a_sweep_takes_further_sizes(sweep):
    """Sizes that were suggested are timed too, so that they can be scored."""
    wide = sweep_engine(probe, largest=40, passes=1, also=(37, 39))
    assert {37, 39} <= set(wide.sizes)
    assert 37 not in sweep.sizes
    assert {t["rows"] for t in wide.rows() if t["phase"] == "decode"} == set(wide.sizes)


def test_a_slow_machine_still_sweeps_every_size_twice(monkeypatch):
    """Else the luckiest of many single runs is the yardstick."""
    monkeypatch.setattr(sweep_module, "PATIENCE_S", 0.0)
    slow = sweep_engine(probe, largest=12, passes=3)
    decoded = Counter((t.rows, t.run) for t in slow.timings if t.phase == "decode")
    assert set(decoded) == set(product(slow.sizes, (0, 1)))
    assert len(slow.halves) == 2


@pytest.mark.parametrize("budget", [None, 400.0, 1500.0, 2500.0])
def test_a_right_model_scores_near_one(sweep, model, budget):
    """With a model that recovered the machine, the suggestion is at most a few percent off."""
    scenario = SizingScenario("x", "engine", WORK, 64, latency_budget_ms=budget)
    size = ask(scenario, model)
    found = score(scenario, "advisor", size, truths(scenario, sweep.costs, sweep.sizes))
    assert found.score >= 0.93
    assert not found.late


def test_refusing_scores_one_only_when_nothing_fits(sweep, model):
    """An impossible budget is answered with no size; a possible one must not be."""
    impossible = SizingScenario("x", "engine", WORK, 64, latency_budget_ms=50.0)
    truth = truths(impossible, sweep.costs, sweep.sizes)
    assert ask(impossible, model) == 0
    assert score(impossible, "advisor", 0, truth).score == 1.0
    broken = score(impossible, "fixed 8", 8, truth)
    assert (broken.score, broken.late) == (0.0, True)
    possible = SizingScenario("x", "engine", WORK, 64)
    timid = score(possible, "timid", 0, truths(possible, sweep.costs, sweep.sizes))
    assert timid.score == 0.0
    assert math.isnan(timid.log2_distance)


def test_breaking_a_budget_scores_zero(sweep):
    """The fastest size is worth nothing when it is late or does not fit in memory."""
    late = SizingScenario("x", "engine", WORK, 64, latency_budget_ms=1500.0)
    assert score(late, "f", 64, truths(late, sweep.costs, sweep.sizes)).score == 0.0
    small = SizingScenario("x", "engine", WORK, 64, memory_budget_bytes=20.0)
    truth = truths(small, sweep.costs, sweep.sizes, lambda _, size: float(size))
    found = score(small, "f", 32, truth)
    assert (found.score, found.over_memory, found.late) == (0.0, True, False)
    assert score(small, "f", 20, truth).score == 1.0


def test_another_seed_draws_other_batches_and_some_are_late(sweep):
    """Equal requests: the same times; ragged ones: other draws, p95 above the mean."""
    alike = batch_times(sweep.costs, WORK, 8)
    assert batch_times(sweep.costs, replace(WORK, seed=1), 8) == alike
    assert alike.latency_ms("request", "p95") == pytest.approx(alike.request_ms)
    ragged = Lengths((4, 30, 60), (2, 9, 40))
    one, other = (batch_times(sweep.costs, replace(ragged, seed=s), 8) for s in (1, 2))
    assert one.request_ms != other.request_ms
    assert one.request_ms == pytest.approx(other.request_ms, rel=0.02)
    assert one.latency_ms("request", "p95") == pytest.approx(
        other.latency_ms("request", "p95"), rel=0.03
    )
    assert one.latency_ms("request", "p95") > 1.02 * one.request_ms
    single = batch_times(sweep.costs, ragged, 1)  # against each request by itself
    prices = [
        float(sweep.costs.prefill_ms(p, p * p))
        + sweep.costs.decode_ms(np.ones(n - 1), p + np.arange(1, n)).sum()
        for p, n in zip(ragged.inputs, ragged.new_tokens, strict=True)
    ]
    assert single.request_ms == pytest.approx(np.mean(prices), rel=0.05)
    assert single.latency_ms("request", "p95") == pytest.approx(max(prices))


def test_a_scenario_whose_best_is_the_largest_size_tells_nothing(sweep):
    """Where throughput still rises at the end of the sweep, the score stands apart."""
    scenario = SizingScenario("x", "engine", WORK, 64)
    told = score(scenario, "f", 64, truths(scenario, sweep.costs, sweep.sizes))
    assert not told.informative
    budget = replace(scenario, latency_budget_ms=1500.0)
    assert score(budget, "f", 8, truths(budget, sweep.costs, sweep.sizes)).informative


def test_a_size_that_was_not_swept_cannot_be_scored(sweep):
    """No interpolated score: the size must have been measured."""
    scenario = SizingScenario("x", "engine", WORK, 64)
    with pytest.raises(UserError, match="not swept"):
        score(scenario, "f", 33, truths(scenario, sweep.costs, sweep.sizes))


def test_fixed_size_rules_follow_their_names(sweep):
    """Each rule of thumb gives what its name says, on a budget that 20 rows keep."""
    scenario = SizingScenario("x", "engine", WORK, 64, latency_budget_ms=1700.0)
    truth = truths(scenario, sweep.costs, sweep.sizes)
    allowed = max(size for size, row in truth.items() if row.allowed)
    assert 16 <= allowed < 32
    rules = fixed_size_rules(truth)
    assert rules["fixed 8"] == 8
    assert rules["largest that fits"] == 64
    assert rules["halve on failure"] == 16
    assert rules["double until it breaks"] == 16


def test_summary_and_steps():
    """The summary's figures are those of the scores; a step is a tile or a fifth."""
    scenario = SizingScenario("x", "engine", WORK, 4)
    truth = truths(scenario, sweep_engine(probe, largest=4, passes=1).costs, (1, 2, 3, 4))
    scores = [score(scenario, "f", size, truth) for size in (1, 4, 4)]
    found = summaries(pd.DataFrame(scores)).iloc[0]
    assert found["scenarios"] == 3
    assert found["median_score"] == pytest.approx(np.median([s.score for s in scores]))
    assert found["p10_score"] == pytest.approx(np.quantile([s.score for s in scores], 0.1))
    assert found["late_share"] == 0.0
    assert same_step(40, 44)
    assert not same_step(8, 16)
    assert not same_step(0, 4)


class InventedTokenizer:
    """A tokenizer with a clock of its own: a price a call and 1 µs a byte; counts its calls."""

    name = "invented"

    def __init__(self, per_call_us: int = 0) -> None:
        self.calls, self.clock_ns, self.per_call_us = 0, 0, per_call_us

    def encode_many(self, texts, *, allow_special=False):
        """Nothing but a count and the time that it is said to take."""
        self.calls += 1
        self.clock_ns += 1000 * (self.per_call_us + sum(len(text.encode()) for text in texts))


class InventedEngine:
    """An engine with the invented costs and no clock: durations are computed."""

    name = "invented"

    def __init__(self, *, stages: bool = True, broken: bool = False, most: int = 99) -> None:
        self.stages, self.broken, self.most, self.calls = stages, broken, most, 0

    def max_batch_size(self) -> int:
        """As small as a test wants it."""
        return 32

    def infer_batch(self, items) -> BatchResult[InferenceBatchResponse]:
        """Answer with invented durations."""
        self.calls += 1
        rows, new = len(items), min(self.most, items[0].data.max_tokens)
        first, step = probe(rows, len(items[0].data.prompt), new - 1)
        error = "broken" if self.broken else None
        answer = InferenceBatchResponse("", new)
        answers = [BatchResponse(i.id, answer, 1.0, error) for i in items]
        told = {"prefill": first, "decode": step * (new - 1)} if self.stages else {}
        return BatchResult.of(answers, first + step * (new - 1), told)


def test_a_reference_speed_rests_on_all_controls_that_settled_it():
    """Their median, however many calls they came in; runs to warm up do not count."""
    times = iter([9.0, 9.0, 9.0, 1.0, 3.0, 2.0])  # the first three warm up
    steady = Steady(lambda: next(times))
    assert steady.reference_ms == 1.0
    steady.settle()
    steady.settle()
    assert steady.reference_ms == 2.0


@pytest.mark.parametrize("passes", [1, 2, 3, 4])
def test_a_sweep_prices_context_three_times_at_least(passes):
    """However few passes a profile has: the median of one or two is at the mercy of noise."""
    sweep = sweep_engine(probe, largest=12, max_positions=32, passes=passes)
    assert sum(t.phase == "context" for t in sweep.timings) >= 3


@pytest.mark.parametrize("stages", [True, False])
def test_the_engine_probe_tells_phases_apart(stages):
    """With stage times and without, prefill and decode step come out as they are."""
    ask_probe = engine_probe(InventedEngine(stages=stages))
    assert ask_probe(8, 16, 4) == pytest.approx(probe(8, 16, 4))
    assert ask_probe(3, 20, 0)[0] == pytest.approx(probe(3, 20, 0)[0])
    stops_early = engine_probe(InventedEngine(stages=stages, most=3))
    assert stops_early(8, 16, 4) == pytest.approx(probe(8, 16, 2))
    assert engine_probe(InventedEngine(stages=stages, most=1))(8, 16, 4)[1] == 0.0


def test_a_failing_engine_is_a_user_error():
    """Calibrating an engine that answers with errors says so instead of timing nothing."""
    with pytest.raises(UserError, match="broken"):
        engine_probe(InventedEngine(broken=True))(2, 4, 1)


def test_optimal_for_engine_calibrates_once(tmp_path):
    """The second question is answered from the cache, another model is calibrated anew."""
    engine = InventedEngine()
    size = optimal_for_engine(engine, model="a", cache=tmp_path)
    calls = engine.calls
    assert calls > 10
    assert optimal_for_engine(engine, model="a", cache=tmp_path) == size
    assert engine.calls == calls
    assert 20 <= size <= 32
    optimal_for_engine(engine, model="b", cache=tmp_path)
    assert engine.calls > calls


def test_a_broken_cache_is_replaced(tmp_path):
    """A cache file that cannot be read costs a new calibration, nothing else."""
    engine = InventedEngine()
    size = optimal_for_engine(engine, cache=tmp_path)
    (path,) = tmp_path.glob("costs-*.json")
    path.write_text("{", encoding="utf-8")
    assert optimal_for_engine(engine, cache=tmp_path) == size
    assert path.read_text(encoding="utf-8") != "{"


@pytest.mark.parametrize(("per_call_us", "low", "high"), [(5_000, 40, 50), (0, 1, 10)])
def test_optimal_for_tokenizer_follows_its_costs(tmp_path, monkeypatch, per_call_us, low, high):
    """Dear calls want large batches, free ones do not; the second question is not measured."""
    tokenizer: Any = InventedTokenizer(per_call_us)
    clock = SimpleNamespace(perf_counter_ns=lambda: tokenizer.clock_ns, process_time_ns=int)
    monkeypatch.setattr("batchgauge.clock.time", clock)
    size = optimal_for_tokenizer(tokenizer, max_batch_size=50, cache=tmp_path)
    assert low <= size <= high
    calls = tokenizer.calls
    assert optimal_for_tokenizer(tokenizer, max_batch_size=50, cache=tmp_path) == size
    assert tokenizer.calls == calls


def test_text_probe_counts_bytes():
    """Bytes are those of the texts taken, whose number may pass theirs; no texts is an error."""
    tokenizer: Any = InventedTokenizer()
    ask_probe = tokenizer_probe(tokenizer, ["a", "bcd"])
    assert ask_probe(4)[0] == 8
    with pytest.raises(UserError):
        tokenizer_probe(tokenizer, [])


def test_tokenizer_sweep_prices_bytes():
    """A tokenizer's sweep is a line through its medians over bytes."""
    found = sweep_tokenizer(lambda size: (10 * size, 0.1 + 0.01 * size), largest=200, passes=2)
    times = batch_times(found.costs, Lengths.uniform(10), 100)
    assert times.request_ms == pytest.approx(1.1)
    assert times.throughput_per_s == pytest.approx(100 / 1.1e-3)


def test_traffic_lengths_have_the_shape_of_traffic():
    """Median and skew follow the published quantiles, scaled down."""
    lengths = automatic.traffic_lengths(2000)
    assert np.median(lengths.inputs) == pytest.approx(1020 / 16, rel=0.1)
    assert np.median(lengths.new_tokens) == pytest.approx(129 / 16, rel=0.3)
    assert max(lengths.inputs) > 2 * np.median(lengths.inputs)


def test_traffic_is_drawn_in_one_place():
    """The advisor's requests, the notebook's and the workload's are the same numbers."""
    context, new = request_lengths(200, scale=1 / 16, longest=128, seed=3)
    ours = automatic.traffic_lengths(seed=3)
    assert ours == Lengths(tuple(context.tolist()), tuple(new.tolist()))
    tokenizer: Any = SimpleNamespace(
        encode_many=lambda texts: SimpleNamespace(counts=[len(t) for t in texts])
    )
    assert engine_workloads(tokenizer, seed=3)["ragged traffic"] == ours
    assert max(ours.inputs) <= 128


class WideEngine(InventedEngine):
    """One that takes more than is calibrated unasked."""

    def max_batch_size(self) -> int:
        """As our own engine."""
        return 100


def bench_of(engine: Any, tokenizer: Any, profile: str) -> Bench:
    """The notebook's bench on an invented engine, without a clock."""
    sample = automatic.traffic_texts()[:9]
    return Bench(
        engine=engine,
        tokenizer=tokenizer,
        texts=sample,
        works={"ragged traffic": automatic.traffic_lengths()},
        effort=replace(
            effort(profile, 1, most=engine.max_batch_size()), repeats=1, tokenizer_largest=90
        ),
        config=SizingConfig(),
        hardware=simulated_profiles()[0],
        priors={},
        shape=ModelShape(2, 8, 2, 1, 4, 16, 32, 64, 1000),
        probes=cast("Any", {1: probe, 2: probe}),
        judges=cast("Any", {1: probe, 2: probe}),
        text_probe=cast("Any", lambda size: (20 * size, 0.05 + 0.002 * size)),
        text_judge=cast("Any", lambda size: (20 * size, 0.05 + 0.002 * size)),
        seed=0,
        exam_seed=1,
    )


def test_the_notebook_and_the_engine_give_one_answer(tmp_path, monkeypatch):
    """After the notebook's calibration, `optimal_batch_size()` measures nothing and agrees."""
    monkeypatch.setenv("BATCHGAUGE_CACHE", str(tmp_path))
    engine, tokenizer = WideEngine(), cast("Any", InventedTokenizer())
    bench = bench_of(engine, tokenizer, "default")
    models = calibrate(bench)
    config = SizingConfig(max_batch_size=bench.largest, wait_price=0.0)
    with threadpool_limits(1, user_api="blas"):
        advised = suggest_batch_size(bench.works["ragged traffic"], models["engine", 1], config)
        assert optimal_for_engine(engine) == advised.size
    size = optimal_for_tokenizer(tokenizer, texts=list(bench.texts), max_batch_size=90)
    config = replace(config, max_batch_size=90)
    assert (
        size == suggest_batch_size(Lengths.texts(bench.texts), models["tokenizer", 1], config).size
    )
    assert engine.calls == tokenizer.calls == 0


def test_the_optimal_size_is_that_of_most_throughput(tmp_path):
    """A price of waiting would choose a smaller one: nobody is said to wait."""
    engine = WideEngine()
    size = optimal_for_engine(engine, cache=tmp_path)
    priced, free = (
        automatic.suggest_for_engine(
            engine, SizingConfig(max_batch_size=automatic.LARGEST, wait_price=price),
            cache=tmp_path,
        ).size
        for price in (1.0, 0.0)
    )  # fmt: skip
    assert priced < free == size


def test_an_engine_shows_its_model_by_its_config():
    """Our own does; one that is only called does not."""
    ours: Any = SimpleNamespace(model=SimpleNamespace(config=object()))
    server: Any = SimpleNamespace(model="a name")
    assert automatic.shows_its_model(ours)
    assert not automatic.shows_its_model(server)
    assert not automatic.shows_its_model(InventedEngine())


def test_a_smoke_run_is_not_remembered(tmp_path, monkeypatch):
    """What a smoke run measures, up to batches of six, is no advice for later."""
    monkeypatch.setenv("BATCHGAUGE_CACHE", str(tmp_path))
    calibrate(bench_of(InventedEngine(), InventedTokenizer(), "smoke"))
    assert list(tmp_path.iterdir()) == []


def test_advice_reaches_as_far_as_it_was_measured(tmp_path):
    """A larger size asked for is calibrated anew, and what is then known is used."""
    engine = WideEngine()
    first = automatic.suggest_for_engine(engine, cache=tmp_path)
    assert len(first.candidates) == automatic.LARGEST
    calls = engine.calls
    assert (
        automatic.suggest_for_engine(engine, SizingConfig(max_batch_size=8), cache=tmp_path).size
        <= 8
    )
    assert engine.calls == calls
    far = SizingConfig(max_batch_size=64, wait_price=0.0)
    wide = automatic.suggest_for_engine(engine, far, cache=tmp_path)
    assert engine.calls > calls
    assert optimal_for_engine(engine, cache=tmp_path) == wide.size > automatic.LARGEST


def test_calibrations_are_told_apart(monkeypatch):
    """Another title, size of weights, BLAS or thread count is another engine; texts count too."""
    model = SimpleNamespace(weights_bytes=7)
    engine: Any = SimpleNamespace(name="numpy", title="A", model=model)
    other: Any = SimpleNamespace(name="numpy", title="B", model=model)
    found = [automatic.engine_identity(engine), automatic.engine_identity(other)]
    model.weights_bytes = 8
    found.append(automatic.engine_identity(engine))
    for blas in (("openblas Haswell", 1), ("openblas SkylakeX", 1), ("openblas Haswell", 2)):
        monkeypatch.setattr(automatic, "blas_identity", lambda blas=blas: blas)
        found.append(automatic.engine_identity(engine))
    tokenizer: Any = InventedTokenizer()
    found += [automatic.tokenizer_identity(tokenizer, [text], 9) for text in ("a", "b", "\ud800")]
    assert len({str(identity) for identity in found}) == len(found)


def test_an_interval_of_the_score_holds_that_of_a_run_of_other_workloads():
    """Questions about one workload share an error, so scenarios one by one would say too much."""

    def run(seed):
        rng = np.random.default_rng(seed)
        shared = np.repeat(rng.exponential(0.04, 30), 6)  # 30 workloads, 6 questions each
        scores = 1.0 - shared - rng.exponential(0.005, 180)
        asked = pd.DataFrame({"part": "engine", "threads": 1, "workload": np.arange(180) // 6})
        return asked.assign(score=scores, late=scores < 0.95, over_memory=False)

    runs = [run(seed) for seed in range(24)]
    for share, least in ((0.5, 0.92), (0.1, 0.88)):
        found = [score_quantile(scores, share) for scores in runs]
        pairs = [(a, b.value) for a, b in permutations(found, 2)]
        assert np.mean([a.low <= value <= a.high for a, value in pairs]) >= least
    shares = [broken_share(scores) for scores in runs]
    alone = proportion(round(180 * shares[0].value), 180)
    assert shares[0].high - shares[0].low > 1.5 * (alone.high - alone.low)
    truth = np.mean([s.value for s in shares])
    assert np.mean([s.low <= truth <= s.high for s in shares]) >= 0.92
