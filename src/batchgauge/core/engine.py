"""The batch inference engine: prompts to continuations, all requests of a batch together.

One prefill reads all prompts, then every decode step takes all requests that are still
going; a finished one leaves the batch at once and its room goes to its neighbours.
Requests are ordered by length inside, so that the attention of a group of neighbours
wastes little; answers come in the order of the items.

Left out: requests that join a batch under way (continuous batching), streaming, a fork of
the process while another of its threads is in `infer_batch` (OpenBLAS, which NumPy's wheels
bring, can wait for its own threads for ever then; tokenizers and templates allow it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from batchgauge.core.counts import held_bytes
from batchgauge.core.default_model import open_model
from batchgauge.core.generation import Generation, PromptReader, Stages, check_batch
from batchgauge.core.kernels import activations, products
from batchgauge.core.model import LlamaModel
from batchgauge.core.ops import Floats
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    InferenceBatchRequest,
    InferenceBatchResponse,
)

MAX_BATCH_SIZE = 100


class BatchInferenceEngine:
    """The core's engine: satisfies `batchgauge.protocols.Engine`."""

    name = "numpy"

    def __init__(
        self, model: LlamaModel, tokenizer: BPETokenizer, metadata: Mapping[str, Any]
    ) -> None:
        self.model = model
        _ = (
            products.compiled(),
            activations.compiled(),
            model.attention,
        )  # now, not while the first request waits
        self.tokenizer = tokenizer
        self.reader = PromptReader(tokenizer, metadata, model.config.context_length)
        self.ends = self.reader.edges.ends
        self.weights = model.weights.mode  # how they are kept: float32, file or bfloat16
        self.title = str(metadata.get("general.name", "unnamed"))

    @classmethod
    def from_gguf(
        cls, path: str | Path | None = None, weights: str = "float32"
    ) -> BatchInferenceEngine:
        """Load model and tokenizer of a GGUF file; None is the default model. Raises UserError.

        `weights` as for `LlamaModel.load`.
        """
        file = open_model(path)
        return cls(
            LlamaModel(file, weights), BPETokenizer.from_metadata(file.metadata), file.metadata
        )

    def infer_batch(
        self, items: Sequence[BatchItem[InferenceBatchRequest]]
    ) -> BatchResult[InferenceBatchResponse]:
        """Answer every item; one that cannot be answered becomes an error response.

        `stages_ms` has tokenise, pad, prefill, decode, sample, detokenise, bookkeeping;
        `counters` prompt_tokens, generated_tokens, decode_steps, positions (computed by the
        model) and padded_positions (those of them that nobody asked for: none).
        Raises UserError for an empty batch, one above `max_batch_size()`, or equal ids.
        """
        stages = Stages()
        check_batch(items, MAX_BATCH_SIZE)
        with stages.stage("tokenise"):
            prompts = self.reader.read_all([item.data for item in items])
        failed: dict[str, BatchResponse[InferenceBatchResponse]] = {}
        going: list[Generation] = []
        with stages.stage("pad"):
            for item, prompt in zip(items, prompts, strict=True):
                if isinstance(prompt, UserError):
                    failed[item.id] = BatchResponse(item.id, None, stages.elapsed_ms(), str(prompt))
                else:
                    going.append(Generation(item, prompt, self.reader, self.ends))
            going.sort(key=lambda one: (len(one.prompt), one.limit))
        everyone = {one.id: one for one in going}
        steps, positions = self._generate(going, stages) if going else (0, 0)
        with stages.stage("detokenise"):
            texts = {one.id: one.text() for one in everyone.values()}
        with stages.stage("bookkeeping"):
            prefill_ms = stages.ms()["prefill"]
            responses = [
                failed[item.id]
                if item.id in failed
                else everyone[item.id].response(texts[item.id], stages.started_ns, prefill_ms)
                for item in items
            ]
            counters = {
                "prompt_tokens": sum(len(one.prompt) for one in everyone.values()),
                "generated_tokens": sum(len(one.tokens) for one in everyone.values()),
                "decode_steps": steps,
                "positions": positions,
                "padded_positions": 0,
            }
        return BatchResult.of(responses, stages.elapsed_ms(), stages.ms(), counters)

    def next_token_logits(self, request: InferenceBatchRequest) -> Floats:
        """Scores [V] of the token after a request's prompt. Raises UserError for a bad prompt."""
        ids = self.reader.read(request)
        logits = self.model.prefill([ids], self.model.new_cache([len(ids)]))  # [1, V]
        return logits.reshape(-1)

    def count_bytes(
        self, prompt_tokens: Sequence[int], new_tokens: Sequence[int]
    ) -> dict[str, int]:
        """Bytes that must exist for requests of these lengths: see `counts.held_bytes`."""
        return held_bytes(self.model.config, self.model.weights_bytes, prompt_tokens, new_tokens)

    def max_batch_size(self) -> int:
        """The largest batch taken: 100 items."""
        return MAX_BATCH_SIZE

    def optimal_batch_size(self) -> int:
        """The sizing advisor's answer for this engine on this machine; measures the first time."""
        from batchgauge.sizing import optimal_for_engine

        return optimal_for_engine(self)

    def _generate(self, going: list[Generation], stages: Stages) -> tuple[int, int]:
        """Run requests to their ends; decode steps, and positions that the model computed."""
        with stages.stage("pad"):
            cache = self.model.new_cache([one.capacity for one in going])
            prompts = [one.prompt for one in going]
        steps, positions = 0, sum(map(len, prompts))
        with stages.stage("prefill"):
            logits = self.model.prefill(prompts, cache)
        while True:
            with stages.stage("sample"):
                chosen = [one.choose(row) for one, row in zip(going, logits, strict=True)]
            with stages.stage("bookkeeping"):
                now_ns = perf_counter_ns()
                for one, token in zip(going, chosen, strict=True):
                    one.add(token, now_ns)
                left = [row for row, one in enumerate(going) if one.going]
                if not left:
                    return steps, positions
                for row, one in enumerate(going):
                    if one.error is not None:  # what is not finite must not stay near others
                        cache.clear(row)
                if len(left) < len(going):
                    going = [going[row] for row in cache.keep(set(left))]
                tokens = np.array([one.tokens[-1] for one in going], dtype=np.int32)
            with stages.stage("decode"):
                logits = self.model.decode(tokens, cache)
            steps += 1
            positions += len(going)
