"""`batchgauge suggest`: which setting to run on any engine or server, found by measuring it.

    question = Question("throughput", {"ttft": 500.0}, budget_s=120)
    advice = suggest("openai:http://127.0.0.1:8080/v1", question, Load(max_tokens=64))
    print(advice.as_text())

An engine in this process is run in batches; a server gets so many requests at once or, with
`arrivals="open"`, so many a second; with `launch` it is started anew for each number of slots.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, cast
from urllib.parse import urlsplit

import click

from batchgauge.errors import UserError
from batchgauge.protocols import Engine
from batchgauge.redaction import redacted
from batchgauge.registry import open_engine
from batchgauge.sizing.advice.answer import MeasuredAdvice
from batchgauge.sizing.advice.decision import Question
from batchgauge.sizing.advice.launch import Launched
from batchgauge.sizing.advice.load import (
    Answering,
    Batches,
    ClosedLoop,
    OpenLoop,
    Requests,
    rates,
    whole_settings,
)
from batchgauge.sizing.advice.noise import less_mix
from batchgauge.sizing.advice.observe import observe
from batchgauge.sizing.advice.search import Search, Target
from batchgauge.sizing.advice.told import metrics_of, properties_of
from batchgauge.text import visible
from batchgauge.workload import load_prompts, to_items

LARGEST = 64  # the largest batch or number of requests at once, unasked
_CAPACITY_AT = (8, 32)  # requests at once that show how many answers a second a server manages


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine is asked, and how.

    workload    a file of prompts (see `workload.load_prompts`); empty: the project's own
    max_tokens  in place of each prompt's own; 0: theirs
    arrivals    "closed": so many requests at once; "open": Poisson arrivals, so many a second
    largest     the largest closed setting to try; 0: 64, or what the engine takes
    launch      a command that starts the server, with {slots} and optionally {port}
    """

    workload: str = ""
    max_tokens: int = 0
    chat: bool = True
    arrivals: str = "closed"
    largest: int = 0
    launch: str = ""

    def __post_init__(self) -> None:
        if self.arrivals not in {"closed", "open"}:
            raise UserError(f"arrivals is {self.arrivals!r}; expected closed or open.")
        if self.largest < 0 or self.max_tokens < 0:
            raise UserError("largest and max_tokens are at least 1, or 0 for the usual.")
        if self.largest and self.arrivals == "open":
            raise UserError(
                "Rates are searched up to what the server manages; expected no largest setting "
                "for open arrivals."
            )
        if self.launch and self.arrivals == "open":
            raise UserError(
                "A launched server is searched for its slots; expected closed arrivals."
            )


def suggest(
    engine: str | Engine,
    question: Question | None = None,
    load: Load | None = None,
    *,
    model: str = "",
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> MeasuredAdvice:
    """The setting to run, what it gives, and how sure that is.

    Args:
        engine: a spec as `registry.open_engine` takes it, or an engine.
        question: objective, targets in ms of 95th percentiles, seconds to spend, seed.
        load: requests and how they arrive.
        model: as for `open_engine`.
        threads: as for `open_engine`.
        progress: told what runs, and the seconds that are left.

    Raises UserError for what makes no sense, and where nothing can be measured.
    """
    question, load = question or Question(), load or Load()
    items = to_items(
        load_prompts(load.workload),
        max_tokens=load.max_tokens or None, chat=load.chat, seed=question.seed,
    )  # fmt: skip
    requests = Requests(items, question.seed)
    if load.launch:
        opener = functools.partial(open_engine, str(engine), model or None, threads)
        return _launched(str(engine), question, load, requests, opener, progress)
    opened = open_engine(engine, model or None, threads) if isinstance(engine, str) else engine
    shown = redacted(engine) if isinstance(engine, str) else opened.name
    notes: list[str] = []
    try:
        began = perf_counter()
        target = _target(opened, question, load, requests, notes)
        left_s = question.budget_s - (perf_counter() - began)
        question = replace(question, budget_s=max(1.0, left_s))
        return MeasuredAdvice.of(shown, Search(target, question, progress=progress).find(), notes)
    finally:
        if isinstance(engine, str) and hasattr(opened, "close"):
            opened.close()


def _target(
    engine: Any, question: Question, load: Load, requests: Requests, notes: list[str]
) -> Target:
    """What to search: batches of an engine in this process, or a server under load."""
    largest = load.largest or LARGEST
    if not hasattr(engine, "ask"):
        if load.arrivals == "open":
            raise UserError(
                "Open arrivals need a server, which answers each request when it is done; "
                "expected closed arrivals for an engine that answers batches."
            )
        return Batches(engine, requests, whole_settings(min(largest, engine.max_batch_size())))
    told = properties_of(engine.tell) if hasattr(engine, "tell") else {}
    if told:
        words = " and ".join(f"{value:,} {name}" for name, value in told.items())
        notes.append(f"the server says that it has {words}.".replace(" context", " tokens a slot"))
    status = _status(engine)
    closed = ClosedLoop(engine, requests, whole_settings(largest), status)
    if load.arrivals == "closed":
        return closed
    least_s = question.budget_s / 60
    seen = [
        observe(closed.run(n, least_s, 2, 6 * least_s), 0.0, "throughput", {}, tokens=False)
        for n in _CAPACITY_AT
    ]
    alike = less_mix(seen, requests.letters, tokens=False)
    capacity = max(math.exp(o.value) for o in alike)
    return OpenLoop(engine, requests, rates(capacity), status, question.seed)


def _status(engine: Any) -> Callable[[], Mapping[str, float]]:
    """What the server tells of itself, asked for while it runs."""
    return functools.partial(metrics_of, engine.tell) if hasattr(engine, "tell") else dict


def _launched(
    engine: str,
    question: Question,
    load: Load,
    requests: Requests,
    opener: Callable[[], Engine],
    progress: Callable[[str, float], None] | None,
) -> MeasuredAdvice:
    """The same over the slots of a server that is started for each of them."""
    url = urlsplit(engine.partition(":")[2].partition("#")[0])
    if not engine.startswith("openai:") or not url.port:
        raise UserError(
            f"A launch command goes with an engine 'openai:http://127.0.0.1:PORT/v1'; "
            f"got '{redacted(engine)}'."
        )
    target = Launched(
        load.launch, url.port, cast(Callable[[], Answering], opener), requests,
        whole_settings(load.largest or LARGEST),
        status=lambda opened: metrics_of(opened.tell),
    )  # fmt: skip
    try:
        return MeasuredAdvice.of(
            redacted(engine), Search(target, question, progress=progress).find()
        )
    finally:
        target.close()


def _say(text: str, left_s: float) -> None:
    """Progress on standard error."""
    click.echo(f"batchgauge: {visible(text)}; {max(0.0, left_s):.0f} s left", err=True)


@click.command()
@click.option(
    "--engine", required=True, help="openai:URL, llama-cpp, transformers, numpy or module:factory."
)
@click.option("--model", default="", help="A model file; the default model without.")
@click.option("--workload", default="", help="A .txt or .jsonl file of prompts.")
@click.option(
    "--objective",
    type=click.Choice(["throughput", "goodput"]),
    default="throughput",
    show_default=True,
    help="Tokens per second, or answers per second that keep every target.",
)
@click.option("--ttft-p95", type=float, help="Target in ms: 95th percentile to the first token.")
@click.option("--inter-token-p95", type=float, help="Target in ms: from token to token.")
@click.option("--latency-p95", type=float, help="Target in ms: of a whole request.")
@click.option("--budget", type=float, default=120.0, show_default=True, help="Seconds to measure.")
@click.option(
    "--arrivals",
    type=click.Choice(["closed", "open"]),
    default="closed",
    show_default=True,
    help="So many requests at once, or so many a second.",
)
@click.option("--largest", type=int, default=0, help=f"The largest setting to try; else {LARGEST}.")
@click.option("--max-tokens", type=int, default=0, help="To generate; else each prompt's own.")
@click.option("--chat/--no-chat", default=True, help="Whether to use the chat template.")
@click.option("--threads", type=int, default=None, help="Of an engine in this process.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--launch", default="", help="A command that starts the server, with {slots} and {port}."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "markdown"]),
    default="text",
    show_default=True,
)
def command(form: str, **options: Any) -> int:
    """Find the batch size, concurrency or request rate to run on an engine, by measuring it.

    The answer has its risk: the probability that it is within 2 % of the best. Ends with 1
    where no setting keeps every target.
    """
    asked = {name: options.pop(f"{name}_p95") for name in ("ttft", "inter_token", "latency")}
    targets = {name: value for name, value in asked.items() if value is not None}
    question = Question(
        options.pop("objective"), targets, options.pop("budget"), options.pop("seed")
    )
    opened = {name: options.pop(name) for name in ("model", "threads")}
    advice = suggest(options.pop("engine"), question, Load(**options), **opened, progress=_say)
    shown = {"text": advice.as_text, "json": advice.as_json, "markdown": advice.as_markdown}[form]()
    click.echo(shown if form == "json" else visible(shown))
    return 0 if advice.setting is not None else 1
