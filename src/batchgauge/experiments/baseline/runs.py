"""What the baseline notebook measures, one function a question."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.experiments.baseline.inference import InferenceSweep, long_sweep, short_prompts
from batchgauge.experiments.baseline.sweep import BATCH, ONE_BY_ONE, Sweep, row
from batchgauge.experiments.context import Context
from batchgauge.experiments.scaling import spread
from batchgauge.machine.preflight import limit_threads
from batchgauge.measuring import (
    Amount,
    Conditions,
    Labels,
    Stopping,
    compare_interleaved,
    measure,
)
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    BatchStats,
    InferenceBatchResponse,
    generated_tokens,
)
from batchgauge.workload import texts, to_items

Calls = tuple[Callable[[], object], Callable[[], object], int]  # alone, together, tokens


def _short_sweep(
    context: Context,
    what: str,
    part: str,
    share: float,
    sizes: Sequence[int],
    characters: int,
    calls: Callable[[int], Calls],
) -> Sweep:
    """A comparison of one at a time and batch at every tokenizing size."""
    rows, samples = [], []
    for size in sizes:
        alone, together, tokens = calls(size)
        found = compare_interleaved(
            {ONE_BY_ONE: alone, BATCH: together},
            Labels(f"{part}/batch={size}/chars={characters}", part=part),
            {ONE_BY_ONE: Amount(size, tokens), BATCH: Amount(size, tokens, batch_size=size)},
            stopping=Stopping(context.budget.share(share) / len(sizes), context.budget.min_blocks),
            conditions=Conditions(context.threads, context.seed),
        )
        columns = {
            "alone_ms": found.median_ms(ONE_BY_ONE), "batch_ms": found.median_ms(BATCH),
            "throughput_tokens_per_s": found.tokens_per_s(BATCH), "characters": characters,
        }  # fmt: skip
        rows.append(row(found.ratio(BATCH), size, context.tokenizer_name, **columns))
        samples.append(found.frame())
    return Sweep(what, pd.DataFrame(rows), pd.concat(samples, ignore_index=True))


def tokenizing(context: Context, sizes: Sequence[int], characters: int) -> Sweep:
    """S(b) of tokenizing warm texts of prose: `encode` for each against one `encode_many`."""
    tokenizer = context.tokenizer

    def calls(size: int) -> Calls:
        batch = texts("prose", characters, size, context.seed)
        tokens = int(tokenizer.encode_many(batch).offsets[-1])
        return (
            lambda: [tokenizer.encode(text) for text in batch],
            lambda: tokenizer.encode_many(batch),
            tokens,
        )

    return _short_sweep(context, "Tokenizing", "tokenize", 0.14, sizes, characters, calls)


def detokenizing(context: Context, sizes: Sequence[int], characters: int) -> Sweep:
    """S(b) of the way back: `decode` for each against one `decode_many`."""
    tokenizer = context.tokenizer

    def calls(size: int) -> Calls:
        rows = tokenizer.encode_many(texts("prose", characters, size, context.seed)).tolist()
        return (
            lambda: [tokenizer.decode(row) for row in rows],
            lambda: tokenizer.decode_many(rows),
            sum(map(len, rows)),
        )

    return _short_sweep(context, "Detokenizing", "detokenize", 0.08, sizes, characters, calls)


def inference(context: Context, sizes: Sequence[int], max_tokens: int) -> InferenceSweep:
    """S(b) of whole requests and of decode alone, with the phases apart."""
    prompts = short_prompts(context, max(sizes))
    items = to_items(prompts, max_tokens=max_tokens, seed=context.seed, ignore_eos=True)
    return long_sweep(context, "Inference", "inference", items, sizes, max_tokens, share=0.5)


def end_to_end(context: Context, sizes: Sequence[int], max_tokens: int) -> InferenceSweep:
    """S(b) from text to text at one size, 8 or the largest: prompts end where they end."""
    size = min(8, max(sizes))
    items = to_items(short_prompts(context, max(sizes)), seed=context.seed)
    most = 2 * max_tokens
    capped = [
        BatchItem(i.id, replace(i.data, max_tokens=min(i.data.max_tokens, most))) for i in items
    ]
    return long_sweep(
        context, "End to end", "end_to_end", capped, [size], max_tokens, share=0.2, at_least=2
    )


def statistics(context: Context) -> pd.DataFrame:
    """Time to make a batch's statistics, and to find a response by id: 100 to 10,000 items."""
    rng = np.random.default_rng(context.seed)
    rows = []
    for count in (100, 1_000, 10_000):
        times = rng.lognormal(1.0, 0.5, count)
        responses = [BatchResponse(str(i), i, t) for i, t in enumerate(times.tolist())]
        result = BatchResult.of(responses, 1.0)
        wanted = str(count - 1)
        for part, fn in (
            ("statistics", partial(BatchStats.from_durations, times, 1.0)),
            ("result with index", partial(BatchResult.of, responses, 1.0)),
            ("lookup by id", partial(result.get_by_id, wanted)),
        ):
            found = measure(
                fn, Labels(f"{part}/items={count}", part=part), Amount(items=count),
                stopping=Stopping(context.budget.share(0.004), least=10, most=1000),
                conditions=Conditions(seed=context.seed),
            )  # fmt: skip
            low, high = _median_interval(found.steady_ms)
            rows.append((part, count, 1e3 * found.median_ms, 1e3 * low, 1e3 * high))
    return pd.DataFrame(rows, columns=["part", "items", "median_us", "low_us", "high_us"])


def _median_interval(times: Any) -> tuple[float, float]:
    """Distribution-free 95 % interval of the median, by order statistics of samples [n].

    Ranks from the binomial distribution (Conover, Practical Nonparametric Statistics, 3.2).
    """
    from scipy.stats import binom

    ordered = np.sort(times)
    below = max(int(binom.ppf(0.025, ordered.size, 0.5)) - 1, 0)
    return float(ordered[below]), float(ordered[ordered.size - 1 - below])


def variation(context: Context, sizes: Sequence[int], max_tokens: int) -> pd.DataFrame:
    """Throughput of one batch as temperature, tokens generated or prompt length changes alone."""
    size = min(4, max(sizes))
    prompts = short_prompts(context, size)
    tokens = max_tokens
    lengths: tuple[int, ...] = context.budget.choose(
        smoke=(25, 50, 100), default=(50, 200, 500), thorough=(50, 200, 800)
    )
    lengths = spread(lengths, min(1.0, 4 * context.longest_prompt / lengths[-1]), 4)
    cases: list[tuple[str, float, dict[str, Any], int]] = [
        *(("temperature", t, {"temperature": t}, 0) for t in (0.0, 0.7, 1.5)),
        *(
            ("max_tokens", n, {"max_tokens": n}, 0)
            for n in (max(1, tokens // 2), tokens, 2 * tokens)
        ),
        *(("prompt_characters", c, {}, c) for c in lengths),
    ]
    if context.budget.name == "smoke":
        cases = cases[::2]
    rows = []
    for what, value, changed, characters in cases:
        options = {"max_tokens": tokens, "ignore_eos": True, "seed": context.seed} | changed
        items = to_items(prompts, **options)
        if characters:
            made = texts("prose", characters, size, context.seed)
            items = [
                BatchItem(i.id, replace(i.data, prompt=text))
                for i, text in zip(items, made, strict=True)
            ]
        results = []
        with limit_threads(context.threads):
            for _ in range(context.budget.choose(smoke=2, default=3, thorough=12)):
                results.append(context.engine.infer_batch(items))  # noqa: PERF401  # timed one by one
        rates = [_generated(r) / r.stats.total_duration_ms * 1e3 for r in results[1:]]
        rows.append((what, value, size, float(np.median(rates)), min(rates), max(rates)))
    columns = ["parameter", "value", "batch_size", "median_tokens_per_s"]
    return pd.DataFrame(rows, columns=[*columns, "least_tokens_per_s", "most_tokens_per_s"])


def _generated(result: BatchResult[InferenceBatchResponse]) -> float:
    """Tokens generated in a batch; NaN where nobody counted them."""
    tokens = generated_tokens(result)
    return math.nan if tokens is None else tokens
