"""Folders of Hugging Face models: `config.json`, `tokenizer.json`, `*.safetensors`.

They are presented as the GGUF that llama.cpp's converter makes of them: the same keys, names
of tensors and order of rows, so that nothing behind this module tells them apart. The
`safetensors` package reads and checks the heads of weight files; `gguf` knows which of its
tensors is which of the library's.

Left out: weights that are pickled or quantised, adapters, tokenizers without `tokenizer.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from batchgauge.core.gguf_layouts import OWN_LAYOUTS, Bytes, Floats, Layout
from batchgauge.core.hf_config import Described, describe
from batchgauge.core.model_file import Made, ModelFile, Pairs, RegularFile, Source, Tensor, shown
from batchgauge.errors import UserError
from batchgauge.files import json_line

CONFIG, TOKENIZER, INDEX = "config.json", "tokenizer.json", "model.safetensors.index.json"
NEIGHBOURS = ("tokenizer_config.json", "generation_config.json")
LAYOUTS = {OWN_LAYOUTS[i].name: OWN_LAYOUTS[i] for i in (0, 1, 30)}  # F32, F16, BF16
MOST_JSON = 1 << 26  # bytes of a file of JSON; the largest tokenizers have half of it
EXPECTED = f"{CONFIG} with {TOKENIZER} and *.safetensors"
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
_LICENCE = re.compile(r"\A---\n(?:.*\n)*?license: *['\"]?([\w.-]+)")


class HFFolder(ModelFile):
    """An open folder; see `ModelFile`. `theirs` has the library's names of tensors."""

    def __init__(self, folder: Path, theirs: Mapping[str, str], *parts: Any) -> None:
        super().__init__("Hugging Face folder", *parts)
        self.path, self._theirs = folder, theirs

    def called(self, name: str) -> str:
        """A tensor's name as the folder has it."""
        return shown(self._theirs.get(name, name))

    @classmethod
    def open(cls, folder: Path) -> HFFolder:
        """Open a folder and read everything but weights. Raises UserError."""
        from batchgauge.core.hf_tokenizer import tokenizer_metadata  # with Numba: only where used

        _refuse_others(folder)
        config = read_json(folder / CONFIG)
        said = describe(config, f"The file '{folder / CONFIG}'")
        files = [folder / CONFIG, folder / TOKENIZER, *_shards(folder)]
        neighbours = [folder / name for name in NEIGHBOURS if (folder / name).exists()]
        more = {path.name: read_json(path) for path in neighbours}
        settings = more.get(NEIGHBOURS[0], {})
        metadata = said.metadata | _about(folder, config) | _templates(folder, settings)
        metadata |= tokenizer_metadata(
            read_json(folder / TOKENIZER),
            settings,
            config,
            more.get(NEIGHBOURS[1], {}),
            f"The file '{folder / TOKENIZER}'",
        )
        found: dict[str, Tensor] = {}
        sources: list[Source] = []
        for path in files[2:]:
            source, tensors = _read_shard(path, len(sources))
            sources.append(source)
            for name, tensor in tensors.items():
                if name in found:
                    raise UserError(
                        f"The folder '{folder}' has the tensor {shown(name)} in two files; "
                        "expected it in one."
                    )
                found[name] = tensor
        _check_index(folder, found)
        theirs = _names(folder, said, found)
        tensors = {ours: _adapted(ours, found[name], said) for ours, name in theirs.items()}
        for ours, values in said.factors.items():
            tensors[ours] = Tensor(ours, values.shape, LAYOUTS["F32"], 0, part=len(sources))
            sources.append(Made(folder / CONFIG, values.astype("<f4").tobytes()))
        return cls(folder, theirs, [*files, *neighbours], sources, metadata, tensors)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON. Raises UserError."""
    where = f"The file '{path}'"
    try:
        source = RegularFile(path, "a file of JSON")
        if source.size > MOST_JSON:
            raise UserError(f"{where} has {source.size} bytes; expected at most {MOST_JSON}.")
        text = source.bytes(0, source.size).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}; expected {EXPECTED}.") from None
    except ValueError:
        raise UserError(f"{where} is cut short or not UTF-8; expected a file of JSON.") from None
    return json_line(text, where)


def _refuse_others(folder: Path) -> None:
    """Raise UserError for folders whose weights or tokenizer have another form, by its name."""
    names = {path.name for path in folder.iterdir()}
    weights = any(name.endswith(".safetensors") for name in names)
    if "adapter_config.json" in names:
        raise UserError(
            f"The folder '{folder}' holds an adapter (LoRA), not a whole model; expected the "
            "model with the adapter merged into it."
        )
    if not weights and INDEX not in names:
        others = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".h5", ".msgpack")))
        has = f"its weights as {others[0]}" if others else "no weights"
        raise UserError(f"The folder '{folder}' has {has}; expected *.safetensors.")
    if TOKENIZER not in names:
        others = sorted(names & {"tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"})
        has = f"its tokenizer as {others[0]}" if others else "no tokenizer"
        raise UserError(
            f"The folder '{folder}' has {has}; expected {TOKENIZER}, as `save_pretrained` of a "
            "fast tokenizer writes it."
        )


def _shards(folder: Path) -> list[Path]:
    """The files of weights, by the index if there is one. Raises UserError where one is missing."""
    if (folder / INDEX).exists():
        where = f"The file '{folder / INDEX}'"
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
            raise UserError(f"{where} has no `weight_map` of names to files; expected one.")
        names = sorted({*places.values()})
        if wrong := [n for n in names if Path(n).name != n or not n.endswith(".safetensors")]:
            raise UserError(
                f"{where} names the file {shown(wrong[0])}; expected *.safetensors beside it."
            )
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        if "model.safetensors" in names:
            names = ["model.safetensors"]
        elif len(names) > 1 or _SHARD.fullmatch(names[0]):
            counts = {int(found[1]) if (found := _SHARD.fullmatch(n)) else 0 for n in names}
            if counts != {len(names)}:
                raise UserError(
                    f"The folder '{folder}' has {len(names)} files of weights, {names[0]} among "
                    f"them, and no {INDEX}; expected every part of one model."
                )
    for name in names:
        if not (folder / name).exists():
            raise UserError(
                f"The folder '{folder}' lacks {shown(name)}, one of {len(names)} files of its "
                "weights; expected all of them."
            )
    return [folder / name for name in names]


def _read_shard(path: Path, part: int) -> tuple[RegularFile, dict[str, Tensor]]:
    """One file of weights: open, and its tensors, which lie one behind the other."""
    from safetensors import SafetensorError, safe_open

    try:
        source = RegularFile(path, "a safetensors file")
        with safe_open(path, framework="np") as file:
            heads = [(name, file.get_slice(name)) for name in file.offset_keys()]
            entries = [(name, one.get_dtype(), tuple(one.get_shape())) for name, one in heads]
        start = 8 + int.from_bytes(source.bytes(0, 8), "little")
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"The model file '{path}' cannot be read: {reason}.") from None
    except (SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"The model file '{path}' is corrupt or cut short: {reason}.") from None
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape in entries:
        if dtype not in LAYOUTS or not shape or min(shape) < 1:
            raise UserError(
                f"The model file '{path}' has the tensor {shown(name)} as {dtype} {shape}; "
                f"expected {', '.join(LAYOUTS)} with sides above 0."
            )
        tensors[name] = Tensor(name, shape, LAYOUTS[dtype], start, part=part)
        start += tensors[name].file_bytes
    if start != source.size:
        raise UserError(f"The model file '{path}' changed while it was opened; expected it whole.")
    return source, tensors


def _check_index(folder: Path, found: Mapping[str, Tensor]) -> None:
    """Raise UserError where a tensor of the index is in no file."""
    if not (folder / INDEX).exists():
        return
    for name in read_json(folder / INDEX)["weight_map"]:
        if name not in found:
            raise UserError(
                f"The folder '{folder}' lacks the tensor {shown(name)}, which its index names; "
                "expected all of them."
            )


def _names(folder: Path, said: Described, found: Mapping[str, Tensor]) -> dict[str, str]:
    """A GGUF's names of tensors to the library's. Raises UserError for what does not fit."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    numbered = {m[1] for name in found if (m := re.match(r"model\.layers\.(\d{1,6})\.", name))}
    if len(numbered) != said.layers:
        raise UserError(
            f"The folder '{folder}' has tensors of {len(numbered)} layers; expected "
            f"{said.layers}, as `num_hidden_layers` says."
        )
    architecture = said.metadata["general.architecture"]
    (kind,) = (one for one in MODEL_ARCH if MODEL_ARCH_NAMES[one] == architecture)
    table = get_tensor_name_map(kind, said.layers)
    names: dict[str, str] = {}
    for name in found:
        if name.endswith(".rotary_emb.inv_freq") or (said.tied and name == "lm_head.weight"):
            continue  # as the library does: it computes the one, and ties the other
        if name == "lm_head.weight":
            ours: str | None = "output.weight"
        else:
            ours = table.get_name(name, (".weight", ".bias"))
        if ours is None or ours in names:
            raise UserError(
                f"The folder '{folder}' has the tensor {shown(name)}, which a model of the "
                f"architecture {architecture!r} does not have; expected none beside its own."
            )
        names[ours] = name
    if not said.tied and "output.weight" not in names:
        raise UserError(
            f"The folder '{folder}' lacks the tensor 'lm_head.weight', and its config.json does "
            "not tie it to the embedding; expected one of both."
        )
    biases = {ours.split(".")[2] for ours in names if ours.endswith(".bias") and "." in ours[4:]}
    usual = {"attn_q", "attn_k", "attn_v"} if architecture == "qwen2" else set()
    if biases != said.biases | usual:
        wrong = sorted(biases ^ (said.biases | usual))
        raise UserError(
            f"The folder '{folder}' has {'a' if wrong[0] in biases else 'no'} bias for "
            f"{wrong[0]}, other than its config.json says; expected the two to agree."
        )
    return names


def _adapted(ours: str, tensor: Tensor, said: Described) -> Tensor:
    """A tensor under a GGUF's name, with rows in its order and gains in full."""
    part = ours.split(".")[-2]
    if said.model.paired and part in {"attn_q", "attn_k"}:
        name = said.metadata["general.architecture"]
        size, turned = (
            said.metadata[f"{name}.{key}"]
            for key in ("attention.key_length", "rope.dimension_count")
        )
        if size and tensor.shape[0] % size == 0:  # else its shape is refused
            tensor = replace(tensor, pairs=Pairs(tensor.shape[0] // size, size, turned // 2 * 2))
    if said.model.less_one and part.endswith("norm"):
        tensor = replace(tensor, layout=_one_more(tensor.layout))
    return replace(tensor, name=ours)


def _one_more(layout: Layout) -> Layout:
    """A layout whose values are stored less one."""

    def dequantise(data: Bytes, out: Floats) -> None:
        layout.dequantise(data, out)
        np.add(out, np.float32(1.0), out=out)

    return replace(layout, dequantise=dequantise)


def _about(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Name and licence, as far as the folder says them."""
    place = folder.resolve()
    name = place.name
    if place.parent.name == "snapshots":  # the library's cache: models--owner--name/snapshots/…
        name = place.parent.parent.name.removeprefix("models--").replace("--", "/")
    said = config.get("_name_or_path")
    about = {"general.name": said if isinstance(said, str) and said else name}
    try:
        card = RegularFile(folder / "README.md", "text")
        text = card.bytes(0, min(card.size, 1 << 14)).decode(errors="replace")
        front = text.replace("\r\n", "\n").partition("\n---")[0]
        if licence := _LICENCE.match(front + "\n"):
            about["general.license"] = licence[1]
    except (OSError, ValueError, UserError):
        pass
    return about


def _templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Chat templates; one in a file of its own comes first, as in the library."""
    own = folder / "chat_template.jinja"
    key = "tokenizer.chat_template"
    if own.exists():
        try:
            source = RegularFile(own, "a chat template")
            return {key: source.bytes(0, min(source.size, MOST_JSON)).decode()}
        except (OSError, ValueError):
            raise UserError(f"The file '{own}' is not UTF-8; expected a chat template.") from None
    found = settings.get("chat_template")
    if isinstance(found, list):
        rows = [row for row in found if isinstance(row, dict) and isinstance(row.get("name"), str)]
        return {
            f"{key}.{row['name']}" if row["name"] != "default" else key: row.get("template")
            for row in rows
        }
    return {} if found is None else {key: found}
