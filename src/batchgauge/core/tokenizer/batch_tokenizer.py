"""Batches of texts to ids and back: items in, responses out, one bad item never fails another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import TypeVar

from batchgauge.errors import UserError
from batchgauge.protocols import Tokenizer
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    DetokenizeBatchRequest,
    DetokenizeBatchResponse,
    TokenizeBatchRequest,
    TokenizeBatchResponse,
    check_items,
    token_ids,
)

MAX_BATCH_SIZE = 1000


class BatchTokenizer:
    """Batches of texts to ids and back, through any `Tokenizer`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode_batch(
        self, items: Sequence[BatchItem[TokenizeBatchRequest]]
    ) -> BatchResult[TokenizeBatchResponse]:
        """Tokenize every item, in order; a text that cannot be tokenized becomes an error.

        Items that ask for special tokens and items that do not are two calls of the
        tokenizer. Raises UserError for more than `max_batch_size()` items or equal ids.
        """

        def encode(requests: Sequence[TokenizeBatchRequest]) -> list[TokenizeBatchResponse]:
            for request in requests:
                _check_text(request)
            answers: list[TokenizeBatchResponse | None] = [None] * len(requests)
            for special in {request.allow_special for request in requests}:
                which = [i for i, r in enumerate(requests) if r.allow_special == special]
                texts = [requests[i].text for i in which]
                batch = self.tokenizer.encode_many(texts, allow_special=special)
                ids, ends = batch.ids.tolist(), batch.offsets.tolist()
                for i, start, end in zip(which, ends[:-1], ends[1:], strict=True):
                    answers[i] = TokenizeBatchResponse(tuple(ids[start:end]), end - start)
            return [answer for answer in answers if answer is not None]

        return _run(items, encode)

    def decode_batch(
        self, items: Sequence[BatchItem[DetokenizeBatchRequest]]
    ) -> BatchResult[DetokenizeBatchResponse]:
        """Turn every item's ids into text; an unknown id makes that item's error.

        Raises UserError for more than `max_batch_size()` items or equal ids.
        """

        def decode(requests: Sequence[DetokenizeBatchRequest]) -> list[DetokenizeBatchResponse]:
            rows = [_checked_ids(request) for request in requests]
            texts = self.tokenizer.decode_many(rows)
            return [
                DetokenizeBatchResponse(text, len(row))
                for text, row in zip(texts, rows, strict=True)
            ]

        return _run(items, decode)

    def max_batch_size(self) -> int:
        """The largest batch taken: 1000 items."""
        return MAX_BATCH_SIZE

    def optimal_batch_size(self) -> int:
        """The sizing advisor's answer for this tokenizer on this machine."""
        from batchgauge.sizing import optimal_for_tokenizer  # heavy, and not needed to tokenize

        return optimal_for_tokenizer(self.tokenizer, max_batch_size=MAX_BATCH_SIZE)


Request = TypeVar("Request")
Answer = TypeVar("Answer")


def _run(
    items: Sequence[BatchItem[Request]], work: Callable[[Sequence[Request]], list[Answer]]
) -> BatchResult[Answer]:
    """`work` on all items at once; if that fails, on each alone, so that errors stay apart.

    An item's duration is an equal share of the call it took part in.
    """
    if isinstance(items, Sequence) and len(items) > MAX_BATCH_SIZE:
        raise UserError(f"The batch has {len(items)} items; expected at most {MAX_BATCH_SIZE}.")
    check_items(items)
    started = perf_counter_ns()
    try:
        answers = work([item.data for item in items])
        share_ms = (perf_counter_ns() - started) / 1e6 / max(len(items), 1)
        responses = [
            BatchResponse(item.id, answer, share_ms)
            for item, answer in zip(items, answers, strict=True)
        ]
    except Exception:  # noqa: BLE001  (a foreign tokenizer may raise anything)
        responses = [_run_alone(item, work) for item in items]
    return BatchResult.of(responses, (perf_counter_ns() - started) / 1e6)


def _run_alone(
    item: BatchItem[Request], work: Callable[[Sequence[Request]], list[Answer]]
) -> BatchResponse[Answer]:
    started = perf_counter_ns()
    answer, error = None, None
    try:
        answer = work([item.data])[0]
    except UserError as problem:
        error = str(problem)
    except Exception as problem:  # noqa: BLE001  (as above)
        error = f"The tokenizer failed: {problem or type(problem).__name__}."
    return BatchResponse(item.id, answer, (perf_counter_ns() - started) / 1e6, error)


def _check_text(request: TokenizeBatchRequest) -> None:
    if not isinstance(request, TokenizeBatchRequest):
        kind = type(request).__name__
        raise UserError(f"A request is of type {kind}; expected a TokenizeBatchRequest.")
    if not isinstance(request.text, str):
        raise UserError(f"A text is of type {type(request.text).__name__}; expected str.")
    if not isinstance(request.allow_special, bool):
        raise UserError(f"allow_special is {request.allow_special!r}; expected True or False.")


def _checked_ids(request: DetokenizeBatchRequest) -> tuple[int, ...]:
    if not isinstance(request, DetokenizeBatchRequest):
        kind = type(request).__name__
        raise UserError(f"A request is of type {kind}; expected a DetokenizeBatchRequest.")
    return token_ids(request.tokens, "The request")
