"""Laws of scaling and the ranked table: known answers come back, rankings follow the data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tests.poisson import poisson

from batchgauge.errors import UserError
from batchgauge.simulate.arrivals import Arrivals
from batchgauge.simulate.roadmap import (
    Idea,
    Setup,
    combine,
    condition,
    gain,
    rank,
    recommend,
    sustained,
    sustained_gain,
    sweep,
)
from batchgauge.simulate.scaling import fit_scaling, predictions
from batchgauge.simulate.server import Server
from batchgauge.simulate.steps import StepTable
from batchgauge.statistics import Interval
from batchgauge.workload import request_lengths

STEPS = StepTable(
    positions=(1.0, 1000.0),
    prefill_s=(0.0105, 0.51),
    decode_s=(0.0, 0.035, 0.036, 0.038, 0.04, 0.042, 0.045, 0.048, 0.05),
)


def usl(n, contention, coherence):
    """The Universal Scalability Law."""
    return n / (1 + contention * (n - 1) + coherence * n * (n - 1))


def noisy(curve, sizes, blocks=20, noise=0.01, seed=0):
    """Throughputs [blocks] by number of workers, with multiplicative noise."""
    rng = np.random.default_rng(seed)
    return {n: list(100 * curve(n) * np.exp(rng.normal(0, noise, blocks))) for n in sizes}


def test_amdahl_is_recovered_with_intervals_that_hold_it():
    """A serial share of 10 % comes back; about 95 % of intervals at 16 workers hold the truth."""
    held = 0
    for seed in range(40):
        data = noisy(lambda n: usl(n, 0.1, 0.0), [1, 2, 4, 8], seed=seed)
        fit = fit_scaling(data, "Amdahl")
        assert fit.contention == pytest.approx(0.1, abs=0.01)
        at_16 = fit.predict(16)
        assert at_16.extrapolated
        held += at_16.low <= usl(16, 0.1, 0.0) <= at_16.high
    assert held >= 34  # a 95 % interval fails this once in several hundred times


def test_usl_is_recovered():
    """Contention and coherence come back from enough sizes."""
    fit = fit_scaling(noisy(lambda n: usl(n, 0.05, 0.01), [1, 2, 4, 8, 16], noise=0.002), "USL")
    assert fit.separable
    assert fit.contention == pytest.approx(0.05, abs=0.01)
    assert fit.coherence == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize(("contention", "coherence"), [(0.2, 0.0), (0.0, 0.1), (0.1, 0.05)])
def test_two_points_cannot_tell_contention_from_coherence(contention, coherence):
    """From 1 and 2 workers the band covers both extremes, so that it holds the truth."""
    fit = fit_scaling(noisy(lambda n: usl(n, contention, coherence), [1, 2], noise=0.002), "USL")
    assert not fit.separable
    at_8 = fit.predict(8)
    assert at_8.low * 0.98 <= usl(8, contention, coherence) <= at_8.high * 1.02
    assert at_8.extrapolated
    assert not fit.predict(2).extrapolated


def test_speedups_beyond_linear_are_no_negative_serial_share():
    """Throughput that more than doubles reads as no serial part."""
    fit = fit_scaling({1: [10.0, 10.0], 2: [25.0, 24.0]}, "Amdahl")
    assert fit.contention == 0.0
    assert fit.predict(4).value == pytest.approx(4.0)


def test_predictions_say_what_is_extrapolated():
    """The table has one row a fit and size, flagged beyond the measured range."""
    fit = fit_scaling({1: [1.0, 1.1], 2: [1.8, 1.9]}, "Amdahl")
    table = predictions({"decode": fit}, [1, 2, 4])
    assert table["extrapolated"].tolist() == [False, False, True]
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


@pytest.mark.parametrize(
    ("throughput", "said"),
    [
        ({1: [1.0]}, "1 worker and with more"),
        ({2: [1.0], 4: [2.0]}, "1 worker and with more"),
        ({1: [1.0], 2: [1.0, 2.0]}, "same number"),
        ({1: [1.0], 2: [0.0]}, "above 0"),
    ],
)
def test_bad_scaling_input_is_named(throughput, said):
    """Too few sizes, uneven blocks and zero throughput are said in one sentence."""
    with pytest.raises(UserError, match=said):
        fit_scaling(throughput, "USL")
    with pytest.raises(UserError, match="at least 1"):
        fit_scaling({1: [1.0], 2: [2.0]}, "USL").predict(0)


# --- the ranked table ---------------------------------------------------------------


def traffic(rate: float, seed: int) -> Arrivals:
    """300 requests in the shape of real traffic, a tenth as long."""
    context, generated = request_lengths(300, scale=0.1, longest=500, seed=seed)
    return poisson(rate, context, generated, background=0.5, seed=seed)


def server_idea(name: str, **changes) -> Idea:
    """An idea that changes the server's policy only."""
    return Idea(name, name, lambda s: replace(s, server=replace(s.server, **changes)), "a day")


TODAY = Setup(Server("static"), STEPS, price_per_hour=0.1)
NOTHING = Idea("nothing", "nothing", lambda setup: setup, "none")
TWICE = Idea("twice", "twice", lambda s: replace(s, step_s=STEPS.faster(2.0, 2.0)), "a new machine")
SLOWER = Idea("slower", "slower", lambda s: replace(s, step_s=STEPS.faster(0.3, 0.3)), "none")
IDEAS = (NOTHING, TWICE, SLOWER, server_idea("continuous", batching="continuous"))


def run(ideas=IDEAS, rates=(1.0, 3.0), target_s=3.0):
    """A small sweep."""
    return sweep(TODAY, ideas, traffic, rates=rates, seeds=range(4), target_s=target_s)


def test_no_change_is_no_gain_and_twice_as_fast_ranks_above_it():
    """An idea that changes nothing has gain 1 exactly; faster ranks higher, slower lower."""
    rows = {row["idea"]: row for row in rank(run(), IDEAS, 3.0).to_dict("records")}
    assert rows["nothing"]["goodput_gain"] == 1.0
    assert rows["nothing"]["recommendation"] == "not at this rate"
    assert rows["twice"]["rank"] < rows["nothing"]["rank"] < rows["slower"]["rank"]
    assert rows["slower"]["recommendation"].startswith("leave")
    assert rows["continuous"]["recommendation"].startswith("build")


def test_the_ranking_depends_on_the_arrival_rate():
    """When requests are rare, waiting for a full batch hurts most; under load, speed counts."""
    ideas = (TWICE, server_idea("dynamic", batching="dynamic", max_wait_s=0.05))
    runs = run(ideas, rates=(0.3, 5.0))
    calm = rank(runs, ideas, 0.3)["idea"].tolist()
    busy = rank(runs, ideas, 5.0)["idea"].tolist()
    assert calm == ["dynamic", "twice"]
    assert busy == ["twice", "dynamic"]


def test_conditions_are_read_from_the_sweep():
    """An idea without effect pays nowhere, twice the speed wherever it was tried."""
    runs = run()
    assert condition(runs, "nothing") == "at none of the simulated rates"
    assert condition(runs, "twice") == "at every simulated rate (1 to 3 requests/s)"


def test_the_gain_in_sustained_rate_is_between_the_rates_swept():
    """Half way between 1 and 2 requests/s where the share falls from 1 to 0.8; twice today's."""
    shares = {"today": (0.9, 0.6, 0.3), "idea": (1.0, 0.8, 0.5), "best": (1.0, 1.0, 1.0)}
    rows = [
        {"idea": name, "arrival_rate": rate, "seed": seed, "in_time_share": share}
        for name, three in shares.items()
        for rate, share in zip((1.0, 2.0, 3.0), three, strict=True)
        for seed in range(4)
    ]
    found, ends = sustained_gain(pd.DataFrame(rows), "idea")
    assert found.value == pytest.approx(1.5)
    assert not ends
    never = [row | {"idea": "never", "in_time_share": 0.5} for row in rows if row["idea"] == "idea"]
    assert np.isnan(sustained_gain(pd.DataFrame(rows + never), "never")[0].value)
    found, ends = sustained_gain(pd.DataFrame(rows), "best")
    assert found.value == pytest.approx(3.0)
    assert ends


def test_what_no_real_run_was_held_against_says_so():
    """An idea that is not validated says it beside what its step times rest on."""
    bases = rank(run(), [replace(idea, validated=False) for idea in IDEAS], 3.0)["basis"]
    assert bases.str.endswith("not validated").all()
    assert not rank(run(), IDEAS, 3.0)["basis"].str.contains("not validated").any()


def test_the_sustained_rate_is_the_largest_served_in_time():
    """The mean over seeds decides; what never serves 90 % in time sustains no rate."""
    shares = {
        "idea": {1.0: (1.0, 1.0), 3.0: (0.97, 0.85), 5.0: (0.95, 0.8)},
        "late": {1.0: (0.89, 0.9), 3.0: (0.5, 0.5), 5.0: (0.0, 0.0)},
    }
    rows = [
        {"idea": idea, "arrival_rate": rate, "seed": seed, "in_time_share": share}
        for idea, by_rate in shares.items()
        for rate, seeds in by_rate.items()
        for seed, share in enumerate(seeds)
    ]
    assert sustained(pd.DataFrame(rows), "idea") == 3.0
    assert sustained(pd.DataFrame(rows), "late") == 0.0


def test_the_same_seeds_give_the_same_table():
    """The ranked table is equal to the last bit in a second run."""
    assert rank(run(), IDEAS, 3.0).equals(rank(run(), IDEAS, 3.0))


def test_hardware_is_bought_only_for_a_reason():
    """With hardware, the price of a token decides between buying and only when needed."""
    better, same = Interval(2.0, 1.5, 2.5), Interval(1.0, 0.9, 1.1)
    machine = replace(TWICE, hardware=True)
    assert "cheaper" in recommend(better, better, machine, Interval(0.5, 0.4, 0.6))
    assert "demands it" in recommend(better, better, machine, Interval(3.0, 2.8, 3.2))
    assert recommend(same, better, NOTHING, same) == "build: shorter waiting only"


def test_ideas_stack():
    """Rung k holds the first k ideas; the last rung beats the first."""
    ideas = (server_idea("continuous", batching="continuous"), TWICE)
    rungs = combine(ideas)
    assert [rung.name for rung in rungs] == ["continuous", "+ twice"]
    runs = run(rungs)
    one, both = (gain(runs, rung.name, 3.0, "p90_first_text_ms", better=-1) for rung in rungs)
    assert both.value > one.value
    assert rungs[1].change(TODAY).server.batching == "continuous"


def test_a_ratio_needs_seeds_and_names_must_differ():
    """One seed gives no interval; two ideas of one name are refused."""
    runs = run((NOTHING,))
    with pytest.raises(UserError, match="two seeds"):
        gain(runs[runs["seed"] == 1], NOTHING.name, 3.0, "p90_first_text_ms")
    with pytest.raises(UserError, match="same name"):
        run((NOTHING, NOTHING))
