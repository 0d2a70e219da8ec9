"""From an executed notebook to its files: HTML, Markdown, the notebook itself.

nbconvert's own template mechanism does the work (`template/report`, derived from its
`base`), without the defaults that load scripts from outside. Each file is written
whole or not at all. What the outputs hold is escaped where it is written (`Report`, the
templates); nbconvert's own sanitiser stays off, since it would also strip the figures, and the
page's security policy stops whatever might be left. Control characters become visible.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from nbformat import NotebookNode

from batchgauge.files import write_text
from batchgauge.redaction import each_text, redacted
from batchgauge.reporting.chart_parts import MIME
from batchgauge.reporting.page import SCRIPT, anchored, content_policy, is_shown, page_of, relinked
from batchgauge.reporting.project import project_root
from batchgauge.reporting.render import bundle, json_block, svg
from batchgauge.reporting.report import marks
from batchgauge.text import Markdown, escaped, fenced, visible

TEMPLATES = Path(__file__).parent / "template"
BUNDLE_HERE = "/* vega */"  # as `macros.j2` has it
_MARKDOWN_FIRST = ["text/markdown", "image/svg+xml", "image/png", "text/plain"]


def export(
    executed: NotebookNode, facts: Mapping[str, Any], reports: Path, names: Mapping[str, str]
) -> list[Path]:
    """Write `<report>.html`, `<report>.md` and `notebooks/<report>.ipynb` under `reports`.

    `names` maps notebook files (`00_tour.ipynb`) to report names, for links between them.
    """
    name = str(facts["report"])
    executed = without_folders(redacted(executed))
    facts = redacted(facts)
    return [
        write_text(_html(executed, facts, names), reports / f"{name}.html"),
        write_text(_markdown(executed, facts, names), reports / f"{name}.md"),
        write_notebook(executed, reports / "notebooks" / f"{name}.ipynb", names),
    ]


def write_notebook(executed: NotebookNode, path: Path, names: Mapping[str, str]) -> Path:
    """Write the executed notebook without what is this machine's alone: paths, widgets, keys."""
    from nbconvert.filters.ansi import strip_ansi

    kept = relinked(
        without_folders(redacted(executed)), lambda href: _href(href, names, ".ipynb", up="../")
    )
    kept.metadata.pop("widgets", None)
    kept.metadata.pop("papermill", None)
    for cell in kept.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            shown = [o for o in cell.outputs if is_shown(o) or marks(o)]
            cell.outputs = [each_text(o, lambda text: visible(strip_ansi(text))) for o in shown]
    return write_text(_without_paths(nbformat.writes(kept)) + "\n", path)


def _html(executed: NotebookNode, facts: Mapping[str, Any], names: Mapping[str, str]) -> str:
    from nbconvert.exporters import HTMLExporter

    shown, page = page_of(relinked(executed, lambda href: _href(href, names, ".html")), facts)
    page.headings = anchored(shown)
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_anchor_links=True,
        filters={
            "picture_source": picture_source,
            "plain": lambda text: Markdown(text).plain,
            "still": svg,
            "json_block": json_block,
        },
    )
    about = {"page": page, "script": SCRIPT, "policy": content_policy(alive=page.is_alive)}
    body, _ = exporter.from_notebook_node(shown, resources={**about, "mime": MIME})
    return with_bundle(visible(_without_paths(body)))


def with_bundle(html: str) -> str:
    """`html` with the script of its figures where a template left room for it.

    Put in last: it is ours, and its digest is in the page's policy.
    """
    return html.replace(BUNDLE_HERE, bundle(), 1)


def _markdown(executed: NotebookNode, facts: Mapping[str, Any], names: Mapping[str, str]) -> str:
    from nbconvert.exporters import MarkdownExporter
    from traitlets.config import Config

    shown, page = page_of(relinked(executed, lambda href: _href(href, names, ".md")), facts)
    exporter = MarkdownExporter(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        config=Config({"NbConvertBase": {"display_data_priority": _MARKDOWN_FIRST}}),
        filters={"md": escaped, "fenced": fenced},
    )
    body, _ = exporter.from_notebook_node(shown, resources={"page": page})
    return one_blank_line(_without_paths(body))


def picture_source(output: NotebookNode, mime: str) -> str:
    """The picture of an output as a data URI."""
    data = output.data[mime]
    if mime == "image/svg+xml":
        data = base64.b64encode(data.encode()).decode("ascii")
    return f"data:{mime};base64,{data.strip()}"


def _href(href: str, names: Mapping[str, str], suffix: str, up: str = "") -> str:
    """Where a notebook's link leads from a page: other notebooks become their reports."""
    target, hash_sign, anchor = href.partition("#")
    if "://" in target or not target:
        return href
    path = PurePosixPath(target)
    name = names.get(path.name)
    if name is not None:
        return f"{name}{suffix}{hash_sign}{anchor}"
    return up + href


def _without_paths(text: str) -> str:
    """`text` without this machine's folders: project and working folder become `.`, home `~`."""
    here = {str(project_root()): ".", str(Path.cwd()): "."}
    folders = {**here, sys.prefix: ".venv", str(Path.home()): "~"}
    for folder, short in folders.items():
        if len(folder) > 1:
            text = _shorter(text, folder, short)
    return text


def _shorter(text: str, folder: str, short: str) -> str:
    """`text` with `short` for a folder, not for its letters in a longer path or in base64."""
    return re.sub(rf"(?<![\w+/]{{8}}){re.escape(folder)}(?![\w+-])", lambda _: short, text)


def without_folders(executed: NotebookNode) -> NotebookNode:
    """A copy of a notebook in which the paths among the parameters it was given are names only."""
    given = [
        c.source for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])
    ]
    paths = {
        node.value
        for source in given
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "/" in node.value
        if Path(node.value).exists()
    }
    if not paths:
        return executed
    text = nbformat.writes(executed)
    for path in sorted(paths, key=len, reverse=True):
        for form in {path, str(Path(path).expanduser().absolute())}:
            text = _shorter(text, json.dumps(form)[1:-1], Path(path).name)
    return nbformat.reads(text, as_version=4)


def one_blank_line(text: str) -> str:
    """At most one blank line between two lines, as Markdown likes it."""
    lines = (line.rstrip() for line in visible(text).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"
