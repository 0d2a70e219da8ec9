"""A notebook of a few fast cells that uses all of `Report`, to test studies and pages."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import v4

TITLE = "# A small study\n\nAsk [its neighbour](01_second.ipynb) or the [README](../README.md)."
PARAMETERS = """\
profile: str = "default"  # smoke, default or thorough
seed: int = 0  # of every draw
name: str = "a"  # any text
out_dir: str = ""  # where files go"""
SETUP = """\
import pandas as pd
import matplotlib.pyplot as plt
from batchgauge.reporting import Report, Score
from batchgauge.text import Markdown
report = Report.begin("{report}", title="A small study", question="How much?",
                      profile=profile, out_dir=out_dir, seed=seed)"""
BODY = """\
frame = pd.DataFrame({"batch_size": [1, 2, 4], "wall_ms": [1.0, 1.5, 2.25]})
report.csv(frame, "times")
report.table(frame, caption="Times of <b>every</b> batch size.")
fig, ax = plt.subplots()
ax.plot(frame.batch_size, frame.wall_ms)
report.figure(fig, report.name + "_chart", alt="A line that rises", caption="Wall time.")
report.finding(f"Four take {frame.wall_ms.max()} ms.")"""
END = """\
report.score(Score("tokenizing_batch_32", "Tokenizing", 5.0, 6.5, 6.0, 7.0, "×"))
report.answer(Markdown("It takes **{} ms**. A second sentence.").format(frame.wall_ms.max()))
report.finish()"""


def write_notebook(
    folder: Path,
    file: str = "00_first.ipynb",
    report: str = "first",
    extra: str = "",
    only: str = "",
) -> Path:
    """Write a notebook to `folder/notebooks/file`; `extra` is code run before its end.

    With `only`, that code is all that it runs, which is fast: nothing is imported.
    """
    setup = SETUP.replace("{report}", report)
    parameters = v4.new_code_cell(PARAMETERS, id="parameters")
    parameters.metadata["tags"] = ["parameters"]
    cells = [
        v4.new_markdown_cell(TITLE, id="title"),
        parameters,
        v4.new_code_cell(setup, id="setup"),
        v4.new_markdown_cell("## How much?\n\n```text\n## no heading\n```", id="ask"),
        v4.new_code_cell(BODY, id="body"),
        *([v4.new_code_cell(extra, id="extra")] if extra else []),
        v4.new_markdown_cell("## How much?", id="again"),
        v4.new_code_cell(END, id="end"),
    ]
    if only:
        cells = [parameters, v4.new_code_cell(only, id="only")]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": spec})
    path = folder / "notebooks" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path
