"""What a batch costs beside its time: memory, and the fixed cost of the batching layer."""

from __future__ import annotations

import math
from functools import partial

import pandas as pd

from batchgauge.core.tokenizer.bpe_tokenizer import BatchTokenizer
from batchgauge.experiments.context import Lab
from batchgauge.measuring import compare_interleaved
from batchgauge.measuring.memory import allocations, memory_overhead
from batchgauge.request import BatchItem, TokenizeBatchRequest
from batchgauge.workload import texts, to_items


def memory(lab: Lab) -> pd.DataFrame:
    """Bytes of a batch by size: allocated at the peak, what must exist, overhead, per item.

    The overhead is NaN for an engine that cannot say what must exist.
    """
    rows = []
    for size in lab.inference_sizes:
        items = to_items(lab.prompts[:size], max_tokens=lab.max_tokens, ignore_eos=True)
        result = lab.engine.infer_batch(items)
        data = [r.data for r in result.responses if r.data]
        peak = allocations(partial(lab.engine.infer_batch, items), warm_up=False).peak_bytes
        count = getattr(lab.engine, "count_bytes", None)
        held = (
            count([d.prompt_tokens for d in data], [d.tokens_generated for d in data])
            if count
            else {}
        )
        weights = held.get("weights", math.nan)
        must = sum(held.values()) if held else math.nan
        overhead = 100 * memory_overhead(weights + peak, must) if held else math.nan
        rows.append((size, peak, must - weights, weights, overhead, peak / size))
    columns = ["batch_size", "peak_bytes", "must_exist_beside_weights_bytes", "weights_bytes"]
    return pd.DataFrame(rows, columns=[*columns, "overhead_percent", "peak_per_item_bytes"])


def memory_sentence(table: pd.DataFrame) -> str:
    """The overhead at the largest batch, or that the engine cannot say."""
    row = table.iloc[-1]
    if math.isnan(row["overhead_percent"]):
        return "This engine does not say what must exist, so its overhead is not known."
    return (
        f"A batch of {row['batch_size']:.0f} peaks at {row['peak_bytes'] / 2**20:.1f} MiB beside "
        f"{row['weights_bytes'] / 2**20:.0f} MiB of weights, "
        f"{row['peak_per_item_bytes'] / 2**20:.2f} MiB an item; "
        f"the overhead over what must exist is {row['overhead_percent']:.2f} %."
    )


def layer_overhead(lab: Lab) -> pd.DataFrame:
    """What items, ids, responses and statistics add to the same tokenizing, by batch size."""
    batcher = BatchTokenizer(lab.tokenizer)
    rows = []
    for size in lab.tokenize_sizes:
        batch = texts("prose", lab.characters, size, lab.seed)
        items = [BatchItem(str(i), TokenizeBatchRequest(t)) for i, t in enumerate(batch)]
        found = compare_interleaved(
            {
                "with the layer": partial(batcher.encode_batch, items),
                "bare": partial(lab.tokenizer.encode_many, batch),
            },
            baseline="with the layer",
            benchmark=f"layer/batch={size}",
            items=size,
            budget_s=lab.budget.share(0.01),
            min_blocks=lab.budget.min_blocks,
            seed=lab.seed,
            progress=False,
        )
        ratio = found.ratio("bare")
        bare, layered = found.median_ms("bare"), found.median_ms("with the layer")
        extra = 1e3 * (layered - bare) / size
        rows.append((size, 1e3 * bare, 1e3 * layered, extra, ratio.value, ratio.low, ratio.high))
    columns = ["batch_size", "bare_us", "with_layer_us", "extra_per_item_us"]
    return pd.DataFrame(rows, columns=[*columns, "ratio_x", "low_x", "high_x"])


def layer_sentence(table: pd.DataFrame) -> str:
    """The layer's cost an item at the largest batch."""
    row = table.iloc[-1]
    return (
        f"At batch {row['batch_size']:.0f} the batching layer adds "
        f"{row['extra_per_item_us']:.2f} µs an item: {row['ratio_x']:.2f} × "
        f"[{row['low_x']:.2f}, {row['high_x']:.2f}] the time of the bare call."
    )
