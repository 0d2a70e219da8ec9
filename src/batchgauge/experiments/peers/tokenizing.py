"""Tokenizing beside tiktoken, HF tokenizers and llama.cpp: MB/s, cold and warm, batch and length.

Each peer runs in the quickest of its own ways for the shape at hand. Warm: the texts were
seen before, caches are filled. Cold: an empty cache in front of every timing (a fresh
tokenizer of ours; HF's cache cleared; tiktoken and llama.cpp keep none).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from batchgauge import workload
from batchgauge.clock import timed
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.experiments.peers.participants import Peers
from batchgauge.experiments.peers.rates import OURS, How, measured, rate_table, verdict
from batchgauge.experiments.ways import Call, quickest, ways
from batchgauge.measuring import Amount, Conditions, Labels, Stopping, location
from batchgauge.protocols import Tokenizer


def measure_tokenizing(
    peers: Peers, lengths: Sequence[int], sizes: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All lengths and batch sizes on one thread, warm and cold, and the largest batch on two.

    One row a shape and tokenizer (MB/s), and every timing of the warm ones.
    """
    two = peers.context.budget.choose(smoke=(), default=tuple(lengths[1:]), thorough=tuple(lengths))
    shapes = [(1, n, b) for n in lengths for b in sizes] + [(2, n, max(sizes)) for n in two]
    rows: list[dict[str, Any]] = []
    samples = []
    for threads, length, batch in shapes:
        texts = workload.texts("prose", length, batch, peers.context.seed)
        megabytes = sum(len(t.encode()) for t in texts) / 1e6
        place = {"threads": threads, "characters": length, "batch_size": batch}
        calls = {n: quickest(ways(t, texts, threads))[1] for n, t in peers.tokenizers.items()}
        how = How(
            Labels(
                f"tokenize/batch={batch}/chars={length}", part="tokenize",
                parameters={"characters": length},
            ),
            Amount(batch_size=batch),
            Stopping(peers.context.budget.share(0.15) / len(shapes), most=60),
            Conditions(threads, peers.context.seed),
        )  # fmt: skip
        warm = {**place, "state": "warm"}
        found, timings = measured(calls, dict.fromkeys(calls, megabytes), warm, how)
        rows += found
        samples.append(timings)
        if threads == 1:
            rows += _cold(peers, texts, megabytes, {**place, "state": "cold"})
    return rate_table(rows), pd.concat(samples)


def _cold(
    peers: Peers, texts: list[str], megabytes: float, place: dict[str, Any]
) -> list[dict[str, Any]]:
    """The first call on empty caches, interleaved; ranges are 95 % intervals over repeats."""
    repeats = peers.context.budget.choose(smoke=3, default=7, thorough=25)
    logs: dict[str, list[float]] = {name: [] for name in peers.tokenizers}
    order = np.random.default_rng(peers.context.seed)
    with Conditions(threads=1).held():
        for _ in range(repeats):
            for name in order.permutation(list(logs)).tolist():
                call = _emptied(peers.tokenizers[name], texts)
                logs[name].append(math.log(timed(call).wall_ns / 1e9))
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
    return next(iter(ways(tokenizer, texts).values()))
