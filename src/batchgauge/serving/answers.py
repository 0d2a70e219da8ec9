"""OpenAI's answers: a completion in one body, or its chunks in a stream of events."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from batchgauge.request import FinishReason

DONE = b"data: [DONE]\n\n"
# The API has no word for an answer that filled the model's context.
_FINISHES: dict[FinishReason, str] = {"stop": "stop", "length": "length", "context": "length"}


def usage_of(prompt_tokens: int, tokens: int) -> dict[str, int]:
    """The API's account of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }


def event(said: Any) -> bytes:
    """A server-sent event whose data is this in JSON, in one line."""
    return b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """What every chunk of one answer repeats; `created` in seconds since 1970."""

    id: str
    model: str
    is_chat: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> list[dict[str, Any]]:
        """Chunks before the first text: of a chat, who speaks."""
        if not self.is_chat:
            return []
        return [self._chunk([self._choice({"role": "assistant", "content": ""}, None)])]

    def piece(self, text: str, finish: FinishReason | None, **more: Any) -> dict[str, Any]:
        """A chunk of text; `more` are other fields of its choice."""
        said = {"content": text} if self.is_chat and text else {} if self.is_chat else text
        return self._chunk([self._choice(said, finish, **more)])

    def accounted(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last chunk, which has no text but says what the answer took."""
        return self._chunk([]) | {"usage": usage}

    def whole(
        self, text: str, finish: FinishReason, usage: dict[str, int], **more: Any
    ) -> dict[str, Any]:
        """The answer in one body."""
        said = {"role": "assistant", "content": text} if self.is_chat else text
        key = {"message" if self.is_chat else "text": said}
        choice = {"index": 0, **key, "logprobs": None, "finish_reason": _FINISHES[finish], **more}
        return self._named("chat.completion", [choice]) | {"usage": usage}

    def _choice(self, said: Any, finish: FinishReason | None, **more: Any) -> dict[str, Any]:
        key = {"delta" if self.is_chat else "text": said}
        reason = _FINISHES[finish] if finish else None
        return {"index": 0, **key, "logprobs": None, "finish_reason": reason, **more}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._named("chat.completion.chunk", choices)

    def _named(self, of_chat: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": of_chat if self.is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
