"""A model's layers by compiled code, where all that they need is there: see `layers_kernel`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import numpy as np

from batchgauge.core.config import Config
from batchgauge.core.kernels.attention import pieces_of, spans_of
from batchgauge.core.kernels.products import together
from batchgauge.core.kv_cache import Numbers
from batchgauge.core.ops import Floats, Rotations
from batchgauge.core.weights import Biased, Weights


class CompiledLayers:
    """The layers and the head of a model."""

    def __init__(self, kernel: ModuleType, config: Config, weights: Weights) -> None:
        self._kernel, self._weights = kernel, weights
        found = [[matrix.pieces() for matrix in layer.matrices] for layer in weights.layers]
        most = max(len(pieces) for layer in found for pieces in layer)
        self._matrices = np.zeros((len(found), 4, most, kernel.PIECE), np.int64)
        for number, layer in enumerate(found):
            for place, pieces in enumerate(layer):
                self._matrices[number, place, : len(pieces)] = pieces
        self._head = np.array(weights.head.pieces(), np.int64)
        self._gains = np.array(
            [(m.gains["attn_norm"], m.gains["ffn_norm"]) for m in weights.layers], np.float32
        )
        biases = [m.qkv.bias for m in weights.layers if isinstance(m.qkv, Biased)]
        self._biases = np.array(biases or np.empty((len(found), 0)), np.float32)
        self._scales = np.array([config.norm_epsilon, config.query_scale], np.float32)
        self._shape = np.array([config.heads, config.head_dim, config.kv_heads, config.d_ff])

    @classmethod
    def of(cls, config: Config, weights: Weights) -> CompiledLayers | None:
        """Those of a model; None where something has no compiled form, or nothing has."""
        try:
            kernel = import_module("batchgauge.core.kernels.layers_kernel")
        except ImportError:  # no Numba, or nothing that multiplies and adds at once
            return None
        matrices = [weights.head, *(m for layer in weights.layers for m in layer.matrices)]
        if config.head_dim % kernel.HEAD_WIDTH or config.d_ff % kernel.INNER_WIDTH:
            return None
        if not config.plain or not all(m.pieces() for m in matrices):
            return None
        return cls(kernel, config, weights)

    def run(
        self, x: Floats, rotations: Rotations, places: Numbers, counts: Sequence[int], steps: int
    ) -> None:
        """Take positions x [T, D] through all layers, in place, and store their keys and values.

        `places` are those of `KVCache.places`, `counts` how many positions each row gets, end
        to end; the first `steps` rows make a decode step.
        """
        k = self._kernel
        spans, pieces = spans_of(places, counts), pieces_of(counts, k.SPAN, steps)
        with together() as team:
            k.run(
                x, rotations.view(np.float32), spans, pieces, self._matrices, self._gains,
                self._biases, self._scales, self._shape, k.WORKS, team,
            )  # fmt: skip

    def logits(self, x: Floats) -> Floats:
        """Scores over the vocabulary from the last layer's output x [T, D]: [T, V]."""
        k, head = self._kernel, self._weights.head
        out = np.empty((len(x), k.columns(self._head)), np.float32)
        with together() as team:
            k.head(x, self._weights.final_gain, self._head, self._scales, out, k.WORKS, team)
        return out[:, : head.features]
