"""What a call allocates, held and at its peak, and the overhead beyond what must exist.

By `tracemalloc`, in a run of its own, never while timing: NumPy reports its arrays to it
(exact and repeatable), other native code does not. The resident set, which holds everything
and knows only pages, is `profiling.allocations.memory_timeline`'s.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

from batchgauge.errors import UserError


@dataclass(frozen=True, slots=True)
class Allocations:
    """Bytes of one call: `allocated_bytes` still held when it returned, `peak_bytes` at the top.

    Both count from the call's beginning; the returned value is among what is held.
    """

    allocated_bytes: int
    peak_bytes: int


def allocations(fn: Callable[[], object], *, warm_up: bool = True) -> Allocations:
    """Trace one call of `fn`; one call before it, untraced, fills caches unless told not to.

    Repeatable to the byte for deterministic code. Raises UserError when tracemalloc is
    already tracing (its counts would mix).
    """
    if tracemalloc.is_tracing():
        raise UserError("tracemalloc is already tracing; stop it before measuring allocations.")
    if warm_up:
        fn()
    gc.collect(1)  # what is older was not traced, so that freeing it would not show
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        result = fn()
        now, peak = tracemalloc.get_traced_memory()
        del result
    finally:
        tracemalloc.stop()
    return Allocations(max(0, now - before), max(0, peak - before))


def memory_overhead(peak_bytes: float, necessary_bytes: float) -> float:
    """(peak − bytes that must exist) ÷ bytes that must exist, as a fraction.

    What must exist: weights, KV cache for the tokens held, inputs and outputs. Raises
    UserError when that is not positive.
    """
    if necessary_bytes <= 0:
        raise UserError(f"The bytes that must exist are {necessary_bytes}; expected more than 0.")
    return (peak_bytes - necessary_bytes) / necessary_bytes
