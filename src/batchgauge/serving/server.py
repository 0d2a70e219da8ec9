"""The server process: workers, engine and application, run by uvicorn until a signal ends it."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from batchgauge.core.config import Config
from batchgauge.core.default_model import open_model
from batchgauge.core.generation import PromptReader
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.serving.async_engine import AsyncEngine
from batchgauge.serving.http import Service
from batchgauge.serving.metrics import Metrics
from batchgauge.serving.replies import Limits
from batchgauge.serving.starters import starter
from batchgauge.serving.worker import WorkerPlan
from batchgauge.serving.workers import Workers

START_S = 600.0  # that a model may take to load, and its slots to be found out
HEAD_S = 20.0  # that the head of a request may take to arrive
LEAVE_S = 5  # that answers may take to leave after the engine is closed


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve: where, by how many workers (0: a thread), how many may wait beside them."""

    plan: WorkerPlan = field(default_factory=WorkerPlan)
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    queue: int = 64
    api_key: str = ""
    name: str = ""
    limits: Limits = field(default_factory=Limits)
    grace_s: float = 30.0


class _Connection(H11Protocol):
    """A connection that is closed where the head of a request takes longer than `HEAD_S`."""

    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """Wait on where a head is not complete; else until the next begins."""
        super().data_received(data)
        is_head = self.conn.their_state is h11.IDLE
        if not is_head:
            self._stop_watching()
        elif self._watch is None:
            self._watch = self.loop.call_later(HEAD_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._stop_watching()
        super().connection_lost(exc)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


class _Server(uvicorn.Server):
    """Ends by finishing what is under way, and by handing back what takes too long."""

    def __init__(self, config: uvicorn.Config, engine: AsyncEngine, grace_s: float) -> None:
        super().__init__(config)
        self._engine, self._grace_s = engine, grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and let those there are end."""
        closing = asyncio.create_task(self._engine.close(self._grace_s))
        await super().shutdown(sockets)
        await closing


@dataclass(frozen=True, slots=True)
class Opened:
    """A server whose workers are ready and whose socket listens, though nobody answers yet."""

    server: uvicorn.Server
    engine: AsyncEngine
    model: str
    url: str
    _socket: socket.socket

    def run(self) -> None:
        """Answer until a signal, or `stop`, says to end."""
        with self._socket:
            self.server.run([self._socket])

    def stop(self) -> None:
        """Have `run` end, from any thread: what is under way is finished or handed back."""
        self.server.should_exit = True


def open_server(options: Options) -> Opened:
    """Load the model, start workers and listen. Raises UserError, with nothing left behind."""
    reader, title = read_model(options.plan.model)
    taken = _listen(options.host, options.port)
    metrics = Metrics()
    workers = Workers(starter(options.plan, options.workers), max(1, options.workers))
    engine = AsyncEngine(workers, reader, options.queue, metrics)
    metrics.follow(engine.state, lambda: workers.restarts)
    try:
        workers.wait_ready(START_S)
    except BaseException:
        asyncio.run(engine.close())
        taken.close()
        raise
    model = options.name or title
    service = Service(engine, model, metrics, options.api_key, options.limits)
    config = uvicorn.Config(
        service.app(),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        http=_Connection,
        timeout_graceful_shutdown=round(options.grace_s) + LEAVE_S,
    )
    host, port = taken.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    server = _Server(config, engine, options.grace_s)
    return Opened(server, engine, model, f"http://{shown}:{port}/v1", taken)


def read_model(path: str) -> tuple[PromptReader, str]:
    """What reads prompts for a model, and the model's name. Raises UserError."""
    file = open_model(path or None)
    tokenizer = BPETokenizer.from_metadata(file.metadata, threads=1)
    reader = PromptReader(tokenizer, file.metadata, Config.from_file(file).context_length)
    return reader, file.path.stem


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. Raises UserError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise UserError(
            f"The server cannot listen on '{host}' port {port}: {error.strerror or error}."
        ) from None
