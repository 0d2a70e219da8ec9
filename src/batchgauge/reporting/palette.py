"""Colour, marker and name of every implementation and stage, the same in all figures.

The colours are Okabe and Ito's (2008), told apart with any kind of colour vision, and each
implementation has a marker of its own too.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from batchgauge.text import visible

INK = "#24292f"
MUTED = "#59636e"
GRID = "#e3e7eb"

LOOKS: Mapping[str, tuple[str, str]] = {
    "numpy": ("#0072B2", "o"),
    "numpy:file": ("#444444", "s"),  # beside numpy:float32 in one figure
    "numpy:bfloat16": ("#8C6D1F", "P"),
    "baseline": ("#D55E00", "s"),
    "hf": ("#009E73", "^"),
    "transformers": ("#009E73", "^"),
    "tiktoken": ("#CC79A7", "D"),
    "llama-cpp": ("#CC79A7", "D"),
    "sentencepiece": ("#56B4E9", "v"),
    "openai": ("#8C6D1F", "P"),
    "transformers:bfloat16": ("#56B4E9", "v"),  # beside transformers in one figure
    "llama-cpp:f32": ("#E69F00", "h"),
    "llama-cpp:tokenizer": ("#E69F00", "h"),  # beside tiktoken
}
OTHERS = (("#56B4E9", "X"), ("#E69F00", "h"), ("#7F3C8D", "*"), ("#444444", "p"))
_LABELS: Mapping[str, str] = {
    "numpy": "batchgauge (NumPy)",
    "baseline": "baseline",
    "hf": "HF tokenizers",
    "transformers": "transformers",
    "llama-cpp": "llama.cpp",
    "llama-cpp:f32": "llama.cpp float32",
    "llama-cpp:tokenizer": "llama.cpp",
    "transformers:bfloat16": "transformers bfloat16",
    "openai": "OpenAI server",
}
# The stages of a request, in order, from cold to warm; fixed so that they compare across figures.
STAGES: Mapping[str, str] = {
    "tokenize": "#56B4E9",
    "pad": "#999999",
    "prefill": "#0072B2",
    "decode": "#009E73",
    "sample": "#E69F00",
    "detokenize": "#CC79A7",
    "bookkeeping": "#D55E00",
}


def colour(implementation: str) -> str:
    """The colour of an implementation (or a stage), the same everywhere; hex."""
    return STAGES.get(implementation) or _look(implementation)[0]


def marker(implementation: str) -> str:
    """The marker of an implementation, so that colour is never the only difference."""
    return _look(implementation)[1]


def label(implementation: str) -> str:
    """How an implementation is called in legends."""
    return _LABELS.get(implementation) or visible(implementation)


def _look(implementation: str) -> tuple[str, str]:
    name = implementation.partition(":")[0]
    known = LOOKS.get(implementation) or LOOKS.get(name)
    return known or OTHERS[zlib.crc32(implementation.encode(errors="replace")) % len(OTHERS)]
