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
from typing import Any

import numpy as np

from batchgauge.core.counts import held_bytes
from batchgauge.core.default_model import open_model
from batchgauge.core.generation import (
    Generation,
    PromptReader,
    Stages,
    answer_batch,
    take_tokens,
)
from batchgauge.core.kernels import activations, products
from batchgauge.core.model import LlamaModel
from batchgauge.core.ops import Floats
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.request import (
    BatchItem,
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

        `stages_ms` has tokenize, pad, prefill, decode, sample, detokenize, bookkeeping;
        `counters` prompt_tokens, generated_tokens, decode_steps, positions (computed by the
        model) and padded_positions (those of them that nobody asked for: none).
        Raises UserError for an empty batch, one above `max_batch_size()`, or equal ids.
        """
        return answer_batch(items, self.reader, MAX_BATCH_SIZE, self._generate)

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

    def _generate(self, going: list[Generation], stages: Stages) -> dict[str, int]:
        """Run requests to their ends; decode steps, and positions that the model computed."""
        with stages.stage("pad"):
            going = sorted(going, key=lambda one: (len(one.prompt), one.limit))
            cache = self.model.new_cache([one.capacity for one in going])
            prompts = [one.prompt for one in going]
        steps, positions = 0, sum(map(len, prompts))
        with stages.stage("prefill"):
            logits = self.model.prefill(prompts, cache)
        while left := take_tokens(going, logits, stages):
            with stages.stage("bookkeeping"):
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
        return {"decode_steps": steps, "positions": positions}
