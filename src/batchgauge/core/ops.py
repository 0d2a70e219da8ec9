"""The arithmetic of a Llama as pure array functions: norm, rotation, gates, attention.

Letters: T positions, D model width, H query heads, J key/value heads, G = H / J query
heads that share one, E head width, F width of the feed-forward layer, C keys.
All float32. Nothing here knows of weights, caches or batches of requests.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rotations = npt.NDArray[np.complex64]
Ints = npt.NDArray[np.intp]

LINE = 64  # bytes of a cache line
GELU_SCALE, GELU_CUBE = math.sqrt(2.0 / math.pi), 0.044715
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


def rotate(x: Floats, rotations: Rotations) -> None:
    """Turn the pairs (2i, 2i + 1) of every head by its position's angles, in place.

    x [T, heads, E], last axis contiguous, rotations [T, n/2]: features from n on stay. The
    rows of query and key matrices are ordered so that neighbours are pairs.
    """
    pairs = x[..., : 2 * rotations.shape[1]].view(np.complex64)  # [T, heads, n/2]
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


def geglu(gate_up: Floats) -> Floats:
    """gelu(gate) * up, as `swiglu`, with tanh's approximation of GELU (Hendrycks & Gimpel 2016).

    gelu(x) = x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3).
    """
    width = gate_up.shape[1] // 2
    gate, up = gate_up[:, :width], gate_up[:, width:]
    weight = gate * gate
    weight *= GELU_CUBE
    weight += 1.0
    weight *= gate
    weight *= GELU_SCALE
    np.tanh(weight, out=weight)
    weight += 1.0
    weight *= gate
    weight *= 0.5
    weight *= up
    return weight


def soft_cap(scores: Floats, cap: float) -> None:
    """Scores kept between -cap and cap, in place: cap * tanh(scores / cap)."""
    scores /= cap
    np.tanh(scores, out=scores)
    scores *= cap


def softmax(scores: Floats) -> None:
    """exp(x) / sum(exp(x)) over the last axis, in place; minus infinity becomes zero."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)


def attend_causal(
    queries: Floats, keys: Floats, values: Floats, out: Floats, window: int = 0, cap: float = 0.0
) -> None:
    """Attention of the last T of C positions to all up to themselves, into `out` [T, H, E].

    queries [T, H, E], already scaled; keys [J, E, C]; values [J, C, E]. A query sees no more
    than `window` positions, its own among them, and scores have a soft `cap`; 0 for neither.
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
        low = max(0, start + first + 1 - window) if window else 0
        block = queries[first:last].reshape(B, J, G, E).transpose(1, 2, 0, 3)  # [J, G, B, E]
        scores = np.matmul(block.reshape(J, G * B, E), keys[:, :, low:seen])  # [J, G * B, seen]
        if cap:
            soft_cap(scores, cap)
        of_queries = scores.reshape(J, G, B, seen - low)
        of_queries[..., start + first - low :] += future[:B, :B]
        if window:
            gone = np.arange(low, seen) <= np.arange(first, last)[:, None] + (start - window)
            of_queries += np.where(gone, np.float32(-np.inf), np.float32(0.0))
        mixed = _mix(scores, values[:, low:seen])  # [J, G * B, E]
        out[first:last].reshape(B, J, G, E)[:] = mixed.reshape(J, G, B, E).transpose(2, 0, 1, 3)


def unseen(lengths: Ints, window: int = 0) -> Floats | None:
    """What to add to scores [B, J, G, max(lengths)] so that row b sees lengths[b]; None if all.

    With a window, only the last so many of those.
    """
    C = int(lengths.max())
    if (lengths == C).all() and not 0 < window < C:
        return None
    hidden = np.arange(C) >= lengths[:, None]  # [B, C]
    if window:
        hidden |= np.arange(C) < lengths[:, None] - window
    return np.where(hidden, np.float32(-np.inf), np.float32(0.0))[:, None, None, :]


def attend_step(
    queries: Floats, keys: Floats, values: Floats, mask: Floats | None, out: Floats,
    cap: float = 0.0,
) -> None:  # fmt: skip
    """Attention of one new position in each of B rows to its own row, into `out` [B, H * E].

    queries [B, H, E], scaled; keys [B, J, E, C]; values [B, J, C, E], finite everywhere;
    `mask` from `unseen`; a soft `cap` of scores, or 0. The work is that of the longest row.
    """
    B, J, E, _ = keys.shape
    scores = np.matmul(queries.reshape(B, J, -1, E), keys)  # [B, J, G, C]
    if cap:
        soft_cap(scores, cap)
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
