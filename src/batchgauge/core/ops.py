"""The arithmetic of a Llama as pure array functions: norm, rotary positions, SwiGLU, attention.

Letters: T positions, D model width, H query heads, J key/value heads, G = H / J query
heads that share one, E head width, F width of the feed-forward layer, C keys.
All float32. Nothing here knows of weights, caches or batches of requests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rotations = npt.NDArray[np.complex64]
Ints = npt.NDArray[np.intp]

LINE = 64  # bytes of a cache line
QUERY_BLOCK = 32  # queries whose scores are computed together; those of a whole prompt: half waste


def aligned(size: int, *, zeros: bool = False) -> Floats:
    """So many float32 that begin with a cache line, so that no vector of them lies across two."""
    make = np.zeros if zeros else np.empty
    room: Floats = make(size + LINE // 4, np.float32)
    first = -room.ctypes.data % LINE // 4
    return room[first : first + size]


def rms_norm(x: Floats, epsilon: float) -> Floats:
    """Root mean square norm without a gain: x / sqrt(mean(x^2) + epsilon) over the last axis.

    x [T, D]; the gain is folded into the matrix that comes next (Zhang & Sennrich 2019).
    """
    squares = np.einsum("td,td->t", x, x)  # [T]
    squares /= x.shape[1]
    squares += epsilon
    normed: Floats = x * (1.0 / np.sqrt(squares))[:, None]
    return normed


def rope_frequencies(width: int, base: float, scale: float, factors: Floats | None) -> Floats:
    """Radians per position of each of the E/2 pairs (Su et al. 2021).

    `scale` divides all frequencies (linear position scaling), `factors` [E/2] each one
    (as Llama 3.1's files carry them).
    """
    exponents = np.arange(0, width, 2, dtype=np.float64) / width
    frequencies = base**-exponents / scale  # [E/2]
    if factors is not None:
        frequencies /= factors
    return frequencies.astype(np.float32)


def rope_rotations(positions: Ints, frequencies: Floats) -> Rotations:
    """The cos + i sin of each position times each frequency: complex64 [T, E/2]."""
    angles = np.outer(positions, frequencies.astype(np.float64))  # [T, E/2]
    rotations: Rotations = np.exp(1j * angles).astype(np.complex64)
    return rotations


def rotate(x: Floats, rotations: Rotations) -> None:
    """Turn the pairs (2i, 2i + 1) of every head by its position's angles, in place.

    x [T, heads, E], last axis contiguous, rotations [T, E/2]. GGUF files of this
    architecture have the rows of their query and key matrices ordered so that neighbours
    are pairs.
    """
    pairs = x.view(np.complex64)  # [T, heads, E/2]
    pairs *= rotations[:, None, :]


def swiglu(gate_up: Floats) -> Floats:
    """silu(gate) * up, with gate and up side by side (Shazeer 2020): [T, 2F] -> [T, F].

    silu(x) = x / (1 + exp(-x)); an overflow of exp gives the right limit, zero.
    """
    width = gate_up.shape[1] // 2
    gate, up = gate_up[:, :width], gate_up[:, width:]
    weight = np.negative(gate)
    np.exp(weight, out=weight)
    weight += 1.0
    np.divide(gate, weight, out=weight)
    weight *= up
    return weight


def softmax(scores: Floats) -> None:
    """exp(x) / sum(exp(x)) over the last axis, in place; minus infinity becomes zero."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)


def attend_causal(queries: Floats, keys: Floats, values: Floats, out: Floats) -> None:
    """Attention of the last T of C positions to all up to themselves, into `out` [T, H, E].

    queries [T, H, E], already scaled by 1 / sqrt(E); keys [J, E, C]; values [J, C, E].
    Blocks of queries see only keys up to their own end, so that most of what causality
    forbids is never computed.
    """
    T, H, E = queries.shape
    J, _, C = keys.shape
    G = H // J
    start = C - T
    future = np.where(np.tri(QUERY_BLOCK, dtype=bool), np.float32(0.0), np.float32(-np.inf))
    for first in range(0, T, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, T)
        B, seen = last - first, start + last
        block = queries[first:last].reshape(B, J, G, E).transpose(1, 2, 0, 3)  # [J, G, B, E]
        scores = np.matmul(block.reshape(J, G * B, E), keys[:, :, :seen])  # [J, G * B, seen]
        scores.reshape(J, G, B, seen)[..., start + first :] += future[:B, :B]
        mixed = _mix(scores, values[:, :seen])  # [J, G * B, E]
        out[first:last].reshape(B, J, G, E)[:] = mixed.reshape(J, G, B, E).transpose(2, 0, 1, 3)


def unseen(lengths: Ints) -> Floats | None:
    """What to add to scores [B, J, G, max(lengths)] so that row b sees lengths[b]; None if all."""
    C = int(lengths.max())
    if (lengths == C).all():
        return None
    hidden = np.arange(C) >= lengths[:, None]  # [B, C]
    return np.where(hidden, np.float32(-np.inf), np.float32(0.0))[:, None, None, :]


def attend_step(
    queries: Floats, keys: Floats, values: Floats, mask: Floats | None, out: Floats
) -> None:
    """Attention of one new position in each of B rows to its own row, into `out` [B, H * E].

    queries [B, H, E], scaled; keys [B, J, E, C]; values [B, J, C, E], finite everywhere;
    `mask` from `unseen`. The work is that of the longest row.
    """
    B, J, E, _ = keys.shape
    scores = np.matmul(queries.reshape(B, J, -1, E), keys)  # [B, J, G, C]
    if mask is not None:
        scores += mask
    out.reshape(B, J, -1, E)[:] = _mix(scores, values)


def _mix(scores: Floats, values: Floats) -> Floats:
    """Values [..., C, E] weighted by softmax(scores [..., C]); overwrites the scores.

    The division by the sum comes last, on fewer numbers.
    """
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    mixed: Floats = np.matmul(scores, values)
    mixed /= np.einsum("...c->...", scores)[..., None]
    return mixed
