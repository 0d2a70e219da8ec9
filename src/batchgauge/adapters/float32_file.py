"""A GGUF with the same weights in float32, for engines that should compute in float32.

Written once, tensor by tensor, into the user's cache folder; a model's older copy
is replaced. Its metadata is the source's own, copied by the format's own package.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import gguf
import numpy as np

from batchgauge.core.gguf_file import GGUFFile
from batchgauge.errors import UserError
from batchgauge.files import atomic_path


def cache_folder() -> Path:
    """`batchgauge` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "batchgauge"


def float32_copy(file: GGUFFile, folder: Path | None = None) -> Path:
    """The path of `file`'s float32 copy in `folder` (None: the cache), written if not there.

    Takes 4 bytes a weight of disk. Raises UserError when it cannot be written.
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
        with atomic_path(target) as temporary:
            _write(file, temporary)
    except OSError as problem:
        raise UserError(f"The float32 copy '{target}' cannot be written: {problem}.") from None
    return target


def _write(file: GGUFFile, target: Path) -> None:
    writer = gguf.GGUFWriter(target, file.metadata["general.architecture"])
    for key, field in gguf.GGUFReader(file.path).fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = gguf.LlamaFileType.ALL_F32 if key == "general.file_type" else field.contents()
        writer.add_key_value(key, value, *field.types[:2])
    for name, tensor in file.tensors.items():
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), 4 * tensor.size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in file.tensors:
        writer.write_tensor_data(file.read(name))
    writer.close()
