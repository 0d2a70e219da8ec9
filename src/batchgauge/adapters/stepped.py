"""An `Engine` around any model that can be advanced step by step: the loop the adapters share.

A foreign library brings a `Stepper` (prefill, decode) and its own tokenizer; reading
prompts, sampling, end tokens and time-keeping are those of our engine
(`batchgauge.core.generation`), so that every engine does the same work around its
model and its stages are seen from outside. Left out: continuous batching, prefix reuse.

Letters: B sequences that are still generating, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchgauge.adapters.checks import check_vocabulary
from batchgauge.core.generation import Generation, PromptReader, Stages, check_batch
from batchgauge.errors import UserError
from batchgauge.protocols import Tokenizer
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    InferenceBatchRequest,
    InferenceBatchResponse,
)

FloatArray = npt.NDArray[np.float32]
MAX_BATCH_SIZE = 100


class Stepper(Protocol):
    """A model and one batch's KV cache. Logits are valid until the next call."""

    vocab_size: int
    context_length: int
    max_rows: int
    padded_positions: int  # computed for nothing in the last prefill

    def prefill(self, rows: Sequence[Sequence[int]], reserve: int) -> FloatArray:
        """Run prompts from empty caches, room for `reserve` more each; last logits [B, V]."""
        ...

    def decode(self, ids: npt.NDArray[np.int32]) -> FloatArray:
        """Append one token [B] to every sequence; logits [B, V]."""
        ...

    def keep(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Go on with only these of the sequences; their former numbers, in their new order."""
        ...

    def rewind(self) -> None:
        """Forget what was decoded since `prefill`; not after `keep`."""
        ...


class SteppedEngine:
    """Batched generation on a `Stepper`; satisfies `batchgauge.protocols.Engine`."""

    def __init__(
        self, name: str, stepper: Stepper, tokenizer: Tokenizer, metadata: Mapping[str, Any]
    ) -> None:
        check_vocabulary(tokenizer, stepper.vocab_size)
        self.name = name
        self.stepper = stepper
        self.tokenizer = tokenizer
        self.reader = PromptReader(tokenizer, metadata, stepper.context_length)
        self.ends = self.reader.edges.ends

    def max_batch_size(self) -> int:
        """The largest batch taken."""
        return min(MAX_BATCH_SIZE, self.stepper.max_rows)

    def infer_batch(
        self, items: Sequence[BatchItem[InferenceBatchRequest]]
    ) -> BatchResult[InferenceBatchResponse]:
        """Answer every item; one that cannot be answered becomes an error response.

        Stages and counters are those of our own engine; padding is counted where the
        library pads. Raises UserError for an empty batch, one above
        `max_batch_size()`, or equal ids.
        """
        stages = Stages()
        check_batch(items, self.max_batch_size())
        with stages.stage("tokenise"):
            prompts = self.reader.read_all([item.data for item in items])
        failed: dict[str, BatchResponse[InferenceBatchResponse]] = {
            item.id: BatchResponse(item.id, None, stages.elapsed_ms(), str(prompt))
            for item, prompt in zip(items, prompts, strict=True)
            if isinstance(prompt, UserError)
        }
        going = [
            Generation(item, prompt, self.reader, self.ends)
            for item, prompt in zip(items, prompts, strict=True)
            if not isinstance(prompt, UserError)
        ]
        counters = {"prompt_tokens": sum(len(one.prompt) for one in going), "decode_steps": 0}
        counters |= {"positions": counters["prompt_tokens"], "padded_positions": 0}
        if going:
            self._generate(going, stages, counters)
        with stages.stage("detokenise"):
            texts = {one.id: one.text() for one in going}
        with stages.stage("bookkeeping"):
            prefill_ms = stages.ms()["prefill"]
            answered = {
                one.id: one.response(texts[one.id], stages.started_ns, prefill_ms) for one in going
            }
            counters["generated_tokens"] = sum(len(one.tokens) for one in going)
        responses = [failed.get(item.id) or answered[item.id] for item in items]
        return BatchResult.of(responses, stages.elapsed_ms(), stages.ms(), counters)

    def _generate(self, going: list[Generation], stages: Stages, counters: dict[str, int]) -> None:
        """Run requests to their ends, and count what the model computed."""
        with stages.stage("prefill"):
            reserve = max(one.limit for one in going)
            logits = self.stepper.prefill([one.prompt for one in going], reserve)
        counters["padded_positions"] += self.stepper.padded_positions
        counters["positions"] += self.stepper.padded_positions
        while True:
            with stages.stage("sample"):
                chosen = [one.choose(row) for one, row in zip(going, logits, strict=True)]
            with stages.stage("bookkeeping"):
                now_ns = perf_counter_ns()
                for one, token in zip(going, chosen, strict=True):
                    one.add(token, now_ns)
                left = [row for row, one in enumerate(going) if one.going]
                if not left:
                    return
                if len(left) < len(going):
                    going = [going[row] for row in self.stepper.keep(np.array(left))]
                ids = np.array([one.tokens[-1] for one in going], dtype=np.int32)
            with stages.stage("decode"):
                logits = self.stepper.decode(ids)
            counters["decode_steps"] += 1
            counters["positions"] += len(going)
