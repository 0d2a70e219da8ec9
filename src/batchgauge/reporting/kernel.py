"""One notebook in a fresh kernel, and what its kernel inherits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from batchgauge.core.default_model import VARIABLE
from batchgauge.errors import UserError
from batchgauge.reporting.project import kernel_folder

_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_REMOVED = ("OPENBLAS_CORETYPE",)  # a pinned core type can halve sgemm


def execute(path: Path, parameters: Mapping[str, Any], working: Path) -> NotebookNode:
    """Run the notebook in a fresh kernel, saved cell by cell; a start that fails gets one retry."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    for attempt in (1, 2):
        working.unlink(missing_ok=True)
        try:
            return papermill.execute_notebook(
                str(path),
                str(working),
                parameters=dict(parameters),
                kernel_name="python3",
                progress_bar={"desc": path.stem, "leave": True},
                resources={"metadata": {"path": str(kernel_folder(path))}},
                start_timeout=120,
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )
        except (RuntimeError, DeadKernelError) as error:
            if _has_begun(working):
                raise UserError("its kernel died, out of memory perhaps") from error
            if attempt == 2:
                raise UserError(f"its kernel did not start in two tries ({error})") from error
    raise AssertionError


def _has_begun(working: Path) -> bool:
    if not working.exists():
        return False
    cells = nbformat.read(working, as_version=4).cells
    return any(cell.get("execution_count") for cell in cells)


@contextmanager
def kernel_environment() -> Iterator[None]:
    """What kernels started inside inherit: one BLAS thread, a fixed hash seed, no core type.

    They run in another folder, so a model that the environment names gets its whole path.
    """
    before = dict(os.environ)
    if os.path.isfile(named := os.environ.get(VARIABLE, "")):  # noqa: PTH113 - "" is none
        os.environ[VARIABLE] = str(Path(named).resolve())
    os.environ.update({"PYTHONHASHSEED": "0", **dict.fromkeys(_THREADS, "1")})
    for name in _REMOVED:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
