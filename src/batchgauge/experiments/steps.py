"""Steps of an exact size for the engine's model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from batchgauge.core.kv_cache import KVCache
from batchgauge.core.model import LlamaModel

CONTEXT = 128  # positions that a decode step looks back on


def filled_cache(model: LlamaModel, rows: int, length: int) -> KVCache:
    """A cache that holds `length` positions in each row, with room for some more.

    Written to, because pages of zeros that nobody wrote to share one page of memory.
    """
    cache = model.new_cache([length + 8] * rows)
    for row in cache.rows.tolist():
        group, place = cache.find(row)
        group.rooms[place].fill(0.01)
    cache.lengths[:] = length
    return cache


def decode_call(model: LlamaModel, rows: int, context: int = CONTEXT) -> Callable[[], object]:
    """One decode step of `rows` rows, each with `context` positions behind it, again and again."""
    cache = filled_cache(model, rows, context)
    tokens = np.arange(rows, dtype=np.int32)

    def decode_step() -> npt.NDArray[np.float32]:
        cache.lengths[:] = context
        return model.decode(tokens, cache)

    return decode_step


def prefill_call(model: LlamaModel, rows: int, positions: int) -> Callable[[], object]:
    """A prefill of `rows` prompts of so many positions, again and again."""
    cache = model.new_cache([positions] * rows)
    prompts = [list(range(positions))] * rows

    def prefill() -> npt.NDArray[np.float32]:
        cache.lengths[:] = 0
        return model.prefill(prompts, cache)

    return prefill
