"""Any OpenAI-compatible HTTP server as an engine: vLLM, llama.cpp's server, Ollama and others.

A batch is as many requests at once. Answers are streamed, which shows the time to the
first token; times between tokens are given where every chunk is known to be one token.
Prompts given as ids are sent as text, since few servers take ids. What a server does
inside (its batching, its prefix cache) is not seen and not controlled: stages are
empty, and ids of what it generated are unknown.

Before a batch that is larger than all before it, as many untimed requests as it has
items go out at once, so that connections and the server's slots are warm; the first of
all finds out which options the server takes (`openai_options`). `conditions` says what
was found. An API key is taken from `OPENAI_API_KEY` where it is set; a server on this
machine is never asked through a proxy.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import httpx

from batchgauge.adapters.openai_errors import message_of, parsed
from batchgauge.adapters.openai_options import STREAM_OPTIONS, Dialect, named_options, settle
from batchgauge.adapters.openai_stream import CompletionStream, Source
from batchgauge.adapters.openai_transport import Address, Patience, RefusalError, Transport
from batchgauge.core.generation import check_batch
from batchgauge.errors import UserError
from batchgauge.protocols import Tokenizer
from batchgauge.redaction import redacted
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    InferenceBatchRequest,
    InferenceBatchResponse,
)

MAX_BATCH_SIZE = 100
WARM_UP = InferenceBatchRequest("Hello", max_tokens=4)


def open_engine(argument: str, model: Path | None, threads: int) -> OpenAIEngine:  # noqa: ARG001 - the server has its own threads
    """The server at `argument`, a base URL with `#model` where it serves several.

    Naming `model` (a GGUF) says that the server runs it: then its tokenizer counts the
    tokens of a server that does not.
    """
    url, _, name = argument.partition("#")
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"The engine 'openai:{argument}' has no address; "
            "expected openai:http://HOST:PORT/v1, with #MODEL where the server has several."
        )
    from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer

    return OpenAIEngine(
        url, name, tokenizer=BPETokenizer.from_gguf(model), is_models_own=model is not None
    )


class OpenAIEngine:
    """Concurrent requests to one server; satisfies `batchgauge.protocols.Engine`."""

    name = "openai"

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        tokenizer: Tokenizer | None = None,
        is_models_own: bool = False,
        patience: Patience | None = None,
    ) -> None:
        """Find the server and its model. Raises UserError when either is not there.

        `tokenizer` turns prompts of ids into text; where it `is_models_own`, it also counts
        the tokens of answers that come without usage.
        """
        self.tokenizer = tokenizer
        self._counter = tokenizer if is_models_own else None
        self._address = Address.of(url)
        self.url = self._address.shown()
        self._transport = Transport(self._address, patience or Patience(), MAX_BATCH_SIZE)
        self._lock = threading.Lock()
        self._dialect = Dialect()
        self._settled: set[tuple[bool, bool]] = set()
        self._warm_slots = 0
        self._sources: set[Source] = set()
        self.model = self._find_model(model)

    def max_batch_size(self) -> int:
        """The largest batch taken: 100 requests at once."""
        return MAX_BATCH_SIZE

    def conditions(self) -> dict[str, str]:
        """What a report says beside the figures; complete once requests have been answered."""
        words: Mapping[Source, str] = {
            "usage": "the server's own usage",
            "retokenized": "the model's tokenizer, on the text that came",
            "unknown": "nobody: the server does not say, and its tokenizer is not known",
        }
        return {
            "server": self.url,
            "model served": redacted(self.model),
            "options": self._dialect.sentence(),
            "generated tokens counted by": "; ".join(words[s] for s in sorted(self._sources))
            or "nothing was generated",
            "warm-up": f"{self._warm_slots} requests at once, not timed",
        }

    def infer_batch(
        self, items: Sequence[BatchItem[InferenceBatchRequest]]
    ) -> BatchResult[InferenceBatchResponse]:
        """Send all items at once; whatever goes wrong with one becomes its error response.

        The counters `prompt_tokens` and `generated_tokens` are there where all are known,
        `retries` where a request was sent again (the wait is in its times). Raises
        UserError for an empty batch, one above `max_batch_size()`, or equal ids.
        """
        check_batch(items, MAX_BATCH_SIZE)
        self._prepare(items)
        retries: list[int] = []
        start_ns = perf_counter_ns()
        with ThreadPoolExecutor(len(items)) as pool:
            responses = list(pool.map(lambda item: self._answer(item, start_ns, retries), items))
        total_ms = (perf_counter_ns() - start_ns) / 1e6
        done = [response.data for response in responses if response.data]
        counters = {"retries": len(retries)} if retries else {}
        if all(answer.prompt_tokens for answer in done):
            counters["prompt_tokens"] = sum(answer.prompt_tokens for answer in done)
        generated = [answer.tokens_generated for answer in done]
        if None not in generated:
            counters["generated_tokens"] = sum(n for n in generated if n is not None)
        return BatchResult.of(responses, total_ms, counters=counters)

    def ask(self, request: InferenceBatchRequest) -> InferenceBatchResponse:
        """Answer one request on the calling thread, times since the call; nothing is tried again.

        For load: many threads may ask at once, and no slot is warmed here. Raises RefusalError
        where the server refuses, UserError for any other failure.
        """
        kind = (request.chat, request.ignore_eos)
        if kind not in self._settled:
            with self._lock:
                if kind not in self._settled and self._settle(request, attempts=1):
                    self._settled.add(kind)
        return self._answered(request, perf_counter_ns(), attempts=1)

    def tell(self, name: str) -> str:
        """What the server has at a path beside its API, such as `metrics`; empty without it."""
        return self._transport.beside(name)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _prepare(self, items: Sequence[BatchItem[InferenceBatchRequest]]) -> None:
        """Settle the options, and warm as many slots as the batch has items; nothing is timed."""
        with self._lock:
            for item in items:
                kind = (item.data.chat, item.data.ignore_eos)
                if kind not in self._settled and self._settle(item.data):
                    self._settled.add(kind)
            if len(items) > self._warm_slots:
                ready = threading.Barrier(len(items))
                chat = items[0].data.chat

                def warm(slot: int) -> None:
                    ready.wait()
                    request = replace(WARM_UP, prompt=f"Hello {slot}", chat=chat)
                    try:
                        self._post(request, self._dialect, attempts=1)
                    except UserError:
                        return  # a request of the batch will say it

                with ThreadPoolExecutor(len(items)) as pool:
                    list(pool.map(warm, range(len(items))))
                self._warm_slots = len(items)

    def _settle(self, request: InferenceBatchRequest, **how: Any) -> bool:
        """Find the options that the server takes, `how` as for `_post`; False: it did not say."""
        probe = replace(request, prompt="Hello", max_tokens=WARM_UP.max_tokens, stop=())
        was_told = True

        def ask(dialect: Dialect) -> bytes | None:
            nonlocal was_told
            try:
                self._post(probe, dialect, **how)
            except RefusalError as refusal:
                if refusal.status in {400, 422} or named_options(refusal.body):
                    return refusal.body
                was_told = False
            except UserError as problem:  # an error with the status 200, or no answer at all
                if named_options(str(problem).encode()):
                    return str(problem).encode()
                was_told = False
            return None

        self._dialect = settle(ask, self._dialect)
        return was_told

    def _find_model(self, wanted: str) -> str:
        try:
            status, body, location = self._transport.get("models")
        except UserError as problem:
            raise self._error(str(problem)) from None
        said = parsed(body)
        if 300 <= status < 400:
            raise self._error(
                f"The server at {self.url} redirects to '{location}'; "
                "expected the address where it answers itself."
            )
        served = _models_in(said) if status == httpx.codes.OK else []
        if not served:
            if wanted:
                return wanted  # a server without a list of models
            why = f" ({status}: {message_of(said)})" if status != httpx.codes.OK else ""
            raise self._error(
                f"The server at {self.url} does not list its models{why}; "
                "expected the model's name behind the address: openai:URL#MODEL."
            )
        if wanted and not {wanted, f"{wanted}:latest"} & set(served):
            raise self._error(
                f"The server at {self.url} has no model '{wanted}'; "
                f"expected one of {', '.join(served[:20])}."
            )
        if not wanted and len(served) != 1:
            raise self._error(
                f"The server at {self.url} has {len(served)} models; expected the name of one "
                f"behind the address, as in openai:{self.url}#{served[0]}."
            )
        return wanted or served[0]

    def _error(self, text: str) -> UserError:
        return UserError(redacted(text, self._address.secrets()))

    def _answer(
        self, item: BatchItem[InferenceBatchRequest], start_ns: int, retries: list[int]
    ) -> BatchResponse[InferenceBatchResponse]:
        answer, error = None, None
        try:
            answer = self._answered(item.data, start_ns, retries=retries)
        except UserError as problem:
            error = str(problem)
        return BatchResponse(item.id, answer, (perf_counter_ns() - start_ns) / 1e6, error)

    def _answered(
        self, request: InferenceBatchRequest, start_ns: int, **how: Any
    ) -> InferenceBatchResponse:
        """One answer, times since `start_ns`; what an error echoes of a key is not shown."""
        counter = self._counter
        try:
            stream = self._post(request, self._dialect, **how)
            answer, source = stream.answer(
                start_ns, (lambda text: len(counter.encode(text))) if counter else None
            )
        except UserError as problem:
            problem.args = (redacted(str(problem), self._address.secrets()),)
            raise
        self._sources.add(source)
        return answer

    def _body(self, request: InferenceBatchRequest, dialect: Dialect) -> tuple[str, bytes]:
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
            "stream_options": dict(STREAM_OPTIONS),
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.ignore_eos:
            body["ignore_eos"] = True  # vLLM, SGLang and llama.cpp know it, most pass over it
        if request.chat:
            path, body["messages"] = "chat/completions", [{"role": "user", "content": text}]
        else:
            path, body["prompt"] = "completions", text
        try:
            text.encode()  # half of a surrogate pair is no text
            return path, json.dumps(dialect.spoken(body), allow_nan=False).encode()
        except (TypeError, ValueError) as problem:
            raise UserError(f"The request cannot be sent as JSON ({problem}).") from None

    def _post(
        self, request: InferenceBatchRequest, dialect: Dialect, **how: Any
    ) -> CompletionStream:
        """Send a request as this server takes it; `how` as for `Transport.post`."""
        return self._transport.post(*self._body(request, dialect), **how)


def _models_in(said: Any) -> list[str]:
    """The models that a server lists: `{"data": […]}`, Ollama's `{"models": […]}`, or a bare list.

    Empty where it lists none.
    """
    rows: Any = said
    if isinstance(said, dict):
        rows = next((said[key] for key in ("data", "models") if said.get(key)), [])
    if not isinstance(rows, list):
        return []
    names = []
    for row in rows:
        name = row
        if isinstance(row, dict):
            name = next((row[key] for key in ("id", "name", "model") if row.get(key)), None)
        if isinstance(name, str | int) and not isinstance(name, bool) and str(name):
            names.append(str(name))
    return list(dict.fromkeys(names))
