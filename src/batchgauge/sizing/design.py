"""Which size to measure next: where the curve is least sure, and beside its best size.

Sequential design for a calibration that may only run a few sizes. Nothing here runs
or times anything itself; `refine` is given the function that measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from batchgauge.sizing.cost_model import HeldOut
from batchgauge.sizing.curve import TILE, Curve


def first_sizes(largest: int) -> list[float]:
    """The sizes every calibration starts with: 1 to 4, a middle one on the tile, the largest."""
    small = [size for size in (1, 2, 3, 4) if size <= largest]
    middle = round(math.sqrt(4 * largest) / TILE) * TILE
    return sorted({float(size) for size in (*small, middle, largest) if 1 <= size <= largest})


def refine(
    measure: Callable[[float], float],
    start: Sequence[float],
    *,
    sizes: int,
    tile: int,
    phase: str,
    held_out: list[HeldOut],
) -> Curve:
    """Measure `start`, then up to `sizes` knots in all, each new one where it tells most.

    Predictions made before each new measurement of the second half are appended to `held_out`;
    those of the first half tell of a rough curve that nobody will use.
    """
    curve = Curve(tuple(start), tuple(measure(size) for size in start))
    while len(curve.knots) < sizes:
        turn = len(curve.knots) - len(start)
        beside = beside_best(curve, tile) if turn % 2 else None
        size = beside or most_telling(curve, tile)
        if size is None:
            break
        predicted = float(curve(size))
        measured = measure(size)
        if 2 * turn >= sizes - len(start) - 1:
            held_out.append(HeldOut(phase, size, predicted, measured))
        curve = curve.with_point(size, measured)
    return curve


def most_telling(curve: Curve, tile: int) -> float | None:
    """The multiple of `tile` whose measurement would change the curve most; None if none is left.

    For each gap: how far the neighbours' slopes, carried on to its middle, disagree
    with the straight line there, relative to it, plus a little for the gap's width.
    """
    x, y = np.asarray(curve.knots), np.asarray(curve.ms)
    slopes = np.diff(y) / np.diff(x)  # [K - 1]
    best, best_score = None, 0.0
    for i in range(x.size - 1):
        middle = round(math.sqrt(x[i] * x[i + 1]) / tile) * tile
        if not x[i] < middle < x[i + 1]:
            continue
        line = float(np.interp(middle, x, y))
        carried = []
        if i > 0:
            carried.append(y[i] + slopes[i - 1] * (middle - x[i]))
        if i < slopes.size - 1:
            carried.append(y[i + 1] - slopes[i + 1] * (x[i + 1] - middle))
        doubt = max((abs(c - line) / max(line, 1e-9) for c in carried), default=0.0)
        score = min(doubt, 1.0) + 0.05 * math.log2(x[i + 1] / x[i])
        if score > best_score:
            best, best_score = float(middle), score
    return best


def beside_best(curve: Curve, tile: int) -> float | None:
    """The middle of the wider gap next to the knot with the most units per millisecond."""
    x, y = np.asarray(curve.knots), np.asarray(curve.ms)
    best = int(np.argmax(x / np.maximum(y, 1e-12)))
    gaps = [(x[i + 1] - x[i], x[i], x[i + 1]) for i in (best - 1, best) if 0 <= i < x.size - 1]
    for _, low, high in sorted(gaps, reverse=True):
        middle = round((low + high) / 2.0 / tile) * tile
        if low < middle < high:
            return float(middle)
    return None
