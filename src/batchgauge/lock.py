"""One study or job at a time in a folder: a lock that the system frees when its process ends."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from batchgauge.errors import UserError

_BYTE = 2**20  # the byte that Windows locks: behind what the holder says of itself


@contextmanager
def locked(out: Path, what: str = "study") -> Iterator[None]:
    """Hold `<out>/.cache/<what>.lock`. Raises UserError, naming its holder, while another does.

    The lock is advisory and the operating system's own (flock; a locked byte on Windows), so
    a killed process leaves none behind. The file stays: removing it would race with the next.
    """
    path = out / ".cache" / f"{what}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{path}' cannot be locked: {error.strerror or error}.") from None
    with opened as file:
        if not _try_lock(file):
            raise UserError(f"Another {what} is writing to '{out}': {_holder(file)}; wait for it.")
        started = datetime.now(UTC).isoformat(timespec="seconds")
        file.truncate(0)
        holder = {"pid": os.getpid(), "host": platform.node(), "since": started}
        file.write(json.dumps(holder))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        said = json.loads(file.read(1000))
        return f"process {said['pid']} on {said['host']}, since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "an unnamed process"


if os.name == "nt":  # pragma: no cover
    import msvcrt

    def _try_lock(file: IO[str]) -> bool:
        file.seek(_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
        return True
