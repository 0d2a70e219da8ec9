"""Weights in memory: the model's configuration, and matrices in blocks of output features.

A matrix [N, K] (outputs, inputs) is kept as [N / W, K, W], blocks of W output features
with the features innermost: as `products` reads them, from memory in one go, without
packing them anew for every product.

All blocks lie in one allocation, which the system can back with large pages. Gains of
norms are folded into the matrix that comes next, 1 / sqrt(head width) into the queries'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgauge.core.gguf_file import GGUFFile
from batchgauge.core.kernels.products import Product, product
from batchgauge.core.ops import Floats, aligned, rope_frequencies
from batchgauge.errors import UserError

BLOCK = 64  # output features in a block, W: a multiple of what vector registers hold


@dataclass(frozen=True, slots=True)
class Config:
    """The numbers that define a Llama."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    rope_base: float
    rope_scale: float
    tied: bool

    @classmethod
    def from_file(cls, file: GGUFFile) -> Config:
        """Read the `llama.*` keys. Raises UserError for another architecture or a missing key."""
        metadata = file.metadata
        if (name := metadata.get("general.architecture")) != "llama":
            raise UserError(
                f"The model '{file.path}' has the architecture {name!r}; expected 'llama'."
            )

        def need(key: str) -> Any:
            if (value := metadata.get(f"llama.{key}")) is None:
                raise UserError(f"The model '{file.path}' lacks `llama.{key}`; expected a Llama.")
            return value

        d_model, heads = int(need("embedding_length")), int(need("attention.head_count"))
        kv_heads = int(metadata.get("llama.attention.head_count_kv", heads))
        head_dim = int(metadata.get("llama.attention.key_length", d_model // max(heads, 1)))
        if (
            min(d_model, heads, kv_heads) < 1
            or heads % kv_heads
            or head_dim % 2
            or metadata.get("llama.rope.dimension_count", head_dim) != head_dim
            or metadata.get("llama.attention.value_length", head_dim) != head_dim
        ):
            raise UserError(f"The model '{file.path}' has head sizes that do not fit together.")
        if "token_embd.weight" not in file.tensors:
            raise UserError(f"The model file '{file.path}' has no tensor 'token_embd.weight'.")
        return cls(
            layers=int(need("block_count")),
            d_model=d_model,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            d_ff=int(need("feed_forward_length")),
            vocab_size=file.tensors["token_embd.weight"].shape[0],
            context_length=int(need("context_length")),
            norm_epsilon=float(need("attention.layer_norm_rms_epsilon")),
            rope_base=float(metadata.get("llama.rope.freq_base", 10_000.0)),
            rope_scale=_rope_scale(metadata),
            tied="output.weight" not in file.tensors,
        )

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
        """The tensors that a file of this model must have, and must not have more than."""
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


def _rope_scale(metadata: Mapping[str, Any]) -> float:
    kind = metadata.get("llama.rope.scaling.type", "none")
    if kind not in {"none", "linear"}:
        raise UserError(f"The position scaling {kind!r} is not supported; expected 'linear'.")
    return float(metadata.get("llama.rope.scaling.factor", 1.0)) if kind == "linear" else 1.0


def check_tensors(file: GGUFFile, config: Config) -> None:
    """Raise UserError unless the file has exactly the tensors of `config`, in shape too."""
    expected = config.tensor_shapes()
    present = {name: t.shape for name, t in file.tensors.items() if name != "rope_freqs.weight"}
    for name in sorted(expected.keys() | present.keys()):
        if expected.get(name) != present.get(name):
            raise UserError(
                f"The model file '{file.path}' has the tensor '{name}' in shape "
                f"{present.get(name)}; expected {expected.get(name)}."
            )


class Blocked:
    """A matrix [N, K] in blocks: `blocks` [ceil(N / W), K, W], the last one filled with zeros."""

    def __init__(self, blocks: Floats, features: int, by: Product = product) -> None:
        self.blocks = blocks
        self.features = features
        self._product = by

    def __call__(self, x: Floats) -> Floats:
        """Product of x [T, K] and the transposed matrix: [T, N]."""
        return self._product(x, self.blocks)[:, : self.features]

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> Floats:
        """Rows of the matrix, as an embedding looks them up: [len(indices), K]."""
        W = self.blocks.shape[2]
        return self.blocks[indices // W, :, indices % W]


def blocked_size(features: int, inputs: int) -> int:
    """Elements that a matrix takes in blocks."""
    return -(-features // BLOCK) * BLOCK * inputs


@dataclass(frozen=True, slots=True)
class Layer:
    """The four matrices of a layer: queries, keys and values fused, gate and up fused."""

    qkv: Blocked
    output: Blocked
    gate_up: Blocked
    down: Blocked


class Weights:
    """All weights of a model. `head` is the embedding too when that is tied to it.

    final_gain   [D]      gain of the last norm (folded into an untied head, ones then)
    frequencies  [E / 2]  rotary positions, radians per position
    """

    def __init__(self, file: GGUFFile, config: Config) -> None:
        check_tensors(file, config)
        D, Q, F = config.d_model, config.attention_width, config.d_ff
        sizes = [
            blocked_size(config.qkv_width, D),
            blocked_size(D, Q),
            blocked_size(2 * F, D),
            blocked_size(D, F),
        ] * config.layers + [blocked_size(config.vocab_size, D)]
        arena = aligned(sum(sizes))
        ends = np.cumsum([0, *sizes])
        places = iter(arena[a:b] for a, b in pairwise(ends))

        def gain(name: str) -> Floats:
            return file.read(f"{name}.weight")

        self.layers = []
        for i in range(config.layers):
            at = f"blk.{i}."
            before, after = gain(at + "attn_norm"), gain(at + "ffn_norm")
            query_gain = before / np.float32(np.sqrt(config.head_dim))
            qkv = [(at + "attn_q", query_gain), (at + "attn_k", before), (at + "attn_v", before)]
            self.layers.append(
                Layer(
                    qkv=_fuse(file, next(places), qkv),
                    output=_fuse(file, next(places), [(at + "attn_output", None)]),
                    gate_up=_fuse(
                        file, next(places), [(at + "ffn_gate", after), (at + "ffn_up", after)]
                    ),
                    down=_fuse(file, next(places), [(at + "ffn_down", None)]),
                )
            )
        self.final_gain = gain("output_norm")
        self.embedding: Floats | None = None
        head: tuple[str, Floats | None] = ("token_embd", None)
        if not config.tied:
            self.embedding = file.read("token_embd.weight")
            head = ("output", self.final_gain)
            self.final_gain = np.ones_like(self.final_gain)
        self.head = _fuse(file, next(places), [head])
        factors = (
            file.read("rope_freqs.weight").reshape(-1)
            if "rope_freqs.weight" in file.tensors
            else None
        )
        self.frequencies = rope_frequencies(
            config.head_dim, config.rope_base, config.rope_scale, factors
        )
        held = [arena, self.final_gain, self.frequencies, self.embedding]
        self.nbytes = sum(part.nbytes for part in held if part is not None)


def _fuse(file: GGUFFile, place: Floats, parts: Sequence[tuple[str, Floats | None]]) -> Blocked:
    """Matrices one above the other, each with its columns scaled, as blocks in `place`."""
    K = file.tensors[f"{parts[0][0]}.weight"].shape[1]
    blocks = place.reshape(-1, K, BLOCK)
    row = 0
    for name, gain in parts:
        tensor = file.tensors[f"{name}.weight"]
        buffer = np.empty((BLOCK, K), np.float32)
        flat = buffer.reshape(-1)
        for part, data in file.chunks(tensor, BLOCK * K):
            rows = (part.stop - part.start) // K
            tensor.layout.dequantise(data, flat[: rows * K])
            if gain is not None:
                buffer[:rows] *= gain
            place_rows(blocks, row, buffer[:rows])
            row += rows
    if left := row % BLOCK:
        blocks[-1, :, left:] = 0.0
    return Blocked(blocks, row)


def place_rows(blocks: Floats, row: int, rows: Floats) -> None:
    """Write rows of the matrix, from `row` on, where they belong."""
    done = 0
    while done < len(rows):
        block, at = divmod(row + done, BLOCK)
        count = min(BLOCK - at, len(rows) - done)
        blocks[block, :, at : at + count] = rows[done : done + count].T
        done += count
