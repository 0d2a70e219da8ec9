"""What a call costs in memory: allocated, peak, resident; and the overhead beyond what must be.

Two instruments, each in a run of its own, never while timing: `tracemalloc`, to which
NumPy reports its arrays (exact and repeatable, but blind to what other native code
allocates), and the resident set as the system sees it (`memory_profiler`), which sees
everything and knows only pages.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

from batchgauge import extras
from batchgauge.errors import UserError

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Allocations:
    """Bytes of one call: `allocated_bytes` still held when it returned, `peak_bytes` at the top.

    Both count from the call's beginning; the returned value is among what is held.
    """

    allocated_bytes: int
    peak_bytes: int

    def per_item(self, items: int) -> float:
        """Peak bytes an item."""
        if items < 1:
            raise UserError(f"Bytes per item of {items} items; expected at least 1.")
        return self.peak_bytes / items


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


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident memory in bytes: before a call, and the most seen while it ran."""

    before_bytes: int
    peak_bytes: int

    @property
    def growth_bytes(self) -> int:
        """What the call added at its peak."""
        return self.peak_bytes - self.before_bytes


def rss_peak(fn: Callable[[], object], *, interval_s: float = 0.005) -> Resident:
    """Peak resident memory of this process and its children during one call of `fn`.

    Sampled every `interval_s`; shorter peaks are missed. The sampler is a child process
    itself, so the state before is sampled in the same way, around a call that does
    nothing. An exception of `fn` comes through.
    """
    extras.require("The resident set during a call", "profile", "memory_profiler")
    from memory_profiler import memory_usage

    failure: list[Exception] = []

    def guarded() -> None:  # memory_profiler kills all children when the call raises
        try:
            fn()
        except Exception as problem:  # noqa: BLE001 - raised again below
            failure.append(problem)

    def peak_of(call: Callable[[], None]) -> int:
        mib = memory_usage(
            (call, (), {}), interval=interval_s, max_usage=True, include_children=True,
            max_iterations=1,
        )  # fmt: skip
        return int(float(mib) * _MIB)

    gc.collect()
    before = peak_of(lambda: None)
    peak = peak_of(guarded)
    if failure:
        raise failure[0]
    return Resident(before, max(before, peak))


def memory_overhead(peak_bytes: float, necessary_bytes: float) -> float:
    """(peak − bytes that must exist) ÷ bytes that must exist, as a fraction.

    What must exist: weights, KV cache for the tokens held, inputs and outputs. Raises
    UserError when that is not positive.
    """
    if necessary_bytes <= 0:
        raise UserError(f"The bytes that must exist are {necessary_bytes}; expected more than 0.")
    return (peak_bytes - necessary_bytes) / necessary_bytes
