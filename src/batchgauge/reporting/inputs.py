"""What a report depends on beside its notebook: files, models and packages, by their contents.

A parameter that names a file or folder counts with what is in it, not with its name: another
model at the same path is another input. Servers cannot be looked into.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from batchgauge.core.default_model import default_model_path, open_model
from batchgauge.errors import UserError
from batchgauge.machine.identity import installed
from batchgauge.workload import load_prompts

# What stands behind a parameter that is left empty, under the project's folder.
_STORED = {"baseline_dir": "data/baseline"}
_NO_FILES = {"out_dir", "profile", "prompt", "model"}  # or, the last, of a kind of its own
_INSTALLED = re.compile(r"(site|dist)-packages")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def inputs(parameters: Mapping[str, Any], declared: Mapping[str, Any], root: Path) -> list[str]:
    """A line for each input of a notebook run in `root` with these `parameters`.

    `declared` names every parameter that the notebook has.
    """
    found = []
    for name, value in sorted(parameters.items()):
        if isinstance(value, str) and value and name not in _NO_FILES:
            found += [f"{name}: {line}" for line in _of_value(value, root)]
    if "model" in declared:
        found.append(f"model: {_model(parameters.get('model'), root)}")
    if "workload" in declared or "prompt" in declared:
        try:
            own = hashlib.sha256(repr(load_prompts()).encode()).hexdigest()
        except UserError as error:
            own = str(error)
        found.append(f"own prompts: {own}")
    for name, folder in _STORED.items():
        if name in declared and not parameters.get(name):
            found.append(f"{name}: {_contents(root / folder)}")
    return [*found, *_packages()]


def _of_value(value: str, root: Path) -> Iterator[str]:
    """The contents of the file, folder or module that a value (or its part after `:`) names."""
    name, colon, argument = value.partition(":")
    for text in {value, argument} - {""}:
        try:
            path = root / text
            if path.exists():
                yield _contents(path)
        except (OSError, ValueError):  # too long for a name, a NUL
            continue
    if colon and re.fullmatch(r"[\w.]+", name) and (module := _own_module(name, root)):
        yield _contents(module, "**/*.py")


def _model(value: Any, root: Path) -> str:
    """A digest of all files of the model, the default one where none is named."""
    try:
        path = root / Path(value).expanduser() if value else default_model_path()
    except (UserError, RuntimeError) as error:  # the notebook says so, if it needs one
        return str(error)
    try:
        return _joined((path.name, path) for path in open_model(path).files)
    except (UserError, OSError) as error:  # something that another engine may know
        return f"{_contents(path)} {error}"


def _own_module(name: str, root: Path) -> Path | None:
    """The file or folder of the user's own module; None for an installed one, which has a version.

    Looked for as the notebooks' kernels do, without importing it.
    """
    top = name.partition(".")[0]
    spec = PathFinder.find_spec(top, [str(root), *sys.path])
    if spec is None or not spec.origin or _INSTALLED.search(spec.origin):
        return None
    origin = Path(spec.origin)
    return origin.parent if spec.submodule_search_locations else origin


def _contents(path: Path, pattern: str = "*") -> str:
    """A digest of a file, or of those of a folder that fit `pattern`; a word for neither."""
    try:
        if path.is_file():
            state = path.stat()
            return _digest(str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ino)
        files = [p for p in sorted(path.glob(pattern)) if p.is_file()]
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return _joined((str(p.relative_to(path)), p) for p in files)


def _joined(files: Iterable[tuple[str, Path]]) -> str:
    """One digest of several files, by their names."""
    lines = [f"{name} {_contents(path)}" for name, path in files]
    return hashlib.sha256("\n".join(lines).encode(errors="replace")).hexdigest()


@functools.cache
def _digest(path: str, *state: int) -> str:  # noqa: ARG001 - part of the cache's key
    """SHA-256 of the file; read once while its size, time and inode (`state`) stay."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _packages() -> tuple[str, ...]:
    """Name and version of every package that this one names in its requirements, peers too."""
    try:
        wanted = metadata.requires("batchgauge") or []
    except metadata.PackageNotFoundError:
        wanted = []
    names = {match[0] for line in wanted if (match := _NAME.match(line))} - {"batchgauge"}
    return tuple(installed(sorted(names)))


def digest_of(path: Path) -> str:
    """SHA-256 of a file that a study wrote; empty when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
