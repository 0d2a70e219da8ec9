"""S(b) of inference: whole requests and decode alone, with prefill, TTFT and latency apart.

Requests are long calls that share their slow side: a block runs every item alone once and then
every batch size, in one direction and then the other, and S(b) of a block is the time of the
batch's own items alone ÷ the time of the batch; intervals are over fresh processes. Every
engine can be measured whole. Phases need an engine that says when its tokens came; for one
that does not, their columns are empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.experiments import fresh
from batchgauge.experiments.context import Context, Items, Result
from batchgauge.machine.identity import Run
from batchgauge.machine.preflight import limit_threads
from batchgauge.measuring.record import Sample, as_json, to_frame
from batchgauge.measuring.verdicts import Ratio, judged
from batchgauge.request import InferenceBatchResponse, generated_tokens
from batchgauge.statistics import Estimate, Interval
from batchgauge.workload import Prompt

ONE_BY_ONE = "one at a time"
BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Sweep:
    """S(b) of an implementation: `table` has one row a size, `samples` one a sample."""

    what: str
    table: pd.DataFrame
    samples: pd.DataFrame


@dataclass(frozen=True, slots=True)
class InferenceSweep(Sweep):
    """A sweep of whole requests (`table`) with `phases` by batch size and some `answers`."""

    phases: pd.DataFrame
    answers: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Timed:
    """One call: which block, how many items, when in the block, how long, what came out."""

    block: int
    position: int
    batch_size: int
    item: int  # of a single; -1 for a batch
    wall_ms: float
    result: Result


def speedups(
    sizes: Sequence[int], gains: Sequence[Estimate], columns: Sequence[Mapping[str, float]],
    implementation: str, processes: int,
) -> pd.DataFrame:  # fmt: skip
    """A sweep's table: by size the ratio of a batch to its items one at a time, and `columns`.

    `gains` are logarithms of these ratios, over so many processes.
    """
    ratios = judged([Ratio.of(gain, name=BATCH, baseline=ONE_BY_ONE) for gain in gains])
    return pd.DataFrame(
        {
            "implementation": implementation,
            "batch_size": size,
            "speedup_x": ratio.value,
            "low_x": ratio.low,
            "high_x": ratio.high,
            "verdict": ratio.verdict,
            "processes": processes,
            **more,
        }
        for size, ratio, more in zip(sizes, ratios, columns, strict=True)
    )


def short_prompts(context: Context, count: int) -> list[Prompt]:
    """`count` prompts of the workload without its few very long ones, which drown the rest."""
    longest = context.budget.choose(smoke=150, default=700, thorough=700)
    return context.prompts(count, lambda p: len(p.prompt) <= longest)


def blocks(context: Context, items: Items, sizes: Sequence[int], *, count: int) -> list[Timed]:
    """So many blocks of every item below max(sizes) alone, and of every batch size.

    A warm-up of the smallest and the largest call comes first and is not kept. Block k runs
    forwards when k is even, backwards when it is odd. Raises UserError when the engine fails an
    item.
    """
    largest = max(sizes)
    plan = [(1, i) for i in range(largest)] + [(size, -1) for size in sizes]
    timings = []
    with limit_threads(context.threads):
        context.infer(items[:1])
        context.infer(items[:largest])
        for block in range(count):
            for position, (size, item) in enumerate(plan if block % 2 == 0 else plan[::-1]):
                chosen = items[:size] if item < 0 else items[item : item + 1]
                started = perf_counter()
                result = context.infer(chosen)
                wall_ms = 1e3 * (perf_counter() - started)
                timings.append(Timed(block, position, size, item, wall_ms, result))
    return timings


def sweep(
    context: Context,
    items: Items,
    sizes: Sequence[int],
    max_tokens: int,
    processes: Sequence[Sequence[Timed]],
) -> InferenceSweep:
    """What the `blocks` of some processes say together."""
    every = [(n, t) for n, timings in enumerate(processes) for t in timings]
    costs = pd.DataFrame(
        [(n, t.block, t.batch_size, t.item, t.wall_ms, _decode_ms(t.result)) for n, t in every],
        columns=["process", "block", "batch_size", "item", "wall_ms", "decode_ms"],
    )
    batches = {
        size: [t.result for _, t in every if t.item < 0 and t.batch_size == size] for size in sizes
    }
    run = Run.here(threads=context.threads, seed=context.seed, weights=context.weights_kept)
    return InferenceSweep(
        "Inference",
        _table(context, costs, batches).assign(max_tokens=max_tokens),
        to_frame([_sample(context, t, max_tokens, n) for n, t in every], run),
        pd.DataFrame([_phases(costs, size, results) for size, results in batches.items()]),
        _answers(items, batches[max(sizes)][-1]),
    )


def _table(
    context: Context, costs: pd.DataFrame, batches: Mapping[int, Sequence[Result]]
) -> pd.DataFrame:
    sides = [_by_block(costs, "wall_ms", size) for size in batches]
    columns = [
        {
            "alone_ms": alone.median(), "batch_ms": together.median(),
            "prompt_tokens": float(np.median([d.prompt_tokens for d in _data(results)])),
        }
        for (alone, together), results in zip(sides, batches.values(), strict=True)
    ]  # fmt: skip
    gains = [fresh.over((alone / together).map(math.log)) for alone, together in sides]
    return speedups([*batches], gains, columns, context.engine_name, costs["process"].nunique())


def _by_block(
    costs: pd.DataFrame, column: str, size: int
) -> tuple[pd.Series[float], pd.Series[float]]:
    """A cost of the batch's items alone, added up, and of the batch, by [process, block]."""
    alone = costs[costs["item"].between(0, size - 1)]
    together = costs[(costs["item"] < 0) & (costs["batch_size"] == size)]
    by = ["process", "block"]
    first, second = (
        rows.groupby(by)[column].agg(lambda each: each.sum(skipna=False))
        for rows in (alone, together)
    )
    return first, second


def _data(results: Sequence[Result]) -> list[InferenceBatchResponse]:
    return [r.data for result in results for r in result.responses if r.data]


def _decode_ms(result: Result) -> float:
    """Time in decode steps: by the engine's own stages, else by its responses; NaN if unknown."""
    if "decode" in result.stages_ms:
        return result.stages_ms["decode"] or math.nan
    return max((d.decode_ms for d in _data([result]) if d.decode_ms > 0), default=math.nan)


def _phases(costs: pd.DataFrame, size: int, results: Sequence[Result]) -> dict[str, Any]:
    """Prefill and decode throughput, decode's own S(b), TTFT and inter-token latency."""
    data = _data(results)
    counts = [math.nan if d.tokens_generated is None else d.tokens_generated for d in data]
    later = math.nan if any(map(math.isnan, counts)) else sum(max(n - 1, 0) for n in counts)
    prefill_ms = sum(max(d.prefill_ms for d in _data([result])) for result in results)
    alone, together = _by_block(costs, "decode_ms", size)
    known = (alone + together).notna().all()
    unknown = Interval(math.nan, math.nan, math.nan)
    gain = fresh.over((alone / together).map(math.log)).exp() if known else unknown
    reasons = any(d.reasoning for d in data)
    answers = [d.first_answer_ms for d in data]
    return {
        "batch_size": size,
        "prefill_tokens_per_s": 1e3 * sum(d.prompt_tokens for d in data) / prefill_ms,
        "decode_tokens_per_s": 1e3 * later / together.sum() if known else math.nan,
        "decode_speedup_x": gain.value,
        "decode_low_x": gain.low,
        "decode_high_x": gain.high,
        **_spread("ttft", [d.ttft_ms for d in data]),
        **({"first_answer_median_ms": float(np.median(answers))} if reasons else {}),
        **_spread("inter_token", [gap for d in data for gap in d.inter_token_ms]),
    }


def _spread(name: str, times_ms: Sequence[float]) -> dict[str, float]:
    """Median and range of some times, NaN where there are none."""
    times_ms = times_ms or [math.nan]
    ends = {"median": np.median(times_ms), "least": min(times_ms), "most": max(times_ms)}
    return {f"{name}_{which}_ms": float(value) for which, value in ends.items()}


def _sample(context: Context, timed: Timed, max_tokens: int, process: int) -> Sample:
    return Sample(
        benchmark=f"inference/batch={timed.batch_size}/max_tokens={max_tokens}",
        implementation=context.engine_name,
        part="inference",
        batch_size=timed.batch_size,
        parameters=as_json({"item": timed.item, "max_tokens": max_tokens}),
        process=process,
        block=timed.block,
        position=timed.position,
        is_warmup=False,
        inner_loops=1,
        wall_ms=timed.wall_ms,
        cpu_ms=math.nan,
        items=timed.batch_size,
        tokens=generated_tokens(timed.result) or 0,
        counters=as_json(timed.result.counters),
        gc="on",
    )


def _answers(items: Items, result: Result) -> pd.DataFrame:
    rows = [
        (
            item.id,
            " ".join(str(item.data.prompt).split())[:80],
            " ".join(response.data.text.split())[:120] if response.data else "",
        )
        for item, response in zip(items, result.responses, strict=False)
    ]
    return pd.DataFrame(rows, columns=["id", "prompt", "answer"])
