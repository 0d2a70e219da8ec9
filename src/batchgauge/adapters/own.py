"""Our own tokenizers and engines under the same signature as the adapters' factories.

NumPy's BLAS has one thread count a process, so opening one of our engines sets it.
"""

from __future__ import annotations

from pathlib import Path

from threadpoolctl import threadpool_limits

from batchgauge.protocols import Engine, Tokenizer


def numpy_tokenizer(_argument: str, model: Path | None) -> Tokenizer:
    """The core's tokenizer."""
    from batchgauge.core.tokenizer import BPETokenizer

    return BPETokenizer.from_gguf(model)


def baseline_tokenizer(_argument: str, model: Path | None) -> Tokenizer:
    """The honest baseline's tokenizer."""
    from batchgauge.baseline.tokenizer import BaselineTokenizer

    return BaselineTokenizer.from_gguf(model)


def numpy_engine(_argument: str, model: Path | None, threads: int) -> Engine:
    """The core's engine."""
    from batchgauge.core.engine import BatchInferenceEngine

    threadpool_limits(threads, user_api="blas")
    return BatchInferenceEngine.from_gguf(model)


def baseline_engine(_argument: str, model: Path | None, threads: int) -> Engine:
    """The honest baseline's engine."""
    from batchgauge.baseline.engine import BaselineEngine

    threadpool_limits(threads, user_api="blas")
    return BaselineEngine.from_gguf(model)
