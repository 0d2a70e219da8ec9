"""Products with blocked weights: by compiled tiles, or by BLAS where those cannot run.

Where nobody has said how many those are, they are one for each full-speed core.

Letters: T rows, K inputs, n blocks of W output features each. One limit rules all: the
tiles share their blocks among as many threads as NumPy's BLAS may use at the moment, and
no more than the processors that the process may use. `own_threads` keeps BLAS itself to
one meanwhile, since its idle threads spin for a while on the very cores that others need.

Left out: choosing block widths, chunks and steps by trial on each machine. The tiles have
the registers' own size; chunks and steps are the same everywhere.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from batchgauge.core.ops import Floats
from batchgauge.machine.limits import VARIABLES, default_threads, usable_cpus

Product = Callable[[Floats, Floats], Floats]  # x [T, K], blocks [n, K, W] -> [T, n * W]

SMALL = 1_000_000  # multiplications up to which OpenBLAS takes its unpacked kernels
WORTH_SHARING = 500_000  # multiplications from which they are shared: some 20 microseconds
MEMORY_ROWS = 5  # rows whose multiplications take no longer than reading the weights

MOST = 64  # threads that the OpenBLAS of NumPy's wheels is built for
_here = threading.local()  # `team`, inside `own_threads`: False for one thread


def blas_product(x: Floats, blocks: Floats) -> Floats:
    """Product of x [T, K] and blocks [n, K, W], block by block: [T, n * W].

    Rows are taken so many at a time that OpenBLAS need not pack its operands, as long
    as there are few; many rows are worth packing.
    """
    if len(x) == 1:  # two rows go through the small kernel, faster than one through gemv
        return blas_product(np.concatenate((x, x)), blocks)[:1]
    T, K = x.shape
    n, _, W = blocks.shape
    y = np.empty((T, n * W), np.float32)
    step = rows_at_once(T, K, W)
    for first in range(0, T, step):
        out = y[first : first + step].reshape(-1, n, W).swapaxes(0, 1)
        np.matmul(x[first : first + step], blocks, out=out)
    return y


def rows_at_once(rows: int, inputs: int, width: int) -> int:
    """Rows to multiply with one block in one product: all, or an even share of few."""
    most = SMALL // (inputs * width)
    if rows <= most or rows > 4 * most:
        return rows
    return -(-rows // -(-rows // most))


def product(x: Floats, blocks: Floats) -> Floats:
    """Product of x [T, K] and blocks [n, K, W], by compiled tiles where possible: [T, n * W]."""
    T, K = x.shape
    n, _, W = blocks.shape
    kernel = compiled()
    if kernel is None or K % 2 or W % kernel.FEATURES:
        return blas_product(x, blocks)
    y = np.empty((T, n * W), np.float32)
    shared(kernel.multiply, np.ascontiguousarray(x), blocks, y)
    return y


def shared(multiply: int, x: Floats, blocks: npt.NDArray[Any], y: Floats) -> None:
    """Fill y by the compiled product at an address, whose blocks the threads share."""
    worth = max(len(x), MEMORY_ROWS) * x.shape[1] * y.shape[1]
    with together(worth) as team:
        _team().multiply(multiply, x, blocks, y, team)


@contextmanager
def together(multiplications: float = math.inf) -> Iterator[Any]:
    """The threads of `own_threads` for compiled work, if there is enough of it: a team's numbers.

    A team that another thread of ours keeps busy is not waited for: the caller works alone.
    """
    found = getattr(_here, "team", None)
    if found is None:
        found = team_of(allowed_threads())
    if not found or multiplications < WORTH_SHARING or not found.free.acquire(False):
        yield _team().NOBODY
        return
    try:
        found.wake()
        yield found.numbers
    finally:
        found.free.release()


def team_of(threads: int) -> Any:
    """A `team_kernel.Team` of so many threads, or of all processors if fewer; False for one."""
    processors = usable_processors()
    threads = min(threads, len(processors))
    if threads < 2 or compiled() is None:
        return False
    team = _team().of(threads)
    team.processors = processors
    return team


@cache
def _team() -> ModuleType:
    return import_module("batchgauge.core.kernels.team_kernel")


@cache
def compiled() -> ModuleType | None:
    """The compiled tiles; None without Numba, or where nothing multiplies and adds at once.

    The first call takes a moment, and a second or so where Numba has not cached them yet;
    whoever holds only weights need not pay for it in time and memory.
    """
    try:
        return import_module("batchgauge.core.kernels.product_kernel")
    except ImportError:
        return None


@contextmanager
def own_threads() -> Iterator[None]:
    """Inside, products take the threads that BLAS may use at the start, and BLAS takes one."""
    library, threads, before = _blas(), allowed_threads(), getattr(_here, "team", None)
    _here.team = team_of(threads)
    if threads > 1:
        library.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            library.set_num_threads(threads)
        _here.team = before


def usable_processors() -> set[int]:
    """Processors that this thread may use now."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def allowed_threads() -> int:
    """Threads that NumPy's BLAS may use now; 1 where it does not say."""
    library = _blas()
    return max(1, library.num_threads or 1) if library is not None else 1


def choose_threads() -> None:
    """Give BLAS one thread for each full-speed core where nobody has said how many it may use.

    That is where no variable does and it has all that it takes by itself: every logical CPU,
    efficiency cores too, whatever the control group's quota.
    """
    library = _blas()
    if library is None or any(os.environ.get(name) for name in VARIABLES[:-1]):
        return
    wanted = default_threads()
    if wanted < library.num_threads and library.num_threads >= min(len(usable_cpus()), MOST):
        library.set_num_threads(wanted)


@cache
def _blas() -> Any:
    """The BLAS that NumPy loaded, as threadpoolctl sees it; None if it knows none."""
    found = ThreadpoolController().select(user_api="blas").lib_controllers
    of_numpy = [library for library in found if "numpy" in library.filepath.lower()]
    return next(iter(of_numpy or found), None)


choose_threads()
