"""Threads that share compiled work: a part at a time, whoever is free takes the next one.

Work is a compiled function of (job, part): `job` is the address of int64 numbers that say
where things are. Parts never share a result, so which thread takes one changes no bit. Idle
threads watch for work for some 0.2 ms, in compiled code without Python's lock, then block
until they are woken: a dispatch costs microseconds while a model runs, and nothing is busy
where nothing runs. One that comes late, because another process has its processor, finds the
work done by others: only a part under way is waited for.

Importing this module needs Numba. Left out: more than one job at a time for a team; a
second thread that asks for it works alone.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

INT, INT32 = ir.IntType(64), ir.IntType(32)
# Where the numbers of a team lie, in int64: each in a cache line of its own.
OPEN, ACTIVE, NEXT, WORK, JOB, PARTS, CALLER = range(0, 56, 8)
WATCH = 4000  # looks for work before a thread blocks, some 0.2 ms
PATIENCE = 2000  # looks for the end of others' parts before each time the processor is yielded
NOBODY = np.empty(0, np.int64)  # the numbers of a team of one


def _pointer(builder: Any, address: Any, kind: ir.Type = INT) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def number(typing_context: Any, job: Any, index: Any) -> Any:
    """The int64 number at an index of a job."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        address = builder.add(args[0], builder.mul(args[1], INT(8)))
        return builder.load(_pointer(builder, address), align=8)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def floats(typing_context: Any, address: Any) -> Any:
    """An address as a pointer to float32, for `numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), generate


@intrinsic
def _get(typing_context: Any, address: Any) -> Any:
    """The number there, whoever wrote it last."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def _put(typing_context: Any, address: Any, value: Any) -> Any:
    """Write a number there for all to see."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _pointer(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the number there; what it was before."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _do(typing_context: Any, work: Any, job: Any, part: Any) -> Any:
    """Call the work at an address."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [INT, INT])
        builder.call(_pointer(builder, args[0], kind), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _call(name: str) -> Any:
    """An intrinsic that calls a C function without arguments, or gives -1 where none is named."""

    @intrinsic
    def call(typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
            if not name:
                return INT32(-1)
            kind = ir.FunctionType(INT32, [])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])

        return types.int32(), generate

    return call


@intrinsic
def _pause(typing_context: Any) -> Any:
    """Leave the core to its other thread for a moment, where the processor knows how."""

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        if platform.machine().lower() in {"x86_64", "amd64"}:
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), generate


_yield = _call("sched_yield" if os.name == "posix" else "")
_processor = _call("sched_getcpu" if sys.platform == "linux" else "")


@njit(nogil=True)
def _take_part(at):
    """Do parts until none is left."""
    work, job, parts = _get(at + 8 * WORK), _get(at + 8 * JOB), _get(at + 8 * PARTS)
    part = _add(at + 8 * NEXT, 1)
    while part < parts:
        _do(work, job, part)
        part = _add(at + 8 * NEXT, 1)


@njit("int64(int64[::1], int64)", cache=True, nogil=True)
def _watch(team, looks):
    """Take part in what a team does until nothing came up so many times.

    Returns the processor of the caller at once if this thread runs there too; else -1.
    """
    at, idle = team.ctypes.data, 0
    while idle < looks:
        if _get(at + 8 * OPEN) and _get(at + 8 * NEXT) < _get(at + 8 * PARTS):
            caller = _get(at + 8 * CALLER)
            if caller >= 0 and caller == _processor():
                return caller
            _add(at + 8 * ACTIVE, 1)
            if _get(at + 8 * OPEN):  # and stays so, for all who look after this
                _take_part(at)
            _add(at + 8 * ACTIVE, -1)
            idle = 0
        else:
            _pause()
            idle += 1
    return -1


@njit(nogil=True)
def lead(team, work, job, parts):
    """Have a team do all parts of a job; alone where that is `NOBODY`. Returns when all are done.

    team   int64 [:]        a team's numbers
    work   int64            address of a compiled function of (job, part)
    job    int64 [:]        what it needs to know
    """
    at, details = team.ctypes.data, job.ctypes.data
    if team.size == 0:
        for part in range(parts):
            _do(work, details, part)
        return
    _put(at + 8 * WORK, work)
    _put(at + 8 * JOB, details)
    _put(at + 8 * PARTS, parts)
    _put(at + 8 * CALLER, _processor())
    _put(at + 8 * NEXT, 0)
    _put(at + 8 * OPEN, 1)
    _take_part(at)
    _put(at + 8 * OPEN, 0)
    looks = 0
    while _get(at + 8 * ACTIVE) > 0:
        _pause()
        looks += 1
        if looks % PATIENCE == 0:
            _yield()


@njit(
    ["void(float32[:, ::1], float32[:, :, ::1], float32[:, ::1], int64[::1], int64)",
     "void(float32[:, ::1], uint8[:, :, ::1], float32[:, ::1], int64[::1], int64)"],
    cache=True, nogil=True,
)  # fmt: skip
def multiply(x, blocks, y, team, work):
    """Fill y with the product of x and blocks, of whatever kind `work` takes.

    x       float32 [T, K]
    blocks  [n, ...]
    y       float32 [T, n * W]
    """
    job = np.empty(7, np.int64)
    job[0], job[1], job[2] = x.ctypes.data, x.shape[0], x.shape[1]
    job[3], job[4] = blocks.ctypes.data, blocks.strides[0]
    job[5], job[6] = y.ctypes.data, y.strides[0]
    lead(team, work, job, blocks.shape[0])


class Team:
    """So many threads, the caller's among them; `numbers` is how they agree."""

    def __init__(self, threads: int) -> None:
        room = np.zeros(64, np.int64)
        first = -room.ctypes.data % 64 // 8
        self.numbers = room[first : first + 56]
        self.processors: set[int] = set()  # that the caller may use
        self.free = threading.Lock()  # held while the team works
        self._calls = [threading.Event() for _ in range(threads - 1)]
        for call in self._calls:
            threading.Thread(target=self._attend, args=(call,), daemon=True, name="team").start()

    def wake(self) -> None:
        """Call those who sleep."""
        for call in self._calls:
            if not call.is_set():
                call.set()

    def _attend(self, call: threading.Event) -> None:
        while True:
            caller = _watch(self.numbers, WATCH)
            if caller >= 0:  # the system has been seen to leave both there beside an idle one
                if others := self.processors - {caller}:
                    os.sched_setaffinity(0, others)
                continue
            call.clear()  # who is called just before this misses one job at most
            call.wait()


@cache
def of(threads: int) -> Team:
    """The team of so many threads, in this process."""
    return Team(threads)


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=of.cache_clear)
