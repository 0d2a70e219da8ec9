"""What a model will need in memory, held against what is free before anything is loaded.

Weights as they will be kept, the KV cache of the requests that will run, work space and the
tokenizer: an estimate, meant for the one question whether the machine would have to swap.
Of another library's engine, what was measured of it: `OTHERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchgauge.core.model_facts import ModelFacts
from batchgauge.errors import UserError
from batchgauge.machine.limits import usable_memory

Batch = tuple[int, int]  # requests, and tokens of each: prompt and answer
ONE: Batch = (1, 512)
TOKEN_BYTES = 600  # of tables, for each token of a vocabulary
FIXED_BYTES = 48 << 20  # compiled code, buffers, what a first call leaves behind
AT_ONCE, WIDTHS = 512, 16  # positions that a prefill computes at a time, and model widths of each
# Bytes a weight over those of the mode, and the mode, as measured of other engines: two copies
# while oneDNN takes float32 weights over, one and a half of bfloat16.
OTHERS: Mapping[str, tuple[str, float]] = {
    "baseline": ("float32", 1.05),
    "transformers": ("float32", 2.25),
    "transformers:float32": ("float32", 2.25),
    "transformers:bfloat16": ("bfloat16", 1.6),
    "llama-cpp": ("file", 1.25),
    "llama-cpp:f32": ("float32", 1.1),
}


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a model and its largest batch take."""

    weights: int
    cache: int
    work: int
    tokenizer: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.work + self.tokenizer


def mode_of(spec: str) -> tuple[str, float] | None:
    """How an engine's spec keeps weights, and its bytes over those; None where nobody knows."""
    name, _, argument = spec.partition(":")
    if name == "numpy":
        return (argument or "float32", 1.0)
    return OTHERS.get(spec.partition(",")[0].rstrip(":"))


def need(facts: ModelFacts, mode: str, batch: Batch = ONE, factor: float = 1.0) -> Need:
    """What the model and a batch will take, `factor` times the weights' own bytes among it."""
    rows, tokens = batch[0], min(batch[1], facts.context_length)
    wide = min(rows * tokens, AT_ONCE) * WIDTHS * facts.d_model
    return Need(
        weights=round(factor * facts.weights_bytes[mode]),
        cache=rows * tokens * facts.kv_bytes_per_token,
        work=FIXED_BYTES + 4 * (wide + 2 * rows * facts.vocab_size),
        tokenizer=TOKEN_BYTES * facts.vocab_size,
    )


def check_memory(
    facts: ModelFacts,
    mode: str,
    batch: Batch = ONE,
    *,
    factor: float = 1.0,
    free: int | None = None,
) -> None:
    """Raise UserError, with what would fit, when a model and a batch need more than is free.

    `batch` is (requests, tokens of each), `free` bytes (None: what this process may use now).
    """
    if mode not in facts.weights_bytes:  # said where weights are read
        return
    free = usable_memory()[1] if free is None else free
    wanted = need(facts, mode, batch, factor)
    if wanted.total <= free:
        return
    parts = (
        f"weights {_gb(wanted.weights)}, cache of {batch[0]} × {batch[1]} tokens "
        f"{_gb(wanted.cache)}, work space and tokenizer {_gb(wanted.work + wanted.tokenizer)}"
    )
    raise UserError(
        f"The model '{facts.path}' needs {_gb(wanted.total)} of memory with weights={mode} "
        f"({parts}), and {_gb(free)} are free; {_what_fits(facts, mode, batch, factor, free)}."
    )


def _what_fits(facts: ModelFacts, mode: str, batch: Batch, factor: float, free: int) -> str:
    """Other ways to keep the weights, and a smaller batch, that `free` bytes are enough for.

    Where nothing is, the way that takes least.
    """
    others = {
        m: need(facts, m, batch).total for m in facts.weights_bytes if m != mode or factor > 1.0
    }
    ours = "" if factor == 1.0 else "engine=numpy with "
    found = [f"{ours}weights={m} needs {_gb(n)}" for m, n in others.items() if n <= free]
    for n in range(batch[0] - 1, 0, -1):
        if need(facts, mode, (n, batch[1]), factor).total <= free:
            found.append(f"batches of {n} would fit")
            break
    if found:
        return ", ".join(found)
    least = min(others, key=lambda m: others[m])
    if others[least] >= need(facts, mode, batch, factor).total:
        return "no other way to keep its weights takes less"
    return f"even {ours}weights={least} needs {_gb(others[least])}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"
