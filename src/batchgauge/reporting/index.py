"""The study's front page: the three answers, a picture, whether to trust them, the reports.

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
from batchgauge.reporting.dictionary import write_dictionary
from batchgauge.reporting.export import TEMPLATES, one_blank_line, with_bundle
from batchgauge.reporting.history import Past, past, remember
from batchgauge.reporting.model import short
from batchgauge.reporting.page import FACTS, SCRIPT, content_policy
from batchgauge.reporting.render import json_block, svg
from batchgauge.reporting.report import METADATA_KEY
from batchgauge.reporting.score import Score, scores_of
from batchgauge.text import Markdown, escaped, sentences, visible

# The five targets of the whole study come first on the scorecard, in this order.
_TARGETS = (
    "tokenizing_batch_32",
    "inference_batch_8",
    "memory_overhead",
    "statistics_100_items",
    "sizing_accuracy",
)
# Goals that were not met come first.
_VERDICTS = ("missed", "open", "not comparable", "met", "measured")
# The three questions of the study, by the place of the tiles that answer them.
_QUESTIONS = {
    "size": "Which batch size?",
    "gain": "What does batching buy?",
    "time": "Where does the time go?",
}
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
    earlier = past(remember(out, reports), reports)
    picture = _picture(out, reports)
    about = {
        "reports": reports,
        "rows": rows,
        "counts": {verdict: sum(r.score.verdict == verdict for r in rows) for verdict in _VERDICTS},
        "groups": by_question(rows),
        "tiles": answers(reports, earlier),
        "earlier": earlier,
        "noise": _tiles(reports, "noise"),
        "peers": _tiles(reports, "peers"),
        "changed": [score for score in earlier.values() if score.has_changed],
        "compared": sum(len(score.points) > 1 for score in earlier.values()),
        "runs": max((len(score.points) for score in earlier.values()), default=0),
        "here": _here(reports),
        "machine": _machine(reports),
        "picture": picture,
        "number": tables.number,
        "first_sentence": first_sentence,
        "tables": lambda facts: [f for f in facts["files"] if f.endswith(".csv")],
        "has_matrix": (out / "reports" / "matrix" / "index.html").is_file(),
    }
    write_dictionary(out)
    write_text(one_blank_line(render("index.md.j2", about)), out / "reports" / "index.md")
    page = render("index.html.j2", about, alive=picture is not None)
    return write_text(with_bundle(page), out / "reports" / "index.html")


def _picture(out: Path, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The specification of the figure that decides about the batch size; None without one."""
    for facts in reports:
        if any(tile.get("place") == "size" for tile in facts.get("tiles", ())):
            path = out / "reports" / "figures" / f"{facts['figure']}.vl.json"
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None
            return found if isinstance(found, dict) else None
    return None


def answers(
    reports: Sequence[Mapping[str, Any]], earlier: Mapping[str, Past] | None = None
) -> list[tuple[str, str, str]]:
    """The three questions, each with its value and the sentence behind it; empty if not asked."""
    known = earlier or {}
    return [(question, *_tile(reports, place, known)) for place, question in _QUESTIONS.items()]


def _tiles(reports: Sequence[Mapping[str, Any]], place: str) -> list[dict[str, str]]:
    return [t for facts in reports for t in facts.get("tiles", ()) if t["place"] == place]


def _tile(
    reports: Sequence[Mapping[str, Any]], place: str, earlier: Mapping[str, Past]
) -> tuple[str, str]:
    """Value and text of one of the three tiles; empty where its report was not made."""
    found = _tiles(reports, place)
    value = next((t["value"] for t in found if t["value"]), "")
    texts = [t["text"] for t in found]
    gain = earlier.get("inference_batch_8")
    if place == "gain" and gain and len(gain.points) > 1:
        low, high = (f"{end(gain.points):.1f}" for end in (min, max))
        texts.insert(1, f"Between {len(gain.points)} runs {low} to {high} ×.")
    return value, " ".join(texts)


def _here(reports: Sequence[Mapping[str, Any]]) -> str:
    """Machine, model, profile and day in one line."""
    if not reports:
        return ""
    last = max(reports, key=lambda facts: str(facts["finished"]))
    named = next(filter(None, (short(facts) for facts in reports)), "")
    parts = (last["machine"], named, f"{last['profile']} profile", str(last["finished"])[:10])
    return " · ".join(filter(None, map(str, parts)))


def by_question(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """The scorecard by report: its name, its title, its rows; what was not met comes first."""
    order = {verdict: place for place, verdict in enumerate(_VERDICTS)}
    ranked = sorted(rows, key=lambda row: order[row.score.verdict])
    names = dict.fromkeys((row.report, row.title) for row in ranked)
    return [(name, title, [r for r in ranked if r.report == name]) for name, title in names]


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
        for score in scores_of(facts):
            rows.setdefault(score.key, Row(score, str(facts["report"]), str(facts["title"])))
    first = [rows.pop(key) for key in _TARGETS if key in rows]
    return first + list(rows.values())


def render(template: str, about: Mapping[str, Any], *, alive: bool = False) -> str:
    """A page of `template/site` (with the reports' style and macros), `alive` with its figures."""
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
    environment.filters["still"] = lambda spec, name: Markup(svg(spec, name))  # noqa: S704
    environment.filters["json_block"] = lambda spec: Markup(json_block(spec))  # noqa: S704
    policy = content_policy(alive=alive)
    page = {"script": SCRIPT, "policy": policy, "alive": alive, "key": METADATA_KEY, **about}
    return visible(environment.get_template(template).render(**page))


def _machine(reports: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The machine card: each fact once, or each of its values where reports differ."""
    card = []
    for key in ("machine", "model", "versions", "git_commit", "profile", "seed", "finished"):
        values = dict.fromkeys(str(facts[key]) for facts in reports if key in facts)
        shown = [max(values)] if key == "finished" and values else list(values)
        if shown or not reports:
            card.append((FACTS[key], " / ".join(shown)))
    minutes = sum(facts["seconds"] for facts in reports) / 60
    return [*card, ("Measured for", f"{minutes:.1f} minutes")]
