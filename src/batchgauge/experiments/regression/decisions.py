"""The gate's decisions on this very code: unchanged, or slowed down on purpose, and its rates.

Both sides are copies of the package in trees of their own, as a comparison of revisions has
them. An injected slow-down is a busy wait that prolongs every timed stretch, or a change of the
code: turns of an empty loop in a function that the benchmark calls, as many as take that part
of its time here. Whole decisions are kept, with the conditions they were made under and the
log ratio of every round, so that they can be judged anew; `batchgauge gate-trial` collects them.
"""

from __future__ import annotations

import os
import re
import timeit
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from batchgauge import suite
from batchgauge.errors import UserError
from batchgauge.files import write_csv
from batchgauge.machine.identity import Run
from batchgauge.measuring.gate.judging import Change, Status
from batchgauge.measuring.gate.process import GatePlan, Side
from batchgauge.measuring.gate.revisions import PACKAGE, copy
from batchgauge.measuring.gate.rounds import GateResult, gate
from batchgauge.registry import weights_of
from batchgauge.statistics import clustered_proportion

# What the gate is tried on: cheap calls, a decision on which takes less than a minute.
CHEAP = (
    "tokenize/batch=32/chars=200,detokenize/batch=32/chars=200,statistics/items=1000,"
    "lookup/items=1000"
)
FILES = ("decisions.csv", "rounds.csv")
_ROUND = ["run_id", "decision", "benchmark", "number", "layout", "log_ratio", "base_ms", "new_ms"]
_TEXTS = {"run_id": str, "git_commit": str}  # 1558273e1849 is no number
PILOT = 0.25  # the change of code that tells how much a turn of the loop costs
Kind = Literal["none", "wait", "code"]

# part -> file of the package, class, method that every call of its benchmarks goes through
_CHANGED = {
    "tokenize": ("core/tokenizer/bpe_tokenizer.py", "BPETokenizer", "encode_many"),
    "detokenize": ("core/tokenizer/bpe_tokenizer.py", "BPETokenizer", "decode_many"),
    "statistics": ("request.py", "BatchStats", "from_durations"),
}
_MORE = """

def _slowed(inner, turns):
    method = isinstance(inner, classmethod)
    function = inner.__func__ if method else inner

    def slow(*args, **kwargs):
        for _ in range(turns):
            pass
        return function(*args, **kwargs)

    return classmethod(slow) if method else slow


{owner}.{method} = _slowed({owner}.__dict__["{method}"], {turns})
"""


@dataclass(frozen=True, slots=True)
class Injection:
    """What is done to the new side: nothing, a wait or a change of code; relative (0.05)."""

    kind: Kind = "none"
    slowdown: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Injection:
        """From `none`, or KIND=PERCENT as in `wait=5`. Raises UserError for anything else."""
        kind, _, percent = text.strip().partition("=")
        try:
            if kind == "none" and not percent:
                return cls()
            if kind in ("wait", "code") and 0 < float(percent) < 100:
                return cls("wait" if kind == "wait" else "code", float(percent) / 100.0)
        except ValueError:
            pass
        raise UserError(f"'{text}' is no injection; expected none, wait=PERCENT or code=PERCENT.")

    def __str__(self) -> str:
        return self.kind if self.kind == "none" else f"{self.kind}={100 * self.slowdown:g}"


def planned(patterns: str, options: Mapping[str, Any], **limits: Any) -> GatePlan:
    """What the gate measures of the benchmarks that match, within `limits` of its plan.

    `options` are the arguments of `suite.Subject`.
    """
    names = [b.name for b in suite.select(patterns)]
    return GatePlan(names, Path(suite.__file__), options, seed=int(options["seed"]), **limits)


def session(plan: GatePlan) -> Run:
    """A new run on this machine with the threads, seed and weights of a plan."""
    threads, weights = int(plan.options["threads"]), weights_of(plan.options["engine"])
    return Run.here(threads=threads, seed=plan.seed, weights=weights)


def collect(
    plan: GatePlan, injections: Sequence[Injection], run: Run, *, first: int = 0
) -> tuple[list[GateResult], pd.DataFrame, pd.DataFrame]:
    """Complete decisions of the gate in this session: results, one row a decision, one a round.

    They are numbered from `first` on.
    Raises UserError for a change of code where no benchmark of the plan can have one.
    """
    results, decisions, rounds, turns = [], [], [], dict[str, float]()
    package = Path(suite.__file__).parent
    with ExitStack() as stack:
        base, same = (stack.enter_context(copy(package, compiled=True)) for _ in range(2))
        for number, injection in enumerate(injections, first):
            names, new = plan.benchmarks, same
            if injection.kind == "code":
                turns = turns or _turns(base, package, plan)
                names = list(turns)
                new = stack.enter_context(copy(package, compiled=True))
                for name, whole in turns.items():
                    _change(new / PACKAGE, name, injection.slowdown * whole)
            slow = injection.slowdown if injection.kind == "wait" else 0.0
            seed = int(run.run_id, 16) % 2**32 + plan.seed + number  # other layouts every time
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else np.nan
            result = gate(
                Side("base", base / PACKAGE.parent),
                Side("new", new / PACKAGE.parent, slow),
                replace(plan, benchmarks=names, seed=seed),
            )
            about = {
                "run_id": run.run_id, "timestamp": run.timestamp, "decision": number,
                "injection": injection.kind, "slowdown": injection.slowdown,
            }  # fmt: skip
            conditions = {
                "load": load, "threads": run.threads, "git_commit": run.git_commit,
                "versions": run.versions, "machine": run.machine.describe(),
            }  # fmt: skip
            results.append(result)
            decisions += [{**about, **_row(c), **conditions} for c in result.changes]
            rounds += [{**about, **asdict(r), "layout": str(r.layout)} for r in result.rounds]
    return results, pd.DataFrame(decisions), pd.DataFrame(rounds)


def _row(change: Change) -> dict[str, Any]:
    kept = ("benchmark", "status", "fails", "change", "low", "high", "layout", "threshold")
    return {k: getattr(change, k) for k in (*kept, "blocks", "most", "seconds", "base_ms")}


def _changeable(plan: GatePlan) -> list[suite.Benchmark]:
    """The first benchmark of the plan of each part whose code can be changed."""
    first: dict[str, suite.Benchmark] = {}
    for benchmark in suite.select(",".join(plan.benchmarks)):
        if benchmark.part in _CHANGED:
            first.setdefault(benchmark.part, benchmark)
    if not first:
        raise UserError(f"Code is changed for {', '.join(_CHANGED)} only; none was selected.")
    return list(first.values())


def _turns(base: Path, package: Path, plan: GatePlan) -> dict[str, float]:
    """How many turns of the loop take as long as a call, of each benchmark that can be changed.

    First by loops and calls here, in turn, then by what the gate sees of a change of `PILOT`:
    calls of its workers do not take as long as calls here.
    """
    turns, calls, found = 100_000, 20, dict[str, float]()

    def loop() -> None:
        for _ in range(turns):
            pass

    with copy(package, compiled=True) as tree:
        for benchmark in _changeable(plan):
            call = benchmark.prepare(suite.Subject(**plan.options)).call
            times = [
                (timeit.timeit(loop, number=1), timeit.timeit(call, number=calls))
                for _ in range(50)
            ]
            each, one = np.median(times, axis=0) / (turns, calls)
            found[benchmark.name] = one / each
            _change(tree / PACKAGE, benchmark.name, PILOT * found[benchmark.name])
        seen = gate(
            Side("base", base / PACKAGE.parent), Side("new", tree / PACKAGE.parent),
            replace(plan, benchmarks=list(found)),
        )  # fmt: skip
    least = PILOT / 4  # where noise hides the pilot, it is not made many times as large
    return {c.benchmark: found[c.benchmark] * PILOT / max(c.change, least) for c in seen.changes}


def _change(package: Path, name: str, turns: float) -> None:
    """Change a tree's code so that a call of a benchmark runs so many turns of the loop."""
    file_name, owner, method = _CHANGED[suite.select(name)[0].part]
    with (package / file_name).open("a", encoding="utf-8") as file:
        file.write(_MORE.format(owner=owner, method=method, turns=round(turns)))


def rates(
    decisions: pd.DataFrame, *, by: Sequence[str] = ("slowdown", "benchmark")
) -> pd.DataFrame:
    """How often the gate fails, a row a group: runs, decisions, failed, rate, low, high, seconds.

    It fails what is slower, and what does other work. Also how many decisions of each verdict.
    Intervals are over runs.
    """
    rows = []
    for key, group in decisions.groupby(list(by), sort=False):
        runs = group["fails"].astype(bool).groupby(group["run_id"])
        rate = clustered_proportion(runs.sum(), runs.count())
        statuses = {
            re.sub(r"\W+", "_", s): int((group["status"] == s).sum()) for s in get_args(Status)
        }
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "runs": runs.ngroups, "decisions": len(group), "failed": int(runs.sum().sum()),
                "rate": rate.value, "low": rate.low, "high": rate.high,
                "seconds": float(group["seconds"].mean()), "most_seconds": group["seconds"].max(),
                **statuses,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values(list(by), kind="stable", ignore_index=True)


def recorded(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The decisions and rounds that `append` wrote there; empty when there are none yet."""
    frames = [
        pd.read_csv(p, dtype=_TEXTS) if (p := folder / n).is_file() else pd.DataFrame()
        for n in FILES
    ]
    return frames[0], frames[1]


def append(decisions: pd.DataFrame, rounds: pd.DataFrame, folder: Path) -> None:
    """Add decisions and their rounds to the files in `folder`; rounds repeat nothing of theirs."""
    rounds = rounds[_ROUND].round({"log_ratio": 6, "base_ms": 6, "new_ms": 6})
    for name, before, new in zip(FILES, recorded(folder), (decisions, rounds), strict=True):
        write_csv(pd.concat([before, new], ignore_index=True), folder / name)
