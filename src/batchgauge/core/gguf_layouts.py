"""How GGML's tensor types are stored, and bytes of them as float32.

The six types below are dequantised here, a cache's worth at a time, into an array of the
caller's; every other one by the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchgauge.errors import UserError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_half = np.dtype("<f2")
_q4_0 = np.dtype([("scale", _half), ("nibbles", "u1", 16)])
_q4_1 = np.dtype([("scale", _half), ("least", _half), ("nibbles", "u1", 16)])
_q8_0 = np.dtype([("scale", _half), ("values", "i1", 32)])


def _f32(data: Bytes, out: Floats) -> None:
    out[:] = data.view("<f4")


def _f16(data: Bytes, out: Floats) -> None:
    out[:] = data.view(_half)


def _bf16(data: Bytes, out: Floats) -> None:
    np.left_shift(data.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _q4_0_blocks(data: Bytes, out: Floats) -> None:
    blocks = data.view(_q4_0)  # [N]
    rows = out.reshape(-1, 2, 16)  # the low nibbles of a block come before the high ones
    rows[:, 0] = blocks["nibbles"] & 15
    rows[:, 1] = blocks["nibbles"] >> 4
    rows -= 8
    rows *= blocks["scale"].astype(np.float32)[:, None, None]


def _q4_1_blocks(data: Bytes, out: Floats) -> None:
    blocks = data.view(_q4_1)  # [N]
    rows = out.reshape(-1, 2, 16)
    rows[:, 0] = blocks["nibbles"] & 15
    rows[:, 1] = blocks["nibbles"] >> 4
    rows *= blocks["scale"].astype(np.float32)[:, None, None]
    rows += blocks["least"].astype(np.float32)[:, None, None]


def _q8_0_blocks(data: Bytes, out: Floats) -> None:
    blocks = data.view(_q8_0)  # [N]
    np.multiply(
        blocks["values"],
        blocks["scale"].astype(np.float32)[:, None],
        out=out.reshape(-1, 32),
        dtype=np.float32,
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """How one tensor type is stored: `block` elements in `block_bytes` bytes."""

    name: str
    block: int
    block_bytes: int
    dequantise: Callable[[Bytes, Floats], None]


OWN_LAYOUTS = {
    0: Layout("F32", 1, 4, _f32),
    1: Layout("F16", 1, 2, _f16),
    2: Layout("Q4_0", 32, 18, _q4_0_blocks),
    3: Layout("Q4_1", 32, 20, _q4_1_blocks),
    8: Layout("Q8_0", 32, 34, _q8_0_blocks),
    30: Layout("BF16", 1, 2, _bf16),
}


def layout_of(type_id: int) -> Layout:
    """The layout of a GGML tensor type. Raises ValueError for an unknown one."""
    if type_id in OWN_LAYOUTS:
        return OWN_LAYOUTS[type_id]
    from gguf import quants
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(type_id)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ValueError(f"the tensor type {type_id} is unknown") from None

    def dequantise(data: Bytes, out: Floats) -> None:
        try:
            out[:] = quants.dequantize(data.reshape(1, -1), kind).reshape(-1)
        except NotImplementedError:
            raise UserError(
                f"The `gguf` package cannot dequantise {kind.name}; expected another quantisation."
            ) from None

    return Layout(kind.name, block, block_bytes, dequantise)
