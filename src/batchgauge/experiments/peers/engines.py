"""Prefill, decode and load beside transformers and llama.cpp, interleaved in one run.

The same prompts, the same tokens fed in every decode step (teacher forcing), logits of
every row taken out. A decode call is one step behind `CONTEXT` to `CONTEXT + RESERVE`
positions; caches are rewound when the reserve is used up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.adapters.stepped import Stepper
from batchgauge.errors import UserError
from batchgauge.experiments.peers.participants import Peers
from batchgauge.experiments.peers.rates import OURS, How, measured, rate_table
from batchgauge.measuring import Amount, Conditions, Labels, Stopping
from batchgauge.redaction import redacted
from batchgauge.registry import weights_of

CONTEXT, RESERVE = 32, 32


class DecodeSteps:
    """One decode step a call, over and over behind the same prompts."""

    def __init__(self, stepper: Stepper, batch: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, stepper.vocab_size, (batch, CONTEXT)).tolist()
        self._ids = rng.integers(0, stepper.vocab_size, (RESERVE, batch)).astype(np.int32)
        self._stepper, self._done = stepper, 0
        stepper.prefill(rows, RESERVE)

    def __call__(self) -> object:
        """One step; the caches go back to the prompts first when they are full."""
        if self._done == RESERVE:
            self._stepper.rewind()
            self._done = 0
        self._done += 1
        return self._stepper.decode(self._ids[self._done - 1])


def measure_engines(peers: Peers, decode_sizes: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode (one thread at `decode_sizes`) and prefill, on one thread and on two.

    One row a shape and engine (tokens/s), and every timing.
    """
    choose = peers.context.budget.choose
    two = choose(smoke=(), default=(8, 32), thorough=(1, 2, 4, 8, 16, 32))
    context = peers.context
    kept, _ = context.fitted("Decode", sorted(decode_sizes), 2, 0.5, blocks=8, alone=False)
    decode = {1: kept, 2: tuple(size for size in two if size <= kept[-1])}
    long = 32 if context.budget.name == "smoke" else context.positions(512)
    prefill = {1: choose(smoke=((1, long),), default=((1, long),), thorough=((1, long), (8, 64)))}
    prefill[2] = choose(smoke=(), default=((1, min(128, long)),), thorough=((1, long), (8, 64)))
    rows: list[dict[str, Any]] = []
    samples: list[pd.DataFrame] = []
    for threads in (1, 2):
        steppers = _with_threads(peers, threads)
        for batch in decode[threads]:
            steps = {
                name: DecodeSteps(s, batch, peers.context.seed) for name, s in steppers.items()
            }
            place = {"part": "decode", "threads": threads, "batch_size": batch, "tokens": 1}
            _compare(peers, steps, batch, place, rows, samples)
        for batch, length in prefill[threads]:
            rng, size = np.random.default_rng(peers.context.seed), steppers[OURS].vocab_size
            ids = rng.integers(0, size, (batch, length)).tolist()
            calls = {name: _prefill(s, ids) for name, s in steppers.items()}
            place = {"part": "prefill", "threads": threads, "batch_size": batch, "tokens": length}
            _compare(peers, calls, batch * length, place, rows, samples)
    table = rate_table(rows)
    return table.assign(weights=table["implementation"].map(weights_of)), pd.concat(samples)


def _with_threads(peers: Peers, threads: int) -> dict[str, Stepper]:
    steppers = peers.steppers()
    for stepper in steppers.values():
        if hasattr(stepper, "set_threads"):
            stepper.set_threads(threads)
    return steppers


def _prefill(stepper: Stepper, ids: list[list[int]]) -> Callable[[], object]:
    return lambda: stepper.prefill(ids, 1)


def _compare(
    peers: Peers,
    calls: dict[str, Any],
    tokens: int,
    place: dict[str, Any],
    rows: list[dict[str, Any]],
    samples: list[pd.DataFrame],
) -> None:
    # a step is deterministic work of tens of milliseconds: few blocks, no second copy of ours
    part, size, budget = place["part"], place["batch_size"], peers.context.budget
    least = budget.choose(smoke=2, default=4, thorough=12)
    how = How(
        Labels(
            f"{part}/batch={size}/threads={place['threads']}", part=part,
            parameters={"tokens": place["tokens"]},
        ),
        Amount(tokens=tokens, batch_size=size),
        Stopping(budget.share(0.03), least, most=40),
        Conditions(place["threads"], peers.context.seed),
        aa=budget.name == "thorough",
    )  # fmt: skip
    found, timings = measured(calls, dict.fromkeys(calls, float(tokens)), place, how)
    rows += found
    samples.append(timings)


def load_table(peers: Peers, threads: int = 1) -> pd.DataFrame:
    """One row an engine, each from a fresh process; the smoke profile takes two of them.

    Raises UserError when one fails.
    """
    rows = []
    specs, model = list(peers.engines), peers.context.model
    for spec in specs[
        :: peers.context.budget.choose(smoke=len(specs) - 1 or 1, default=1, thorough=1)
    ]:
        done = subprocess.run(
            [sys.executable, "-m", "batchgauge.experiments.peers.load", spec, model, str(threads)],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise UserError(f"The engine '{spec}' could not be loaded alone: {last[0]}.")
        rows.append({"engine": redacted(spec), **json.loads(done.stdout.strip().splitlines()[-1])})
    return pd.DataFrame(rows)
