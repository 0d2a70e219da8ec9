"""Threads that share compiled work: each has a range of its parts, then helps the others.

Work is a compiled function of (job, part): `job` is the address of int64 numbers that say
where things are. Parts never share a result, so which thread takes one changes no bit; parts
in a row read weights in a row, so each thread begins with neighbours. Idle threads watch for
work for some 0.2 ms, in compiled code without Python's lock, then block until they are woken:
a dispatch costs a microsecond while a model runs, and nothing is busy where nothing runs. One
that comes late, because another process has its processor, finds the work done by others:
only a part under way is waited for.

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
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

INT, INT32 = ir.IntType(64), ir.IntType(32)
# Where the numbers of a team lie, in bytes. What the caller alone writes shares a cache line;
# then come how many others are at work, and of each thread's range the next part and the end.
OPEN, WORK, JOB, CALLER, THREADS, JOBS = range(0, 48, 8)
ACTIVE, RANGES, LINE, END = 64, 128, 64, 8
WATCH = 16_000  # looks for work before a thread blocks, some 0.2 ms
LAST = 400  # looks after that, for whoever was taken to be awake
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


@njit(nogil=True)
def floats_at(address, count):
    """So many float32 from an address on, as an array."""
    return carray(floats(address), count)


@intrinsic
def _get(typing_context: Any, address: Any) -> Any:
    """The number there, whoever wrote it last."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def _put(typing_context: Any, address: Any, value: Any) -> Any:
    """Write a number there, after all that was written before."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _pointer(builder, args[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _close(typing_context: Any, address: Any) -> Any:
    """Write zero there, before anything is read after it."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.atomic_rmw("xchg", _pointer(builder, args[0]), INT(0), "seq_cst")
        return context.get_dummy_value()

    return types.void(types.int64), generate


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
def _take_part(at, me):
    """Do parts of one's own range, then of the others', until none is left."""
    work, job, threads = _get(at + WORK), _get(at + JOB), _get(at + THREADS)
    for turn in range(threads):
        place = at + RANGES + LINE * ((me + turn) % threads)
        end = _get(place + END)
        while _get(place) < end:
            part = _add(place, 1)
            if part < end:
                _do(work, job, part)


@njit("int64(int64[::1], int64, int64)", cache=True, nogil=True)
def _watch(team, me, looks):
    """Take part in what a team does, as number `me`, until nothing came up so many times.

    Returns the processor of the caller at once if this thread runs there too; else -1.
    """
    at, idle, done = team.ctypes.data, 0, 0
    while idle < looks:
        job = _get(at + OPEN)
        if job and job != done:
            caller = _get(at + CALLER)
            if caller >= 0 and caller == _processor():
                return caller
            _add(at + ACTIVE, 1)
            job = _get(at + OPEN)
            if job:  # and stays so, for all who look after this
                _take_part(at, me)
            _add(at + ACTIVE, -1)
            idle, done = 0, job
        else:  # a part under way may take long, and more comes behind it
            _pause()
            idle = 0 if job else idle + 1
    return -1


@njit(nogil=True)
def lead(team, work, job, parts):
    """Have a team do all parts of a job; alone where that is `NOBODY`. Returns when all are done.

    team   int64 [:]        a team's numbers
    work   int64            address of a compiled function of (job, part)
    job    int64 [:]        what it needs to know
    """
    at, details = team.ctypes.data, job.ctypes.data
    if team.size == 0 or parts == 1:
        for part in range(parts):
            _do(work, details, part)
        return
    threads = number(at, THREADS // 8)
    for i in range(threads):
        place = at + RANGES + LINE * i
        _put(place, parts * i // threads)
        _put(place + END, parts * (i + 1) // threads)
    _put(at + WORK, work)
    _put(at + JOB, details)
    _put(at + CALLER, _processor())
    jobs = number(at, JOBS // 8) + 1
    _put(at + JOBS, jobs)
    _put(at + OPEN, jobs)
    _take_part(at, 0)
    _close(at + OPEN)
    looks = 0
    while _get(at + ACTIVE) > 0:
        _pause()
        looks += 1
        if looks % PATIENCE == 0:
            _yield()


@njit(
    ["void(int64, float32[:, ::1], float32[:, :, ::1], float32[:, ::1], int64[::1])",
     "void(int64, float32[:, ::1], uint8[:, :, ::1], float32[:, ::1], int64[::1])"],
    cache=True, nogil=True,
)  # fmt: skip
def multiply(work, x, blocks, y, team):
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
        size = (RANGES + LINE * threads) // 8
        room = np.zeros(size + LINE // 8, np.int64)
        first = -room.ctypes.data % LINE // 8
        self.numbers = room[first : first + size]
        self.numbers[THREADS // 8] = threads
        self.processors: set[int] = set()  # that the caller may use
        self.free = threading.Lock()  # held while the team works
        self._calls = [threading.Event() for _ in range(threads - 1)]
        for me, call in enumerate(self._calls, 1):
            threading.Thread(target=self._attend, args=(me, call), daemon=True, name="team").start()

    def wake(self) -> None:
        """Call those who sleep."""
        for call in self._calls:
            if not call.is_set():
                call.set()

    def _attend(self, me: int, call: threading.Event) -> None:
        while True:
            caller = _watch(self.numbers, me, WATCH)
            if caller >= 0:  # the system has been seen to leave both there beside an idle one
                if others := self.processors - {caller}:
                    os.sched_setaffinity(0, others)
                continue
            call.clear()
            _watch(self.numbers, me, LAST)  # who was called just before that has not slept yet
            call.wait()


@cache
def of(threads: int) -> Team:
    """The team of so many threads, in this process."""
    return Team(threads)


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=of.cache_clear)
