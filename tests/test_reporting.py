"""Tables, scores, parameters, profiles, plots and the command line: what needs no kernel."""

from __future__ import annotations

import json
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from batchgauge import cli
from batchgauge.errors import UserError
from batchgauge.reporting import Report, Score, plots, profile_named, tables
from batchgauge.reporting.index import first_sentence
from batchgauge.reporting.parameters import Parameter, check_injected, declarations, typed
from batchgauge.text import Markdown

mpl.use("agg")


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
        (math.inf, "∞"),
        (True, "yes"),
        ("text", "text"),
    ],
)
def test_numbers_are_rounded_to_three_figures(value, shown):
    """Integers stay whole, reals keep three figures, what is missing is a dash."""
    assert tables.number(value) == shown


def test_headings_carry_their_unit():
    """A column's unit moves from the end of its name into brackets."""
    assert tables.heading("kv_cache_bytes") == "KV cache (bytes)"
    assert tables.heading("decode_tokens_per_s") == "decode (tokens/s)"
    assert tables.heading("ttft_ms") == "TTFT (ms)"
    assert tables.heading("class") == "class"


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
    assert not (tmp_path / "data").exists()


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


def test_colours_are_stable():
    """The same implementation has the same colour and marker everywhere, a stranger too."""
    assert plots.colour("numpy") != plots.colour("baseline")
    assert plots.colour("sentencepiece:/a/b.model") == plots.colour("sentencepiece")
    assert plots.colour("mine:factory") == plots.colour("mine:factory")
    assert plots.marker("numpy") != plots.marker("baseline")


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
    ],
)
def test_bad_input_is_one_sentence_on_standard_error(arguments, monkeypatch, capsys):
    """Exit code 2, one line, no traceback."""
    monkeypatch.setattr("sys.argv", ["batchgauge", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said.startswith("batchgauge: ")
    assert len(said.strip().splitlines()) == 1
