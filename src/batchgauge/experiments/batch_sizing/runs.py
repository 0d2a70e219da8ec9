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
from functools import partial
from itertools import count
from time import perf_counter

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from batchgauge.experiments.batch_sizing.bench import Bench, Key
from batchgauge.experiments.batch_sizing.sweep import FreshSweep, sweep_engine, sweep_tokenizer
from batchgauge.machine.limits import usable_cores
from batchgauge.request import BatchItem
from batchgauge.sizing import CostModel, Lengths
from batchgauge.sizing.adaptive import AdaptiveBatchSizer, serve
from batchgauge.sizing.automatic import LARGEST, engine_identity, remember, tokenizer_identity
from batchgauge.sizing.calibration import Extent, calibrate_engine, calibrate_tokenizer
from batchgauge.sizing.cost_model import Costs, batch_times, price
from batchgauge.workload import exact_requests


def calibrate(bench: Bench) -> dict[Key, CostModel]:
    """A calibration of the engine per thread count, and one of the tokenizer.

    `optimal_batch_size()` remembers those that reach as far as its own: not a smoke run's, nor
    an engine's that does not show its model.
    """
    effort, engine = bench.effort, bench.engine
    models: dict[Key, CostModel] = {
        ("engine", threads): _calibrated(bench, threads, bench.seed, effort.repeats)
        for threads, _ in effort.largest
    }
    identity = tokenizer_identity(bench.tokenizer, bench.texts, effort.tokenizer_largest)
    models["tokenizer", 1] = calibrate_tokenizer(
        bench.text_probe,
        max_batch_size=effort.tokenizer_largest,
        identity=identity,
    )
    if bench.largest >= min(LARGEST, engine.max_batch_size()):
        for (part, _), cost in models.items():
            if part == "tokenizer" or bench.shape is not None:
                remember(cost)
    return models


def recalibrate(bench: Bench) -> list[CostModel]:
    """Further calibrations of the engine, one round each."""
    seeds = range(bench.seed + 10, bench.seed + 10 + bench.effort.reruns)
    return [_calibrated(bench, bench.threads, seed, 1) for seed in seeds]


def _calibrated(bench: Bench, threads: int, seed: int, repeats: int) -> CostModel:
    with threadpool_limits(threads, user_api="blas"):
        effort = bench.effort
        extent = Extent(
            dict(effort.largest)[threads], effort.max_positions, effort.knots, repeats=repeats
        )
        identity = engine_identity(bench.engine)._replace(threads=threads)
        return calibrate_engine(bench.probes[threads], extent, identity=identity, seed=seed)


def alone(bench: Bench) -> dict[Key, Costs]:
    """What one request takes, measured apart from calibration and sweep: for budgets."""
    effort, found = bench.effort, dict[Key, Costs]()
    longest = max(max(work.inputs) for work in bench.works.values())
    for threads, _ in effort.largest:
        with threadpool_limits(threads, user_api="blas"):
            found["engine", threads] = sweep_engine(
                bench.judges[threads], largest=1, max_positions=min(effort.max_positions, longest),
                passes=1 + effort.passes // 4, threads=threads, seed=bench.exam_seed,
            ).costs  # fmt: skip
    found["tokenizer", 1] = sweep_tokenizer(
        bench.text_judge, largest=8, passes=4, seed=bench.exam_seed
    ).costs
    return found


def fresh_sweeps(bench: Bench, suggested: Mapping[Key, set[int]]) -> dict[Key, FreshSweep]:
    """Time everything anew, densely, the suggested sizes among it."""
    effort, seed = bench.effort, bench.seed + 1
    sweeps: dict[Key, FreshSweep] = {}
    for threads, largest in effort.largest:
        with threadpool_limits(threads, user_api="blas"):
            sweeps["engine", threads] = sweep_engine(
                bench.judges[threads],
                largest=largest,
                max_positions=effort.max_positions,
                passes=effort.passes,
                also=suggested.get(("engine", threads), set()),
                threads=threads,
                seed=seed,
            )
    sweeps["tokenizer", 1] = sweep_tokenizer(
        bench.text_judge,
        largest=effort.tokenizer_largest,
        passes=4 * effort.passes,
        also=suggested.get(("tokenizer", 1), set()),
        seed=seed,
    )
    return sweeps


def run_whole(bench: Bench, prices: Mapping[str, Costs], sizes: Sequence[int]) -> pd.DataFrame:
    """Run whole batches for real, chosen at random, beside what phases added up say.

    Three in four are ragged, at any of `sizes`. Times are told at the reference speed; each of
    `prices` gives a column.
    """
    rng, probe = np.random.default_rng(bench.exam_seed), bench.judges[bench.threads]
    ragged = [name for name, work in bench.works.items() if not work.alike]
    even = [name for name in bench.works if name not in ragged]
    pairs = [
        (str(rng.choice(even if number % 4 == 0 else ragged)), int(rng.choice(sizes)))
        for number in range(bench.effort.whole)
    ]
    rows = []
    with threadpool_limits(bench.threads, user_api="blas"):
        for name, size in tqdm(pairs, desc="whole batches", leave=False):
            work = bench.works[name]
            drawn = work.batches(size)
            batch = drawn[int(rng.integers(len(drawn)))]
            items = exact_requests(batch.inputs[0], batch.new_tokens[0], seed=bench.exam_seed)
            parts = {
                label: [float(p.sum()) for p in price(c, batch)] for label, c in prices.items()
            }
            first, steps = next(iter(parts.values()))
            ends = probe.multiplying(float(batch.inputs.sum())), probe.multiplying(size)
            share = np.average(ends, weights=[first, steps]) if first + steps else 0.0
            run = partial(bench.engine.infer_batch, items)
            result, [factor] = probe.steadied(run, [float(share)])
            real = factor * result.stats.total_duration_ms
            priced = {f"{label}_ms": sum(both) for label, both in parts.items()}
            rows.append({"workload": name, "batch_size": size, "measured_ms": real, **priced})
    return pd.DataFrame(rows)


def adaptive_run(bench: Bench, model: CostModel) -> tuple[pd.DataFrame, float]:
    """Serve a queue under a latency budget; in the middle third, other processes disturb.

    Requests have 4 tokens and generate 4. The budget is what the cost model says a batch of
    two fifths of the largest takes. Gives one row a batch, and the budget in ms.
    """
    work = Lengths.uniform(4, 4)
    aim = max(1, round(0.4 * bench.largest))
    budget = batch_times(model, work, aim).request_ms
    sizer = AdaptiveBatchSizer(budget, max_size=bench.largest)
    probe = exact_requests([4], [4])[0].data
    rows = []
    with threadpool_limits(bench.threads, user_api="blas"):
        start = perf_counter()
        for phase, share in (("before", 1 / 3), ("disturbed", 2 / 3), ("after", 1.0)):
            with _burners(phase == "disturbed"):
                queue = (BatchItem(str(i), probe) for i in count())
                for record, _ in serve(bench.engine.infer_batch, queue, sizer):
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
                    if now >= share * bench.effort.adaptive_s:
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
