"""Optional dependencies: what is missing is said in one sentence, with the command for it."""

from __future__ import annotations

import importlib.util

from batchgauge.errors import UserError

# What `batchgauge[study]` brings that notebooks and reports import.
STUDY = (
    *("IPython", "ipykernel", "ipywidgets", "matplotlib", "nbconvert", "papermill"),
    *("PIL", "seaborn", "vl_convert", "yaml"),
)


def missing(*packages: str) -> tuple[str, ...]:
    """Those of `packages` that cannot be imported here; looks without importing."""
    return tuple(package for package in packages if not _installed(package))


def require(what: str, extra: str, *packages: str) -> None:
    """Raise UserError, naming the command that installs `extra`, unless `packages` are here."""
    if lacking := missing(*packages):
        named = " and ".join(filter(None, (", ".join(lacking[:-1]), lacking[-1])))
        raise UserError(f"{what} needs {named}, not installed here; {remedy(extra)}.")


def remedy(extra: str) -> str:
    """The command that installs `extra`, as the end of a sentence."""
    return f"install it with: pip install 'batchgauge[{extra}]'"


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
