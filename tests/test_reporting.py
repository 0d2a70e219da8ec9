"""Tables, scores, parameters, profiles, plots and the command line: what needs no kernel."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from tests import hostile

from batchgauge import cli
from batchgauge.errors import UserError
from batchgauge.files import write_text
from batchgauge.reporting import (
    Answer,
    Report,
    Score,
    Tile,
    charts,
    palette,
    plots,
    profile_named,
    render,
    tables,
)
from batchgauge.reporting.index import first_sentence
from batchgauge.reporting.page import content_policy
from batchgauge.reporting.parameters import Parameter, check_injected, declarations, typed
from batchgauge.reporting.project import notebooks_folder, results_folder
from batchgauge.reporting.report import alt_text
from batchgauge.text import Markdown, visible

mpl.use("agg")
PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234567, "1,234,567"),
        (np.int64(5), "5"),
        (0.0123456, "0.0123"),
        (9.996, "10.00"),
        (1234.5, "1,230"),
        (-2.5, "-2.50"),
        (1e-7, "1.00e-07"),
        (0.0, "0"),
        (math.nan, "–"),
        (None, "–"),
        (math.inf, "–"),
        (True, "yes"),
        ("text", "text"),
    ],
)
def test_numbers_are_rounded_to_three_figures(value, shown):
    """Integers stay whole, reals keep three figures, what is missing is a dash."""
    assert tables.number(value) == shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([218.4, 3.581, 1.0], ["218.40", "3.58", "1.00"]),
        ([0.0000263, 1234.5, 20.25], ["< 0.1", "1,234.5", "20.2"]),
        ([1.0, 8.0, math.nan], ["1", "8", "–"]),
        ([math.inf, -0.5, 0.25], ["–", "-0.500", "0.250"]),
        ([None, 3, 12], ["–", "3", "12"]),
        ([True, False], ["yes", "no"]),
        (["a", None], ["a", "–"]),
        ([], []),
    ],
)
def test_a_column_has_one_precision(values, shown):
    """As many decimals for all; nothing in powers of ten, nothing endless, no zero that is none."""
    assert tables.column(pd.Series(values)) == shown


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([0.93, 1.45], [0.8, 1.0, 1.2, 1.4, 1.6]),
        ([90, 130], [90, 100, 110, 120, 130]),
        ([1.0, 1.0], [1.0, 1.5, 2.0, 3.0]),
        ([0.9, 3.1], [0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]),
        ([3, 500], [1, 10, 100, 1000]),
        ([math.nan, 0.0], [1.0, 1.5, 2.0, 3.0, 4.0, 6.0]),
    ],
)
def test_a_logarithmic_axis_has_marks_to_read_it_by(values, marks):
    """A short one has more than its 1; every one begins and ends beyond its values."""
    assert charts.powers(pd.Series(values)) == pytest.approx(marks)


def test_what_figures_rest_on_is_read_from_their_columns():
    """Blocks of a table, blocks and processes of samples; a range where they differ."""
    table = pd.DataFrame({"blocks": [6, 12]})
    samples = pd.DataFrame(
        {
            "benchmark": "a",
            "process": [0, 1, 1],
            "block": [0, 1, 2],
            "is_warmup": [True, False, False],
        }
    )
    assert tables.basis(table) == "6 to 12 blocks, 1 process"
    assert tables.basis(table.assign(processes=5)) == "6 to 12 blocks, 5 processes"
    assert tables.basis(pd.DataFrame({"seed": [0, 1, 1]})) == "2 seeds"
    assert tables.basis(pd.DataFrame({"calls": [1], "seed": [0]})) == "1 call, 1 process"
    assert tables.basis(samples) == "2 blocks, 1 process"
    assert tables.basis(pd.DataFrame({"x": [1]})) == tables.basis() == ""


def test_headings_carry_their_unit():
    """A column's unit moves from the end of its name into brackets."""
    assert tables.heading("kv_cache_bytes") == "KV cache (bytes)"
    assert tables.heading("decode_tokens_per_s") == "decode (tokens/s)"
    assert tables.heading("ttft_ms") == "TTFT (ms)"
    assert tables.heading("class") == "class"


def test_an_interval_that_is_no_result_is_a_dash():
    """Of a ratio that holds from 0.01 to 166, a table shows the ratio alone."""
    frame = pd.DataFrame({"speedup_x": [3.3, 2.0], "low_x": [0.01, 1.9], "high_x": [166.0, 2.1]})
    for text in (tables.to_html(frame, "c"), tables.to_markdown(frame, "c")):
        assert "3.30" in text
        assert "1.90" in text
        assert "166" not in text
    assert frame["high_x"].max() == 166.0


def test_tables_escape_and_sort_by_full_value():
    """HTML is escaped and each number keeps its exact value; a pipe does not break Markdown."""
    frame = pd.DataFrame({"name": ["<i>|"], "wall_ms": [1.23456]})
    html = tables.to_html(frame, 'a "caption"')
    assert "&lt;i&gt;|" in html
    assert 'data-value="1.23456"' in html
    assert 'aria-label="a &quot;caption&quot;"' in html
    assert "| &lt;i&gt;\\| | 1.23 |" in tables.to_markdown(frame, "c")


@pytest.mark.parametrize(
    ("better", "low", "high", "verdict"),
    [
        ("higher", 5.1, 6, "met"),
        ("higher", 4, 4.9, "missed"),
        ("higher", 4, 6, "open"),
        ("lower", 5.1, 6, "missed"),
        ("lower", 4, 4.9, "met"),
        ("lower", 4, 6, "open"),
    ],
)
def test_a_verdict_needs_the_whole_interval(better, low, high, verdict):
    """Met and missed only when no end of the interval says otherwise."""
    score = Score("k", "Label", 5.0, (low + high) / 2, low, high, "×", better)
    assert score.verdict == verdict


def test_a_score_without_goal_is_only_measured():
    """No goal, no verdict."""
    score = Score("k", "Label", None, 3.0)
    assert (score.verdict, score.sentence()) == ("measured", "Label: 3.00.")


CELL = 'a: int = 1  # how many\nb: str = "x#y"  # a text\nc: list[int] = [1, 2]\nd: bool = False'


def test_declarations_are_read_with_their_help():
    """Name, type, default and comment of each line; a '#' in a string is no comment."""
    found = list(declarations(CELL))
    assert found[0] == Parameter("a", "int", "1", "how many")
    assert (found[1].default, found[1].help) == ("'x#y'", "a text")


def test_values_take_their_declared_type():
    """Papermill's guesses are put right: a number for a text, a text for a number."""
    known = {p.name: p for p in declarations(CELL)}
    given = {"a": "7", "b": 7, "c": "[3]", "d": "true"}
    assert typed(given, known) == {"a": 7, "b": "7", "c": [3], "d": True}


SIZES = "profile: str = 'smoke'\nsizes: list = [1, 8]\ntools: list = ['calls']\nx: float = 1.0"


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        *(("sizes", one, [8]) for one in (8, 8.0, "8", [8], "[8]", (8,), " 8 ", np.int64(8))),
        *(("sizes", many, [1, 2, 4]) for many in ("1,2,4", "[1, 2, 4]", "1, 2,4", (1, 2, 4))),
        ("sizes", [4, 1, 1], [4, 1, 1]),  # what uses them sorts them and drops the second
        ("tools", "calls", ["calls"]),
        ("tools", "calls, lines", ["calls", "lines"]),
        ("tools", "[calls,lines]", ["calls", "lines"]),
        ("tools", [], []),
        ("x", "2", 2.0),
    ],
)
def test_a_list_may_be_given_as_one_value_or_as_text(name, value, right):
    """`-p batch_sizes 8` is `[8]`; commas separate."""
    assert typed({name: value}, {p.name: p for p in declarations(SIZES)}) == {name: right}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sizes", wrong) for wrong in (0, -1, "0", [8, 0], [], "", "x", "1;2", 1.5, [1.5], True)),
        *(
            ("sizes", wrong)
            for wrong in ([True], None, [None], "None", math.nan, [math.nan], "nan")
        ),
        *(("sizes", wrong) for wrong in ({"a": 1}, [[1]], "[[1]]", "[" * 9000, math.inf, "1e999")),
        *(("tools", wrong) for wrong in (None, [None], {"calls": 1}, [["calls"]])),
        *(("x", wrong) for wrong in (math.nan, "nan", math.inf, None, True, "1,5", [1.0])),
        *(("profile", wrong) for wrong in (None, ["smoke"], "\ud800", "a\0b")),
    ],
)
def test_lists_and_numbers_amiss_are_refused(name, value):
    """One sentence, of a length to read, that names the parameter and what was expected."""
    with pytest.raises(UserError, match=f"'{name}' is .*; expected ") as caught:
        typed({name: value}, {p.name: p for p in declarations(SIZES)})
    assert len(str(caught.value)) < 250


def test_parameters_edited_in_jupyterlab_are_checked_too():
    """Without papermill: the cell as somebody ran it, or what was assigned since."""
    edited = SIZES.replace("[1, 8]", "8")
    namespace = {"profile": "smoke", "sizes": 8, "tools": ["calls"], "x": 1}
    check_injected(namespace, ["", "%matplotlib inline", edited, "report = ..."])
    assert namespace == {"profile": "smoke", "sizes": [8], "tools": ["calls"], "x": 1.0}
    with pytest.raises(UserError, match="'sizes' is 0"):
        check_injected({"sizes": 0}, [SIZES, "sizes = 0"])
    check_injected({"y": "text"}, ["y: int = 1", "y = 'text'"])  # a variable of somebody's own


@pytest.mark.parametrize("given", [{"a": "x"}, {"a": 1.5}, {"a": True}, {"d": "maybe"}, {"z": 1}])
def test_values_amiss_are_refused(given):
    """A value of no such type, or an unknown name, is one sentence that names it."""
    known = {p.name: p for p in declarations(CELL)}
    with pytest.raises(UserError, match=f"'{next(iter(given))}'"):
        typed(given, known)


def test_injected_parameters_are_checked_in_the_kernel():
    """The cell that papermill inserts is held against the one before it."""
    namespace: dict[str, object] = {"a": 1, "b": 7}
    check_injected(namespace, ["", CELL, "# Parameters\nb = 7\n", "report = ..."])
    assert namespace["b"] == "7"
    with pytest.raises(UserError, match="'e' is unknown"):
        check_injected({"e": 1}, [CELL, "# Parameters\ne = 1\n"])


def test_profiles_are_known_by_name():
    """Three profiles, each longer than the one before; another name is refused."""
    seconds = [profile_named(n).seconds for n in ("smoke", "default", "thorough")]
    assert seconds == sorted(seconds)
    with pytest.raises(UserError, match="expected one of smoke, default, thorough"):
        profile_named("fast")


@pytest.mark.parametrize("wrong", [{"name": "A b"}, {"seed": -1}, {"seed": 1.5}, {"profile": "x"}])
def test_a_report_refuses_bad_input(tmp_path, wrong):
    """Name, seed and profile are checked where a report begins."""
    given = {"name": "a", "title": "T", "question": "Q?", "out_dir": tmp_path, **wrong}
    with pytest.raises(UserError):
        Report.begin(**given)


def test_a_report_needs_an_answer(tmp_path):
    """A report cannot finish without one, and writes no facts then."""
    report = Report.begin("a", title="T", question="Q?", out_dir=tmp_path)
    with pytest.raises(UserError, match="no answer"):
        report.finish()
    assert not list(tmp_path.rglob("*.json"))


def test_python_names_are_not_set_in_bold(tmp_path):
    """Double underscores of a name stay underscores, in code they stay as they are."""
    report = Report.begin("a", title="T", question="Q?", out_dir=tmp_path)
    report.answer("A.__call__ takes " + Markdown("**9 %**, as does `__init__`."))
    facts = json.loads(report.finish().read_text())
    assert facts["answer"] == r"A.\_\_call\_\_ takes **9 %**, as does `__init__`."


def test_figures_are_twice_the_pixels(tmp_path):
    """A figure of 4 x 3 inches at 100 dots is about 800 x 600 pixels, its alt text inside."""
    report = Report.begin("a", title="T", question="Q?", out_dir=tmp_path)
    fig, ax = plt.subplots(figsize=(4, 3))
    ax.plot([1, 2])
    path = report.figure(fig, "line", alt="A line", caption="C")
    picture = plt.imread(path)
    assert picture.shape[1] == pytest.approx(800, rel=0.15)
    assert b"A line" in path.read_bytes()
    assert not plt.fignum_exists(fig.number)


def test_figures_take_any_name(tmp_path):
    """Dollar signs are no mathematics, and what has no glyph or no UTF-8 raises nothing."""
    report = Report.begin("a", title="T", question="Q?", out_dir=tmp_path)
    names = [*hostile.ALL.values(), "$\\frac{", "\ud800", "a_$b$"]
    fig, ax = plt.subplots()
    ax.set_yticks(range(len(names)), names)
    ax.plot([1], label=palette.label("\ud800$x$"))
    ax.legend()
    ax.set_title(names[-2] + names[-3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that the font lacks
        path = report.figure(fig, "names", alt="\ud800\0", caption="\ud800")
    assert "�␀".encode() in path.read_bytes()


def test_data_keep_what_they_are_given(tmp_path):
    """A CSV holds the text itself, formulas included; facts with a surrogate are JSON still."""
    report = Report.begin(
        "a", title="T", question="Q?", out_dir=tmp_path, parameters={"prompt": "\ud800"}
    )
    texts = ["=1+1", "@x", hostile.TAG, hostile.MARKDOWN, 'a "b", c', "a\nb"]
    path = report.csv(pd.DataFrame({"text": texts}), "texts")
    assert list(pd.read_csv(path)["text"]) == texts
    report.csv(pd.DataFrame({"text": ["\ud800"]}, dtype=object), "odd")
    report.answer(hostile.EVERYTHING + "\ud800")
    assert json.loads(report.finish().read_text())["parameters"] == {"prompt": "\ud800"}


def test_benchmarks_are_not_run_for_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    """`bench --out` and `compare --out` look first."""
    monkeypatch.setattr(
        "batchgauge.experiments.regression.runs.run_suite", lambda *_, **__: pytest.fail("it ran")
    )
    (tmp_path / "file").write_text("mine")
    for command in (["bench"], ["compare", "--against", "HEAD"]):
        for out, said in ((tmp_path / "file" / "a.csv", "is a file"), (tmp_path, "a folder")):
            result = CliRunner().invoke(cli.root, [*command, "--out", str(out)])
            assert isinstance(result.exception, UserError)
            assert said in str(result.exception)


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    """A disk that fills up while a file is written: one sentence, the old file, no other."""
    path = write_text("old", tmp_path / "a.txt")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"a.txt' cannot be written: No space left on device\.$"):
        write_text("new", path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_colours_are_stable():
    """An implementation keeps its colour whatever its argument; strangers get others, by name."""
    assert palette.colour("numpy") != palette.colour("baseline")
    assert palette.colour("sentencepiece:/a/b.model") == palette.colour("sentencepiece")
    assert palette.marker("numpy") != palette.marker("baseline")
    known = {palette.colour(name) for name in ("numpy", "baseline", "hf", "tiktoken", "llama-cpp")}
    strangers = [palette.colour(f"mine{number}:factory") for number in range(40)]
    assert known.isdisjoint(strangers)
    assert len(set(strangers)) > 1
    assert strangers[:4] == ["#E69F00", "#7F3C8D", "#444444", "#56B4E9"]  # in every process


@pytest.mark.parametrize(
    ("here", "wanted"), [(PROJECT, PROJECT), (PROJECT / "notebooks", PROJECT), (None, None)]
)
def test_results_never_go_to_the_reference_unless_told(monkeypatch, tmp_path, here, wanted):
    """From the checkout or a notebook's folder, one ignored folder; elsewhere one of its own."""
    monkeypatch.chdir(here or tmp_path)
    folder = (wanted or tmp_path) / "batchgauge-results"
    assert results_folder() == folder
    assert Report.begin("a", title="T", question="Q?").out_dir == folder


def test_another_projects_notebooks_are_left_alone(monkeypatch, tmp_path):
    """The study's notebooks belong to the package, whatever lies in the working folder."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    assert notebooks_folder() == PROJECT / "notebooks"


def test_long_titles_are_wrapped():
    """A title that states a finding never runs out of its picture."""
    plots.use_theme()
    fig, ax = plt.subplots()
    ax.set_title("word " * 40)
    plots.wrap_titles(fig)
    assert all(len(line) <= 76 for line in ax.get_title(loc="left").splitlines())
    plt.close(fig)


def test_the_index_takes_the_first_sentence():
    """Decimals and initials do not end a sentence."""
    assert first_sentence("S(32) is 3.1 × [2.9, 3.3]. Then more.") == "S(32) is 3.1 × [2.9, 3.3]."
    assert first_sentence("Only one.") == "Only one."


def test_help_reads_without_importing_commands():
    """`batchgauge --help` lists every command with its line."""
    text = CliRunner().invoke(cli.root, ["--help"]).output
    for name, (_, line) in cli.COMMANDS.items():
        assert name in text
        assert line in " ".join(text.split())


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_explains_itself(command):
    """Each command imports and has help."""
    result = CliRunner().invoke(cli.root, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["study", "--profile", "fast"],
        ["study", "77"],
        ["study", "-p", "nope", "1"],
        ["study", "--seed", "abc"],
        ["study", "--matrix", "no-such-file.toml"],
        ["study", "--\x1b[31mnope"],
        ["study", "-p", "\x1b]0;evil\x07\u202e", "1"],
    ],
)
def test_bad_input_is_one_sentence_on_standard_error(arguments, monkeypatch, capsys):
    """Exit code 2, one line, no traceback."""
    monkeypatch.setattr("sys.argv", ["batchgauge", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert visible(said) == said
    if "Usage" not in said:  # click's own words for an option that there is not
        assert said.startswith("batchgauge: ")
        assert len(said.strip().splitlines()) == 1


def test_the_dictionary_says_ends_percentiles_and_units(tmp_path):
    """Columns that belong to another say so; a column nobody knows has no meaning."""
    from batchgauge.reporting.dictionary import meaning, write_dictionary

    assert meaning("low_x") == "lower end of the 95 % interval"
    assert meaning("goodput_gain_high") == "upper end of the 95 % interval"
    assert meaning("p90_latency_ms").startswith("p90 of: start of a batch")
    assert meaning("ttft_median_ms") == "median of: time to first token"
    assert meaning("nobody_knows") == ""
    assert "unequal" in meaning("spread", "bottleneck_analysis_padding")
    assert "blocks" in meaning("spread", "peers_engines")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a_samples.csv").write_text("wall_ms,share\n1,2\n")
    text = write_dictionary(tmp_path).read_text(encoding="utf-8")
    assert "A row is one timed sample." in text
    assert "| `wall_ms` | ms | wall time |" in text
    assert "| `share` | of 1 |" in text
    (tmp_path / "data" / "b.csv").write_text("waiting_gain,waiting_gain_low\n1,2\n")
    text = write_dictionary(tmp_path).read_text(encoding="utf-8")
    assert "| `waiting_gain_low` | × | lower end of the 95 % interval |" in text


def test_every_committed_column_has_a_meaning():
    """No table of the reference run has a column that the dictionary does not know."""
    from batchgauge.reporting.dictionary import meaning

    heads = {p.name: p.open(encoding="utf-8").readline() for p in (PROJECT / "data").glob("*.csv")}
    assert heads
    unknown = {
        (name, column)
        for name, head in heads.items()
        for column in head.strip().split(",")
        if not meaning(column)
    }
    assert unknown == set()
    columns = {name: head.strip().split(",") for name, head in heads.items()}
    bare = {name for name, found in columns.items() if "value" in found and "unit" not in found}
    assert {name for name in bare if "'unit'" in meaning("value", name[:-4])} == set()
    text = (PROJECT / "data" / "README.md").read_text(encoding="utf-8")
    assert text.count("\nA row is one ") == len(heads)


def test_a_history_keeps_runs_that_compare(tmp_path, capsys):
    """Each run once; only those of the same machine, model and profile are set beside this one."""
    from batchgauge.reporting.history import past, remember

    def facts(day, value, verdict, machine="m"):
        score = {"key": "s8", "label": "S(8)", "value": value, "unit": "×", "verdict": verdict}
        return {
            "report": "a", "finished": day, "profile": "smoke", "machine": machine,
            "git_commit": "c", "scores": [score],
        }  # fmt: skip

    (tmp_path / "data").mkdir()
    for run in (facts("1", 3.0, "met"), facts("2", 9.0, "met", "other"), facts("3", 2.0, "missed")):
        remember(tmp_path, [run])
        history = remember(tmp_path, [run])
    assert history["value"].tolist() == [3.0, 9.0, 2.0]
    found = past(history, [facts("3", 2.0, "missed")])["s8"]
    assert (found.points, found.verdicts) == ([3.0, 2.0], ["met", "missed"])
    assert found.has_changed
    assert found.sparkline() == "3.0,3.0 81.0,15.0"
    earlier = past(history, [facts("1", 3.0, "met")])["s8"]
    assert (earlier.points, earlier.has_changed) == ([3.0], False)  # none that ran since
    path = tmp_path / "data" / "history.csv"
    before = path.read_text(encoding="utf-8")
    for number, foreign in enumerate(
        ("broken", before.replace("git_commit", "commit"), b"\xff"), 1
    ):
        path.write_bytes(foreign if isinstance(foreign, bytes) else foreign.encode())
        assert len(remember(tmp_path, [facts("3", 2.0, "missed")])) == 1
        kept = path.with_name(f"history.csv.{number}")
        assert kept.read_bytes() in (foreign, str(foreign).encode())
        assert f"kept as '{kept.name}'" in capsys.readouterr().err


def test_the_committed_dictionary_is_that_of_the_committed_tables(committed):
    """`data/README.md` is what the tables beside it give, to the letter."""
    from batchgauge.reporting.dictionary import write_dictionary

    before = (committed / "data" / "README.md").read_text(encoding="utf-8")
    assert write_dictionary(committed).read_text(encoding="utf-8") == before


def chart(names=("a", "b")):
    """A chart of two series with intervals, one of them hostile in its words."""
    frame = pd.DataFrame(
        {"implementation": [*names] * 2, "batch_size": [1, 1, 8, 8], "value": [1.0, 2.0, 3.0, 4.0]}
    )
    frame = frame.assign(low=frame["value"] * 0.9, high=frame["value"] * 1.1)
    goal = charts.Line(3.0, hostile.TAG)
    return charts.speedup(frame, title=hostile.EVERYTHING, y="times", references=[goal])


def test_a_chart_is_text_on_a_page_whatever_it_says():
    """Nothing ends the script element that holds it, and its SVG has no tag of somebody else."""
    alt = visible(hostile.EVERYTHING)
    spec = chart((hostile.TAG, "b")).full(alt)
    block = render.json_block(spec)
    assert "<" not in block
    assert json.loads(block)["description"] == alt
    drawn = render.svg(spec, "one")
    assert "<img" not in drawn
    assert "onerror=" not in re.sub(r">[^<]*<|\"[^\"]*\"", "", drawn)


def test_a_page_gives_a_chart_its_colours():
    """Colours become the page's own; the title is the page's, the still picture has no width."""
    spec = chart().full("alt")
    for text in (render.json_block(spec), render.svg(spec, "one")):
        assert "var(--ink)" in text
        assert not re.search(r"#(24292f|59636e|e3e7eb)", text, re.IGNORECASE)
    assert "title" not in json.loads(render.json_block(spec))
    assert re.match(r"<svg[^>]* viewBox=", render.svg(spec, "one"))
    assert not re.match(r"<svg[^>]* width=", render.svg(spec, "one"))


def test_small_multiples_zoom_along_what_they_share():
    """A panel a value, in the data's order; an axis of a panel's own is not zoomed."""
    frame = pd.DataFrame({"at": ["b", "b", "a", "a"], "series": ["s", "t"] * 2, "x": 1.0, "y": 1.0})
    looks = charts.Looks(["s", "t"], ["#0072B2", "#009E73"], ["circle", "square"])
    one = charts.lines(frame, "T", charts.Axis("x", "x"), charts.Axis("y", "y"), looks)
    for own, zoomed in (((), ["x", "y"]), (["y"], ["x"]), (["x", "y"], None)):
        spec = charts.facets(one, "at", 3, own=own).spec
        assert (spec["facet"]["sort"], spec["columns"]) == (["b", "a"], 2)
        params = [param for layer in spec["spec"]["layer"] for param in layer["params"]]
        along = [p["select"]["encodings"] for p in params if p["name"] == "zoomed"]
        assert along == ([zoomed] if zoomed else [])
        assert {"shown", "near"} < {param["name"] for param in params} | {"zoomed"}
        assert spec["resolve"]["scale"] == dict.fromkeys(own, "independent")
    drawn = render.svg(charts.facets(one, "at", 2).full("alt"), "one")
    assert drawn.index(">b</text>") < drawn.index(">a</text>")


def test_a_chart_is_saved_as_a_picture_and_as_a_specification(tmp_path):
    """PNG at 2x with the alt text inside, the specification beside it, both among the facts."""
    report = Report.begin("a", title="T", question="Q?", out_dir=tmp_path)
    path = report.figure(chart(), "curve", alt="Two lines", caption="C", frames={"t": FRAME})
    assert b"Two lines" in path.read_bytes()
    spec = json.loads((path.parent / "curve.vl.json").read_text(encoding="utf-8"))
    about = spec["usermeta"]["batchgauge"]
    assert (about["csv"], about["alt"]) == ("data/a_t.csv", "Two lines")
    assert about["basis"] == "9 blocks, 1 process"
    report.answer(Answer("It is.", "curve", [Tile("gain", "3 ×", "more")]))
    facts = json.loads(report.finish().read_text(encoding="utf-8"))
    assert facts["figure"] == "curve"
    assert facts["tiles"] == [{"place": "gain", "value": "3 ×", "text": "more"}]
    assert "reports/figures/curve.vl.json" in facts["files"]


FRAME = pd.DataFrame({"blocks": [9]})


@pytest.mark.parametrize(
    ("sentence", "alt"),
    [
        ("One. Two. Three. Four.", "A title. One."),
        ("A title. One. Two.", "A title. One."),
        (f"One is {'very ' * 80}long. Two.", "A title."),
        (Markdown("- first\n- second"), "A title."),
    ],
)
def test_alt_texts_are_a_sentence_or_two(sentence, alt):
    """Title and finding, not the whole list of a figure's numbers."""
    assert alt_text(charts.Chart("A title", {}), sentence) == alt


def test_only_scripts_of_our_own_run():
    """One digest on a page without charts, two on one with them; nothing else is allowed."""
    assert content_policy().count("'sha256-") == 1
    assert content_policy(alive=True).count("'sha256-") == 2
    assert "unsafe-eval" not in content_policy(alive=True)


def test_a_page_says_once_what_its_answer_says():
    """Sentences of the answer and titles of figures go from the findings; the rest stays."""
    from nbformat import v4

    from batchgauge.reporting.page import page_of

    def output(kind, text="", **more):
        return v4.new_output(
            "display_data", {"text/markdown": text, "text/plain": text},
            metadata={"batchgauge": {"kind": kind, **more}},
        )  # fmt: skip

    outputs = [
        output("figure", title="Four take 2 ms", file="figures/a.png"),
        output("finding", "Four take 2 ms. Eight take 3 ms."),
        output("finding", "It pays."),
        output("finding", "- It pays.\n- It pays."),
    ]
    notebook = v4.new_notebook(cells=[v4.new_code_cell("1", outputs=outputs)])
    facts = {
        "report": "a", "finished": "2026", "title": "t", "question": "q", "answer": "It pays. Run!",
        "profile": "smoke", "files": [],
    }  # fmt: skip
    shown, page = page_of(notebook, facts)
    said = [o.data["text/markdown"] for o in shown.cells[0].outputs]
    assert said == ["", "Eight take 3 ms.", "- It pays.\n- It pays."]
    assert page.answer == "It pays. Run!"
