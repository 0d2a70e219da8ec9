"""The gate: stored runs, two revisions in turn, and the gate's error rates."""

import json
import math
import os
import re
import subprocess
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner

from batchgauge import suite
from batchgauge.errors import UserError
from batchgauge.experiments.regression.commands import bench, compare
from batchgauge.experiments.regression.exports import FORMATS, rendered
from batchgauge.files import write_csv
from batchgauge.measuring import Run, to_frame
from batchgauge.measuring.gate.compare import compare_runs
from batchgauge.measuring.gate.judging import (
    change_of,
    changed_work,
    conclusion,
    exit_code,
    false_alarms,
    frame_of,
)
from batchgauge.measuring.gate.process import GatePlan, ProcessLayout, Side
from batchgauge.measuring.gate.revisions import check_clean, copy, repository, resolve, worktree
from batchgauge.measuring.gate.rounds import gate
from batchgauge.measuring.gate.sequential import SequentialDesign
from batchgauge.measuring.record import Sample
from batchgauge.text import percent

SOURCE = Path(suite.__file__).parents[1]


def stored(factor=1.0, *, seed=0, noise=0.01, blocks=30, workload="w", counters='{"tokens": 50}'):
    """An invented run: two benchmarks, the second slowed down by `factor`."""
    rng = np.random.default_rng(seed)
    samples = [
        Sample(name, "numpy", "tokenize", 1, "{}", 0, block, 0, False, 1,
               float(ms * np.exp(rng.normal(0, noise))), 1.0, 2, 50, counters)
        for name, ms in (("still", 3.0), ("changed", 5.0 * factor))
        for block in range(blocks)
    ]  # fmt: skip
    return to_frame(samples, Run.here(workload=workload))


def test_a_slow_down_between_files_is_found():
    """20 % slower is slower in that benchmark alone; 20 % faster is none."""
    changes = {c.benchmark: c for c in compare_runs(stored(), stored(1.2, seed=1))}
    assert changes["changed"].status == "slower"
    assert changes["changed"].low < 0.2 < changes["changed"].high
    assert changes["still"].status == "no change seen"
    assert exit_code(list(changes.values())) == 1
    faster = compare_runs(stored(), stored(0.8, seed=1))
    assert [c.status for c in faster] == ["no change seen", "faster"]
    assert exit_code(faster) == 0


def test_thresholds_per_benchmark():
    """A benchmark with a threshold of 30 % of its own lets 20 % pass."""
    changes = compare_runs(stored(), stored(1.2, seed=1), thresholds={"changed": 0.3})
    assert exit_code(changes) == 0


def test_a_burst_in_one_half_is_not_confirmed():
    """A slow-down in the second half only does not fail; it could not be seen."""
    new = stored(seed=1, blocks=40)
    late = (new["benchmark"] == "changed") & (new["block"] >= 20)
    new.loc[late, "wall_ms"] *= 1.5
    changed = compare_runs(stored(blocks=40), new)[1]
    assert changed.status == "could not see"


def test_noise_makes_it_inconclusive():
    """A run whose noise hides any change of interest says so."""
    changes = compare_runs(stored(noise=0.5, blocks=6), stored(noise=0.5, blocks=6, seed=1))
    assert changes[1].status == "could not see"
    assert exit_code(changes) == 0
    assert exit_code(changes, blind_fails=True) == 2
    assert "2 of 2 could not be seen: still, changed." in conclusion(changes)


def test_ten_comparisons_of_the_same_give_no_alarm():
    """The same A/A comparison, ten times with other noise: none fails."""
    for seed in range(10):
        assert exit_code(compare_runs(stored(seed=seed), stored(seed=100 + seed))) == 0


def test_changed_work_is_a_signal_of_its_own():
    """Other counters fail without any change of time; bytes may move by 1 %."""
    changes = compare_runs(stored(), stored(seed=1, counters='{"tokens": 51}'))
    assert changes[0].work == "tokens 50 → 51"
    assert exit_code(changes) == 1
    assert changed_work({"peak_bytes": 1e7}, {"peak_bytes": 1.009e7}) == ""
    assert changed_work({"peak_bytes": 1e7}, {"peak_bytes": 1.011e7}) != ""
    assert changed_work({"peak_bytes": 1e6}, {"peak_bytes": 0.5e6}) == ""  # less is no alarm
    assert changed_work({"peak_bytes": 100.0}, {"peak_bytes": 9e3}) == ""  # less than 16 KiB
    assert changed_work({"padded_positions": 9.0}, {"padded_positions": 5.0}) == ""
    assert changed_work({"padded_positions": 5.0}, {"padded_positions": 9.0}) != ""
    assert changed_work({"decode_steps": 5.0}, {"decode_steps": 4.0}) != ""
    assert changed_work({"instructions": 1000.0}, {"instructions": 1011.0}) != ""


def test_runs_that_do_not_compare():
    """Another machine, workload, or no common benchmark: exit code 2, one sentence."""
    base = stored()
    for new, word in (
        (stored(workload="other"), "workloads"),
        (base.assign(machine="another"), "machines"),
        (base.assign(benchmark="unknown"), "in common"),
        (base.groupby("benchmark").head(1), "one sample"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            compare_runs(base, new)
        assert caught.value.exit_code == 2
    assert compare_runs(base, base.assign(machine="another"), allow_other_machine=True)


@pytest.mark.parametrize("form", FORMATS)
def test_compare_command(tmp_path, form):
    """The command prints every format and exits with 0 or 1."""
    base = write_csv(stored(), tmp_path / "base.csv")
    slow = write_csv(stored(1.2, seed=1), tmp_path / "slow.csv")
    fine = CliRunner().invoke(compare, [str(base), str(base), "--format", form])
    assert fine.exit_code == 0, fine.output
    red = CliRunner().invoke(compare, [str(base), str(slow), "--format", form])
    assert red.exit_code == 1
    said = {"bencher": '"changed": {\n    "latency"'}.get(form, "slower")  # it has no verdicts
    assert said in red.output
    assert "slower" not in fine.output
    assert "1 of 2 benchmarks fail: changed." in red.output


def test_exported_times_are_those_measured():
    """Of the change, whatever the ratio of rounds; the interval is the ratio's, around it."""
    seen = replace(change(noise(0.01, 16)), change=0.1, low=0.05, high=0.21, base_ms=1, new_ms=3.3)
    latency = json.loads(rendered([seen], "bencher"))["x"]["latency"]
    assert latency == pytest.approx({"value": 3.3e6, "lower_value": 3.15e6, "upper_value": 3.63e6})
    (entry,) = json.loads(rendered([seen], "github-action-benchmark"))
    assert (entry["value"], entry["range"]) == (3.3, "± 0.24")


def test_exports_are_what_ci_systems_read(tmp_path):
    """Bencher's map in ns, github-action-benchmark's list in ms, a comment; written to files."""
    base, slow = (
        write_csv(stored(f, seed=k), tmp_path / f"{k}.csv") for k, f in ((0, 1), (1, 1.2))
    )
    places = {form: tmp_path / form for form in ("bencher", "github-action-benchmark", "comment")}
    wanted = [part for f, p in places.items() for part in ("--export", f"{f}={p}")]
    assert CliRunner().invoke(compare, [str(base), str(slow), *wanted]).exit_code == 1
    bencher = json.loads(places["bencher"].read_text())
    latency = bencher["changed"]["latency"]
    assert set(latency) == {"value", "lower_value", "upper_value"}
    assert latency["lower_value"] < latency["value"] < latency["upper_value"]
    assert latency["value"] == pytest.approx(6e6, rel=0.02)  # 6 ms of one call
    entries = json.loads(places["github-action-benchmark"].read_text())
    assert [e["name"] for e in entries] == ["still", "changed"]
    assert entries[1]["unit"] == "ms/call"
    assert entries[1]["value"] == pytest.approx(6.0, rel=0.02)
    comment = places["comment"].read_text()
    assert comment.startswith("### Regression gate\n\n1 of 2 benchmarks fail: changed.")
    assert "- changed: slower, +" in comment
    for bad in ("pdf=x", "json="):
        refused = CliRunner().invoke(compare, [str(base), str(slow), "--export", bad])
        assert isinstance(refused.exception, UserError)


@pytest.mark.parametrize(
    ("flags", "ci", "code"),
    [([], "", 0), ([], "true", 2), (["--blind", "pass"], "true", 0), (["--blind", "fail"], "", 2)],
)
def test_blindness_fails_where_it_is_asked_to(tmp_path, monkeypatch, flags, ci, code):
    """Noise that hides anything exits with 2 in CI, with 0 elsewhere; the flag says otherwise."""
    monkeypatch.setenv("CI", ci)
    sides = [
        str(write_csv(stored(noise=0.5, blocks=6, seed=k), tmp_path / f"{k}.csv")) for k in (0, 1)
    ]
    done = CliRunner().invoke(compare, [*sides, *flags])
    assert done.exit_code == code, done.output
    assert "could not be seen" in done.output
    assert "None of" not in done.output


def test_bench_lists_the_suite():
    """`bench --list` names every benchmark that matches, and runs nothing."""
    shown = CliRunner().invoke(bench, ["--list", "-k", "lookup/*"])
    assert shown.exit_code == 0
    assert shown.output.count("lookup/items=") == 3


def test_the_suite_is_wide():
    """At least 24 benchmarks, each name once, and no part without one."""
    names = [b.name for b in suite.BENCHMARKS]
    assert len(set(names)) == len(names) >= 24
    assert {b.part for b in suite.BENCHMARKS} == set(get_args(suite.Part))
    assert [b.name for b in suite.select("lookup/items=1000")] == ["lookup/items=1000"]
    with pytest.raises(UserError, match="No benchmark"):
        suite.select("nothing-like-this")


def change(ratios, threshold=0.01):
    """The verdict on invented log ratios."""
    return change_of("x", np.asarray(ratios), SequentialDesign(len(ratios), threshold))


def noise(spread, rounds=40, seed=0):
    """Invented log ratios of rounds in which nothing changed, whose middle is zero."""
    drawn = np.random.default_rng(seed).normal(0, spread, rounds)
    return drawn - drawn.mean()


def test_every_verdict():
    """From surely slower to surely faster, and what could not be seen."""
    quiet = noise(0.01)
    assert change(quiet + math.log1p(0.05)).verdict == "slower"
    assert change(quiet + math.log1p(0.008)).verdict == "slower, but within the threshold"
    assert change(quiet + math.log1p(0.05), threshold=0.1).status.endswith("within the threshold")
    assert change(quiet).verdict == "no change seen"
    assert change(quiet + math.log1p(-0.05)).verdict == "faster"
    blind = change(noise(0.3))
    assert blind.verdict == "could not see"
    assert (blind.fails, blind.blind) == (False, True)


def test_processes_that_are_slow_for_life_are_no_regression():
    """One side's processes more often in a slow layout: layout-sensitive, with its size."""
    ratios = noise(0.004, 48)
    ratios[:20] += 0.11
    seen = change(ratios)
    assert seen.verdict == f"layout-sensitive ± {percent(seen.layout, 1)}"
    assert 0.04 < seen.layout < 0.07
    assert not seen.fails
    ratios = noise(0.004, 48)
    ratios[:8] += 0.11
    ratios[8:16] -= 0.11
    assert change(ratios).status == "layout-sensitive"
    assert change(ratios + math.log1p(0.05)).status == "slower"  # all modes moved


def test_the_false_alarm_rate_is_a_pull_requests():
    """Over all benchmarks it ran: that of many is more than that of one; none where unknown."""
    one = change(noise(0.03, 16))
    assert 0.0 < one.false_alarm < 0.01
    single, many = false_alarms([one]), false_alarms([one] * 10)
    assert one.false_alarm < 5e-5
    assert "fails in less than 0.01 % of cases" in single
    assert f"fails in {percent(1 - (1 - one.false_alarm) ** 10, 2)} of cases" in many
    assert "over 10 benchmarks" in many
    assert false_alarms(compare_runs(stored(), stored(seed=1))) == ""


def test_rounds_differ_in_what_is_irrelevant():
    """Layouts vary from round to round, in everything, and are those of their seed."""
    layouts = [ProcessLayout.of(0, number) for number in range(20)]
    for name in ("padding", "path", "hash_seed", "order"):
        assert len({getattr(layout, name) for layout in layouts}) > 10
    assert layouts == [ProcessLayout.of(0, number) for number in range(20)]


def _repository(folder, body):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
            check=True, capture_output=True,
        )  # fmt: skip

    package = folder / "src" / "batchgauge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "work.py").write_text(body)
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    return package


def test_worktrees_come_and_go(tmp_path):
    """A revision is checked out beside the tree and leaves nothing; unknown ones are refused."""
    package = _repository(tmp_path, "n = 1\n")
    assert repository(package) == tmp_path.resolve()
    with worktree(tmp_path, "HEAD") as tree:
        assert (tree / "src/batchgauge/work.py").read_text() == "n = 1\n"
    assert not tree.exists()
    listed = subprocess.run(
        ["git", "-C", str(tmp_path), "worktree", "list"], capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 1
    for bad in ("nothing", "--help", ""):
        with pytest.raises(UserError, match="unknown"):
            resolve(tmp_path, bad)
    with copy(package) as tree, worktree(tmp_path, "HEAD") as other:
        assert (tree / "src/batchgauge/work.py").read_text() == "n = 1\n"
        assert len(str(tree)) == len(str(other))
    assert not tree.exists()
    check_clean(tmp_path)
    (package / "work.py").write_text("n = 2\n")
    with pytest.raises(UserError, match="allow-dirty"):
        check_clean(tmp_path)
    assert (package / "work.py").read_text() == "n = 2\n"


SUITE = textwrap.dedent(
    """
    from types import SimpleNamespace as S
    from batchgauge.work import n

    def Subject(**_):
        return None

    def prepare(_):
        return S(call=lambda: sum(range(n)), items=1, tokens=0, counters={"n": n // 10**9})

    def broken(_):
        raise ValueError("not here")

    more = dict(part="statistics", batch_size=1, parameters={})
    BENCHMARKS = [S(name="sum", prepare=prepare, **more), S(name="bad", prepare=broken, **more)]
    """
)


def test_two_revisions_in_turn(tmp_path):
    """Fifty times the work in the other tree is slower, seen early; what cannot run is said."""
    sides = []
    for name, n in (("old", 20_000), ("new", 1_000_000)):
        folder = tmp_path / name
        _repository(folder, f"n = {n}\n")
        sides.append(Side(name, folder / "src"))
    (tmp_path / "suite.py").write_text(SUITE)
    plan = GatePlan(
        ["sum", "bad"], tmp_path / "suite.py", {}, seconds=600, rounds=24, progress=False
    )
    result = gate(sides[0], sides[1], plan)
    (seen,) = result.changes
    assert seen.status == "slower"
    assert seen.change > 10
    assert 8 <= seen.blocks < seen.most == 24
    assert [r.number for r in result.rounds] == list(range(1, seen.blocks + 1))
    assert len({r.layout for r in result.rounds}) == seen.blocks
    assert "not here" in result.problems["bad"]
    assert {s.implementation for s in result.samples} == {"base", "new"}
    assert {s.process for s in result.samples} == set(range(1, seen.blocks + 1))
    first = [s.implementation for s in result.samples if s.position == 0 and s.block == 0]
    assert first == (["base", "new"] * 12)[: seen.blocks]  # the order alternates
    assert "slower" in rendered(result.changes, "markdown")
    assert frame_of(result.changes)["fails"].tolist() == [True]


def test_workers_have_the_layout_of_their_round(tmp_path):
    """Both sides: the same bytes of environment, length of path and hash seed; other next round."""
    for name in ("base", "new"):
        _repository(tmp_path / name, "n = 1000\n")
    (tmp_path / "suite.py").write_text(
        SUITE + "import os\nprint(hash('a'), len(os.environ['PYTHONPATH']), len(os.environ"
        "['BATCHGAUGE_GATE_PADDING']), file=open(os.environ['SEEN'], 'a'))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEEN", str(tmp_path / "seen"))
        plan = GatePlan(["sum"], tmp_path / "suite.py", {}, rounds=8, progress=False)
        base, new = (Side(name, tmp_path / name / "src") for name in ("base", "new"))
        gate(base, new, plan)
    lines = (tmp_path / "seen").read_text().splitlines()
    pairs = [set(lines[i : i + 2]) for i in range(0, len(lines), 2)]
    assert [len(pair) for pair in pairs] == [1] * 9  # eight rounds, and one that compiles
    for column in range(3):
        assert len({pair.copy().pop().split()[column] for pair in pairs}) > 5


def test_a_benchmark_may_have_its_own_threshold():
    """A plan's threshold holds for all but the benchmarks that have their own."""
    plan = GatePlan(["a", "b"], Path("suite.py"), {}, threshold=0.02, thresholds={"b": 0.2})
    assert [plan.design(name, 30).threshold for name in plan.benchmarks] == [0.02, 0.2]
    assert [plan.design("a", fit).most for fit in (-5, 30, 1000)] == [8, 30, 128]


def test_a_worker_that_dies_is_said(tmp_path):
    """A tree that cannot be imported ends with its own last words."""
    _repository(tmp_path / "broken", "raise RuntimeError('will not start')\n")
    (tmp_path / "suite.py").write_text(SUITE)
    side = Side("broken", tmp_path / "broken" / "src")
    plan = GatePlan(["sum"], tmp_path / "suite.py", {}, progress=False)
    with pytest.raises(UserError, match="will not start"):
        gate(side, side, plan)


@pytest.mark.skipif(
    "BATCHGAUGE_TIMING" not in os.environ,
    reason="a timing; set BATCHGAUGE_TIMING on a quiet machine",
)
def test_an_injected_ten_percent_is_found():
    """This checkout against itself, one side slowed down by 10 %: found for the tokenizer."""
    plan = GatePlan(["tokenize/batch=32/chars=200"], Path(suite.__file__), {}, progress=False)
    result = gate(Side("this", SOURCE), Side("slowed", SOURCE, 0.10), plan)
    assert result.changes[0].status == "slower"


def test_ci_gates_prefill_and_decode():
    """The workflow's patterns select benchmarks of both, and of what is cheap."""
    workflow = Path(__file__).parents[1] / ".github" / "workflows" / "gate.yml"
    (patterns,) = re.findall(r"-k '([^']+)'", workflow.read_text())
    parts = {b.part for b in suite.select(patterns)}
    assert {"prefill", "decode", "tokenize", "detokenize", "statistics", "lookup"} <= parts
