"""The way to one server: its address, and requests tried again where that can help.

A user, a password and a key are in no text that is shown; no proxy leads to this machine.
"""

from __future__ import annotations

import ipaddress
import os
import random
import re
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from batchgauge.adapters.openai_errors import message_of, parsed
from batchgauge.adapters.openai_stream import CompletionStream
from batchgauge.errors import UserError
from batchgauge.redaction import KEY_VARIABLE, MARK, redacted

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_PROBLEMS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, ValueError)
_LONGEST_REFUSAL = 2**16  # bytes read of it
_LONGEST_STATUS = 2**20
_SECONDS = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Address:
    """A base URL without user and password; those in `user`, for HTTP's basic access."""

    base: httpx.URL
    user: tuple[str, str] | None
    key: str

    @classmethod
    def of(cls, url: str) -> Address:
        """The address that `url` names, with OPENAI_API_KEY. Raises UserError for what is none."""
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError, TypeError):
            raise UserError(
                "The server's address is no URL; expected http://HOST:PORT/v1 "  # it may hold
                "(in a password, write '/', '#', '@' and ':' as %2F, %23, %40 and %3A)."  # a key
            ) from None
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise UserError("The server's address names no host; expected http://HOST:PORT/v1.")
        user = (parsed.username, parsed.password) if parsed.userinfo else None
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key.isascii() or not key.isprintable():
            raise UserError(
                f"{KEY_VARIABLE} holds characters that no HTTP header can carry; expected a key."
            )
        base = parsed.copy_with(userinfo=b"", fragment=None)
        return cls(base.copy_with(path=base.path.rstrip("/")), user, key)

    def path(self, name: str) -> httpx.URL:
        """The URL of `name` below the base, which keeps its query."""
        return self.base.copy_with(path=f"{self.base.path.rstrip('/')}/{name}")

    def shown(self) -> str:
        """The base URL without anything secret."""
        return redacted(str(self.base.copy_with(query=None)))

    def secrets(self) -> list[str]:
        """What must not be shown, should the server echo it; single letters hide nothing."""
        asked = self.base.params.multi_items()
        keys = [value for name, value in asked if MARK in redacted(f"http://h?{name}=x")]
        return [part for part in [self.key, *(self.user or ())[1:], *keys] if len(part) > 2]

    def is_here(self) -> bool:
        """True for a host of this machine, to which no proxy leads."""
        host = self.base.host.rstrip(".").lower()
        if host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            number = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            try:  # 127.1 and 2130706433 are addresses too
                number = ipaddress.ip_address(socket.inet_aton(host))
            except (OSError, ValueError):
                return False
        number = getattr(number, "ipv4_mapped", None) or number
        return number.is_loopback or number.is_unspecified

    def client(self, timeout: httpx.Timeout, limits: httpx.Limits) -> httpx.Client:
        """A client for this server; by the environment's proxy only to another machine.

        Raises UserError for a proxy that cannot be used.
        """
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            # with a transport of its own, the client does not read the proxies' variables
            direct = httpx.HTTPTransport(limits=limits) if self.is_here() else None
            return httpx.Client(
                auth=self.user, headers=headers, timeout=timeout, limits=limits, transport=direct
            )
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as problem:
            raise UserError(
                f"The proxy or certificate of the environment cannot be used "
                f"({redacted(str(problem))}); expected HTTP_PROXY, HTTPS_PROXY or ALL_PROXY "
                "to name an HTTP proxy."
            ) from None


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
    is_closed: bool = False  # the connection, before a word of an answer came

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

    def beside(self, name: str) -> str:
        """The text at `name` on the server's root, beside its `/v1`; empty where none is."""
        root = self.address.base.path.rstrip("/").removesuffix("/v1")
        url = self.address.base.copy_with(path=f"{root}/{name}")
        try:
            with self._client.stream("GET", url, timeout=2.0) as response:
                if response.status_code != httpx.codes.OK:
                    return ""
                return start_of(response, _LONGEST_STATUS).decode("utf-8", "replace")
        except _PROBLEMS:
            return ""

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
            if isinstance(found, _Failure) and found.is_closed:
                # A server may close a connection that was kept, just as the next request goes
                # out: that is no answer to it. Another one tells (RFC 9110, section 9.2.2).
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
                closed = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
                is_closed = isinstance(problem, closed) and not stream.has_begun
                return _Failure(_reason(problem), again, is_closed=is_closed)
        return stream

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def start_of(response: httpx.Response, most: int = _LONGEST_REFUSAL) -> bytes:
    """The first 64 KiB (`most` bytes) of a body, or as much of it as came."""
    body = b""
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) >= most:
                break
    except httpx.RequestError:
        pass
    return body[:most]


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
