"""The straightforward engine: one request after the other, the baseline of the study.

A batch is a loop. Reading of prompts, sampling and stopping are the core's own, so
that what differs from `batchgauge.core.engine` is how the model is run. As there, the
process must not fork while another thread is in `infer_batch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from batchgauge.baseline.model import BaselineModel
from batchgauge.baseline.tokenizer import BaselineTokenizer
from batchgauge.core.default_model import open_model
from batchgauge.core.engine import MAX_BATCH_SIZE
from batchgauge.core.generation import Generation, PromptReader, Stages, check_batch
from batchgauge.core.ops import Floats
from batchgauge.errors import UserError
from batchgauge.protocols import Tokenizer
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    InferenceBatchRequest,
    InferenceBatchResponse,
)


class BaselineEngine:
    """Request by request: satisfies `batchgauge.protocols.Engine`."""

    name = "baseline"

    def __init__(
        self, model: BaselineModel, tokenizer: Tokenizer, metadata: Mapping[str, Any]
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.reader = PromptReader(tokenizer, metadata, model.config.context_length)

    @classmethod
    def from_gguf(cls, path: str | Path | None = None) -> BaselineEngine:
        """Load model and tokenizer of a GGUF file; None is the default model. Raises UserError."""
        file = open_model(path)
        tokenizer = BaselineTokenizer.from_metadata(file.metadata)
        return cls(BaselineModel.from_file(file), tokenizer, file.metadata)

    def infer_batch(
        self, items: Sequence[BatchItem[InferenceBatchRequest]]
    ) -> BatchResult[InferenceBatchResponse]:
        """Answer the items in order; one that cannot be answered becomes an error response.

        Stages and counters are those of the core's engine. Raises UserError for an empty
        batch, one above `max_batch_size()`, or equal ids.
        """
        stages = Stages()
        check_batch(items, MAX_BATCH_SIZE)
        counters = dict.fromkeys(
            ("prompt_tokens", "generated_tokens", "decode_steps", "positions", "padded_positions"),
            0,
        )
        responses = []
        for item in items:
            try:
                responses.append(self._answer(item, stages, counters))
            except UserError as problem:
                responses.append(BatchResponse(item.id, None, stages.elapsed_ms(), str(problem)))
        return BatchResult.of(responses, stages.elapsed_ms(), stages.ms(), counters)

    def next_token_logits(self, request: InferenceBatchRequest) -> Floats:
        """Scores [V] of the token after a request's prompt. Raises UserError for a bad prompt."""
        logits = self.model.forward(self.reader.read(request), self.model.new_cache())  # [T, V]
        last: Floats = logits[-1]
        return last

    def max_batch_size(self) -> int:
        """The largest batch taken: 100 items."""
        return MAX_BATCH_SIZE

    def _answer(
        self, item: BatchItem[InferenceBatchRequest], stages: Stages, counters: dict[str, int]
    ) -> BatchResponse[InferenceBatchResponse]:
        with stages.stage("tokenize"):
            prompt = self.reader.read(item.data)
        one = Generation(item, prompt, self.reader)
        cache = self.model.new_cache(one.capacity)
        before_ms = stages.ms()["prefill"]
        with stages.stage("prefill"):
            logits = self.model.forward(prompt, cache)[-1]  # [V]
        prefill_ms = stages.ms()["prefill"] - before_ms
        counters["prompt_tokens"] += len(prompt)
        counters["positions"] += len(prompt)
        while True:
            with stages.stage("sample"):
                token = one.sample(logits)
            one.add(token, perf_counter_ns())
            if one.reason is not None:
                break
            with stages.stage("decode"):
                logits = self.model.forward([token], cache)[-1]
            counters["decode_steps"] += 1
            counters["positions"] += 1
        counters["generated_tokens"] += len(one.tokens)
        with stages.stage("detokenize"):
            text = one.text()
        return one.response(text, stages.started_ns, prefill_ms)
