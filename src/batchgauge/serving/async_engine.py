"""The engine for asyncio: `async for piece in engine.stream(request)`.

Workers run the model; this reads prompts in threads of its own, turns tokens into text in
another, and gives pieces to whoever waits for them in the event loop: neither the loop nor a
step of the model waits for the other. Who stops asking, or is cancelled, has their request
cancelled and its room given back.

Left out: results for somebody who comes back later.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from batchgauge.core.generation import PromptReader
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.request import FinishReason, InferenceBatchRequest
from batchgauge.serving.detokenize import TextPieces
from batchgauge.serving.messages import Failing, Job, JobEvent, State
from batchgauge.serving.workers import Workers

if TYPE_CHECKING:
    from batchgauge.serving.metrics import Metrics

READERS = 2  # threads that read prompts
RECENT = 0.1  # weight of the last end in the pace of ends, once there were enough


class AnswerPiece(NamedTuple):
    """What came of an answer: text that can be shown, its tokens, and the reason of its end."""

    text: str
    tokens: tuple[int, ...]
    finish: FinishReason | None = None


class FullError(UserError):
    """As many requests as are taken are under way; `retry_after_s` is when to come again."""

    def __init__(self, most: int, retry_after_s: int) -> None:
        super().__init__(f"The server has {most} requests under way or waiting; try again later.")
        self.retry_after_s = retry_after_s


class StoppedError(UserError):
    """The engine is shutting down; `request`, if it was taken already, can run elsewhere."""

    def __init__(self, request: InferenceBatchRequest | None = None) -> None:
        super().__init__("The server is shutting down and did not finish this request.")
        self.request = request


class AnswerError(UserError):
    """A request has no answer: `failing` says whose fault that is."""

    def __init__(self, failing: Failing, message: str) -> None:
        super().__init__(message)
        self.failing = failing


@dataclass(slots=True)
class _Stream:
    """One answer under way. Text is made in the thread that reads events."""

    request: InferenceBatchRequest
    text: TextPieces
    began: float
    queue: asyncio.Queue[AnswerPiece | UserError] = field(default_factory=asyncio.Queue)
    last: float = 0.0  # when a token came, by time.monotonic
    tokens: int = 0
    how: str = "cancelled"


class EndPace:
    """Seconds from one end to the next, of the time in which there is something to do.

    A mean in which the last 20 or so ends count most. Times by a clock of the caller's.
    """

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._ends = 0
        self._since_s = 0.0  # the last end, or when somebody came to nobody

    def begin(self, now_s: float) -> None:
        """Somebody comes, and nobody was there: what passed before was idle."""
        self._since_s = now_s

    def end(self, now_s: float) -> None:
        """A request is over."""
        self._ends += 1
        weight = max(RECENT, 1.0 / self._ends)
        self._mean_s += weight * (now_s - self._since_s - self._mean_s)
        self._since_s = now_s

    def each_s(self, now_s: float) -> float:
        """Seconds that an end takes, while somebody is there: at least as long as this one does."""
        return max(self._mean_s, now_s - self._since_s)


class AsyncEngine:
    """Answers for asyncio from `workers`; `queue` requests may wait beside those that run.

    Belongs to the event loop in which it is first used.
    """

    def __init__(
        self, workers: Workers, reader: PromptReader, queue: int, watch: Metrics | None = None
    ) -> None:
        assert isinstance(reader.tokenizer, BPETokenizer)
        self.workers, self.reader, self._queue = workers, reader, queue
        self._tokenizer = reader.tokenizer
        self._watch = watch
        self._streams: dict[str, _Stream] = {}
        self._pool = ThreadPoolExecutor(READERS, "read")
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_closing = False
        self._pace = EndPace()
        self._thread = threading.Thread(target=self._deliver, name="deliver", daemon=True)
        self._thread.start()

    @property
    def most(self) -> int:
        """How many requests are taken at once."""
        return self.workers.slots + self._queue

    async def read(self, prompt: InferenceBatchRequest | Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a prompt, or of a chat's messages, read beside the loop. Raises UserError."""
        loop = asyncio.get_running_loop()
        if isinstance(prompt, InferenceBatchRequest):
            return await loop.run_in_executor(self._pool, self.reader.read, prompt)
        return await loop.run_in_executor(self._pool, self.reader.read_conversation, prompt)

    def check_room(self, name: str | None = None) -> None:
        """Raise the error that a request would be refused with now; None is a name of its own.

        Raises FullError, StoppedError, or AnswerError for a name that is in use.
        """
        if self.is_closing:
            raise StoppedError
        if name in self._streams:
            raise AnswerError(
                "invalid", "A request of this id is under way; expected an id of its own."
            )
        if len(self._streams) >= self.most:
            if self._watch:
                self._watch.refused()
            raise FullError(self.most, self._patience_s())

    async def stream(
        self,
        request: InferenceBatchRequest,
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        name: str | None = None,
    ) -> AsyncGenerator[AnswerPiece]:
        """The answer, piece by piece as its tokens come; the last one has a `finish`.

        Lower `priority` goes first, as far as the scheduler heeds it. An answer that is not
        whole `deadline_s` after now ends with AnswerError. Raises also what `check_room` does,
        UserError for a bad prompt, and StoppedError when the engine is closed meanwhile.
        """
        self._loop = asyncio.get_running_loop()
        name = name or uuid.uuid4().hex
        self.check_room(name)
        one = _Stream(request, TextPieces(request.stop, self._tokenizer.leading), time.monotonic())
        if not self._streams:
            self._pace.begin(one.began)
        self._streams[name] = one
        prompt: Sequence[int] = ()
        try:
            try:
                said = request.prompt
                prompt = await self.read(request) if isinstance(said, str) else said
            except UserError:
                one.how = "invalid"
                raise
            asked = replace(request, prompt=tuple(prompt), chat=False)
            self.workers.submit(Job(name, asked, priority, deadline_s, one.began))
            while True:
                given = await one.queue.get()
                if isinstance(given, UserError):
                    raise given
                yield given
                if given.finish:
                    return
        finally:
            self._leave(name, one, len(prompt))

    async def answer(self, request: InferenceBatchRequest, **how: object) -> list[AnswerPiece]:
        """All pieces of an answer; arguments and errors are those of `stream`."""
        async with aclosing(self.stream(request, **how)) as pieces:  # type: ignore[arg-type]
            return [piece async for piece in pieces]

    def state(self) -> State:
        """The workers' requests and KV cache."""
        return self.workers.state()

    async def close(self, grace_s: float = 0.0) -> None:
        """Take no more requests, finish those under way for so long, hand back the others.

        Who waits for one of those gets StoppedError, which has the request.
        """
        self.is_closing = True
        until = time.monotonic() + grace_s
        while self._streams and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for one in self._streams.values():
            one.how = "stopped"
            one.queue.put_nowait(StoppedError(one.request))
        while self._streams and time.monotonic() < until + 1.0:
            await asyncio.sleep(0)  # who waits gets their error, and leaves
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.workers.close()
        self._thread.join()

    def _leave(self, name: str, one: _Stream, prompt_tokens: int) -> None:
        del self._streams[name]
        now = time.monotonic()
        if one.how in {"cancelled", "stopped"}:
            self.workers.cancel(name)
        else:
            self._pace.end(now)
        if self._watch:
            self._watch.ended(one.how, now - one.began, prompt_tokens, one.tokens)

    def _patience_s(self) -> int:
        """Seconds until about one in four of those under way will be over, by the last ends."""
        each_s = self._pace.each_s(time.monotonic())
        return min(60, max(1, round(each_s * self.most / 4)))

    def _deliver(self) -> None:
        """Text of tokens, in a thread: the pieces of a step reach the loop in one call."""
        for events in self.workers.events():
            given = [
                (stream, said)
                for event in events
                if (stream := self._streams.get(event.id))
                for said in self._said(stream, event)
            ]
            if given and self._loop is not None:
                try:
                    self._loop.call_soon_threadsafe(_put, given)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    return

    def _said(self, one: _Stream, event: JobEvent) -> list[AnswerPiece | UserError]:
        now = time.monotonic()
        if event.tokens:
            if self._watch and not one.tokens:
                self._watch.first_token(now - one.began)
            elif self._watch:
                self._watch.next_tokens(now - one.last, len(event.tokens))
            one.tokens, one.last = one.tokens + len(event.tokens), now
        if event.failing:
            one.how = event.failing
            return [AnswerError(event.failing, event.error)]
        text = one.text.add(self._tokenizer.token_bytes_of(event.tokens))
        if event.finish:
            one.how = event.finish
            text += one.text.finish()
        return [AnswerPiece(text, event.tokens, event.finish)]


def _put(given: list[tuple[_Stream, AnswerPiece | UserError]]) -> None:
    for stream, said in given:
        stream.queue.put_nowait(said)
