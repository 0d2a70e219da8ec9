"""What NumPy's BLAS runs with, and what to do when that is not what the processor could do.

OpenBLAS picks its kernels ("core type") when NumPy is imported; `OPENBLAS_CORETYPE` in
the environment overrides its choice, for instance where one was once needed. A slower
core halves matrix products without a word. `check()` says so.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np  # so that its BLAS is loaded
from threadpoolctl import threadpool_info, threadpool_limits

VARIABLE = "OPENBLAS_CORETYPE"
_ASK = (
    "import numpy, threadpoolctl; "
    "print(*(i.get('architecture', '') for i in threadpoolctl.threadpool_info() "
    "if i['user_api'] == 'blas' and 'numpy' in i['filepath'].lower()))"
)


@dataclass(frozen=True, slots=True)
class BlasReport:
    """`core` is the core type in use; `remedy` says what to do, empty when nothing is wrong."""

    blas: str
    version: str
    core: str
    remedy: str


def _numpy_blas() -> dict[str, Any] | None:
    """What threadpoolctl knows of the BLAS that NumPy has loaded, else of any; None without one."""
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    own = (pool for pool in pools if "numpy" in str(pool["filepath"]).lower())
    return next(own, pools[0] if pools else None)


def blas_identity() -> tuple[str, int]:
    """(name, version and core type of the BLAS that NumPy loaded; its threads)."""
    info = _numpy_blas()
    if info is None:
        return "unknown BLAS", 1
    parts = (info["internal_api"], info["version"], info.get("architecture"))
    return " ".join(str(part) for part in parts if part), int(info["num_threads"])


def check() -> BlasReport:
    """Look at the BLAS that NumPy has loaded. Costs a fresh Python when a core is pinned."""
    info = _numpy_blas()
    if info is None:
        name = str(np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"])
        return BlasReport(name, "", "", "")
    core = str(info.get("architecture", ""))
    best = unpinned_core() if os.environ.get(VARIABLE) else core
    remedy = ""
    if best and best != core:
        remedy = (
            f"{VARIABLE}={os.environ[VARIABLE]} makes OpenBLAS use its {core} kernels where "
            f"this processor could use {best}; unset it before Python starts."
        )
    return BlasReport(str(info["internal_api"]), str(info["version"]), core, remedy)


@functools.cache
def unpinned_core() -> str:
    """The core type that OpenBLAS would choose by itself, asked of a fresh Python; or ""."""
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    answer = subprocess.run(
        [sys.executable, "-c", _ASK], env=environment, capture_output=True, text=True, timeout=60
    )
    names = answer.stdout.split()
    return names[0] if names else ""


def limit_threads(threads: int) -> AbstractContextManager[object]:
    """Run BLAS with so many threads inside a `with` block."""
    limits: AbstractContextManager[object] = threadpool_limits(threads, user_api="blas")
    return limits
