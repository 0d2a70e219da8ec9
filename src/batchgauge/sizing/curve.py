"""A piecewise-linear cost curve t(x) with a tile ripple, and its roofline form.

Matrix products are not linear in the batch size: one row runs as matrix-vector
product, a few rows pay for packing, thread splits change the regime, and every
size that is no multiple of the kernel's tile pays for a remainder. A curve holds
what was measured at a few sizes (knots), joins them with straight lines, and adds
the measured cost of each remainder (ripple) to the sizes between tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from batchgauge.errors import UserError

Floats = npt.NDArray[np.float64]
TILE = 4  # rows; a divisor of every common kernel's tile, so its multiples are good sizes


@dataclass(frozen=True)
class Curve:
    """Milliseconds as a function of a size x >= 0.

    knots      sizes that were measured, rising
    ms         time at each
    ripple_ms  [TILE] extra time of a size by its remainder modulo TILE (0 first);
               applies from TILE on, and not at the knots, which were measured
    """

    knots: tuple[float, ...]
    ms: tuple[float, ...]
    ripple_ms: tuple[float, ...] = (0.0,) * TILE

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False))
        if not self.knots or len(self.knots) != len(self.ms) or not rising:
            raise UserError("A cost curve needs rising sizes with one time each.")
        if not all(np.isfinite(self.ms)) or min(self.ms) < 0.0 or len(self.ripple_ms) != TILE:
            raise UserError("A cost curve has a time that is negative or not finite.")

    def __call__(self, x: npt.ArrayLike) -> Floats:
        """Predicted milliseconds for sizes `x`, in the same shape; see `carried_on`."""
        at = np.asarray(x, dtype=np.float64)
        return carried_on(at, self.knots, self.ms) + self._ripple(at)

    def _ripple(self, at: Floats) -> Floats:
        whole = np.rint(at).astype(np.int64)
        off_tile = (whole >= TILE) & (np.abs(at - whole) < 1e-9) & ~np.isin(at, self.knots)
        return np.where(off_tile, np.asarray(self.ripple_ms)[whole % TILE], 0.0)

    def with_point(self, x: float, ms: float) -> Curve:
        """The curve that also goes through a newly measured point."""
        points = dict(zip(self.knots, self.ms, strict=True)) | {x: ms}
        knots = tuple(sorted(points))
        return Curve(knots, tuple(points[k] for k in knots), self.ripple_ms)

    def without(self, x: float) -> Curve:
        """The curve without one of its knots."""
        kept = [(k, ms) for k, ms in zip(self.knots, self.ms, strict=True) if k != x]
        return replace(self, knots=tuple(k for k, _ in kept), ms=tuple(ms for _, ms in kept))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Curve:
        """From the fields as JSON has them. Raises KeyError or UserError on anything else."""
        return cls(tuple(data["knots"]), tuple(data["ms"]), tuple(data["ripple_ms"]))


def carried_on(x: Floats, knots: Floats | Sequence[float], ms: Floats | Sequence[float]) -> Floats:
    """Straight lines between knots, flat below the first, on beyond the last.

    Beyond, the slope is the median of those between all pairs of knots from an eighth of the
    range on (Theil 1950, Sen 1968), never a fall: one knot that is off, or a last segment that is
    short, does not decide it. A lone knot is carried on in proportion to the size.
    """
    at, values = np.asarray(knots, dtype=np.float64), np.asarray(ms, dtype=np.float64)
    if at.size == 1:
        at, values = np.append(0.0, at), np.append(0.0, values)
    base = min(int(np.searchsorted(at, at[-1] / 8.0)), at.size - 2)
    slope = max(0.0, float(scipy.stats.theilslopes(values[base:], at[base:])[0]))
    inside: Floats = np.interp(x, knots, ms)
    beyond: Floats = slope * np.maximum(x - at[-1], 0.0)
    return inside + beyond


def roofline_curve(
    *,
    overhead_ms: float,
    fixed_bytes: float,
    flops_per_unit: float,
    bandwidth_bytes_per_s: float,
    flops_per_s: float,
    largest: int,
) -> Curve:
    """t(x) = overhead + max(bytes / bandwidth, x * flops / rate), as a curve.

    The roofline of Williams, Waterman and Patterson (2009) for work that reads
    `fixed_bytes` once however many units share them. Raises UserError when a rate is
    missing.
    """
    if bandwidth_bytes_per_s <= 0.0 or flops_per_s <= 0.0:
        raise UserError("A roofline needs a bandwidth and a flop rate above 0; measure them first.")
    memory_ms = 1e3 * fixed_bytes / bandwidth_bytes_per_s
    unit_ms = 1e3 * flops_per_unit / flops_per_s
    knee = memory_ms / unit_ms if unit_ms > 0.0 else float(largest)
    knots = sorted({1.0, float(max(largest, 2)), *([knee] if 1.0 < knee < largest else [])})
    return Curve(
        tuple(knots), tuple(overhead_ms + max(memory_ms, unit_ms * knot) for knot in knots)
    )


def fit_ripple(curve: Curve, sizes: Sequence[int], ms: Sequence[float]) -> Curve:
    """`curve` with the ripple that explains times measured at sizes between the tiles.

    The mean excess over the straight line, by remainder; a remainder that was not
    measured gets the mean of the others, and no remainder is credited with a gain.
    """
    plain = Curve(curve.knots, curve.ms)
    excess: dict[int, list[float]] = {}
    for size, measured in zip(sizes, ms, strict=True):
        if size >= TILE and size % TILE:
            excess.setdefault(size % TILE, []).append(measured - float(plain(float(size))))
    means = {rest: float(np.mean(values)) for rest, values in excess.items()}
    other = float(np.mean(list(means.values()))) if means else 0.0
    ripple = [0.0] + [max(0.0, means.get(rest, other)) for rest in range(1, TILE)]
    return Curve(curve.knots, curve.ms, tuple(ripple))
