"""How fast this machine moves and multiplies: measured bandwidth and sgemm rate.

Two short measurements, best of a few repetitions, with the BLAS that NumPy uses
and a given number of threads; about a quarter of a second. The result is kept per
machine and thread count in the user's cache folder. The study's own, longer
roofline measurement lives in the measuring layer; this one only has to be good
enough for a first guess of a cost.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from batchgauge.errors import UserError
from batchgauge.files import write_text


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes read per second by a matrix-vector product, flops per second by sgemm."""

    threads: int
    bandwidth_bytes_per_s: float
    flops_per_s: float


def cache_folder() -> Path:
    """Where results for this machine are kept: `BATCHGAUGE_CACHE` or the system's usual place."""
    own = os.environ.get("BATCHGAUGE_CACHE")
    if own:
        return Path(own)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData/Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "batchgauge"


def blas_identity() -> tuple[str, int]:
    """(name, version and core type of the BLAS that NumPy loaded; its threads)."""
    pools = [pool for pool in threadpool_info() if pool.get("user_api") == "blas"]
    if not pools:
        return "unknown BLAS", 1
    pool = next((p for p in pools if "numpy" in str(p.get("filepath", ""))), pools[0])
    parts = (pool.get("internal_api"), pool.get("version"), pool.get("architecture"))
    return " ".join(str(part) for part in parts if part), int(pool.get("num_threads") or 1)


def measure_rates(threads: int, *, repeats: int = 5) -> Rates:
    """Bandwidth and sgemm rate with `threads` BLAS threads; the best of `repeats`.

    The matrix of the bandwidth run is 192 MiB, above the last-level cache of the
    machines this is meant for. The thread limit is taken back afterwards.
    """
    rng = np.random.default_rng(0)
    A = rng.random((8192, 6144), dtype=np.float32)  # [8192, 6144], 192 MiB
    x = rng.random(6144, dtype=np.float32)
    M = rng.random((1024, 1024), dtype=np.float32)
    out = np.empty_like(M)
    with threadpool_limits(threads, user_api="blas"):
        read_s = _best(lambda: A @ x, repeats)
        gemm_s = _best(lambda: np.matmul(M, M, out=out), repeats)
    return Rates(threads, A.nbytes / read_s, 2.0 * 1024**3 / gemm_s)


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


def _best(work: Callable[[], object], repeats: int) -> float:
    work()  # the first call pays for pages and threads
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
