"""A real server over the tiny model, in a thread of the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchgauge.serving.server import Opened, Options, open_server
from batchgauge.serving.worker import WorkerPlan


@contextmanager
def serving(
    model: Path, *, slots: int = 4, policy: str = "fifo", **options: Any
) -> Iterator[Opened]:
    """A server that answers inside the `with` block, by one worker in a thread unless told so."""
    plan = WorkerPlan(model=str(model), slots=slots, policy=policy)
    options = {"port": 0, "workers": 0, "grace_s": 2.0, **options}
    opened = open_server(Options(plan=plan, **options))
    thread = threading.Thread(target=opened.run)
    thread.start()
    try:
        yield opened
    finally:
        opened.stop()
        thread.join()


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until something is so; fail where it never is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)
