"""`batchgauge serve`: options to `server.Options`, nothing more."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from batchgauge import extras
from batchgauge.core.engine import MAX_BATCH_SIZE
from batchgauge.errors import UserError
from batchgauge.serving.policies import BATCHINGS, ORDERS
from batchgauge.text import visible

KEY = "BATCHGAUGE_API_KEY"


@click.command()
@click.argument("model", default="")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--name", default="", help="The model's name for clients; else its own.")
@click.option(
    "--slots",
    default="auto",
    show_default=True,
    help="Requests in a worker's batch; auto asks the sizing advisor.",
)
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    default=1,
    show_default=True,
    help="Processes that run the model; 0: a thread of the server's own.",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 100_000),
    default=64,
    show_default=True,
    help="Requests that may wait; more are refused.",
)
@click.option(
    "--policy",
    type=click.Choice(list(ORDERS)),
    default="fifo",
    show_default=True,
    help="Who goes first.",
)
@click.option(
    "--batching",
    type=click.Choice(list(BATCHINGS)),
    default="continuous",
    show_default=True,
    help="When requests join: at any step, or in batches that run to their end.",
)
@click.option(
    "--budget-ms",
    type=click.FloatRange(0),
    default=0.0,
    help="What a step may take; the batch adapts to it. Without: no budget.",
)
@click.option("--weights", default="float32", show_default=True, help="float32, file or bfloat16.")
@click.option("--threads", type=int, default=0, help="Of each worker; else what there is.")
@click.option("--api-key", envvar=KEY, default="", help=f"Asked of clients; or {KEY}.")
@click.option(
    "--max-body", type=click.IntRange(1), default=4 << 20, show_default=True, help="Bytes."
)
@click.option("--max-prompt", type=click.IntRange(0), default=0, help="Tokens; else the context.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.001, 86_400),
    default=600.0,
    show_default=True,
    help="Seconds that a request may take.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    help="Seconds to finish requests in when the server is told to end.",
)
def serve(model: str, slots: str, workers: int, threads: int, **options: Any) -> None:
    """Serve MODEL, a file or folder, by OpenAI's HTTP interface; without it the default model."""
    extras.require("batchgauge serve", "serve", "prometheus_client", "starlette", "uvicorn")
    from batchgauge.machine.limits import default_threads
    from batchgauge.serving.replies import Limits
    from batchgauge.serving.server import Options, open_server
    from batchgauge.serving.worker import WorkerPlan

    if slots != "auto" and not (slots.isdecimal() and 1 <= int(slots) <= MAX_BATCH_SIZE):
        raise UserError(
            f"slots is '{slots}'; expected auto or a whole number from 1 to {MAX_BATCH_SIZE}."
        )
    plan = WorkerPlan(
        model=model,
        weights=options["weights"],
        threads=threads or max(1, default_threads() // max(1, workers)),
        slots=0 if slots == "auto" else int(slots),
        policy=options["policy"],
        batching=options["batching"],
        budget_ms=options["budget_ms"],
        workers=max(1, workers),
    )
    limits = Limits(
        body_bytes=options["max_body"],
        prompt_tokens=options["max_prompt"],
        request_s=options["timeout"],
    )
    names = ("host", "port", "queue", "api_key", "name")
    given = Options(
        plan=plan,
        workers=workers,
        limits=limits,
        grace_s=options["grace"],
        **{name: options[name] for name in names},
    )
    opened = open_server(given)
    slots_now = opened.engine.workers.slots
    click.echo(visible(f"{opened.model} on {opened.url}, {slots_now} requests at once."))
    with suppress(KeyboardInterrupt):  # uvicorn's last word, when all is done
        opened.run()
