"""What the baseline notebook measures: in fresh processes what it answers, else in its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.experiments import fresh
from batchgauge.experiments.baseline import inference
from batchgauge.experiments.baseline.inference import (
    BATCH,
    ONE_BY_ONE,
    InferenceSweep,
    Sweep,
    Timed,
    short_prompts,
)
from batchgauge.experiments.context import Context, Items
from batchgauge.experiments.scaling import spread
from batchgauge.machine.preflight import limit_threads
from batchgauge.measuring import (
    Amount,
    Conditions,
    Design,
    Labels,
    Stopping,
    compare_interleaved,
    measure,
)
from batchgauge.request import BatchResponse, BatchResult, BatchStats, generated_tokens
from batchgauge.statistics import location
from batchgauge.workload import texts, to_items


@dataclass(frozen=True, slots=True)
class PageWork:
    """What each process does: batch sizes and characters of texts, sizes and tokens of answers."""

    text_sizes: tuple[int, ...]
    characters: int
    request_sizes: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Process:
    """What one fresh process measured."""

    texts: pd.DataFrame  # samples of tokenizing and detokenizing
    requests: list[Timed]
    statistics: pd.DataFrame


@dataclass(frozen=True)
class Measured:
    """The work, and what fresh processes measured of it."""

    context: Context
    work: PageWork
    processes: list[Process]


def in_processes(
    context: Context, *, tokenize_sizes: Sequence[int], characters: int,
    inference_sizes: Sequence[int], max_tokens: int,
) -> Measured:  # fmt: skip
    """Everything that the page answers, measured in fresh processes.

    Fewer of them where a model is so slow that they would take ten minutes.
    """
    work = PageWork(tuple(tokenize_sizes), characters, tuple(inference_sizes), max_tokens)
    found = fresh.each(
        partial(_in_process, context.elsewhere(), work), processes=context.budget.processes,
        budget_s=10 * context.budget.seconds,
    )  # fmt: skip
    return Measured(context, work, found)


def _in_process(context: Context, work: PageWork, process: int) -> Process:
    samples = [
        _both_ways(context, part, size, work.characters, process)
        for part in ("tokenize", "detokenize")
        for size in work.text_sizes
    ]
    items = _items(context, work)
    timings = inference.blocks(
        context, items, work.request_sizes,
        count=context.budget.choose(smoke=4, default=2, thorough=4),
    )  # fmt: skip
    return Process(pd.concat(samples, ignore_index=True), timings, _statistics(context))


def _items(context: Context, work: PageWork) -> Items:
    prompts = short_prompts(context, max(work.request_sizes))
    return to_items(
        prompts, max_tokens=work.max_tokens, seed=context.seed, chat=context.chat, ignore_eos=True
    )


def _both_ways(
    context: Context, part: str, size: int, characters: int, process: int
) -> pd.DataFrame:
    tokenizer, batch = context.tokenizer, texts("prose", characters, size, context.seed)
    rows = tokenizer.encode_many(batch).tolist()
    tokens = sum(map(len, rows))
    calls: dict[str, dict[str, Callable[[], object]]] = {
        "tokenize": {
            ONE_BY_ONE: lambda: [tokenizer.encode(text) for text in batch],
            BATCH: lambda: tokenizer.encode_many(batch),
        },
        "detokenize": {
            ONE_BY_ONE: lambda: [tokenizer.decode(row) for row in rows],
            BATCH: lambda: tokenizer.decode_many(rows),
        },
    }
    found = compare_interleaved(
        calls[part],
        Labels(f"{part}/batch={size}/chars={characters}", part=part, process=process),
        {ONE_BY_ONE: Amount(size, tokens), BATCH: Amount(size, tokens, batch_size=size)},
        design=Design(aa=False, control=False),
        stopping=Stopping(context.budget.share(0.002), least=4),
        conditions=Conditions(context.threads, context.seed + process), progress=False,
    )  # fmt: skip
    return found.frame()


def tokenizing(measured: Measured, part: str = "tokenize") -> Sweep:
    """S(b) of tokenizing warm texts of prose, `encode` for each against one `encode_many`.

    Or of the way back, where `part` is "detokenize".
    """
    samples = pd.concat([p.texts for p in measured.processes], ignore_index=True)
    samples = samples[samples["part"] == part]
    steady = samples[~samples["is_warmup"]].assign(log_ms=lambda t: np.log(t["wall_ms"]))
    gains, columns = [], []
    for size in measured.work.text_sizes:
        rows = steady[steady["items"] == size]
        keys = ["process", "block"]
        logs = rows.pivot_table(index=keys, columns="implementation", values="log_ms")
        gains.append(fresh.over(logs[ONE_BY_ONE] - logs[BATCH]))
        ms = rows.groupby("implementation")["wall_ms"].median()
        columns.append(
            {
                "alone_ms": ms[ONE_BY_ONE], "batch_ms": ms[BATCH],
                "throughput_tokens_per_s": 1e3 * rows["tokens"].iloc[0] / ms[BATCH],
                "characters": measured.work.characters,
            }
        )  # fmt: skip
    name, count = measured.context.tokenizer_name, len(measured.processes)
    table = inference.speedups(measured.work.text_sizes, gains, columns, name, count)
    return Sweep("Tokenizing" if part == "tokenize" else "Detokenizing", table, samples)


def requests(measured: Measured) -> InferenceSweep:
    """S(b) of whole requests and of decode alone, with the phases apart."""
    context, work = measured.context, measured.work
    timings = [process.requests for process in measured.processes]
    items = _items(context, work)
    return inference.sweep(context, items, work.request_sizes, work.max_tokens, timings)


def _statistics(context: Context) -> pd.DataFrame:
    """Microseconds of a batch's statistics, and of finding a response by id: 100 to 10,000."""
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
                stopping=Stopping(context.budget.share(0.001), least=10, most=1000),
                conditions=Conditions(seed=context.seed),
            )  # fmt: skip
            rows.append((part, count, 1e3 * found.median_ms))
    return pd.DataFrame(rows, columns=["part", "items", "us"])


def statistics(measured: Measured) -> pd.DataFrame:
    """Those times with 95 % intervals over processes."""
    every = pd.concat([p.statistics for p in measured.processes], ignore_index=True)
    rows = []
    for (part, count), some in every.groupby(["part", "items"], sort=False):
        found = location(np.log(some["us"])).exp()
        low, high = (v if 0.0 < v < math.inf else math.nan for v in (found.low, found.high))
        rows.append((part, count, found.value, low, high, len(some)))
    columns = ["part", "items", "median_us", "low_us", "high_us", "processes"]
    return pd.DataFrame(rows, columns=columns)


def variation(context: Context, sizes: Sequence[int], max_tokens: int) -> pd.DataFrame:
    """Throughput of one batch as temperature, tokens generated or prompt length changes alone."""
    size = min(context.budget.choose(smoke=2, default=4, thorough=4), max(sizes))
    prompts = short_prompts(context, size)
    lengths: tuple[int, ...] = context.budget.choose(
        smoke=(25, 50, 100), default=(50, 200, 500), thorough=(50, 200, 800)
    )
    lengths = spread(lengths, min(1.0, 4 * context.longest_prompt / lengths[-1]), 4)
    step = 2 if context.budget.name == "smoke" else 1  # the first and the last of three
    counts = (max(1, max_tokens // 2), max_tokens, 2 * max_tokens)
    cases: list[tuple[str, float, dict[str, Any], int]] = [
        *(("temperature", t, {"temperature": t}, 0) for t in (0.0, 0.7, 1.5)[::step]),
        *(("max_tokens", n, {"max_tokens": n}, 0) for n in counts[::step]),
        *(("prompt_characters", c, {}, c) for c in lengths[:: step if len(lengths) > 2 else 1]),
    ]
    calls = context.budget.choose(smoke=2, default=3, thorough=12)
    rows = []
    for what, value, changed, characters in cases:
        chosen = prompts
        if characters:
            made = texts("prose", characters, size, context.seed)
            chosen = [replace(p, prompt=text) for p, text in zip(prompts, made, strict=True)]
        options = {"max_tokens": max_tokens, "ignore_eos": True, "seed": context.seed} | changed
        items = to_items(chosen, chat=context.chat, **options)
        with limit_threads(context.threads):
            results = [context.engine.infer_batch(items) for _ in range(calls)]
        known = [(generated_tokens(r), r.stats.total_duration_ms) for r in results[1:]]
        rates = [math.nan if count is None else count / ms * 1e3 for count, ms in known]
        ends = (float(np.median(rates)), min(rates), max(rates))
        rows.append((what, value, size, *ends, len(rates)))
    columns = ["parameter", "value", "batch_size", "median_tokens_per_s", "least_tokens_per_s"]
    return pd.DataFrame(rows, columns=[*columns, "most_tokens_per_s", "calls"])
