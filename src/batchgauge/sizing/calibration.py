"""A short calibration: few sizes, each chosen where it tells most, each predicted first.

The first sizes span the range. Then each further size goes where the straight line
between two knots is least sure: where the gap is wide and the slopes around it
disagree. Before a new size is measured the model predicts it; those predictions are
the model's exam on sizes it has not seen, and their error becomes its stated error.
Afterwards the point joins the curve, so the stated error errs on the careful side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np

from batchgauge.errors import UserError
from batchgauge.sizing.cost_model import CostModel, HeldOut
from batchgauge.sizing.curve import TILE, Curve, fit_ripple
from batchgauge.sizing.probes import EngineProbe, TextProbe

SHORT_PROMPT = 4  # tokens; keeps the prefill of a decode probe cheap
LEAST_ERROR = 0.01  # no calibration of a few milliseconds knows better than one percent


def calibrate_engine(
    probe: EngineProbe,
    *,
    max_batch_size: int = 64,
    max_positions: int = 512,
    sizes: int = 10,
    steps: int = 3,
    repeats: int = 3,
    padded: bool = False,
    compacts: bool = True,
    machine: str = "",
    model: str = "",
    threads: int = 1,
) -> CostModel:
    """Measure what an engine's phases cost, at about `sizes` batch sizes.

    Args:
        probe: runs (rows, prompt tokens, steps) and gives (prefill ms, ms of a step).
        max_batch_size: largest size that predictions are wanted for.
        max_positions: largest prefill that is run, in positions; beyond, lines go on.
        sizes: batch sizes of the decode curve; a few more find the ripple.
        steps: decode steps per run.
        repeats: runs per size; the median counts.
        padded: True when the engine computes padded prompt positions.
        compacts: True when rows that are done leave the engine's batch.
        machine: identity of the machine, kept with the model.
        model: identity of the model, kept with the model.
        threads: BLAS threads in use, kept with the model.

    Raises UserError for sizes below 1.
    """
    if min(max_batch_size, max_positions, sizes, steps, repeats) < 1:
        raise UserError("A calibration needs sizes, positions, steps and repeats of at least 1.")
    start = perf_counter()
    probe(1, SHORT_PROMPT, 1)  # the first run pays for pages and caches
    exam: list[HeldOut] = []

    def step_ms(rows: float) -> float:
        runs = [probe(int(rows), SHORT_PROMPT, steps)[1] for _ in range(repeats)]
        return float(np.median(runs))

    decode = refine(
        step_ms, first_sizes(max_batch_size), sizes=sizes, tile=TILE, phase="decode", exam=exam
    )
    decode = _with_ripple(step_ms, decode, max_batch_size, exam)
    rows = min(8, max_batch_size)
    long_prompt = max(2 * SHORT_PROMPT, max_positions // (2 * rows))
    prefill_long, step_long = _median_pair(probe, rows, long_prompt, steps, repeats)
    extra = rows * (long_prompt - SHORT_PROMPT)
    context_ms = max(0.0, step_long - float(decode(rows))) / extra
    # The decode curve was measured with a short context; take that part out of it again.
    held = SHORT_PROMPT + (steps + 1) / 2.0
    lowered = tuple(
        max(0.0, m - context_ms * k * held) for k, m in zip(decode.knots, decode.ms, strict=True)
    )
    decode = replace(decode, ms=lowered)

    def prefill_ms(positions: float) -> float:
        batch = max(1, min(max_batch_size, int(positions) // 16))
        length = int(positions) // batch
        return float(np.median([probe(batch, length, 0)[0] for _ in range(max(2, repeats - 1))]))

    spread = [float(p) for p in (1, 16, 64, 256, 1024) if p < max_positions]
    prefill = refine(
        prefill_ms,
        [*spread, float(max_positions)],
        sizes=len(spread) + 3,
        tile=16,
        phase="prefill",
        exam=exam,
    )
    alone = min(max_positions, 256)
    excess = _median_pair(probe, 1, alone, 0, repeats)[0] - float(prefill(alone))
    square_ms = max(0.0, excess) / (alone * alone - alone * 16) if alone > 16 else 0.0
    exam.append(
        HeldOut(
            "prefill",
            rows * long_prompt,
            float(prefill(rows * long_prompt)) + square_ms * rows * long_prompt**2,
            prefill_long,
        )
    )
    return CostModel(
        prefill=prefill,
        decode=decode,
        square_ms=square_ms,
        context_ms=context_ms,
        padded=padded,
        compacts=compacts,
        error=stated_error(exam),
        held_out=tuple(exam),
        machine=machine,
        model=model,
        threads=threads,
        seconds=perf_counter() - start,
    )


def calibrate_tokenizer(
    probe: TextProbe,
    *,
    max_batch_size: int = 1000,
    sizes: int = 9,
    repeats: int = 5,
    machine: str = "",
    model: str = "",
) -> CostModel:
    """Measure what tokenizing a batch costs, as a curve over its bytes.

    `probe` tokenizes so many texts and gives (bytes, milliseconds); `sizes` batch sizes
    from 1 to `max_batch_size` are run `repeats` times each, every third one as an exam.
    Raises UserError for sizes below 1.
    """
    if min(max_batch_size, sizes, repeats) < 1:
        raise UserError("A calibration needs sizes and repeats of at least 1.")
    start = perf_counter()
    probe(min(max_batch_size, 64))
    spread = np.unique(np.geomspace(1, max_batch_size, sizes).round().astype(int))
    points: dict[int, tuple[float, float]] = {}
    for size in spread:
        runs = [probe(int(size)) for _ in range(repeats)]
        points[int(size)] = (float(runs[0][0]), float(np.median([ms for _, ms in runs])))
    exam = [int(size) for size in spread[1:-1:3]]
    known = {x: ms for size, (x, ms) in points.items() if size not in exam}
    curve = _through(known)
    held_out = []
    for size in exam:
        x, ms = points[size]
        held_out.append(HeldOut("tokenize", x, float(curve(x)), ms))
        known[x] = ms
    return CostModel(
        prefill=_through(known),
        error=stated_error(held_out),
        held_out=tuple(held_out),
        machine=machine,
        model=model,
        seconds=perf_counter() - start,
    )


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
    exam: list[HeldOut],
) -> Curve:
    """Measure `start`, then up to `sizes` knots in all, each new one where it tells most.

    Predictions made before each new measurement are appended to `exam`.
    """
    curve = Curve(tuple(start), tuple(measure(size) for size in start))
    while len(curve.knots) < sizes:
        size = most_telling(curve, tile)
        if size is None:
            break
        predicted = float(curve(size))
        measured = measure(size)
        exam.append(HeldOut(phase, size, predicted, measured))
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


def stated_error(exam: Sequence[HeldOut]) -> float:
    """Relative standard error from predictions made before their measurement.

    A robust root mean square: the early predictions of a rough curve may be far off
    and are not what the finished curve does, so the scale is 1.48 times the median.
    """
    if not exam:
        return LEAST_ERROR
    return max(LEAST_ERROR, 1.4826 * float(np.median([abs(row.relative) for row in exam])))


def _with_ripple(
    measure: Callable[[float], float], curve: Curve, largest: int, exam: list[HeldOut]
) -> Curve:
    """Add what sizes off the tile cost: fitted low, examined high, then fitted to both."""
    low = [size for size in (5, 6, 7) if size <= largest]
    high = [size for size in (21, 22, 23) if size <= largest]
    times = [measure(float(size)) for size in low]
    curve = fit_ripple(curve, low, times) if low else curve
    later = []
    for size in high:
        later.append(measure(float(size)))
        exam.append(HeldOut("decode", size, float(curve(size)), later[-1]))
    return fit_ripple(curve, [*low, *high], [*times, *later]) if high else curve


def _median_pair(
    probe: EngineProbe, rows: int, length: int, steps: int, repeats: int
) -> tuple[float, float]:
    runs = np.asarray([probe(rows, length, steps) for _ in range(repeats)])  # [R, 2]
    first, step = np.median(runs, axis=0)
    return float(first), float(step)


def _through(points: dict[float, float]) -> Curve:
    knots = tuple(sorted(points))
    return Curve(knots, tuple(points[knot] for knot in knots))
