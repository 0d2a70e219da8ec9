"""The gate: stored runs, two revisions in turn, and the gate's error rates."""

import math
import os
import subprocess
import textwrap
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from batchgauge import suite
from batchgauge.errors import UserError
from batchgauge.experiments.regression.commands import bench, compare, rendered
from batchgauge.experiments.regression.runs import trial
from batchgauge.files import write_csv
from batchgauge.measuring import Run, to_frame
from batchgauge.measuring.gate.compare import changed_work, compare_runs, exit_code, frame_of
from batchgauge.measuring.gate.process import GatePlan, Side
from batchgauge.measuring.gate.revisions import check_clean, repository, resolve, worktree
from batchgauge.measuring.gate.rounds import Evidence, GateResult, decide, gate, is_clear
from batchgauge.measuring.gate.trial import simulate
from batchgauge.measuring.record import Sample

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


def test_a_slow_down_between_files_is_a_regression():
    """20 % slower is a regression in that benchmark alone; 20 % faster is none."""
    changes = {c.benchmark: c for c in compare_runs(stored(), stored(1.2, seed=1))}
    assert changes["changed"].status == "regression"
    assert changes["changed"].low < 0.2 < changes["changed"].high
    assert changes["still"].status == "no significant difference"
    assert exit_code(list(changes.values())) == 1
    faster = compare_runs(stored(), stored(0.8, seed=1))
    assert [c.status for c in faster] == ["no significant difference", "faster"]
    assert exit_code(faster) == 0


def test_thresholds_per_benchmark():
    """A benchmark with a threshold of 30 % of its own lets 20 % pass."""
    changes = compare_runs(stored(), stored(1.2, seed=1), thresholds={"changed": 0.3})
    assert exit_code(changes) == 0


def test_a_burst_in_one_half_is_not_confirmed():
    """A slow-down seen in the second half only does not fail."""
    new = stored(seed=1, blocks=40)
    late = (new["benchmark"] == "changed") & (new["block"] >= 20)
    new.loc[late, "wall_ms"] *= 1.5
    changed = compare_runs(stored(blocks=40), new)[1]
    assert changed.status != "regression"


def test_noise_makes_it_inconclusive():
    """A run whose noise hides any change of interest says so."""
    changes = compare_runs(stored(noise=0.5, blocks=6), stored(noise=0.5, blocks=6, seed=1))
    assert changes[1].status == "inconclusive"


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


@pytest.mark.parametrize("form", ["table", "markdown", "json", "csv"])
def test_compare_command(tmp_path, form):
    """The command prints every format and exits with 0 or 1."""
    base = write_csv(stored(), tmp_path / "base.csv")
    slow = write_csv(stored(1.2, seed=1), tmp_path / "slow.csv")
    fine = CliRunner().invoke(compare, [str(base), str(base), "--format", form])
    assert fine.exit_code == 0, fine.output
    red = CliRunner().invoke(compare, [str(base), str(slow), "--format", form])
    assert red.exit_code == 1
    assert "regression" in red.output
    assert "1 of 2 benchmarks fail: changed." in red.output


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


def evidence(shift, spread, processes=12, seed=0):
    """Invented process rounds around a slow-down."""
    rng = np.random.default_rng(seed)
    ratios, aa_ratios = rng.normal(0, spread, (2, processes))
    return Evidence(ratios + math.log1p(shift), aa_ratios, ({}, {}))


def test_the_gate_wants_it_twice():
    """10 % in two rounds is a regression; in one of two it is not confirmed."""
    slow, same = evidence(0.1, 0.01), evidence(0.0, 0.01, seed=1)
    assert decide("x", [slow, evidence(0.1, 0.01, seed=2)], 0.02).status == "regression"
    assert decide("x", [slow, same], 0.02).status == "slower, not confirmed"
    assert decide("x", [same], 0.02).status == "no significant difference"
    assert decide("x", [evidence(-0.2, 0.01)], 0.02).status == "faster"


def test_each_round_is_held_against_its_own_noise_floor():
    """A first round that ended early, and is noisy for that, does not hide what both show."""
    rng = np.random.default_rng(3)
    noisy = Evidence(rng.normal(0.3, 0.01, 10), rng.normal(0, 0.3, 10), ({}, {}))
    calm = Evidence(rng.normal(0.1, 0.01, 10), rng.normal(0, 0.01, 10), ({}, {}))
    assert noisy.half_width > calm.estimate.value
    assert decide("x", [noisy, calm], 0.02).status == "regression"


def test_a_round_ends_when_its_answer_is_clear():
    """Surely slower and surely not are clear, in between is not; there is a first look."""
    assert is_clear(evidence(0.1, 0.01), 0.02)
    assert is_clear(evidence(0.0, 0.01), 0.02)
    assert not is_clear(evidence(0.02, 0.03), 0.02)
    plan = GatePlan([], Path(), {}, least=10)
    assert [n for n in range(2, 20) if plan.is_look(n)] == [10, 14, 18]
    assert not plan.is_over(5, 1e9)
    assert plan.is_over(6, 1e9)
    assert not plan.is_over(60, plan.seconds)


def test_clear_answers_end_a_real_round_early(tmp_path):
    """Fifty times the work needs no more than the least number of process rounds, twice."""
    sides = []
    for name, n in (("old", 20_000), ("new", 1_000_000)):
        _repository(tmp_path / name, f"n = {n}\n")
        sides.append(Side(name, tmp_path / name / "src"))
    (tmp_path / "suite.py").write_text(SUITE)
    plan = GatePlan(
        ["sum"], tmp_path / "suite.py", {}, seconds=9, processes=30, least=3, progress=False
    )
    result = gate(sides[0], sides[1], plan)
    assert result.changes[0].status == "regression"
    assert [e.ratios.size for e in result.evidence["sum"]] == [3, 3]


def test_the_simulated_gate_meets_its_goals_at_one_percent_noise():
    """With noise of 1.5 % a round: no alarm in 200, 10 % nearly always, 5 % mostly found."""
    noise = np.random.default_rng(0).normal(0, 0.015, 60)
    table = simulate(noise, trials=200, thresholds=(0.02,), slowdowns=(0.0, 0.05, 0.1))
    rates = dict(zip(table["slowdown"], table["rate"], strict=True))
    assert rates[0.0] <= 0.01
    assert rates[0.1] >= 0.95
    assert rates[0.05] >= 0.8
    with pytest.raises(UserError, match="4 or more"):
        simulate([0.0])


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
    """Fifty times the work in the other tree is a regression; what cannot run is said."""
    sides = []
    for name, n in (("old", 20_000), ("new", 1_000_000)):
        folder = tmp_path / name
        _repository(folder, f"n = {n}\n")
        sides.append(Side(name, folder / "src"))
    (tmp_path / "suite.py").write_text(SUITE)
    plan = GatePlan(
        ["sum", "bad"], tmp_path / "suite.py", {}, seconds=0.6, processes=4, progress=False
    )
    result = gate(sides[0], sides[1], plan)
    assert [c.status for c in result.changes] == ["regression"]
    assert result.changes[0].change > 0.5
    assert "not here" in result.problems["bad"]
    assert {s.process for s in result.samples} == set(range(8))
    assert "regression" in rendered(result.changes, "markdown")
    assert frame_of(result.changes)["fails"].tolist() == [True]


def test_a_benchmark_may_have_its_own_threshold():
    """A plan's threshold holds for all but the benchmarks that have their own."""
    plan = GatePlan(["a", "b"], Path("suite.py"), {}, threshold=0.02, thresholds={"b": 0.2})
    assert [plan.threshold_of(name) for name in plan.benchmarks] == [0.02, 0.2]


def test_a_worker_that_dies_is_said(tmp_path):
    """A tree that cannot be imported ends with its own last words."""
    _repository(tmp_path / "broken", "raise RuntimeError('will not start')\n")
    (tmp_path / "suite.py").write_text(SUITE)
    side = Side("broken", tmp_path / "broken" / "src")
    plan = GatePlan(["sum"], tmp_path / "suite.py", {}, seconds=1, processes=2, progress=False)
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
    assert result.changes[0].status == "regression"


def test_the_trial_of_several_benchmarks_is_that_of_each():
    """Simulated side by side in processes, a benchmark's rates are those it has alone."""
    rng = np.random.default_rng(0)
    evidence = {
        name: [Evidence(rng.normal(0, noise, 6), rng.normal(0, noise, 6), ({}, {}), seconds=2.0)]
        for name, noise in (("calm", 0.001), ("noisy", 0.2))
    }
    both = trial(GateResult([], [], evidence, {}), trials=6, seed=1)
    alone = [trial(GateResult([], [], {n: e}, {}), trials=6, seed=1) for n, e in evidence.items()]
    pd.testing.assert_frame_equal(both, pd.concat(alone, ignore_index=True))
    certain = both[(both["slowdown"] == 0.20) & (both["threshold"] == 0.02)]
    calm, noisy = certain["rate"].tolist()
    assert certain["benchmark"].tolist() == ["calm", "noisy"]
    assert calm == 1.0
    assert noisy < 1.0
