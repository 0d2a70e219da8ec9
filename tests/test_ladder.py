"""Ablation ladders: equality before timing, failures that stop nobody, gains from data."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchgauge.baseline.rung import Rung
from batchgauge.baseline.stats import LOOKUP_BASELINE, LOOKUP_RUNGS, STATS_BASELINE, STATS_RUNGS
from batchgauge.experiments.speedup.goals import Goal, as_frame, with_tried
from batchgauge.experiments.speedup.ladder import (
    ALONE,
    CUMULATIVE,
    Ladder,
    between,
    climb,
    same,
)
from batchgauge.experiments.speedup.sections import findings, sentence
from batchgauge.request import BatchResponse, BatchResult, BatchStats


def climbed(rungs, work=2000):
    """The table of a ladder whose baseline adds up a range."""
    ladder = Ladder("adding", lambda: lambda n: sum(range(n)), rungs, work, 1, 0.2)
    return climb(ladder, min_blocks=3, seed=0, threads=1)


def test_a_wrong_output_is_broken_not_fast():
    """A rung that returns something else is never timed, however quick it would be."""
    table = climbed([Rung("nothing", "Do nothing.", lambda: lambda _: 0, lambda: lambda _: 0)])
    assert set(table["status"]) == {"broken"}
    assert table["speedup_x"].isna().all()
    assert "broken" in sentence(table.iloc[-1])


def test_a_rung_that_raises_leaves_the_rest_standing():
    """An exception becomes the rung's status; the next rung is measured against the baseline."""

    def fail():
        raise RuntimeError("no such instruction")

    closed = lambda n: n * (n - 1) // 2  # noqa: E731  # one line says it
    table = climbed(
        [
            Rung("fails", "Fails.", None, fail),
            Rung("closed form", "Gauss.", lambda: closed, lambda: closed),
        ]
    )
    by_name = table[table["form"] == CUMULATIVE].set_index("rung")
    assert by_name.loc["fails", "status"] == "RuntimeError: no such instruction"
    assert by_name.loc["closed form", "speedup_x"] > 2
    assert by_name.loc["closed form", "step_x"] == pytest.approx(
        by_name.loc["closed form", "speedup_x"], rel=0.5
    )
    assert "it paid" in findings(table)
    assert (table["form"] == ALONE).sum() == 1


def test_between_two_candidates_is_over_blocks():
    """The ratio of two candidates, block by block: common noise cancels."""
    noise = np.random.default_rng(0).normal(0, 1, 6)  # log seconds an item [blocks]
    logs = {"baseline": noise, "one": noise - math.log(2), "ten": noise - math.log(20)}
    found: Any = SimpleNamespace(noise_floor=0.01, logs=logs)
    step, back = (between(found, *pair) for pair in (("one", "ten"), ("ten", "one")))
    assert (step.low, step.value, step.high) == pytest.approx((10, 10, 10))
    assert back.value == pytest.approx(0.1)
    assert step.blocks == 6


def test_same_looks_into_what_it_compares():
    """NaN equals NaN, rounding is forgiven, a different id or length is not."""
    assert same([1.0, math.nan], [1.0 + 1e-15, math.nan])
    assert same(BatchStats(1, 2.0), BatchStats(1, 2.0))
    assert not same(BatchStats(1, 2.0), BatchStats(2, 2.0))
    assert same(np.arange(3), np.arange(3))
    assert not same([1, 2], [1, 2, 3])
    assert not same((1, "a"), (1, "b"))


def test_rungs_of_the_statistics_give_the_baselines_output():
    """Every rung of statistics and look-up equals its baseline, alone and cumulatively."""
    times = np.random.default_rng(0).lognormal(1, 1, 1000)
    result = BatchResult.of([BatchResponse(str(i), i, 1.0) for i in range(50)], 1.0)
    for base, rungs, work in (
        (STATS_BASELINE, STATS_RUNGS, (times, 5.0)),
        (LOOKUP_BASELINE, LOOKUP_RUNGS, (result, ["3", "49"])),
    ):
        expected = base()(work)
        for rung in rungs:
            assert same(rung.make_cumulative()(work), expected)
            assert rung.make_alone is None or same(rung.make_alone()(work), expected)


def test_a_goal_that_was_not_reached_says_what_was_tried():
    """Rungs that worked, with their gains, beside a missed goal; nothing beside one that is met."""
    goals = as_frame(
        [
            Goal("decode", "slow", 5.0, "higher", 2.0, 1.9, 2.1),
            Goal("decode", "fast", 1.0, "higher", 2.0, 1.9, 2.1),
            Goal("load", "late", 1.0, "lower", 2.0, 1.9, 2.1),
        ]
    )
    rungs = pd.DataFrame(
        {
            "rung": ["blocks", "broken idea", "blocks"],
            "form": [CUMULATIVE, CUMULATIVE, ALONE],
            "status": ["ok", "broken", "ok"],
            "step_x": [1.5, np.nan, 9.0],
        }
    )
    table = with_tried(goals, {"decode": rungs})
    assert table["tried"].tolist() == ["blocks 1.50 ×", "", ""]
