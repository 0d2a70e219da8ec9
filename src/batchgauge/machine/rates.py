"""How fast this machine moves and multiplies, and what that makes the least time of some work.

Bandwidth and sgemm rate are measured with the BLAS that NumPy uses and a given number of
threads. The floor is the roofline's: the larger of bytes over bandwidth and flops over rate
(Williams, Waterman & Patterson, "Roofline", CACM 52(4), 2009). A short measurement, good
enough for a first guess of a cost, is kept per machine and thread count in the user's cache
folder.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
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


def measure_rates(
    threads: int, *, seconds: float = 0.0, megabytes: int = 192, order: int = 1024
) -> Rates:
    """Measure both rates within about `seconds`, or with five calls each where that is more.

    Bandwidth is the best of a dot product and a matrix-vector product that read `megabytes`
    once, beyond the last-level cache of the machines this is meant for; the rate is the best
    product of two square matrices of `order`. The best, not the mean: neighbours on the
    machine can only take away. Raises UserError for fewer than one thread.
    """
    if threads < 1:
        raise UserError(f"threads is {threads}; expected at least 1.")
    stream = np.ones(megabytes * 2**20 // 4, dtype=np.float32)
    matrix, vector = stream.reshape(-1, 1024), stream[:1024]
    left = np.random.default_rng(0).standard_normal((order, order), dtype=np.float32)
    out = np.empty_like(left)
    with threadpool_limits(threads, user_api="blas"):
        read_s, again_s, gemm_s = (
            min(durations_s(call, share * seconds, least=5))
            for call, share in (
                (lambda: np.dot(stream, stream), 0.25),
                (lambda: np.matmul(matrix, vector), 0.25),
                (lambda: np.matmul(left, left, out=out), 0.5),
            )
        )
    return Rates(threads, stream.nbytes / min(read_s, again_s), 2.0 * order**3 / gemm_s)


def cache_folder() -> Path:
    """Where results for this machine are kept: `BATCHGAUGE_CACHE` or the system's usual place."""
    own = os.environ.get("BATCHGAUGE_CACHE")
    return Path(own) if own else user_cache_path("batchgauge", appauthor=False)


def cached_rates(threads: int, identity: str, *, folder: Path | None = None) -> Rates:
    """`measure_rates`, or what it gave before on the machine `identity` with as many threads.

    And with the same BLAS: another core type on the same processor has other rates. A folder
    that cannot be written costs a new measurement each time, nothing else.
    """
    blas = sha256(blas_identity()[0].encode()).hexdigest()[:6]
    path = (folder or cache_folder()) / f"rates-{identity}-{blas}-{threads}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Rates(**json.loads(path.read_text(encoding="utf-8")))
    rates = measure_rates(threads)
    with contextlib.suppress(UserError):
        write_text(json.dumps(asdict(rates)), path)
    return rates
