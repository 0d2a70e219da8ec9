"""Any OpenAI-compatible HTTP server as an engine: vLLM, llama.cpp's server, Ollama and others.

A batch is as many requests at once. Answers are streamed, which shows the time to
the first token and between tokens (of chunks: a server may send several tokens in
one). Prompts given as ids are sent as text, since few servers take ids. What a
server does inside (its batching, its prefix cache) is not seen and not controlled:
stages are empty, and ids of what it generated are unknown. An API key is taken
from `OPENAI_API_KEY` where it is set.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import httpx

from batchgauge.adapters.openai_stream import CompletionStream, text_of
from batchgauge.core.generation import check_batch
from batchgauge.errors import UserError
from batchgauge.protocols import Tokenizer
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    InferenceBatchRequest,
    InferenceBatchResponse,
)

MAX_BATCH_SIZE = 100
RETRIED = {408, 409, 429, 500, 502, 503, 504}


def open_engine(argument: str, model: Path | None, threads: int) -> OpenAIEngine:  # noqa: ARG001 - the server has its own threads
    """The server at `argument`, a base URL with `#model` where it serves several."""
    url, _, name = argument.partition("#")
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"The engine 'openai:{argument}' has no address; "
            "expected openai:http://HOST:PORT/v1, with #MODEL where the server has several."
        )
    from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer

    return OpenAIEngine(url, name, tokenizer=BPETokenizer.from_gguf(model))


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


class OpenAIEngine:
    """Concurrent requests to one server; satisfies `batchgauge.protocols.Engine`."""

    name = "openai"

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        tokenizer: Tokenizer | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Find the server and its model. Raises UserError when either is not there."""
        self.url = url.rstrip("/")
        self.tokenizer = tokenizer
        self.patience = patience or Patience()
        key = os.environ.get("OPENAI_API_KEY")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self.patience.read, connect=self.patience.connect),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=MAX_BATCH_SIZE),
        )
        self.model = self._find_model(model)

    def max_batch_size(self) -> int:
        """The largest batch taken: 100 requests at once."""
        return MAX_BATCH_SIZE

    def infer_batch(
        self, items: Sequence[BatchItem[InferenceBatchRequest]]
    ) -> BatchResult[InferenceBatchResponse]:
        """Send all items at once; whatever goes wrong with one becomes its error response.

        Raises UserError for an empty batch, one above `max_batch_size()`, or equal ids.
        """
        check_batch(items, MAX_BATCH_SIZE)
        start_ns = perf_counter_ns()
        with ThreadPoolExecutor(len(items)) as pool:
            responses = list(pool.map(lambda item: self._answer(item, start_ns), items))
        total_ms = (perf_counter_ns() - start_ns) / 1e6
        done = [response.data for response in responses if response.data]
        counters = {
            "prompt_tokens": sum(answer.prompt_tokens for answer in done),
            "generated_tokens": sum(answer.tokens_generated for answer in done),
        }
        return BatchResult.of(responses, total_ms, counters=counters)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _find_model(self, wanted: str) -> str:
        try:
            response = self._client.get(f"{self.url}/models")
            response.raise_for_status()
            served = [str(row["id"]) for row in response.json()["data"]]
        except (httpx.RequestError, httpx.InvalidURL) as problem:
            raise UserError(
                f"No server answers at {self.url} ({_reason(problem)}); "
                "expected an OpenAI-compatible server there."
            ) from None
        except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
            if wanted:
                return wanted  # a server without a list of models
            raise UserError(
                f"The server at {self.url} does not list its models; "
                "expected the model's name behind the address: openai:URL#MODEL."
            ) from None
        if wanted and wanted not in served:
            raise UserError(
                f"The server at {self.url} has no model '{wanted}'; "
                f"expected one of {', '.join(served)}."
            )
        if not wanted and len(served) != 1:
            raise UserError(
                f"The server at {self.url} has {len(served)} models; expected the name of one "
                f"behind the address, as in openai:{self.url}#{(served or ['MODEL'])[0]}."
            )
        return wanted or served[0]

    def _answer(
        self, item: BatchItem[InferenceBatchRequest], start_ns: int
    ) -> BatchResponse[InferenceBatchResponse]:
        answer, error = None, None
        try:
            stream = self._stream(item.data)
            answer = stream.answer(start_ns)
        except UserError as problem:
            error = str(problem)
        return BatchResponse(item.id, answer, (perf_counter_ns() - start_ns) / 1e6, error)

    def _body(self, request: InferenceBatchRequest) -> tuple[str, dict[str, Any]]:
        """The path of a request, and what is posted there."""
        text = request.prompt
        if not isinstance(text, str):
            if self.tokenizer is None:
                raise UserError("The prompt is given as ids; expected text for a server.")
            text = self.tokenizer.decode(text)
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.ignore_eos:
            body["ignore_eos"] = True  # vLLM and llama.cpp know it, others pass over it
        if request.chat:
            return "chat/completions", {**body, "messages": [{"role": "user", "content": text}]}
        return "completions", {**body, "prompt": text}

    def _stream(self, request: InferenceBatchRequest) -> CompletionStream:
        """Post a request, again where that can help, and read its stream to the end."""
        path, body = self._body(request)
        for attempt in range(1, self.patience.attempts + 1):
            stream = CompletionStream()
            try:
                with self._client.stream("POST", f"{self.url}/{path}", json=body) as response:
                    if response.status_code == httpx.codes.OK:
                        stream.read(response)
                        return stream
                    problem = f"{response.status_code}: {_message(response)}"
                    wait_s = _retry_after(response)
                    again = response.status_code in RETRIED
            except httpx.RequestError as failure:
                if stream.times_ns:
                    raise UserError(
                        f"The server's stream broke after {len(stream.times_ns)} chunks "
                        f"({_reason(failure)})."
                    ) from None
                problem, wait_s = _reason(failure), None
                again = not isinstance(failure, httpx.ReadTimeout)
            if not again or attempt == self.patience.attempts:
                tries = f" after {attempt} attempts" if attempt > 1 else ""
                raise UserError(f"The server did not answer{tries} ({problem}).")
            backoff_s = self.patience.backoff * 2 ** (attempt - 1) * (1 + random.random())
            time.sleep(min(backoff_s if wait_s is None else wait_s, self.patience.longest_wait))
        raise AssertionError("unreachable")


def _message(response: httpx.Response) -> str:
    """What a refusal says, in one line."""
    try:
        content = response.read()
        said = json.loads(content)
    except httpx.RequestError:
        return "no reason given"
    except ValueError:
        said = content.decode("utf-8", "replace")
    return text_of(
        said.get("error") or said.get("detail") or said if isinstance(said, dict) else said
    )


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _reason(problem: Exception) -> str:
    return str(problem) or type(problem).__name__
