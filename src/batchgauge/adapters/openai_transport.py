"""Requests to one server: tried again where that can help, answers read as they come."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from batchgauge.adapters.openai_address import Address
from batchgauge.adapters.openai_errors import failure, parsed, text_of
from batchgauge.adapters.openai_stream import CompletionStream
from batchgauge.errors import UserError

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_PROBLEMS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, ValueError)
_LONGEST_REFUSAL = 2**16  # bytes read of it
_SECONDS = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, and how often to try; seconds.

    A request is tried again after a connection that failed and after the status
    codes in `RETRIED`, waiting `backoff` × 2ⁿ plus up to as much again at random, or
    what the server asks for, at most `longest_wait`. A stream that has begun is
    never tried again.
    """

    connect: float = 5.0
    read: float = 120.0
    attempts: int = 4
    backoff: float = 0.25
    longest_wait: float = 10.0


class RefusalError(UserError):
    """An answer with another status than 200; `body` is what it said, `status` its number."""

    def __init__(self, message: str, status: int, body: bytes) -> None:
        super().__init__(message)
        self.status, self.body = status, body


@dataclass(frozen=True, slots=True)
class _Failure:
    """An attempt that gave no answer; `wait_s` is what the server asks for."""

    problem: str
    again: bool
    wait_s: float | None = None
    status: int = 0
    body: bytes = b""

    @classmethod
    def of(cls, response: httpx.Response) -> _Failure:
        body, status = start_of(response), response.status_code
        problem = message_of(parsed(body))
        if 300 <= status < 400:
            problem = f"it redirects to '{response.headers.get('location')}'"
        wait_s = retry_after(response.headers)
        return cls(f"{status}: {problem}", status in RETRIED, wait_s, status, body)

    def error(self, attempts: int) -> UserError:
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        message = f"The server did not answer{tries} ({self.problem})."
        return RefusalError(message, self.status, self.body) if self.status else UserError(message)


class Transport:
    """The connections to one server, which stay warm until it closes them."""

    def __init__(self, address: Address, patience: Patience, connections: int) -> None:
        self.address, self.patience = address, patience
        self._client = address.client(
            httpx.Timeout(patience.read, connect=patience.connect),
            httpx.Limits(
                max_connections=None, max_keepalive_connections=connections, keepalive_expiry=600.0
            ),
        )

    def get(self, name: str) -> tuple[int, bytes, str]:
        """Status, body and `location` of a resource. Raises UserError where nobody answers."""
        try:
            with self._client.stream("GET", self.address.path(name)) as response:
                location = response.headers.get("location", "")
                return response.status_code, start_of(response), location
        except _PROBLEMS as problem:
            raise UserError(
                f"No server answers at {self.address.shown()} ({_reason(problem)}); "
                "expected an OpenAI-compatible server there."
            ) from None

    def post(
        self, name: str, body: bytes, *, attempts: int = 0, retries: list[int] | None = None
    ) -> CompletionStream:
        """Post a request, again where that can help, and read its answer to the end.

        Another attempt is noted in `retries`. Raises UserError for no answer or a broken one,
        RefusalError for one that refuses.
        """
        most = attempts or self.patience.attempts
        for attempt in range(1, most + 1):
            found = self._try(name, body)
            if isinstance(found, CompletionStream):
                return found
            if not found.again or attempt == most:
                raise found.error(attempt)
            if retries is not None:
                retries.append(attempt)
            backoff_s = self.patience.backoff * 2 ** (attempt - 1) * (1 + random.random())
            wait_s = backoff_s if found.wait_s is None else found.wait_s
            time.sleep(min(wait_s, self.patience.longest_wait))
        raise AssertionError("unreachable")

    def _try(self, name: str, body: bytes) -> CompletionStream | _Failure:
        stream = CompletionStream()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        try:
            with self._client.stream(
                "POST", self.address.path(name), content=body, headers=headers
            ) as response:
                if response.status_code != httpx.codes.OK:
                    return _Failure.of(response)
                stream.read(response.iter_bytes())
        except _PROBLEMS as problem:
            if stream.has_begun and not stream.is_whole:
                raise UserError(
                    f"The server's stream broke after {len(stream.pieces)} chunks "
                    f"({_reason(problem)})."
                ) from None
            if not stream.is_whole:
                again = isinstance(problem, httpx.TransportError) and not isinstance(
                    problem, httpx.ReadTimeout
                )
                return _Failure(_reason(problem), again)
        return stream

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def start_of(response: httpx.Response) -> bytes:
    """The first 64 KiB of a body, or as much of it as came."""
    body = b""
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) >= _LONGEST_REFUSAL:
                break
    except httpx.RequestError:
        pass
    return body[:_LONGEST_REFUSAL]


def message_of(said: object) -> str:
    """What a refusal says, in one line."""
    return failure(said) or text_of(said)


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that the server asks to wait: a number, or the time until a date; else None."""
    said = headers.get("retry-after", "").strip()
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _SECONDS.fullmatch(milliseconds):
        return float(milliseconds) / 1e3
    if _SECONDS.fullmatch(said):
        return float(said)
    try:
        date = parsedate_to_datetime(said)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _reason(problem: Exception) -> str:
    return str(problem) or type(problem).__name__
