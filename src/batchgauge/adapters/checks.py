"""What an engine or tokenizer that is not ours must keep to, checked while it runs.

A foreign engine can return too few responses, answer under other ids or in another
order, or have a tokenizer of another model. Each would silently turn a measurement
into nonsense, so each is said, with the numbers. Nothing is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter_ns
from typing import Any

from batchgauge.errors import UserError
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    InferenceBatchRequest,
    InferenceBatchResponse,
    check_items,
    checked,
)
from batchgauge.text import counted

_QUESTIONS = ("Why is the sky blue?", "List five red fruits.", "Once upon a time")
_FEW = 4  # tokens of an answer that shows whether there is any


class CheckedEngine:
    """An engine whose every result is checked against its request; all else passes through."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def unchecked(self) -> Engine:
        """The wrapped engine itself, for profiles that should not show the checks."""
        return self._engine

    @property
    def name(self) -> str:
        """The wrapped engine's own name."""
        return self._engine.name

    def infer_batch(
        self, items: Sequence[BatchItem[InferenceBatchRequest]]
    ) -> BatchResult[InferenceBatchResponse]:
        """The wrapped engine's answer; an item that is no right request never reaches it.

        Such an item gets an error response, and so does one over which the engine raises:
        then the engine is asked once more, for each alone. Raises UserError when the
        answer does not fit `items`, or as the engine does for a whole batch.
        """
        check_items(items)
        failed: dict[str, BatchResponse[InferenceBatchResponse]] = {}
        good = []
        for item in items:
            try:
                request = checked(item.data)
                good.append(item if request is item.data else BatchItem(item.id, request))
            except UserError as problem:
                failed[item.id] = BatchResponse(item.id, None, 0.0, str(problem))
        if failed and not good:
            return BatchResult.of(failed.values(), 0.0)
        result = self._ask(good)
        if not failed:
            return result
        return BatchResult.of(
            [failed.get(item.id) or result.get_by_id(item.id) for item in items],
            result.stats.total_duration_ms,
            result.stages_ms,
            result.counters,
        )

    def _ask(
        self, items: Sequence[BatchItem[InferenceBatchRequest]]
    ) -> BatchResult[InferenceBatchResponse]:
        started = perf_counter_ns()
        try:
            result = self._engine.infer_batch(items)
        except UserError:
            raise
        except Exception as problem:  # noqa: BLE001  (an engine of others may raise anything)
            if len(items) > 1:
                rows = [row for item in items for row in self._ask([item]).responses]
            else:
                said = f"{type(problem).__name__}: {problem}".removesuffix(".")
                sentence = f"The engine '{self.name}' failed with {said}."
                rows = [BatchResponse(items[0].id, None, 0.0, sentence)]
            return BatchResult.of(rows, (perf_counter_ns() - started) / 1e6)
        check_result(self._engine.name, items, result)
        return result

    def max_batch_size(self) -> int:
        """The wrapped engine's own limit. Raises UserError when it is below 1."""
        limit = self._engine.max_batch_size()
        if limit < 1:
            raise UserError(f"Engine '{self.name}' takes batches of at most {limit}; expected 1.")
        return limit

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._engine, attribute)


def check_result(
    name: str,
    items: Sequence[BatchItem[InferenceBatchRequest]],
    result: BatchResult[InferenceBatchResponse],
) -> None:
    """Raise UserError unless `result` answers exactly `items`, in order, under their ids."""
    if not isinstance(result, BatchResult):
        raise UserError(
            f"Engine '{name}' returned a {type(result).__name__}; expected a BatchResult."
        )
    if len(result.responses) != len(items):
        raise UserError(
            f"Engine '{name}' returned {len(result.responses)} responses to {len(items)} items."
        )
    for item, response in zip(items, result.responses, strict=True):
        if item.id != response.id:
            raise UserError(
                f"Engine '{name}' answered the item '{item.id}' under the id '{response.id}'; "
                "expected every response under its item's id, in request order."
            )
        if (response.data is None) == (response.error is None):
            raise UserError(
                f"Engine '{name}' answered the item '{item.id}' with "
                f"{'neither data nor an error' if response.error is None else 'both'}; "
                "expected exactly one of the two."
            )


def check_generates(engine: Engine) -> str:
    """What is to be said of an engine that stops early, asked a few plain questions; else "".

    Raises UserError when it answers nothing: an engine that generates nothing is very fast at
    it. Errors are left to whoever asks next.
    """
    size = min(len(_QUESTIONS), engine.max_batch_size())
    asked = InferenceBatchRequest("", max_tokens=_FEW, ignore_eos=True)
    items = [BatchItem(text, replace(asked, prompt=text)) for text in _QUESTIONS[:size]]
    answers = [row.data for row in engine.infer_batch(items).responses if row.data]
    if answers and all(answer.is_empty for answer in answers):
        raise UserError(
            f"Every answer of the engine '{engine.name}' was empty: nothing was generated, so "
            "there is nothing to measure; expected an engine that answers plain prompts."
        )
    most = max((answer.tokens_generated or _FEW for answer in answers), default=_FEW)
    return (
        f"The engine stops early: it generated {counted(most, 'token')} at most where {_FEW} were "
        "asked for, end tokens ignored. Figures are of what came."
        if most < _FEW
        else ""
    )


def check_vocabulary(tokenizer: Tokenizer, model_vocab_size: int) -> None:
    """Raise UserError when `tokenizer` has ids that a model of `model_vocab_size` tokens lacks.

    A smaller vocabulary is fine: models pad their embedding to round sizes.
    """
    if tokenizer.vocab_size > model_vocab_size:
        raise UserError(
            f"Tokenizer '{tokenizer.name}' has {tokenizer.vocab_size} ids and the model only "
            f"{model_vocab_size}; expected a tokenizer made for this model."
        )
