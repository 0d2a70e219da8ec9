"""An OpenAI-compatible server for tests only: it echoes words, and misbehaves when asked to.

`tiny_server()` yields a running `TinyServer` on a free port of the loopback. A prompt
is answered with its own words, one chunk each. What goes wrong is asked for in the
prompt: `fail=429x2` answers the first two tries of that prompt with 429, `half`
closes the stream in the middle, `silent` ends it without saying so, `garbage` sends
what is no JSON, `broken` sends an error inside the stream, `slow` waits 0.3 s. A test can
set what else a server does: `scripts`, `refuses`, `slow_first_s`, `listed`.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class TinyServer(ThreadingHTTPServer):
    """Serves `models`; `seen` are the bodies of all completion requests.

    scripts       prompt -> the content type and raw chunks that answer it, status 200
    refuses       option -> the body of the 400 that answers a request with it
    slow_first_s  seconds that the first request of each connection takes longer
    listed        the JSON of the list of models, in place of `models`; a tuple is (status,
                  headers, bytes)
    asked         the paths and headers of all requests
    """

    daemon_threads = True

    def __init__(self, models: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.seen: list[dict[str, Any]] = []
        self.tries: Counter[str] = Counter()
        self.running = self.most_at_once = 0
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []
        self.scripts: dict[str, tuple[str, list[bytes]]] = {}
        self.refuses: dict[str, bytes] = {}
        self.slow_first_s = 0.0
        self.listed: Any = None
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.met: set[Any] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, and remember it for `server_close`."""
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def server_close(self) -> None:
        """Close the server and every connection that clients still hold open."""
        super().server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        """The base URL, as an OpenAI client wants it."""
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def tiny_server(models: tuple[str, ...] = ("tiny",)) -> Iterator[TinyServer]:
    """A server that runs inside the `with` block."""
    server = TinyServer(models)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: TinyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        if isinstance(self.server.listed, tuple):
            status, headers, data = self.server.listed
            self._bytes(status, data, headers)
            return
        if self.server.listed is not None:
            self._json(200, self.server.listed)
            return
        rows = [{"id": name, "object": "model"} for name in self.server.models]
        self._json(200, {"object": "list", "data": rows} if rows else {"oops": 1})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        self.server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.server.slow_first_s and self.client_address not in self.server.met:
            self.server.met.add(self.client_address)
            time.sleep(self.server.slow_first_s)
        with self.server.lock:
            self.server.seen.append(body)
            self.server.tries[prompt] += 1
            tries = self.server.tries[prompt]
            self.server.running += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.running)
        try:
            failing = re.search(r"fail=(\d+)x(\d+)", prompt)
            refused = [
                said
                for name, said in self.server.refuses.items()
                if name in body or name in body.get("stream_options", {})
            ]
            if refused:
                self._bytes(400, refused[0])
            elif prompt in self.server.scripts:
                self._script(*self.server.scripts[prompt])
            elif body["model"] not in self.server.models:
                self._json(404, {"error": {"message": f"no model {body['model']}"}})
            elif failing and tries <= int(failing[2]):
                self._json(int(failing[1]), {"error": {"message": "busy"}}, {"Retry-After": "0"})
            else:
                self._stream(prompt, body, chat=self.path.endswith("/chat/completions"))
        finally:
            with self.server.lock:
                self.server.running -= 1

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._bytes(status, json.dumps(value).encode(), headers)

    def _bytes(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def _script(self, content_type: str, chunks: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            self._chunk(chunk)
        self._chunk(b"")

    def _stream(self, prompt: str, body: dict[str, Any], *, chat: bool) -> None:
        most = body.get("max_tokens") or body["max_completion_tokens"]
        words = prompt.split()[:most]
        if "slow" in words:
            time.sleep(0.3)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, word in enumerate(words):
            if number == 2 and "half" in words:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if number == 1 and "garbage" in words:
                self._event("{this is not JSON")
            if number == 1 and "broken" in words:
                self._event(json.dumps({"error": {"message": "out of memory"}}))
            piece = {"delta": {"content": f"{word} "}} if chat else {"text": f"{word} "}
            self._event(json.dumps({"choices": [{"index": 0, **piece}]}))
        if "silent" not in words:
            finish = "length" if len(words) == most else "stop"
            self._event(json.dumps({"choices": [{"index": 0, "finish_reason": finish}]}))
            usage = {"prompt_tokens": 7, "completion_tokens": len(words)}
            self._event(json.dumps({"choices": [], "usage": usage}))
            self._event("[DONE]")
        self._chunk(b"")

    def _event(self, text: str) -> None:
        self._chunk(f"data: {text}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
