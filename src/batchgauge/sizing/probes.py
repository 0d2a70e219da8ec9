"""How a calibration asks a real engine or tokenizer what a size costs.

A probe is only a callable that runs a size and gives milliseconds; these make one
from anything that satisfies the `Engine` or `Tokenizer` protocol. An engine that
tells its inter-token or stage times is asked once per size; one that does not is run
with one token and with several, and the difference is the decode time. Steps are those that
came: an engine may stop early.
"""

from __future__ import annotations

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
CONTROL = (4, 1, 2)  # rows, prompt tokens, steps of the batch that tells how fast the machine is
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
    """Tells times at one reference speed, whatever else runs on the machine.

    Every run stands between two runs of the same small control; its times are divided by the
    geometric mean of both and multiplied by `reference_ms`, the median of the controls run at
    first. Calibration and sweep that share one object therefore compare, though the machine's
    speed drifts between them. `controls_ms` keeps every control: how much it varied.
    """

    def __init__(self, control: Callable[[], float], *, settle_runs: int = 15) -> None:
        self._control = control
        for _ in range(3):  # first runs pay for pages and caches
            control()
        self.controls_ms: list[float] = []
        self.settle(settle_runs)

    def settle(self, runs: int = 1) -> None:
        """Rest the reference speed on further controls; before anything is timed."""
        self.controls_ms += [self._run_control() for _ in range(max(1, runs))]
        self.reference_ms = float(np.median(self.controls_ms))
        self._ended = perf_counter()

    def steadied(self, run: Callable[[], T]) -> tuple[T, float]:
        """What `run` gives, and the factor that takes its times to the reference speed."""
        if perf_counter() - self._ended > STALE_S:
            self.controls_ms.append(self._run_control())
        before = self.controls_ms[-1]
        result = run()
        self.controls_ms.append(self._run_control())
        self._ended = perf_counter()
        return result, self.reference_ms / (before * self.controls_ms[-1]) ** 0.5

    def pace(self) -> float:
        """Time of one more control over the reference: above 1, the machine is slower now."""
        self.controls_ms.append(self._run_control())
        self._ended = perf_counter()
        return self.controls_ms[-1] / self.reference_ms

    def _run_control(self) -> float:
        return max(self._control(), 1e-6)


class SteadyProbe(Steady):
    """An engine probe at the reference speed; its control is a small batch of the engine."""

    def __init__(self, probe: EngineProbe, *, settle_runs: int = 15) -> None:
        def control() -> float:
            first, step = probe(*CONTROL)
            return first + CONTROL[2] * step

        self._probe = probe
        super().__init__(control, settle_runs=settle_runs)

    def __call__(self, rows: int, prompt_tokens: int, steps: int) -> tuple[float, float]:
        """(prefill ms, ms of a step) of one run, both at the reference speed."""
        (first, step), factor = self.steadied(lambda: self._probe(rows, prompt_tokens, steps))
        return first * factor, step * factor


class SteadyTextProbe(Steady):
    """A tokenizer's probe at the reference speed; its control is a batch of 32 texts."""

    def __init__(self, probe: TextProbe, *, settle_runs: int = 15) -> None:
        self._probe = probe
        super().__init__(lambda: probe(32)[1], settle_runs=settle_runs)

    def __call__(self, size: int) -> tuple[int, float]:
        """(bytes, ms) of so many texts, at the reference speed."""
        (amount, ms), factor = self.steadied(lambda: self._probe(size))
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
