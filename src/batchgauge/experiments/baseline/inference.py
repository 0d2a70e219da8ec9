"""S(b) of inference: whole requests and decode alone, with prefill, TTFT and latency apart.

Every engine can be measured whole. Phases need an engine that says when its tokens came;
for one that does not, their columns are empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
from batchgauge.statistics import over_processes
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


def blocks(
    context: Context, items: Items, sizes: Sequence[int], *, count: int
) -> list[Timed[Result]]:
    """So many blocks of every item alone and every batch size; see `sweep.run_blocks`.

    Raises UserError when the engine fails an item.
    """

    def infer(chosen: Items) -> Result:
        result = context.engine.infer_batch(chosen)
        bad = next((r for r in result.responses if r.error is not None), None)
        if bad:
            raise UserError(f"The engine could not answer '{bad.id}': {bad.error}")
        return result

    with limit_threads(context.threads):
        return run_blocks(
            lambda i: infer(items[i : i + 1]), lambda b: infer(items[:b]), sizes, blocks=count
        )


def sweep(
    context: Context,
    items: Items,
    sizes: Sequence[int],
    max_tokens: int,
    processes: Sequence[Sequence[Timed[Result]]],
) -> InferenceSweep:
    """What the `blocks` of some processes say together."""
    last = max((t for t in processes[-1] if t.item < 0), key=lambda t: t.batch_size)
    samples = [_samples(context, timings, max_tokens, n) for n, timings in enumerate(processes)]
    run = Run.here(threads=context.threads, seed=context.seed, weights=context.weights_kept)
    return InferenceSweep(
        "Inference",
        _table(context, processes, sizes).assign(max_tokens=max_tokens),
        to_frame([sample for some in samples for sample in some], run),
        pd.DataFrame([_phases(processes, size) for size in sizes]),
        _answers(items, last.result),
    )


def _table(
    context: Context, processes: Sequence[Sequence[Timed[Result]]], sizes: Sequence[int]
) -> pd.DataFrame:
    ratios = judged([_ratio(processes, size, _wall_ms) for size in sizes])
    rows = []
    for size, ratio in zip(sizes, ratios, strict=True):
        mine = [t.wall_ms for p in processes for t in p if t.item < 0 and t.batch_size == size]
        alone = [
            sum(t.wall_ms for t in p if t.block == block and 0 <= t.item < size)
            for p in processes
            for block in sorted({t.block for t in p})
        ]
        medians = {"alone_ms": float(np.median(alone)), "batch_ms": float(np.median(mine))}
        table_row = row(ratio, size, context.engine_name, len(processes), **medians)
        tokens = [r.data.prompt_tokens for t in processes[-1] if t.item < 0 and t.batch_size == size
                  for r in t.result.responses if r.data]  # fmt: skip
        rows.append(table_row | {"prompt_tokens": float(np.median(tokens))})
    return pd.DataFrame(rows)


def _ratio(
    processes: Sequence[Sequence[Timed[Result]]],
    size: int,
    cost_ms: Callable[[Timed[Result]], float],
) -> Ratio:
    logs = [block_ratios(timings, size, cost_ms) for timings in processes]
    of = np.repeat(np.arange(len(logs)), [len(one) for one in logs])
    found = over_processes(np.concatenate(logs), of)
    return Ratio.of(found, name=BATCH, baseline=ONE_BY_ONE)


def _wall_ms(timed: Timed[Result]) -> float:
    return timed.wall_ms


def _decode_ms(timed: Timed[Result]) -> float:
    """Time in decode steps: by the engine's own stages, else by its responses."""
    stages = timed.result.stages_ms
    if "decode" in stages:
        return stages["decode"]
    told = [r.data.decode_ms for r in timed.result.responses if r.data]
    return max((ms for ms in told if ms > 0), default=math.nan)


def _phases(processes: Sequence[Sequence[Timed[Result]]], size: int) -> dict[str, Any]:
    """Prefill and decode throughput, decode's own S(b), TTFT and inter-token latency."""
    timings = [timed for process in processes for timed in process]
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
    ratio = _ratio(processes, size, _decode_ms) if known else None
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
    context: Context, timings: Sequence[Timed[Result]], max_tokens: int, process: int
) -> list[Sample]:
    """The timings of a process as records, one a call."""
    return [
        Sample(
            benchmark=f"inference/batch={t.batch_size}/max_tokens={max_tokens}",
            implementation=context.engine_name,
            part="inference",
            batch_size=t.batch_size,
            parameters=as_json({"item": t.item, "max_tokens": max_tokens}),
            process=process,
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
