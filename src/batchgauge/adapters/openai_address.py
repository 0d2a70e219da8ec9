"""The address of a server: where to connect, what to show of it, which way to go there."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass

import httpx

from batchgauge.errors import UserError
from batchgauge.redaction import KEY_VARIABLE, MARK, redacted


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
