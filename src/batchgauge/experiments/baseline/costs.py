"""What a batch costs beside its time: memory, and the fixed cost of the batching layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pandas as pd
import psutil

from batchgauge.core.tokenizer.batch_tokenizer import BatchTokenizer
from batchgauge.experiments.baseline.inference import short_prompts
from batchgauge.experiments.context import Context
from batchgauge.measuring import Amount, Conditions, Labels, Stopping, compare_interleaved
from batchgauge.measuring.memory import allocations, memory_overhead
from batchgauge.request import BatchItem, TokenizeBatchRequest
from batchgauge.workload import texts, to_items


def memory(context: Context, sizes: Sequence[int], max_tokens: int) -> pd.DataFrame:
    """Bytes of a batch by size: allocated at the peak, what must exist, overhead, per item.

    The overhead, once over all that must exist, once over what must beside the weights, is NaN for
    an engine that cannot say that. So is the peak: libraries allocate where Python does not see it.
    Of an engine in this process, what the process holds is known.
    """
    prompts, rows = short_prompts(context, max(sizes)), []
    for size in sizes:
        items = to_items(prompts[:size], max_tokens=max_tokens, chat=context.chat, ignore_eos=True)
        result = context.engine.infer_batch(items)
        data = [r.data for r in result.responses if r.data]
        peak = weights = must = math.nan
        if count := getattr(context.engine, "count_bytes", None):
            again = partial(context.engine.infer_batch, items)
            peak = allocations(again, warm_up=False).peak_bytes
            held = count([d.prompt_tokens for d in data], [d.tokens_generated for d in data])
            weights, must = held.get("weights", math.nan), sum(held.values())
        is_here = not hasattr(context.engine, "ask")
        process = psutil.Process().memory_info().rss if is_here else math.nan
        overhead = 100 * memory_overhead(weights + peak, must)
        beside = 100 * memory_overhead(peak, must - weights)
        rows.append((size, peak, must - weights, weights, overhead, beside, peak / size, process))
    columns = ["batch_size", "peak_bytes", "must_exist_beside_weights_bytes", "weights_bytes"]
    shares = ["overhead_percent", "overhead_beside_weights_percent"]
    return pd.DataFrame(rows, columns=[*columns, *shares, "peak_per_item_bytes", "process_bytes"])


def layer_overhead(context: Context, sizes: Sequence[int], characters: int) -> pd.DataFrame:
    """What items, ids, responses and statistics add to the same tokenizing, by batch size."""
    batcher = BatchTokenizer(context.tokenizer)
    rows = []
    for size in sizes:
        batch = texts("prose", characters, size, context.seed)
        items = [BatchItem(str(i), TokenizeBatchRequest(t)) for i, t in enumerate(batch)]
        found = compare_interleaved(
            {
                "with the layer": partial(batcher.encode_batch, items),
                "bare": partial(context.tokenizer.encode_many, batch),
            },
            Labels(f"layer/batch={size}"),
            Amount(items=size),
            stopping=Stopping(context.budget.share(0.01), context.budget.min_blocks),
            conditions=Conditions(seed=context.seed),
            progress=False,
        )
        ratio = found.ratio("bare")
        bare, layered = found.median_ms("bare"), found.median_ms("with the layer")
        extra = 1e3 * (layered - bare) / size
        rows.append((size, 1e3 * bare, 1e3 * layered, extra, ratio.value, ratio.low, ratio.high))
    columns = ["batch_size", "bare_us", "with_layer_us", "extra_per_item_us"]
    return pd.DataFrame(rows, columns=[*columns, "ratio_x", "low_x", "high_x"])
