"""GGUF files: metadata, a table of tensors, and tensors as float32.

Reads versions 2 and 3 of the format, little-endian
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Arrays of strings are
read in one pass, since the `gguf` package takes seconds for a vocabulary. A model that is
split over several files, as `llama-gguf-split` and the package do it, is opened as one.

Left out: writing, big-endian files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from batchgauge.core.gguf_head import HeadReader, TooShortError
from batchgauge.core.model_file import ModelFile, RegularFile, Tensor, shown
from batchgauge.errors import UserError

HEAD, LARGEST_HEAD = 1 << 24, 1 << 26  # bytes read first, and at most, for the head of a file
EXPECTED = "a GGUF file or the folder of a Hugging Face model"
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
Head = tuple[RegularFile, dict[str, Any], dict[str, Tensor]]


class GGUFFile(ModelFile):
    """An open GGUF file, or all files of a split model."""

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Open a file, or all parts of a model one of whose parts it is; reads metadata.

        Raises UserError when that cannot be done.
        """
        path = Path(path)
        head = _read(path)
        paths = _parts(path, head[1])
        heads = [head if part == path else _read(part) for part in paths]
        tensors: dict[str, Tensor] = {}
        for number, (part, each) in enumerate(zip(paths, heads, strict=True)):
            if len(paths) > 1:
                _check_part(number, part, each[1], heads[0][1])
            for name, tensor in each[2].items():
                if name in tensors:
                    raise UserError(
                        f"Two parts of the model '{paths[0]}' have the tensor {shown(name)}; "
                        "expected parts of one model."
                    )
                tensors[name] = replace(tensor, part=number)
        metadata = heads[0][1]
        expected = metadata.get("split.tensors.count", len(tensors))
        if len(paths) > 1 and len(tensors) != expected:
            raise UserError(
                f"The parts of the model '{paths[0]}' have {len(tensors)} tensors together; "
                f"expected {expected}, as they say."
            )
        form = "GGUF" if len(paths) == 1 else f"GGUF in {len(paths)} parts"
        return cls(form, paths, [source for source, *_ in heads], metadata, tensors)


def _read(path: Path) -> Head:
    """One file: open, its metadata, and its tensors. Raises UserError."""
    try:
        source = RegularFile(path, EXPECTED)
        _check_start(source)
        length = min(HEAD, source.size)
        while True:
            try:
                return source, *HeadReader(source.bytes(0, length), source.size).read()
            except TooShortError:
                if length == LARGEST_HEAD:
                    raise ValueError(f"its metadata has more than {length >> 20} MiB") from None
                length = min(LARGEST_HEAD, source.size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"The model file '{path}' cannot be read: {reason}.") from None
    except ValueError as error:
        raise UserError(f"The model file '{path}' is corrupt or cut short: {error}.") from None


def _check_start(source: RegularFile) -> None:
    start = source.bytes(0, min(source.size, 8))
    if start[:4] != b"GGUF":
        raise UserError(
            f"'{source.path}' is not a GGUF file, which begins with 'GGUF'; expected {EXPECTED}."
        )
    if len(start) < 8:
        raise ValueError("it ends within its first 8 bytes")
    version = int.from_bytes(start[4:], "little")
    if not version & 0xFFFF and version:
        raise UserError(f"'{source.path}' is a big-endian GGUF file; expected little-endian.")
    if version not in {2, 3}:
        raise UserError(f"'{source.path}' is GGUF version {version}; expected 2 or 3.")


def _parts(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """The files of the model, in order: `path` alone unless it says that there are more."""
    if (count := metadata.get("split.count", 1)) < 2:
        return [path]
    what = f"The model file '{path}' is part {metadata.get('split.no', 0) + 1} of {count}"
    if not (name := PART.fullmatch(path.name)):
        raise UserError(
            f"{what}, so the others cannot be found by its name; expected one like "
            f"'model-00001-of-{count:05}.gguf'."
        )
    if int(name[3]) != count:
        raise UserError(f"{what}; expected one of {int(name[3])}, as its name says.")
    paths = [path.with_name(f"{name[1]}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    for part in paths:
        if not part.exists():
            raise UserError(f"{what}, and '{part.name}' is missing; expected all in one folder.")
    return paths


def _check_part(
    number: int, path: Path, metadata: Mapping[str, Any], first: Mapping[str, Any]
) -> None:
    """Raise UserError unless this is that part of the model that begins with `first`."""
    count = first["split.count"]
    found = metadata.get("split.no", 0), metadata.get("split.count", 1)
    if found != (number, count):
        says = f"part {found[0] + 1} of {found[1]}" if found[1] > 1 else "a whole model"
        raise UserError(
            f"The model file '{path}' says that it is {says}; expected part {number + 1} of "
            f"{count}, as its name says."
        )
    for key, value in metadata.items():
        if key != "split.no" and not np.array_equal(value, first.get(key, ())):
            raise UserError(
                f"The model file '{path}' has another {shown(key)} than the first part; expected "
                "parts of one model."
            )
