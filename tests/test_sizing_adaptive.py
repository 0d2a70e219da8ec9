"""The adaptive sizer on an invented machine with an invented clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from batchgauge.errors import UserError
from batchgauge.request import BatchItem, BatchResponse, BatchResult
from batchgauge.sizing.adaptive import AdaptiveBatchSizer, serve

BUDGET = 250.0
BEST = 40  # rows at which 50 + 5 b reaches the budget


@dataclass
class Run:
    """Sizes asked for and latencies seen, int [N] and float [N]."""

    sizes: np.ndarray
    latency_ms: np.ndarray

    def late(self, start: int, end: int) -> float:
        """Share of batches beyond the budget."""
        return float((self.latency_ms[start:end] > BUDGET).mean())


def simulate(seed: int, *, noise: float = 0.03, start: int = 1, slow: float = 1.8) -> Run:
    """400 batches that cost (50 + 5 b) ms; from 150 to 230 the machine is `slow` times as slow."""
    rng = np.random.default_rng(seed)
    now = [0.0]
    sizer = AdaptiveBatchSizer(BUDGET, max_size=64, start=start, clock=lambda: now[0])
    sizes, latencies = [], []
    for i in range(400):
        factor = slow if 150 <= i < 230 else 1.0
        ms = (50.0 + 5.0 * sizer.size) * factor * float(np.exp(noise * rng.standard_normal()))
        now[0] += ms / 1e3
        sizes.append(sizer.size)
        latencies.append(ms)
        sizer.observe(sizer.size, ms)
    return Run(np.asarray(sizes), np.asarray(latencies))


SEEDS = range(8)


@pytest.mark.parametrize("start", [1, 64])
def test_it_finds_the_size_and_keeps_the_budget(start):
    """From far below and far above: near the best size after 50 batches, rarely late."""
    runs = [simulate(seed, start=start) for seed in SEEDS]
    for run in runs:
        assert 0.75 * BEST <= run.sizes[50:150].mean() <= BEST
    assert np.mean([run.late(50, 150) for run in runs]) <= 0.05


def test_it_obeys_the_budget_during_a_disturbance():
    """A machine that turns 1.8 times as slow is answered within a few batches."""
    best = (BUDGET / 1.8 - 50.0) / 5.0
    for run in (simulate(seed) for seed in SEEDS):
        assert run.latency_ms[150] > BUDGET
        assert run.late(160, 230) <= 0.08
        assert run.sizes[165:230].mean() <= best * 1.05


def test_it_recovers_after_a_disturbance():
    """Within 20 batches of its end the size is back above three quarters of the best."""
    for run in (simulate(seed) for seed in SEEDS):
        back = np.flatnonzero(run.sizes[230:] >= 0.75 * BEST)
        assert back.size
        assert back[0] <= 20
        assert run.sizes[300:].mean() >= 0.75 * BEST


def test_it_does_not_oscillate():
    """In a steady state the size hardly moves: few changes, and small beside the size."""
    for run in (simulate(seed) for seed in SEEDS):
        steady = run.sizes[60:150]
        assert np.count_nonzero(np.diff(steady)) <= 15
        assert steady.std() <= 0.12 * steady.mean()


def test_without_noise_it_settles():
    """On a machine without noise the size stops moving but for the rare trial."""
    run = simulate(0, noise=0.0, slow=1.0)
    assert np.count_nonzero(np.diff(run.sizes[50:])) <= 12
    assert run.late(50, 400) <= 0.02


def test_one_spike_is_forgiven_and_a_second_is_not():
    """A lone hiccup leaves the size alone; another right after it cuts."""
    sizer = AdaptiveBatchSizer(100.0, max_size=10, start=10, clock=lambda: 0.0)
    for _ in range(4):
        sizer.observe(10, 80.0)
    assert sizer.observe(10, 150.0) == 10
    assert sizer.observe(10, 150.0) < 10


def test_a_hopeless_budget_ends_at_the_smallest_size():
    """When even the smallest size is late, that is where it stays."""
    sizer = AdaptiveBatchSizer(10.0, max_size=32, start=32, min_size=2, clock=lambda: 0.0)
    for _ in range(20):
        sizer.observe(sizer.size, 100.0)
    assert sizer.size == 2


def test_batches_that_the_queue_could_not_fill_never_raise_the_size():
    """A short batch says nothing about the size asked for, unless it is already late."""
    sizer = AdaptiveBatchSizer(100.0, max_size=32, start=16, clock=lambda: 0.0)
    for _ in range(10):
        assert sizer.observe(3, 10.0) == 16
    assert sizer.observe(3, 400.0) < 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_budget_ms": 0.0, "max_size": 4},
        {"latency_budget_ms": -1.0, "max_size": 4},
        {"latency_budget_ms": 5.0, "max_size": 0},
        {"latency_budget_ms": 5.0, "max_size": 2, "min_size": 3},
    ],
)
def test_budgets_and_ranges_that_make_no_sense_are_refused(wrong):
    """Budgets not above zero and empty ranges are user errors; so is a negative latency."""
    with pytest.raises(UserError):
        AdaptiveBatchSizer(**wrong)
    with pytest.raises(UserError):
        AdaptiveBatchSizer(5.0, 4).observe(1, -1.0)


def test_serving_answers_every_item_once_and_in_order():
    """The driver takes the sizes asked for, loses nothing and repeats nothing."""
    asked = []

    def run_batch(items):
        asked.append(len(items))
        rows = [BatchResponse(item.id, item.data + 1, 1.0) for item in items]
        return BatchResult.of(rows, total_duration_ms=10.0 + 2.0 * len(items))

    sizer = AdaptiveBatchSizer(60.0, max_size=100, clock=lambda: 0.0)
    items = (BatchItem(str(i), i) for i in range(200))
    served = list(serve(run_batch, items, sizer))
    answers = [row.data for _, result in served for row in result.responses]
    assert answers == list(range(1, 201))
    assert [record.size for record, _ in served] == asked
    assert sum(record.size for record, _ in served) == 200
    assert all(record.within_budget == (record.latency_ms <= 60.0) for record, _ in served)
    assert 15 <= max(asked) <= 25
