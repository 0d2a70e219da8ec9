"""Revisions of this project, checked out beside it for the time of a comparison."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from batchgauge.errors import UserError

PACKAGE = Path("src") / "batchgauge"


def repository(start: Path) -> Path:
    """The root of the git repository around `start`. Raises UserError outside of one."""
    done = _git(start, "rev-parse", "--show-toplevel")
    if done.returncode:
        raise UserError(f"'{start}' is in no git repository; --against needs one.")
    return Path(done.stdout.strip())


def resolve(root: Path, revision: str) -> str:
    """The full commit id of `revision`. Raises UserError when git does not know it."""
    done = _git(
        root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
    )
    commit = done.stdout.strip()
    if done.returncode or not commit:
        raise UserError(f"The revision '{revision}' is unknown to git here.")
    return commit


def check_clean(root: Path) -> None:
    """Raise UserError when files of the package differ from the commit."""
    changed = _git(root, "status", "--porcelain", "--", str(PACKAGE)).stdout.splitlines()
    if changed:
        raise UserError(
            f"{len(changed)} files under {PACKAGE} differ from the commit (first: "
            f"{changed[0][3:]}); commit them, or measure them as they are with --allow-dirty."
        )


@contextlib.contextmanager
def worktree(root: Path, revision: str) -> Iterator[Path]:
    """A throw-away git worktree of `revision`, removed afterwards whatever happens.

    Raises UserError for a revision that is unknown or that has no package to measure.
    """
    commit = resolve(root, revision)
    with _place() as place:
        made = _git(root, "worktree", "add", "--quiet", "--detach", str(place), commit)
        if made.returncode:
            raise UserError(f"git could not check out '{revision}': {made.stderr.strip()}")
        try:
            if not (place / PACKAGE / "__init__.py").is_file():
                raise UserError(f"The revision '{revision}' has no {PACKAGE} to measure.")
            yield place
        finally:
            _git(root, "worktree", "remove", "--force", str(place))
    _git(root, "worktree", "prune")


@contextlib.contextmanager
def copy(package: Path, *, compiled: bool = False) -> Iterator[Path]:
    """A throw-away tree with a copy of `package` as it lies there, as a worktree would have it.

    `compiled`: with the kernels compiled there; these may be of another state of the code that
    they call, so do not compare revisions with them.
    """
    ignored = None if compiled else shutil.ignore_patterns("__pycache__")
    with _place() as place:
        shutil.copytree(package, place / PACKAGE, ignore=ignored)
        yield place


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """Where a tree may be put; the paths of all of them have one length."""
    with tempfile.TemporaryDirectory(prefix="batchgauge-") as folder:
        yield Path(folder) / "tree"


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=120
        )
    except OSError:
        raise UserError("git is not installed; --against needs it.") from None
