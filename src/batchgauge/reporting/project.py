"""Where this project is: its root folder and its commit, found from the working directory."""

from __future__ import annotations

import subprocess
from pathlib import Path


def project_root(start: Path | None = None) -> Path:
    """The nearest folder upwards that holds `notebooks/` and `pyproject.toml`; else `start`.

    So a notebook finds its project from JupyterLab (which starts kernels beside the
    notebook) and from plain papermill (which starts them where it is called).
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def git_commit(folder: Path | None = None) -> str:
    """The commit checked out at `folder`, with `+` when files differ; `unknown` without git."""
    where = folder or project_root()
    commit = _git(where, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    changed = _git(where, "status", "--porcelain", "--untracked-files=no", "--", "src", "notebooks")
    return f"{commit}+" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
