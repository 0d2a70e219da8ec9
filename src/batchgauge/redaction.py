"""Passwords and keys out of whatever is shown, said or written: the one home of that rule.

Engine specs carry secrets (`openai:http://user:password@host/v1?api_key=…`), and servers
echo them in their errors. `redacted` is applied where text leaves the program: in
`text.visible`, through which every error and everything shown goes, in facts and
parameters, in the names that records keep, and on a notebook before its pages are made.
Nothing that is used to connect goes through it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

MARK = "***"
KEY_VARIABLE = "OPENAI_API_KEY"
_LEAST = 8  # characters of a key that is replaced wherever it stands; a shorter one is a word
_ADDRESS = re.compile(r"(?<=://)[^\s\"'<>]+|(?<=&#58;//)[^\s\"'<>]+")  # http&#58;//: Markdown's
# A password may hold what it should not ("/", "@", "#"), so it ends at the last "@";
# "host:8080/…@" is no user with a password, and "[::1]" none either.
_USERS = (re.compile(r"^[^/?#@\[]*:(?!\d{1,5}[/?#]).*@"), re.compile(r"^[^/?#]+@"))
_KEYS = re.compile(
    r"((?:[?#&]|&amp;)(?:[\w.-]*[_.-])?(?:api-?key|key|token|secret|password|passwd|pwd|auth"
    r"|sig|signature|credential|authorization)=)[^&#]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(Bearer|Basic)(\s+)(?=\S*\d|\S{16})[\w.~+/=-]{6,}")
_KNOWN_KEYS = re.compile(r"\b(sk-)(?=[\w-]*\d)[\w-]{16,}|\b((?:hf|gsk)_)[A-Za-z0-9]{20,}")


def redacted(value: T, secrets: Iterable[str] = ()) -> T:
    """`value` with passwords and keys replaced by `***`; texts inside dicts and lists too.

    `secrets` are replaced wherever they stand, and so is the value of OPENAI_API_KEY.
    Whatever is neither text, mapping nor list comes back as it is.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    known = [s for s in secrets if s] + ([key] if len(key) >= _LEAST else [])
    known.sort(key=len, reverse=True)
    return each_text(value, lambda text: _text(text, known))  # type: ignore[no-any-return]


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every text changed, those inside dicts and lists too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        changed = {k: each_text(v, change) for k, v in value.items()}
        return type(value)(changed) if type(value) is not dict else changed  # type: ignore[call-arg]
    if isinstance(value, list | tuple) and type(value) in {list, tuple}:
        return type(value)(each_text(v, change) for v in value)
    return value


def _text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MARK)
    text = _ADDRESS.sub(_address, text)
    text = _HEADER.sub(rf"\1\2{MARK}", text)
    return _KNOWN_KEYS.sub(lambda match: f"{match[1] or match[2]}{MARK}", text)


def _address(match: re.Match[str]) -> str:
    address = match[0]
    for user in _USERS:
        address = user.sub(f"{MARK}@", address)
    return _KEYS.sub(rf"\1{MARK}", address)
