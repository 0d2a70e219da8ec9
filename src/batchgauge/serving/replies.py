"""OpenAI's answers and errors on their way to a client: in one body, or event by event."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from batchgauge.errors import UserError
from batchgauge.request import FinishReason
from batchgauge.serving.async_engine import AnswerError, AnswerPiece, FullError, StoppedError
from batchgauge.serving.schemas import APIError, Call

DONE = b"data: [DONE]\n\n"
# The API has no word for an answer that filled the model's context.
_FINISHES: dict[FinishReason, str] = {"stop": "stop", "length": "length", "context": "length"}
_STATUS = {"invalid": 400, "deadline": 504, "failed": 500}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may take, in bytes, tokens (0: the model's context) and seconds."""

    body_bytes: int = 4 << 20
    prompt_tokens: int = 0
    body_s: float = 30.0
    request_s: float = 600.0
    send_s: float = 60.0


def usage_of(prompt_tokens: int, tokens: int) -> dict[str, int]:
    """The API's account of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }


def event(said: Any) -> bytes:
    """A server-sent event whose data is this in JSON, in one line."""
    return b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """What every chunk of one answer repeats; `created` in seconds since 1970."""

    id: str
    model: str
    is_chat: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> list[dict[str, Any]]:
        """Chunks before the first text: of a chat, who speaks."""
        if not self.is_chat:
            return []
        return [self._chunk([_choice("delta", {"role": "assistant", "content": ""}, None)])]

    def piece(self, text: str, finish: FinishReason | None, **more: Any) -> dict[str, Any]:
        """A chunk of text; `more` are other fields of its choice."""
        if not self.is_chat:
            return self._chunk([_choice("text", text, finish, **more)])
        said = {"content": text} if text else {}
        return self._chunk([_choice("delta", said, finish, **more)])

    def accounted(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last chunk, which has no text but says what the answer took."""
        return self._chunk([]) | {"usage": usage}

    def whole(
        self, text: str, finish: FinishReason, usage: dict[str, int], **more: Any
    ) -> dict[str, Any]:
        """The answer in one body."""
        said = {"role": "assistant", "content": text} if self.is_chat else text
        choice = _choice("message" if self.is_chat else "text", said, finish, **more)
        return self._named("chat.completion", [choice]) | {"usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._named("chat.completion.chunk", choices)

    def _named(self, of_chat: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": of_chat if self.is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class Reply(Response):
    """An answer on its way, in one body or as a stream; cancelled when its client goes away."""

    def __init__(
        self,
        call: Call,
        answer: ServedAnswer,
        prompt_tokens: int,
        pieces: AsyncGenerator[AnswerPiece],
        limits: Limits,
    ) -> None:
        self.call, self.answer, self.prompt_tokens = call, answer, prompt_tokens
        self.pieces, self.limits = pieces, limits
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first."""
        work = asyncio.create_task(self._answer(scope, receive, send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            with suppress(asyncio.CancelledError, TimeoutError, OSError):
                await work

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.pieces) as pieces:
            try:
                first = await anext(pieces)
                if not self.call.is_stream:
                    found = [first, *[piece async for piece in pieces]]
                    await self._whole(found)(scope, receive, send)
                    return
            except UserError as problem:
                await error_response(api_error(problem))(scope, receive, send)
                return
            await self._stream(first, pieces, send)

    def _whole(self, pieces: list[AnswerPiece]) -> Response:
        tokens = [token for piece in pieces for token in piece.tokens]
        finish = pieces[-1].finish
        assert finish is not None
        said = self.answer.whole(
            "".join(piece.text for piece in pieces),
            finish,
            usage_of(self.prompt_tokens, len(tokens)),
            **({"token_ids": tokens} if self.call.wants_ids else {}),
        )
        return JSONResponse(said)

    async def _stream(
        self, first: AnswerPiece, pieces: AsyncGenerator[AnswerPiece], send: Send
    ) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"),
                   (b"cache-control", b"no-store")]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        opening = b"".join(event(said) for said in self.answer.opening())
        tokens = len(first.tokens)
        last = b""
        await self._send(send, opening + self._chunk(first, tokens))
        try:
            async for piece in pieces:
                tokens += len(piece.tokens)
                if chunk := self._chunk(piece, tokens):
                    await self._send(send, chunk)
        except UserError as problem:
            last = event(api_error(problem).body())
        else:
            if self.call.usage:
                last = event(self.answer.accounted(usage_of(self.prompt_tokens, tokens)))
            last += DONE
        await self._send(send, last, is_last=True)

    def _chunk(self, piece: AnswerPiece, tokens: int) -> bytes:
        """A piece's event; none for tokens that are no text yet, unless somebody counts them."""
        if not (piece.text or piece.finish or self.call.wants_ids):
            return b""
        more = {"token_ids": list(piece.tokens)} if self.call.wants_ids else {}
        said = self.answer.piece(piece.text, piece.finish, **more)
        if self.call.usage == "each":
            said["usage"] = usage_of(self.prompt_tokens, tokens)
        elif self.call.usage:
            said["usage"] = None
        return event(said)

    async def _send(self, send: Send, data: bytes, *, is_last: bool = False) -> None:
        """Give the client a part. Raises TimeoutError where it does not read."""
        async with asyncio.timeout(self.limits.send_s):
            await send({"type": "http.response.body", "body": data, "more_body": not is_last})


def _choice(key: str, said: Any, finish: FinishReason | None, **more: Any) -> dict[str, Any]:
    reason = _FINISHES[finish] if finish else None
    return {"index": 0, key: said, "logprobs": None, "finish_reason": reason, **more}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def api_error(problem: UserError) -> APIError:
    """The engine's errors as the API's."""
    if isinstance(problem, FullError):
        error = APIError(429, str(problem), code="rate_limit_exceeded")
        error.retry_after_s = problem.retry_after_s
        return error
    if isinstance(problem, StoppedError):
        error = APIError(503, str(problem), code="shutting_down")
        error.retry_after_s = 1
        return error
    failing = problem.failing if isinstance(problem, AnswerError) else "invalid"
    return APIError(_STATUS[failing], str(problem))


def error_response(error: APIError) -> Response:
    """An error in the API's own shape."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status in {408, 413}:
        headers["connection"] = "close"  # the rest of the body is not read
    return Response(json.dumps(error.body()), error.status, headers, "application/json")
