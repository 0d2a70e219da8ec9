"""`optimal_batch_size()` of a tokenizer or an engine: calibrate once, remember, suggest.

The first call on a machine measures for a few seconds and keeps the result as JSON
in the user's cache folder, named by machine, model and threads; later calls only
read it. The workload is a scaled-down version of real traffic's lengths unless the
caller gives its own.
"""

from __future__ import annotations

import contextlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from batchgauge.errors import UserError
from batchgauge.machine.limits import usable_cores
from batchgauge.machine.rates import blas_identity, cache_folder, machine_id
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.sizing.calibration import calibrate_engine, calibrate_tokenizer
from batchgauge.sizing.cost_model import CostModel
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.probes import engine_probe, tokenizer_probe
from batchgauge.sizing.suggest import suggest_batch_size
from batchgauge.sizing.suggestion import BatchSizeSuggestion

# Quantiles of context and generated tokens in the Azure LLM inference trace 2023,
# conversation (Patel et al., Splitwise, ISCA 2024, CC-BY), at p10, p25, p50, p75, p90;
# divided by 16 for a model of this size: the shape is what matters.
_CONTEXT = (207, 396, 1020, 1189, 2735)
_GENERATED = (54, 85, 129, 395, 424)
_SCALE = 16


def traffic_lengths(requests: int = 200, *, scale: int = _SCALE, seed: int = 0) -> Lengths:
    """Request lengths shaped like real conversation traffic, divided by `scale`."""
    rng = np.random.default_rng(seed)
    at = (0.1, 0.25, 0.5, 0.75, 0.9)
    prompts = np.interp(rng.uniform(0.1, 0.9, requests), at, _CONTEXT) / scale
    new = np.interp(rng.uniform(0.1, 0.9, requests), at, _GENERATED) / scale
    return Lengths(
        tuple(max(1, round(p)) for p in prompts), tuple(max(1, round(n)) for n in new), seed=seed
    )


def optimal_for_engine(
    engine: Engine, *, model: str = "", workload: Lengths | None = None, cache: Path | None = None
) -> int:
    """The batch size with the most throughput for this engine on this machine.

    Calibrates for a few seconds the first time for a machine, `model` (any text that
    names the model and its weights) and thread count, and caches that as JSON. For
    budgets, other objectives and the reasons, use `suggest_for_engine`.
    """
    return suggest_for_engine(engine, model=model, workload=workload, cache=cache).size


def suggest_for_engine(
    engine: Engine,
    *,
    model: str = "",
    workload: Lengths | None = None,
    cache: Path | None = None,
    **budgets: Any,
) -> BatchSizeSuggestion:
    """A whole suggestion for an engine; `budgets` go to `suggest_batch_size`."""
    largest = engine.max_batch_size()
    cost = _remembered(
        cache,
        f"{engine.name}-{model}-{largest}",
        lambda identity: calibrate_engine(
            engine_probe(engine),
            max_batch_size=min(largest, 64),
            max_positions=256,
            sizes=10,
            repeats=2,
            **identity,
        ),
    )
    arguments: dict[str, Any] = {"max_batch_size": min(largest, 64)} | budgets
    return suggest_batch_size(workload=workload or traffic_lengths(), cost_model=cost, **arguments)


def optimal_for_tokenizer(
    tokenizer: Tokenizer,
    *,
    max_batch_size: int = 1000,
    model: str = "",
    texts: list[str] | None = None,
    cache: Path | None = None,
) -> int:
    """The batch size with the most texts a second for this tokenizer on this machine.

    Calibrates for a fraction of a second the first time and caches that as JSON.
    `texts` are what to calibrate with; by default sentences of about a hundred bytes.
    """
    sample = texts or [
        f"{i} requests wait in the queue; how many go in one batch?" * (1 + i % 3)
        for i in range(64)
    ]
    cost = _remembered(
        cache,
        f"{tokenizer.name}-{model}-{max_batch_size}-{len(sample)}",
        lambda identity: calibrate_tokenizer(
            tokenizer_probe(tokenizer, sample),
            max_batch_size=max_batch_size,
            machine=identity["machine"],
            model=identity["model"],
        ),
    )
    workload = Lengths.texts(sample)
    return suggest_batch_size(
        workload=workload, cost_model=cost, max_batch_size=max_batch_size
    ).size


def _remembered(cache: Path | None, model: str, calibrate: Any) -> CostModel:
    """The cached calibration of this machine, model and thread count, or a new one."""
    threads = blas_identity()[1]
    machine = machine_id(usable_cores())
    identity = {"machine": machine, "model": model, "threads": threads}
    name = sha256(f"{identity}".encode()).hexdigest()[:16]
    path = (cache or cache_folder()) / f"costs-{name}.json"
    if path.exists():
        with contextlib.suppress(UserError):
            return CostModel.load(path, machine=machine, model=model)
    found: CostModel = calibrate(identity)
    with contextlib.suppress(UserError):
        found.save(path)
    return found
