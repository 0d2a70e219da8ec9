"""What a server tells of itself beside its API, where it does: vLLM, llama.cpp, SGLang.

Nothing here is needed: a server without these pages is measured just the same.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping

_ROW = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+([-+.\deE]+)", re.MULTILINE)
_CACHE_USED = {  # Prometheus's names
    *("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    *("llamacpp:kv_cache_usage_ratio", "sglang:token_usage"),
}


def metrics_of(tell: Callable[[str], str]) -> dict[str, float]:
    """`kv_cache_used`, the share of the KV cache in use, the largest that `/metrics` has."""
    shares = []
    for name, value in _ROW.findall(tell("metrics")):
        if name in _CACHE_USED:
            with contextlib.suppress(ValueError):
                shares.append(float(value))
    return {"kv_cache_used": max(shares)} if shares else {}


def properties_of(tell: Callable[[str], str]) -> Mapping[str, int]:
    """`slots` and `context` (tokens of a slot), as far as llama.cpp's `/props` or `/slots` tell."""
    found: dict[str, int] = {}
    props = _json(tell("props"))
    if isinstance(props, dict):
        settings = props.get("default_generation_settings")
        context = settings.get("n_ctx") if isinstance(settings, dict) else None
        given = {"slots": props.get("total_slots"), "context": context}
        found = {name: int(value) for name, value in given.items() if value and _is_count(value)}
    slots = _json(tell("slots")) if "slots" not in found else None
    if isinstance(slots, list) and slots:
        found["slots"] = len(slots)
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
