"""Measuring: records, timing, paired comparison, memory, system counters."""

import csv
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchgauge.clock import durations_s, repeated, timed
from batchgauge.errors import UserError
from batchgauge.experiments.context import Context
from batchgauge.experiments.roadmap import parallel
from batchgauge.files import write_csv
from batchgauge.machine.identity import Machine
from batchgauge.measuring import (
    Amount,
    Conditions,
    Design,
    Estimate,
    Labels,
    Run,
    Sample,
    Stopping,
    allocations,
    compare_interleaved,
    measure,
    read,
    to_frame,
)
from batchgauge.measuring.gate.instructions import INSTRUCTIONS, TASK_CLOCK, count
from batchgauge.measuring.memory import memory_overhead
from batchgauge.measuring.paired import AA_CONTROL, CONTROL
from batchgauge.measuring.record import COLUMNS
from batchgauge.measuring.system import parse_cachegrind, parse_perf, usage
from batchgauge.measuring.timing import calibrate, steady_from
from batchgauge.measuring.verdicts import Ratio, judge, judged
from batchgauge.reporting.profiles import profile_named

# One row of samples, as a measurement makes it.
RECORD = to_frame(
    [
        Sample("b", "i", "decode", 1, "{}", 0, 0, 0, is_warmup=False, inner_loops=1, wall_ms=1.5,
               cpu_ms=1.25, items=1, tokens=2)
    ],
    Run("r", Machine("cpu", 2, 4, "Linux x86_64"), "python 3", "abc", 1, 0, "w", "2026-01-01"),
)  # fmt: skip


BRIEF = Stopping(0.01, least=10, most=1000)


def short():
    """A call of some microseconds."""
    return sum(range(200))


def longer():
    """Ten times the work of `short`."""
    return sum(range(2000))


@pytest.fixture(scope="module")
def compared():
    """One comparison that several tests look at."""
    return compare_interleaved(
        {"long": longer, "short": short}, amount=Amount(items=4, tokens=8),
        stopping=Stopping(0.3, least=12, most=12), conditions=Conditions(seed=3), progress=False,
    )  # fmt: skip


def test_a_tenth_of_the_work_is_faster(compared):
    """A call that does a tenth of the work is found faster, by several times."""
    ratio = compared.ratio("short")
    assert ratio.verdict == "faster"
    assert ratio.low > 2
    assert ratio.low <= ratio.value <= ratio.high
    assert [ratio.name for ratio in compared.ratio_list()] == ["short"]
    assert compared.noise_floor > 0
    assert compared.minimum_detectable_change > compared.noise_floor


def test_blocks_are_palindromes(compared):
    """In every block each candidate comes twice, in mirrored order, and the control once."""
    frame = compared.frame()
    for _, block in frame[~frame["is_warmup"]].groupby("block"):
        names = block.sort_values("position")["implementation"].tolist()
        assert names[-1] == CONTROL
        assert names[:-1] == names[:-1][::-1]
        assert sorted(names[:-1]) == sorted(["long", "short", AA_CONTROL] * 2)


def test_slow_calls_go_one_way():
    """One way, each candidate comes once in a block, and every other block is its mirror."""
    frame = compare_interleaved(
        {"a": short, "b": short, "c": short}, stopping=Stopping(0.01, least=6, most=6),
        design=Design(one_way=True, control=False), progress=False,
    ).frame()  # fmt: skip
    steady = frame[~frame["is_warmup"]].sort_values(["block", "position"])
    blocks = [rows["implementation"].tolist() for _, rows in steady.groupby("block")]
    assert all(sorted(names) == sorted(["a", "b", "c", AA_CONTROL]) for names in blocks)
    assert blocks[1::2] == [names[::-1] for names in blocks[::2]]
    assert blocks[0] != blocks[2] or blocks[2] != blocks[4]


def test_order_is_seeded():
    """The same seed gives the same order, another seed another."""

    def order(seed):
        frame = compare_interleaved(
            {"a": short, "b": short, "c": short}, conditions=Conditions(seed=seed),
            stopping=Stopping(0.05, least=8, most=8, precision=0.0), progress=False,
        ).frame()  # fmt: skip
        steady = frame[~frame["is_warmup"]].sort_values(["block", "position"])
        return steady["implementation"].tolist()[: 8 * 9]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_stops_for_a_stated_reason():
    """Tight enough, out of time, or out of blocks: the comparison says which."""

    def compared(**stopping):
        calls = {"a": short, "b": short}
        return compare_interleaved(calls, stopping=Stopping(**stopping), progress=False)

    wide = compared(budget_s=9, precision=100.0)
    assert wide.stopped_because == "± 10000.0 % was planned after 6 blocks"
    short_ = compared(budget_s=0.01, precision=0.0)
    assert short_.stopped_because == "the budget of 0.01 s has no room for more blocks"
    few = compared(budget_s=9, precision=0.0, most=7)
    assert few.stopped_because == "6 blocks were measured"
    assert few.blocks == 6
    assert compared(budget_s=0.01, least=3).blocks == 4  # an even number


def test_impossible_comparisons_are_refused():
    """One candidate, an unknown baseline, no items, a budget of nothing: one sentence each."""
    two = {"a": short, "b": short}
    for bad in (
        lambda: compare_interleaved({"a": short}),
        lambda: compare_interleaved(two, design=Design("c")),
        lambda: compare_interleaved(two, stopping=Stopping(least=1)),
        lambda: Amount(items=0),
        lambda: Stopping(budget_s=0),
        lambda: Stopping(least=5, most=4),
        lambda: Conditions(gc="never"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=r"expected|needs"):
            bad()


@pytest.mark.parametrize(
    ("low", "high", "q", "floor", "mdc", "verdict"),
    [
        (1.1, 1.3, 0.001, 0.02, 0.03, "faster"),
        (0.7, 0.9, 0.001, 0.02, 0.03, "slower"),
        (0.98, 1.02, 0.9, 0.02, 0.03, "no significant difference"),
        (1.005, 1.015, 0.01, 0.02, 0.03, "no significant difference"),  # within the noise floor
        (1.1, 1.3, 0.2, 0.02, 0.03, "no significant difference"),  # lost to the adjustment
        (0.8, 1.3, 0.5, 0.2, 0.3, "inconclusive"),
        (0.0, math.inf, 1.0, math.inf, math.inf, "inconclusive"),
        (0.99, 1.01, 0.8, math.nan, math.nan, "no significant difference"),
    ],
)
def test_verdicts(low, high, q, floor, mdc, verdict):
    """Constructed intervals get the verdict that the definitions ask for."""
    assert judge(low, high, q, noise_floor=floor, mdc=mdc, threshold=0.05) == verdict


def test_a_sweep_is_adjusted_together():
    """One p of 0.03 is a difference alone and none among twenty cells."""
    one = Ratio.of(Estimate(0.05, 0.01, 0.09, 0.03, 10), name="b", baseline="a",
                   noise_floor=0.01, minimum_detectable_change=0.02)  # fmt: skip
    none = Ratio.of(Estimate(0.0, -0.02, 0.02, 0.9, 10), name="b", baseline="a",
                    noise_floor=0.01, minimum_detectable_change=0.02)  # fmt: skip
    assert judged([one])[0].verdict == "faster"
    assert judged([replace(one, blocks=3)])[0].verdict == "too few"
    assert judged([one, *[none] * 19])[0].verdict == "no significant difference"


def test_calibration_fills_a_sample():
    """A short call is looped until a sample takes a millisecond; a long one runs once."""
    loops = calibrate(short)
    assert loops > 1
    assert timed(short, loops).wall_ns > 100_000
    assert calibrate(lambda: time.sleep(0.002)) == 1


def test_the_timer_counts_calls():
    """As many calls as are asked for, or as begin in the time given; each at least once."""
    calls: list[int] = []

    def call():
        time.sleep(0.001)
        calls.append(1)

    assert timed(call, 3).loops == len(calls) == 3
    found = repeated(call, 0.02)
    assert len(calls) == 3 + found.loops
    assert found.wall_ms >= 1.0 > found.cpu_ms
    assert repeated(call, 0.0).loops == 1
    calls.clear()
    assert len(durations_s(call, 0.0, least=4)) == 4 == len(calls) - 1  # the first is not counted


def test_warm_up_is_detected():
    """Steady begins after a falling start; a series still falling is not steady."""
    assert steady_from([9.0, 8.0, 7.0, 5.0, 3.0, *[1.0] * 12]) in {3, 4, 5}
    assert steady_from([1.0] * 10) == 0
    assert steady_from([2.0**-i for i in range(14)]) is None
    later = steady_from([2.0] * 30 + [1.0] * 30)  # the first level is not where it stays
    assert later is not None
    assert later > 25


def test_warm_up_is_kept_apart():
    """Slow first calls are rows marked as warm-up, and do not count in the median."""
    calls = iter(range(10**6))

    def settling():
        time.sleep(0.02 if next(calls) < 6 else 0.002)

    m = measure(settling, Labels("settling"), stopping=Stopping(0.1, least=24, most=1000))
    assert any(s.is_warmup for s in m.samples)
    assert len(m.steady_ms) + sum(s.is_warmup for s in m.samples) == len(m.samples)
    assert m.median_ms < 10


def test_conditions_are_restored():
    """Garbage collection is off inside and on again afterwards, also after an error."""
    import gc

    def inside():
        with Conditions(gc="off").held():
            assert not gc.isenabled()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        inside()
    assert gc.isenabled()


def test_records_survive_csv(tmp_path):
    """Rows written and read again are equal, in the documented columns."""
    labels = Labels("x", parameters={"b": 1, "a": "é"})
    m = measure(short, labels, Amount(items=2), stopping=BRIEF)
    frame = read(m.write(tmp_path / "x.csv"))
    assert tuple(frame.columns) == COLUMNS
    assert frame["wall_ms"].tolist() == m.to_frame()["wall_ms"].tolist()
    assert frame["parameters"].iloc[0] == '{"a": "\\u00e9", "b": 1}'
    assert not list(tmp_path.glob("*.partial"))


SAMPLES = sorted(
    path
    for path in (Path(__file__).parents[1] / "data").rglob("*.csv")
    if {"run_id", "implementation"} <= set(pd.read_csv(path, nrows=0))
)


def same(one, other):
    """Whether two tables of samples hold the same values, NaN where NaN."""
    pd.testing.assert_frame_equal(one, other, check_exact=True, check_dtype=False)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.stem)
def test_every_committed_table_of_samples_comes_back(tmp_path, path):
    """Read, written and read again: the same rows; and the file's own text, but for quotes."""
    frame = read(path)
    assert len(frame) == len(pd.read_csv(path))
    same(read(write_csv(frame, tmp_path / "again.csv")), frame)
    if tuple(frame.columns) == COLUMNS:
        assert (tmp_path / "again.csv").read_text() == path.read_text()


ODD_TEXTS = [
    "", "nan", "NA", "None", "null", "-", " x ", "é😀漢", 'a"b,c', "a\nb", "a\rb", "a\r\nb",
    "\u2028\x85", "#", "\ufeff", "1e5", "=1+1",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_come_back(tmp_path, text):
    """Names that look like missing values, numbers or line ends are texts all the same."""
    frame = pd.concat([RECORD] * 2, ignore_index=True)
    frame = frame.assign(benchmark=[text, "x"], implementation=["y", text], workload=text)
    same(read(write_csv(frame, tmp_path / "x.csv")), frame)


@pytest.mark.parametrize(
    ("column", "value", "back"),
    [
        ("cpu_ms", math.nan, math.nan),
        ("cpu_ms", None, math.nan),
        ("cpu_ms", 0.0, 0.0),
        ("wall_ms", 0.1 + 0.2, 0.1 + 0.2),
        ("wall_ms", 5e-324, 5e-324),
        ("wall_ms", 1.7976931348623157e308, 1.7976931348623157e308),
        ("wall_ms", 3, 3.0),
        ("tokens", 2**53 + 1, 2**53 + 1),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("seed", 10**30, 10**30),
        ("items", 4.0, 4),
        ("workload", None, ""),
        ("workload", "\ud800", "\\ud800"),
    ],
)
def test_odd_numbers_come_back(tmp_path, column, value, back):
    """To the last bit and digit; CPU time that was not taken stays unknown."""
    frame = RECORD.assign(**{column: pd.Series([value], dtype=object)})
    found = read(write_csv(frame, tmp_path / "x.csv"))[column].tolist()
    assert [repr(cell) for cell in found] == [repr(back)]
    same(read(write_csv(read(tmp_path / "x.csv"), tmp_path / "y.csv")), read(tmp_path / "x.csv"))


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("cpu_ms", "fast"),
        ("cpu_ms", "-1"),
        ("cpu_ms", "inf"),
        ("wall_ms", ""),
        ("wall_ms", "inf"),
        ("tokens", "1.5"),
        ("tokens", ""),
        ("items", "9" * 5000),
        ("is_warmup", "perhaps"),
        ("timestamp", ""),
    ],
)
def test_a_damaged_cell_is_refused(tmp_path, column, text):
    """Only CPU time may be missing; a word, half an item or infinity is no number."""
    write_csv(RECORD.astype(object).assign(**{column: text}), tmp_path / "bad.csv")
    with pytest.raises(UserError, match=r"bad\.csv"):
        read(tmp_path / "bad.csv")


@pytest.mark.parametrize("left", [1, 5, 12, 20, 24])
def test_a_row_with_cells_missing_or_left_over_is_refused(tmp_path, left):
    """A last row cut behind any cell is no whole row, nor is one with a cell too many."""
    header, row = RECORD.to_csv(index=False).splitlines()
    cells = next(csv.reader([row]))
    for some in (cells[:left], [*cells, "more"]):
        with (tmp_path / "bad.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header.split(","), cells, some])
        with pytest.raises(UserError, match=r"bad\.csv"):
            read(tmp_path / "bad.csv")


def test_samples_of_every_writer_come_back(tmp_path):
    """Those of long calls, of peers and of two cores too, where no CPU time is taken."""
    rows = [("decode", way, block, 3.0 + block) for block in (0, 1) for way in parallel.WAYS]
    measured = pd.DataFrame(rows, columns=["stage", "way", "block", "calls_per_s"])
    frame = parallel.as_records(measured, Context(profile_named("default"), seed=3))
    assert frame["wall_ms"].tolist() == [1e3 / row[3] for row in rows]
    assert frame["batch_size"].unique().tolist() == [8]
    found = read(write_csv(frame, tmp_path / "x.csv"))
    same(found, frame)
    assert found["position"].tolist() == [0, 1, 2, 3] * 2


def _broken(text, how):
    lines = text.splitlines()
    header = lines[0].split(",")
    at = header.index("wall_ms")

    def with_time(value):
        import csv
        import io

        row = next(csv.reader([lines[1]]))
        row[at] = value
        out = io.StringIO()
        csv.writer(out).writerow(row)
        return "\n".join([lines[0], out.getvalue()])

    return {
        "empty": "",
        "header only": lines[0],
        "other columns": "a,b\n1,2",
        "cut": text[: len(text) - len(lines[-1]) // 2],
        "nan": with_time("nan"),
        "negative": with_time("-1"),
        "zero": with_time("0"),
        "text": with_time("fast"),
    }[how]


@pytest.mark.parametrize(
    "how", ["empty", "header only", "other columns", "cut", "nan", "negative", "zero", "text"]
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, how):
    """A damaged CSV is named and said in one sentence."""
    good = measure(short, Labels("x"), stopping=BRIEF).write(tmp_path / "good.csv")
    bad = tmp_path / "bad.csv"
    bad.write_text(_broken(good.read_text(), how))
    with pytest.raises(UserError, match=r"bad\.csv"):
        read(bad)


def test_allocations_are_exact():
    """An array kept counts as held, one that is freed only in the peak."""
    kept = allocations(lambda: np.zeros(1_000_000, np.uint8))
    assert 1_000_000 <= kept.allocated_bytes < 1_010_000
    freed = allocations(lambda: np.zeros(1_000_000, np.uint8).sum())
    assert freed.allocated_bytes < 10_000
    assert 1_000_000 <= freed.peak_bytes < 1_100_000  # and NumPy's reduction buffer


def test_memory_overhead():
    """Overhead is what exceeds the bytes that must exist, by those bytes."""
    assert memory_overhead(110, 100) == pytest.approx(0.1)
    with pytest.raises(UserError, match="more than 0"):
        memory_overhead(1, 0)


def test_usage_counts():
    """A busy call uses about one core; a sleeping one nearly none, and switches."""
    busy = usage(lambda: sum(range(2_000_000)))

    def naps():
        for _ in range(20):
            time.sleep(0.002)

    asleep = usage(naps)
    assert busy.cpu_utilisation > 3 * asleep.cpu_utilisation
    assert asleep.voluntary_switches >= 10


def test_counter_outputs_are_read():
    """Counts are read from perf and cachegrind; what could not be counted is left out."""
    text = "# started\n12345,,instructions:u,100,100.0,,\n<not supported>,,cache-misses,0,0,,\n"
    assert parse_perf(text) == {"instructions": 12345}
    grind = (
        "==7== I   refs:      1,234,567\n==7== LL misses:    3,210  ( 1,1)\n==7== Mispredicts:  99"
    )
    assert parse_cachegrind(grind) == {
        "instructions": 1_234_567, "cache_misses": 3_210, "branch_misses": 99,
    }  # fmt: skip


def test_run_says_where_and_when():
    """A run names machine, versions, commit and time, and a machine has one id."""
    run = Run.here(seed=5)
    assert run.seed == 5
    assert "python" in run.versions
    assert len(run.machine.id) == 10
    assert run.timestamp.endswith("+00:00")


@pytest.mark.parametrize("event", [INSTRUCTIONS, TASK_CLOCK])
def test_the_kernels_counters_count_more_where_more_is_done(event):
    """Fifty times the work counts several times as much."""

    def work(amount):
        return sum(bytearray(amount << 14))

    few = count(lambda: work(1), event)
    if few is None:
        pytest.skip("this kernel does not count this event for us")
    assert (count(lambda: work(50), event) or 0) > 5 * few > 0


def test_an_event_that_nobody_counts_is_none():
    """An unknown kind of event has no count, and the call is not even made."""
    assert count(lambda: 1 / 0, (1, 9999)) is None
