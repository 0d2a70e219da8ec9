"""A model as another GGUF: as it is stored, in float32, or quantised to another type.

For engines that read no other form or should compute in float32 (written once, tensor by
tensor, into the user's cache folder; a model's older copy is replaced), and to compare types.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type
from gguf.quants import QuantError, quantize

from batchgauge.core.gguf_file import GGUFFile
from batchgauge.core.model_file import ModelFile
from batchgauge.errors import UserError
from batchgauge.files import atomic_path
from batchgauge.machine.rates import cache_folder

_KINDS = gguf.GGUFValueType
_OF_TYPE = {bool: _KINDS.BOOL, int: _KINDS.UINT32, float: _KINDS.FLOAT32, str: _KINDS.STRING}


def as_gguf(file: ModelFile) -> Path:
    """The path of a GGUF with `file`'s weights as they are stored: its own, or that of a copy."""
    return file.path if isinstance(file, GGUFFile) else _copy(file, "stored")


def float32_copy(file: ModelFile) -> Path:
    """The path of `file`'s float32 copy in the cache folder, written if not there.

    Takes 4 bytes a weight of disk. Raises UserError when it cannot be written.
    """
    return _copy(file, "f32")


def obstacle(file: ModelFile, kind: str) -> str:
    """Why matrices of the file cannot be of a type, such as Q4_K; "" where they can."""
    block, _ = gguf.GGML_QUANT_SIZES[Type[kind]]
    rows = {t.shape[-1] for t in file.tensors.values() if len(t.shape) == 2}
    uneven = sorted(n for n in rows if n % block)
    if uneven:
        return f"rows of {uneven[0]} weights are no whole number of its blocks of {block}"
    try:
        quantize(np.zeros((1, block), np.float32), Type[kind])
    except (NotImplementedError, QuantError):
        return "the gguf package reads it and does not write it"
    return ""


def copy_as(file: ModelFile, target: Path, kind: str = "F32") -> Path:
    """Write `file` to `target` with all matrices of one type, the rest in float32; the path.

    Raises UserError for a type that its matrices cannot have, or a file that cannot be written.
    """
    if why := obstacle(file, kind):
        raise UserError(f"The model '{file.path.name}' cannot be {kind}: {why}.")
    return _written(file, target, Type[kind])


def _copy(file: ModelFile, kind: str) -> Path:
    states = [(path.resolve(), path.stat()) for path in file.files]
    source = "|".join(f"{path}|{state.st_size}|{state.st_mtime_ns}" for path, state in states)
    key = hashlib.sha256(source.encode()).hexdigest()[:12]
    stem = file.path.resolve().stem
    target = cache_folder() / f"{stem}-{key}.{kind}.gguf"
    if target.exists():
        return target
    try:
        for old in target.parent.glob(f"{stem}-*.{kind}.gguf"):
            old.unlink()
    except OSError as problem:
        raise UserError(f"The copy '{target}' cannot be written: {problem}.") from None
    return _written(file, target, None if kind == "stored" else Type.F32)


def _written(file: ModelFile, target: Path, kind: Type | None) -> Path:
    try:
        with atomic_path(target) as temporary:
            _write(file, temporary, kind)
    except OSError as problem:
        raise UserError(f"The copy '{target}' cannot be written: {problem}.") from None
    return target


def _write(file: ModelFile, target: Path, kind: Type | None) -> None:
    """With matrices of a type, None: as they are stored; vectors are in float32 either way."""
    writer = gguf.GGUFWriter(target, file.metadata["general.architecture"])
    for key, value in file.metadata.items():
        if key.startswith("split.") or key == "general.architecture":
            continue
        if key == "general.file_type" and kind is not None:
            value = _file_type(kind)  # noqa: PLW2901 - of the copy
        writer.add_key_value(key, *_typed(value))
    for name, tensor in file.tensors.items():
        of_matrices = Type[tensor.layout.name] if kind is None else kind  # F32 is 0
        of = Type.F32 if len(tensor.shape) == 1 else of_matrices
        block, block_bytes = gguf.GGML_QUANT_SIZES[of]
        size = tensor.size // block * block_bytes
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in file.tensors.items():
        if len(tensor.shape) > 1 and kind is None:
            writer.write_tensor_data(np.concatenate([data for _, data in file.chunks(tensor)]))
        elif len(tensor.shape) > 1:
            writer.write_tensor_data(_of_type(file.read(name), kind))
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


def _of_type(values: npt.NDArray[np.float32], kind: Type | None) -> npt.NDArray[np.generic]:
    found: npt.NDArray[np.generic] = np.ascontiguousarray(quantize(values, kind))
    return found.view(np.uint8)


def _file_type(kind: Type) -> int:
    """What `general.file_type` says of a file that is mostly of this type."""
    name = "ALL_F32" if kind is Type.F32 else f"MOSTLY_{kind.name}"
    return int(gguf.LlamaFileType.__members__.get(name, gguf.LlamaFileType.GUESSED))
