"""What a GGUF file says of its model: the numbers that define it, checked, and its tensors.

A file may say things that change what its model computes and that `model` does not do:
every such key or tensor is refused by name, never ignored. `families` has the rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from batchgauge.core.families import Family
from batchgauge.core.keys import Keys, all_in, described
from batchgauge.core.model_file import ModelFile, Pairs, shown
from batchgauge.core.rotary import SCALINGS, Rotary, yarn_magnitude
from batchgauge.errors import UserError

ROPE_FACTORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
FACTORS = {ROPE_FACTORS, SHORT, LONG}


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Where one layer may differ from another.

    window  positions that a query sees, its own among them; 0: all before it
    turns   which rotation queries and keys take, of `Config.rotaries`; None: none
    """

    kv_heads: int
    d_ff: int
    window: int
    turns: int | None


@dataclass(frozen=True, slots=True)
class Config:
    """The numbers and rules that define a model."""

    family: Family
    shapes: tuple[LayerShape, ...]
    d_model: int
    heads: int
    head_dim: int
    vocab_size: int  # tokens: the embedding may have more rows, which are never used
    context_length: int
    norm_epsilon: float
    rotaries: tuple[Rotary, ...]
    tied: bool
    biases: frozenset[str]  # matrices that have one
    query_scale: float
    embedding_scale: float
    residual_scale: float  # of what attention and the feed-forward layer add
    logit_scale: float  # that logits are divided by
    caps: tuple[float, float]  # soft limits of scores and of logits; 0: none

    @classmethod
    def from_file(cls, file: ModelFile) -> Config:
        """Read the keys of the model's architecture.

        Raises UserError for another architecture, a missing key, one of another kind, and
        one that asks for what is not done here.
        """
        keys = Keys(file)
        family, layers = keys.family, keys.count("block_count")
        named = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
        if layers != len(named):
            keys.refuse("block_count", f"is {layers}", f"the {len(named)} layers that it holds")
        d_model, heads = (
            keys.count("embedding_length"),
            keys.count("attention.head_count", layers=layers),
        )
        kv_heads = keys.counts("attention.head_count_kv", heads, layers=layers)
        head_dim = keys.count("attention.key_length", max(d_model // heads, 1))
        value_dim = keys.count("attention.value_length", head_dim)
        rotated = keys.count("rope.dimension_count", head_dim)
        if (
            any(heads % of_layer for of_layer in kv_heads)
            or rotated % 2
            or rotated > head_dim
            or head_dim != value_dim
        ):
            raise UserError(
                f"The model '{file.path}' has head sizes that do not fit together: {heads} heads, "
                f"{' or '.join(map(str, sorted(set(kv_heads))))} for keys and values, keys of "
                f"{head_dim}, {rotated} of them rotated, values of {value_dim}; expected heads a "
                "multiple of those for keys and values, one size, and an even number rotated."
            )
        context = keys.count("context_length")
        widths = keys.counts("feed_forward_length", layers=layers)
        rotaries = tuple(_rotaries(keys, rotated, context))
        windows = _windows(keys, layers, context)
        config = cls(
            family=family,
            shapes=tuple(
                LayerShape(*each, _turns(family, i, local=bool(each[2]) and len(rotaries) > 1))
                for i, each in enumerate(zip(kv_heads, widths, windows, strict=True))
            ),
            d_model=d_model,
            heads=heads,
            head_dim=head_dim,
            vocab_size=_vocab_size(keys),
            context_length=context,
            norm_epsilon=keys.number("attention.layer_norm_rms_epsilon"),
            rotaries=rotaries,
            tied="output.weight" not in file.tensors,
            biases=family.biases | _biases(file),
            query_scale=_query_scale(keys, layers, d_model // heads, head_dim),
            embedding_scale=math.sqrt(d_model)
            if family.scaled_embedding
            else keys.factor("embedding_scale"),
            residual_scale=keys.factor("residual_scale"),
            logit_scale=keys.factor("logit_scale"),
            caps=(
                keys.cap("attn_logit_softcapping", family.caps[0]),
                keys.cap("final_logit_softcapping", family.caps[1]),
            ),
        )
        keys.refuse_unknown()
        return config

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.shapes)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values in the layer that has most."""
        return max(shape.kv_heads for shape in self.shapes)

    @property
    def d_ff(self) -> int:
        """Width of the widest feed-forward layer."""
        return max(shape.d_ff for shape in self.shapes)

    @property
    def windows(self) -> tuple[int, ...]:
        """Positions that each layer's queries see; 0: all."""
        return tuple(shape.window for shape in self.shapes)

    @property
    def attention_width(self) -> int:
        """Features of the queries, and of what attention gives."""
        return self.heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one position in all layers, in bytes of float32.

        Every layer has room for as many heads as the one that has most.
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * 4

    @property
    def matrix_weights(self) -> int:
        """Weights that every token is multiplied with, the head's included."""
        matrices = (
            features * inputs
            for shape in self.shapes
            for features, inputs in self.matrices(shape).values()
        )
        return sum(matrices) + self.vocab_size * self.d_model

    @property
    def plain(self) -> bool:
        """Whether layers are a Llama's, but for biases of queries, keys and values."""
        usual = LayerShape(self.kv_heads, self.d_ff, 0, 0)
        return (
            set(self.shapes) == {usual}
            and self.family.norms == ("attn_norm", "ffn_norm")
            and not (self.family.fused or self.family.gelu or any(self.caps))
            and self.biases <= {"attn_q", "attn_k", "attn_v"}
            and self.rotaries[0].width == self.head_dim
            and self.embedding_scale == self.residual_scale == self.logit_scale == 1.0
        )

    @property
    def vector_weights(self) -> int:
        """Gains of the norms, and biases."""
        shapes = self.tensor_shapes().values()
        return sum(shape[0] for shape in shapes if len(shape) == 1)

    def matrices(self, shape: LayerShape) -> dict[str, tuple[int, int]]:
        """A layer's matrices, features and inputs, as the file has them."""
        D, Q, KV, F = self.d_model, self.attention_width, shape.kv_heads * self.head_dim, shape.d_ff
        if self.family.fused:
            before = {"attn_qkv": (Q + 2 * KV, D), "ffn_up": (2 * F, D)}
        else:
            before = {"attn_q": (Q, D), "attn_k": (KV, D), "attn_v": (KV, D)}
            before |= {"ffn_gate": (F, D), "ffn_up": (F, D)}
        return before | {"attn_output": (D, Q), "ffn_down": (D, F)}

    def layer_shapes(self, shape: LayerShape) -> dict[str, tuple[int, ...]]:
        """The tensors of a layer."""
        D, E, wide = self.d_model, self.head_dim, self.family.wide_norms
        of_heads = {"attn_q_norm": self.heads, "attn_k_norm": shape.kv_heads}
        found: dict[str, tuple[int, ...]] = {}
        for name, sides in self.matrices(shape).items():
            found[f"{name}.weight"] = sides
            if name in self.biases:
                found[f"{name}.bias"] = sides[:1]
        for name in self.family.norms:
            heads = of_heads.get(name)
            found[f"{name}.weight"] = ((D if heads is None else E * heads if wide else E),)
        return found

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that a file of this model must have; it may have factors besides."""
        shapes = {
            f"blk.{i}.{name}": sides
            for i, shape in enumerate(self.shapes)
            for name, sides in self.layer_shapes(shape).items()
        }
        D, V = self.d_model, self.vocab_size
        shapes |= {"token_embd.weight": (V, D), "output_norm.weight": (D,)}
        return shapes if self.tied else shapes | {"output.weight": (V, D)}


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


def _biases(file: ModelFile) -> frozenset[str]:
    """The matrices of a layer that have a bias anywhere in a file."""
    biases = (name.split(".") for name in file.tensors if name.endswith(".bias"))
    return frozenset(parts[2] for parts in biases if parts[0] == "blk" and len(parts) == 4)


def _turns(family: Family, layer: int, *, local: bool) -> int | None:
    """Which of a model's rotations a layer takes."""
    if family.bare_period and layer % family.bare_period == family.bare_period - 1:
        return None
    return int(local)


def _windows(keys: Keys, layers: int, context: int) -> list[int]:
    """Positions that each layer sees; 0 where that is the whole context."""
    family, key = keys.family, "attention.sliding_window"
    said = keys.get(key, family.window)
    if key not in family.more or all_in(said, (0,)):
        return [0] * layers
    window = keys.count(key, family.window, layers=layers)
    key += "_pattern"
    pattern = keys.get(key, family.period)
    if isinstance(pattern, np.ndarray):
        if len(pattern) != layers or not all_in(pattern, (0, 1)):
            keys.refuse(key, described(pattern), f"{layers} times true or false")
        slides = pattern.astype(bool).tolist()
    else:
        period = keys.count(key, family.period) if pattern else 0
        slides = [period == 0 or i % period < period - 1 for i in range(layers)]
    return [window if slide and window < context else 0 for slide in slides]


def _query_scale(keys: Keys, layers: int, width: int, head_dim: int) -> float:
    """By what queries are multiplied before they meet keys."""
    usual = width if layers in keys.family.scaled_by_width else head_dim
    scale = 1.0 / math.sqrt(max(usual, 1))
    return keys.number("attention.scale", 0.0, zero=scale)


def _rotaries(keys: Keys, width: int, context: int) -> Iterator[Rotary]:
    """The rotation of a model, and that of its layers with a window if it is another.

    Without a type, a factor is a linear one.
    """
    kind = keys.get("rope.scaling.type", "linear")
    if LONG in keys.file.tensors and kind == "linear":  # files of Phi-3 have them and no type
        kind = "longrope"
    if not isinstance(kind, str) or kind not in SCALINGS:
        *names, last = map(repr, SCALINGS)
        keys.refuse("rope.scaling.type", described(kind), f"{', '.join(names)} or {last}")
    factors = {
        keys.number(key, 0.0, zero=1.0)
        for key in ("rope.scaling.factor", "rope.scale_linear")
        if f"{keys.architecture}.{key}" in keys.file.metadata
    }
    if len(factors) > 1:
        keys.refuse("rope.scale_linear", "differs from its `rope.scaling.factor`", "one of them")
    factor = factors.pop() if factors else 1.0
    if kind == "dynamic" and (width < 4 or factor < 1.0):
        keys.refuse("rope.scaling.type", "is 'dynamic'", "a factor from 1 on, and 4 features")
    ours = (-1, 1) if kind == "yarn" else (-1, 0)
    share = keys.get("rope.scaling.yarn_ext_factor", -1)
    if not all_in(share, ours):
        keys.refuse("rope.scaling.yarn_ext_factor", described(share), f"{ours[0]} or {ours[1]}")
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        magnitude *= yarn_magnitude(factor)
    main = Rotary(
        width=width,
        base=keys.number("rope.freq_base", 10_000.0),
        scaling=kind,
        factor=factor,
        original=keys.count("rope.scaling.original_context_length", context),
        magnitude=magnitude,
        betas=(
            keys.number("rope.scaling.yarn_beta_fast", 32.0),
            keys.number("rope.scaling.yarn_beta_slow", 1.0),
        ),
    )
    yield main
    if keys.family.local_base:
        yield Rotary(width, keys.number("rope.freq_base_swa", keys.family.local_base))


def check_tensors(file: ModelFile, config: Config) -> None:
    """Raise UserError unless the file has exactly the tensors of `config`, in shape too.

    From now on `file` knows nothing of rows of the embedding and of the head that no token
    has, which are padding, and has those of queries and keys so that neighbours are pairs.
    """
    expected = config.tensor_shapes()
    scaled = config.rotaries[0].scaling == "longrope"
    for name in (SHORT, LONG) if scaled else {ROPE_FACTORS} & file.tensors.keys():
        expected[name] = (config.rotaries[0].width // 2,)
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
    if config.family.halves:
        _pair_neighbours(file, config)


def _pair_neighbours(file: ModelFile, config: Config) -> None:
    """Have rows of queries and keys, and what goes with them, read in the order of pairs."""
    for i, shape in enumerate(config.shapes):
        heads = {"attn_q": config.heads, "attn_k": shape.kv_heads}
        heads["attn_qkv"] = sum(heads.values())
        for part, count in heads.items():
            for name in (f"{part}.weight", f"{part}.bias", f"{part}_norm.weight"):
                tensor = file.tensors.get(f"blk.{i}.{name}")
                if tensor is None:
                    continue
                if len(tensor.shape) == 1 and tensor.layout.block > 1:
                    raise UserError(
                        f"The model file '{file.path}' has the tensor {shown(tensor.name)} in "
                        f"{tensor.layout.name}; expected F32, F16 or BF16."
                    )
                pairs = Pairs(count, config.head_dim, config.rotaries[0].width)
                file.tensors[tensor.name] = replace(tensor, pairs=pairs)
