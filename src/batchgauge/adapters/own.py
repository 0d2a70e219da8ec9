"""Our own tokenizers and engines under the same signature as the adapters' factories.

NumPy's BLAS has one thread count a process, so opening one of our engines sets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from batchgauge.errors import UserError
from batchgauge.protocols import Engine, Tokenizer

if TYPE_CHECKING:
    from batchgauge.core.model import LlamaModel


def numpy_tokenizer(argument: str, model: Path | None) -> Tokenizer:
    """The core's tokenizer; the argument is its number of threads, one without it."""
    from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer

    if argument and not argument.isdecimal():
        raise UserError(f"The tokenizer 'numpy:{argument}' names no number of threads.")
    return BPETokenizer.from_gguf(model, threads=int(argument or 1))


def baseline_tokenizer(_argument: str, model: Path | None) -> Tokenizer:
    """The honest baseline's tokenizer."""
    from batchgauge.baseline.tokenizer import BaselineTokenizer

    return BaselineTokenizer.from_gguf(model)


def numpy_engine(argument: str, model: Path | None, threads: int) -> Engine:
    """The core's engine; the argument is how it keeps weights, float32 without one."""
    from batchgauge.core.engine import BatchInferenceEngine

    threadpool_limits(threads, user_api="blas")
    return BatchInferenceEngine.from_gguf(model, argument or "float32")


def baseline_engine(_argument: str, model: Path | None, threads: int) -> Engine:
    """The honest baseline's engine."""
    from batchgauge.baseline.engine import BaselineEngine

    threadpool_limits(threads, user_api="blas")
    return BaselineEngine.from_gguf(model)


class NumpyStepper:
    """Our model as a `Stepper`."""

    padded_positions = 0
    max_rows = 100

    def __init__(self, model: LlamaModel) -> None:
        self.model = model
        self.vocab_size = model.config.vocab_size
        self.context_length = model.config.context_length
        self._cache = model.new_cache()
        self._rows = self._cache.rows  # [B]

    def prefill(self, rows: Sequence[Sequence[int]], reserve: int) -> npt.NDArray[np.float32]:
        """Run prompts from empty caches; logits [B, V]."""
        self._cache = self.model.new_cache([len(row) + reserve for row in rows])
        logits = self.model.prefill(rows, self._cache)
        self._rows = self._cache.rows
        return logits

    def decode(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Append one token [B] to every row; logits [B, V]."""
        return self.model.decode(ids, self._cache, self._rows)

    def keep(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Go on with only these of the rows, in this order."""
        for row in np.delete(self._rows, rows).tolist():
            self._cache.give(row)
        self._rows = self._rows[rows]
        return rows
