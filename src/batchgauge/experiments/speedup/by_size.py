"""S(b) of the core at every batch size: over itself one at a time, and over the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
from tqdm.auto import tqdm

from batchgauge.baseline.engine import BaselineEngine
from batchgauge.baseline.tokenizer import BaselineTokenizer
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.experiments.context import Context
from batchgauge.experiments.speedup.ladder import between
from batchgauge.measuring import (
    Amount,
    Conditions,
    Design,
    Labels,
    Stopping,
    compare_interleaved,
)
from batchgauge.workload import exact_requests, texts

BASELINE, STRICT, OVER_BASELINE = "baseline", "same implementation", "over the baseline"


def tokenizing_by_size(context: Context, sizes: Sequence[int]) -> pd.DataFrame:
    """Tokenizing at every batch size, strict (over ours, one at a time) and over the baseline."""
    ours, baseline = (
        BPETokenizer.from_gguf(context.model or None),
        BaselineTokenizer.from_gguf(context.model or None),
    )
    rows = []
    for size in tqdm(sizes, desc="Tokenizing by batch size", leave=False):
        chosen = texts("prose", 200, size, context.seed)
        found = compare_interleaved(
            {
                BASELINE: partial(_each, baseline.encode, chosen),
                "one at a time": partial(_each, ours.encode, chosen),
                "batch": partial(ours.encode_many, chosen),
            },
            Labels(f"speedup/tokenize/batch={size}", part="tokenize"),
            Amount(items=size),
            design=Design(aa=False, control=False),
            stopping=Stopping(context.budget.share(0.008), context.budget.min_blocks),
            conditions=Conditions(context.threads, context.seed), progress=False,
        )  # fmt: skip
        strict, over = between(found, "one at a time", "batch"), found.ratio("batch")
        rows += [
            (STRICT, size, strict.value, strict.low, strict.high),
            (OVER_BASELINE, size, over.value, over.low, over.high),
        ]
    return _by_size(rows, "tokenizing")


def inference_by_size(context: Context, sizes: Sequence[int]) -> pd.DataFrame:
    """Whole requests of one shape at every batch size, strict and over the baseline engine."""
    ours = BatchInferenceEngine.from_gguf(context.model or None)
    baseline = BaselineEngine.from_gguf(context.model or None)
    names = {size: f"batch {size}" for size in sorted({1, *sizes})}
    prompt, new = context.budget.choose(smoke=(8, 2), default=(16, 8), thorough=(16, 8))  # tokens
    calls: dict[str, Callable[[], object]] = {
        BASELINE: partial(baseline.infer_batch, exact_requests([prompt], [new]))
    }
    for size, name in names.items():
        calls[name] = partial(ours.infer_batch, exact_requests([prompt] * size, [new] * size))
    amounts = {BASELINE: Amount()} | {name: Amount(items=size) for size, name in names.items()}
    least = context.budget.choose(smoke=2, default=4, thorough=24)
    found = compare_interleaved(
        calls, Labels("speedup/inference", part="inference"), amounts,
        design=Design(aa=False, control=False, one_way=True),
        stopping=Stopping(context.budget.share(0.14), least),
        conditions=Conditions(context.threads, context.seed),
    )  # fmt: skip
    rows = []
    for size, name in names.items():
        over = found.ratio(name)
        rows.append((OVER_BASELINE, size, over.value, over.low, over.high))
        if size > 1:
            strict = between(found, names[1], name)
            rows.append((STRICT, size, strict.value, strict.low, strict.high))
        else:
            rows.append((STRICT, 1, 1.0, 1.0, 1.0))
    return _by_size(rows, "inference")


def _each(fn: Callable[[str], object], chosen: Sequence[str]) -> list[object]:
    return [fn(text) for text in chosen]


def _by_size(rows: list[tuple[str, int, float, float, float]], part: str) -> pd.DataFrame:
    columns = ["implementation", "batch_size", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).assign(part=part)
