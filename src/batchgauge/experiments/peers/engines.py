"""Prefill and decode beside transformers and llama.cpp: tokens a second, interleaved in one run.

The same prompts, the same tokens fed in every decode step (teacher forcing), logits of
every row taken out. A decode call is one step behind `CONTEXT` to `CONTEXT + RESERVE`
positions; caches are rewound when the reserve is used up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from batchgauge.adapters.stepped import Stepper
from batchgauge.experiments.peers.rates import OURS, measured, rate_table
from batchgauge.experiments.peers.study import Peers, headline, records
from batchgauge.reporting import plots
from batchgauge.reporting.tables import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from batchgauge.reporting import Report

CONTEXT, RESERVE = 32, 32
GOALS = {  # (part, batch size, peer) -> our throughput over theirs, one thread
    ("decode", 8, "transformers"): 2.0,
    ("decode", 32, "transformers"): 2.0,
    ("decode", 8, "transformers:bfloat16"): 1.2,
    ("decode", 32, "transformers:bfloat16"): 1.2,
    ("decode", 8, "llama-cpp:f32"): 1.3,
    ("decode", 32, "llama-cpp:f32"): 1.3,
    ("prefill", 1, "llama-cpp:f32"): 1.2,
}


@dataclass(frozen=True, slots=True)
class Engines:
    """`table` has one row a shape and engine (tokens/s), `samples` every timing."""

    table: pd.DataFrame
    samples: pd.DataFrame


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


def measure_engines(peers: Peers) -> Engines:
    """Decode and prefill by batch size, on one thread and on two."""
    choose = peers.budget.choose
    every = (1, 2, 4, 8, 16, 32)
    decode = {1: choose(smoke=(1, 4), default=(1, 2, 8, 32), thorough=every)}
    decode[2] = choose(smoke=(), default=(8, 32), thorough=every)
    prefill = {1: choose(smoke=((1, 32),), default=((1, 512),), thorough=((1, 512), (8, 64)))}
    prefill[2] = choose(smoke=(), default=((1, 128),), thorough=((1, 512), (8, 64)))
    rows: list[dict[str, Any]] = []
    samples: list[pd.DataFrame] = []
    for threads in (1, 2):
        steppers = _with_threads(peers, threads)
        for batch in decode[threads]:
            steps = {name: DecodeSteps(s, batch, peers.seed) for name, s in steppers.items()}
            place = {"part": "decode", "threads": threads, "batch_size": batch, "tokens": 1}
            _compare(peers, steps, batch, place, rows, samples)
        for batch, length in prefill[threads]:
            rng, size = np.random.default_rng(peers.seed), steppers[OURS].vocab_size
            ids = rng.integers(0, size, (batch, length)).tolist()
            calls = {name: _prefill(s, ids) for name, s in steppers.items()}
            place = {"part": "prefill", "threads": threads, "batch_size": batch, "tokens": length}
            _compare(peers, calls, batch * length, place, rows, samples)
    return Engines(rate_table(rows), pd.concat(samples))


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
    found, timings = measured(
        calls, dict.fromkeys(calls, float(tokens)), place,
        benchmark=f"{place['part']}/batch={place['batch_size']}/threads={place['threads']}",
        tokens=tokens, budget_s=peers.budget.share(0.03),
        min_blocks=peers.budget.choose(smoke=2, default=4, thorough=12), max_blocks=40,
        seed=peers.seed, threads=place["threads"], part=place["part"],
        batch_size=place["batch_size"], parameters={"tokens": place["tokens"]},
        aa=peers.budget.name == "thorough",
    )  # fmt: skip
    rows += found
    samples.append(timings)


def draw_decode(study: Engines) -> Figure:
    """Decode tokens a second against batch size, one panel a thread count."""
    table = study.table[study.table["part"] == "decode"]
    counts = sorted(set(table["threads"]))
    figure, panels = plt.subplots(
        1, len(counts), figsize=(4.4 * len(counts) + 1.6, 4.2), sharey=True, squeeze=False
    )
    for ax, threads in zip(panels[0], counts, strict=True):
        _lines(ax, table[table["threads"] == threads])
        ax.set_title(f"{threads} thread{'s' if threads > 1 else ''}")
        plots.batch_axis(ax, table["batch_size"], "batch size (requests)")
        ax.set_ylim(bottom=0)
    panels[0][0].set_ylabel("decode throughput (tokens/s)")
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    headline(figure, decode_sentence(study), len(counts))
    return figure


def _lines(ax: Axes, table: pd.DataFrame) -> None:
    for name, rows in table.groupby("implementation", sort=False):
        ordered = rows.sort_values("batch_size")
        columns = (ordered[c].to_numpy() for c in ("batch_size", "value", "low", "high"))
        plots.line_with_interval(ax, *columns, implementation=str(name))


def draw_ratios(study: Engines) -> Figure:
    """Our throughput over each peer's, a row a shape, with intervals; one thread."""
    table = study.table.query("threads == 1").dropna(subset=["ours_over_theirs_x"])
    table = table.sort_values(["part", "implementation", "batch_size", "tokens"])
    names = [
        f"{plots.label(r['implementation'])} · {r['part']} {r['batch_size']}"
        + (f" × {r['tokens']}" if r["part"] == "prefill" else "")
        for r in records(table)
    ]
    figure, ax = plt.subplots(figsize=(8.2, 1.2 + 0.27 * len(names)))
    if not names:
        ax.set_axis_off()
        ax.set_title("No other engine is installed")
        return figure
    columns = (table[c].to_list() for c in ("ours_over_theirs_x", "ratio_low_x", "ratio_high_x"))
    plots.points_with_interval(
        ax, names, *columns, implementations=table["implementation"].to_list()
    )
    plots.reference_line(ax, 1.0, "as fast as ours", axis="x", kind="floor")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set(xlabel="our throughput ÷ theirs (×), one thread; right of 1 we are faster")
    faster = int((table["ours_is"] == "faster").sum())
    slower = int((table["ours_is"] == "slower").sum())
    ax.set_title(
        f"Of {len(names)} comparisons we are faster in {faster} and slower in {slower}", pad=24
    )
    return figure


def decode_sentence(study: Engines) -> str:
    """Our decode throughput over each peer's at the largest batch, one thread."""
    return _sentence(study, "decode", "decode")


def prefill_sentence(study: Engines) -> str:
    """Our prefill throughput over each peer's with the longest prompt, one thread."""
    return _sentence(study, "prefill", "prefill")


def _sentence(study: Engines, part: str, what: str) -> str:
    table = study.table[(study.table["part"] == part) & (study.table["threads"] == 1)]
    rows = table[table["batch_size"] == table["batch_size"].max()]
    rows = rows.dropna(subset=["ours_over_theirs_x"])
    if rows.empty:
        return "No other engine is installed."
    parts = [
        f"{number(r['ours_over_theirs_x'], 2)} × {plots.label(r['implementation'])}"
        for r in records(rows)
    ]
    size, tokens = rows["batch_size"].iloc[0], rows["tokens"].iloc[0]
    where = f"At batch {size}" if part == "decode" else f"With {size} × {tokens} tokens"
    return f"{where} we {what} at {', '.join(parts)}"


def score(report: Report, study: Engines) -> None:
    """The goals beside peers as rows of the scorecard, one thread."""
    table = study.table.query("threads == 1").dropna(subset=["ours_over_theirs_x"])
    for (part, batch, peer), goal in GOALS.items():
        rows = table[
            (table["part"] == part)
            & (table["batch_size"] == batch)
            & (table["implementation"] == peer)
        ]
        for row in records(rows):
            prompts = f"Prefill of {batch} × {row['tokens']} tokens"
            what = prompts if part == "prefill" else f"Decode at batch {batch}"
            report.score(
                f"peers_{part}_{batch}_{peer.replace(':', '_').replace('-', '_')}",
                label=f"{what} beside {plots.label(peer)}",
                goal=goal, value=row["ours_over_theirs_x"], low=row["ratio_low_x"],
                high=row["ratio_high_x"], unit="×",
            )  # fmt: skip
