"""The statistics on invented numbers: coverage, tests, floors."""

import math

import numpy as np
import pytest

from batchgauge import statistics
from batchgauge.errors import UserError


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
    honest = statistics.location(blocks.reshape(6, 50).mean(axis=1))
    assert honest.n == 6
    assert honest.half_width > 5 * pooled.half_width


def test_a_mean_ratio_is_geometric():
    """Twice and half as much are the same; the interval is Student's, of the logarithms."""
    level = statistics.mean_ratio([2.0, 1.0], [1.0, 2.0])
    assert level.value == pytest.approx(1.0)
    assert level.low * level.high == pytest.approx(1.0)
    logs = [0.1, 0.2, 0.3]
    found = statistics.mean_ratio(np.exp(logs), np.ones(3))
    reach = 4.302653 * 0.1 / math.sqrt(3)  # the 97.5 % quantile of t with two degrees of freedom
    assert [found.low, found.high] == pytest.approx(np.exp([0.2 - reach, 0.2 + reach]))


def test_runs_without_noise_differ_surely():
    """Equal times on each side leave no doubt, whether the sides differ or not."""
    apart = statistics.difference([2.0] * 12, [1.0] * 12)
    assert (apart.value, apart.half_width, apart.p) == (1.0, 0.0, 0.0)
    assert statistics.difference([1.0] * 3, [1.0] * 3).p == 1.0
    assert statistics.difference([2.0] * 12 + [9.0], [1.0] * 12).half_width == 0.0  # one stray


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


def test_rate_has_an_exact_interval():
    """None in 300 trials leaves at most 1.2 % (rule of three); no trials are refused."""
    rate = statistics.proportion(0, 300)
    assert rate.low == 0.0
    assert rate.high == pytest.approx(0.01222, abs=1e-4)
    with pytest.raises(UserError, match="trial"):
        statistics.proportion(0, 0)
