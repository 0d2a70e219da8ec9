"""The loop of a batch: requests join and leave between the steps of one model.

A step is a decode step for the requests whose prompts are read, and the next prompt
positions of the others, as many as a budget allows, in one pass through the layers. Each
request gets the tokens that it gets alone, whoever joins, leaves, is cancelled or evicted
beside it, and to the last bit of its scores where attention is compiled: a row's numbers do
not depend on its neighbours, and prompts are cut where that changes nothing (`model.CUT`).

A request that was evicted can join again, here or in another loop. Its prompt is read anew and
its tokens so far go through decode steps, as they did before, because a prefill of them would
add up in another order; nothing is sampled twice.

Left out: waiting, order and deadlines (`batchgauge.serving`), threads (one at a time may use a
loop).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from time import perf_counter_ns
from typing import NamedTuple

import numpy as np

from batchgauge.core.generation import Generation, PromptReader, Stages, take_tokens
from batchgauge.core.kv_cache import length
from batchgauge.core.model import CUT, LlamaModel, cut
from batchgauge.core.ops import Floats
from batchgauge.errors import UserError
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    FinishReason,
    InferenceBatchRequest,
    InferenceBatchResponse,
    check_items,
)

Response = BatchResponse[InferenceBatchResponse]


class StepEvent(NamedTuple):
    """What a step did to a request: a new token, its end, or both.

    An end has a `finish` or an `error`; an end token of the model is not shown.
    """

    id: str
    token: int | None = None
    finish: FinishReason | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the request is over: its answer waits in the loop."""
        return self.finish is not None or self.error is not None


@dataclass(slots=True, eq=False)
class _Seat:
    """A request in the loop: its row of the cache, and what of it the model has read."""

    one: Generation
    row: int
    prompt: int = 0  # positions
    tokens: int = 0  # of those generated

    @property
    def missing(self) -> int:
        """Positions of the prompt that are still to be read."""
        return len(self.one.prompt) - self.prompt

    @property
    def length(self) -> int:
        """Positions of the row after this step, or once its prompt is read."""
        return len(self.one.prompt) + self.tokens + (not self.missing)


class BatchLoop:
    """Requests under way on one model, at most `slots` at a time.

    positions       of the KV cache for all of them together; None: no limit
    prefill_tokens  prompt positions that a step reads; None: all of them
    stages          where time went so far; a step that reads prompts is prefill, all of it
    counters        decode_steps, positions (computed by the model) and replayed (those of them
                    that had been computed before an eviction)
    decoded, prefilled   rows and prompt positions of the last step

    Both limits may be changed between steps; requests under way stay. Raises UserError for
    limits that make no sense.
    """

    def __init__(
        self,
        model: LlamaModel,
        reader: PromptReader,
        slots: int,
        positions: int | None = None,
        prefill_tokens: int | None = None,
    ) -> None:
        for name, value, least in (
            ("slots", slots, 1),
            ("positions", positions, 1),
            ("prefill_tokens", prefill_tokens, CUT),
        ):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if (value is not None or name == "slots") and not (whole and value >= least):  # type: ignore[operator]
                raise UserError(f"{name} is {value!r}; expected a whole number from {least} on.")
        self.model, self.reader = model, reader
        self.slots, self.positions, self.prefill_tokens = slots, positions, prefill_tokens
        self.stages = Stages()
        self.counters = dict.fromkeys(("decode_steps", "positions", "replayed"), 0)
        self.decoded = self.prefilled = 0
        self._cache = model.new_cache(limit=inf if positions is None else positions)
        self._seats: dict[str, _Seat] = {}
        self._ended: dict[str, Generation | Response] = {}
        self._events: list[StepEvent] = []

    def __len__(self) -> int:
        """Requests under way."""
        return len(self._seats)

    def __contains__(self, name: object) -> bool:
        """Whether a request of this id is under way, or its answer waits."""
        return name in self._seats or name in self._ended

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing and say nothing."""
        return not self._seats and not self._events

    @property
    def used_positions(self) -> int:
        """Positions of the KV cache that are taken by requests under way, filled or not."""
        return self._cache.used

    def read(
        self, items: Sequence[BatchItem[InferenceBatchRequest]]
    ) -> list[Generation | Response]:
        """What can join, or an error response, for each item. Needs no step to be over.

        The times of an answer begin here. Raises UserError for items without ids of their own.
        """
        check_items(items)
        started_ns = perf_counter_ns()
        found: list[Generation | Response] = []
        for item, prompt in zip(
            items, self.reader.read_all([item.data for item in items]), strict=True
        ):
            if isinstance(prompt, UserError):
                took_ms = (perf_counter_ns() - started_ns) / 1e6
                found.append(BatchResponse(item.id, None, took_ms, str(prompt)))
            else:
                one = Generation(item, prompt, self.reader)
                one.started_ns = started_ns
                found.append(one)
        return found

    def fits(self, coming: Sequence[Generation], leaving: Sequence[str] = ()) -> bool:
        """Whether there is room for all of these, once requests under way have left."""
        used = self._cache.used - sum(
            length(self._cache.find(self._seats[name].row)) for name in leaving
        )
        needed = used + sum(one.capacity for one in coming)
        rows = len(self) - len(leaving) + len(coming)
        return rows <= self.slots and needed <= (self.positions or inf)

    def could_fit(self, one: Generation) -> bool:
        """Whether there is room for a request once nobody else is here."""
        return one.capacity <= (self.positions or inf)

    def add(self, items: Sequence[BatchItem[InferenceBatchRequest]]) -> None:
        """Let requests join; the next step says of those that cannot be answered.

        Raises UserError as `read` and `join` do; then none has joined.
        """
        with self.stages.stage("tokenize"):
            found = self.read(items)
        self._check_new([one.id for one in found])
        self.join([one for one in found if isinstance(one, Generation)])
        for one in found:
            if not isinstance(one, Generation):
                self._ended[one.id] = one
                self._events.append(StepEvent(one.id, error=one.error))

    def join(self, coming: Sequence[Generation]) -> None:
        """Let requests join that were read, or evicted. Raises UserError where there is no room.

        Or for an id that is in use: then none has joined.
        """
        self._check_new([one.id for one in coming])
        if not self.fits(coming):
            raise UserError(
                f"There is no room for {len(coming)} more requests beside {len(self)}; expected "
                f"at most {self.slots} with {self.positions or 'any number of'} positions."
            )
        with self.stages.stage("pad"):  # neighbours of one length, for attention by NumPy
            coming = sorted(coming, key=lambda one: (len(one.prompt), one.limit))
            rows = self._cache.take([one.capacity for one in coming])
            for one, row in zip(coming, rows, strict=True):
                self._seats[one.id] = _Seat(one, row)

    def step(self) -> list[StepEvent]:
        """Decode a token for each request whose prompt is read, and read on in the others'."""
        if self._seats:
            self._step()
        events, self._events = self._events, []
        return events

    def cancel(self, name: str) -> bool:
        """Drop a request and its answer; whether it was under way."""
        self._ended.pop(name, None)
        self._events = [event for event in self._events if event.id != name]
        if (seat := self._seats.pop(name, None)) is None:
            return False
        self._cache.give(seat.row)
        return True

    def evict(self, name: str) -> Generation:
        """Take a request out and give its room back: it can `join` again and loses no token.

        Raises KeyError where it is not under way.
        """
        seat = self._seats.pop(name)
        self._cache.give(seat.row)
        return seat.one

    def response(self, name: str) -> Response:
        """The answer of a request that has ended, once. Raises KeyError where there is none."""
        one = self._ended.pop(name)
        if not isinstance(one, Generation):
            return one
        with self.stages.stage("detokenize"):
            text = one.text()
        return one.response(text, one.started_ns, one.prefill_ms)

    def _check_new(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self:
                raise UserError("A request of this id is under way; expected an id of its own.")

    def _step(self) -> None:
        with self.stages.stage("bookkeeping"):
            ready = [seat for seat in self._seats.values() if not seat.missing]
            counts = self._chunks() if len(ready) < len(self._seats) else {}
            seats = [*ready, *counts]
            rows = np.array([seat.row for seat in seats], np.intp)
            tokens = [seat.one.tokens[seat.tokens] for seat in ready]
        began_ns = perf_counter_ns()
        if counts:
            with self.stages.stage("prefill"):
                chunks = [
                    seat.one.prompt[seat.prompt : seat.prompt + n] for seat, n in counts.items()
                ]
                logits = self.model.prefill(
                    [*([token] for token in tokens), *chunks],
                    self._cache,
                    rows,
                    [seat.length for seat in seats],
                    len(ready),
                )
        else:
            with self.stages.stage("decode"):
                logits = self.model.decode(np.array(tokens, np.int32), self._cache, rows)
        with self.stages.stage("bookkeeping"):
            fresh = self._read(ready, counts, (perf_counter_ns() - began_ns) / 1e6)
        self._take([seats[row] for row in fresh], [logits[row] for row in fresh])

    def _chunks(self) -> dict[_Seat, int]:
        """How many of the next prompt positions to read of each request, within the budget."""
        left, counts = self.prefill_tokens or inf, {}
        for seat in self._seats.values():
            if n := seat.missing:
                n = n if n <= left else cut(seat.prompt, int(left))
                if not n:
                    break
                counts[seat] = n
                left -= n
        return counts

    def _read(self, ready: list[_Seat], counts: dict[_Seat, int], took_ms: float) -> list[int]:
        """Note what the model has read; which of all these rows have new scores."""
        fresh = []
        replayed = 0
        for row, seat in enumerate(ready):
            seat.tokens += 1
            if seat.tokens == len(seat.one.tokens):
                fresh.append(row)
            else:
                replayed += 1
        for row, (seat, n) in enumerate(counts.items(), len(ready)):
            seat.prompt += n
            seat.one.prefill_ms += took_ms
            if seat.one.tokens:
                replayed += n
            elif not seat.missing:
                fresh.append(row)
        self.decoded, self.prefilled = len(ready), sum(counts.values())
        self.counters["decode_steps"] += bool(ready)
        self.counters["positions"] += self.decoded + self.prefilled
        self.counters["replayed"] += replayed
        return fresh

    def _take(self, seats: list[_Seat], logits: list[Floats]) -> None:
        """Choose and take a token for each request by its scores [V]; those that end leave."""
        before = [len(seat.one.tokens) for seat in seats]
        take_tokens([seat.one for seat in seats], logits, self.stages)
        with self.stages.stage("bookkeeping"):
            for seat, count in zip(seats, before, strict=True):
                one = seat.one
                token = one.tokens[-1] if len(one.tokens) > count else None
                self._events.append(StepEvent(one.id, token, one.reason, one.error))
                if not one.going:
                    del self._seats[one.id]
                    self._cache.give(seat.row)
                    self._ended[one.id] = one
