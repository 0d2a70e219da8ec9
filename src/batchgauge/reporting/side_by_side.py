"""Jobs one after the other, or a few at a time in threads; results in order either way.

Not a `ThreadPoolExecutor`: that one waits for its threads when the program is interrupted,
and a job here is a notebook of minutes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def results(jobs: Sequence[Callable[[], T]], at_once: int) -> Generator[T, None, None]:
    """What each job returns, in the order of `jobs`; the first that raises ends it.

    With `at_once` of 1 a job starts when its result is asked for, in this thread. Else so
    many threads take jobs from the front; no further one starts once the iterator is closed.
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
