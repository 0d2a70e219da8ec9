"""`batchgauge run` and `batchgauge tokenize`: options to `run_job`, nothing more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from batchgauge.errors import UserError
from batchgauge.text import visible

F = TypeVar("F", bound=Callable[..., Any])


def _common(command: F) -> F:
    """The options that both commands have."""
    for option in reversed(
        (
            click.argument("source", type=click.Path(path_type=Path)),
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                required=True,
                help="Folder of the output; the same command goes on where it stopped.",
            ),
            click.option("--model", default="", help="A model file; the default model without."),
            click.option("--workers", default=0, help="Processes on this machine, by Dask."),
            click.option("--dask", default="", metavar="ADDRESS", help="A Dask scheduler."),
            click.option("--threads", default=0, help="Of each worker; else what there is."),
            click.option("--retries", default=2, show_default=True, help="Of a part that fails."),
        )
    ):
        command = option(command)
    return command


@click.command()
@_common
@click.option(
    "--engine",
    default="numpy",
    show_default=True,
    help="numpy, numpy:file, llama-cpp, … or package.module:factory.",
)
@click.option(
    "--batch-size",
    default="auto",
    show_default=True,
    help="Prompts at once; auto asks the sizing advisor on each worker's machine, and measures "
    "for it only once the job has run for as long as that takes: 8 until then.",
)
@click.option("--max-tokens", default=0, help="For prompts that name none; else 64.")
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--part-lines",
    "most_lines",
    default=512,
    show_default=True,
    help="Lines of input in each part; prompts of like lengths are batched within it.",
)
@click.option("--chat/--no-chat", default=True, help="Whether to use the model's chat template.")
def run(source: Path, out: Path, batch_size: str, **options: Any) -> None:
    """Answer the prompts of SOURCE, a .jsonl, .txt or .parquet file or a folder of them.

    Each part of the output has one line of JSON for each prompt, in the order of the input;
    a line that is no prompt is answered by its error.
    """
    from batchgauge.jobs.prompts import PromptWork

    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise UserError(
            f"The batch size is '{batch_size}'; expected auto or a whole number of at least 1."
        )
    size = 0 if batch_size == "auto" else int(batch_size)
    names = ("engine", "model", "max_tokens", "temperature", "seed", "chat", "most_lines")
    work = PromptWork(batch_size=size, **{name: options[name] for name in names})
    _run(work, source, out, options)


@click.command()
@_common
@click.option(
    "--tokenizer",
    default="numpy",
    show_default=True,
    help="numpy, hf, tiktoken, … or package.module:factory.",
)
@click.option("--format", "form", default="npy", show_default=True, help="npy or parquet.")
@click.option("--key", default="", help="Of a .jsonl line, where it is not text or prompt.")
@click.option(
    "--whole-files", is_flag=True, help="A .txt file is one document, not one for each line."
)
def tokenize(source: Path, out: Path, **options: Any) -> None:
    """Turn the documents of SOURCE, a file or a folder, into token ids.

    Documents are lines of .txt and .jsonl files and rows of .parquet files. Each part of the
    output has the ids of its documents one after the other, and where each begins.
    """
    from batchgauge.jobs.tokenizing import TokenizeWork

    names = ("tokenizer", "model", "form", "key", "whole_files")
    _run(TokenizeWork(**{name: options[name] for name in names}), source, out, options)


def _run(work: Any, source: Path, out: Path, options: dict[str, Any]) -> None:
    from batchgauge.jobs.run import run_job
    from batchgauge.jobs.where import Where

    names = ("workers", "dask", "threads", "retries")
    where = Where(**{name: options[name] for name in names})
    try:
        summary = run_job(work, source, out, where=where)
    except KeyboardInterrupt:
        raise UserError(
            f"Stopped; what is done is in '{out}', and the same command goes on.", exit_code=130
        ) from None
    click.echo(visible(summary.sentence(work.name)))
