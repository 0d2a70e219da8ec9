"""The files of a report's last good run, kept until the next is good as well.

Every file is written under another name and then renamed, so a hard link keeps the old
content and takes no room; putting it back is a rename, which a full disk allows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def set_aside(files: Iterable[str], out: Path, folder: Path) -> None:
    """Link `files` (relative to `out`) into `folder`; without hard links nothing is kept."""
    with suppress(OSError):
        for file in files:
            kept = folder / file
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.hardlink_to(out / file)


def put_back(out: Path, folder: Path) -> None:
    """Make the files under `out` again what `set_aside` kept in `folder`, if it kept any."""
    for kept in sorted(folder.rglob("*")):
        if kept.is_file():
            with suppress(OSError):
                kept.replace(out / kept.relative_to(folder))
    forget(folder)


def forget(folder: Path) -> None:
    """Give up what was kept: the new run is good."""
    shutil.rmtree(folder, ignore_errors=True)
