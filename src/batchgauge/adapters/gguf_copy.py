"""A model as another GGUF: for engines that read no other form, or should compute in float32.

Written once, tensor by tensor, into the user's cache folder; a model's older copy is replaced.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from batchgauge.core.gguf_file import GGUFFile
from batchgauge.core.model_file import ModelFile
from batchgauge.errors import UserError
from batchgauge.files import atomic_path

_KINDS = gguf.GGUFValueType
_OF_TYPE = {bool: _KINDS.BOOL, int: _KINDS.UINT32, float: _KINDS.FLOAT32, str: _KINDS.STRING}


def cache_folder() -> Path:
    """`batchgauge` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "batchgauge"


def as_gguf(file: ModelFile, folder: Path | None = None) -> Path:
    """The path of a GGUF with `file`'s weights as they are stored: its own, or that of a copy."""
    return file.path if isinstance(file, GGUFFile) else _copy(file, "stored", folder)


def float32_copy(file: ModelFile, folder: Path | None = None) -> Path:
    """The path of `file`'s float32 copy in `folder` (None: the cache), written if not there.

    Takes 4 bytes a weight of disk. Raises UserError when it cannot be written.
    """
    return _copy(file, "f32", folder)


def _copy(file: ModelFile, kind: str, folder: Path | None) -> Path:
    states = [(path.resolve(), path.stat()) for path in file.files]
    source = "|".join(f"{path}|{state.st_size}|{state.st_mtime_ns}" for path, state in states)
    key = hashlib.sha256(source.encode()).hexdigest()[:12]
    stem = file.path.resolve().stem
    target = (folder or cache_folder()) / f"{stem}-{key}.{kind}.gguf"
    if target.exists():
        return target
    try:
        for old in target.parent.glob(f"{stem}-*.{kind}.gguf"):
            old.unlink()
        with atomic_path(target) as temporary:
            _write(file, temporary, stored=kind == "stored")
    except OSError as problem:
        raise UserError(f"The copy '{target}' cannot be written: {problem}.") from None
    return target


def _write(file: ModelFile, target: Path, *, stored: bool) -> None:
    """With matrices as they are stored, or in float32; vectors are in float32 either way."""
    writer = gguf.GGUFWriter(target, file.metadata["general.architecture"])
    for key, value in file.metadata.items():
        if key.startswith("split.") or key == "general.architecture":
            continue
        is_type = key == "general.file_type" and not stored
        writer.add_key_value(key, *_typed(gguf.LlamaFileType.ALL_F32 if is_type else value))
    kept = {name: stored and len(tensor.shape) > 1 for name, tensor in file.tensors.items()}
    for name, tensor in file.tensors.items():
        kind = gguf.GGMLQuantizationType[tensor.layout.name if kept[name] else "F32"]
        size = tensor.file_bytes if kept[name] else 4 * tensor.size
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in file.tensors.items():
        if kept[name]:
            data = np.concatenate([data for _, data in file.chunks(tensor)])
            writer.write_tensor_data(data)
        else:
            writer.write_tensor_data(file.read(name))
    writer.close()


def _typed(value: Any) -> tuple[Any, ...]:
    """A value of metadata, its type in a GGUF and that of its items."""
    if isinstance(value, list):
        return value, _KINDS.ARRAY, _OF_TYPE[type(value[0])] if value else _KINDS.STRING
    if isinstance(value, np.ndarray):
        return value.tolist(), _KINDS.ARRAY, _KINDS[value.dtype.name.upper()]
    if isinstance(value, int) and not 0 <= value < 1 << 32:
        return value, _KINDS.INT64 if value < 0 else _KINDS.UINT64
    return value, next(kind for of, kind in _OF_TYPE.items() if isinstance(value, of))
