"""The one list of ways in which each peer takes part, for all notebooks.

Engines: the spec of each, and which of our own weights modes stand beside it. Tokenizers: the
ways in which each can encode texts, and the quickest for the texts at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from batchgauge.measuring import Labels, Stopping, measure
from batchgauge.protocols import Tokenizer

Call = Callable[[], Any]

FLOAT, FILE, ROUNDED = "numpy:float32", "numpy:file", "numpy:bfloat16"
FEWER = "llama-cpp, Q4_0"  # llama.cpp on a copy of the model that is made for it
ENGINES = {  # a peer, and ours beside it; a spec that is no peer's takes FLOAT
    "transformers": (FLOAT,),
    "transformers:bfloat16": (FLOAT, ROUNDED),
    "llama-cpp:f32": (FLOAT,),
    "llama-cpp": (FILE,),
    FEWER: (FILE,),
}
TOKENIZERS = ("tiktoken", "hf", "llama-cpp")


def ways(tokenizer: Tokenizer, texts: list[str], threads: int = 1) -> dict[str, Call]:
    """Calls that encode `texts`, by name; foreign tokenizers by their own functions."""
    if hasattr(tokenizer, "threads"):
        tokenizer.threads = threads
    raw = getattr(tokenizer, "raw", None)
    if raw is not None and tokenizer.name == "tiktoken":
        return {
            "plain": lambda: [raw.encode_ordinary(text) for text in texts],
            "encode_to_numpy": lambda: [
                raw.encode_to_numpy(text, disallowed_special=()) for text in texts
            ],
            "encode_ordinary_batch": partial(raw.encode_ordinary_batch, texts, num_threads=threads),
        }
    if raw is not None and tokenizer.name == "hf":
        tokenizer.encode_many(texts)  # sets its threads
        fast = partial(raw.encode_batch_fast, texts, add_special_tokens=False)
        return {
            "encode_batch_fast": lambda: [e.ids for e in fast()],
            "plain": lambda: [raw.encode(text, add_special_tokens=False).ids for text in texts],
        }
    found: dict[str, Call] = {"encode_many": partial(tokenizer.encode_many, texts)}
    if len(texts) == 1:
        found["encode"] = partial(tokenizer.encode, texts[0])
    return found


def quickest(calls: Mapping[str, Call]) -> tuple[str, Call]:
    """The quickest of some calls and its name, by a short trial."""
    stopping = Stopping(budget_s=0.03, least=3, most=1000)
    times = {n: measure(c, Labels("way"), stopping=stopping).median_ms for n, c in calls.items()}
    name = min(times, key=lambda way: times[way])
    return name, calls[name]
