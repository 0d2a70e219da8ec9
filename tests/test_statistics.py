"""The statistics on invented numbers: coverage, tests, floors, change points."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from batchgauge.errors import UserError
from batchgauge.measuring import statistics


@pytest.mark.parametrize("blocks", [6, 12, 30])
@pytest.mark.parametrize("noise", ["normal", "laplace"])
def test_coverage(blocks, noise):
    """The 95 % interval holds the truth in 93 to 97 % of 1,500 invented runs."""
    rng = np.random.default_rng(blocks)
    draws = getattr(rng, noise)(0.1, 0.03, size=(1500, blocks))
    estimates = [statistics.location(x, seed=i, resamples=599) for i, x in enumerate(draws)]
    held = np.mean([e.low <= 0.1 <= e.high for e in estimates])
    assert 0.93 <= held <= 0.97


def test_spikes_do_not_move_the_estimate():
    """Two blocks in twenty that took five times as long leave the ratio where it was."""
    rng = np.random.default_rng(0)
    x = rng.normal(0.1, 0.01, 20)
    x[[3, 11]] += math.log(5)
    e = statistics.location(x)
    assert e.low < 0.1 < e.high < 0.13


def test_processes_are_the_unit():
    """Blocks that agree within each process do not make the interval over processes narrow."""
    rng = np.random.default_rng(1)
    effects = rng.normal(0, 0.05, 6)
    blocks = np.repeat(effects, 50) + rng.normal(0, 0.001, 300)
    pooled = statistics.location(blocks)
    honest = statistics.location(statistics.clustered(blocks, np.repeat(np.arange(6), 50)))
    assert honest.n == 6
    assert honest.half_width > 5 * pooled.half_width


def test_one_observation_knows_nothing():
    """One block gives an infinite interval; none, or NaN, is the user's mistake."""
    assert statistics.location([0.3]).half_width == math.inf
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(UserError, match="finite"):
            statistics.location(bad)


def test_difference_of_two_runs():
    """A shift of ten standard errors is found with the right sign, and its interval holds it."""
    rng = np.random.default_rng(2)
    e = statistics.difference(rng.normal(0.1, 0.02, 30), rng.normal(0.0, 0.02, 30))
    assert e.low < 0.1 < e.high
    assert e.low > 0.05
    assert e.p < 1e-6


def test_benjamini_hochberg():
    """The worked example of Benjamini and Hochberg (1995, table 1): four of fifteen hold at 5 %."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240,
         0.4262, 0.5719, 0.6528, 0.7590, 1.0]  # fmt: skip
    assert int((statistics.adjusted(p) <= 0.05).sum()) == 4
    assert statistics.adjusted([]).size == 0


def test_minimum_detectable_change():
    """A change of that size is found in 80 % of invented runs with such an interval."""
    rng = np.random.default_rng(3)
    error = 0.01
    mdc = statistics.minimum_detectable_change(1.96 * error)
    estimates = rng.normal(math.log1p(mdc), error, 20_000)
    assert np.mean(estimates > 1.96 * error) == pytest.approx(0.8, abs=0.02)
    assert statistics.minimum_detectable_change(math.inf) == math.inf


def test_percentile_floors():
    """No p90 from 63 samples, no p99 from 661; NaN says so."""
    assert math.isnan(statistics.percentile(range(63), 90))
    assert statistics.percentile(range(64), 90) == pytest.approx(56.7)
    assert math.isnan(statistics.percentile(range(661), 99))
    with pytest.raises(UserError, match="not offered"):
        statistics.percentile([1.0], 42)


def test_outliers_are_labelled():
    """A far value is severe, a near one mild, the rest have no label."""
    labels = statistics.classify_outliers([*np.linspace(1.0, 2.0, 20), 3.0, 9.0, -3.0])
    assert labels[-3:] == ["high mild", "high severe", "low severe"]
    assert not any(labels[:-3])


def test_change_points():
    """A history with two steps has two change points there; a level one has none."""
    rng = np.random.default_rng(4)
    level = rng.normal(0, 0.02, 40)
    steps = np.repeat([0.0, 0.3, 0.1], [15, 12, 13])
    found = statistics.change_points(level + steps)
    assert len(found) == 2
    assert abs(found[0] - 15) <= 1
    assert abs(found[1] - 27) <= 1
    assert statistics.change_points(level) == []


T = np.arange(24)
NO_STEPS = {  # what moves a history's level or spreads it, beside noise of 0.02
    "nothing": 0 * T,
    "linear trend": 0.01 * T,
    "weak trend": -0.003 * T,
    "bend": 0.0004 * T**2,
    "settling": np.exp(-T / 6),
    "season": 0.1 * np.sin(2 * np.pi * T / 7.3),
    "slow season": 0.1 * np.sin(2 * np.pi * T / 19 + 1),
    "trend and season": 0.01 * T + 0.1 * np.sin(2 * np.pi * T / 9),
    "weekends": 0.2 * (T % 7 > 4),
    "turns of two": 0.3 * (T % 2),
    "a stray run": 1.0 * (T == 8),
    "two stray runs": 1.0 * ((T == 15) | (T == 16)),
    "strays at the ends": -1.0 * ((T == 0) | (T == 23)),
}
NOISES = {
    "heavy tails": lambda rng: 0.02 * rng.standard_t(2, 24),
    "one-sided tails": lambda rng: rng.lognormal(0.0, 0.8, 24),
    "two levels by chance": lambda rng: np.where(rng.random(24) < 0.5, 0.3, 0.0),
    "slow drift": lambda rng: np.cumsum(rng.normal(0.0, 0.02, 24)),
    "persistent noise": lambda rng: lfilter([1.0], [1.0, -0.5], rng.normal(0.0, 0.02, 24)),
}


def histories(seeds):
    """(name, history) of every kind that has no change point, one a seed."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for name, shape in NO_STEPS.items():
            yield name, shape + rng.normal(0.0, 0.02, T.size)
        for name, noise in NOISES.items():
            yield name, noise(rng)


def test_what_is_no_step_has_no_change_points():
    """False alarms: at most 2 % of shapes under noise, 8 % where the noise wanders or has tails.

    Without noise, none at all. (A random walk may look like steps: of 20, three do.)
    """
    alarms = [name for name, history in histories(8) if statistics.change_points(history)]
    shapes = [name for name in alarms if name in NO_STEPS]
    assert len(shapes) <= 0.02 * 8 * len(NO_STEPS)
    assert len(alarms) - len(shapes) <= 0.08 * 8 * len(NOISES)
    for name, shape in NO_STEPS.items():
        assert statistics.change_points(shape) == [], name
        assert statistics.change_points(5.0 + 1e6 * shape) == [], name


STEP = 0.2 * (T >= 12)
STEPS = {
    "a step": (STEP, [12]),
    "a step down": (-STEP, [12]),
    "an early step": (0.2 * (T >= 4), [4]),
    "two steps": (0.3 * (T >= 8) - 0.2 * (T >= 16), [8, 16]),
    "a step in a trend": (0.005 * T + STEP, [12]),
    "a step against a trend": (0.01 * T - STEP, [12]),
    "a step beside a stray run": (STEP + (T == 5), [12]),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_found_where_they_are(name):
    """Ten times the noise, in at least 7 of 8 histories to the run, beside whatever else moves."""
    shape, at = STEPS[name]
    found = [
        statistics.change_points(shape + np.random.default_rng(seed).normal(0.0, 0.02, T.size))
        for seed in range(8)
    ]
    assert sum(points == at for points in found) >= 7
    assert statistics.change_points(100.0 + shape) == at


def test_runs_without_a_number_are_passed_over():
    """NaN and infinity neither hide a step nor make one; indices are those of the history."""
    rng = np.random.default_rng(1)
    history = STEP + rng.normal(0.0, 0.02, T.size)
    holes = np.insert(history, [0, 6, 6, 20], [math.nan, math.inf, math.nan, -math.inf])
    assert statistics.change_points(holes) == [15]
    assert statistics.change_points(np.insert(history[:12], 6, [math.nan] * 5)) == []


@pytest.mark.parametrize(
    "history",
    [[], [1.0], [1.0, 2.0], [1, 1, 1, 2, 2], [1.0] * 30, [0.1] * 7, [math.nan] * 20, [5] + [1] * 9,
     [1, 1, 1, 2, 2, 2], [1] * 9 + [5], [0.0] * 20],
)  # fmt: skip
def test_short_and_constant_histories_have_no_change_points(history):
    """Too little to say anything, or nothing that changes."""
    assert statistics.change_points(history) == []


def test_rate_has_an_exact_interval():
    """None in 300 trials leaves at most 1.2 % (rule of three); no trials are refused."""
    rate = statistics.proportion(0, 300)
    assert rate.low == 0.0
    assert rate.high == pytest.approx(0.01222, abs=1e-4)
    with pytest.raises(UserError, match="trial"):
        statistics.proportion(0, 0)
