"""Candidate improvements as changes to today's server, ranked by what the simulation says.

Each idea is simulated alone on top of today's server, then all software ideas on top of
each other. What an idea costs is known from the code and said in words; what it gains
comes from the simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from batchgauge.errors import UserError
from batchgauge.experiments.roadmap.machines import predicted_costs, process_sharing
from batchgauge.experiments.roadmap.parallel import WAYS
from batchgauge.experiments.roadmap.study import Case
from batchgauge.simulate.metrics import rate_text
from batchgauge.simulate.roadmap import IN_TIME, Idea, Setup, combine, rank, sweep
from batchgauge.simulate.server import Fleet
from batchgauge.simulate.steps import StepTable
from batchgauge.sizing import simulated_profiles
from batchgauge.text import ends, percent

ACCELERATOR = "GPU, 80 GB"
MACHINES = 4  # of the distributed idea


def server(**changes: Any) -> Callable[[Setup], Setup]:
    """A change of a set-up: other fields of its server."""
    return lambda setup: replace(setup, server=replace(setup.server, **changes))


def make_ideas(case: Case, gains: pd.DataFrame) -> tuple[Idea, ...]:
    """The candidates, item by item; `gains` are the measured factors of a second core."""
    two = {
        row["stage"]: max(row["value"], 1e-3)
        for row in gains.to_dict("records")
        if row["way"] == WAYS[1]
    }
    sharing = process_sharing(case, gains)
    step = case.today.step_s
    assert isinstance(step, StepTable)
    threaded = step.faster(two["prefill"], two["decode"])
    target_s = case.target_s
    return (
        Idea(
            "dynamic batching", "dynamic batching", server(batching="dynamic"),
            "small: a queue and a timer before infer_batch",
        ),
        Idea(
            "dynamic batching", "continuous batching", server(batching="continuous"),
            "large: the engine must let requests join between decode steps", validated=False,
        ),
        Idea(
            "streaming", "streaming", partial(replace, streaming=True),
            "medium: infer_batch must hand out tokens while it runs",
        ),
        Idea(
            "async pipeline", "async pipeline",
            server(host=replace(case.today.server.host, overlap=True)),
            "small: tokenize and detokenize in another thread",
        ),
        Idea(
            "priority queues", "priority queue with ageing",
            server(order="priority", ageing_s=10 * target_s), "small: a heap instead of a list",
        ),
        Idea(
            "priority queues", "shortest first with ageing",
            server(order="shortest", ageing_s=target_s),
            "medium: needs a prediction of the answer's length; simulated with the true one",
        ),
        Idea(
            "CPU parallelism", "two BLAS threads", partial(replace, step_s=threaded),
            "none: a thread limit; a second core",
        ),
        Idea(
            "CPU parallelism", "two processes", server(fleet=Fleet(2, sharing)),
            "medium: a queue between processes; the weights twice in memory, a second core",
        ),
        *_on_accelerator(case),
        Idea(
            "distributed batches", f"{MACHINES} machines like this one",
            server(fleet=Fleet(MACHINES)),
            "large: a shared queue, retries, deployment; the machines", hardware=True,
        ),
    )  # fmt: skip


def _on_accelerator(case: Case) -> list[Idea]:
    """The same on a GPU, by its roofline; nothing for an engine whose model nobody knows."""
    if case.context.facts is None:
        return []
    profile = next(p for p in simulated_profiles() if p.name == ACCELERATOR)
    costs, _ = predicted_costs(case.context.model, profile)
    size = case.today.server.max_batch
    gpu = StepTable.from_costs(costs, max_batch=size, one_pass=True)
    return [
        Idea(
            "GPU batching", f"{ACCELERATOR} (predicted)",
            lambda setup: replace(
                server(host=replace(setup.server.host, token_s=0.0))(setup), step_s=gpu,
                price_per_hour=case.scenario.price_per_hour,
            ),
            "large: another engine (an adapter is there), and the machine", predicted=True,
            hardware=True,
        )
    ]  # fmt: skip


def run_sweep(
    case: Case, ideas: Sequence[Idea], *, loads: Sequence[float], seeds: int
) -> pd.DataFrame:
    """Every idea at every seed, at the rate asked for and at `loads` (shares of today's capacity).

    Raises UserError for a load that is not above 0.
    """
    if not all(load > 0.0 for load in loads):
        raise UserError(f"The loads are {list(loads)}; expected shares of capacity above 0.")
    return sweep(
        case.today,
        ideas,
        case.traffic,
        rates=sorted({*(load * case.limit for load in loads), case.rate}),
        seeds=range(seeds),
        target_s=case.target_s,
        progress=partial(tqdm, desc="rates"),
    )


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The ranked table for a page: each gain in one cell with its interval."""

    def with_interval(kind: str) -> list[str]:
        columns = (table[f"{kind}{end}"].tolist() for end in ("", "_low", "_high"))
        return [
            f"{v:.2f} {ends(low, high)}" if math.isfinite(v) else ""
            for v, low, high in zip(*columns, strict=True)
        ]

    columns = [
        "rank", "item", "idea", "sustained_gain_x", "in_time_percent", "p90_waiting_shorter_x",
        "sustained_requests_per_s", "price_per_token_x", "pays", "cost", "recommendation", "basis",
    ]  # fmt: skip
    return table.rename(columns={"price_per_token_ratio": "price_per_token_x"}).assign(
        sustained_gain_x=with_interval("sustained_gain"),
        in_time_percent=100 * table["in_time_share"],
        p90_waiting_shorter_x=with_interval("waiting_gain"),
    )[columns]


def ranking_sentence(table: pd.DataFrame, case: Case) -> str:
    """The answer: what to build first at this rate, what to buy, and what not to bother with."""
    rows = table.to_dict("records")
    build = [row for row in rows if row["recommendation"].startswith("build")]
    buy = [row for row in rows if row["recommendation"].startswith("buy")]
    rest = [row["idea"] for row in rows if row not in build and row not in buy]
    said = (
        f"At {rate_text(case.rate)} requests/s and a target of {1e3 * case.target_s:,.0f} ms until "
        "the first text, "
    )
    if build:
        said += f"build {build[0]['idea']} first: {_gain_words(build[0])}."
        said += f" It costs: {build[0]['cost'].replace(': ', ', ')}."
    else:
        said += "no software candidate pays."
    if len(build) > 1:
        others = _listed([row["idea"] for row in build[1:]])
        said += f" {others[0].upper()}{others[1:]} would pay too."
    if buy:
        said += (
            f" Hardware: {buy[0]['idea']} would bring {percent(buy[0]['in_time_share'])} in time; "
            f"{buy[0]['recommendation']}."
        )
    if rest:
        said += f" Not worth it at this rate: {_listed(rest)}."
    return said


def _gain_words(row: Mapping[Any, Any]) -> str:
    return (
        f"{percent(row['in_time_share'])} of requests in time instead of "
        f"{percent(row['in_time_today'])}, and a p90 wait {row['waiting_gain']:.1f} × shorter "
        f"{ends(row['waiting_gain_low'], row['waiting_gain_high'], '{:.1f}'.format)}"
        + f" ({row['basis']})"
        * ("not" in row["basis"])
    )


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def pick_rungs(table: pd.DataFrame, ideas: Sequence[Idea]) -> list[Idea]:
    """Software ideas to put on top of each other: in ranked order, the best variant of each item.

    Ideas that cost requests ("leave") and those that need machines are left out.
    """
    by_name = {idea.name: idea for idea in ideas}
    picked: dict[str, Idea] = {}
    for row in table.to_dict("records"):
        idea = by_name[row["idea"]]
        if not idea.hardware and not row["recommendation"].startswith("leave"):
            picked.setdefault(idea.item, idea)
    return combine(list(picked.values()))


def ladder(rungs: Sequence[Idea], runs: pd.DataFrame, case: Case) -> pd.DataFrame:
    """What each rung gains over today: one row a rung, in the order given."""
    ranked = rank(runs, rungs, case.rate).set_index("idea")
    kept = [
        "goodput_gain", "goodput_gain_low", "goodput_gain_high", "waiting_gain",
        "waiting_gain_low", "waiting_gain_high", "sustained_requests_per_s", "in_time_share",
    ]  # fmt: skip
    return ranked.loc[[rung.name for rung in rungs], kept].reset_index()


def ladder_sentence(table: pd.DataFrame, runs: pd.DataFrame, case: Case) -> str:
    """How far the software ideas get together."""
    last = table.to_dict("records")[-1]
    share = runs[(runs["idea"] == "today") & (runs["arrival_rate"] == case.rate)]
    return (
        f"Together they bring {percent(last['in_time_share'])} of requests in time (today "
        f"{percent(share['in_time_share'].mean())}) and sustain "
        f"{rate_text(last['sustained_requests_per_s'])} requests/s with {percent(IN_TIME)} in time."
    )
