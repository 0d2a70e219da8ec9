"""Batches, their results and their statistics."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgauge import (
    BatchItem,
    BatchResponse,
    BatchResult,
    BatchStats,
    InferenceBatchRequest,
    TokenBatch,
    UserError,
)
from batchgauge.baseline.stats import (
    baseline_stats,
    find_by_id,
    numpy_percentile_stats,
    sort_once_stats,
)
from batchgauge.request import PERCENTILE_FLOOR

times = st.lists(st.floats(0, 1e6, allow_nan=False), max_size=800)


def result_of(count):
    """A result of `count` responses named by their position."""
    return BatchResult.of([BatchResponse(str(i), i, 1.0) for i in range(count)], float(count))


def test_totals_follow_from_wall_time():
    """Average and throughput are shares of the batch's wall time, not of the items' times."""
    stats = BatchStats.from_durations([3.0, 5.0], total_duration_ms=4.0)
    assert stats.total_items == 2
    assert stats.avg_item_time_ms == 2.0
    assert stats.items_per_second == 500.0


def test_an_empty_batch_has_no_rates():
    """No items: counts are zero, rates are NaN, nothing raises."""
    stats = BatchStats.from_durations([], 0.0)
    assert stats.total_items == 0
    assert math.isnan(stats.avg_item_time_ms)
    assert math.isnan(stats.items_per_second)
    assert result_of(0).all_succeeded()


@pytest.mark.parametrize(("percent", "floor"), PERCENTILE_FLOOR.items())
def test_no_percentile_from_too_few_samples(percent, floor):
    """A percentile appears exactly when there are as many samples as it needs."""
    name = f"p{percent}_ms"
    assert math.isnan(getattr(BatchStats.from_durations([1.0] * (floor - 1), 1.0), name))
    assert getattr(BatchStats.from_durations([1.0] * floor, 1.0), name) == 1.0
    assert (percent / 100) ** floor <= 0.0013 < (percent / 100) ** (floor - 1)


@given(times)
def test_percentiles_agree_with_numpy_and_with_every_rung(durations):
    """The shipped percentiles are NumPy's default definition; baseline and rungs agree."""
    shipped = BatchStats.from_durations(durations, 1.0)
    for compute in (baseline_stats, sort_once_stats, numpy_percentile_stats):
        other = compute(durations, 1.0)
        for q in PERCENTILE_FLOOR:
            name = f"p{q}_ms"
            assert getattr(shipped, name) == pytest.approx(
                getattr(other, name), rel=1e-9, abs=1e-9, nan_ok=True
            )


def test_a_known_percentile():
    """0..100 ms: the percentiles are their own names."""
    stats = BatchStats.from_durations(np.arange(1001) / 10.0, 1.0)
    assert [stats.p50_ms, stats.p90_ms, stats.p95_ms, stats.p99_ms] == pytest.approx(
        [50, 90, 95, 99]
    )
    assert stats.p50_ms == statistics.median(range(101))


@pytest.mark.parametrize("bad", [[-1.0], [math.nan, 1.0], [math.inf]])
def test_impossible_times_are_refused(bad):
    """Negative, NaN and infinite times are user errors, for items and totals."""
    with pytest.raises(UserError, match="not finite"):
        BatchStats.from_durations(bad, 1.0)
    with pytest.raises(UserError, match="not finite"):
        BatchStats.from_durations([1.0], bad[0])


def test_speedup_is_a_ratio_on_the_same_items():
    """S(b) divides throughputs and refuses different work."""
    batch, single = BatchStats(8, 10.0), BatchStats(8, 40.0)
    assert batch.speedup_vs_single(single) == 4.0
    with pytest.raises(UserError, match="same items"):
        batch.speedup_vs_single(BatchStats(7, 40.0))


def test_lookup_by_id_keeps_request_order():
    """Responses stay in request order and are found by id; unknown ids raise KeyError."""
    result = result_of(50)
    assert [r.id for r in result.responses] == [str(i) for i in range(50)]
    assert result.get_by_id("37").data == 37 == find_by_id(result.responses, "37").data
    with pytest.raises(KeyError):
        result.get_by_id("50")
    with pytest.raises(KeyError):
        find_by_id(result.responses, "50")


def test_lookup_does_not_walk_the_responses():
    """Look-up compares a constant number of ids however many responses there are."""

    class CountingId(str):
        __slots__ = ()
        compared = 0

        def __eq__(self, other):
            CountingId.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    counts = []
    for count in (10, 10_000):
        result = result_of(count)
        CountingId.compared = 0
        result.get_by_id(CountingId(str(count - 1)))
        counts.append(CountingId.compared)
    assert max(counts) <= 3


def test_one_error_is_counted_and_fails_nobody_else():
    """A response with an error lowers the success count and leaves its neighbours alone."""
    rows = [BatchResponse("a", 1, 1.0), BatchResponse("b", None, 1.0, error="too long")]
    result = BatchResult.of(rows, 2.0)
    assert result.success_count() == 1
    assert not result.all_succeeded()
    assert result.get_by_id("a").data == 1


def test_ids_must_be_unique():
    """Two responses with one id are refused, since look-up by id would lie."""
    with pytest.raises(UserError, match="same id"):
        BatchResult.of([BatchResponse("a", 1, 1.0), BatchResponse("a", 2, 1.0)], 1.0)


@pytest.mark.parametrize(
    "wrong",
    [{"max_tokens": 0}, {"temperature": -0.1}, {"temperature": 2.1}, {"top_p": 0.0}],
)
def test_requests_out_of_range_are_refused(wrong):
    """max_tokens, temperature and top_p are checked where the request is made."""
    with pytest.raises(UserError, match="expected"):
        InferenceBatchRequest("x", **wrong)


def test_items_are_values():
    """Items and requests cannot change under a running batch."""
    item = BatchItem("a", InferenceBatchRequest("x"))
    with pytest.raises(AttributeError):
        setattr(item, "id", "b")  # noqa: B010  # an assignment would not type-check


@given(st.lists(st.lists(st.integers(0, 2**31 - 1))))
def test_token_batch_packs_without_loss(rows):
    """A TokenBatch gives its rows back, by index, by iteration and by count."""
    batch = TokenBatch.from_lists(rows)
    assert batch.tolist() == rows
    assert batch.counts.tolist() == [len(r) for r in rows]
    assert [r.tolist() for r in batch[::-1]] == rows[::-1]
    with pytest.raises(IndexError):
        batch[len(rows)]
