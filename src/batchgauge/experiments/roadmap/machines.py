"""The roadmap notebook's questions about machines: two cores, a GPU, many machines.

Parallelism is measured (`parallel`) and fitted; hardware that is not here is predicted
from the sizing advisor's simulated profiles, and says so; jobs on many machines are
simulated with stragglers and failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import repeat

import numpy as np
import pandas as pd

from batchgauge.core.config import Config
from batchgauge.core.default_model import open_model
from batchgauge.experiments.roadmap.parallel import STAGES, WAYS, throughputs
from batchgauge.experiments.roadmap.study import Case
from batchgauge.reporting.tables import number
from batchgauge.simulate.arrivals import Arrivals
from batchgauge.simulate.events import simulate
from batchgauge.simulate.metrics import capacity
from batchgauge.simulate.roadmap import PAYS
from batchgauge.simulate.scaling import ScalingFit, fit_scaling
from batchgauge.simulate.server import POSITIONS, ROWS, STEP_S, Fleet, Server
from batchgauge.simulate.steps import StepTable
from batchgauge.sizing import (
    CostModel,
    HardwareProfile,
    Lengths,
    MemoryModel,
    ModelShape,
    SizingConfig,
    simulated_profiles,
    suggest_batch_size,
)
from batchgauge.statistics import mean_ratio
from batchgauge.text import figures, percent, ratio

HALF = 2  # bytes of a weight or a cached value on an accelerator


def gains(measured: pd.DataFrame) -> pd.DataFrame:
    """What a second core gives each stage in each way, over one thread: a ratio over blocks."""
    rows = []
    for stage in STAGES:
        for way in WAYS[1:]:
            by_size = throughputs(measured, stage, way)
            found = asdict(mean_ratio(by_size[2], by_size[1]))
            rows.append({"stage": stage, "way": way, **found})
    return pd.DataFrame(rows)


def gains_sentence(table: pd.DataFrame) -> str:
    """The best way for each stage, where any is beyond chance."""
    said, still = [], []
    for stage, rows in table.groupby("stage", sort=False):
        best = max(rows.to_dict("records"), key=lambda row: row["low"])
        if best["low"] > PAYS:
            said.append(
                f"{stage} gains {ratio(best['value'], best['low'], best['high'])} from "
                f"{best['way']}"
            )
        else:
            still.append(str(stage))
    if still:
        said.append(f"nothing beyond chance for {', '.join(still)}")
    return f"With a second core {'; '.join(said)}."


def fits(measured: pd.DataFrame, seed: int) -> dict[str, ScalingFit]:
    """Both laws for prefill and decode, for threads and for processes."""
    return {
        f"{stage}, {way}, {law}": fit_scaling(throughputs(measured, stage, way), law, seed=seed)
        for stage in ("prefill", "decode")
        for way in (WAYS[1], WAYS[3])
        for law in ("Amdahl", "USL")
    }


def extrapolation_sentence(table: pd.DataFrame) -> str:
    """How wide the laws' answers are at the largest number of workers."""
    most = int(table["workers"].max())
    rows = table[(table["workers"] == most) & (table["law"] == "USL")].to_dict("records")
    said = "; ".join(f"{row['what']}: {row['low']:.1f} to {row['high']:.1f} ×" for row in rows)
    return (
        f"Extrapolated from 1 and 2 to {most} workers (95 %, contention and coherence not told "
        f"apart): {said}. Where the band is wide, only a larger machine can say."
    )


def prefill_share(case: Case) -> float:
    """Share of a busy server's time that goes to prefill."""
    run = simulate(case.traffic(1.0, 0).at_once(), case.table, case.today.server)
    steps = run.steps
    prefill = steps[(steps[:, POSITIONS] > 0) & (steps[:, ROWS] == 0), STEP_S].sum()
    return float(prefill / steps[:, STEP_S].sum())


def process_sharing(case: Case, table: pd.DataFrame) -> tuple[float, float]:
    """How many times longer a step takes with one and with two processes busy, as measured."""
    two = {row["stage"]: row["value"] for row in table.to_dict("records") if row["way"] == WAYS[3]}
    share = prefill_share(case)
    longer = share * 2 / two["prefill"] + (1 - share) * 2 / two["decode"]
    return 1.0, max(1.0, longer)


def predicted_costs(model: str, profile: HardwareProfile) -> tuple[CostModel, ModelShape]:
    """Roofline costs of the model on a simulated machine, and the model's shape.

    Accelerators hold weights and cache in 2 bytes, processors in 4.
    """
    config = Config.from_file(open_model(model))  # metadata only: no weights are read
    width = HALF if profile.name.startswith("GPU") else 4
    bare = replace(ModelShape.of(config, 1), value_bytes=width)
    shape = replace(bare, weight_bytes=width * bare.matrix_weights)
    return CostModel.prior(shape, profile), shape


def predict_machines(case: Case, *, most: int = 256) -> pd.DataFrame:
    """Best batch, throughput and price of a million tokens, here and on simulated machines.

    Continuous batching at saturation everywhere. `break_even_price_per_hour` is what the
    machine may cost before a token is cheaper here. Everything but the first row is
    predicted from a roofline and carries its wide interval.
    """
    traffic = case.traffic(1.0, 0)
    tokens = float(traffic.generated.mean())
    many = traffic.at_once().picked(np.arange(4 * len(traffic)) % len(traffic))
    here = Server("continuous", case.today.server.max_batch)
    own = capacity(traffic, case.table, here) * tokens
    own_price, price = case.today.price_per_hour, case.scenario.price_per_hour
    rows = [("this machine", "measured steps", here.max_batch, own, own, own, own_price)]
    lengths = Lengths(tuple(traffic.context.tolist()), tuple(traffic.generated.tolist()))
    for profile in simulated_profiles():
        costs, shape = predicted_costs(case.context.model, profile)
        memory, config = MemoryModel.from_shape(shape), SizingConfig(max_batch_size=most)
        size = suggest_batch_size(
            lengths, costs, config, memory_model=memory, hardware=profile
        ).size
        table = StepTable.from_costs(costs, max_batch=size, one_pass=True)
        rate = capacity(many, table, Server("continuous", size)) * tokens
        rows.append((profile.name, "predicted", size, rate, *costs.interval(rate), price))
    throughputs = [f"{end}_tokens_per_s" for end in ("throughput", "low", "high")]
    columns = ["machine", "basis", "best_batch", *throughputs, "price_per_hour"]
    found = pd.DataFrame(rows, columns=columns)
    rates, prices = found["throughput_tokens_per_s"], found.pop("price_per_hour")
    return found.assign(
        speedup=rates / own,
        price_per_hour=prices,
        price_per_million_tokens=prices / (rates * 3600) * 1e6,
        break_even_price_per_hour=own_price * rates / own,
    )


def machines_sentence(table: pd.DataFrame) -> str:
    """The fastest machine, marked as predicted, and what it may cost to be worth its tokens."""
    here, *others = table.to_dict("records")
    fast = max(others, key=lambda row: row["throughput_tokens_per_s"])
    return (
        f"Predicted, not measured: {fast['machine']} would generate {figures(fast['speedup'])} × "
        f"as many tokens as this machine (interval {fast['low_tokens_per_s']:,.0f} to "
        f"{fast['high_tokens_per_s']:,.0f} tokens/s) in batches of {fast['best_batch']}. Kept "
        f"busy, its tokens cost as much as here at {number(fast['break_even_price_per_hour'])} an "
        f"hour, this machine at {number(here['price_per_hour'])}."
    )


def distribute(case: Case, *, requests: int, sizes: Sequence[int]) -> pd.DataFrame:
    """A batch job on `sizes` machines like this one, loading included.

    One row a number of machines and a trouble: sound; one machine three times as slow;
    each machine failing about once in the job. `queue_s` is the time with a shared
    queue, `shards_s` with the requests dealt out beforehand; efficiency is against one
    sound machine.
    """
    traffic, seed = case.traffic(1.0, case.seed), case.seed
    job = traffic.at_once().picked(np.arange(requests) % len(traffic))
    rows = []
    alone = _makespan(job, case, Fleet())
    for workers in sizes:
        fleet = Fleet(workers)
        troubles = {
            "none": fleet,
            "one machine 3 × slower": replace(fleet, speeds=(3.0,)),
            "each fails about once": replace(
                fleet, mtbf_s=alone / workers, restart_s=case.load_s, seed=seed
            ),
        }
        for trouble, troubled in troubles.items():
            queue = _makespan(job, case, troubled)
            lone = [  # each machine with its share of the requests; the first is the slow one
                replace(troubled, workers=1, speeds=() if i else troubled.speeds, seed=seed + i)
                for i in range(workers)
            ]
            parts = [job.picked(slice(i, None, workers)) for i in range(workers)]
            shards = max(map(_makespan, parts, repeat(case), lone))
            ideal = alone / workers
            rows.append(
                (workers, trouble, queue, shards, ideal / queue, ideal / shards,
                 case.load_s / queue)
            )  # fmt: skip
    columns = ["machines", "trouble", "queue_s", "shards_s", "queue_efficiency"]
    return pd.DataFrame(rows, columns=[*columns, "shards_efficiency", "load_share"])


def _makespan(job: Arrivals, case: Case, fleet: Fleet) -> float:
    """Seconds until all of a job is done, the loading of the model included."""
    server = Server("continuous", case.today.server.max_batch, fleet=fleet)
    return float(simulate(job, case.table, server).returned_s.max()) + case.load_s


def distribute_sentence(case: Case, table: pd.DataFrame, requests: int) -> str:
    """What stragglers, failures and loading cost on the largest number of machines."""
    most = int(table["machines"].max())
    rows = {r["trouble"]: r for r in table.to_dict("records") if r["machines"] == most}
    sound, slow, fails = rows.values()
    rate = capacity(
        case.traffic(1.0, 0), case.table, Server("continuous", case.today.server.max_batch)
    )
    return (
        f"{requests:,} requests on {most} machines: with a shared queue one slow machine takes "
        f"the efficiency from {percent(sound['queue_efficiency'])} to "
        f"{percent(slow['queue_efficiency'])}, "
        f"with shards dealt out beforehand from {percent(sound['shards_efficiency'])} to "
        f"{percent(slow['shards_efficiency'])}; failures (with retries) to "
        f"{percent(fails['queue_efficiency'])} and {percent(fails['shards_efficiency'])}. "
        "Loading the model "
        f"takes {case.load_s:.1f} s: a machine needs {case.load_s * rate / 0.05:,.0f} requests to "
        f"itself before that is below 5 % of its time."
    )


def first_measurements(case: Case, distributed: pd.DataFrame) -> pd.DataFrame:
    """What to measure before choosing: each with the number that this study expects."""
    most = int(distributed["machines"].max())
    _, slow, fails = distributed[distributed["machines"] == most]["queue_efficiency"]
    batch_s = 1.0 / case.limit * case.today.server.max_batch
    rows = [
        ("time of an empty task through the scheduler",
         f"below 1 % of a batch, {10 * batch_s:.1f} ms"),
        ("time until a cold worker answers its first request", f"{case.load_s:.1f} s for loading"),
        (f"efficiency on {most} machines, one slowed down on purpose", f"{percent(slow)}"),
        (f"efficiency on {most} machines, each killed once", f"{percent(fails)}"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["measure_first", "expected_here"])
