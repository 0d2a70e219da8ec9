"""Roofline and findings on invented numbers."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from tests.conftest import rows_of

mpl.use("agg")

from batchgauge.errors import UserError
from batchgauge.experiments.bottlenecks import figures
from batchgauge.machine import rates
from batchgauge.machine.rates import Rates
from batchgauge.profiling.allocations import AllocationProfile
from batchgauge.profiling.findings import (
    Hotspot,
    amdahl_bound,
    finding_sentence,
    growth_sentence,
    memory_findings,
    rank_findings,
    reachable_speedup,
)
from batchgauge.profiling.roofline import Kernel, place, placed
from batchgauge.profiling.stacks import StackProfile
from batchgauge.reporting.render import svg

PEAKS = Rates(bandwidth_bytes_per_s=10e9, flops_per_s=100e9, threads=1)  # ridge at 10 flop/byte


def nothing() -> None:
    """A kernel that does no work."""


def test_floor_is_the_slower_of_moving_and_computing():
    """10 GB at 10 GB/s takes 1 s however few flops; 200 Gflop at 100 Gflop/s takes 2 s."""
    assert PEAKS.floor_s(10e9, 1.0) == pytest.approx(1.0)
    assert PEAKS.floor_s(10e9, 200e9) == pytest.approx(2.0)
    assert PEAKS.ridge_flops_per_byte == pytest.approx(10.0)


def test_placing_a_kernel():
    """Distance, bound and rate follow from bytes, flops and time."""
    row = placed(Kernel("head", nothing, bytes_moved=1e9, flops=2e9), PEAKS, 0.3)
    assert row["floor_ms"] == pytest.approx(100.0)
    assert row["ratio"] == pytest.approx(3.0)
    assert row["bound"] == "memory"
    assert row["achieved_flops_per_s"] == pytest.approx(2e9 / 0.3)
    assert placed(Kernel("mlp", nothing, 1e9, 20e9), PEAKS, 1.0)["bound"] == "compute"


def test_kernels_are_called_and_drawn():
    """Every kernel is timed at least three times, in order, and the figure draws."""
    seen = []
    kernels = [Kernel("a", lambda: seen.append("a"), 1e6, 1e6), Kernel("b", nothing, 1e6, 1e9, 8)]
    frame, peaks = place(kernels, PEAKS, seconds=0.01)
    assert list(frame["kernel"]) == ["a", "b"]
    assert len(seen) == frame["calls"].iloc[0] + 1 >= 4
    assert (frame["ratio"] >= 1.0 - 1e-9).all()  # none beats the floor: the peaks are raised
    assert peaks.flops_per_s > PEAKS.flops_per_s
    chart = figures.roofline(frame, peaks.bandwidth_bytes_per_s, peaks.flops_per_s, "invented")
    assert "<svg" in svg(chart.full("words"), "test")
    at = ["intensity_flops_per_byte", "gflop_per_s"]
    drawn, reached = rows_of(chart), frame["achieved_flops_per_s"][0] / 1e9
    assert drawn[drawn["series"] == "a"][at].to_numpy().tolist() == [
        pytest.approx([1.0, reached], rel=1e-5)
    ]
    roof = drawn[drawn["series"].str.startswith("the roof: ")][at].to_numpy()
    limits = np.minimum(roof[:, 0] * peaks.bandwidth_bytes_per_s, peaks.flops_per_s) / 1e9
    assert roof[:, 1].tolist() == pytest.approx(limits.tolist(), rel=1e-5)
    assert roof[0, 1] < roof[1, 1] == roof[2, 1]  # the roof bends at the ridge


def test_peaks_are_the_work_over_the_best_time(monkeypatch):
    """Bytes over the fastest of the ways to read them, two operations a multiply-add."""
    seconds = iter([0.5, 0.25, 1.0, 1.0, 2.0, 1.0, 4.0])  # four ways to read, three products
    monkeypatch.setattr(rates, "durations_s", lambda *_, **__: [9.0, next(seconds)])
    peaks = rates.measure_rates(1, megabytes=4, order=64)
    assert peaks.bandwidth_bytes_per_s == 4 * 2**20 / 0.25
    assert peaks.flops_per_s == 2 * 64**3 / 2.0


def test_work_below_its_floor_raises_the_rate_that_bound_it():
    """1 GB in 50 ms shows 20 GB/s; work above its floor shows nothing."""
    raised = PEAKS.raised(0.05, 1e9, 1e9)
    assert (raised.bandwidth_bytes_per_s, raised.flops_per_s) == (20e9, 100e9)
    assert PEAKS.raised(0.2, 1e9, 1e9) == PEAKS


def test_peaks_need_a_thread():
    """Zero threads are refused."""
    with pytest.raises(UserError, match="threads"):
        rates.measure_rates(0)


def test_amdahl():
    """Half the time gone doubles the speed; a floor limits what is gained."""
    assert amdahl_bound(0.5) == 2.0
    assert amdahl_bound(1.0) == math.inf
    assert reachable_speedup(0.5, math.nan) == 2.0
    assert reachable_speedup(0.5, 2.0) == pytest.approx(1 / 0.75)
    assert reachable_speedup(0.9, 0.8) == 1.0  # faster than the model: nothing left to gain


def test_findings_are_ranked_by_their_share():
    """The largest share comes first; what would be gained stands beside it."""
    frame = rank_findings(
        [
            Hotspot("decode", "head", 0.6, "numpy", ratio=1.05, bound="memory"),
            Hotspot("decode", "attention", 0.3, "numpy", ratio=6.0, bound="memory"),
            Hotspot("decode", "bookkeeping", 0.09, "python"),
            Hotspot("decode", "dust", 0.01, "python"),
        ]
    )
    assert list(frame["where"]) == ["head", "attention", "bookkeeping"]
    assert list(frame["rank"]) == [1, 2, 3]
    by = {row["where"]: row for row in frame.to_dict("records")}
    assert by["head"]["amdahl_bound"] == pytest.approx(2.5)
    assert "fewer bytes" in by["head"]["recommendation"]
    assert "6.0 times its floor" in by["attention"]["recommendation"]
    assert "Interpreter work" in by["bookkeeping"]["recommendation"]
    sentence = finding_sentence(frame.iloc[1])
    assert "30 %" in sentence
    assert "at its floor it would be 1.33 times as fast" in sentence


def test_a_part_counts_with_its_share_of_a_request():
    """A tokenizer's hottest line is nothing where tokenizing is a thousandth of a request."""
    spots = [
        Hotspot("tokenizing", "merge", 0.9, "python"),
        Hotspot("inference", "decode", 0.6, "numpy", ratio=1.5, bound="memory"),
        Hotspot("baseline", "loop", 1.0, "python"),
    ]
    frame = rank_findings(spots, {"inference": 1.0, "tokenizing": 0.001})
    assert list(frame["part"]) == ["inference", "tokenizing", "baseline"]
    assert frame["reachable_speedup"][0] == pytest.approx(1.25)
    assert frame["amdahl_bound"][1] == pytest.approx(1.0009, rel=1e-4)
    assert math.isnan(frame["amdahl_bound"][2])
    assert "0.1 % of a whole request" in finding_sentence(frame.iloc[1])
    assert "without it nothing is left" in finding_sentence(frame.iloc[2])


def test_waiting_and_native_findings_have_their_own_advice():
    """The class of code decides the advice where no floor is known."""
    frame = rank_findings(
        [Hotspot("load", "sleep", 0.5, "waiting"), Hotspot("load", "regex", 0.4, "native")]
    )
    advice = dict(zip(frame["where"], frame["recommendation"], strict=True))
    assert "overlap" in advice["sleep"]
    assert "less often" in advice["regex"]


def test_no_hotspots_give_an_empty_table_with_columns():
    """Nothing above the threshold: an empty frame that still has its columns."""
    assert "amdahl_bound" in rank_findings([]).columns


def invented_allocations(kept: int) -> AllocationProfile:
    """Two sites over 10 calls; the first keeps `kept` bytes."""
    sites = pd.DataFrame(
        {
            "function": ["grow", "scratch"],
            "file": ["lib/a.py", "lib/b.py"],
            "line": [3, 7],
            "allocated_bytes": [kept, 50_000_000],
            "allocations": [10, 20],
            "kept_bytes": [kept, 0],
            "kept_bytes_per_call": [kept / 10, 0.0],
        }
    )
    stacks = StackProfile("memray", "bytes", (), 0.0, 0)
    return AllocationProfile("memray", sites, stacks, 10, kept + 50e6, 6e6, float(kept))


def test_memory_findings_name_growth_before_temporaries():
    """A site that keeps bytes is a leak; one that gives them back is a buffer to reuse."""
    frame = memory_findings(invented_allocations(200_000), "decode")
    assert list(frame["where"]) == ["grow (a.py:3)", "scratch (b.py:7)"]
    assert list(frame["bytes_per_call"]) == [20_000.0, 5_000_000.0]
    assert "`grow (a.py:3)` keeps 20 kB" in growth_sentence(invented_allocations(200_000), "decode")
    assert growth_sentence(invented_allocations(100), "decode") == ""
