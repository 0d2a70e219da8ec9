"""Where this project is: its root folder, found from the working directory."""

from __future__ import annotations

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
