"""How matrices are kept that stay as a file has them: codes, scales and least values by type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgauge.core.gguf_layouts import Bytes
from batchgauge.core.ops import Floats

BLOCK, GROUP = 64, 32  # output features of a block, inputs of a group
KERNELS = "batchgauge.core.kernels.quantised_kernel"
Parts = tuple[npt.NDArray[Any], npt.NDArray[Any] | None, npt.NDArray[Any] | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """How weights are kept: weight = (code - zero) * scale + least.

    unpack  gives codes of a file's bytes, [n, 32] or, below eight bits, words [n, bits], and
            scales and least values [n, parts] where there are any
    bits    4: nibbles, a 32-bit lane a feature has eight; 5: a lane more has their fifth bits,
            see `place_of_fifth`; 8: bytes; 16: halves of a float32
    exact   16 bits are a float16 rather than the upper half of a float32
    zero    the code of 4 or 5 bits that means zero
    size    inputs that share a scale; 0: the codes are the weights
    wide    scales, and what is added, are float32 rather than float16
    least   something is added
    """

    unpack: Callable[[Bytes], Parts]
    bits: int
    exact: bool = False
    zero: int = 0
    size: int = GROUP
    wide: bool = False
    least: bool = False

    @property
    def code_bytes(self) -> int:
        """Bytes of a group's codes."""
        return BLOCK * GROUP * self.bits // 8

    @property
    def group_bytes(self) -> int:
        """Bytes of a group."""
        parts = GROUP // self.size * (1 + self.least) if self.size else 0
        return self.code_bytes + BLOCK * parts * (4 if self.wide else 2)

    def kernel(self) -> int:
        """The address of the compiled product."""
        made: int = import_module(KERNELS).kernel(self)
        return made


def _nibbles(data: npt.NDArray[Any]) -> Bytes:
    """Codes [n, 2 m] of bytes [n, m], m a multiple of 8: low halves, then high ones."""
    eight, low = np.ascontiguousarray(data).view("<u8"), np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.concatenate((eight & low, eight >> np.uint64(4) & low), axis=-1).view(np.uint8)


def place_of_fifth(i: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Where input i of a group has its fifth bit in their word.

    Moved right by the number of the word of its nibble, the bit stands above that nibble (the
    last one's, turned around, below the first).
    """
    return 4 * ((i + 1) % 8) + i // 8


def _words(codes: npt.NDArray[Any], *fifth: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Nibbles [n, 32], eight of them in 32 bits, and a word of fifth bits [n, 4]: [n, 4 or 5].

    The nibbles are used up.
    """
    pairs = np.ascontiguousarray(codes).view("<u8")
    moved = np.empty_like(pairs)
    for shift, mask in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0xFFFFFFFF)):
        np.right_shift(pairs, np.uint64(shift), out=moved)
        pairs |= moved
        pairs &= np.uint64(mask)
    words = np.empty((len(codes), 4 + len(fifth)), np.uint32)
    words[:, :4] = pairs
    for place, each in enumerate(fifth, 4):
        bits: npt.NDArray[Any] = each.astype(np.uint32)  # eight in a row, input by input
        bits = (bits << 1 | bits >> 7) & 0xFF
        for shift, mask in ((12, 0x000F000F), (6, 0x03030303), (3, 0x11111111)):
            bits = (bits | bits << shift) & mask
        bits <<= np.arange(4, dtype=np.uint32)
        halves = bits[:, :2] | bits[:, 2:]
        words[:, place] = halves[:, 0] | halves[:, 1]
    return words


def _simple(*fields: tuple[Any, ...]) -> Callable[[Bytes], Parts]:
    """For blocks of 32: a scale, then perhaps a least value and fifth bits, then codes."""
    form = np.dtype([*fields])
    names = form.names or ()

    def unpack(data: Bytes) -> Parts:
        found = data.view(form)  # [n]
        codes: npt.NDArray[Any] = found["codes"].view(np.uint8)
        if codes.shape[1] < GROUP:
            codes = _words(_nibbles(codes), *(found[name] for name in names if name == "fifth"))
        least = found["least"][:, None] if "least" in names else None
        return codes, found["scale"][:, None], least

    return unpack


def _k_scales(blocks: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Scales and least values [8 n, 1] of Q4_K's and Q5_K's blocks [n]."""
    from gguf.quants import Q4_K

    scales, leasts = Q4_K.get_scale_min(blocks["scales"])  # each [n, 8], six bits
    d, dmin = (blocks[name].astype(np.float32)[:, None] for name in ("d", "dmin"))
    return (d * scales).reshape(-1, 1), -(dmin * leasts).reshape(-1, 1)


_K = [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12)]
_q4_k = np.dtype([*_K, ("codes", "u1", (4, 32))])
_q5_k = np.dtype([*_K, ("fifth", "u1", (1, 32)), ("codes", "u1", (4, 32))])
_q6_k = np.dtype(
    [("codes", "u1", (2, 64)), ("high", "u1", (2, 32)), ("scales", "i1", 16), ("d", "<f2")]
)


def _q4_k_blocks(data: Bytes) -> Parts:
    blocks = data.view(_q4_k)  # [n]
    return _words(_nibbles(blocks["codes"]).reshape(-1, GROUP)), *_k_scales(blocks)


def _q5_k_blocks(data: Bytes) -> Parts:
    blocks = data.view(_q5_k)  # [n]
    fifth = blocks["fifth"] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # [n, 8, 32]
    packed = np.packbits(fifth.reshape(-1, GROUP), axis=1, bitorder="little")
    return _words(_nibbles(blocks["codes"]).reshape(-1, GROUP), packed), *_k_scales(blocks)


def _q6_k_blocks(data: Bytes) -> Parts:
    blocks = data.view(_q6_k)  # [n]
    codes = _nibbles(blocks["codes"]).reshape(-1, 2, 4, GROUP)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    codes |= (blocks["high"][:, :, None] >> shifts & 3) << 4
    scales = blocks["d"].astype(np.float32)[:, None] * blocks["scales"]  # [n, 16]
    return (codes - np.uint8(32)).reshape(-1, GROUP), scales.reshape(-1, 2), None


def _halves(data: Bytes) -> Parts:
    return data.view("<u2").reshape(-1, GROUP), None, None


_scale, _least, _fifth = ("scale", "<f2"), ("least", "<f2"), ("fifth", "u1", 4)
_narrow = ("codes", "u1", 16)
KINDS = {
    "Q4_0": Kind(_simple(_scale, _narrow), 4, zero=8),
    "Q4_1": Kind(_simple(_scale, _least, _narrow), 4, least=True),
    "Q5_0": Kind(_simple(_scale, _fifth, _narrow), 5, zero=16),
    "Q5_1": Kind(_simple(_scale, _least, _fifth, _narrow), 5, least=True),
    "Q8_0": Kind(_simple(_scale, ("codes", "i1", 32)), 8),
    "Q4_K": Kind(_q4_k_blocks, 4, wide=True, least=True),
    "Q5_K": Kind(_q5_k_blocks, 5, wide=True, least=True),
    "Q6_K": Kind(_q6_k_blocks, 8, size=16, wide=True),
    "F16": Kind(_halves, 16, exact=True, size=0),
    "BF16": Kind(_halves, 16, size=0),
}
