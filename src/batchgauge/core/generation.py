"""What any engine does around its model: read prompts, follow one request, tell the time.

`PromptReader` turns requests into token ids, `Generation` is one request under way
(limits, stop texts, end tokens, moments of its tokens), `Stages` adds up where time went.
`answer_batch` is the frame that an engine fills in with what its model does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

from batchgauge.core.chat import ChatTemplate, Conversation
from batchgauge.core.ops import Floats
from batchgauge.core.sampling import Sampler
from batchgauge.core.tokenizer.edges import Edges
from batchgauge.errors import UserError
from batchgauge.protocols import Tokenizer
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    FinishReason,
    InferenceBatchRequest,
    InferenceBatchResponse,
    check_items,
    checked,
)


def check_batch(items: Sequence[BatchItem[InferenceBatchRequest]], most: int) -> None:
    """Raise UserError for an empty batch, one above `most`, or items without ids of their own."""
    if isinstance(items, Sequence) and not 1 <= len(items) <= most:
        raise UserError(f"The batch has {len(items)} items; expected 1 to {most}.")
    check_items(items)


class PromptReader:
    """Requests to prompt ids, by one model's rules.

    A chat prompt goes through the model's template, whose special tokens count; in any
    other text they are plain text. Begin- and end-of-text tokens go around a text where the
    model asks for them, so for one that wants a begin an empty prompt is that token alone;
    for any other an empty prompt is an error. Prompts of ids are taken as they are.
    """

    def __init__(
        self, tokenizer: Tokenizer, metadata: Mapping[str, Any], context_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate.from_metadata(metadata)
        self.context_length = context_length
        self.edges = Edges.from_metadata(metadata)

    def read_all(self, requests: Sequence[InferenceBatchRequest]) -> list[list[int] | UserError]:
        """Ids of each prompt, or what is wrong with the request; texts of one kind in one call."""
        found: dict[int, list[int] | UserError] = {}
        texts: dict[bool, dict[int, str]] = {True: {}, False: {}}
        for i, request in enumerate(requests):
            try:
                prompt = checked(request).prompt
                if isinstance(prompt, str):
                    texts[request.chat][i] = prompt
                else:
                    found[i] = self._checked(list(prompt))
            except UserError as problem:
                found[i] = problem
        chats, plain = self._chats([*texts[True].values()]), [*texts[False].values()]
        found |= zip(texts[True], self._ids(chats, chat=True), strict=True)
        found |= zip(texts[False], self._ids(plain, chat=False), strict=True)
        return [found[i] for i in range(len(requests))]

    def read(self, request: InferenceBatchRequest) -> list[int]:
        """Ids of one prompt. Raises UserError."""
        (found,) = self.read_all([request])
        if isinstance(found, UserError):
            raise found
        return found

    def read_conversation(self, messages: Conversation) -> list[int]:
        """Ids of what was said so far, by the model's template. Raises UserError."""
        (ids,) = self._ids(self._chats([messages]), chat=True)
        if isinstance(ids, UserError):
            raise ids
        return ids

    def _ids(self, texts: Sequence[str | UserError], chat: bool) -> list[list[int] | UserError]:
        """Ids of texts with what belongs around them, or what is wrong with each."""
        encoded = iter(self._encode([text for text in texts if isinstance(text, str)], chat))
        found = [next(encoded) if isinstance(text, str) else text for text in texts]
        return [self._finish(ids) if isinstance(ids, list) else ids for ids in found]

    def _chats(self, prompts: Sequence[Conversation]) -> Sequence[str | UserError]:
        if not prompts:
            return []
        if self.template is None:
            problem = UserError(
                "The model has no chat template; expected a request without `chat`."
            )
            return [problem] * len(prompts)
        return self.template.render(prompts)

    def _encode(self, texts: list[str], chat: bool) -> Sequence[list[int] | UserError]:
        if not texts:
            return []
        try:
            return self.tokenizer.encode_many(texts, allow_special=chat).tolist()
        except UserError as problem:
            if len(texts) == 1:
                return [problem]
            return [one for text in texts for one in self._encode([text], chat)]

    def _finish(self, ids: list[int]) -> list[int] | UserError:
        try:
            return self._checked(self.edges.around(ids))
        except UserError as problem:
            return problem

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise UserError("The prompt is empty; expected at least one token.")
        if len(ids) > self.context_length:
            raise UserError(
                f"The prompt has {len(ids)} tokens; expected at most the model's context of "
                f"{self.context_length}."
            )
        size = self.tokenizer.vocab_size
        if not all(0 <= i < size for i in ids):
            raise UserError(f"The prompt has an unknown token id; expected 0 to {size - 1}.")
        return ids


class Generation:
    """One request under way: what it has so far, and whether it is done."""

    def __init__(
        self, item: BatchItem[InferenceBatchRequest], prompt: list[int], reader: PromptReader
    ) -> None:
        self.id, self.request, self.prompt = item.id, checked(item.data), prompt
        self.sample = Sampler(self.request)
        self.error: str | None = None
        self.started_ns, self.prefill_ms = perf_counter_ns(), 0.0
        # The last token is never read back, so it may lie one beyond the context.
        room = reader.context_length - len(prompt) + 1
        self.limit = min(self.request.max_tokens, room)
        self.reason: FinishReason | None = None
        self.tokens: list[int] = []
        self.moments_ns: list[int] = []
        self.ended_ns = 0
        self._tokenizer = reader.tokenizer
        self._ends = frozenset() if self.request.ignore_eos else reader.edges.ends
        # Tokens at the end in which a stop text that is now complete must lie.
        self._reach = 1 + max((len(text.encode()) for text in self.request.stop), default=0)

    @property
    def capacity(self) -> int:
        """Positions that this request may fill in the KV cache."""
        return len(self.prompt) + self.limit - 1

    @property
    def going(self) -> bool:
        """Whether it wants another token."""
        return self.reason is None and self.error is None

    def choose(self, logits: Floats) -> int | None:
        """The next token by its scores [V]; None, and `error` says why, where they give none."""
        try:
            return self.sample(logits)
        except UserError as problem:
            self.error = str(problem)
            return None

    def add(self, token: int | None, now_ns: int) -> None:
        """Take the next token; sets `reason` when it is the last one. An end token is not kept."""
        self.ended_ns = now_ns
        if token is None:
            return
        if token in self._ends:
            self.reason = "stop"
            return
        self.tokens.append(token)
        self.moments_ns.append(now_ns)
        tail = self._tokenizer.decode(self.tokens[-self._reach :]) if self.request.stop else ""
        if any(stop in tail for stop in self.request.stop):
            self.reason = "stop"
        elif len(self.tokens) == self.limit:
            self.reason = "length" if self.limit == self.request.max_tokens else "context"

    def text(self) -> str:
        """The text so far, up to the first stop text."""
        text = self._tokenizer.decode(self.tokens)
        places = [text.find(stop) for stop in self.request.stop]
        return text[: min((place for place in places if place >= 0), default=len(text))]

    def response(
        self, text: str, started_ns: int, prefill_ms: float
    ) -> BatchResponse[InferenceBatchResponse]:
        """The answer, or the error, with times since `started_ns`."""
        times_ms = [(moment - started_ns) / 1e6 for moment in self.moments_ns]
        duration_ms = (self.ended_ns - started_ns) / 1e6
        if self.error is not None:
            return BatchResponse(self.id, None, duration_ms, self.error)
        first_ms = times_ms[0] if times_ms else duration_ms
        answer = InferenceBatchResponse(
            text=text,
            tokens_generated=len(self.tokens),
            token_ids=tuple(self.tokens),
            prompt_tokens=len(self.prompt),
            finish_reason=self.reason or "length",
            ttft_ms=first_ms,
            prefill_ms=prefill_ms,
            decode_ms=duration_ms - first_ms,
            inter_token_ms=tuple(b - a for a, b in pairwise(times_ms)),
        )
        return BatchResponse(self.id, answer, duration_ms)


class Stages:
    """Where the time of a batch went: stage name to milliseconds, added up."""

    NAMES = ("tokenize", "pad", "prefill", "decode", "sample", "detokenize", "bookkeeping")

    def __init__(self) -> None:
        self.started_ns = perf_counter_ns()
        self._spent_ns = dict.fromkeys(self.NAMES, 0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a `with` block for this stage."""
        began = perf_counter_ns()
        yield
        self._spent_ns[name] += perf_counter_ns() - began

    def elapsed_ms(self) -> float:
        """Milliseconds since the beginning."""
        return (perf_counter_ns() - self.started_ns) / 1e6

    def ms(self) -> dict[str, float]:
        """Milliseconds of every stage."""
        return {name: spent / 1e6 for name, spent in self._spent_ns.items()}


def answer_batch(
    items: Sequence[BatchItem[InferenceBatchRequest]],
    reader: PromptReader,
    most: int,
    run: Callable[[list[Generation], Stages], Mapping[str, int]],
) -> BatchResult[InferenceBatchResponse]:
    """Answer every item by `run`; one that cannot be answered becomes an error response.

    `run` carries requests to their ends and gives the counters decode_steps, positions and
    padded_positions. Raises UserError as `check_batch` does.
    """
    stages = Stages()
    check_batch(items, most)
    with stages.stage("tokenize"):
        prompts = reader.read_all([item.data for item in items])
    failed: dict[str, BatchResponse[InferenceBatchResponse]] = {}
    everyone: dict[str, Generation] = {}
    with stages.stage("pad"):
        for item, prompt in zip(items, prompts, strict=True):
            if isinstance(prompt, UserError):
                failed[item.id] = BatchResponse(item.id, None, stages.elapsed_ms(), str(prompt))
            else:
                everyone[item.id] = Generation(item, prompt, reader)
    counters = dict.fromkeys(("decode_steps", "positions", "padded_positions"), 0)
    if everyone:
        counters |= run(list(everyone.values()), stages)
    with stages.stage("detokenize"):
        texts = {name: one.text() for name, one in everyone.items()}
    with stages.stage("bookkeeping"):
        prefill_ms = stages.ms()["prefill"]
        responses = [
            failed.get(item.id)
            or everyone[item.id].response(texts[item.id], stages.started_ns, prefill_ms)
            for item in items
        ]
        counters["prompt_tokens"] = sum(len(one.prompt) for one in everyone.values())
        counters["generated_tokens"] = sum(len(one.tokens) for one in everyone.values())
    return BatchResult.of(responses, stages.elapsed_ms(), stages.ms(), counters)


def take_tokens(going: Sequence[Generation], logits: Iterable[Floats], stages: Stages) -> list[int]:
    """Choose and take a token for each request by its scores [B, V]; the rows that go on."""
    with stages.stage("sample"):
        chosen = [one.choose(row) for one, row in zip(going, logits, strict=True)]
    with stages.stage("bookkeeping"):
        now_ns = perf_counter_ns()
        for one, token in zip(going, chosen, strict=True):
            one.add(token, now_ns)
        return [row for row, one in enumerate(going) if one.going]
