"""The study's front page: a sentence per report, the scorecard, the machine.

Made from what the reports themselves wrote (`data/<report>_facts.json`), never from
anything typed. Writes `reports/index.html` and `reports/index.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgauge.files import write_text
from batchgauge.reporting import tables
from batchgauge.reporting.export import TEMPLATES, one_blank_line
from batchgauge.reporting.page import SCRIPT, content_policy
from batchgauge.reporting.score import Score
from batchgauge.text import Markdown, escaped, sentences, visible

# The five targets of the whole study come first on the scorecard, in this order.
_TARGETS = (
    "tokenizing_batch_32",
    "inference_batch_8",
    "memory_overhead",
    "statistics_100_items",
    "sizing_accuracy",
)
# Without these a facts file is not what a report wrote.
_NEEDED = {
    *("title", "question", "answer", "scores", "files", "profile", "seed", "seconds"),
    *("git_commit", "machine", "versions", "finished"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the scorecard, with the report that is its evidence."""

    score: Score
    report: str
    title: str


def write_index(out: Path, order: Sequence[str]) -> Path:
    """Write `reports/index.html` and `reports/index.md` under `out`; the path of the first.

    `order` is the reports' order; reports that have not been made are left out.
    """
    reports = read_facts(out, order)
    rows = scorecard(reports)
    about = {
        "reports": reports,
        "rows": rows,
        "machine": _machine(reports),
        "number": tables.number,
        "first_sentence": first_sentence,
        "tables": lambda facts: [f for f in facts["files"] if f.endswith(".csv")],
        "has_matrix": (out / "reports" / "matrix" / "index.html").is_file(),
    }
    write_text(one_blank_line(render("index.md.j2", about)), out / "reports" / "index.md")
    return write_text(render("index.html.j2", about), out / "reports" / "index.html")


def read_facts(out: Path, order: Sequence[str]) -> list[dict[str, Any]]:
    """The facts of every report whose page is there too, in `order`."""
    found = []
    for name in order:
        facts = facts_of(out, name)
        if facts is not None and (out / "reports" / f"{name}.html").is_file():
            found.append(facts)
    return found


def facts_of(out: Path, name: str) -> dict[str, Any] | None:
    """What the report `name` wrote about itself; None where that is missing or broken."""
    path = out / "data" / f"{name}_facts.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(facts, dict) and facts.get("report") == name and facts.keys() >= _NEEDED
    return facts if whole else None


def first_sentence(text: str) -> str:
    """`text` up to the end of its first sentence; abbreviations and decimals do not end one."""
    return sentences(text)[0]


def scorecard(reports: Sequence[Mapping[str, Any]]) -> list[Row]:
    """All scores, the study's five targets first; of two with one key the first report's counts."""
    rows: dict[str, Row] = {}
    for facts in reports:
        for score in facts["scores"]:
            fields = {name: value for name, value in score.items() if name != "verdict"}
            row = Row(Score(**fields), str(facts["report"]), str(facts["title"]))
            rows.setdefault(row.score.key, row)
    first = [rows.pop(key) for key in _TARGETS if key in rows]
    return first + list(rows.values())


def render(template: str, about: Mapping[str, Any]) -> str:
    """A page of `template/site` (with the reports' style and macros)."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    is_html = template.endswith(".html.j2")
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES / "site", TEMPLATES / "report"]),
        undefined=StrictUndefined,
        autoescape=is_html,  # noqa: S701 - Markdown has an escape of its own
        finalize=None if is_html else escaped,  # whatever is no `Markdown` of our own
        trim_blocks=True,
    )
    environment.filters["markdown2html"] = lambda text: Markup(markdown2html_mistune(text))  # noqa: S704
    environment.filters["html"] = Markup
    environment.filters["markdown"] = Markdown
    page = {"script": SCRIPT, "policy": content_policy(), **about}
    return visible(environment.get_template(template).render(**page))


def _machine(reports: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The machine card: each fact once, or each of its values where reports differ."""
    names = {
        "machine": "Machine",
        "model": "Model",
        "versions": "Versions",
        "git_commit": "Commit",
        "profile": "Profile",
        "seed": "Seed",
        "finished": "Finished",
    }
    card = []
    for key, name in names.items():
        values = dict.fromkeys(str(facts[key]) for facts in reports if key in facts)
        shown = [max(values)] if key == "finished" and values else list(values)
        if shown or not reports:
            card.append((name, " / ".join(shown)))
    minutes = sum(facts["seconds"] for facts in reports) / 60
    return [*card, ("Measured for", f"{minutes:.1f} minutes")]
