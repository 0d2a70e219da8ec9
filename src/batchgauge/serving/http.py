"""OpenAI's HTTP interface over an `AsyncEngine`: models, completions, chats, health, metrics.

Every error is OpenAI's error object. A stream begins when its first piece is there, so that
what is refused has a status of its own. Who goes away has their request cancelled, also who
does not read: no chunk waits longer than `Limits.send_s`.

Left out: everything else of OpenAI's interface; HTTPS (a proxy's business).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from batchgauge.errors import UserError
from batchgauge.request import InferenceBatchRequest
from batchgauge.serving.answers import DONE, Answer, event, usage_of
from batchgauge.serving.async_engine import (
    AnswerError,
    AsyncEngine,
    FullError,
    Piece,
    StoppedError,
)
from batchgauge.serving.metrics import Metrics
from batchgauge.serving.schemas import APIError, Call, invalid, read_call

LONGEST_ID = 128
_STATUS = {"invalid": 400, "deadline": 504, "failed": 500}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may take, in bytes, tokens (0: the model's context) and seconds."""

    body_bytes: int = 4 << 20
    prompt_tokens: int = 0
    body_s: float = 30.0
    request_s: float = 600.0
    send_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Service:
    """What the server serves: an engine under a model's name, for holders of a key if any."""

    engine: AsyncEngine
    model: str
    metrics: Metrics
    api_key: str = ""
    limits: Limits = field(default_factory=Limits)

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/models/{name:path}", self._guarded(self._model)),
            Route("/v1/completions", self._guarded(self._complete), methods=["POST"]),
            Route("/v1/chat/completions", self._guarded(self._complete), methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        handlers: Any = {APIError: _refused, HTTPException: _not_found, Exception: _broken}
        return Starlette(routes=routes, exception_handlers=handlers)

    def _guarded(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            known = hmac.compare_digest(given.strip().encode(), self.api_key.encode())
            if self.api_key and not (known and scheme.lower() == "bearer"):
                raise APIError(401, "Incorrect API key provided.", code="invalid_api_key")
            return await endpoint(request)

        return guarded

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._card())

    async def _health(self, _request: Request) -> Response:
        workers = self.engine.workers
        is_well = bool(workers.pids) and not self.engine.is_closing
        said = {"status": "ok" if is_well else "unavailable", "workers": len(workers.pids)}
        return JSONResponse(said, 200 if is_well else 503)

    async def _metrics(self, _request: Request) -> Response:
        text, kind = self.metrics.text()
        return Response(text, media_type=kind)

    async def _complete(self, request: Request) -> Response:
        body = await _body(request, self.limits)
        call = read_call(body, is_chat=request.url.path.startswith("/v1/chat/"))
        self._check_model(call.model)
        name = _name(request)
        try:
            self.engine.check_room(name)
        except UserError as problem:
            raise _api_error(problem) from None
        asked = call.request(*await self._ids(call))
        answer = Answer(
            f"{'chatcmpl' if call.is_chat else 'cmpl'}-{name}", call.model, call.is_chat
        )
        pieces = self.engine.stream(
            asked, priority=call.priority, deadline_s=self.limits.request_s, name=name
        )
        return _Reply(call, answer, len(asked.prompt), pieces, self.limits)

    async def _ids(self, call: Call) -> tuple[list[int], int]:
        """The prompt's ids, and the room for tokens behind them. Raises APIError."""
        context = self.engine.reader.context_length
        param = "messages" if call.is_chat else "prompt"
        try:
            ids = await self.engine.read(call.messages or InferenceBatchRequest(call.prompt))
        except UserError as problem:
            raise invalid(str(problem), param) from None
        most = self.limits.prompt_tokens or context - 1
        if len(ids) > most:
            said = f"The prompt has {len(ids)} tokens; expected at most {most}."
            raise invalid(said, param, "context_length_exceeded")
        return ids, context - len(ids)

    def _check_model(self, name: str) -> None:
        if name != self.model:
            raise APIError(
                404,
                f"The model '{name:.100}' does not exist; expected '{self.model}'.",
                param="model",
                code="model_not_found",
            )

    def _card(self) -> dict[str, Any]:
        length = self.engine.reader.context_length
        return {
            "id": self.model, "object": "model", "created": 0, "owned_by": "batchgauge",
            "max_model_len": length,
        }  # fmt: skip


class _Reply(Response):
    """An answer on its way, in one body or as a stream; cancelled when its client goes away."""

    def __init__(
        self,
        call: Call,
        answer: Answer,
        prompt_tokens: int,
        pieces: AsyncGenerator[Piece],
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
                await _error(_api_error(problem))(scope, receive, send)
                return
            await self._stream(first, pieces, send)

    def _whole(self, pieces: list[Piece]) -> Response:
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

    async def _stream(self, first: Piece, pieces: AsyncGenerator[Piece], send: Send) -> None:
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
            last = event(_api_error(problem).body())
        else:
            if self.call.usage:
                last = event(self.answer.accounted(usage_of(self.prompt_tokens, tokens)))
            last += DONE
        await self._send(send, last, is_last=True)

    def _chunk(self, piece: Piece, tokens: int) -> bytes:
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


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, limits: Limits) -> bytes:
    """The body. Raises APIError for one that is too large or takes too long."""
    too_large = APIError(413, f"The body is larger than {limits.body_bytes} bytes.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError:
        raise APIError(408, f"The body took more than {limits.body_s:g} s to arrive.") from None
    except ClientDisconnect:
        raise APIError(400, "The client went away.") from None
    return bytes(body)


def _name(request: Request) -> str:
    """The client's own id of a request, or a new one. Raises APIError for what is none."""
    name = request.headers.get("x-request-id", "")
    if not name:
        return uuid.uuid4().hex
    if len(name) > LONGEST_ID or not all("!" <= c <= "~" for c in name):
        raise invalid(f"X-Request-Id is no id; expected 1 to {LONGEST_ID} ASCII characters.")
    return name


def _api_error(problem: UserError) -> APIError:
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


def _error(error: APIError) -> Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status in {408, 413}:
        headers["connection"] = "close"  # the rest of the body is not read
    return Response(json.dumps(error.body()), error.status, headers, "application/json")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return _error(error)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path:.100} is not served: {error.detail}."
    return _error(APIError(error.status_code, said))


async def _broken(_request: Request, _error_seen: Exception) -> Response:
    return _error(APIError(500, "The server failed; its log says why."))
