"""The commands `bench` and `compare`: options in, tables and exit codes out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pandas as pd

import batchgauge
from batchgauge import suite
from batchgauge.errors import UserError
from batchgauge.experiments.regression import decisions, runs
from batchgauge.experiments.regression.exports import FORMATS, rendered
from batchgauge.files import check_file, check_folders, write_csv, write_text
from batchgauge.measuring import record
from batchgauge.measuring.gate import compare as comparing
from batchgauge.measuring.gate import judging, revisions
from batchgauge.measuring.gate import process as gate_process
from batchgauge.measuring.gate import rounds as gating
from batchgauge.text import one_line, visible

_OTHER = "Compare files of other machines: verdicts then mix code and hardware."
_seconds = click.option(
    "--seconds", default=gate_process.SECONDS, show_default=True, help="At most, a benchmark."
)
_rounds = click.option(
    "--rounds", default=gate_process.ROUNDS, show_default=True, help="Most rounds of two processes."
)


def _subject_options(command: Any) -> Any:
    """Options that say what is benchmarked; shared by both commands."""
    for option in (
        click.option("--tokenizer", default="numpy", show_default=True, help="Tokenizer to run."),
        click.option("--engine", default="numpy", show_default=True, help="Engine to run."),
        click.option(
            "--weights", default="float32", show_default=True, help="float32, file or bfloat16."
        ),
        click.option(
            "--model",
            default="",
            help="GGUF file or Hugging Face folder; empty: the default model.",
        ),
        click.option("--threads", default=1, show_default=True, type=click.IntRange(1)),
        click.option("--seed", default=0, show_default=True, type=click.IntRange(0)),
    ):
        command = option(command)
    return command


@click.command()
@click.option("-k", "--select", "patterns", default="*", help="Names or patterns, by commas.")
@click.option("--list", "listing", is_flag=True, help="Name the benchmarks, run nothing.")
@click.option("--seconds", default=2.0, show_default=True, help="Wall seconds a benchmark.")
@click.option("--out", type=click.Path(path_type=Path), help="CSV of all samples.")
@_subject_options
def bench(
    patterns: str, listing: bool, seconds: float, out: Path | None, **subject: Any
) -> None:  # fmt: skip
    """Run the benchmarks of the suite and print their times.

    Example: batchgauge bench -k 'tokenize/*' --seconds 1 --out data/mine.csv
    """
    if listing:
        found = suite.select(patterns)
        rows = [(b.name, b.part, b.batch_size, record.as_json(b.parameters)) for b in found]
        table = pd.DataFrame(rows, columns=["benchmark", "part", "batch_size", "parameters"])
        click.echo(table.to_string(index=False))
        return
    if out is not None:
        check_file(out)
    frame = runs.run_suite(patterns, seconds=seconds, progress=True, **subject)
    if out is not None:
        write_csv(frame, out)
    click.echo(runs.summary(frame).to_string(index=False, float_format="{:,.4g}".format))


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--against", metavar="REV", help="Measure this git revision beside the working tree.")
@click.option("--threshold", type=float, help="Slow-down to pass, in percent [5; --against: 1].")
@click.option("--threshold-for", multiple=True, metavar="NAME=PERCENT", help="For one benchmark.")
@click.option("--allow-other-machine", is_flag=True, help=_OTHER)
@click.option("--allow-dirty", is_flag=True, help="Measure changed files as they are.")
@click.option("-k", "--select", "patterns", default="*", help="Benchmarks for --against.")
@_seconds
@_rounds
@click.option(
    "--blind",
    type=click.Choice(["auto", "fail", "pass"]),
    default="auto",
    show_default=True,
    help="Whether a benchmark that could not be seen exits with 2; auto: where CI is set.",
)
@click.option(
    "--format", "form", type=click.Choice(list(FORMATS)), default="table", show_default=True
)
@click.option("--export", "exports", multiple=True, metavar="FORMAT=FILE", help="Also as a file.")
@click.option("--out", type=click.Path(path_type=Path), help="CSV of all samples (--against).")
@_subject_options
def compare(
    files: tuple[Path, ...],
    against: str | None,
    threshold: float | None,
    threshold_for: tuple[str, ...],
    allow_other_machine: bool,
    form: str,
    exports: tuple[str, ...],
    **options: Any,
) -> None:
    """Compare two runs: BASE.csv NEW.csv, or the working tree --against a revision.

    Exits with 0 when nothing is slower beyond the threshold, 1 when something is or does other
    work than before, 2 when the runs do not compare, or something could not be seen (--blind).
    On shared machines use --against: both revisions then run in turn, in the same minutes.
    """
    places = [_export(text) for text in exports]
    if against is None:
        if len(files) != 2:
            raise UserError(f"Expected BASE.csv NEW.csv, or --against REV; got {len(files)} files.")
        changes = comparing.compare_runs(
            record.read(files[0]),
            record.read(files[1]),
            threshold=_percent(threshold, comparing.THRESHOLD),
            thresholds=_thresholds(threshold_for),
            allow_other_machine=allow_other_machine,
        )
    else:
        if files:
            raise UserError("--against takes no files.")
        if options["out"] is not None:
            check_file(options["out"])
        options["thresholds"] = _thresholds(threshold_for)
        changes = _against(against, _percent(threshold, gate_process.THRESHOLD), options)
    click.echo(visible(rendered(changes, form)))
    for name, path in places:
        write_text(rendered(changes, name) + "\n", path)
    click.echo(one_line(judging.conclusion(changes)), err=True)
    blind = options["blind"] == "fail" or (
        options["blind"] == "auto" and bool(os.environ.get("CI"))
    )
    raise click.exceptions.Exit(judging.exit_code(changes, blind_fails=blind))


def _export(text: str) -> tuple[str, Path]:
    """FORMAT=FILE, checked before anything is measured."""
    form, _, name = text.partition("=")
    if form not in FORMATS or not name:
        raise UserError(f"'{text}' is no export; expected FORMAT=FILE, {', '.join(FORMATS)}.")
    check_file(name)
    return form, Path(name)


def _percent(value: float | None, default: float) -> float:
    if value is not None and not 0 <= value < 1000:
        raise UserError(f"The threshold is {value} %; expected 0 or more.")
    return default if value is None else value / 100.0


def _thresholds(pairs: tuple[str, ...]) -> dict[str, float]:
    thresholds = {}
    for pair in pairs:
        name, _, text = pair.rpartition("=")
        try:
            thresholds[name] = _percent(float(text), 0.0)
        except ValueError:
            raise UserError(f"'{pair}' is no threshold; expected NAME=PERCENT.") from None
    return thresholds


def _against(revision: str, threshold: float, options: dict[str, Any]) -> list[judging.Change]:
    package = Path(batchgauge.__file__).parent
    root = revisions.repository(Path.cwd())
    if package.resolve() != (root / revisions.PACKAGE).resolve():
        raise UserError(
            f"The package in use is not this repository's ({root.name}/{revisions.PACKAGE}); "
            "install it editable (pip install -e .) to gate on it."
        )
    revisions.resolve(root, revision)
    if not options["allow_dirty"]:
        revisions.check_clean(root)
    kept = ("tokenizer", "engine", "weights", "model", "threads", "seed")
    subject = runs.suite_options(**{key: options[key] for key in kept})
    limits = {key: options[key] for key in ("seconds", "rounds", "thresholds")}
    plan = decisions.planned(options["patterns"], subject, threshold=threshold, **limits)
    with revisions.worktree(root, revision) as tree, revisions.copy(package) as ours:
        base = gate_process.Side(revision, tree / revisions.PACKAGE.parent)
        new = gate_process.Side("working tree", ours / revisions.PACKAGE.parent)
        result = gating.gate(base, new, plan)
    for name, reason in result.problems.items():
        click.echo(one_line(f"not compared: {name}: {reason}"), err=True)
    if options["out"] is not None:
        write_csv(record.to_frame(result.samples, decisions.session(plan)), options["out"])
    return result.changes


@click.command("gate-trial")
@click.option("-k", "--select", "patterns", default=decisions.CHEAP, help="Benchmarks, by commas.")
@click.option(
    "--injections",
    default="none,wait=5,wait=3,code=5,code=3",
    show_default=True,
    help="Decisions to take: none, wait=PERCENT (busy wait) or code=PERCENT, by commas.",
)
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1))
@_seconds
@_rounds
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="data/regression",
    show_default=True,
    help="Folder whose decisions.csv and rounds.csv grow.",
)
@_subject_options
def gate_trial(
    patterns: str,
    injections: str,
    repeat: int,
    seconds: float,
    rounds: int,
    out: Path,
    **subject: Any,
) -> None:
    """Try the gate on this very code, unchanged and slowed down, and keep its decisions.

    Every call is a run of its own; rates are over runs. Example:
    batchgauge gate-trial --injections none --repeat 5
    """
    wanted = [decisions.Injection.parse(text) for text in injections.split(",")] * repeat
    check_folders(out)
    options = runs.suite_options(**subject)
    plan = decisions.planned(patterns, options, seconds=seconds, rounds=rounds)
    run = decisions.session(plan)
    for number, injection in enumerate(wanted):  # a run that is broken off keeps the others
        _, taken, seen = decisions.collect(plan, [injection], run, first=number)
        decisions.append(taken, seen, out)
        shown = taken[["injection", "slowdown", "benchmark", "status", "change", "blocks"]]
        click.echo(shown.to_string(index=False))
    click.echo(decisions.rates(decisions.recorded(out)[0]).to_string(index=False))
