"""How servers say inside an answer that it failed: vLLM, SGLang, TGI, llama.cpp, Ollama, others.

All of them answer 200 and then differ: `{"error": {…}}`, `{"error": "…", "error_type": "…"}`,
`{"object": "error", …}`, `{"code": 500, "message": "…"}`, `{"detail": …}`, an event of the type
`error`, an `error` inside a choice. Each becomes one line of text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_LONGEST = 200
_NAMES = ("type", "error_type", "code", "status")
_WORDS = ("message", "msg", "error", "error_msg", "detail", "details", "reason", "description")
# In an object that holds no choices, any of these says that it failed.
_COMPLAINTS = ("message", "msg", "error_msg", "detail", "details", "errors")


def failure(said: Any) -> str | None:
    """What `said`, a JSON value in an answer's place, says went wrong; None when nothing."""
    if isinstance(said, list):
        return failure(said[0]) if len(said) == 1 else None
    if not isinstance(said, Mapping):
        return None
    error, has_choices = said.get("error"), bool(said.get("choices"))
    if error not in (None, False) and (error or not has_choices):
        return _named(error, said)
    if has_choices:
        return None
    if said.get("object") == "error" or said.get("type") == "error":
        return _named(said, said)
    complaint = next((said[key] for key in _COMPLAINTS if said.get(key)), None)
    return _named(complaint, said) if complaint is not None else None


def parsed(text: str | bytes) -> Any:
    """`text` as JSON; the text itself where it is none, invalid UTF-8 replaced."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def message_of(said: Any) -> str:
    """What a refusal, or an error in an answer's place, says in one line."""
    return failure(said) or text_of(said)


def text_of(said: Any) -> str:
    """An error as a server words it, in one line of at most 200 characters."""
    for _ in range(4):  # {"error": {"message": {"error": "…"}}}, no deeper
        if isinstance(said, list) and len(said) == 1:
            said = said[0]
        if not isinstance(said, Mapping):
            break
        words = next((said[key] for key in _WORDS if said.get(key)), None)
        if words is None:
            break
        said = words
    try:
        text = str(said)[: 20 * _LONGEST]
    except (RecursionError, ValueError):
        text = ""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:_LONGEST] or "no reason given"


def _named(error: Any, said: Mapping[str, Any]) -> str:
    """The error's text, with its type or code before it where the text does not say it."""
    text = text_of(error)
    places = [error, said] if isinstance(error, Mapping) else [said]
    for key in _NAMES:
        for place in places:
            name = place.get(key)
            if isinstance(name, str | int) and not isinstance(name, bool) and str(name):
                return text if str(name) in text else f"{text_of(name)}: {text}"
    return text
