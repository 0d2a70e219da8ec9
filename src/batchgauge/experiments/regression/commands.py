"""The commands `bench` and `compare`: options in, tables and exit codes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.files import check_file, write_csv
from batchgauge.machine.identity import Run
from batchgauge.measuring import record
from batchgauge.measuring.gate import compare as comparing
from batchgauge.measuring.gate import process as gate_process
from batchgauge.measuring.gate import revisions
from batchgauge.measuring.gate import rounds as gating
from batchgauge.registry import weights_of
from batchgauge.text import escaped, one_line, visible

_OTHER = "Compare files of other machines: verdicts then mix code and hardware."
_FORMATS = click.Choice(["table", "markdown", "json", "csv"])


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
    from batchgauge.experiments.regression.runs import run_suite, summary
    from batchgauge.suite import select

    if listing:
        rows = [
            (b.name, b.part, b.batch_size, record.as_json(b.parameters)) for b in select(patterns)
        ]
        table = pd.DataFrame(rows, columns=["benchmark", "part", "batch_size", "parameters"])
        click.echo(table.to_string(index=False))
        return
    if out is not None:
        check_file(out)
    frame = run_suite(patterns, seconds=seconds, progress=True, **subject)
    if out is not None:
        write_csv(frame, out)
    click.echo(summary(frame).to_string(index=False, float_format="{:,.4g}".format))


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--against", metavar="REV", help="Measure this git revision beside the working tree.")
@click.option("--threshold", type=float, help="Slow-down to pass, in percent [5; --against: 2].")
@click.option("--threshold-for", multiple=True, metavar="NAME=PERCENT", help="For one benchmark.")
@click.option("--allow-other-machine", is_flag=True, help=_OTHER)
@click.option("--allow-dirty", is_flag=True, help="Measure changed files as they are.")
@click.option("-k", "--select", "patterns", default="*", help="Benchmarks for --against.")
@click.option("--seconds", default=30.0, show_default=True, help="At most, a benchmark and round.")
@click.option("--processes", default=64, show_default=True, help="Most process rounds in a round.")
@click.option("--format", "form", type=_FORMATS, default="table", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="CSV of all samples (--against).")
@_subject_options
def compare(
    files: tuple[Path, ...],
    against: str | None,
    threshold: float | None,
    threshold_for: tuple[str, ...],
    allow_other_machine: bool,
    form: str,
    **options: Any,
) -> None:
    """Compare two runs: BASE.csv NEW.csv, or the working tree --against a revision.

    Exits with 0 when nothing is slower, 1 on a regression or other work than before, 2 when
    the runs do not compare. On shared machines use --against: both revisions then run in
    turn, in the same minutes.
    """
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
    failing = [c.benchmark for c in changes if c.fails]
    click.echo(
        one_line(f"{len(failing)} of {len(changes)} benchmarks fail: {', '.join(failing)}.")
        if failing
        else f"None of {len(changes)} benchmarks fails.",
        err=True,
    )
    raise click.exceptions.Exit(comparing.exit_code(changes))


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


def _against(revision: str, threshold: float, options: dict[str, Any]) -> list[comparing.Change]:
    import batchgauge
    from batchgauge import suite
    from batchgauge.experiments.regression.runs import suite_options

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
    subject = suite_options(**{key: options[key] for key in kept})
    plan = gate_process.GatePlan(
        [b.name for b in suite.select(options["patterns"])],
        Path(suite.__file__),
        subject,
        seconds=options["seconds"],
        processes=options["processes"],
        threshold=threshold,
        thresholds=options["thresholds"],
        seed=options["seed"],
    )
    with revisions.worktree(root, revision) as tree:
        base = gate_process.Side(revision, tree / "src")
        result = gating.gate(base, gate_process.Side("working tree", root / "src"), plan)
    for name, reason in result.problems.items():
        click.echo(one_line(f"not compared: {name}: {reason}"), err=True)
    if options["out"] is not None:
        run = Run.here(
            threads=options["threads"], seed=options["seed"], weights=weights_of(subject["engine"])
        )
        write_csv(record.to_frame(result.samples, run), options["out"])
    return result.changes


def rendered(changes: list[comparing.Change], form: str) -> str:
    """The changes as `table`, `markdown`, `json` or `csv`; percentages in the first two."""
    frame = comparing.frame_of(changes)
    if form == "json":
        return str(frame.to_json(orient="records", indent=2))
    if form == "csv":
        return frame.to_csv(index=False).rstrip()
    shown = pd.DataFrame(
        {
            "benchmark": frame["benchmark"],
            "change": [f"{c.change:+.1%}" for c in changes],
            "95 % interval": [f"{c.low:+.1%} … {c.high:+.1%}" for c in changes],
            "noise floor": [f"± {c.noise_floor:.1%}" for c in changes],
            "detectable": [f"{c.minimum_detectable_change:.1%}" for c in changes],
            "verdict": frame["status"],
            "work": frame["work"],
        }
    )
    if form == "table":
        return shown.to_string(index=False)
    header = "| " + " | ".join(shown.columns) + " |\n|" + " --- |" * len(shown.columns)
    return "\n".join(
        [header, *("| " + " | ".join(map(escaped, row)) + " |" for row in shown.to_numpy(str))]
    )
