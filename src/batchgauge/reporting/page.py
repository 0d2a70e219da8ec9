"""What a page shows of an executed notebook: the cells worth showing, and what stands around them.

The notebook's outputs say what they are (`batchgauge.reporting.report` marks them). The
answer, the figure that decides and the scores are moved to the first screen; progress bars,
sliders and returned paths have no meaning on a page and go. A page may run the script of its own
and the bundle that its figures need, and show pictures that are inside, nothing else: should a tag
of somebody else's reach it in spite of the escaping, the browser runs no script of it, loads
nothing and sends nothing. Leaves out how the page looks: the templates.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from batchgauge.reporting.chart_parts import MIME
from batchgauge.reporting.model import short
from batchgauge.reporting.render import bundle
from batchgauge.reporting.report import marks
from batchgauge.text import Markdown, escaped, sentences

SCRIPT = (Path(__file__).parent / "template" / "report" / "page.js").read_text(encoding="utf-8")
_WIDGET = "application/vnd.jupyter.widget-view+json"
_REPR = re.compile(r"(PosixPath|WindowsPath|Score)\(")
_HEADING = re.compile(r"^(#{2,4})\s+(.+?)\s*#*\s*$", re.MULTILINE)
_TITLE = re.compile(r"\A\s*#\s+.+\n*(\*\*.+\*\*\n*)?")  # with the question, which the page has too
# What is looked up, not read: folded on a page.
_ASIDE = re.compile(r"\A(##+)\s+(Definitions|Reading this page|In continuous integration)\s*\n")
_FENCED = re.compile(r"(^```.*?^```\s*$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FACTS = {  # what a report notes of its run, as pages call it
    "finished": "Finished",
    "profile": "Profile",
    "seed": "Seed",
    "seconds": "Seconds",
    "git_commit": "Commit",
    "model": "Model",
    "machine": "Machine",
    "versions": "Versions",
}


@dataclass(slots=True)
class Page:
    """What the templates print around the cells.

    `headings` are (level, text, anchor), `links` are (text, target).
    """

    title: str
    question: str
    answer: str
    eyebrow: str
    notebook: str
    scores: list[Mapping[str, Any]] = field(default_factory=list)
    headings: list[tuple[int, str, str]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    figure: NotebookNode | None = None
    is_alive: bool = False


def page_of(notebook: NotebookNode, facts: Mapping[str, Any]) -> tuple[NotebookNode, Page]:
    """A copy of `notebook` with only what a page shows, and the page around it.

    `facts` is what `Report.finish` wrote.
    """
    shown = deepcopy(notebook)
    name, day = str(facts["report"]), str(facts["finished"])[:10]
    page = Page(
        title=str(facts["title"]),
        question=str(facts["question"]),
        answer=str(facts["answer"]),
        eyebrow=" · ".join(
            filter(None, ("Report", short(facts), f"{facts['profile']} profile", day))
        ),
        notebook=f"notebooks/{name}.ipynb",
    )
    page.facts = [(title, str(facts[key])) for key, title in FACTS.items() if key in facts]
    tables = [f for f in facts["files"] if f.endswith(".csv")]
    page.links = [
        ("Executed notebook", page.notebook),
        ("Markdown", f"{name}.md"),
        *((Path(f).name, f"../{f}") for f in tables),
    ]
    said = {_bare(sentence) for sentence in sentences(page.answer)}
    for cell in shown.cells:
        if cell.cell_type == "code":
            page.scores += [m for m in map(marks, cell.outputs) if m.get("kind") == "score"]
            shown_here = [o for o in cell.outputs if is_shown(o) and _says_more(o, said)]
            page.is_alive |= any(MIME in o.get("data", {}) for o in shown_here)
            decides = [o for o in shown_here if _is_figure(o, str(facts.get("figure") or ""))]
            page.figure = next(iter(decides), page.figure)
            cell.outputs = [o for o in shown_here if o not in decides]
    first = next((c for c in shown.cells if c.cell_type == "markdown"), None)
    if first is not None:  # the page has the report's own title
        first.source = _TITLE.sub("", first.source)
    shown.cells = [c for c in shown.cells if c.source.strip()]
    for cell in shown.cells:
        if cell.cell_type == "markdown" and (found := _ASIDE.match(cell.source)):
            cell.metadata["aside"] = found[2]
            cell.source = cell.source[found.end() :]
    return shown, page


def _says_more(output: NotebookNode, said: set[str]) -> bool:
    """Whether an output says what is not yet `said`: answer and titles; a finding loses the rest.

    The title of a figure is said from here on. A list of findings stays as it is.
    """
    about = marks(output)
    if about.get("kind") == "figure" and about.get("title"):
        said.add(_bare(escaped(about["title"])))
    if about.get("kind") != "finding" or "\n" in output.data["text/markdown"]:
        return True
    left = [s for s in sentences(output.data["text/markdown"]) if _bare(s) not in said]
    text = Markdown(" ".join(left))
    output.data |= {"text/markdown": text, "text/plain": text.plain}
    return bool(left)


def _bare(sentence: str) -> str:
    return sentence.strip().rstrip(".")


def _is_figure(output: NotebookNode, name: str) -> bool:
    return bool(name) and marks(output).get("file") == f"figures/{name}.png"


def is_shown(output: NotebookNode) -> bool:
    """Whether a page shows this output where it stands."""
    if output.output_type == "stream":
        return bool(output.name == "stdout")
    if output.output_type == "error":
        return True
    kind = marks(output).get("kind")
    if kind in {"header", "answer", "caption", "score", "footer"} or _WIDGET in output.data:
        return False
    return not (set(output.data) == {"text/plain"} and _REPR.match(output.data["text/plain"]))


def anchored(notebook: NotebookNode) -> list[tuple[int, str, str]]:
    """Give every heading of the Markdown cells an anchor of its own (in place); the contents."""
    found: list[tuple[int, str, str]] = []

    def to_html(match: re.Match[str]) -> str:
        level, text = len(match[1]), match[2].replace("`", "")
        stem = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        taken = sum(known == stem or known.startswith(f"{stem}-") for *_, known in found)
        anchor = f"{stem}-{taken + 1}" if taken else stem
        found.append((level, text, anchor))
        return f'\n<h{level} id="{anchor}">{text}</h{level}>\n'

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _outside_code(cell.source, lambda text: _HEADING.sub(to_html, text))
    return found


def relinked(notebook: NotebookNode, link: Callable[[str], str]) -> NotebookNode:
    """A copy of `notebook` with `link` applied to every target of a Markdown link."""
    copy = deepcopy(notebook)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = _outside_code(
                cell.source, lambda text: _LINK.sub(lambda match: link(match[1]), text)
            )
    return copy


def _outside_code(source: str, change: Callable[[str], str]) -> str:
    pieces: Iterator[str] = iter(_FENCED.split(source))
    return "".join(p if p.startswith("```") else change(p) for p in pieces)


def content_policy(*, alive: bool = False) -> str:
    """The value of a page's Content-Security-Policy: our scripts by their digests, and no other.

    `alive` lets the bundle of the figures run as well.
    """
    scripts = (SCRIPT, bundle()) if alive else (SCRIPT,)
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode('ascii')}'"
        for s in scripts
    )
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
