"""What the batch-sizing notebook runs: calibrations, fresh sweeps, real batches, real queues.

Everything here times or traces the real engine and tokenizer; deciding, scoring and
drawing are elsewhere (`batchgauge.sizing`, `study`, `figures`). Calibration and sweep never
share a measurement.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from batchgauge.experiments.batch_sizing.sweep import Sweep, sweep_engine, sweep_tokenizer
from batchgauge.machine.limits import performance_cores, usable_cores
from batchgauge.protocols import Engine
from batchgauge.request import BatchItem, InferenceBatchRequest
from batchgauge.sizing import CostModel, Lengths, ModelShape
from batchgauge.sizing.adaptive import AdaptiveBatchSizer, serve
from batchgauge.sizing.automatic import LARGEST, Identity, engine_identity
from batchgauge.sizing.calibration import calibrate_engine, calibrate_tokenizer
from batchgauge.sizing.cost_model import batch_times
from batchgauge.sizing.lengths import Plan
from batchgauge.sizing.probes import (
    EngineProbe,
    SteadyProbe,
    TextProbe,
    engine_probe,
    probe_items,
)

Key = tuple[str, int]  # (part, threads): ("engine", 1), ("tokenizer", 1)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a profile may run: (threads, largest batch) pairs, passes, repeats, batches."""

    largest: tuple[tuple[int, int], ...]
    passes: int
    knots: int
    repeats: int
    max_positions: int
    reruns: int
    whole: int
    adaptive_s: float
    tokenizer_largest: int
    main_threads: int = 1


EFFORTS: Mapping[str, Effort] = {
    "smoke": Effort(((1, 6),), 1, 4, 1, 32, 1, 1, 1.0, 32),
    "default": Effort(((1, LARGEST), (2, LARGEST)), 4, 11, 3, 256, 4, 6, 12.0, 1000),
    "thorough": Effort(((1, 96), (2, 96)), 12, 18, 9, 512, 8, 16, 60.0, 1000),
}


def effort(profile: str, threads: int, most: int = 1_000) -> Effort:
    """The effort of a profile, for batches of `most` at most.

    Thread counts above the machine's are left out unless asked for.
    """
    chosen = EFFORTS[profile]
    cores = performance_cores()
    pairs = {t: min(size, most) for t, size in chosen.largest if t <= cores}
    pairs.setdefault(threads, min(most, *(size for _, size in chosen.largest)))
    return replace(chosen, largest=tuple(sorted(pairs.items())), main_threads=threads)


def shape_of(engine: Engine) -> ModelShape | None:
    """The shape of an engine's model; None for an engine that does not show it."""
    model = getattr(engine, "model", None)
    try:
        return ModelShape.of(model.config, model.weights_bytes)  # type: ignore[union-attr]  # checked by the except
    except AttributeError:
        return None


def steady_probes(engine: Engine, plan: Effort) -> dict[int, SteadyProbe]:
    """A probe per thread count; calibrations and sweep share it, so that their times compare."""
    probes = {}
    for threads, _ in plan.largest:
        with threadpool_limits(threads, user_api="blas"):
            probes[threads] = SteadyProbe(engine_probe(engine))
    return probes


def calibrate(
    probes: Mapping[int, EngineProbe],
    text_probe: TextProbe,
    engine: Engine,
    of_tokenizer: Identity,
    plan: Effort,
    *,
    seed: int = 0,
) -> dict[Key, CostModel]:
    """One short calibration per thread count of the engine, and one of the tokenizer."""
    models: dict[Key, CostModel] = {}
    for threads, largest in plan.largest:
        models["engine", threads] = calibrate_threads(
            probes[threads], engine, threads, largest, plan, seed=seed
        )
    models["tokenizer", 1] = calibrate_tokenizer(
        text_probe,
        max_batch_size=plan.tokenizer_largest,
        machine=of_tokenizer["machine"],
        model=of_tokenizer["model"],
    )
    return models


def calibrate_threads(
    probe: EngineProbe,
    engine: Engine,
    threads: int,
    largest: int,
    plan: Effort,
    *,
    seed: int = 0,
    repeats: int = 0,
) -> CostModel:
    """Calibrate the engine with this many BLAS threads."""
    with threadpool_limits(threads, user_api="blas"):
        return calibrate_engine(
            probe,
            max_batch_size=largest,
            max_positions=plan.max_positions,
            sizes=plan.knots,
            repeats=repeats or plan.repeats,
            seed=seed,
            **{**engine_identity(engine), "threads": threads},
        )


def fresh_sweeps(
    probes: Mapping[int, EngineProbe],
    text_probe: TextProbe,
    plan: Effort,
    suggested: Mapping[Key, set[int]],
    *,
    seed: int = 1,
) -> dict[Key, Sweep]:
    """Time everything anew, densely, the suggested sizes among it."""
    sweeps: dict[Key, Sweep] = {}
    for threads, largest in plan.largest:
        with threadpool_limits(threads, user_api="blas"):
            sweeps["engine", threads] = sweep_engine(
                probes[threads],
                largest=largest,
                max_positions=plan.max_positions,
                passes=plan.passes if threads == plan.main_threads else max(1, plan.passes - 2),
                also=suggested.get(("engine", threads), set()),
                threads=threads,
                seed=seed,
                progress=lambda runs: tqdm(list(runs), desc="fresh sweep", leave=False),
            )
    sweeps["tokenizer", 1] = sweep_tokenizer(
        text_probe,
        largest=plan.tokenizer_largest,
        passes=4 * plan.passes,
        also=suggested.get(("tokenizer", 1), set()),
        seed=seed,
    )
    return sweeps


def items_of(plan: Plan, *, seed: int = 0) -> list[BatchItem[InferenceBatchRequest]]:
    """Requests of a plan's lengths, greedy, with end tokens ignored."""
    rng = np.random.default_rng(seed)
    return [
        BatchItem(
            str(i),
            InferenceBatchRequest(
                tuple(int(t) for t in rng.integers(0, 1000, size=prompt)),
                max_tokens=int(new),
                ignore_eos=True,
            ),
        )
        for i, (prompt, new) in enumerate(zip(plan.inputs, plan.new_tokens, strict=True))
    ]


def run_whole(
    engine: Engine,
    lengths: Mapping[str, Lengths],
    sizes: Sequence[int],
    models: Mapping[str, Any],
    *,
    most: int,
    probe: SteadyProbe,
    threads: int = 1,
    seed: int = 3,
) -> pd.DataFrame:
    """Run whole ragged and even batches for real beside what phases added up say.

    Times are told at the speed of `probe`. `models` are names and anything that prices
    phases; one column each.
    """
    rows = []
    pairs = [(name, size) for size in sizes for name in lengths][
        :: max(1, len(sizes) * len(lengths) // most)
    ]
    with threadpool_limits(threads, user_api="blas"):
        for name, size in tqdm(pairs, desc="whole batches", leave=False):
            work = lengths[name]
            plan = work.plans(size)[0]
            items = items_of(plan, seed=seed)
            result, factor = probe.steadied(lambda items=items: engine.infer_batch(items))  # type: ignore[misc]  # bound now
            real = factor * result.stats.total_duration_ms
            alike = Lengths(tuple(plan.inputs.tolist()), tuple(plan.new_tokens.tolist()), work.seed)
            priced = {
                f"{label}_ms": whole_batch_ms(costs, alike) for label, costs in models.items()
            }
            rows.append({"workload": name, "batch_size": size, "measured_ms": real, **priced})
    return pd.DataFrame(rows)


def whole_batch_ms(costs: Any, batch: Lengths) -> float:
    """What a price list says about exactly these requests as one batch."""
    plan = Plan(np.asarray(batch.inputs), np.asarray(batch.new_tokens))
    first = costs.prefill_ms(plan.size, plan.positions(padded=False), plan.squares(padded=False))
    return float(first + costs.decode_ms(*plan.steps(compacts=True)).sum())


def adaptive_run(
    engine: Engine,
    model: CostModel,
    largest: int,
    seconds: float,
    *,
    threads: int = 1,
    seed: int = 0,
) -> tuple[pd.DataFrame, float]:
    """Serve a queue under a latency budget; in the middle third, other processes disturb.

    Requests have 4 tokens and generate 4. The budget is what the cost model says a batch of
    two fifths of the largest takes. Gives one row a batch, and the budget in ms.
    """
    work = Lengths.uniform(4, 4)
    aim = max(1, round(0.4 * largest))
    budget = batch_times(model, work, aim).request_ms
    sizer = AdaptiveBatchSizer(budget, max_size=largest)
    probe = probe_items(1, 4, 4, seed=seed)[0].data
    rows = []
    with threadpool_limits(threads, user_api="blas"):
        start = perf_counter()
        for phase, share in (("before", 1 / 3), ("disturbed", 2 / 3), ("after", 1.0)):
            with _burners(phase == "disturbed"):
                queue = (BatchItem(str(i), probe) for i in count())
                for record, _ in serve(engine.infer_batch, queue, sizer):
                    now = perf_counter() - start
                    rows.append(
                        {
                            "at_s": now,
                            "phase": phase,
                            "batch_size": record.size,
                            "latency_ms": record.latency_ms,
                            "within_budget": record.within_budget,
                        }
                    )
                    if now >= share * seconds:
                        break
    return pd.DataFrame(rows), budget


@contextmanager
def _burners(wanted: bool) -> Iterator[None]:
    """Other processes that keep half of the cores and the memory bus busy meanwhile."""
    code = (
        "import numpy as np\na = np.ones((4096, 4096), np.float32)\n"
        "while True: np.multiply(a, 1.0, out=a)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code])
        for _ in range(max(1, usable_cores() // 2) if wanted else 0)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
