"""S(b) of inference: whole requests and decode alone, with prefill, TTFT and latency apart.

Every engine can be measured whole. Phases need an engine that says when its tokens came;
for one that does not, their columns are empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.experiments.baseline.sweep import (
    BATCH,
    ONE_BY_ONE,
    Sweep,
    Timed,
    block_ratios,
    row,
    run_blocks,
)
from batchgauge.experiments.context import Context
from batchgauge.machine.identity import Run
from batchgauge.machine.preflight import limit_threads
from batchgauge.measuring.record import Sample, as_json, to_frame
from batchgauge.measuring.verdicts import Ratio, judged
from batchgauge.request import (
    BatchItem,
    BatchResult,
    InferenceBatchRequest,
    InferenceBatchResponse,
    generated_tokens,
)
from batchgauge.statistics import location, minimum_detectable_change
from batchgauge.workload import Prompt

# Of the sweep's prompts: the few very long ones would drown the rest.
LONGEST_CHARACTERS = {"smoke": 150, "default": 700, "thorough": 700}

Result = BatchResult[InferenceBatchResponse]
Items = Sequence[BatchItem[InferenceBatchRequest]]


@dataclass(frozen=True, slots=True)
class InferenceSweep(Sweep):
    """A sweep of whole requests (`table`) with `phases` by batch size and some `answers`."""

    phases: pd.DataFrame
    answers: pd.DataFrame


def short_prompts(context: Context, count: int) -> list[Prompt]:
    """`count` prompts of the workload without its very long ones."""
    longest = LONGEST_CHARACTERS[context.budget.name]
    return context.prompts(count, lambda p: len(p.prompt) <= longest)


def long_sweep(  # noqa: PLR0913 - what it runs, how often and for how long
    context: Context,
    what: str,
    part: str,
    items: Items,
    sizes: Sequence[int],
    max_tokens: int,
    *,
    share: float,
    at_least: int | None = None,
) -> InferenceSweep:
    """Blocks of every item alone and every batch size; see `sweep.run_blocks`.

    Raises UserError when the engine fails an item.
    """

    def infer(chosen: Items) -> Result:
        result = context.engine.infer_batch(chosen)
        bad = next((r for r in result.responses if r.error is not None), None)
        if bad:
            raise UserError(f"The engine could not answer '{bad.id}': {bad.error}")
        return result

    with limit_threads(context.threads):
        timings = run_blocks(
            lambda i: infer(items[i : i + 1]),
            lambda b: infer(items[:b]),
            sizes,
            budget_s=context.budget.share(share),
            min_blocks=at_least or context.budget.choose(smoke=2, default=3, thorough=10),
            max_blocks=context.budget.max_blocks,
            name=what,
        )
    largest = max((t for t in timings if t.item < 0), key=lambda t: t.batch_size)
    return InferenceSweep(
        what,
        _table(context, timings, sizes).assign(max_tokens=max_tokens),
        _samples(context, part, timings, max_tokens),
        pd.DataFrame([_phases(timings, size, context.seed) for size in sizes]),
        _answers(items, largest.result),
    )


def _table(
    context: Context, timings: Sequence[Timed[Result]], sizes: Sequence[int]
) -> pd.DataFrame:
    logs = {size: block_ratios(timings, size, _wall_ms) for size in sizes}
    twice = 1 in sizes and len(logs[1]) > 1  # a batch of one is an item alone: an A/A comparison
    half = location(logs[1]).half_width if twice else math.nan
    floor, mdc = math.expm1(half), minimum_detectable_change(half)
    rows = []
    for size in sizes:
        ratio = _ratio(logs[size], context.seed, floor, mdc)
        mine = [t.wall_ms for t in timings if t.item < 0 and t.batch_size == size]
        alone = [
            sum(t.wall_ms for t in timings if t.block == block and 0 <= t.item < size)
            for block in sorted({t.block for t in timings})
        ]
        medians = {"alone_ms": float(np.median(alone)), "batch_ms": float(np.median(mine))}
        rows.append(row(judged([ratio])[0], size, context.engine_name, **medians))
    return pd.DataFrame(rows)


def _ratio(
    logs: npt.NDArray[np.float64], seed: int, floor: float = math.nan, mdc: float = math.nan
) -> Ratio:
    return Ratio.of(
        location(logs), name=BATCH, baseline=ONE_BY_ONE, noise_floor=floor,
        minimum_detectable_change=mdc,
    )  # fmt: skip


def _wall_ms(timed: Timed[Result]) -> float:
    return timed.wall_ms


def _decode_ms(timed: Timed[Result]) -> float:
    """Time in decode steps: by the engine's own stages, else by its responses."""
    stages = timed.result.stages_ms
    if "decode" in stages:
        return stages["decode"]
    told = [r.data.decode_ms for r in timed.result.responses if r.data]
    return max((ms for ms in told if ms > 0), default=math.nan)


def _phases(timings: Sequence[Timed[Result]], size: int, seed: int) -> dict[str, Any]:
    """Prefill and decode throughput, decode's own S(b), TTFT and inter-token latency."""
    mine = [t for t in timings if t.item < 0 and t.batch_size == size]
    data = [r.data for t in mine for r in t.result.responses if r.data]
    prompt = sum(d.prompt_tokens for d in data)
    counts = [math.nan if d.tokens_generated is None else d.tokens_generated for d in data]
    later = math.nan if any(map(math.isnan, counts)) else sum(max(n - 1, 0) for n in counts)
    prefill_ms = sum(max(r.data.prefill_ms for r in t.result.responses if r.data) for t in mine)
    decode_ms = sum(_decode_ms(t) for t in mine)
    gaps = [g for d in data for g in d.inter_token_ms]
    firsts = [d.ttft_ms for d in data]
    answers = (
        {}
        if not any(d.reasoning for d in data)
        else {"first_answer_median_ms": float(np.median([d.first_answer_ms for d in data]))}
    )
    alone = [t for t in timings if 0 <= t.item < size]
    known = all(_decode_ms(t) > 0 for t in [*mine, *alone])
    ratio = _ratio(block_ratios(timings, size, _decode_ms), seed) if known else None
    return {
        "batch_size": size,
        "prefill_tokens_per_s": 1e3 * prompt / prefill_ms,
        "decode_tokens_per_s": 1e3 * later / decode_ms if known else math.nan,
        "decode_speedup_x": ratio.value if ratio else math.nan,
        "decode_low_x": ratio.low if ratio else math.nan,
        "decode_high_x": ratio.high if ratio else math.nan,
        "ttft_median_ms": float(np.median(firsts)),
        "ttft_least_ms": min(firsts),
        "ttft_most_ms": max(firsts),
        **answers,
        "inter_token_median_ms": float(np.median(gaps)) if gaps else math.nan,
        "inter_token_least_ms": min(gaps, default=math.nan),
        "inter_token_most_ms": max(gaps, default=math.nan),
    }


def _samples(
    context: Context, part: str, timings: Sequence[Timed[Result]], max_tokens: int
) -> pd.DataFrame:
    """The timings as records, one row a call."""
    samples = [
        Sample(
            benchmark=f"{part}/batch={t.batch_size}/max_tokens={max_tokens}",
            implementation=context.engine_name,
            part=part,
            batch_size=t.batch_size,
            parameters=as_json({"item": t.item, "max_tokens": max_tokens}),
            process=0,
            block=t.block,
            position=t.position,
            is_warmup=False,
            inner_loops=1,
            wall_ms=t.wall_ms,
            cpu_ms=math.nan,
            items=t.batch_size,
            tokens=generated_tokens(t.result) or 0,
            counters=as_json(t.result.counters),
            gc="on",
        )
        for t in timings
    ]
    run = Run.here(threads=context.threads, seed=context.seed, weights=context.weights_kept)
    return to_frame(samples, run)


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
