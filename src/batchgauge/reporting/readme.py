"""The README's block of results, generated from the committed run's facts; never typed.

`batchgauge report --readme` writes it; a test holds README and data equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from batchgauge.errors import UserError
from batchgauge.files import write_text
from batchgauge.reporting.index import answers, by_question, first_sentence, read_facts, scorecard
from batchgauge.reporting.score import Score
from batchgauge.reporting.tables import to_markdown
from batchgauge.text import escaped, percent

BEGIN = "<!-- results: written by `batchgauge report --readme`, do not edit -->"
END = "<!-- /results -->"
NEAR = 0.95  # of the best setting's throughput
_VERDICTS = {
    "met": "met", "missed": "not met", "open": "undecided", "measured": "–",
    "not comparable": "not comparable",
}  # fmt: skip


def results_block(root: Path, order: list[str]) -> str:
    """The three answers, then each report's sentence and goals, folded, as Markdown.

    All from the facts under `root`. Raises UserError when no report has been made.
    """
    reports = read_facts(root, order)
    if not reports:
        raise UserError(f"There are no reports under '{root}' yet; run the study first.")
    latest = max(reports, key=lambda facts: str(facts["finished"]))
    model = f" with {escaped(latest['model'])}," if "model" in latest else ""
    days = sorted({str(facts["finished"])[:10] for facts in reports})
    head = (
        f"Each report is one run of the {latest['profile']} profile{model} on "
        f"{escaped(latest['machine'])} ({' to '.join(dict.fromkeys((days[0], days[-1])))}); "
        "yours will differ, and will say by how much."
    )
    lines = [
        head,
        "",
        *(f"- **{q}** {value}. {text}" for q, value, text in answers(reports) if value),
    ]
    groups = {name: rows for name, _, rows in by_question(scorecard(reports))}
    for facts in reports:
        rows = groups.get(facts["report"], [])
        counts = Counter(_VERDICTS[row.score.verdict] for row in rows)
        goals = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if verdict != "–")
        title = f"<b>{escaped(facts['title'])}</b>{f' ({goals})' if goals else ''}"
        page = f"[The report](reports/{facts['report']}.md) has the rest."
        said = f"{first_sentence(facts['answer'])} {page}"
        lines += ["", f"<details><summary>{title}</summary>", "", said, ""]
        lines += [*_table([row.score for row in rows]), ""] if rows else []
        lines.append("</details>")
    path = root / "data" / "advice_engines.csv"
    lines += real_engines(pd.read_csv(path)) if path.exists() else []
    return "\n".join(lines)


def real_engines(answers: pd.DataFrame) -> list[str]:
    """What `suggest` said of real engines, each beside a sweep of its own; the worst answer too."""
    shares = answers["throughput_share"]
    title = (
        f"<b>Advice for real engines and servers</b> ({int((shares >= NEAR).sum())} of "
        f"{len(answers)} answers within {percent(1 - NEAR)} of the best)"
    )
    rows = answers.groupby("engine", sort=False).agg(
        weights=("weights", "first"), threads=("threads", "first"),
        max_tokens=("max_tokens", "first"),
        advised=("advised_setting", lambda settings: ", ".join(map(str, settings))),
        best_setting=("best_setting", "first"), worst_share=("throughput_share", "min"),
        search_s=("search_s", "mean"), sweep_s=("sweep_s", "first"),
    )  # fmt: skip
    caption = (
        "Asked several times for the best throughput on the project's prompts: the batch sizes, "
        "or requests at once to a server, that were advised; the best one of a sweep with all "
        "prompts; and what share of its tokens per second the worst advice has."
    )
    return [
        "", f"<details><summary>{title}</summary>", "",
        *to_markdown(rows.reset_index(), caption).splitlines(), "", "</details>",
    ]  # fmt: skip


def _table(scores: Sequence[Score]) -> list[str]:
    rows = [
        (score.label, score.aim().removeprefix("goal ") or "–", score.measured(),
         _VERDICTS[score.verdict])
        for score in scores
    ]  # fmt: skip
    head = ["| target | goal | measured, 95 % interval | verdict |", "| --- | --- | --- | --- |"]
    return head + [f"| {' | '.join(map(escaped, row))} |" for row in rows]


def with_block(readme: str, block: str) -> str:
    """`readme` with what stands between the marks replaced. Raises UserError without marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"The README has no block between '{BEGIN}' and '{END}'.")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def write_readme(root: Path, order: list[str]) -> Path:
    """Write the block into `root`'s README.md; its path. Raises UserError as above."""
    path = root / "README.md"
    try:
        readme = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {error}.") from None
    text = with_block(readme, results_block(root, order))
    return write_text(text, path)
