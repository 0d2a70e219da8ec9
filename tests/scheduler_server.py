"""The scheduler of `tests/scheduler.py` as an OpenAI-compatible server in real time, for tests.

A prompt of k words is k tokens and is answered with `max_tokens` words. Run as a process of its
own: `python -m tests.scheduler_server PORT JSON`, JSON being the fields of a `Plan`, with
`metrics` for vLLM's names at /metrics and `context` for the most tokens that a request may have.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tests.scheduler import Job, Plan, Scheduler

PROJECT = Path(__file__).parents[1]
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n"
_CHOICE = {"index": 0, "delta": {"content": "word "}, "text": "word "}
_CHUNK = json.dumps({"object": "text_completion", "choices": [_CHOICE]})


class Server:
    """Connections, and the loop that steps the scheduler."""

    def __init__(self, plan: Plan, options: dict[str, Any]) -> None:
        self.plan, self.options = plan, options
        self.scheduler = Scheduler(plan, np.random.default_rng(options.get("seed", 0)))
        self.writers: dict[int, asyncio.StreamWriter] = {}
        self.done: dict[int, asyncio.Event] = {}
        self.work = asyncio.Event()
        self.requests = 0

    async def serve(self, port: int) -> None:
        """Answer until the process ends."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", port, backlog=512)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await self._steps()

    async def _steps(self) -> None:
        now = asyncio.get_running_loop().time
        at = now()
        while True:
            if not self.scheduler.inside:
                self.work.clear()
                await self.work.wait()
                at = now()
            seconds, jobs = self.scheduler.step()
            at = max(at + seconds, now() - 0.01)
            await asyncio.sleep(max(0.0, at - now()))
            over = {id(job) for job in self.scheduler.finish(jobs, at)}
            for job in jobs:
                self._token(job, last=id(job) in over)

    def _token(self, job: Job, *, last: bool) -> None:
        writer = self.writers[id(job)]
        event = b"" if self.options.get("empty") else _event(_CHUNK)
        if last:
            usage = {
                "prompt_tokens": job.prompt,
                "completion_tokens": 0 if self.options.get("empty") else job.done,
            }
            event += _event(json.dumps({"choices": [{"index": 0, "finish_reason": "length"}]}))
            event += _event(json.dumps({"choices": [], "usage": usage})) + _event("[DONE]")
            event += b"0\r\n\r\n"
        writer.write(event)
        if last:
            self.done[id(job)].set()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                method, path, _ = lines[0].split(" ", 2)
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if method == "HEAD":  # by which AIPerf looks for metrics
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                elif method == "GET":
                    self._get(path, writer)
                else:
                    await self._completion(json.loads(body), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _get(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path.endswith("/models"):
            data = json.dumps({"data": [{"id": "mock"}]})
            _answer(writer, 200, data)
        elif path == "/metrics" and self.options.get("metrics"):
            held = sum(j.prompt + j.done for j in self.scheduler.running)
            rows = {
                "vllm:kv_cache_usage_perc": min(1.0, held / self.plan.kv_tokens),
            }
            _answer(writer, 200, "".join(f'{k}{{model="m"}} {v}\n' for k, v in rows.items()))
        elif path == "/requests":
            _answer(writer, 200, json.dumps(self.requests))
        else:
            _answer(writer, 404, "{}")

    async def _completion(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        job = Job(0, 0.0, len(text.split()), int(body["max_tokens"]))
        if job.prompt + job.new > self.options.get("context", math.inf):
            said = "This model's maximum context length is exceeded by the request."
            _answer(writer, 400, json.dumps({"error": {"message": said}}))
            return
        if self.plan.most and self.scheduler.inside >= self.plan.most:
            _answer(writer, 429, json.dumps({"error": {"message": "too many requests"}}))
            return
        writer.write(_HEAD % b"text/event-stream" + b"Transfer-Encoding: chunked\r\n\r\n")
        self.writers[id(job)], self.done[id(job)] = writer, asyncio.Event()
        self.scheduler.waiting.append(job)
        self.work.set()
        await self.done[id(job)].wait()
        del self.writers[id(job)], self.done[id(job)]


def _event(data: str) -> bytes:
    line = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(line), line)


def _answer(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    data = text.encode()
    writer.write(
        f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )


class Running:
    """A server's process, its URL, and how many completions it was asked for."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}/v1"

    def requests(self) -> int:
        """How many completions it was asked for."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/requests") as answer:
            return int(json.load(answer))

    def stop(self) -> None:
        """End the process at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def scheduler_server(plan: Plan, port: int = 0, **options: Any) -> Iterator[Running]:
    """A server of this plan in a process of its own, for as long as the block runs."""
    command = [
        sys.executable, "-m", "tests.scheduler_server", str(port),
        json.dumps({**asdict(plan), "options": options}),
    ]  # fmt: skip
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Running(process, int(line))
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    """Serve; see the module's docstring."""
    fields = json.loads(sys.argv[2])
    options = fields.pop("options", {})
    time.sleep(float(options.get("slow_start_s", 0.0)))
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    asyncio.run(Server(Plan(**lists), options).serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
