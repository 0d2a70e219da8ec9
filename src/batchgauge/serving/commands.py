"""`batchgauge serve`: options to `server.Options`, nothing more."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import click

from batchgauge import extras
from batchgauge.core.engine import MAX_BATCH_SIZE
from batchgauge.errors import UserError
from batchgauge.serving.policies import BATCHINGS, ORDERS
from batchgauge.text import visible

KEY = "BATCHGAUGE_API_KEY"
_shown = partial(click.option, show_default=True)


@click.command()
@click.argument("model", default="")
@_shown("--host", default="127.0.0.1", help="Address to listen on.")
@_shown("--port", type=click.IntRange(0, 65535), default=8000)
@click.option("--name", default="", help="The model's name for clients; else its own.")
@_shown(
    "--slots", default="auto", help="Requests in a worker's batch; auto asks the sizing advisor."
)
@_shown(
    "--workers",
    type=click.IntRange(0, 64),
    default=1,
    help="Processes that run the model; 0: a thread of the server's own.",
)
@_shown(
    "--queue",
    type=click.IntRange(0, 100_000),
    default=64,
    help="Requests that may wait; more are refused.",
)
@_shown("--policy", type=click.Choice(list(ORDERS)), default="fifo", help="Who goes first.")
@_shown(
    "--batching",
    type=click.Choice(list(BATCHINGS)),
    default="continuous",
    help="When requests join: at any step, or in batches that run to their end.",
)
@click.option(
    "--budget-ms",
    type=click.FloatRange(0),
    default=0.0,
    help="What a step may take; the batch adapts to it. Without: no budget.",
)
@_shown("--weights", default="float32", help="float32, file or bfloat16.")
@click.option("--threads", type=int, default=0, help="Of each worker; else what there is.")
@click.option("--api-key", envvar=KEY, default="", help=f"Asked of clients; or {KEY}.")
@_shown("--max-body", "body_bytes", type=click.IntRange(1), default=4 << 20, help="Bytes.")
@click.option(
    "--max-prompt",
    "prompt_tokens",
    type=click.IntRange(0),
    default=0,
    help="Tokens; else the context.",
)
@_shown(
    "--timeout",
    "request_s",
    type=click.FloatRange(0.001, 86_400),
    default=600.0,
    help="Seconds that a request may take.",
)
@_shown(
    "--grace",
    "grace_s",
    type=click.FloatRange(0, 3600),
    default=30.0,
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
    given = {name: options.pop(name) for name in ("weights", "policy", "batching", "budget_ms")}
    plan = WorkerPlan(
        model=model,
        threads=threads or max(1, default_threads() // max(1, workers)),
        slots=0 if slots == "auto" else int(slots),
        workers=max(1, workers),
        **given,
    )
    limits = Limits(**{n: options.pop(n) for n in ("body_bytes", "prompt_tokens", "request_s")})
    opened = open_server(Options(plan=plan, workers=workers, limits=limits, **options))
    slots_now = opened.engine.workers.slots
    click.echo(visible(f"{opened.model} on {opened.url}, {slots_now} requests at once."))
    with suppress(KeyboardInterrupt):  # uvicorn's last word, when all is done
        opened.run()
