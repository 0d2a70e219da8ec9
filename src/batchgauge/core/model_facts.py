"""What is known of a model before its weights are read: its shape, and the memory it will need."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from batchgauge.core.config import FACTORS, Config, check_tensors
from batchgauge.core.default_model import open_model
from batchgauge.core.gguf_layouts import OWN_LAYOUTS, Layout
from batchgauge.core.kernels import products
from batchgauge.core.model_file import ModelFile
from batchgauge.core.quantised import BF16
from batchgauge.core.quantised_kinds import BLOCK, GROUP, KINDS
from batchgauge.core.weights import MODES, blocked_size, matrix_names
from batchgauge.text import figures, one_line

F32 = OWN_LAYOUTS[0]
REFERENCE = "a6e51f5c2c92"  # of the model that the project's goals and stored runs are about
NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's head in numbers.

    form            what it is on disk: "GGUF", "GGUF in 3 parts", "Hugging Face folder"
    name, licence   as the file says, empty where it says nothing
    parameters      numbers that training set: of all tensors, without rows that no token has
    file_bytes      of all its files together
    types           tensor type to the parameters stored so, most first
    chats           whether it has a chat template
    weights_bytes   weights mode to the bytes that `Weights` holds in memory
    kv_bytes_per_token  of keys and values, float32
    """

    path: Path
    form: str
    name: str
    licence: str
    architecture: str
    parameters: int
    layers: int
    d_model: int
    vocab_size: int
    context_length: int
    kv_bytes_per_token: int
    chats: bool
    file_bytes: int
    types: Mapping[str, int]
    weights_bytes: Mapping[str, int]

    @classmethod
    def read(cls, path: str | Path | None = None) -> ModelFacts:
        """Of a file or folder, None the default model. Raises UserError for what cannot be run."""
        return cls.of(open_model(path))

    @classmethod
    def of(cls, file: ModelFile) -> ModelFacts:
        """Of an open model. Raises UserError for one that cannot be run."""
        config = Config.from_file(file)
        check_tensors(file, config)
        types: Counter[str] = Counter()
        for tensor in file.tensors.values():
            types[tensor.layout.name] += tensor.size

        def said(key: str) -> str:
            value = file.metadata.get(f"general.{key}", "")
            return value if isinstance(value, str) else ""

        return cls(
            path=file.path,
            form=file.form,
            name=said("name"),
            licence=said("license"),
            architecture=str(file.metadata["general.architecture"]),
            parameters=types.total(),
            layers=config.layers,
            d_model=config.d_model,
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            kv_bytes_per_token=config.kv_bytes_per_token,
            chats=any(key.startswith("tokenizer.chat_template") for key in file.metadata),
            file_bytes=sum(path.stat().st_size for path in file.files),
            types=dict(types.most_common()),
            weights_bytes={mode: _bytes(file, config, mode) for mode in MODES},
        )

    @property
    def quantisation(self) -> str:
        """The tensor types in words: `Q4_K 71 %, Q6_K 29 %`, without those below 0.5 %."""
        shares = {name: 100.0 * n / self.parameters for name, n in self.types.items()}
        named = [f"{name} {share:.0f} %" for name, share in shares.items() if share >= 0.5]
        return named[0].partition(" ")[0] if len(named) == 1 else ", ".join(named)

    @property
    def digest(self) -> str:
        """Twelve hex digits of name, shape and types: equal for equal models, wherever they lie."""
        told = (
            self.name, self.architecture, self.parameters, self.layers, self.d_model,
            self.vocab_size, self.context_length, self.kv_bytes_per_token,
            sorted(self.types.items()),
        )  # fmt: skip
        return hashlib.sha256(repr(told).encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        """The model's own name, else that of its file or folder."""
        return one_line(self.name) or self.path.stem

    def __str__(self) -> str:
        """One line for readers: names, numbers, no folders."""
        return one_line(
            f"{self.title}: {self.architecture}, {counted(self.parameters)} parameters, "
            f"{self.quantisation}, context {self.context_length:,} tokens, licence "
            f"{self.licence.strip() or NOT_STATED}, {self.form} {self.path.name}"
        )


def counted(number: int) -> str:
    """`135 million`, `1.24 billion`, or the number itself below a million."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{figures(number / size)} {word}"
    return f"{number:,}"


def _bytes(file: ModelFile, config: Config, mode: str) -> int:
    """Bytes of all weights in memory, as `Weights` keeps them."""
    total = sum(rotary.width // 2 for rotary in config.rotaries) * 4  # the frequencies
    for name, tensor in file.tensors.items():
        if len(tensor.shape) < 2 and name not in FACTORS:
            total += 4 * tensor.size
    if not config.tied and mode == "float32":
        total += 4 * file.tensors["token_embd.weight"].size  # looked up only, so in no blocks
    for names in matrix_names(config, mode):
        tensors = [file.tensors[f"{name}.weight"] for name in names]
        for _, group in groupby(tensors, lambda tensor: _kept(tensor.layout, mode).name):
            some = list(group)
            features, inputs = sum(tensor.shape[0] for tensor in some), some[0].shape[1]
            total += _matrix_bytes(_kept(some[0].layout, mode), features, inputs)
    return total


def _kept(layout: Layout, mode: str) -> Layout:
    """How a mode keeps a matrix of this type."""
    return {"float32": F32, "bfloat16": BF16}.get(mode, layout)


def _matrix_bytes(layout: Layout, features: int, inputs: int) -> int:
    kind = KINDS.get(layout.name)
    if kind is None:
        return 4 * blocked_size(features, inputs)
    if inputs % GROUP or products.compiled() is None:
        return features * inputs // layout.block * layout.block_bytes
    return -(-features // BLOCK) * (inputs // GROUP) * kind.group_bytes
