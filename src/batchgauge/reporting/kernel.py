"""Notebooks in fresh kernels: one, or a few side by side, and what a kernel inherits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import nbformat
from nbformat import NotebookNode

from batchgauge.core.default_model import VARIABLE
from batchgauge.errors import UserError
from batchgauge.reporting.project import kernel_folder

T = TypeVar("T")
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


def results(jobs: Sequence[Callable[[], T]], at_once: int) -> Generator[T, None, None]:
    """What each job returns, in the order of `jobs`; the first that raises ends it.

    With `at_once` of 1 a job starts when its result is asked for, in this thread. Else so
    many threads take jobs from the front; no further one starts once the iterator is closed.
    Not a `ThreadPoolExecutor`: that one waits for its threads when the program is interrupted,
    and a job here is a notebook of minutes.
    """
    if at_once == 1:
        for job in jobs:
            yield job()
        return
    futures: list[Future[T]] = [Future() for _ in jobs]
    left = iter(list(zip(jobs, futures, strict=True)))
    lock, closed = threading.Lock(), threading.Event()

    def work() -> None:
        while not closed.is_set():
            with lock:
                job, future = next(left, (None, None))
            if job is None or future is None:
                return
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001  # raised where the result is asked for
                future.set_exception(error)

    for _ in range(at_once):
        threading.Thread(target=work, daemon=True).start()
    try:
        for future in futures:
            yield future.result()
    finally:
        closed.set()
