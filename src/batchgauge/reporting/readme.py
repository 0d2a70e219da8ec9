"""The README's block of results, generated from the committed run's facts; never typed.

`batchgauge report --readme` writes it; a test holds README and data equal.
"""

from __future__ import annotations

from pathlib import Path

from batchgauge.errors import UserError
from batchgauge.files import write_text
from batchgauge.reporting.index import first_sentence, read_facts, scorecard
from batchgauge.text import escaped

BEGIN = "<!-- results: written by `batchgauge report --readme`, do not edit -->"
END = "<!-- /results -->"
_VERDICTS = {
    "met": "met", "missed": "not met", "open": "undecided", "measured": "–",
    "not comparable": "not comparable",
}  # fmt: skip


def results_block(root: Path, order: list[str]) -> str:
    """Scorecard and one sentence a report, as Markdown, from the facts under `root`.

    Raises UserError when no report has been made.
    """
    reports = read_facts(root, order)
    if not reports:
        raise UserError(f"There are no reports under '{root}' yet; run the study first.")
    latest = max(reports, key=lambda facts: str(facts["finished"]))
    model = f" with {escaped(latest['model'])}," if "model" in latest else ""
    head = (
        f"One run of the {latest['profile']} profile{model} on {escaped(latest['machine'])} "
        f"({str(latest['finished'])[:10]}); yours will differ, and will say by how much."
    )
    lines = [
        head,
        "",
        "| target | goal | measured, 95 % interval | verdict | evidence |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in scorecard(reports):
        goal = row.score.aim().removeprefix("goal ") or "–"
        lines.append(
            f"| {escaped(row.score.label)} | {escaped(goal)} | {escaped(row.score.measured())} "
            f"| {_VERDICTS[row.score.verdict]} | [{row.report}](reports/{row.report}.md) |"
        )
    lines += ["", *(f"- **{escaped(f['title'])}** {first_sentence(f['answer'])}" for f in reports)]
    return "\n".join(lines)


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
