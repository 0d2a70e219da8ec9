"""Which options of a request a server takes: one fall-back, found once, and its words.

Servers refuse what they do not know: `max_tokens` (they want `max_completion_tokens`),
`seed`, `stream_options`, `ignore_eos`, `top_p`, `temperature`. What a refusal names is left
out, one option after the other; where it names nothing, all that can be missed at once. A
fall-back that does not help is not taken: then the request itself is at fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from batchgauge.adapters.openai_errors import parsed, text_of

NESTED = "continuous_usage_stats"  # usage with every chunk: vLLM and SGLang
STREAM_OPTIONS: Mapping[str, bool] = {"include_usage": True, NESTED: True}
# In the order in which they are given up: what changes the answer least comes first.
_DROPPED = (NESTED, "stream_options", "seed", "ignore_eos", "top_p", "temperature")
_LENGTH, _NEW_LENGTH = "max_tokens", "max_completion_tokens"
_MEANING = {
    NESTED: "usage is not sent with every chunk",
    "stream_options": "usage is not asked for",
    "seed": "sampling is not seeded",
    "ignore_eos": "answers may end before max_tokens",
    "top_p": "the server's own top_p holds",
    "temperature": "the server's own temperature holds",
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """The options that are left out, and what the limit on the answer's length is called."""

    dropped: frozenset[str] = frozenset()
    renames_length: bool = False

    def spoken(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`body`, a request with every option, as this server takes it."""
        said = {name: value for name, value in body.items() if name not in self.dropped}
        if NESTED in self.dropped and "stream_options" in said:
            said["stream_options"] = {
                name: value for name, value in said["stream_options"].items() if name != NESTED
            }
        if self.renames_length:
            said[_NEW_LENGTH] = said.pop(_LENGTH)
        return said

    def sentence(self) -> str:
        """What differs from the request as it was meant, for a report's conditions."""
        parts = [f"{_NEW_LENGTH} in place of {_LENGTH}"] if self.renames_length else []
        parts += [
            f"{name} left out ({_MEANING[name]})"
            for name in _DROPPED
            if name in self.dropped and not (name == NESTED and "stream_options" in self.dropped)
        ]
        return f"refused by the server: {'; '.join(parts)}" if parts else "all taken by the server"


def settle(ask: Callable[[Dialect], bytes | None], start: Dialect) -> Dialect:
    """The dialect that a server takes: `ask` sends a request, and gives a refusal's body or None.

    `start` where it is taken, or where nothing helps.
    """
    found: Dialect | None = start
    while found is not None and (refusal := ask(found)) is not None:
        found = _next(found, refusal)
    return found or next((bare for bare in _bare(start) if ask(bare) is None), start)


def _next(dialect: Dialect, refusal: bytes) -> Dialect | None:
    """`dialect` without the first of the options that a refusal names; None where it names none."""
    named = named_options(refusal)
    if _LENGTH in named and not dialect.renames_length:
        return replace(dialect, renames_length=True)
    if "stream_options" in named:
        named.add(NESTED)
    first = next((name for name in _DROPPED if name in named - dialect.dropped), None)
    return replace(dialect, dropped=dialect.dropped | {first}) if first else None


def _bare(start: Dialect) -> Iterator[Dialect]:
    """Without what can be missed, then with the other name of the length, then without all."""
    most = start.dropped | set(_DROPPED) - {"temperature"}
    for dropped in (most, most | {"temperature"}):
        for renames_length in (start.renames_length, not start.renames_length):
            yield Dialect(dropped, renames_length)


def named_options(refusal: bytes) -> set[str]:
    """The options that a refusal is about: by its `param`, its `loc` (pydantic), or its words."""
    said = parsed(refusal)
    error = said.get("error", said) if isinstance(said, dict) else said
    options = {*_DROPPED, _LENGTH}
    if isinstance(error, dict):
        param = str(error.get("param") or "").rpartition(".")[2]
        if param in options:
            return {param}
        error = error.get("detail") or error
    if isinstance(error, list):
        places = [row.get("loc") for row in error if isinstance(row, dict)]
        inside = {str(p[-1]) for p in places if isinstance(p, list) and p}
        if inside & options:
            return inside & options
    words = text_of(error)
    return {name for name in options if re.search(rf"(?<![\w]){name}(?![\w])", words)}
