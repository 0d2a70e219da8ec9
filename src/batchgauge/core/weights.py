"""Weights in memory: matrices in blocks of output features.

`mode` says how they are kept: "float32", "file" (as the model file has them) or "bfloat16";
the last two are the business of `quantised`. In float32 a matrix [N, K] (outputs, inputs)
is kept as [N / W, K, W], blocks of W output features with the features innermost: as
`products` reads them, from memory in one go, without packing them anew for every product.

All blocks lie in one allocation, which the system can back with large pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgauge.core.config import LONG, ROPE_FACTORS, SHORT, Config, LayerShape, check_tensors
from batchgauge.core.kernels import products
from batchgauge.core.kernels.products import Product, product
from batchgauge.core.model_file import ModelFile, shown
from batchgauge.core.ops import Floats, aligned
from batchgauge.core.quantised import Matrix, Piece, Room, read_matrix
from batchgauge.core.rotary import Turns
from batchgauge.errors import UserError
from batchgauge.machine.limits import usable_cores

MODES = ("float32", "file", "bfloat16")
LOADERS = 8  # threads that bring matrices into their blocks, at most
BLOCK = 64  # output features in a block, W: a multiple of what vector registers hold


class Biased:
    """A matrix whose products have a bias [N] added."""

    def __init__(self, matrix: Matrix, bias: Floats) -> None:
        self.matrix, self.bias = matrix, bias
        self.features = matrix.features
        self.nbytes = matrix.nbytes + bias.nbytes

    def __call__(self, x: Floats) -> Floats:
        """Product of x [T, K] and the transposed matrix, and the bias: [T, N]."""
        y = self.matrix(x)
        y += self.bias
        return y

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> Floats:
        """Rows of the matrix: [len(indices), K]."""
        return self.matrix.rows(indices)

    def pieces(self) -> list[Piece]:
        """Those of the matrix."""
        return self.matrix.pieces()


class Blocked:
    """A matrix [N, K] in blocks: `blocks` [ceil(N / W), K, W], the last one filled with zeros."""

    def __init__(self, blocks: Floats, features: int, by: Product = product) -> None:
        self.blocks = blocks
        self.features = features
        self.nbytes = blocks.nbytes
        self._product = by

    def __call__(self, x: Floats) -> Floats:
        """Product of x [T, K] and the transposed matrix: [T, N]."""
        return self._product(x, self.blocks)[:, : self.features]

    def pieces(self) -> list[Piece]:
        """What compiled code must know of it."""
        kernel, blocks = products.compiled(), self.blocks
        if kernel is None or blocks.shape[1] % 2:
            return []
        return [(kernel.multiply, blocks.ctypes.data, blocks.strides[0], len(blocks), 0)]

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> Floats:
        """Rows of the matrix, as an embedding looks them up: [len(indices), K]."""
        W = self.blocks.shape[2]
        return self.blocks[indices // W, :, indices % W]


def blocked_size(features: int, inputs: int) -> int:
    """Elements that a matrix takes in blocks."""
    return -(-features // BLOCK) * BLOCK * inputs


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's matrices, queries, keys and values fused, gate and up fused, and its gains.

    gains  [D], of queries and keys [E] or as wide as all heads, under the file's names
    """

    shape: LayerShape
    gains: Mapping[str, Floats]
    qkv: Matrix
    output: Matrix
    gate_up: Matrix
    down: Matrix

    @property
    def matrices(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """All of them."""
        return self.qkv, self.output, self.gate_up, self.down


class Weights:
    """All weights of a model. `head` is the embedding too when that is tied to it.

    final_gain   [D]      gain of the last norm
    turns                 rotary positions, each way that layers have
    embedding    [V, D]   None when it is tied to the head
    """

    def __init__(self, file: ModelFile, config: Config, mode: str = "float32") -> None:
        if mode not in MODES:
            raise UserError(f"weights is {mode!r}; expected one of {', '.join(MODES)}.")
        check_tensors(file, config)
        self.mode = mode
        self.turns = read_turns(file, config)
        gains = [  # before the matrices are built, lest one be wrong
            {name: read_vector(file, f"blk.{i}.{name}.weight") for name in config.family.norms}
            for i in range(config.layers)
        ]
        biases = [
            {name: read_vector(file, f"blk.{i}.{name}.bias") for name in config.biases}
            for i in range(config.layers)
        ]
        self.final_gain = read_vector(file, "output_norm.weight")
        wanted = matrix_names(config, mode)
        sizes = [blocked_size(*_shape(file, names)) for names in wanted]
        arena = aligned(sum(sizes) if mode == "float32" else 0)
        places = [arena[a:b] for a, b in pairwise(np.cumsum([0, *sizes]))]
        room = Room()

        def in_float32(names: Sequence[str]) -> Blocked:
            features, inputs = _shape(file, names)
            return fuse(file, aligned(blocked_size(features, inputs)), names)

        def matrix(names: Sequence[str], place: Floats) -> Matrix:
            if mode == "float32":
                return fuse(file, place, names)
            return read_matrix(
                file, names, bfloat16=mode == "bfloat16", check=checked, whole=in_float32, room=room
            )

        def part(layer: int, names: Sequence[str], read: Matrix) -> Matrix:
            if not config.biases & set(names):
                return read
            sides = config.matrices(config.shapes[layer])
            none = {name: np.zeros(sides[name][0], np.float32) for name in names}
            return Biased(read, np.concatenate([(none | biases[layer])[name] for name in names]))

        with ThreadPoolExecutor(min(usable_cores(), LOADERS)) as pool:
            made = iter([*pool.map(matrix, wanted, places)])
        self.head = next(made)
        self.embedding: Floats | Matrix | None = (
            next(made) if ("token_embd",) in wanted[1:] else None
        )
        self.layers = [
            Layer(shape, gains[i], *(part(i, names, next(made)) for names in _parts(config)))
            for i, shape in enumerate(config.shapes)
        ]
        if not config.tied and mode == "float32":
            self.embedding = checked(file.read("token_embd.weight"), "token_embd")
        matrices = [self.head, *(matrix for layer in self.layers for matrix in layer.matrices)]
        # What products read for a weight: at least the file's bits, with what fills up blocks.
        self.bytes_each = sum(m.nbytes for m in matrices) / config.matrix_weights
        vectors = chain(*(each.values() for each in gains), (t.frequencies for t in self.turns))
        held = [*matrices, *vectors, self.final_gain, self.embedding]
        self.nbytes = sum(part.nbytes for part in held if part is not None)

    def embed(self, ids: npt.NDArray[np.integer[Any]]) -> Floats:
        """Embeddings of ids: [T, D]."""
        table = self.head if self.embedding is None else self.embedding
        return table[ids] if isinstance(table, np.ndarray) else table.rows(ids)


def _shape(file: ModelFile, names: Sequence[str]) -> tuple[int, int]:
    """Features and inputs of matrices one above the other."""
    shapes = [file.tensors[f"{name}.weight"].shape for name in names]
    return sum(shape[0] for shape in shapes), shapes[0][1]


def fuse(file: ModelFile, place: Floats, names: Sequence[str]) -> Blocked:
    """Matrices one above the other, as blocks in `place`."""
    _, K = _shape(file, names)
    blocks = place.reshape(-1, K, BLOCK)
    row = 0
    for name in names:
        tensor = file.tensors[f"{name}.weight"]
        buffer = np.empty((BLOCK, K), np.float32)
        flat = buffer.reshape(-1)
        for part, data in file.chunks(tensor, BLOCK * K):
            rows = (part.stop - part.start) // K
            with np.errstate(over="ignore", invalid="ignore"):  # `checked` sees what comes of it
                tensor.layout.dequantise(data, flat[: rows * K])
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


def read_vector(file: ModelFile, name: str) -> Floats:
    """A vector in full. Raises UserError where a value is not finite."""
    return checked(file.read(name), name.removesuffix(".weight"))


def read_turns(file: ModelFile, config: Config) -> list[Turns]:
    """A model's rotations, the first with the file's own factors if it has any.

    Raises UserError unless all are finite.
    """
    first, *others = config.rotaries
    names = (SHORT, LONG) if first.scaling == "longrope" else (ROPE_FACTORS,)
    factors = [file.read(name) for name in names if name in file.tensors]
    own = Turns(first, *factors) if factors else Turns(first, None)
    turns = [own, *(Turns(rotary, None) for rotary in others)]
    if not all(one.finite for one in turns) or not all((one > 0.0).all() for one in factors):
        raise UserError(
            f"The model '{file.path}' has rotary positions that are not finite; expected a "
            "frequency base, scaling and factors above 0."
        )
    return turns


def matrix_names(config: Config, mode: str) -> list[tuple[str, ...]]:
    """The file's names of what each matrix in memory is made of, one above the other.

    The largest first, that no thread is left alone with it at the end.
    """
    first = ["token_embd"] if config.tied else ["output"]
    if not config.tied and mode != "float32":
        first.append("token_embd")
    return [(name,) for name in first] + [
        tuple(f"blk.{i}.{name}" for name in names)
        for i in range(config.layers)
        for names in _parts(config)
    ]


def _parts(config: Config) -> tuple[tuple[str, ...], ...]:
    """The file's names of a layer's four matrices."""
    if config.family.fused:
        return ("attn_qkv",), ("attn_output",), ("ffn_up",), ("ffn_down",)
    return (
        ("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",),
    )  # fmt: skip


def place_rows(blocks: Floats, row: int, rows: Floats) -> None:
    """Write rows of the matrix, from `row` on, where they belong."""
    done = 0
    while done < len(rows):
        block, at = divmod(row + done, BLOCK)
        count = min(BLOCK - at, len(rows) - done)
        blocks[block, :, at : at + count] = rows[done : done + count].T
        done += count
