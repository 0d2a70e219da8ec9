"""An `Engine` around any model that can be advanced step by step: the loop the adapters share.

A foreign library brings a `Stepper` (prefill, decode) and its own tokenizer; reading
prompts, sampling, end tokens and time-keeping are those of our engine
(`batchgauge.core.generation`), so that every engine does the same work around its
model and its stages are seen from outside. Left out: continuous batching, prefix reuse.

Letters: B sequences that are still generating, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchgauge.adapters.checks import check_vocabulary
from batchgauge.core.generation import (
    Generation,
    PromptReader,
    Stages,
    answer_batch,
    take_tokens,
)
from batchgauge.protocols import Tokenizer
from batchgauge.request import (
    BatchItem,
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
        return answer_batch(items, self.reader, self.max_batch_size(), self._generate)

    def _generate(self, going: list[Generation], stages: Stages) -> dict[str, int]:
        """Run requests to their ends; what the model computed."""
        prompts = [one.prompt for one in going]
        with stages.stage("prefill"):
            logits = self.stepper.prefill(prompts, max(one.limit for one in going))
        padded = self.stepper.padded_positions
        steps, positions = 0, padded + sum(map(len, prompts))
        while left := take_tokens(going, logits, stages):
            with stages.stage("bookkeeping"):
                if len(left) < len(going):
                    going = [going[row] for row in self.stepper.keep(np.array(left))]
                ids = np.array([one.tokens[-1] for one in going], dtype=np.int32)
            with stages.stage("decode"):
                logits = self.stepper.decode(ids)
            steps += 1
            positions += len(going)
        return {"decode_steps": steps, "positions": positions, "padded_positions": padded}
