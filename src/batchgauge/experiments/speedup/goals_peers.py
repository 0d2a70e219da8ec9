"""Goals of decode and prefill beside torch and llama.cpp, one engine after the other.

A peer that is not installed leaves its goals in the table, unmeasured. More engines,
sizes and two threads are in the peers notebook.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from batchgauge.adapters.own import NumpyStepper
from batchgauge.adapters.stepped import SteppedEngine, Stepper
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.errors import UserError
from batchgauge.experiments.peers.engines import GOALS, DecodeSteps
from batchgauge.experiments.speedup.goals import Bench, Goal
from batchgauge.registry import missing_packages, open_engine
from batchgauge.reporting import plots

PROMPT = 512  # tokens of the prefill


def against_peers(bench: Bench, engine: BatchInferenceEngine, model: str) -> list[Goal]:
    """Our throughput over each peer's, in the same run; a peer is closed before the next opens."""
    ours = NumpyStepper(engine.model)
    goals = []
    for spec in dict.fromkeys(peer for _, _, peer in GOALS):
        cases = [(part, batch, goal) for (part, batch, peer), goal in GOALS.items() if peer == spec]
        theirs, reason = _stepper(spec, model, bench.threads)
        for part, batch, target in cases:
            what = f"decode at batch {batch}" if part == "decode" else f"prefill of {PROMPT} tokens"
            goal = f"{what}, against {plots.label(spec)}"
            if theirs is None:
                goals.append(Goal(part, goal, target, "higher", note=reason))
                continue
            calls = {name: _call(s, part, batch, bench.seed) for name, s in _pair(theirs, ours)}
            note = f"one thread, {len(calls)} engines in turn, float32 weights of ours"
            goals.append(bench.ratio(part, goal, target, calls, note=note))
    return goals


def _pair(theirs: Stepper, ours: Stepper) -> tuple[tuple[str, Stepper], ...]:
    return ("theirs", theirs), ("ours", ours)


def _stepper(spec: str, model: str, threads: int) -> tuple[Stepper | None, str]:
    """A peer that can be advanced step by step, or why there is none."""
    try:
        engine = open_engine(spec, model or None, threads)
    except UserError as problem:
        lacks = missing_packages(spec)
        return None, f"{', '.join(lacks)} not installed" if lacks else str(problem)
    if not isinstance(engine, SteppedEngine):
        return None, "this engine cannot be advanced step by step"
    return engine.stepper, ""


def _call(stepper: Stepper, part: str, batch: int, seed: int) -> Callable[[], object]:
    if part == "decode":
        return DecodeSteps(stepper, batch, seed)
    size = stepper.vocab_size
    ids = np.random.default_rng(seed).integers(0, size, (batch, PROMPT)).tolist()
    return lambda: stepper.prefill(ids, 1)
