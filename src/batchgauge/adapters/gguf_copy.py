"""A model's GGUF once more, its weights dequantised or in another of the format's types.

Its metadata is the source's own, written by the format's own package, which quantises too.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type
from gguf.quants import QuantError, quantize

from batchgauge.core.gguf_file import GGUFFile
from batchgauge.errors import UserError
from batchgauge.files import atomic_path


def cache_folder() -> Path:
    """`batchgauge` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "batchgauge"


def float32_copy(file: GGUFFile, folder: Path | None = None) -> Path:
    """The path of `file`'s float32 copy in `folder` (None: the cache), written if not there.

    A model's older copy is replaced. Takes 4 bytes a weight of disk. Raises UserError when it
    cannot be written.
    """
    source = file.path.resolve()
    state = source.stat()
    key = hashlib.sha256(f"{source}|{state.st_size}|{state.st_mtime_ns}".encode()).hexdigest()[:12]
    target = (folder or cache_folder()) / f"{source.stem}-{key}.f32.gguf"
    if target.exists():
        return target
    try:
        for old in target.parent.glob(f"{source.stem}-*.f32.gguf"):
            old.unlink()
    except OSError as problem:
        raise UserError(f"The float32 copy '{target}' cannot be written: {problem}.") from None
    return copy_as(file, target)


def obstacle(file: GGUFFile, kind: str) -> str:
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


def copy_as(file: GGUFFile, target: Path, kind: str = "F32") -> Path:
    """Write `file` to `target` with all matrices of one type, the rest in float32; the path.

    Raises UserError for a type that its matrices cannot have, or a file that cannot be written.
    """
    if why := obstacle(file, kind):
        raise UserError(f"The model '{file.path.name}' cannot be {kind}: {why}.")
    try:
        with atomic_path(target) as temporary:
            _write(file, temporary, Type[kind])
    except OSError as problem:
        raise UserError(f"The {kind} copy '{target}' cannot be written: {problem}.") from None
    return target


def _write(file: GGUFFile, target: Path, kind: Type) -> None:
    writer = gguf.GGUFWriter(target, file.metadata["general.architecture"])
    for key, value, *types in _fields(file.path, file.path.stat().st_mtime_ns):
        writer.add_key_value(key, _file_type(kind) if key == "general.file_type" else value, *types)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    for name, tensor in file.tensors.items():
        if len(tensor.shape) == 2:
            nbytes = tensor.size // block * block_bytes
            shape = (tensor.shape[0], nbytes // tensor.shape[0])
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), nbytes, kind)
        else:
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), 4 * tensor.size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in file.tensors.items():
        values = file.read(name)
        writer.write_tensor_data(_of_type(values, kind) if len(tensor.shape) == 2 else values)
    writer.close()


@lru_cache(maxsize=1)  # several seconds for a large vocabulary
def _fields(path: Path, _modified_ns: int) -> list[tuple[Any, ...]]:
    """Key, value and types of a file's metadata, but those that the writer gives itself."""
    return [
        (key, field.contents(), *field.types[:2])
        for key, field in gguf.GGUFReader(path).fields.items()
        if not key.startswith("GGUF.") and key != "general.architecture"
    ]


def _of_type(values: npt.NDArray[np.float32], kind: Type) -> npt.NDArray[np.generic]:
    found: npt.NDArray[np.generic] = np.ascontiguousarray(quantize(values, kind))
    return found.view(np.uint8)


def _file_type(kind: Type) -> int:
    """What `general.file_type` says of a file that is mostly of this type."""
    name = "ALL_F32" if kind is Type.F32 else f"MOSTLY_{kind.name}"
    return int(gguf.LlamaFileType.__members__.get(name, gguf.LlamaFileType.GUESSED))
