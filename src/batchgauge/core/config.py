"""What a GGUF file says of its model: the numbers that define it, checked, and its tensors.

A file may say things that change what its model computes and that `model` does not do:
every such key or tensor is refused by name, never ignored. `FAMILIES` tells for each
architecture which keys are read, and which values of others mean nothing; kinds and
meanings are those of llama.cpp's loader.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from batchgauge.core.gguf_head import one_apart
from batchgauge.core.model_file import ModelFile, shown
from batchgauge.errors import UserError

LARGEST = (1 << 31) - 1  # of the counts
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture: the keys of it that `Config` reads, or that never change a result.

    neutral  for a key beside those, the values with which it changes nothing: by default
             0, false, an empty text and "none"
    """

    applied: frozenset[str]
    neutral: Mapping[str, tuple[Any, ...]]


_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
UNIT = (0, 1)  # of a factor: llama.cpp takes 0 for "none"
FAMILIES = {
    "llama": Family(
        applied=frozenset({
            "block_count", "context_length", "embedding_length", "feed_forward_length",
            "vocab_size", "attention.head_count", "attention.head_count_kv",
            "attention.key_length", "attention.value_length", "attention.sliding_window",
            "attention.scale", "attention.layer_norm_rms_epsilon", "rope.dimension_count",
            "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
            # These say more of a scaling of another type than those that are applied.
            "rope.scaling.original_context_length", "rope.scaling.finetuned",
            "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
        }),
        neutral={
            "attention.causal": (True,),
            "attention.output_scale": UNIT,
            "embedding_scale": UNIT,
            "expert_weights_scale": UNIT,
            "logit_scale": UNIT,
            "residual_scale": UNIT,
            "rope.scaling.alpha": UNIT,
            "rope.scaling.attn_factor": (1,),
            "rope.scaling.yarn_attn_factor": (1,),
            "rope.scaling.yarn_ext_factor": (0, -1),
            "tensor_data_layout": ("", "Meta AI original pth"),  # neighbours are pairs
        },
    ),
}  # fmt: skip
NOTHING = (0, "", "none")


class Keys:
    """The keys of one architecture, each of the right kind or a UserError that names it."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        name = file.metadata.get("general.architecture")
        if name not in FAMILIES:
            raise UserError(
                f"The model '{file.path}' has the architecture {_shown(name)}; "
                f"expected {' or '.join(map(repr, FAMILIES))}."
            )
        self.architecture: str = name
        self.family = FAMILIES[name]

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is. Raises UserError where there is none, nor a default."""
        value = self.file.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise UserError(
                f"The model '{self.file.path}' lacks `{self.architecture}.{key}`; expected a "
                f"{self.architecture.capitalize()}."
            )
        return value

    def count(self, key: str, default: int | None = None, *, layers: int = 0) -> int:
        """A whole number above 0; of an array with one for each of `layers`, their one value."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray) and layers:
            if len(value) != layers or (value != value[:1]).any():
                self.refuse(
                    key, "differs from layer to layer", f"one number, or {layers} equal ones"
                )
            value = value[0].item()
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
            self.refuse(key, _described(value), f"a whole number from 1 to {LARGEST}")
        return int(value)

    def number(self, key: str, default: float | None = None, *, zero: float | None = None) -> float:
        """A finite float32 above 0; `zero`, if given, is what 0 stands for."""
        value = self.get(key, default)
        if isinstance(value, float) and value == 0.0 and zero is not None:
            return zero
        if not isinstance(value, float) or not _LEAST <= value <= _MOST:
            self.refuse(key, _described(value), "a float above 0, within float32")
        return value

    def refuse(self, key: str, found: str, expected: str) -> NoReturn:
        """Raise UserError for a key."""
        raise UserError(
            f"The model '{self.file.path}' has a `{self.architecture}.{key}` that {found}; "
            f"expected {expected}."
        )

    def refuse_unknown(self) -> None:
        """Raise UserError for a key that would change the result and that nothing applies."""
        known = self.family.applied | self.family.neutral.keys()
        ours = [f"{self.architecture}.{key}" for key in known]
        for name, value in self.file.metadata.items():
            owner, _, key = name.partition(".")
            if owner != self.architecture:
                if key in known or any(one_apart(name, other) for other in ours):
                    raise UserError(
                        f"The model '{self.file.path}' has the key {shown(name)}; expected one of "
                        f"the architecture {self.architecture!r}."
                    )
                continue
            allowed = self.family.neutral.get(key, NOTHING)
            if key not in self.family.applied and not _all_in(value, allowed):
                raise UserError(
                    f"The model '{self.file.path}' has the key {shown(name)}, which "
                    f"{_described(value)}: it would change the result and is not supported; "
                    "expected a model without it."
                )


def _described(value: Any) -> str:
    """What an error says of a value."""
    if isinstance(value, list | np.ndarray):
        return f"is an array of {len(value)}"
    return f"is {_shown(value)}"


def _shown(value: Any) -> str:
    return shown(value) if isinstance(value, str) else repr(value)


def _all_in(value: Any, allowed: tuple[Any, ...]) -> bool:
    values = value.tolist() if isinstance(value, np.ndarray) else value
    return all(one in allowed for one in (values if isinstance(values, list) else [values]))


@dataclass(frozen=True, slots=True)
class Config:
    """The numbers that define a Llama."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int  # tokens: the embedding may have more rows, which are never used
    context_length: int
    norm_epsilon: float
    rope_base: float
    rope_scale: float
    tied: bool

    @classmethod
    def from_file(cls, file: ModelFile) -> Config:
        """Read the keys of the model's architecture.

        Raises UserError for another architecture, a missing key, one of another kind, and
        one that asks for what is not done here.
        """
        keys = Keys(file)
        layers = keys.count("block_count")
        named = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
        if layers != len(named):
            keys.refuse("block_count", f"is {layers}", f"the {len(named)} layers that it holds")
        d_model, heads = (
            keys.count("embedding_length"),
            keys.count("attention.head_count", layers=layers),
        )
        kv_heads = keys.count("attention.head_count_kv", heads, layers=layers)
        head_dim = keys.count("attention.key_length", max(d_model // heads, 1))
        value_dim = keys.count("attention.value_length", head_dim)
        rotated = keys.count("rope.dimension_count", head_dim)
        if heads % kv_heads or head_dim % 2 or not head_dim == value_dim == rotated:
            raise UserError(
                f"The model '{file.path}' has head sizes that do not fit together: {heads} heads, "
                f"{kv_heads} for keys and values, keys of {head_dim}, {rotated} of them rotated, "
                f"values of {value_dim}; expected heads a multiple of those for keys and values, "
                "and one even size."
            )
        config = cls(
            layers=layers,
            d_model=d_model,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            d_ff=keys.count("feed_forward_length", layers=layers),
            vocab_size=_vocab_size(keys),
            context_length=keys.count("context_length"),
            norm_epsilon=keys.number("attention.layer_norm_rms_epsilon"),
            rope_base=keys.number("rope.freq_base", 10_000.0),
            rope_scale=_rope_scale(keys),
            tied="output.weight" not in file.tensors,
        )
        window = keys.get("attention.sliding_window", 0)
        if not _all_in(window, (0,)):
            window = keys.count("attention.sliding_window", layers=layers)
            if window < config.context_length:
                keys.refuse("attention.sliding_window", f"is {window}", "none below the context")
        usual = 1.0 / math.sqrt(head_dim)
        scale = keys.number("attention.scale", 0.0, zero=usual)
        if not math.isclose(scale, usual, rel_tol=1e-6):
            keys.refuse("attention.scale", f"is {scale}", f"none but the usual {usual}")
        keys.refuse_unknown()
        return config

    @property
    def qkv_width(self) -> int:
        """Features of queries, keys and values together."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def attention_width(self) -> int:
        """Features of the queries, and of what attention gives."""
        return self.heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one position in all layers, in bytes of float32."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 4

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that a file of this model must have; it may have `ROPE_FACTORS` besides."""
        D, Q, KV = self.d_model, self.attention_width, self.kv_heads * self.head_dim
        layer = {
            "attn_norm": (D,),
            "attn_q": (Q, D),
            "attn_k": (KV, D),
            "attn_v": (KV, D),
            "attn_output": (D, Q),
            "ffn_norm": (D,),
            "ffn_gate": (self.d_ff, D),
            "ffn_up": (self.d_ff, D),
            "ffn_down": (D, self.d_ff),
        }
        shapes: dict[str, tuple[int, ...]] = {
            f"blk.{i}.{name}.weight": shape
            for i in range(self.layers)
            for name, shape in layer.items()
        }
        shapes |= {"token_embd.weight": (self.vocab_size, D), "output_norm.weight": (D,)}
        return shapes if self.tied else shapes | {"output.weight": (self.vocab_size, D)}


def _vocab_size(keys: Keys) -> int:
    """How many tokens there are: as many as the file lists, else as the embedding has rows."""
    file = keys.file
    if (embedding := file.tensors.get("token_embd.weight")) is None:
        raise UserError(f"The model file '{file.path}' has no tensor 'token_embd.weight'.")
    rows = embedding.shape[0]
    tokens = len(file.metadata.get("tokenizer.ggml.tokens", ())) or rows
    if tokens > rows:
        raise UserError(
            f"The model '{file.path}' has {tokens} tokens and an embedding of {rows}; expected one "
            "of every token."
        )
    return tokens


def _rope_scale(keys: Keys) -> float:
    """By how much positions are divided. Without a type, a factor is a linear one."""
    kind = keys.get("rope.scaling.type", "linear")
    if not isinstance(kind, str) or kind not in {"none", "linear"}:
        keys.refuse("rope.scaling.type", _described(kind), "'linear' or 'none'")
    factors = {
        keys.number(key, 0.0, zero=1.0)
        for key in ("rope.scaling.factor", "rope.scale_linear")
        if f"{keys.architecture}.{key}" in keys.file.metadata
    }
    if len(factors) > 1:
        keys.refuse("rope.scale_linear", "differs from its `rope.scaling.factor`", "one of them")
    return factors.pop() if factors and kind == "linear" else 1.0


def check_tensors(file: ModelFile, config: Config) -> None:
    """Raise UserError unless the file has exactly the tensors of `config`, in shape too.

    Rows of the embedding and of the head that no token has are padding: from now on `file`
    knows nothing of them.
    """
    expected = config.tensor_shapes()
    if ROPE_FACTORS in file.tensors:
        expected[ROPE_FACTORS] = (config.head_dim // 2,)
    for name in ("token_embd.weight", "output.weight"):
        tensor = file.tensors.get(name)
        if tensor is not None and len(tensor.shape) > 1 and tensor.shape[0] > config.vocab_size:
            file.tensors[name] = replace(tensor, shape=(config.vocab_size, *tensor.shape[1:]))
    present = {name: tensor.shape for name, tensor in file.tensors.items()}
    for name in sorted(expected.keys() | present.keys()):
        if expected.get(name) != present.get(name):
            raise UserError(
                f"The model file '{file.path}' has the tensor {file.called(name)} in shape "
                f"{present.get(name)}; expected {expected.get(name)}."
            )
