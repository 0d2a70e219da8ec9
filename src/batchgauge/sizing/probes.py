"""How a calibration asks a real engine or tokenizer what a size costs.

A probe is only a callable that runs a size and gives milliseconds; these make one
from anything that satisfies the `Engine` or `Tokenizer` protocol. An engine that
tells its inter-token or stage times is asked once per size; one that does not is run
with one token and with several, and the difference is the decode time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns

import numpy as np

from batchgauge.errors import UserError
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.request import BatchItem, BatchResult, InferenceBatchRequest, InferenceBatchResponse

# (rows, prompt tokens, decode steps) -> (prefill ms, ms of one decode step)
EngineProbe = Callable[[int, int, int], tuple[float, float]]
# number of texts -> (bytes tokenized, milliseconds)
TextProbe = Callable[[int], tuple[int, float]]


def probe_items(
    rows: int, prompt_tokens: int, new_tokens: int, *, vocab_size: int = 1000, seed: int = 0
) -> list[BatchItem[InferenceBatchRequest]]:
    """A batch of greedy requests of exact lengths; prompts are random ids, end tokens ignored."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab_size, size=(rows, prompt_tokens))  # [B, T]
    return [
        BatchItem(
            str(row),
            InferenceBatchRequest(
                tuple(int(i) for i in ids[row]), max_tokens=new_tokens, ignore_eos=True
            ),
        )
        for row in range(rows)
    ]


def engine_probe(engine: Engine, *, vocab_size: int = 1000) -> EngineProbe:
    """A probe that runs real batches through `infer_batch`.

    Prefill is everything up to the first token (tokenising, first sample, bookkeeping),
    a decode step everything that one more token costs. The probe raises UserError when
    the engine answers with an error.
    """

    def run(rows: int, prompt_tokens: int, new_tokens: int) -> BatchResult[InferenceBatchResponse]:
        items = probe_items(rows, prompt_tokens, new_tokens, vocab_size=vocab_size)
        result = engine.infer_batch(items)
        for response in result.responses:
            if response.error is not None:
                raise UserError(f"The engine failed while calibrating: {response.error}")
        return result

    def probe(rows: int, prompt_tokens: int, steps: int) -> tuple[float, float]:
        result = run(rows, prompt_tokens, 1 + steps)
        total = result.stats.total_duration_ms
        if steps == 0:
            return total, 0.0
        gaps = result.responses[0].data.inter_token_ms if result.responses[0].data else ()
        if len(gaps) == steps:  # the median forgives a step that the system interrupted
            return total - sum(gaps), float(np.median(gaps))
        told = _decode_stage_ms(result.stages_ms, steps)
        if told is not None:
            return total - told, told / steps
        first = run(rows, prompt_tokens, 1).stats.total_duration_ms
        return first, max(0.0, total - first) / steps

    return probe


def _decode_stage_ms(stages_ms: Mapping[str, float], steps: int) -> float | None:
    """Decode time with its share of sampling (the first sample belongs to the prefill)."""
    if "decode" not in stages_ms:
        return None
    return stages_ms["decode"] + stages_ms.get("sample", 0.0) * steps / (steps + 1)


def tokenizer_probe(
    tokenizer: Tokenizer, texts: Sequence[str], *, least_ms: float = 1.0, seed: int = 0
) -> TextProbe:
    """A probe that tokenizes so many of `texts` (shuffled, then repeated in order) in one call.

    All texts are tokenized once before, so that a cache of words is as full for the first
    size as for the last; calls are repeated until `least_ms` have passed. Raises UserError
    when there are no texts.
    """
    if not texts:
        raise UserError("There are no texts to calibrate the tokenizer with.")
    order = np.random.default_rng(seed).permutation(len(texts))
    shuffled = [texts[i] for i in order]
    sizes = [len(text.encode()) for text in shuffled]
    tokenizer.encode_many(shuffled)

    def probe(size: int) -> tuple[int, float]:
        chosen = [i % len(shuffled) for i in range(size)]
        batch = [shuffled[i] for i in chosen]
        start, calls, elapsed = perf_counter_ns(), 0, 0.0
        while elapsed < least_ms:
            tokenizer.encode_many(batch)
            calls += 1
            elapsed = (perf_counter_ns() - start) / 1e6
        return sum(sizes[i] for i in chosen), elapsed / calls

    return probe
