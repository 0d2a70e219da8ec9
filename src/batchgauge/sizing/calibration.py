"""A short calibration: few sizes, each chosen where it tells most, each predicted first.

The first sizes span the range, with all small batches: kernels treat each in a way of its own,
and one row more is much of them. Then further sizes go, in turn, where the straight line
between two knots is least sure (the gap is wide and the slopes around it disagree) and
next to the size that looks best so far, since that is the part of the curve that the
advice will rest on. Then all sizes, of decode and of prefill, are run again in shuffled order,
against drift; how much their medians scatter is the error where the model was measured. Its
stated error elsewhere is that on held-out sizes: batches that never join the curve, prefills
by the curve without them, and one longer than all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from time import perf_counter

import numpy as np

from batchgauge.errors import UserError
from batchgauge.sizing.cost_model import CostModel, HeldOut, Identity
from batchgauge.sizing.curve import TILE, Curve, fit_ripple
from batchgauge.sizing.probes import EngineProbe, TextProbe

SHORT_PROMPT = 1  # token; keeps the prefill of a decode probe cheap
CONTEXT_STEPS, CONTEXT_ROWS = 8, 8  # with fewer rows, noise hides what context costs
WARM_UP_S = 1.0  # first runs pay for pages, caches and clock rates
PATIENCE_S = 25.0  # no third round after this: a machine this busy is not worth the wait
SMALL = 16  # batches up to this are all measured
RIPPLED = (21, 22, 23)  # sizes off the tile that tell the ripple
HELD_OUT_SIZES = 6  # sizes that are measured only to see how far off the curve is
LEAST_ERROR = 0.01  # no calibration of a few milliseconds knows better than one percent


@dataclass(frozen=True, slots=True)
class Extent:
    """How far and how densely a calibration of an engine runs.

    max_batch_size  largest size that predictions are wanted for
    max_positions   largest prefill that is run, in positions; beyond, lines go on
    sizes           batch sizes of the decode curve beside the first ones, each chosen; a few
                    more find the ripple
    steps           decode steps of a run
    repeats         rounds over all sizes, shuffled after the first; the median counts

    Raises UserError for numbers below 1.
    """

    max_batch_size: int = 64
    max_positions: int = 512
    sizes: int = 6
    steps: int = 2
    repeats: int = 3

    def __post_init__(self) -> None:
        if min(astuple(self)) < 1:
            raise UserError(
                "A calibration needs sizes, positions, steps and repeats of at least 1."
            )


def calibrate_engine(
    probe: EngineProbe,
    extent: Extent = Extent(),
    *,
    identity: Identity = Identity(),
    seed: int = 0,
) -> CostModel:
    """Measure what an engine's phases cost.

    `probe` runs (rows, prompt tokens, steps) and gives (prefill ms, ms of a step); `identity`
    is kept with the model, `seed` is of the order of later rounds. An engine that computes
    padded positions, or keeps rows that are done, is `replace(model, padded=True)`.
    """
    max_batch_size, max_positions, sizes, steps, repeats = astuple(extent)
    start = perf_counter()
    warm_up(probe, min(8, max_batch_size))
    seen: dict[tuple[int, int, int], list[float]] = {}  # milliseconds by what the probe was asked

    def timed(rows: int, prompt_tokens: int, steps: int) -> float:
        first, step = probe(rows, prompt_tokens, steps)
        ms = step if steps else first
        seen.setdefault((rows, prompt_tokens, steps), []).append(ms)
        return ms

    def decoding(rows: float) -> tuple[int, int, int]:
        return int(rows), SHORT_PROMPT, steps

    def reading(positions: float) -> tuple[int, int, int]:
        rows = max(1, min(max_batch_size, int(positions) // 16))
        return rows, int(positions) // rows, 0

    first = first_sizes(max_batch_size)
    decode = refine(lambda rows: timed(*decoding(rows)), first, sizes=len(first) + sizes, tile=TILE)
    between = [size for size in RIPPLED if size <= max_batch_size]
    unseen = _unseen([*decode.knots, *between], max_batch_size)
    for size in (*between, *unseen):
        timed(*decoding(size))
    spread = [float(p) for p in (1, 4, 8, 16, 64, 256) if p < max_positions]
    prefill = refine(
        lambda positions: timed(*reading(positions)),
        [*spread, float(max_positions)],
        sizes=len(spread) + 3,
        tile=16,
    )
    alone = (1, min(max_positions, 256), 0)
    timed(*alone)
    rng = np.random.default_rng(seed)
    for number in range(repeats - 1):
        if number and perf_counter() - start > PATIENCE_S:
            break
        for i in rng.permutation(len(seen)):
            timed(*list(seen)[i])
        timed(*reading(max_positions))  # once more: what goes on beyond begins there
    medians = {asked: float(np.median(times)) for asked, times in seen.items()}
    prefill = replace(prefill, ms=tuple(medians[reading(p)] for p in prefill.knots))
    decode = _settled(decode, between, lambda rows: medians[decoding(rows)])
    held_out = [
        HeldOut("decode", size, float(decode(size)), medians[decoding(size)]) for size in unseen
    ]
    held_out += [
        HeldOut("prefill", p, float(prefill.without(p)(p)), medians[reading(p)])
        for p in prefill.knots
        if p not in {*spread, max_positions}
    ]
    rows, long_prompt = min(CONTEXT_ROWS, max_batch_size), max(16, min(160, 2 * max_positions))
    context_ms, prefill_long = context_price(probe, rows, long_prompt, min(2, repeats))
    # The decode curve was measured with a short context; take that part out of it again.
    held = SHORT_PROMPT + (steps + 1) / 2.0
    lowered = tuple(
        max(0.0, m - context_ms * k * held) for k, m in zip(decode.knots, decode.ms, strict=True)
    )
    decode = replace(decode, ms=lowered)
    length, excess = alone[1], medians[alone] - float(prefill(alone[1]))
    square_ms = max(0.0, excess) / (length * length - length * 16) if length > 16 else 0.0
    held_out.append(
        HeldOut(
            "prefill",
            rows * long_prompt,
            float(prefill(rows * long_prompt)) + square_ms * rows * long_prompt**2,
            prefill_long,
        )
    )
    noise = repeatability(seen.values())
    return CostModel(
        prefill=prefill,
        decode=decode,
        square_ms=square_ms,
        context_ms=context_ms,
        error=stated_error(held_out, noise),
        noise=noise,
        held_out=tuple(held_out),
        seconds=perf_counter() - start,
        **identity._asdict(),
    )


def context_price(
    probe: EngineProbe, rows: int, long_prompt: int, repeats: int
) -> tuple[float, float]:
    """Milliseconds that a token of context adds to a decode step, and of the long prefill.

    Steps after a short and after a long prompt, one right after the other so that drift
    cancels; several steps each, since the difference is small.
    """
    differences, firsts = [], []
    for _ in range(repeats):
        short = probe(rows, SHORT_PROMPT, CONTEXT_STEPS)[1]
        first, long = probe(rows, long_prompt, CONTEXT_STEPS)
        differences.append(long - short)
        firsts.append(first)
    extra = rows * (long_prompt - SHORT_PROMPT)
    return max(0.0, float(np.median(differences))) / extra, float(np.median(firsts))


def warm_up(probe: EngineProbe, rows: int) -> None:
    """Run small batches until first-run costs are paid: three at least, for `WARM_UP_S`."""
    start, runs = perf_counter(), 0
    while runs < 3 or (perf_counter() - start < WARM_UP_S and runs < 50):
        probe(rows, SHORT_PROMPT, 1)
        runs += 1


def calibrate_tokenizer(
    probe: TextProbe,
    *,
    max_batch_size: int = 1000,
    sizes: int = 9,
    repeats: int = 25,
    seed: int = 0,
    identity: Identity = Identity(),
) -> CostModel:
    """Measure what tokenizing a batch costs, as a curve over its bytes.

    `probe` tokenizes so many texts and gives (bytes, milliseconds); `sizes` batch sizes
    from 1 to `max_batch_size` are run in `repeats` shuffled rounds, every third one as a
    held-out check. Raises UserError for sizes below 1.
    """
    if min(max_batch_size, sizes, repeats) < 1:
        raise UserError("A calibration needs sizes and repeats of at least 1.")
    start = perf_counter()
    probe(min(max_batch_size, 64))
    spread = np.unique(np.geomspace(1, max_batch_size, sizes).round().astype(int))
    runs: dict[int, list[tuple[int, float]]] = {int(size): [] for size in spread}
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        for size in rng.permutation(spread):
            runs[int(size)].append(probe(int(size)))
    points = {
        size: (float(seen[0][0]), float(np.median([ms for _, ms in seen])))
        for size, seen in runs.items()
    }
    checked = [int(size) for size in spread[1:-1:3]]
    known = {x: ms for size, (x, ms) in points.items() if size not in checked}
    curve = _through(known)
    held_out = []
    for size in checked:
        x, ms = points[size]
        held_out.append(HeldOut("tokenize", x, float(curve(x)), ms))
        known[x] = ms
    return CostModel(
        prefill=_through(known),
        error=stated_error(held_out),
        held_out=tuple(held_out),
        **identity._asdict(),
        seconds=perf_counter() - start,
    )


def stated_error(held_out: Sequence[HeldOut], noise: float = 0.0) -> float:
    """Relative standard error from the held-out check, of which `noise` is the measurements' own.

    A robust root mean square: the scale is 1.48 times the median. Variances of independent
    errors add up, so that of what was measured for the check is taken off again; but no size is
    known better than one that was measured.
    """
    if not held_out:
        return LEAST_ERROR
    seen = 1.4826 * float(np.median([abs(row.relative) for row in held_out]))
    return max(LEAST_ERROR, noise, math.sqrt(max(0.0, seen**2 - noise**2)))


def repeatability(rounds: Iterable[Sequence[float]]) -> float:
    """Relative standard error of the median of the rounds seen, over sizes.

    1.25 standard deviations over the root of the number of rounds (that of a median of normal
    observations), from the middle standard deviation, which forgives a few interrupted runs.
    """
    errors = [
        1.25 * float(np.std(np.log(times), ddof=1)) / len(times) ** 0.5
        for times in rounds
        if len(times) > 1
    ]
    return max(LEAST_ERROR, float(np.median(errors))) if errors else 0.0


def _unseen(seen: Sequence[float], largest: int) -> list[float]:
    """Sizes for the held-out check, evenly among those not measured; they never become knots."""
    others = [float(size) for size in range(1, largest + 1) if size not in seen]
    picks = np.linspace(0, len(others) - 1, min(HELD_OUT_SIZES, len(others)) + 2)[1:-1]
    return [others[i] for i in sorted({round(float(p)) for p in picks})] if others else []


def _settled(curve: Curve, between: Sequence[int], median_ms: Callable[[float], float]) -> Curve:
    """The curve through the medians of all rounds.

    Sizes between tiles become knots as well where both tiles next to them are: there they
    do not bend the line for their neighbours.
    """
    curve = replace(curve, ms=tuple(map(median_ms, curve.knots)))
    curve = fit_ripple(curve, between, [median_ms(size) for size in between])
    tiles = set(curve.knots)
    for size in between:
        low = float(size - size % TILE)
        if low in tiles and low + TILE in tiles:
            curve = curve.with_point(float(size), median_ms(size))
    return curve


def _through(points: dict[float, float]) -> Curve:
    knots = tuple(sorted(points))
    return Curve(knots, tuple(points[knot] for knot in knots))


def first_sizes(largest: int) -> list[float]:
    """The sizes every calibration starts with: all small ones, one in the middle, the largest."""
    middle = round(math.sqrt(SMALL * largest) / TILE) * TILE
    sizes = {*range(1, SMALL + 1), middle, largest}
    return sorted(float(size) for size in sizes if size <= largest)


def refine(
    measure: Callable[[float], float], start: Sequence[float], *, sizes: int, tile: int
) -> Curve:
    """Measure `start`, then up to `sizes` knots in all, each new one where it tells most."""
    curve = Curve(tuple(start), tuple(measure(size) for size in start))
    while len(curve.knots) < sizes:
        turn = len(curve.knots) - len(start)
        beside = beside_best(curve, tile) if turn % 2 else None
        size = beside or most_telling(curve, tile)
        if size is None:
            break
        curve = curve.with_point(size, measure(size))
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
