"""How a calibration asks a real engine or tokenizer what a size costs.

A probe is only a callable that runs a size and gives milliseconds; these make one
from anything that satisfies the `Engine` or `Tokenizer` protocol. An engine that
tells its inter-token or stage times is asked once per size; one that does not is run
with one token and with several, and the difference is the decode time. Steps are those that
came: an engine may stop early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TypeVar

import numpy as np

from batchgauge.clock import repeated
from batchgauge.errors import UserError
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.request import BatchResult, InferenceBatchResponse
from batchgauge.workload import exact_requests

# (rows, prompt tokens, decode steps) -> (prefill ms, ms of one decode step)
EngineProbe = Callable[[int, int, int], tuple[float, float]]
# (rows, prompt tokens, steps) of the two batches that tell how fast the machine is.
FEW, MANY = (4, 1, 2), (2, 16, 0)
LEAST_S = 1e-3  # of tokenizing
STALE_S = 0.1  # a control older than this says nothing about now
T = TypeVar("T")
# number of texts -> (bytes tokenized, milliseconds)
TextProbe = Callable[[int], tuple[int, float]]


def engine_probe(engine: Engine) -> EngineProbe:
    """A probe that runs real batches through `infer_batch`.

    Prefill is everything up to the first token (tokenizing, first sample, bookkeeping),
    a decode step everything that one more token costs. The probe raises UserError when
    the engine answers with an error.
    """

    def run(rows: int, prompt_tokens: int, new_tokens: int) -> BatchResult[InferenceBatchResponse]:
        items = exact_requests([prompt_tokens] * rows, [new_tokens] * rows)
        result = engine.infer_batch(items)
        for response in result.responses:
            if response.error is not None:
                raise UserError(f"The engine failed while calibrating: {response.error}")
        return result

    def probe(rows: int, prompt_tokens: int, steps: int) -> tuple[float, float]:
        result = run(rows, prompt_tokens, 1 + steps)
        total = result.stats.total_duration_ms
        came = max((r.data.tokens_generated or 0 for r in result.responses if r.data), default=0)
        if came:  # an engine may stop early
            steps = min(steps, came - 1)
        if steps == 0:
            return total, 0.0
        gaps = result.responses[0].data.inter_token_ms if result.responses[0].data else ()
        if len(gaps) == steps:  # the median forgives a step that the system interrupted
            return total - sum(gaps), float(np.median(gaps))
        if "decode" in (stages := result.stages_ms):  # the first sample belongs to the prefill
            told = stages["decode"] + stages.get("sample", 0.0) * steps / (steps + 1)
            return total - told, told / steps
        first = run(rows, prompt_tokens, 1).stats.total_duration_ms
        return first, max(0.0, total - first) / steps

    return probe


class Steady:
    """One reference speed of a machine whose speed drifts, by a small control.

    `reference_ms` is the median of the controls that settled it; `controls_ms` keeps every
    control: how much it varied.
    """

    def __init__(self, control: Callable[[], float]) -> None:
        self._control = control
        for _ in range(3):  # first runs pay for pages and caches
            control()
        self.controls_ms: list[float] = []
        self.settle()

    def settle(self) -> None:
        """Rest the reference speed on one control more; before anything is timed."""
        self.once_more()
        self.reference_ms = float(np.median(self.controls_ms))

    def once_more(self) -> float:
        """Milliseconds of one more control."""
        self.controls_ms.append(max(self._control(), 1e-6))
        self._ended = perf_counter()
        return self.controls_ms[-1]

    def lately(self) -> float:
        """Milliseconds of the last control, or of one more where that says nothing about now."""
        fresh_s = max(STALE_S, 2e-3 * self.reference_ms)
        return self.controls_ms[-1] if perf_counter() - self._ended <= fresh_s else self.once_more()

    def pace(self) -> float:
        """Time of one more control over the reference: above 1, the machine is slower now."""
        return self.once_more() / self.reference_ms


def steadied(run: Callable[[], T], controls: Sequence[Steady]) -> tuple[T, list[float]]:
    """What `run` gives, and for each control the factor that takes times to its reference speed.

    The run stands between two runs of each control: the factor is the reference over the
    geometric mean of both.
    """
    before = [control.lately() for control in controls]
    result = run()
    after = [control.once_more() for control in controls]
    pairs = zip(controls, before, after, strict=True)
    return result, [control.reference_ms / (b * a) ** 0.5 for control, b, a in pairs]


class SteadyProbe:
    """An engine probe whose times are told at one reference speed, whatever else runs.

    Other users of a machine may take its memory's bandwidth or its arithmetic. So there are two
    controls: `few` rows, whose steps mostly read weights, and `many`, which mostly multiply; a
    run is told relative to that which it is like. Calibration and sweep that share one object
    therefore compare, though the machine's speed drifts between them.
    """

    def __init__(self, probe: EngineProbe, *, settle_runs: int = 1) -> None:
        def control(rows: int, prompt_tokens: int, steps: int) -> float:
            first, step = probe(rows, prompt_tokens, steps)
            return first + steps * step

        self._probe = probe
        self.few, self.many = Steady(lambda: control(*FEW)), Steady(lambda: control(*MANY))
        for _ in range(settle_runs - 1):
            self.settle()

    def settle(self) -> None:
        """Rest both reference speeds on one control more, in turn; before anything is timed."""
        self.few.settle()
        self.many.settle()

    def multiplying(self, positions: float) -> float:
        """How much a pass through the model with so many positions is like `many`, from 0 to 1.

        A half at the ridge point, where reading the weights takes as long as multiplying by them
        (Williams et al., "Roofline", CACM 2009); 0 up to half as many, 1 from twice as many on.
        """
        reading_ms = self.few.reference_ms / (1 + FEW[2])
        ridge = MANY[0] * MANY[1] * reading_ms / self.many.reference_ms
        return min(1.0, max(0.0, 0.5 + math.log(max(positions, 1.0) / ridge) / math.log(4.0)))

    def steadied(self, run: Callable[[], T], shares: Sequence[float]) -> tuple[T, list[float]]:
        """What `run` gives, and factors to the reference speed for parts so much like `many`."""
        needed = [self.few] * (min(shares) < 1.0) + [self.many] * (max(shares) > 0.0)
        result, factors = steadied(run, needed)
        few, many = factors[0], factors[-1]
        return result, [few ** (1.0 - share) * many**share for share in shares]

    def __call__(self, rows: int, prompt_tokens: int, steps: int) -> tuple[float, float]:
        """(prefill ms, ms of a step) of one run, both at the reference speed."""
        shares = [self.multiplying(rows * prompt_tokens), self.multiplying(rows)]
        (first, step), factors = self.steadied(
            lambda: self._probe(rows, prompt_tokens, steps), shares if steps else shares[:1]
        )
        return first * factors[0], step * factors[-1]


class SteadyTextProbe(Steady):
    """A tokenizer's probe at the reference speed; its control is a batch of 32 texts."""

    def __init__(self, probe: TextProbe) -> None:
        self._probe = probe
        super().__init__(lambda: probe(32)[1])

    def __call__(self, size: int) -> tuple[int, float]:
        """(bytes, ms) of so many texts, at the reference speed."""
        (amount, ms), [factor] = steadied(lambda: self._probe(size), [self])
        return amount, ms * factor


def tokenizer_probe(tokenizer: Tokenizer, texts: Sequence[str]) -> TextProbe:
    """A probe that tokenizes so many of `texts` (shuffled, then repeated in order) in one call.

    All texts are tokenized once before, so that a cache of words is as full for the first
    size as for the last; calls are repeated until `LEAST_S` have passed. Raises UserError
    when there are no texts.
    """
    if not texts:
        raise UserError("There are no texts to calibrate the tokenizer with.")
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = [texts[i] for i in order]
    sizes = [len(text.encode()) for text in shuffled]
    tokenizer.encode_many(shuffled)

    def probe(size: int) -> tuple[int, float]:
        chosen = [i % len(shuffled) for i in range(size)]
        batch = [shuffled[i] for i in chosen]
        elapsed = repeated(lambda: tokenizer.encode_many(batch), LEAST_S)
        return sum(sizes[i] for i in chosen), elapsed.wall_ms

    return probe
