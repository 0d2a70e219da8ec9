"""The console command `batchgauge`: a thin layer over functions of the package.

A command is one line in `COMMANDS`; its module is imported when it is asked for,
so that `--help` answers at once. What is the user's to mend is one sentence on
standard error and an exit code; a bug keeps its traceback.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Mapping

import click

from batchgauge import __version__
from batchgauge.errors import UserError
from batchgauge.text import visible

# name -> (module:command, the line that `batchgauge --help` shows)
COMMANDS: Mapping[str, tuple[str, str]] = {
    "study": ("batchgauge.reporting.commands:study", "Run the notebooks and write the reports."),
    "report": ("batchgauge.reporting.commands:report", "Write the pages again, without running."),
    "list": ("batchgauge.reporting.commands:list_notebooks", "Show notebooks and parameters."),
    "run": ("batchgauge.jobs.commands:run", "Answer a file of prompts."),
    "tokenize": ("batchgauge.jobs.commands:tokenize", "Turn a corpus into token ids."),
    "serve": ("batchgauge.serving.commands:serve", "Serve a model over HTTP, as OpenAI does."),
    "suggest": ("batchgauge.advise:command", "Find the batch size or load to run on any engine."),
    "bench": ("batchgauge.experiments.regression.commands:bench", "Time named benchmarks."),
    "compare": ("batchgauge.experiments.regression.commands:compare", "Compare runs or revisions."),
    "gate-trial": (
        "batchgauge.experiments.regression.commands:gate_trial",
        "Try the gate on this very code.",
    ),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command called `cmd_name`; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="batchgauge")
def root() -> None:
    """What does batching buy for LLM work on this machine, and which batch size should I run?

    Start with `batchgauge study --profile smoke`, then open
    batchgauge-results/reports/index.html.
    """


def main() -> None:
    """The entry point; exits with a command's own code, 2 for bad input, 130 when interrupted."""
    try:
        code = root.main(standalone_mode=False)
    except UserError as error:
        click.echo(f"batchgauge: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        click.echo(visible(said.getvalue()), nl=False, err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("batchgauge: interrupted; the same command goes on where it stopped.", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
