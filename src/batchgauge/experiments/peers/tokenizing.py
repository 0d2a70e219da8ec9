"""Tokenizing beside tiktoken, HF tokenizers and llama.cpp: MB/s, cold and warm, batch and length.

Each peer is in fresh processes with ours and nothing else, in the quickest of its own ways for
the shape at hand. Warm: the texts were seen before, caches are filled. Cold: an empty cache in
front of every timing (a fresh tokenizer of ours; HF's cache cleared; tiktoken and llama.cpp
keep none).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from batchgauge import workload
from batchgauge.clock import timed
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.experiments import fresh
from batchgauge.experiments.context import Context
from batchgauge.experiments.peers.participants import Peers
from batchgauge.experiments.peers.rates import OURS, table
from batchgauge.experiments.ways import Call, quickest, ways
from batchgauge.machine.identity import Run
from batchgauge.measuring import Amount, Conditions, Labels, Sample, to_frame
from batchgauge.measuring.timing import calibrate
from batchgauge.protocols import Tokenizer
from batchgauge.registry import open_tokenizer

Shape = tuple[int, int, int]  # threads, characters of a text, texts


def measure_tokenizing(
    peers: Peers, lengths: Sequence[int], sizes: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All lengths and batch sizes on one thread, warm and cold, and the largest batch on two.

    One row a shape, peer and tokenizer (MB/s), and every timing.
    """
    choose = peers.context.budget.choose
    two = choose(smoke=(), default=tuple(lengths[1:]), thorough=tuple(lengths))
    shapes = [(1, n, b) for n in lengths for b in sizes] + [(2, n, max(sizes)) for n in two]
    context, found = peers.context.elsewhere(), []
    for name in [n for n in peers.tokenizers if n != OURS] or [OURS]:
        names = tuple(dict.fromkeys((OURS, name)))
        work = partial(_in_process, context, names, shapes)
        processes = context.budget.processes if len(names) > 1 else 1
        found += [s.assign(pair=name) for s in fresh.each(work, processes=processes)]
    samples = pd.concat(found, ignore_index=True)
    return table(samples.drop(columns="tokens"), "megabytes"), samples


def _in_process(
    context: Context, names: Sequence[str], shapes: Sequence[Shape], process: int
) -> pd.DataFrame:
    tokenizers = {name: open_tokenizer(name, context.model or None) for name in names}
    run, frames = Run.here(seed=context.seed), []
    for threads, length, batch in shapes:
        texts = workload.texts("prose", length, batch, context.seed)
        for state in ("warm", "cold") if threads == 1 else ("warm",):
            samples = _blocks(context, tokenizers, texts, (threads, length, batch), state, process)
            place = {"state": state, "threads": threads, "characters": length}
            megabytes = sum(len(text.encode()) for text in texts) / 1e6
            frames.append(to_frame(samples, run).assign(**place, megabytes=megabytes, weights=""))
    return pd.concat(frames, ignore_index=True)


def _blocks(
    context: Context, tokenizers: dict[str, Tokenizer], texts: list[str], shape: Shape,
    state: str, process: int,
) -> list[Sample]:  # fmt: skip
    threads, length, batch = shape
    chosen = {n: quickest(ways(t, texts, threads)) for n, t in tokenizers.items()}
    calls = {name: call for name, (_, call) in chosen.items()}
    samples = []
    with Conditions(threads, context.seed).held():
        loops = {n: calibrate(call) if state == "warm" else 1 for n, call in calls.items()}
        blocks = context.budget.choose(smoke=4, default=4, thorough=10)
        for block in range(blocks + 1):
            for position, name in enumerate(list(calls)[:: 1 if block % 2 else -1]):
                call = calls[name]
                if state == "cold":
                    call = _emptied(tokenizers[name], texts, chosen[name][0])
                labels = Labels(
                    f"tokenize/{state}/batch={batch}/chars={length}", name, "tokenize",
                    {"characters": length}, process,
                )  # fmt: skip
                place = {"block": block, "position": position, "is_warmup": block == 0}
                elapsed = timed(call, loops[name])
                samples.append(labels.sample(Amount(batch, batch_size=batch), elapsed, **place))
    return samples


def _emptied(tokenizer: Tokenizer, texts: list[str], way: str) -> Call:
    """A call in this `way` on a tokenizer whose caches are empty; code and tables are ready."""
    if isinstance(tokenizer, BPETokenizer):
        empty = BPETokenizer(tokenizer.vocabulary, threads=tokenizer.threads)
        empty.encode_many(["a"])
        return ways(empty, texts, tokenizer.threads)[way]
    if tokenizer.name == "hf":
        tokenizer.raw.model._clear_cache()  # type: ignore[attr-defined]  # noqa: SLF001 - its only way
    return ways(tokenizer, texts)[way]
