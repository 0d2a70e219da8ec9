"""OpenAI's HTTP interface over an `AsyncEngine`: models, completions, chats, health, metrics.

Every error is OpenAI's error object. A stream begins when its first piece is there, so that
what is refused has a status of its own. Who goes away has their request cancelled, also who
does not read: no chunk waits longer than `Limits.send_s`.

Left out: everything else of OpenAI's interface; HTTPS (a proxy's business).
"""

from __future__ import annotations

import asyncio
import hmac
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from batchgauge.errors import UserError
from batchgauge.request import InferenceBatchRequest
from batchgauge.serving.async_engine import AsyncEngine
from batchgauge.serving.metrics import Metrics
from batchgauge.serving.replies import Limits, Reply, ServedAnswer, api_error, error_response
from batchgauge.serving.schemas import APIError, Call, invalid, read_call

LONGEST_ID = 128


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
            raise api_error(problem) from None
        asked = call.request(*await self._ids(call))
        answer = ServedAnswer(
            f"{'chatcmpl' if call.is_chat else 'cmpl'}-{name}", call.model, call.is_chat
        )
        pieces = self.engine.stream(
            asked, priority=call.priority, deadline_s=self.limits.request_s, name=name
        )
        return Reply(call, answer, len(asked.prompt), pieces, self.limits)

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


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return error_response(error)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path:.100} is not served: {error.detail}."
    return error_response(APIError(error.status_code, said))


async def _broken(_request: Request, _error_seen: Exception) -> Response:
    return error_response(APIError(500, "The server failed; its log says why."))
