"""One streamed completion of an OpenAI-compatible server: its pieces, and when each came."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

import httpx

from batchgauge.errors import UserError
from batchgauge.request import FinishReason, InferenceBatchResponse


@dataclass(slots=True)
class CompletionStream:
    """What one streamed answer said, and when."""

    pieces: list[str] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    def read(self, response: httpx.Response) -> None:
        """Read server-sent events to `[DONE]`. Raises UserError for a stream that is cut short."""
        done = False
        for event in events(response):
            if event == "[DONE]":
                done = True  # and read on to the end, so that the connection can be used again
                continue
            try:
                chunk = json.loads(event)
                if "error" in chunk:
                    raise UserError(f"The server broke off: {text_of(chunk['error'])}.")
                self.usage = chunk.get("usage") or self.usage
                for choice in chunk.get("choices", [])[:1]:
                    text = choice.get("text") or (choice.get("delta") or {}).get("content")
                    self.finish = choice.get("finish_reason") or self.finish
                    if text:
                        self.pieces.append(text)
                        self.times_ns.append(perf_counter_ns())
            except (ValueError, AttributeError, TypeError):
                raise UserError(f"The server sent what is no completion: {event[:80]!r}.") from None
        if not done and self.finish is None:
            raise UserError(
                f"The server's stream ended after {len(self.times_ns)} chunks "
                "without saying that it was done."
            )

    def answer(self, start_ns: int) -> InferenceBatchResponse:
        """The answer, with times since `start_ns`; tokens are chunks where no usage was sent."""
        times_ms = [(moment - start_ns) / 1e6 for moment in self.times_ns]
        finish: FinishReason = "length" if self.finish == "length" else "stop"
        return InferenceBatchResponse(
            text="".join(self.pieces),
            tokens_generated=int(self.usage.get("completion_tokens") or len(self.pieces)),
            prompt_tokens=int(self.usage.get("prompt_tokens") or 0),
            finish_reason=finish,
            ttft_ms=times_ms[0] if times_ms else math.nan,
            decode_ms=times_ms[-1] - times_ms[0] if times_ms else math.nan,
            inter_token_ms=tuple(b - a for a, b in pairwise(times_ms)),
        )


def events(response: httpx.Response) -> Iterator[str]:
    """The data of a response's server-sent events, as they come."""
    for line in response.iter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def text_of(said: Any) -> str:
    """An error as a server words it, in one line of at most 200 characters."""
    text = said.get("message", said) if isinstance(said, dict) else said
    return " ".join(str(text).split())[:200] or "no reason given"
