"""Files that are either whole or not there: write under a temporary name, then rename.

What keeps a file from being written (no room, no right, a file in a folder's place) is a
`UserError`, and can be looked for before anything is measured.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from batchgauge.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_PROBE_BYTES = 2**20  # a full file system still takes empty files; a page is about this large


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on error.

    A killed process leaves at most a `*.partial` file, never half of `path`. The
    folder is made where it is missing. Raises UserError for whatever the system refuses.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem[:100]}-", suffix=f"{path.suffix}.partial", dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {_reason(error, path)}.") from error


def check_folders(*folders: Path) -> None:
    """Make the folders and see that files can be written there. Raises UserError, making none.

    For use before anything runs: what cannot be kept need not be measured.
    """
    levels = {level for folder in folders for level in (folder, *folder.parents)}
    missing = sorted((p for p in levels if not p.is_dir()), key=lambda p: -len(p.parts))
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(_PROBE_BYTES))
                probe.flush()
        except (OSError, ValueError) as error:
            for level in missing:
                with suppress(OSError, ValueError):
                    level.rmdir()
            raise UserError(
                f"Nothing can be written to the folder '{folder}': {_reason(error, folder / 'x')}."
            ) from error


def check_file(path: Path | str) -> None:
    """See that the file `path` can be written later. Raises UserError."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"'{path}' cannot be written: it is a folder; expected a file.")
    check_folders(path.parent)


def _reason(error: Exception, path: Path) -> str:
    """Why the system refused, in its words; a file where a folder is expected by its name."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        files = [p for p in path.parents if p.exists() and not p.is_dir()]
        if files:
            return f"'{files[0]}' is a file, expected a folder"
        if links := [p for p in path.parents if p.is_symlink()]:
            return f"the link '{links[0]}' leads to no folder"
    if isinstance(error, IsADirectoryError):
        return "it is a folder; expected a file"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def write_text(text: str, path: Path | str) -> Path:
    """Write `text` as UTF-8 to `path`, whole or not at all.

    A lone surrogate, which has no UTF-8, is written by its number, in JSON's own notation.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def write_csv(frame: pd.DataFrame, path: Path | str) -> Path:
    """Write `frame` to `path` without its index, whole or not at all; surrogates as above."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", errors="backslashreplace")
    return Path(path)
