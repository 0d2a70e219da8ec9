"""Products with blocked weights: by compiled tiles, or by BLAS where those cannot run.

Letters: T rows, K inputs, n blocks of W output features each. One limit rules all: the
tiles share their blocks among as many threads as NumPy's BLAS may use at the moment.
`own_threads` keeps BLAS itself to one meanwhile, since its idle threads spin for a
while on the very cores that the others need.

Left out: choosing block widths, chunks and steps by trial on each machine. The tiles have
the registers' own size; chunks and steps are the same everywhere.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from batchgauge.core.ops import Floats

Product = Callable[[Floats, Floats], Floats]  # x [T, K], blocks [n, K, W] -> [T, n * W]
Multiply = Callable[[Floats, npt.NDArray[Any], Floats, int, int], None]  # x, blocks, y, from, to

SMALL = 1_000_000  # multiplications up to which OpenBLAS takes its unpacked kernels
WORTH_SHARING = 30_000_000  # multiplications from which a second thread is worth waking
MEMORY_ROWS = 5  # rows whose multiplications take no longer than reading the weights

_here = threading.local()  # `threads`, inside `own_threads`


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


def shared(multiply: Multiply, x: Floats, blocks: npt.NDArray[Any], y: Floats) -> None:
    """Fill y by a compiled product, whose blocks the threads share."""
    n = len(blocks)
    allowed = getattr(_here, "threads", 0) or allowed_threads()
    worth = max(len(x), MEMORY_ROWS) * x.shape[1] * y.shape[1] >= WORTH_SHARING
    threads = min(allowed, n) if worth else 1
    ends = [n * share // threads for share in range(threads + 1)]
    others = [
        _pool(threads - 1).submit(multiply, x, blocks, y, ends[i], ends[i + 1])
        for i in range(1, threads)
    ]
    multiply(x, blocks, y, 0, ends[1])
    for other in others:
        other.result()


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
    library, threads = _blas(), allowed_threads()
    if library is None or threads == 1:
        yield
        return
    _here.threads = threads
    library.set_num_threads(1)
    try:
        yield
    finally:
        library.set_num_threads(threads)
        _here.threads = 0


def allowed_threads() -> int:
    """Threads that NumPy's BLAS may use now; 1 where it does not say."""
    library = _blas()
    return max(1, library.num_threads or 1) if library is not None else 1


@cache
def _blas() -> Any:
    """The BLAS that NumPy loaded, as threadpoolctl sees it; None if it knows none."""
    found = ThreadpoolController().select(user_api="blas").lib_controllers
    of_numpy = [library for library in found if "numpy" in library.filepath.lower()]
    return next(iter(of_numpy or found), None)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="product")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
