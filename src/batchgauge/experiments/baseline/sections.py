"""The baseline notebook's questions, one function each; every one gives data to draw and to read.

Left out: why it is so (02), what was tried (03), which size to choose (04).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from batchgauge.experiments.baseline.costs import memory_sentence
from batchgauge.experiments.baseline.inference import InferenceSweep, long_sweep
from batchgauge.experiments.baseline.sweep import BATCH, ONE_BY_ONE, Sweep, comparison_row, interval
from batchgauge.experiments.context import Lab
from batchgauge.machine.preflight import limit_threads
from batchgauge.measuring import compare_interleaved, measure
from batchgauge.reporting import plots
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    BatchStats,
    InferenceBatchResponse,
    generated_tokens,
)
from batchgauge.workload import texts, to_items

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from batchgauge.reporting import Report

Calls = tuple[Callable[[], object], Callable[[], object], int]  # alone, together, tokens


def _short_sweep(
    lab: Lab, what: str, part: str, share: float, calls: Callable[[int], Calls]
) -> Sweep:
    """A comparison of one at a time and batch at every tokenizing size."""
    rows, samples = [], []
    for size in lab.tokenize_sizes:
        alone, together, tokens = calls(size)
        found = compare_interleaved(
            {ONE_BY_ONE: alone, BATCH: together},
            baseline=ONE_BY_ONE,
            benchmark=f"{part}/batch={size}/chars={lab.characters}",
            items=size,
            tokens=tokens,
            batch_size={ONE_BY_ONE: 1, BATCH: size},
            part=part,
            budget_s=lab.budget.share(share) / len(lab.tokenize_sizes),
            min_blocks=lab.budget.min_blocks,
            seed=lab.seed,
            threads=lab.threads,
        )
        row = comparison_row(found, size, lab.tokenizer_name)
        row["throughput_tokens_per_s"] = found.tokens_per_s(BATCH)
        rows.append(row)
        samples.append(found.frame())
    return Sweep(what, pd.DataFrame(rows), pd.concat(samples, ignore_index=True))


def tokenizing(lab: Lab) -> Sweep:
    """S(b) of tokenizing warm texts of prose: `encode` for each against one `encode_many`."""
    tokenizer = lab.tokenizer

    def calls(size: int) -> Calls:
        batch = texts("prose", lab.characters, size, lab.seed)
        tokens = int(tokenizer.encode_many(batch).offsets[-1])
        return (
            lambda: [tokenizer.encode(text) for text in batch],
            lambda: tokenizer.encode_many(batch),
            tokens,
        )

    return _short_sweep(lab, "Tokenizing", "tokenise", 0.14, calls)


def detokenizing(lab: Lab) -> Sweep:
    """S(b) of the way back: `decode` for each against one `decode_many`."""
    tokenizer = lab.tokenizer

    def calls(size: int) -> Calls:
        rows = tokenizer.encode_many(texts("prose", lab.characters, size, lab.seed)).tolist()
        return (
            lambda: [tokenizer.decode(row) for row in rows],
            lambda: tokenizer.decode_many(rows),
            sum(map(len, rows)),
        )

    return _short_sweep(lab, "Detokenizing", "detokenise", 0.08, calls)


def inference(lab: Lab) -> InferenceSweep:
    """S(b) of whole requests and of decode alone, with the phases apart."""
    items = to_items(lab.prompts, max_tokens=lab.max_tokens, seed=lab.seed, ignore_eos=True)
    return long_sweep(lab, "Inference", "inference", items, lab.inference_sizes, share=0.5)


def end_to_end(lab: Lab) -> InferenceSweep:
    """S(b) from text to text at one size, 8 or the largest: prompts end where they end."""
    sizes = [min(8, max(lab.inference_sizes))]
    items = to_items(lab.prompts, seed=lab.seed)
    most = 2 * lab.max_tokens
    capped = [
        BatchItem(i.id, replace(i.data, max_tokens=min(i.data.max_tokens, most))) for i in items
    ]
    return long_sweep(lab, "End to end", "end_to_end", capped, sizes, share=0.2, at_least=2)


def statistics(lab: Lab) -> pd.DataFrame:
    """Time to make a batch's statistics, and to find a response by id: 100 to 10,000 items."""
    rng = np.random.default_rng(lab.seed)
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
                fn, name=f"{part}/items={count}", items=count, part=part,
                budget_s=lab.budget.share(0.004), seed=lab.seed,
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


def statistics_sentence(table: pd.DataFrame) -> str:
    """The times at 100 and 10,000 items, and how look-up depends on the number."""
    cell = table.set_index(["part", "items"])["median_us"]
    few, many = cell["lookup by id", 100], cell["lookup by id", 10_000]
    return (
        f"Statistics of 100 items take {cell['statistics', 100]:.1f} µs, of 10,000 items "
        f"{cell['statistics', 10_000]:.0f} µs; finding one response by id takes {1e3 * few:.0f} ns "
        f"among 100 and {1e3 * many:.0f} ns among 10,000."
    )


def variation(lab: Lab) -> pd.DataFrame:
    """Throughput of one batch as temperature, tokens generated or prompt length changes alone."""
    size = min(4, max(lab.inference_sizes))
    tokens = lab.max_tokens
    lengths = lab.budget.choose(
        smoke=(25, 50, 100), default=(50, 200, 500), thorough=(50, 200, 800)
    )
    cases: list[tuple[str, float, dict[str, Any], int]] = [
        *(("temperature", t, {"temperature": t}, 0) for t in (0.0, 0.7, 1.5)),
        *(
            ("max_tokens", n, {"max_tokens": n}, 0)
            for n in (max(1, tokens // 2), tokens, 2 * tokens)
        ),
        *(("prompt_characters", c, {}, c) for c in lengths),
    ]
    if lab.budget.name == "smoke":
        cases = cases[::2]
    rows = []
    for what, value, changed, characters in cases:
        options = {"max_tokens": tokens, "ignore_eos": True, "seed": lab.seed} | changed
        items = to_items(lab.prompts[:size], **options)
        if characters:
            made = texts("prose", characters, size, lab.seed)
            items = [
                BatchItem(i.id, replace(i.data, prompt=text))
                for i, text in zip(items, made, strict=True)
            ]
        results = []
        with limit_threads(lab.threads):
            for _ in range(lab.budget.choose(smoke=2, default=3, thorough=12)):
                results.append(lab.engine.infer_batch(items))  # noqa: PERF401  # timed one by one
        rates = [_generated(r) / r.stats.total_duration_ms * 1e3 for r in results[1:]]
        rows.append((what, value, size, float(np.median(rates)), min(rates), max(rates)))
    columns = ["parameter", "value", "batch_size", "median_tokens_per_s"]
    return pd.DataFrame(rows, columns=[*columns, "least_tokens_per_s", "most_tokens_per_s"])


def _generated(result: BatchResult[InferenceBatchResponse]) -> float:
    """Tokens generated in a batch; NaN where nobody counted them."""
    tokens = generated_tokens(result)
    return math.nan if tokens is None else tokens


def draw_variation(table: pd.DataFrame) -> Figure:
    """One panel a parameter: median throughput with the range of its repetitions."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(table["parameter"]))
    fig, axes = plt.subplots(1, len(names), figsize=(9.5, 3.4), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        rows = table[table["parameter"] == name]
        plots.line_with_interval(
            ax, rows["value"].to_numpy(), rows["median_tokens_per_s"].to_numpy(),
            rows["least_tokens_per_s"].to_numpy(), rows["most_tokens_per_s"].to_numpy(),
            implementation="numpy",
        )  # fmt: skip
        ax.set(xlabel=name.replace("_", " "))
    most = table["most_tokens_per_s"].max()
    axes[0][0].set_ylim(0, 1.1 * most if most > 0 else 1)
    axes[0][0].set_ylabel("generated tokens per second\n(median, range of repetitions)")
    fig.suptitle(
        f"What changes throughput at batch {table['batch_size'].iloc[0]}", x=0.01, ha="left"
    )
    return fig


def variation_sentence(table: pd.DataFrame) -> str:
    """How far each parameter moves the throughput, from its first to its last value."""
    if table["median_tokens_per_s"].isna().any():
        return "This engine does not say how many tokens it generated, so there are no rates."
    parts = []
    for name, rows in table.groupby("parameter", sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        change = last["median_tokens_per_s"] / first["median_tokens_per_s"] - 1
        parts.append(
            f"{str(name).replace('_', ' ')} from {first['value']:g} to {last['value']:g}: "
            f"{change:+.0%}"
        )
    return f"Throughput at batch {table['batch_size'].iloc[0]}: {'; '.join(parts)} (medians)."


def score(
    report: Report,
    tokens: Sweep,
    requests: InferenceSweep,
    table: pd.DataFrame,
    bytes_: pd.DataFrame,
) -> None:
    """Put the plan's targets that this notebook measures on the scorecard."""
    row = tokens.at(32)
    report.score(
        "tokenizing_batch_32", label=f"Tokenizing, S({row['batch_size']})", goal=5.0,
        value=row["speedup_x"], low=row["low_x"], high=row["high_x"], unit="×",
    )  # fmt: skip
    row = requests.at(8)
    report.score(
        "inference_batch_8", label=f"Inference, S({row['batch_size']}) of whole requests", goal=3.0,
        value=row["speedup_x"], low=row["low_x"], high=row["high_x"], unit="×",
    )  # fmt: skip
    worst = bytes_["overhead_percent"].max()
    if not math.isnan(worst):
        report.score(
            "memory_overhead", label="Memory overhead, worst batch size", goal=5.0, value=worst,
            unit="%", better="lower",
        )  # fmt: skip
    few = table[(table["part"] == "statistics") & (table["items"] == 100)].iloc[0]
    report.score(
        "statistics_100_items", label="Statistics of 100 items", goal=1000.0,
        value=few["median_us"], low=few["low_us"], high=few["high_us"], unit="µs", better="lower",
    )  # fmt: skip


def summary(tokens: Sweep, requests: InferenceSweep, bytes_: pd.DataFrame) -> str:
    """The answer: what batching buys for tokenizing and inference, and what it costs."""
    words, answers = tokens.at(32), requests.at(8)
    return (
        f"Tokenizing in batches of {words['batch_size']} does {interval(words)} the work of one at "
        f"a time, inference in batches of {answers['batch_size']} {interval(answers)} for whole "
        f"requests. {memory_sentence(bytes_)}"
    )
