"""How the advice did in the runs on record, on this engine and on others.

Every run of the notebook adds its row to the table that it finds in the folder it writes to.
So another engine's exam joins the page where the notebook runs once with that engine, and then
again with the one that the page is about.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from batchgauge.experiments.batch_sizing.bench import Bench
from batchgauge.experiments.batch_sizing.sentences import ours_and_best_other
from batchgauge.experiments.context import Context
from batchgauge.machine.identity import Machine
from batchgauge.reporting import Report, Section
from batchgauge.reporting.model import short
from batchgauge.text import counted, percent

MOST = 40  # runs of one engine that are kept
COLUMNS = (
    *("finished", "engine", "model", "weights", "threads", "profile", "machine", "exam_seed"),
    *("scenarios", "median_score", "p10_score", "broken_share"),
    *("rule", "rule_median_score", "rule_p10_score"),
)
_ENGINE = ["engine", "model", "weights", "threads"]


def on_record(report: Report, context: Context, bench: Bench, strategies: Section) -> Section:
    """This run beside earlier ones of its profile; nothing where it could not be judged."""
    if strategies.shown is None:
        return Section("exams", {})
    ours, rule = ours_and_best_other(strategies.shown)
    row = {
        **context.columns,
        **ours,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": context.engine_name, "model": short(report.model),
        "profile": report.budget.name,
        "machine": Machine.here().describe(), "exam_seed": bench.exam_seed,
        "broken_share": ours["late_share"] + ours["over_memory_share"],
        "rule": rule["strategy"],
        **{f"rule_{name}": rule[name] for name in ("median_score", "p10_score")},
    }  # fmt: skip
    return summary(recorded(report.out_dir / "data" / f"{report.name}_exams.csv"), row)


def recorded(path: Path) -> pd.DataFrame:
    """The rows of a table of exams; none where there is no such file, or another one."""
    try:
        found = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError):
        return pd.DataFrame()
    return found if list(found.columns) == list(COLUMNS) else pd.DataFrame()


def summary(before: pd.DataFrame, row: dict[str, object]) -> Section:
    """All exams with a new one; in words the last of each engine on its machine and profile."""
    every = pd.concat([before, pd.DataFrame([row])[list(COLUMNS)]], ignore_index=True)
    every = every.groupby(_ENGINE, sort=False).tail(MOST)
    like = ["profile", "machine"]
    shown = every[(every[like] == [row[name] for name in like]).all(axis=1)]
    said = []
    for (engine, _, weights, threads), runs in shown.groupby(_ENGINE, sort=False):
        last = runs.iloc[-1]
        how = ", ".join(filter(None, (str(weights), f"{threads} thr.")))
        said.append(
            f"'{engine}' ({how}) {last['median_score']:.2f}, worst tenth {last['p10_score']:.2f}, "
            f"budgets broken in {percent(last['broken_share'], 1)} "
            f"({counted(int(last['scenarios']), 'scenario')}, {counted(len(runs), 'run')})"
        )
    finding = f"On record, median score of each engine's last exam: {'; '.join(said)}."
    if len(shown) < 2:
        finding = (
            "No other exam of this machine is on record: run this notebook with another engine, "
            "and then again with this one."
        )
    caption = "Exams on record, one row a run; 'rule' is the fixed-size rule with the best tenth."
    return Section("exams", {"exams": every}, finding, shown, caption)
