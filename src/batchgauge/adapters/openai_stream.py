"""One answer of an OpenAI-compatible server: its pieces, when each came, how many tokens.

A piece is what one chunk brought; a server may put several tokens into one, or half a
token, so pieces are never counted as tokens. Tokens come from the server's usage, sent
with each chunk where it can, else once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter_ns
from typing import Any, Literal

from batchgauge.adapters.event_stream import Event, EventStream
from batchgauge.adapters.openai_errors import failure, message_of, parsed, text_of
from batchgauge.errors import UserError
from batchgauge.request import FinishReason, InferenceBatchResponse

# What servers say of an answer that is whole. Any other reason is a failure by its name.
_FINISHES: Mapping[str, FinishReason] = {
    **dict.fromkeys(
        ("stop", "eos", "eos_token", "stop_sequence", "stop_token", "end_turn"), "stop"
    ),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "stop"),
    **dict.fromkeys(
        ("length", "max_tokens", "max_output_tokens", "max_completion_tokens"), "length"
    ),
    **dict.fromkeys(("model_length", "context_length", "model_context_window_exceeded"), "context"),
}
_FILTERS = ("filter", "safety", "moderation", "recitation", "sensitive", "blocked")
_LONGEST_BODY = 2**24  # bytes of an answer in one piece

Kind = Literal["reasoning", "answer"]
Source = Literal["usage", "retokenized", "unknown"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk brought: text, when it came, tokens of the answer so far (None: not said)."""

    kind: Kind
    text: str
    time_ns: int
    tokens: int | None


@dataclass(slots=True)
class CompletionStream:
    """What one answer said, and when. `read` takes its bytes, `answer` makes the response."""

    pieces: list[Piece] = field(default_factory=list)
    finish: FinishReason | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    has_begun: bool = False
    has_times: bool = True  # False for an answer that came whole
    is_whole: bool = False  # the server said that the answer is done: nothing after it matters

    def read(self, chunks: Iterable[bytes]) -> None:
        """Read an answer to its end: an event stream, or a completion in one JSON body.

        Raises UserError when the server says that it failed, sends what is no
        completion, or stops before the end.
        """
        stream, body, is_json = EventStream(), bytearray(), None
        for chunk in chunks:
            now = perf_counter_ns()
            if is_json is None:
                body += chunk
                start = bytes(body[:64]).removeprefix(b"\xef\xbb\xbf").lstrip()
                if not start or b"\xef\xbb\xbf".startswith(bytes(body)):
                    continue
                is_json = start[:1] in b"{[<"  # JSON, or a page in HTML: no event begins so
                chunk = bytes(body)  # noqa: PLW2901 - with what came before it
            elif is_json:
                body += chunk
            if is_json and len(body) > _LONGEST_BODY:
                raise UserError("The server's answer is too long; expected an event stream.")
            if not is_json:
                self._take(stream, stream.feed(chunk), now)
        if is_json:
            self._read_body(bytes(body))
        elif not self.is_whole:
            self._check_stray(stream.unfinished_line())
        if not self.is_whole and self.finish is None:
            raise UserError(
                f"The server's stream ended after {len(self.pieces)} chunks "
                "without saying that it was done."
            )

    def _take(self, stream: EventStream, events: list[Event], now_ns: int) -> None:
        for event in events:
            self._read_event(event, now_ns)
        for line in stream.strays:
            self._check_stray(line)
        stream.strays.clear()

    def _read_event(self, event: Event, now_ns: int) -> None:
        data = event.data.strip()
        if self.is_whole or (not data and event.type != "error"):
            return  # after the end: read on, so that the connection can be used again
        self.has_begun = True
        if data == "[DONE]":
            self.is_whole = True
            return
        chunk = parsed(data)
        if event.type == "error":
            raise _broke_off(message_of(chunk))
        self._read_chunk(chunk, data, now_ns)

    def _check_stray(self, line: str) -> None:
        """Raise UserError when a line that is no field is a failure: `{"error": …}`, `error: …`."""
        if self.is_whole or not line.strip():
            return
        name, colon, rest = line.partition(":")
        if colon and name.strip().lower() == "error":
            raise _broke_off(message_of(parsed(rest.strip())))
        _check(parsed(line))

    def _read_body(self, body: bytes) -> None:
        """A whole completion where a stream was asked for, or an error with the status 200."""
        said = parsed(body.removeprefix(b"\xef\xbb\xbf"))
        if isinstance(said, str):  # several lines of JSON, the last one perhaps an error
            for line in said.split("\n"):
                _check(parsed(line))
            raise _no_completion(said)
        _check(said)
        if not isinstance(said, dict) or not said.get("choices"):
            raise _no_completion(body.decode("utf-8", "replace"))
        self.has_times = False
        self._read_chunk(said, body.decode("utf-8", "replace"), perf_counter_ns())
        self.is_whole = True

    def _read_chunk(self, chunk: Any, data: str, now_ns: int) -> None:
        _check(chunk)
        if not isinstance(chunk, dict):
            raise _no_completion(data)
        try:
            self._read_usage(chunk)
            for choice in chunk.get("choices") or []:
                if choice.get("index") in {0, None}:
                    self._read_choice(choice, now_ns)
                    break
        except (AttributeError, KeyError, TypeError, ValueError):
            raise _no_completion(data) from None

    def _read_usage(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage") or {}
        timings = chunk.get("timings") or {}  # llama.cpp's own
        if not isinstance(usage, dict) or not isinstance(timings, dict):
            raise TypeError
        tokens = count_of(usage.get("completion_tokens"))
        if tokens is None:
            tokens = count_of(timings.get("predicted_n"))
        prompt = count_of(usage.get("prompt_tokens"))
        self.tokens = self.tokens if tokens is None else tokens
        self.prompt_tokens = self.prompt_tokens if prompt is None else prompt

    def _read_choice(self, choice: Mapping[str, Any], now_ns: int) -> None:
        if choice.get("error"):
            raise _broke_off(failure({"error": choice["error"]}) or "no reason given")
        delta = choice.get("delta") or {}
        if not delta and not self.pieces:
            delta = choice.get("message") or {}  # a completion in one piece
        reasoning = _first_text(delta, ("reasoning_content", "reasoning", "thinking"))
        answer = _content(choice.get("text")) or _content(delta.get("content"))
        if isinstance(delta.get("content"), list):
            reasoning += _content(delta["content"], thinking=True)
        answer += _first_text(delta, ("refusal",)) + _calls(delta)
        if reasoning:
            self.pieces.append(Piece("reasoning", reasoning, now_ns, self.tokens))
        if answer:
            self.pieces.append(Piece("answer", answer, now_ns, self.tokens))
        self._read_finish(choice.get("finish_reason"))

    def _read_finish(self, reason: Any) -> None:
        if isinstance(reason, dict):  # SGLang's own: {"type": "abort", "message": …}
            said = reason.get("message")
            reason = reason.get("type")
            if said and str(reason).lower() not in _FINISHES:
                raise _broke_off(f"{text_of(reason)}: {text_of(said)}")
        if reason is None or reason == "":
            return
        if not isinstance(reason, str):
            raise TypeError
        name = reason.lower()
        if name in _FINISHES:
            self.finish = _FINISHES[name]
        elif any(word in name for word in _FILTERS):
            raise UserError(f"The server filtered the answer (finish reason '{text_of(reason)}').")
        else:
            raise UserError(
                f"The server ended the answer before it was whole "
                f"(finish reason '{text_of(reason)}')."
            )

    def answer(
        self, start_ns: int, retokenize: Callable[[str], int] | None = None
    ) -> tuple[InferenceBatchResponse, Source]:
        """The answer with times since `start_ns`, and how its tokens were counted.

        `retokenize` counts the tokens of a text by the model's own tokenizer; without
        it, and without usage, the tokens are unknown. Times from token to token are
        given only where every piece is known to be one token.
        """
        texts = {
            kind: "".join(p.text for p in self.pieces if p.kind == kind)
            for kind in ("reasoning", "answer")
        }
        tokens, source = self._count(texts, retokenize)
        timed = self.pieces if self.has_times else []
        times_ms = [(piece.time_ns - start_ns) / 1e6 for piece in timed]
        answers_ms = [ms for p, ms in zip(timed, times_ms, strict=True) if p.kind == "answer"]
        response = InferenceBatchResponse(
            text=texts["answer"],
            reasoning=texts["reasoning"],
            tokens_generated=tokens,
            prompt_tokens=self.prompt_tokens or 0,
            finish_reason=self.finish or "stop",
            ttft_ms=times_ms[0] if times_ms else math.nan,
            first_answer_ms=answers_ms[0] if answers_ms else math.nan,
            decode_ms=times_ms[-1] - times_ms[0] if len(times_ms) > 1 else math.nan,
            inter_token_ms=(
                tuple(b - a for a, b in pairwise(times_ms))
                if source == "usage" and self._are_tokens()
                else ()
            ),
        )
        return response, source

    def _count(
        self, texts: Mapping[str, str], retokenize: Callable[[str], int] | None
    ) -> tuple[int | None, Source]:
        if self.tokens is not None and (self.tokens > 0 or not self.pieces):
            return self.tokens, "usage"
        if retokenize is None:
            return None, "unknown"
        return sum(retokenize(text) for text in texts.values() if text), "retokenized"

    def _are_tokens(self) -> bool:
        """True when each piece is one token, by the usage of each or by the number of all."""
        count = len(self.pieces)
        return self.tokens == count or (
            count > 0 and [piece.tokens for piece in self.pieces] == list(range(1, count + 1))
        )


def count_of(value: Any) -> int | None:
    """A number of tokens as a server says it; None for what is no whole number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value < 2**53 or value != int(value):  # NaN is no number >= 0 either
        return None
    return int(value)


def _content(said: Any, *, thinking: bool = False) -> str:
    """The text of a content: a text, or a list of typed parts (`thinking`: of those parts)."""
    if said is None:
        return ""
    if isinstance(said, str):
        return "" if thinking else said
    if not isinstance(said, list):
        raise TypeError
    pieces = []
    for part in said:
        if isinstance(part, str):
            pieces.append("" if thinking else part)
        elif ("thinking" in part) == thinking:
            inner = part.get("thinking" if thinking else "text")
            pieces.append(_content(inner))
    return "".join(pieces)


def _first_text(delta: Mapping[str, Any], names: Iterable[str]) -> str:
    return next((_content(delta[name]) for name in names if delta.get(name)), "")


def _calls(delta: Mapping[str, Any]) -> str:
    """What a delta adds to calls of tools: generated tokens too, though no prose."""
    calls = [call.get("function") for call in delta.get("tool_calls") or []]
    calls.append(delta.get("function_call"))
    return "".join(
        _content(call.get(key)) for call in calls if call for key in ("name", "arguments")
    )


def _check(said: Any) -> None:
    """Raise UserError where a JSON value in an answer's place says what went wrong."""
    if (problem := failure(said)) is not None:
        raise _broke_off(problem)


def _broke_off(said: str) -> UserError:
    return UserError(f"The server broke off: {said.rstrip('.')}.")


def _no_completion(said: str) -> UserError:
    return UserError(f"The server sent what is no completion: {text_of(said)[:80]!r}.")
