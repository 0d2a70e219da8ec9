"""Where things are: the checkout that this package runs from, the notebooks, the results."""

from __future__ import annotations

from pathlib import Path

RESULTS = "batchgauge-results"
_PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """The root of the source tree that this package runs from; None when it is installed.

    It is found from the package, not from the working directory: another project's
    `notebooks/` are not ours to run.
    """
    root = _PACKAGE.parents[1]
    is_installed = (_PACKAGE / "notebooks").is_dir()
    return root if not is_installed and (root / "notebooks").is_dir() else None


def project_root() -> Path:
    """The checkout; where there is none, the working directory."""
    return checkout() or Path.cwd()


def notebooks_folder() -> Path:
    """The study's notebooks: those of the checkout, else those that were installed."""
    return (checkout() or _PACKAGE) / "notebooks"


def kernel_folder(notebook: Path) -> Path:
    """Where a study runs `notebook`: beside its folder, or, if it is installed, where we are."""
    installed = notebook.resolve().is_relative_to(_PACKAGE)
    return Path.cwd() if installed else notebook.resolve().parents[1]


def results_folder() -> Path:
    """Where `data/` and `reports/` go unless told: `batchgauge-results` where one works.

    Anywhere inside the checkout that is one folder at its root, so that a kernel that
    JupyterLab starts beside its notebook and papermill write to the same place. It is
    never the checkout's own `data/` and `reports/`, which hold the reference run.
    """
    here, root = Path.cwd(), checkout()
    return (root if root and here.resolve().is_relative_to(root) else here) / RESULTS
