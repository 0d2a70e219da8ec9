"""Tokenizing beside tiktoken, HF tokenizers and llama.cpp: MB/s, cold and warm, batch and length.

Each peer runs in the quickest of its own ways for the shape at hand. Warm: the texts were
seen before, caches are filled. Cold: an empty cache in front of every timing (a fresh
tokenizer of ours; HF's cache cleared; tiktoken and llama.cpp keep none).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from batchgauge import workload
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.experiments.peers.rates import OURS, measured, rate_table, verdict
from batchgauge.experiments.peers.study import Peers, headline
from batchgauge.measuring import location
from batchgauge.measuring.timing import conditions, timed
from batchgauge.protocols import Tokenizer
from batchgauge.reporting import plots
from batchgauge.reporting.tables import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Tokenizing:
    """`table` has one row a shape and tokenizer (MB/s), `samples` every timing of the warm ones."""

    table: pd.DataFrame
    samples: pd.DataFrame


def measure_tokenizing(peers: Peers) -> Tokenizing:
    """All lengths and batch sizes on one thread, warm and cold, and the largest batch on two."""
    choose = peers.budget.choose
    lengths = choose(smoke=(200,), default=(32, 200, 2000), thorough=(32, 200, 2000))
    sizes = choose(smoke=(1, 32), default=(1, 8, 64), thorough=(1, 2, 4, 8, 16, 32, 64))
    two = choose(smoke=(), default=lengths[1:], thorough=lengths)
    shapes = [(1, n, b) for n in lengths for b in sizes] + [(2, n, max(sizes)) for n in two]
    rows: list[dict[str, Any]] = []
    samples = []
    for threads, length, batch in shapes:
        texts = workload.texts("prose", length, batch, peers.seed)
        megabytes = sum(len(t.encode()) for t in texts) / 1e6
        place = {"threads": threads, "characters": length, "batch_size": batch}
        calls = {n: quickest(t, texts, threads) for n, t in peers.tokenizers.items()}
        found, timings = measured(
            calls, dict.fromkeys(calls, megabytes), {**place, "state": "warm"},
            benchmark=f"tokenise/batch={batch}/chars={length}",
            budget_s=peers.budget.share(0.15) / len(shapes), min_blocks=5, max_blocks=60,
            seed=peers.seed, threads=threads, part="tokenise", batch_size=batch,
            parameters={"characters": length},
        )  # fmt: skip
        rows += found
        samples.append(timings)
        if threads == 1:
            rows += _cold(peers, texts, megabytes, {**place, "state": "cold"})
    return Tokenizing(rate_table(rows), pd.concat(samples))


def quickest(tokenizer: Tokenizer, texts: list[str], threads: int) -> Call:
    """The quickest of a tokenizer's own ways to do `texts`, by the best of three tries."""

    def once(call: Call) -> float:
        call()
        return min(timed(call, 1)[0] for _ in range(3))

    return min(_ways(tokenizer, texts, threads), key=once)


def _ways(tokenizer: Tokenizer, texts: list[str], threads: int) -> list[Call]:
    raw = getattr(tokenizer, "raw", None)
    if hasattr(tokenizer, "threads"):
        tokenizer.threads = threads
    if tokenizer.name == "tiktoken" and raw is not None:
        pooled: Call = lambda: raw.encode_ordinary_batch(texts, num_threads=threads)  # noqa: E731 - one of several
        plain: Call = lambda: [raw.encode_ordinary(text) for text in texts]  # noqa: E731 - see above
        return [plain, pooled] if threads > 1 else [plain]
    if tokenizer.name == "hf" and raw is not None:
        tokenizer.encode_many(texts)  # sets its threads
        return [
            lambda: [e.ids for e in raw.encode_batch_fast(texts, add_special_tokens=False)],
            lambda: [raw.encode(text, add_special_tokens=False).ids for text in texts],
        ]
    return [lambda: tokenizer.encode_many(texts)]


def _cold(
    peers: Peers, texts: list[str], megabytes: float, place: dict[str, Any]
) -> list[dict[str, Any]]:
    """The first call on empty caches, interleaved; ranges are 95 % intervals over repeats."""
    repeats = peers.budget.choose(smoke=3, default=7, thorough=25)
    logs: dict[str, list[float]] = {name: [] for name in peers.tokenizers}
    order = np.random.default_rng(peers.seed)
    with conditions(threads=1):
        for _ in range(repeats):
            for name in order.permutation(list(logs)).tolist():
                call = _emptied(peers.tokenizers[name], texts)
                logs[name].append(math.log(timed(call, 1)[0] / 1e9))
    rows = []
    for name, values in logs.items():
        time, ratio = location(values), location(np.subtract(values, logs[OURS]))
        row: dict[str, Any] = {
            **place, "implementation": name, "value": megabytes / math.exp(time.value),
            "low": megabytes / math.exp(time.high), "high": megabytes / math.exp(time.low),
        }  # fmt: skip
        if name != OURS:
            low, high = math.exp(ratio.low), math.exp(ratio.high)
            row |= {
                "ours_over_theirs_x": math.exp(ratio.value), "ratio_low_x": low,
                "ratio_high_x": high,
                "ours_is": verdict(low, high),
            }  # fmt: skip
        rows.append({**row, "blocks": repeats})
    return rows


def _emptied(tokenizer: Tokenizer, texts: list[str]) -> Call:
    """A call on a tokenizer whose caches are empty; compiled code and tables are ready."""
    if isinstance(tokenizer, BPETokenizer):
        fresh = BPETokenizer(tokenizer.vocabulary)
        fresh.encode_many(["a"])
        return lambda: fresh.encode_many(texts)
    if tokenizer.name == "hf":
        tokenizer.raw.model._clear_cache()  # type: ignore[attr-defined]  # noqa: SLF001 - its only way
    return _ways(tokenizer, texts, 1)[0]


def draw_tokenizing(study: Tokenizing, *, state: str = "warm") -> Figure:
    """MB/s against batch size, one panel a text length, one thread."""
    table = study.table.query("threads == 1 and state == @state")
    lengths = sorted(set(table["characters"]))
    figure, panels = plt.subplots(
        1, len(lengths), figsize=(3.6 * len(lengths) + 1.2, 4.0), sharey=True, squeeze=False
    )
    for ax, length in zip(panels[0], lengths, strict=True):
        for name, rows in table[table["characters"] == length].groupby(
            "implementation", sort=False
        ):
            ordered = rows.sort_values("batch_size")
            columns = (ordered[c].to_numpy() for c in ("batch_size", "value", "low", "high"))
            look = f"{name}:tokenizer" if name == "llama-cpp" else str(name)
            plots.line_with_interval(ax, *columns, implementation=look)
        ax.set_title(f"{length:,} characters")
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        plots.batch_axis(ax, table["batch_size"], "batch size (texts)")
    panels[0][0].set_ylabel(f"MB/s, {state}")
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    headline(figure, tokenizing_sentence(study, state=state), len(lengths))
    return figure


def tokenizing_sentence(study: Tokenizing, *, state: str = "warm") -> str:
    """Our rate over each peer's at the largest batch, from the shortest to the longest text."""
    table = study.table.query("threads == 1 and state == @state")
    largest = table[table["batch_size"] == table["batch_size"].max()].dropna(
        subset=["ours_over_theirs_x"]
    )
    if largest.empty:
        return "No other tokenizer is installed."
    parts = [
        f"{_span(rows['ours_over_theirs_x'])} × {plots.label(str(name))}"
        for name, rows in largest.groupby("implementation", sort=False)
    ]
    return f"At batch {largest['batch_size'].iloc[0]}, {state}, we run at {', '.join(parts)}"


def _span(values: Sequence[float] | pd.Series[Any]) -> str:
    low, high = (number(end, 2) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
