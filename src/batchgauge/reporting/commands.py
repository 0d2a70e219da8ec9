"""`batchgauge study`, `report` and `list`: options to the functions behind them, nothing more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from batchgauge.errors import UserError
from batchgauge.reporting.profiles import PROFILES

_PATHS = {"model", "workload", "trace", "baseline_dir"}  # parameters that name files from here


@click.command()
@click.argument("notebook", nargs=-1)
@click.option(
    "--profile", default="default", show_default=True, help=f"One of {', '.join(PROFILES)}."
)
@click.option("--model", help="A GGUF file or Hugging Face folder instead of the default model.")
@click.option("--tokenizer", help="numpy, baseline, hf, tiktoken, … or package.module:factory.")
@click.option("--engine", help="numpy, baseline, transformers, … or package.module:factory.")
@click.option("--workload", help="A .txt or .jsonl file of your own prompts.")
@click.option("--threads", help="BLAS threads of the engine.")
@click.option("--seed", help="Seed of every random draw.")
@click.option(
    "-p",
    "--parameter",
    "others",
    type=(str, str),
    multiple=True,
    metavar="NAME VALUE",
    help="Any other parameter of the notebooks (see `batchgauge list`).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where data/ and reports/ go; else batchgauge-results.",
)
@click.option("--again", is_flag=True, help="Run finished notebooks again too.")
@click.option(
    "--matrix",
    type=click.Path(path_type=Path),
    help="A TOML or YAML file of several runs, kept apart under reports/matrix/, and compared.",
)
@click.option(
    "--dask", default="", metavar="ADDRESS", help="A Dask scheduler whose machines run the matrix."
)
def study(
    notebook: tuple[str, ...],
    profile: str,
    others: tuple[tuple[str, str], ...],
    out: Path | None,
    again: bool,
    matrix: Path | None,
    dask: str,
    **common: str | None,
) -> None:
    """Run the notebooks in order and write their reports.

    NOTEBOOK picks some of them by number, name or report (01, baseline,
    baseline_performance); all without. What an interrupted study has finished
    is not run again.
    """
    from batchgauge.reporting.matrix import run_matrix
    from batchgauge.reporting.study import run_study

    given: dict[str, str] = {name: value for name, value in common.items() if value is not None}
    given.update(others)
    for name in _PATHS & set(given):  # the kernels run in the project's folder
        if given[name] and (path := Path(given[name])).exists():
            given[name] = str(path.resolve())
    asked: dict[str, Any] = {"profile": profile, "parameters": given}
    asked |= {"out_dir": out, "only": notebook, "again": again}
    if matrix is not None:
        run_matrix(matrix, dask=dask, **asked)
    elif dask:
        raise UserError("--dask needs --matrix: it gives each of several runs a machine.")
    else:
        run_study(**asked)


@click.command()
@click.argument("notebook", nargs=-1)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where data/ and reports/ are; else batchgauge-results.",
)
@click.option("--readme", is_flag=True, help="Write the README's results from them as well.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="The folder of another study: compare both scorecards instead, and write no page.",
)
def report(notebook: tuple[str, ...], out: Path | None, readme: bool, against: Path | None) -> None:
    """Write the HTML and Markdown pages and the index again from the executed notebooks.

    Nothing is measured. With --against, two studies are compared: exit code 1 when a verdict
    goes from met to missed or back, or too few intervals hold the other's value.
    """
    from batchgauge.reporting.project import notebooks_folder, project_root, results_folder
    from batchgauge.reporting.readme import write_readme
    from batchgauge.reporting.study import books, say, write_pages

    if against is not None:
        _compare(out or results_folder(), against)
        return
    root = out or (project_root() if readme else results_folder())
    for path in write_pages(out_dir=root, only=notebook):
        say(f"Wrote {path}")
    if readme:
        say(f"Wrote {write_readme(root, [b.report for b in books(notebooks_folder())])}")


def _compare(out: Path, against: Path) -> None:
    from batchgauge.files import write_csv
    from batchgauge.reporting.repeat import agree, machines, sentence, two_runs
    from batchgauge.reporting.study import say

    table = two_runs(out, against)
    for row in table.to_dict("records"):
        both = [
            f"{row[f'{o}value']:.4g}"
            + (f" [{low:.4g}, {row[f'{o}high']:.4g}]" if (low := row[f"{o}low"]) == low else "")
            for o in ("", "other_")
        ]
        mark = "  FLIPS" if row["flips"] else "" if row["held"] == row["of"] else "  apart"
        say(f"{row['label']}: {' and '.join(both)} {row['unit']}{mark}")
    say(f"Wrote {write_csv(table, out / 'data' / 'two_runs.csv')}")
    text = sentence(table) + machines(out, against)
    if not agree(table):
        raise UserError(text, exit_code=1)
    say(text)


@click.command("list")
def list_notebooks() -> None:
    """Show every notebook with the report it makes and its parameters."""
    from batchgauge.reporting.project import notebooks_folder
    from batchgauge.reporting.study import books, say

    for book in books(notebooks_folder()):
        say(f"{book.path.stem}  ->  reports/{book.report}.html")
        for p in book.known.values():
            say(f"    {f'{p.name}: {p.kind} = {p.default}':<40}  {p.help}")
