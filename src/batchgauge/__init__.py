"""batchgauge: what batching buys for LLM work on this machine, and which batch size to run."""

from batchgauge.errors import UserError
from batchgauge.protocols import Engine, TokenBatch, Tokenizer
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    BatchStats,
    DetokenizeBatchRequest,
    DetokenizeBatchResponse,
    InferenceBatchRequest,
    InferenceBatchResponse,
    TokenizeBatchRequest,
    TokenizeBatchResponse,
)

__all__ = [
    "BatchItem",
    "BatchResponse",
    "BatchResult",
    "BatchStats",
    "DetokenizeBatchRequest",
    "DetokenizeBatchResponse",
    "Engine",
    "InferenceBatchRequest",
    "InferenceBatchResponse",
    "TokenBatch",
    "TokenizeBatchRequest",
    "TokenizeBatchResponse",
    "Tokenizer",
    "UserError",
]
__version__ = "0.1.0"
