"""Files: written whole or not at all, and text that people bring, read line by line.

What is written goes under a temporary name that is then renamed. What keeps a file from
being written (no room, no right, a file in a folder's place) is a `UserError`, and can be
looked for before anything is measured. Lines end at a line feed and nowhere else: JSON and
prompts may hold every other character that some call a line's end.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    texts = frame.select_dtypes(exclude=["number", "bool"])
    # The writer quotes a line feed but not a lone carriage return, where readers end the line too.
    returns = any("\r" in str(cell) for name in texts for cell in texts[name].unique())
    with atomic_path(path) as temporary:
        frame.to_csv(
            temporary,
            index=False,
            lineterminator="\n",
            errors="backslashreplace",
            quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL,
        )
    return Path(path)


def text_lines(path: Path | str, what: str) -> list[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1; `what` names it.

    A byte order mark and carriage returns before line feeds do not count. Raises UserError
    for a path that is no regular file, and for what is not UTF-8 text.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise UserError(f"{what} is no regular file; expected UTF-8 text.")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"{what} cannot be read: {reason}.") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{what} cannot be read: it is UTF-16; expected UTF-8 text.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise UserError(
            f"{what} cannot be read: line {line} is not UTF-8 ({problem.reason})."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{what} has a NUL character in line {line}; expected text.")
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.removesuffix("\r")) for number, line in lines if line.strip()]


def json_line(line: str, where: str) -> dict[str, Any]:
    """The object in one line of JSON. Raises UserError for none, and for double keys."""
    try:
        row = _DECODER.decode(line)
    except _NotOursError as problem:
        raise UserError(f"{where} {problem}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; expected a flat object.") from None
    except ValueError as problem:  # no JSON, or a whole number of thousands of digits
        raise UserError(f"{where} is not JSON: {getattr(problem, 'msg', problem)}.") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is a {type(row).__name__}; expected an object of JSON.")
    return row


class _NotOursError(Exception):
    """What Python's own reader of JSON would take, and we do not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _NotOursError(f"has the key '{double}' twice; expected it once.")
    return found


def _no_number(name: str) -> None:
    raise _NotOursError(f"is not JSON: {name} is no number of JSON's.")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)  # made once
