"""Weights in memory: matrices in blocks of output features.

A matrix [N, K] (outputs, inputs) is kept as [N / W, K, W], blocks of W output features
with the features innermost: as `products` reads them, from memory in one go, without
packing them anew for every product.

All blocks lie in one allocation, which the system can back with large pages. Gains of
norms are folded into the matrix that comes next, 1 / sqrt(head width) into the queries'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgauge.core.config import ROPE_FACTORS, Config, check_tensors
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.core.gguf_head import shown
from batchgauge.core.kernels.products import Product, product
from batchgauge.core.ops import Floats, aligned, rope_frequencies
from batchgauge.errors import UserError

BLOCK = 64  # output features in a block, W: a multiple of what vector registers hold


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
        self.frequencies = read_frequencies(file, config)
        gains = [  # before the matrices are built, lest one be wrong
            [
                checked(file.read(f"blk.{i}.{norm}.weight"), f"blk.{i}.{norm}")
                for norm in ("attn_norm", "ffn_norm")
            ]
            for i in range(config.layers)
        ]
        self.final_gain = checked(file.read("output_norm.weight"), "output_norm")
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

        self.layers = []
        for i, (before, after) in enumerate(gains):
            at = f"blk.{i}."
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
        self.embedding: Floats | None = None
        head: tuple[str, Floats | None] = ("token_embd", None)
        if not config.tied:
            self.embedding = checked(file.read("token_embd.weight"), "token_embd")
            head = ("output", self.final_gain)
            self.final_gain = np.ones_like(self.final_gain)
        self.head = _fuse(file, next(places), [head])
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
            with np.errstate(over="ignore", invalid="ignore"):  # `checked` sees what comes of it
                tensor.layout.dequantise(data, flat[: rows * K])
                if gain is not None:
                    buffer[:rows] *= gain
            place_rows(blocks, row, checked(buffer[:rows], name))
            row += rows
    if left := row % BLOCK:
        blocks[-1, :, left:] = 0.0
    return Blocked(blocks, row)


def checked(values: Floats, name: str) -> Floats:
    """The values of a tensor. Raises UserError where one is not finite.

    The sum of squares is NaN or infinite then; it costs a tenth of looking at each of them.
    """
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        squares = float(flat @ flat)
    if not math.isfinite(squares) and not np.isfinite(flat).all():
        raise UserError(
            f"The tensor {shown(name)} has a value that is not finite; expected finite weights."
        )
    return values


def read_frequencies(file: GGUFFile, config: Config) -> Floats:
    """Rotary positions, radians per position [E / 2], with the file's own factors if it has any.

    Raises UserError unless all are finite.
    """
    factors = file.read(ROPE_FACTORS) if ROPE_FACTORS in file.tensors else None
    with np.errstate(all="ignore"):
        frequencies = rope_frequencies(
            config.head_dim, config.rope_base, config.rope_scale, factors
        )
    if not np.isfinite(frequencies).all() or (factors is not None and not (factors > 0.0).all()):
        raise UserError(
            f"The model '{file.path}' has rotary positions that are not finite; expected a "
            "frequency base, scaling and factors above 0."
        )
    return frequencies


def place_rows(blocks: Floats, row: int, rows: Floats) -> None:
    """Write rows of the matrix, from `row` on, where they belong."""
    done = 0
    while done < len(rows):
        block, at = divmod(row + done, BLOCK)
        count = min(BLOCK - at, len(rows) - done)
        blocks[block, :, at : at + count] = rows[done : done + count].T
        done += count
