"""What a server tells of itself beside its API, where it does: vLLM, llama.cpp, SGLang.

Nothing here is needed: a server without these pages is measured just the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

_ROW = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+([-+.\deE]+)", re.MULTILINE)
# Prometheus name -> ours
_NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_used",
    "vllm:gpu_cache_usage_perc": "kv_cache_used",
    "vllm:num_preemptions_total": "preemptions",
    "llamacpp:requests_processing": "running",
    "llamacpp:requests_deferred": "waiting",
    "llamacpp:kv_cache_usage_ratio": "kv_cache_used",
    "sglang:num_running_reqs": "running",
    "sglang:num_queue_reqs": "waiting",
    "sglang:token_usage": "kv_cache_used",
}


def metrics_of(tell: Callable[[str], str]) -> dict[str, float]:
    """Running, waiting, preemptions and share of KV cache used, those that `/metrics` has."""
    found: dict[str, float] = {}
    for name, value in _ROW.findall(tell("metrics")):
        if name in _NAMES:
            try:
                found[_NAMES[name]] = found.get(_NAMES[name], 0.0) + float(value)
            except ValueError:
                continue
    return found


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
