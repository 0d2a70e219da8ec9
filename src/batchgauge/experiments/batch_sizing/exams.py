"""How the advice did in the runs on record, on this engine and on others.

Every run of the notebook adds its row to the table that it finds in the folder it writes to.
So another engine's exam joins the page where the notebook runs once with that engine, and then
again with the one that the page is about.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd

from batchgauge.experiments.batch_sizing.bench import Bench
from batchgauge.experiments.batch_sizing.sentences import ours_and_best_other
from batchgauge.experiments.context import Context
from batchgauge.machine.identity import Machine
from batchgauge.reporting import Report, Section
from batchgauge.text import counted, percent

MOST = 40  # runs of one engine that are kept
COLUMNS = (
    *("finished", "engine", "weights", "threads", "profile", "machine", "exam_seed"),
    *("scenarios", "median_score", "p10_score", "broken_share"),
    *("rule", "rule_median_score", "rule_p10_score"),
)
_ENGINE = ["engine", "weights", "threads"]


def on_record(report: Report, context: Context, bench: Bench, strategies: Section) -> Section:
    """This run beside earlier ones of its profile; nothing where it could not be judged."""
    if strategies.shown is None:
        return Section("exams", {})
    ours, rule = ours_and_best_other(strategies.shown)
    row = {
        **context.columns,
        **ours,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": context.engine_name, "profile": report.budget.name,
        "machine": Machine.here().describe(), "exam_seed": bench.exam_seed,
        "broken_share": ours["late_share"] + ours["over_memory_share"],
        "rule": rule["strategy"],
        **{f"rule_{name}": rule[name] for name in ("median_score", "p10_score")},
    }  # fmt: skip
    before = report.out_dir / "data" / f"{report.name}_exams.csv"
    return summary(pd.read_csv(before) if before.is_file() else pd.DataFrame(), row)


def summary(before: pd.DataFrame, row: dict[str, object]) -> Section:
    """All exams with a new one, and the last of each engine, thread count and profile in words.

    Rows of another form are begun anew.
    """
    every = pd.DataFrame([row])[list(COLUMNS)]
    if list(before.columns) == list(COLUMNS):
        every = pd.concat([before, every], ignore_index=True)
    every = every.groupby(_ENGINE, sort=False).tail(MOST)
    shown = every[every["profile"] == row["profile"]]
    said = []
    for (engine, *_), runs in shown.groupby(_ENGINE, sort=False):
        last = runs.iloc[-1]
        said.append(
            f"'{engine}' {last['median_score']:.2f}, worst tenth {last['p10_score']:.2f}, "
            f"budgets broken in {percent(last['broken_share'], 1)} "
            f"({counted(int(last['scenarios']), 'scenario')}, {counted(len(runs), 'run')})"
        )
    finding = f"On record, median score of each engine's last exam: {'; '.join(said)}."
    if len(shown) < 2:
        finding = (
            "No other exam is on record here: run this notebook with another engine, and then "
            "again with this one."
        )
    caption = "Exams on record, one row a run; 'rule' is the fixed-size rule with the best tenth."
    return Section("exams", {"exams": every}, finding, shown, caption)
