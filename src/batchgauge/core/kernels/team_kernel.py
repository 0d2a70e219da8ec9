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
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from batchgauge.core.ops import LINE, aligned

INT, INT32, BYTE = ir.IntType(64), ir.IntType(32), ir.IntType(8)
# Where the numbers of a team lie, in bytes. What the caller alone writes shares a cache line;
# then come how many others are at work, and of each thread's range the next part and the end.
OPEN, WORK, JOB, CALLER, THREADS, JOBS = range(0, 48, 8)
ACTIVE, RANGES, END = 64, 128, 8
WATCH = 16_000  # looks for work before a thread blocks, some 0.2 ms
LAST = 400  # looks after that, for whoever was taken to be awake
PATIENCE = 2000  # looks for the end of others' parts before each time the processor is yielded
NOBODY = np.empty(0, np.int64)  # the numbers of a team of one


def pointer(builder: Any, address: Any, kind: ir.Type = INT) -> Any:
    """An address as LLVM's pointer to something."""
    return builder.inttoptr(address, kind.as_pointer())


def instructions(result: Any = types.int64, literals: int = 0) -> Callable[..., Any]:
    """What makes an intrinsic of a function that writes LLVM's instructions.

    That is given an LLVM builder and int64 arguments, of which the first `literals` are Python's
    ints, known when it is compiled; what it gives is the `result`.
    """

    def made(write: Callable[..., Any]) -> Any:
        @wraps(write)
        def define(_typing_context: Any, *kinds: Any) -> Any:
            known = kinds[:literals]

            def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
                found = write(builder, *(one.literal_value for one in known), *args[literals:])
                return context.get_dummy_value() if result is types.void else found

            return result(*known, *[types.int64] * (len(kinds) - literals)), generate

        return intrinsic(prefer_literal=literals > 0)(define)

    return made


@instructions()
def number(builder: Any, job: Any, index: Any) -> Any:
    """The int64 number at an index of a job."""
    address = builder.add(job, builder.mul(index, INT(8)))
    return builder.load(pointer(builder, address), align=8)


@instructions(types.CPointer(types.float32))
def floats(builder: Any, address: Any) -> Any:
    """An address as a pointer to float32, for `numba.carray`."""
    return pointer(builder, address, ir.FloatType())


@njit(nogil=True)
def floats_at(address, count):
    """So many float32 from an address on, as an array."""
    return carray(floats(address), count)


@instructions()
def _get(builder: Any, address: Any) -> Any:
    """The number there, whoever wrote it last."""
    return builder.load_atomic(pointer(builder, address), "seq_cst", 8)


@instructions(types.void)
def _put(builder: Any, address: Any, value: Any) -> None:
    """Write a number there, after all that was written before."""
    builder.store_atomic(value, pointer(builder, address), "release", 8)


@instructions()
def swap(builder: Any, address: Any, value: Any) -> Any:
    """Put a number there for all threads to see; what was there before."""
    return builder.atomic_rmw("xchg", pointer(builder, address), value, "seq_cst")


@instructions()
def _add(builder: Any, address: Any, value: Any) -> Any:
    """Add to the number there; what it was before."""
    return builder.atomic_rmw("add", pointer(builder, address), value, "seq_cst")


@instructions(types.void)
def _do(builder: Any, work: Any, job: Any, part: Any) -> None:
    """Call the work at an address."""
    kind = ir.FunctionType(ir.VoidType(), [INT, INT])
    builder.call(pointer(builder, work, kind), [job, part])


def _call(builder: Any, name: str, result: ir.Type) -> Any:
    """What a function without arguments gives."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, []), name)
    return builder.call(function, [])


@instructions(types.int32)
def _yield(builder: Any) -> Any:
    """Let others have the processor, where the system knows how."""
    return _call(builder, "sched_yield", INT32) if os.name == "posix" else INT32(-1)


@instructions(types.int32)
def processor(builder: Any) -> Any:
    """The processor that this runs on; -1 where the system does not say."""
    return _call(builder, "sched_getcpu", INT32) if sys.platform == "linux" else INT32(-1)


@instructions(types.void)
def _pause(builder: Any) -> None:
    """Leave the core to its other thread for a moment, where the processor knows how."""
    if platform.machine().lower() in {"x86_64", "amd64"}:
        _call(builder, "llvm.x86.sse2.pause", ir.VoidType())


def digest(*modules: ModuleType) -> int:
    """A number that changes with the modules' sources, to be closed over by compiled code.

    Numba's cache looks at a function's own file alone to see whether it still fits; a constant
    made of the other files makes it see those too.
    """
    return crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in modules))


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
            if caller >= 0 and caller == processor():
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
    _put(at + CALLER, processor())
    jobs = number(at, JOBS // 8) + 1
    _put(at + JOBS, jobs)
    _put(at + OPEN, jobs)
    _take_part(at, 0)
    swap(at + OPEN, 0)  # before anything is read after it
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
        self.numbers = aligned((RANGES + LINE * threads) // 4, zeros=True).view(np.int64)
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
