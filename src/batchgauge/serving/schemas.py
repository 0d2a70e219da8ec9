"""OpenAI's requests, checked: what a body asks for, or an error in the API's own shape.

A field of the API that is not served is refused by its name unless it asks for nothing
(`n` of 1, no `logprobs`); one that nobody knows is refused too, lest it be thought to work.
`priority`, `ignore_eos`, `return_token_ids` and `continuous_usage_stats` are vLLM's.

Left out: several prompts or choices in one request, tools, images and sounds.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchgauge.errors import UserError
from batchgauge.files import json_line
from batchgauge.request import InferenceBatchRequest

MOST_STOPS, LONGEST_STOP = 16, 256  # stop texts of a request, and characters of each
MOST_PRIORITY = 1000  # the least urgent
COMPLETION_TOKENS = 16  # without `max_tokens`, as OpenAI has it; a chat goes on to the context
_SERVED = frozenset({
    *("model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options"),
    *("priority", "ignore_eos", "return_token_ids"),
})  # fmt: skip
# Fields of the API that are not served, and values that ask for nothing.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "top_logprobs": (0,),
    "suffix": ("",), "logit_bias": ({},), "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0), "repetition_penalty": (1, 1.0), "top_k": (0, -1),
    "min_p": (0, 0.0), "min_tokens": (0,), "tools": ([],), "tool_choice": ("none", "auto"),
    "functions": ([],), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "audio": (), "prediction": (), "reasoning_effort": (),
    "verbosity": (), "web_search_options": (),
}  # fmt: skip
# What concerns the provider's bookkeeping and changes no answer.
_IGNORED = frozenset({
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "parallel_tool_calls"),
})  # fmt: skip
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

Message = Mapping[str, str]


class APIError(Exception):
    """A request that is not answered: an HTTP status, and what OpenAI's error object holds."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        """What is answered: `{"error": …}`."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        default = "invalid_request_error" if self.status < 500 else "server_error"
        kind = kinds.get(self.status, default)
        said = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": said}


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the API.

    prompt      text or token ids; messages are those of a chat in its place
    options     fields of `InferenceBatchRequest` beside the prompt; no `max_tokens`: as many as
                the context has room for
    usage       "" (none in a stream), "end" or "each" (with every chunk)
    priority    vLLM's: lower goes first
    """

    model: str
    prompt: str | tuple[int, ...]
    messages: tuple[Message, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    is_stream: bool = False
    usage: str = ""
    wants_ids: bool = False
    priority: int = 0

    @property
    def is_chat(self) -> bool:
        """Whether this is a chat."""
        return bool(self.messages)

    def request(self, ids: Sequence[int], room: int) -> InferenceBatchRequest:
        """What the engine runs: the prompt's ids, in a context with so much room behind them.

        Raises APIError for an option out of range.
        """
        length = {"max_tokens": max(1, room)} if "max_tokens" not in self.options else {}
        try:
            return InferenceBatchRequest(tuple(ids), **(dict(self.options) | length))
        except UserError as problem:
            name = str(problem).partition(" ")[0]
            raise invalid(str(problem), name if name in _SERVED else None) from None


def invalid(message: str, param: str | None = None, code: str | None = None) -> APIError:
    """The error for a request that is wrong in itself: status 400."""
    return APIError(400, message, param=param, code=code)


def read_call(body: bytes, *, is_chat: bool) -> Call:
    """A request's body as a `Call`. Raises APIError for what is none."""
    try:
        said = json_line(body.decode("utf-8"), "The body")
    except UnicodeDecodeError:
        raise invalid("The body is not UTF-8; expected JSON.") from None
    except UserError as problem:
        raise invalid(str(problem)) from None
    said = {name: value for name, value in said.items() if value is not None}
    _refuse(said, is_chat)
    options: dict[str, Any] = {"temperature": 1.0, "seed": secrets.randbits(32)}
    options |= {n: said[n] for n in ("temperature", "top_p", "seed", "ignore_eos") if n in said}
    if (most := _max_tokens(said, is_chat)) is not None:
        options["max_tokens"] = most
    options["stop"] = _stop(said.get("stop", ()))
    is_stream = _flag(said, "stream")
    model = said.get("model")
    if not isinstance(model, str):
        raise invalid("You must provide a model parameter: its name in a text.", "model")
    priority = said.get("priority", 0)
    is_right = _is_whole(priority) and 0 <= priority <= MOST_PRIORITY
    _expect(is_right, "priority", priority, f"a whole number from 0 to {MOST_PRIORITY}")
    return Call(
        model,
        "" if is_chat else _prompt(said),
        _messages(said) if is_chat else (),
        options,
        is_stream,
        _usage(said, is_stream),
        _flag(said, "return_token_ids"),
        priority,
    )


def _refuse(said: Mapping[str, Any], is_chat: bool) -> None:
    known = _SERVED | _IGNORED | ({"messages", "max_completion_tokens"} if is_chat else {"prompt"})
    for name, value in said.items():
        if name in known:
            continue
        if name not in _REFUSED:
            raise invalid(f"Unrecognized request argument supplied: {name:.60}.", f"{name:.60}")
        harmless = any(value == one and type(value) is type(one) for one in _REFUSED[name])
        if not harmless:
            raise invalid(
                f"This server does not serve {name}={value!r:.40}; expected a request without it.",
                name,
                "unsupported_parameter",
            )


def _max_tokens(said: Mapping[str, Any], is_chat: bool) -> int | None:
    names = [n for n in ("max_completion_tokens", "max_tokens") if n in said]
    if len({said[n] for n in names if _is_whole(said[n])}) > 1:
        raise invalid("max_tokens and max_completion_tokens differ; expected one.", "max_tokens")
    if not names:
        return None if is_chat else COMPLETION_TOKENS
    most = said[names[0]]
    _expect(_is_whole(most) and most >= 1, names[0], most, "a whole number of at least 1")
    return int(most)


def _stop(said: Any) -> tuple[str, ...]:
    texts = (said,) if isinstance(said, str) else said
    is_list = isinstance(texts, tuple | list) and len(texts) <= MOST_STOPS
    is_right = is_list and all(isinstance(t, str) and 0 < len(t) <= LONGEST_STOP for t in texts)
    each = f"each of 1 to {LONGEST_STOP} characters"
    _expect(is_right, "stop", said, f"a text, or a list of at most {MOST_STOPS}, {each}")
    return tuple(texts)


def _usage(said: Mapping[str, Any], is_stream: bool) -> str:
    options = said.get("stream_options", {})
    _expect(isinstance(options, dict), "stream_options", options, "an object")
    if options and not is_stream:
        raise invalid("stream_options is for a stream; expected stream=true.", "stream_options")
    names = ("include_usage", "continuous_usage_stats")
    if others := [n for n in options if n not in {*names, "include_obfuscation"}]:
        raise invalid(
            f"Unrecognized request argument supplied: stream_options.{others[0]:.60}.",
            "stream_options",
        )
    at_end, each = (_flag(options, name) for name in names)
    return ("each" if each else "end") if at_end else ""


def _prompt(said: Mapping[str, Any]) -> str | tuple[int, ...]:
    prompt = said.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not _is_whole(prompt[0]):
        prompt = prompt[0]  # a list of one prompt
    if isinstance(prompt, str):
        return _text(prompt, "prompt")
    if isinstance(prompt, list) and prompt and all(map(_is_whole, prompt)):
        return tuple(prompt)
    if isinstance(prompt, list) and len(prompt) > 1:
        raise invalid(f"prompt has {len(prompt)} prompts; expected one.", "prompt")
    raise invalid(f"prompt is {prompt!r:.40}; expected a text, or token ids.", "prompt")


def _messages(said: Mapping[str, Any]) -> tuple[Message, ...]:
    messages = said.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages is missing or empty; expected a list of messages.", "messages")
    return tuple(_message(one, f"messages[{i}]") for i, one in enumerate(messages))


def _message(said: Any, where: str) -> Message:
    _expect(isinstance(said, dict), where, said, "an object")
    role = said.get("role")
    is_known, known = isinstance(role, str) and role in _ROLES, ", ".join(_ROLES)
    _expect(is_known, f"{where}.role", role, f"one of {known}", where)
    if said.get("tool_calls") or said.get("function_call"):
        raise invalid(f"{where} calls a tool; expected messages without tools.", where)
    content = said.get("content")
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None
                 for p in content]  # fmt: skip
        if not all(isinstance(p, str) for p in parts):
            raise invalid(f"{where}.content has a part that is no text; expected text.", where)
        content = "".join(str(p) for p in parts)
    _expect(isinstance(content, str), f"{where}.content", content, "a text", where)
    return {"role": _ROLES[role], "content": _text(content, where)}


def _text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(f"{where} has a lone surrogate; expected text.", where) from None
    return text


def _flag(said: Mapping[str, Any], name: str) -> bool:
    value = said.get(name, False)
    _expect(isinstance(value, bool), name, value, "true or false")
    return bool(value)


def _expect(is_right: bool, name: str, value: Any, what: str, param: str = "") -> None:
    """Raise APIError where a value is not right; `param` names the field where `name` does not."""
    if not is_right:
        raise invalid(f"{name} is {value!r:.40}; expected {what}.", param or name)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
