"""Profiles of planted functions: what is hot, what leaks and what hangs must be named."""

import math
import sys
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("agg")

from batchgauge.errors import UserError
from batchgauge.machine.limits import usable_cores
from batchgauge.profiling import parallelism
from batchgauge.profiling.allocations import memory_lines, memory_timeline, track_allocations
from batchgauge.profiling.calls import ProfilerUnavailableError, sample_calls
from batchgauge.profiling.flamegraph import draw_flamegraph, layout, render_svg
from batchgauge.profiling.lines import functions_of, functions_seen, profile_lines, with_self_time
from batchgauge.profiling.listing import Listing, heat_colour
from batchgauge.profiling.overhead import measure_overhead
from batchgauge.profiling.stacks import StackProfile, classify, with_kinds

held: list[bytearray] = []


def hot_loop():
    """A loop of 60,000 multiplications."""
    total = 0
    for i in range(60_000):
        total += i * i  # the hot line
    return total


def cold():
    """Next to nothing."""
    return 1


def planted():
    """A cold call, then the hot one."""
    cold()
    return hot_loop()


def leaking():
    """Keeps 0.5 MB of 3.5 MB a call."""
    temporary = bytearray(3_000_000)
    held.append(bytearray(500_000))  # the leak
    return len(temporary)


@pytest.fixture
def nothing_held():
    """Whatever the leak held is let go."""
    held.clear()
    yield
    held.clear()


def line_of(text: str) -> int:
    """The line of this file that ends in the comment `text`."""
    rows = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, row in enumerate(rows, 1) if row.endswith(f"# {text}"))


def parse(text: str) -> ET.Element:
    """The root of well-formed XML that this project wrote."""
    return ET.fromstring(text)  # noqa: S314 - our own output


def by(frame: pd.DataFrame, key: str) -> dict[Any, dict[str, Any]]:
    """The rows of a frame, by the value of one column."""
    return {row[key]: {str(k): v for k, v in row.items()} for row in frame.to_dict("records")}


def made_up(*stacks: tuple[str, float]) -> StackProfile:
    """A profile from `outer;inner` paths of names, all in one Python file."""
    rows = tuple(
        (with_kinds([(name, "made_up.py", 1) for name in path.split(";")]), weight)
        for path, weight in stacks
    )
    return StackProfile("invented", "s", rows, sum(weight for _, weight in stacks), len(rows))


# --- lines ---------------------------------------------------------------------------------


def test_planted_hot_loop_is_named_first():
    """The two lines of the planted loop lead the line profile, and the body ran 60,000 times."""
    profile = profile_lines(planted, [planted, hot_loop, cold])
    top = profile.hottest(2)
    assert set(top["function"]) == {"hot_loop"}
    assert line_of("the hot line") in set(top["line"])
    hot = profile.frame[profile.frame["line"] == line_of("the hot line")]
    assert hot["hits"].item() == 60_000
    assert profile.functions()["function"].iloc[0] == "hot_loop"


def test_line_shares_add_up_to_one():
    """The shares of all lines sum to 1, and only the calling line names its callee."""
    profile = profile_lines(planted, [planted, hot_loop, cold])
    assert profile.frame["share"].sum() == pytest.approx(1.0)
    calling = profile.frame[profile.frame["calls"] == "hot_loop"]
    assert list(calling["source"]) == ["    return hot_loop()"]


def test_callees_are_taken_out_of_the_calling_lines():
    """A callee's lines and its tracing leave its two callers in proportion to their time."""
    frame = pd.DataFrame(
        {
            "function": ["outer", "outer", "outer", "inner"],
            "time_ms": [40.0, 20.0, 10.0, 45.0],
            "hits": [1, 1, 1, 100],
            "calls": ["inner", "inner", "", ""],
        }
    )
    result, tracing_ms = with_self_time(frame, per_hit_ms=0.01)  # inner costs 45 + 3 * 1
    assert tracing_ms == pytest.approx(3.03)
    assert list(result["self_ms"]) == pytest.approx([8.0, 4.0, 10.0, 45.0])
    assert list(result["share"]) == pytest.approx([8 / 67, 4 / 67, 10 / 67, 45 / 67])


def test_lines_account_for_the_measured_time():
    """Where tracing is rare beside the work, 98 to 102 % of the wall time is on lines."""

    def few_lines():
        time.sleep(0.1)
        np.ones((300, 300)) @ np.ones((300, 300))
        time.sleep(0.1)

    assert profile_lines(few_lines, [few_lines]).attributed == pytest.approx(1.0, abs=0.02)


def test_compiled_code_cannot_be_profiled_by_line():
    """A builtin has no lines: one sentence, not a traceback."""
    with pytest.raises(UserError, match="Python function"):
        profile_lines(planted, [len])


def test_functions_of_a_module_finds_methods_and_leaves_imports_out():
    """Methods and functions of the module itself are listed, imported ones are not."""
    names = {f.__qualname__ for f in functions_of(parallelism)}
    assert {"probe_gil", "_Counter._run"} <= names
    assert "dataclass" not in names


def test_functions_worth_a_line_profile_come_from_the_samples():
    """What sampling saw of this file is found again as functions; library code is not."""
    seen = {f.__name__ for f in functions_seen(sample_calls(planted, seconds=0.2))}
    assert {"planted", "hot_loop"} <= seen
    assert "cold" not in seen
    assert "leaking" not in seen


def test_listing_escapes_source_and_folds_cold_lines():
    """The listing shows the hot line with its hits, as safe HTML and as Markdown."""
    profile = profile_lines(planted, [planted, hot_loop])
    listing = Listing(profile, ["hot_loop"])
    page, text = listing._repr_html_(), listing._repr_markdown_()
    assert "60,000" in page
    assert "60,000" in text
    assert "total += i * i" in page
    parse(page)
    assert heat_colour(0.0) == "#ffffff"
    assert heat_colour(1.0) != heat_colour(0.2)


# --- calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["pyinstrument", "py-spy"])
def test_sampled_time_is_attributed_and_the_hot_function_leads(tool):
    """98 to 102 % of the wall time is on stacks, most of it in the planted function."""
    try:
        profile = sample_calls(planted, seconds=0.5, tool=tool)
    except ProfilerUnavailableError as error:
        pytest.skip(str(error))
    assert profile.attributed == pytest.approx(1.0, abs=0.02)
    assert sum(profile.by_kind().values()) == pytest.approx(profile.attributed)
    owners = profile.by_owner()
    assert owners["function"].iloc[0] == "hot_loop"
    assert owners.groupby("function")["share"].sum()["hot_loop"] > 0.8
    assert profile.by_kind()["python"] > 0.8


def test_sleep_counts_as_waiting():
    """A call that sleeps is waiting, whatever sampler saw it."""
    profile = sample_calls(lambda: time.sleep(0.3), seconds=0.3)
    assert profile.by_kind()["waiting"] > 0.8


def test_missing_py_spy_falls_back_with_a_note(monkeypatch):
    """Without py-spy, pyinstrument takes its place and the profile says so."""
    monkeypatch.setattr("batchgauge.profiling.calls.py_spy_path", lambda: None)
    profile = sample_calls(planted, seconds=0.05)
    assert profile.tool == "pyinstrument"
    assert "py-spy is not installed" in profile.note
    with pytest.raises(ProfilerUnavailableError, match="not installed"):
        sample_calls(planted, seconds=0.05, tool="py-spy")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for py-spy")
def test_py_spy_that_may_not_sample_falls_back_with_its_own_words(monkeypatch, tmp_path):
    """A py-spy that is refused permission is quoted, and the sampling goes on without it."""
    refused = tmp_path / "py-spy"
    refused.write_text("#!/bin/sh\necho 'Permission Denied: try sudo'\nexit 1\n")
    refused.chmod(0o755)
    monkeypatch.setattr("batchgauge.profiling.calls.py_spy_path", lambda: str(refused))
    profile = sample_calls(planted, seconds=0.05)
    assert profile.tool == "pyinstrument"
    assert "Permission Denied" in profile.note


@pytest.mark.parametrize(
    ("name", "file", "parent", "kind"),
    [
        ("sgemm_kernel", "libscipy_openblas64_-32a4.so", "python", "numpy"),
        ("ufunc_call", "numpy/_core/_multiarray_umath.cpython-311.so", "python", "numpy"),
        ("ones", "numpy/_core/numeric.py", "python", "numpy"),
        ("__memmove_avx", "libc.so.6", "numpy", "numpy"),
        ("clock_nanosleep", "libc.so.6", "python", "waiting"),
        ("PyObject_Call", "libpython3.11.so.1.0", "native", "python"),
        ("match", "regex/_regex.cpython-311-x86_64-linux-gnu.so", "python", "native"),
        ("reader", "app/reader.py", "python", "python"),
    ],
)
def test_colour_class_of_a_frame(name, file, parent, kind):
    """A frame's class follows its library; the C library's follows its caller."""
    assert classify(name, file, parent) == kind


def test_a_phase_can_be_cut_out_of_a_longer_run():
    """`below` keeps only the stacks through a function and makes it outermost."""
    whole = made_up(("run;prefill;matmul", 3.0), ("run;decode;matmul", 1.0), ("run", 0.5))
    part = whole.below("prefill")
    assert part.total == 3.0
    assert part.attributed == 1.0
    assert [f.name for f in part.stacks[0][0]] == ["prefill", "matmul"]


def test_recursion_counts_once_in_the_total():
    """A recursive function's total share is at most 1, and self shares add up to 1."""
    table = made_up(("f;f;f", 2.0), ("f;g", 2.0)).table()
    assert by(table, "function")["f"]["total_share"] == 1.0
    assert table["self_share"].sum() == pytest.approx(1.0)


# --- flame graphs --------------------------------------------------------------------------


def test_flame_graph_boxes_nest_and_small_ones_fold():
    """Each box lies within one of the row below, and a sliver is folded into its caller."""
    profile = made_up(("a;b", 60.0), ("a;c", 39.9), ("a;sliver", 0.1))
    boxes = layout(profile, smallest=0.01)
    assert {box.node.frame.name for box in boxes} == {"all", "a", "b", "c"}
    for box in (box for box in boxes if box.row):
        assert any(
            under.row == box.row - 1
            and under.left <= box.left + 1e-9
            and box.left + box.width <= under.left + under.width + 1e-9
            for under in boxes
        )


def test_flame_graph_files_are_well_formed_and_load_nothing(tmp_path):
    """The SVG parses, escapes names and has no reference outside itself; the PNG is a PNG."""
    profile = made_up(('main;<lambda>;"q" & co', 2.0), ("main;other", 1.0))
    text = render_svg(profile, title="Where <it> goes")
    root = parse(text)
    assert len(root.findall(".//{http://www.w3.org/2000/svg}g")) == len(layout(profile))
    assert "<lambda>" in {g.get("data-n") for g in root.iter()}
    links = [
        v for element in root.iter() for k, v in element.items() if k.endswith(("href", "src"))
    ]
    assert links == []
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    figure = draw_flamegraph(profile, title="x")
    figure.savefig(tmp_path / "flame.png")
    assert (tmp_path / "flame.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_an_empty_profile_draws_an_empty_flame_graph():
    """No samples: a picture without boxes rather than a division by zero."""
    empty = StackProfile("invented", "s", (), 0.0, 0)
    assert layout(empty) == []
    parse(render_svg(empty, title="nothing"))
    draw_flamegraph(empty, title="nothing")


# --- memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["memray", "tracemalloc"])
@pytest.mark.usefixtures("nothing_held")
def test_planted_leak_is_named_first(tool):
    """The line that keeps bytes leads the growth, with the bytes it keeps a call."""
    if tool == "memray":
        pytest.importorskip("memray")
    profile = track_allocations(leaking, calls=4, tool=tool)
    first = profile.growth().iloc[0]
    assert first["line"] == line_of("the leak")
    assert first["kept_bytes_per_call"] == pytest.approx(500_000, rel=0.01)
    if tool == "memray":
        assert profile.temporary_bytes_per_call == pytest.approx(3_000_000, rel=0.05)
        assert profile.sites["function"].iloc[0] == "leaking"
        assert sum(w for _, w in profile.stacks.stacks) == pytest.approx(profile.allocated_bytes)
    else:
        assert math.isnan(profile.temporary_bytes_per_call)
        assert profile.peak_bytes > 3_000_000


@pytest.mark.skipif(sys.gettrace() is not None, reason="another tool traces lines: coverage")
def test_memory_lines_and_timeline_see_a_large_array():
    """The allocating line's growth and the timeline's rise are those of a 64 MB array."""

    def grows():
        block = np.ones(8_000_000)
        time.sleep(0.1)
        return block.size

    table = memory_lines(grows, grows)
    assert "np.ones" in table["source"].iloc[int(table["increment_bytes"].argmax())]
    assert table["increment_bytes"].max() == pytest.approx(64e6, rel=0.2)
    line = memory_timeline(grows)
    assert line["rss_bytes"].max() - line["rss_bytes"].iloc[0] > 40e6


# --- the cost of looking, and the GIL ------------------------------------------------------


def test_overhead_of_tools_is_measured_and_a_missing_one_is_named(monkeypatch):
    """Tracing each line of a tight loop costs more than doing nothing; a missing tool is said."""
    monkeypatch.setitem(sys.modules, "pyinstrument", None)
    frame = measure_overhead(planted, [hot_loop], tools=["line_profiler", "pyinstrument"], rounds=3)
    tools = by(frame, "tool")
    assert tools["line_profiler"]["slowdown"] > 1.5
    assert tools["pyinstrument"]["note"] == "not installed"
    assert math.isnan(tools["pyinstrument"]["slowdown"])
    with pytest.raises(UserError, match="Unknown profiler"):
        measure_overhead(planted, [], tools=["gprof"])


@pytest.mark.skipif(usable_cores() < 2, reason="needs a second core")
def test_sleep_releases_the_gil_and_a_long_builtin_holds_it():
    """A second thread runs on beside `sleep`, and stands still beside one long C call."""
    numbers = list(range(1_000_000))
    frame = parallelism.probe_gil(
        {"sleep": lambda: lambda: time.sleep(0.1), "sum": lambda: lambda: sum(numbers)}, seconds=0.2
    )
    calls = by(frame, "call")
    assert calls["sleep"]["other_thread_progress"] > calls["sum"]["other_thread_progress"]
    assert calls["sleep"]["two_thread_speedup"] > 1.5


def test_words_for_gil_behaviour():
    """Free time and progress become one of three words."""
    assert parallelism.behaviour(0.95, 0.95) == "releases the GIL"
    assert parallelism.behaviour(0.05, 0.5) == "takes turns"
    assert parallelism.behaviour(0.0, 0.05) == "holds the GIL"


@pytest.mark.usefixtures("nothing_held")
def test_allocations_of_other_threads_are_not_the_calls():
    """What another thread allocates meanwhile belongs to nobody's site."""
    pytest.importorskip("memray")
    stop = threading.Event()

    def noise() -> None:
        while not stop.wait(0.001):
            held.append(bytearray(100_000))

    thread = threading.Thread(target=noise)
    thread.start()
    try:
        profile = track_allocations(lambda: time.sleep(0.05), calls=2, tool="memray")
    finally:
        stop.set()
        thread.join()
    assert "noise" not in set(profile.sites["function"])


def test_growth_of_nothing_is_empty():
    """A call that keeps nothing has no growing site of note."""
    profile = track_allocations(lambda: bytearray(1_000_000), calls=3)
    assert profile.growth().query("kept_bytes_per_call > 10000").empty
    assert isinstance(profile.sites, pd.DataFrame)
