"""How fast this machine moves and multiplies, and what that makes the least time of some work.

Bandwidth and sgemm rate are measured with the BLAS that NumPy uses and a given number of
threads. The floor is the roofline's: the larger of bytes over bandwidth and flops over rate
(Williams, Waterman & Patterson, "Roofline", CACM 52(4), 2009). What was measured last, with
most care by notebook 02, is kept per machine and thread count in the user's cache folder, so
that all who ask have one number.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path
from threadpoolctl import threadpool_limits

from batchgauge.clock import durations_s
from batchgauge.errors import UserError
from batchgauge.files import write_text
from batchgauge.machine.preflight import blas_identity


@dataclass(frozen=True, slots=True)
class Rates:
    """What `threads` BLAS threads reach: bytes read a second, and flops a second by sgemm."""

    threads: int
    bandwidth_bytes_per_s: float
    flops_per_s: float

    @property
    def ridge_flops_per_byte(self) -> float:
        """Arithmetic intensity at which a kernel stops waiting for memory."""
        return self.flops_per_s / self.bandwidth_bytes_per_s

    def floor_s(self, bytes_moved: float, flops: float) -> float:
        """The least time in seconds that moving these bytes and doing these flops can take."""
        return max(bytes_moved / self.bandwidth_bytes_per_s, flops / self.flops_per_s)

    def raised(self, seconds: float, bytes_moved: float, flops: float) -> Rates:
        """These rates, or those that work done in so few `seconds` shows to be reached.

        Work that took less than its floor shows that the one which bound it is higher.
        """
        if seconds >= self.floor_s(bytes_moved, flops):
            return self
        return replace(
            self,
            bandwidth_bytes_per_s=max(self.bandwidth_bytes_per_s, bytes_moved / seconds),
            flops_per_s=max(self.flops_per_s, flops / seconds),
        )


def measure_rates(
    threads: int, *, seconds: float = 0.0, megabytes: int = 192, order: int = 1024
) -> Rates:
    """Measure both rates within about `seconds`, or with five calls each where that is more.

    Bandwidth is the best of a dot product, a sum and products of a matrix and a vector from
    either side, all of which read `megabytes` once, beyond the last-level cache of the
    machines this is meant for; the rate is the best of matrix products, square of `order` and
    half of it, and as wide as a layer's. The best, not the mean: neighbours on the machine
    can only take away. Raises UserError for fewer than one thread.
    """
    if threads < 1:
        raise UserError(f"threads is {threads}; expected at least 1.")
    stream = np.ones(megabytes * 2**20 // 4, dtype=np.float32)
    matrix, vector = stream.reshape(-1, 1024), stream[:1024]
    tall = np.ones(len(matrix), np.float32)
    reads: tuple[Callable[[], object], ...] = (
        lambda: np.dot(stream, stream),
        lambda: np.matmul(matrix, vector),
        lambda: np.matmul(tall, matrix),
        stream.sum,
    )
    rng = np.random.default_rng(0)
    shapes = ((order, order, order), (order // 2,) * 3, (order // 2, order // 2, 3 * order))
    products: list[tuple[Callable[[], object], float]] = []
    for m, k, n in shapes:
        a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, n)))
        out = np.empty((m, n), np.float32)
        products.append((partial(np.matmul, a, b, out=out), 2.0 * m * k * n))
    each = seconds / (len(reads) + len(products))
    with threadpool_limits(threads, user_api="blas"):
        bandwidth = max(stream.nbytes / min(durations_s(call, each, least=5)) for call in reads)
        rate = max(flops / min(durations_s(call, each, least=5)) for call, flops in products)
    return Rates(threads, bandwidth, rate)


def evictor(megabytes: int = 192) -> Callable[[], object]:
    """A call that reads so much that caches hold nothing else afterwards."""
    stream = np.ones(megabytes * 2**20 // 4, dtype=np.float32)
    return partial(np.dot, stream, stream)


def cache_folder() -> Path:
    """Where results for this machine are kept: `BATCHGAUGE_CACHE` or the system's usual place."""
    own = os.environ.get("BATCHGAUGE_CACHE")
    return Path(own) if own else user_cache_path("batchgauge", appauthor=False)


def cached_rates(threads: int, identity: str, *, folder: Path | None = None) -> Rates:
    """`measure_rates`, or what it gave before on the machine `identity` with as many threads.

    And with the same BLAS: another core type on the same processor has other rates. A folder
    that cannot be written costs a new measurement each time, nothing else.
    """
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Rates(**json.loads(_path(threads, identity, folder).read_text(encoding="utf-8")))
    return remember(measure_rates(threads), identity, folder=folder)


def remember(rates: Rates, identity: str, *, folder: Path | None = None) -> Rates:
    """Keep rates for `cached_rates`, in place of those before; the rates."""
    with contextlib.suppress(UserError):
        write_text(json.dumps(asdict(rates)), _path(rates.threads, identity, folder))
    return rates


def _path(threads: int, identity: str, folder: Path | None) -> Path:
    blas = sha256(blas_identity()[0].encode()).hexdigest()[:6]
    return (folder or cache_folder()) / f"rates-{identity}-{blas}-{threads}.json"
