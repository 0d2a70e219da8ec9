"""The batch inference engine: prompts to continuations, all requests of a batch together.

All requests of a batch join a `BatchLoop`, whose first step reads all prompts; then every
decode step takes all requests that are still going. Answers come in the order of the items.
`open_loop` is for requests that join a batch under way.

Left out: a fork of the process while another of its threads is in a step (OpenBLAS, which
NumPy's wheels bring, can wait for its own threads for ever then; tokenizers and templates
allow it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from batchgauge.core.batch_loop import BatchLoop
from batchgauge.core.counts import held_bytes
from batchgauge.core.default_model import open_model
from batchgauge.core.generation import Generation, PromptReader, Stages, answer_batch
from batchgauge.core.kernels import activations, products
from batchgauge.core.model import LlamaModel
from batchgauge.core.ops import Floats
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.request import BatchItem, BatchResult, InferenceBatchRequest, InferenceBatchResponse

MAX_BATCH_SIZE = 100


class BatchInferenceEngine:
    """The core's engine: satisfies `batchgauge.protocols.Engine`."""

    name = "numpy"

    def __init__(
        self, model: LlamaModel, tokenizer: BPETokenizer, metadata: Mapping[str, Any]
    ) -> None:
        self.model = model
        # Now, not while the first request waits.
        _ = products.compiled(), activations.compiled(), model.attention
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
            LlamaModel(file, weights),
            BPETokenizer.from_metadata(file.metadata, threads=1),
            file.metadata,
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
        return answer_batch(items, self.reader, MAX_BATCH_SIZE, self._run)

    def open_loop(
        self,
        slots: int = MAX_BATCH_SIZE,
        positions: int | None = None,
        prefill_tokens: int | None = None,
    ) -> BatchLoop:
        """A loop that requests can join and leave between steps: see `BatchLoop`."""
        return BatchLoop(self.model, self.reader, slots, positions, prefill_tokens)

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

    def _run(self, going: list[Generation], stages: Stages) -> dict[str, int]:
        """Run requests to their ends; decode steps, and positions that the model computed."""
        loop = BatchLoop(self.model, self.reader, MAX_BATCH_SIZE)
        loop.stages = stages
        loop.join(going)
        while len(loop):
            loop.step()
        return {name: loop.counters[name] for name in ("decode_steps", "positions")}
