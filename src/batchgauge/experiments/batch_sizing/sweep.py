"""The exhaustive sweep that suggestions are judged by: fresh, dense, nothing predicted.

A sweep times every phase at many sizes, in several passes whose order is shuffled, so
that drift does not favour a size. Running each workload at each size in full would take
hours; phases add up to a batch (checked by running some batches whole), so they are
measured once and composed for every scenario. Sweep and calibration share no timings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from batchgauge.errors import UserError
from batchgauge.sizing.calibration import CONTEXT_ROWS, CONTEXT_STEPS, SHORT_PROMPT, warm_up
from batchgauge.sizing.curve import Floats, carried_on
from batchgauge.sizing.probes import EngineProbe, TextProbe

STEPS = 3  # decode steps of a run
PATIENCE_S = 90.0  # no run of a third pass, or a later one, is started after this


@dataclass(frozen=True, slots=True)
class Timing:
    """One timed run of one phase; `units` are positions (prefill), context (decode) or bytes."""

    phase: str
    rows: int
    units: int
    run: int
    ms: float


@dataclass(frozen=True)
class MeasuredCosts:
    """Medians of a sweep as a price list: satisfies `Costs`, interpolates, predicts nothing.

    Decode rows that were not measured lie on the straight line between their measured
    neighbours; sweeps measure every size that is scored.
    """

    prefill_positions: Floats  # [P]
    prefill_values_ms: Floats  # [P]
    square_ms: float
    decode_rows: Floats  # [R]
    decode_values_ms: Floats  # [R], at no context
    context_ms: float = 0.0  # per token of context
    padded: bool = False
    compacts: bool = True

    def prefill_ms(self, positions: npt.ArrayLike, squares: npt.ArrayLike) -> Floats:
        """Milliseconds of prefills, both [K]."""
        at = np.asarray(positions, dtype=np.float64)
        line = carried_on(at, self.prefill_positions, self.prefill_values_ms)
        return np.where(at > 0.0, line + self.square_ms * np.asarray(squares), 0.0)

    def decode_ms(self, rows: npt.ArrayLike, context: npt.ArrayLike) -> Floats:
        """Milliseconds of decode steps with `rows` and summed `context`, of one shape."""
        at = np.asarray(rows, dtype=np.float64)
        base = np.interp(at, self.decode_rows, self.decode_values_ms)
        return base + self.context_ms * np.asarray(context, dtype=np.float64)


@dataclass(frozen=True)
class FreshSweep:
    """A price list, the timings it was made of, and what measuring them cost."""

    costs: MeasuredCosts
    timings: tuple[Timing, ...]
    seconds: float
    sizes: tuple[int, ...]
    threads: int = 1
    halves: tuple[MeasuredCosts, ...] = ()  # the even and the odd passes alone

    def rows(self) -> list[dict[str, Any]]:
        """One dict a timing, for a data frame."""
        return [asdict(timing) | {"threads": self.threads} for timing in self.timings]


def dense_sizes(largest: int) -> tuple[int, ...]:
    """Every size up to 16, every second up to 32, every fourth above, and the largest."""
    dense, coarse = range(1, min(largest, 16) + 1), range(18, min(largest, 32) + 1, 2)
    sizes = {*dense, *coarse, *range(36, largest + 1, 4), largest}
    return tuple(sorted(sizes))


def sweep_engine(
    probe: EngineProbe,
    *,
    largest: int,
    max_positions: int = 512,
    passes: int = 3,
    also: Iterable[int] = (),
    threads: int = 1,
    seed: int = 0,
) -> FreshSweep:
    """Time decode steps at all `dense_sizes(largest)` and prefills up to `max_positions`.

    Decode steps are timed after prompts of one token; what context costs comes from pairs of
    runs after short and long prompts. `also` are further sizes to include, e.g. those
    suggested. Raises UserError for sizes below 1.
    """
    if min(largest, max_positions, passes) < 1:
        raise UserError("A sweep needs sizes, positions and passes of at least 1.")
    start = perf_counter()
    sizes = tuple(sorted({*dense_sizes(largest), *also}))
    grid = _position_grid(max_positions)
    some, long = min(CONTEXT_ROWS, largest), max(16, min(128, 2 * max_positions))
    runs: list[tuple[str, int, int, int]] = [
        ("decode", rows, SHORT_PROMPT, STEPS) for rows in sizes
    ]
    # The longest twice: what goes on beyond begins there.
    runs += [("prefill", _prefill_rows(p, largest), p, 0) for p in (*grid, grid[-1])]
    runs += [("prefill alone", 1, min(256, max_positions), 0)]
    runs += [("context", some, long, CONTEXT_STEPS)] * math.ceil(3 / passes)  # a median's worth
    rng = np.random.default_rng(seed)
    order = [(run, i) for run in range(passes) for i in rng.permutation(len(runs))]
    timings: list[Timing] = []
    warm_up(probe, some)
    for run, i in tqdm(order, desc="fresh sweep", leave=False):
        if run > 1 and perf_counter() - start > PATIENCE_S:
            break  # two whole passes tell luck apart; a part of one more does no harm to a median
        phase, rows, units, count = runs[i]
        if phase == "context":  # the pair right after each other, so that drift cancels
            timings.append(Timing("no context", rows, SHORT_PROMPT, run, probe(rows, 1, count)[1]))
        if phase in {"decode", "context"}:
            ms = probe(rows, units, count)[1]
        else:
            ms = probe(rows, units // rows, 0)[0]
        timings.append(Timing(phase, rows, units, run, ms))
    costs = _price_list(timings)
    apart = _halves(timings, _price_list)
    return FreshSweep(costs, tuple(timings), perf_counter() - start, sizes, threads, apart)


def sweep_tokenizer(
    probe: TextProbe,
    *,
    largest: int,
    passes: int = 7,
    also: Iterable[int] = (),
    seed: int = 0,
) -> FreshSweep:
    """Time tokenizing at dense sizes up to `largest`; prices are a line through all medians."""
    if min(largest, passes) < 1:
        raise UserError("A sweep needs sizes and passes of at least 1.")
    start = perf_counter()
    wide = np.unique(np.geomspace(33, max(largest, 33), 40).round().astype(int))
    above = {int(size) for size in wide if size <= largest}
    sizes = sorted({*range(1, min(largest, 32) + 1), *above, *also})
    rng = np.random.default_rng(seed)
    timings: list[Timing] = []
    probe(min(largest, 64))
    for run, i in ((r, i) for r in range(passes) for i in rng.permutation(len(sizes))):
        units, ms = probe(sizes[i])
        timings.append(Timing("tokenize", sizes[i], units, run, ms))

    def prices(some: Sequence[Timing]) -> MeasuredCosts:
        x, y = _medians([(t.units, t.ms) for t in some])
        return MeasuredCosts(x, y, 0.0, np.ones(1), np.zeros(1))

    seconds, apart = perf_counter() - start, _halves(timings, prices)
    return FreshSweep(prices(timings), tuple(timings), seconds, tuple(sizes), halves=apart)


def _halves(
    timings: Sequence[Timing], prices: Callable[[Sequence[Timing]], MeasuredCosts]
) -> tuple[MeasuredCosts, ...]:
    """Prices by the even and by the odd passes alone; none where there is one pass."""
    apart = [[t for t in timings if t.run % 2 == odd] for odd in (0, 1)]
    return tuple(map(prices, apart)) if all(apart) else ()


def _price_list(timings: Sequence[Timing]) -> MeasuredCosts:
    rows, decode = _medians([(t.rows, t.ms) for t in timings if t.phase == "decode"])
    longer = [t for t in timings if t.phase == "context"]
    shorter = [t for t in timings if t.phase == "no context"]
    gaps = [a.ms - b.ms for a, b in zip(longer, shorter, strict=True)]
    extra = longer[0].rows * (longer[0].units - SHORT_PROMPT)
    context_ms = max(0.0, float(np.median(gaps))) / extra
    held = SHORT_PROMPT + (STEPS + 1) / 2.0  # mean context of a row while a run decoded
    bare = np.maximum(0.0, decode - context_ms * rows * held)
    positions, prefill = _medians([(t.units, t.ms) for t in timings if t.phase == "prefill"])
    alone = [t for t in timings if t.phase == "prefill alone"]
    length = alone[0].units
    excess = float(np.median([t.ms for t in alone])) - float(np.interp(length, positions, prefill))
    square_ms = max(0.0, excess) / (length * length)
    return MeasuredCosts(positions, prefill, square_ms, rows, bare, context_ms)


def _medians(points: Iterable[tuple[float, float]]) -> tuple[Floats, Floats]:
    grouped: dict[float, list[float]] = {}
    for x, ms in points:
        grouped.setdefault(float(x), []).append(ms)
    at = sorted(grouped)
    return np.asarray(at), np.asarray([float(np.median(grouped[x])) for x in at])


def _position_grid(largest: int) -> list[int]:
    powers = [4, 8, 16, 32, 48, 64, 96, 128, 256, 512, 1024, 2048]
    return sorted({p for p in powers if p < largest} | {largest})


def _prefill_rows(positions: int, largest: int) -> int:
    """Rows that a prefill of so many positions is split into: prompts of about 16 tokens."""
    rows = max(1, min(largest, positions // 16))
    while positions % rows:
        rows -= 1
    return rows
