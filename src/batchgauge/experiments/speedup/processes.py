"""What notebook 03 states of decode, prefill, whole requests and tokenizing, from fresh processes.

One run of them measures all of it: weights modes, threads, batch sizes, other forms of the
weights, and our baseline beside. Peers are notebook 06's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import pandas as pd

from batchgauge.core.config import Config
from batchgauge.core.counts import decode_counts, prefill_counts, total
from batchgauge.core.default_model import open_model
from batchgauge.core.weights import MODES
from batchgauge.experiments import fresh, turns
from batchgauge.experiments.context import Context
from batchgauge.experiments.speedup.goals import Goal
from batchgauge.experiments.speedup.quality import Form
from batchgauge.experiments.turns import BASELINE, CONTEXT, REQUEST, Entrant, Plan
from batchgauge.machine.identity import Machine
from batchgauge.machine.rates import Rates, cached_rates
from batchgauge.text import figures, first_upper
from batchgauge.workload import request_lengths

FLOAT, FILE = "float32, own file", "file, own file"
TEXTS = ((64, 200), (128, 200), (64, 2000))  # texts of a batch, characters of each
OVER = (32, 200)  # the same of those that the baseline reads too

Rows = Mapping[str, object]


def measure(context: Context, forms: Sequence[Form]) -> pd.DataFrame:
    """Records of all that; each process measures each of it.

    The model's own file comes first among `forms`, in its modes.
    """
    choose = context.budget.choose
    entrants = tuple(Entrant(f.name, f"numpy:{f.weights}", str(f.path)) for f in forms)
    own = tuple(e for e in entrants if e.name.endswith("own file"))
    lengths, _ = request_lengths(8, scale=0.03, seed=context.seed)
    sizes = choose(smoke=(1, 4), default=(1, 2, 8, 32), thorough=(1, 2, 4, 8, 16, 32))
    blocks = choose(smoke=4, default=2, thorough=4)
    plan = Plan(
        own, sizes,
        prompts=(choose(smoke=16, default=128, thorough=512),),
        readers=(FLOAT, FILE),
        texts=choose(smoke=TEXTS[:1], default=TEXTS, thorough=TEXTS),
        threads=turns.thread_counts(), blocks=blocks, seed=context.seed, model=context.model,
        requests=choose(smoke=(1,), default=(8,), thorough=(1, 8, 32)),
        ragged=choose(smoke=(3, 9), default=(), thorough=tuple(lengths.tolist())),
        over_texts=OVER,
    )  # fmt: skip
    ends = (sizes[0], sizes[-1])
    others = Plan(entrants[len(own) :], ends, blocks=blocks, seed=context.seed)
    return turns.measure(
        plan, others, processes=context.budget.processes,
        budget_s=10 * context.budget.seconds,
    )  # fmt: skip


def goals(context: Context, samples: pd.DataFrame) -> list[Goal]:
    """A goal for each pair that was measured, and the distances from the machine's limits."""
    rests, rows = fresh.rests_on(samples), []
    for part, goal, target, over, under in _pairs(samples):
        if found := fresh.ratio(samples, over, under):
            mode = str(over["implementation"]).partition(",")[0]
            rows.append(
                Goal(
                    part, goal, target, "higher", *found, note=f"over {rests}",
                    weights=mode if mode in MODES else "", threads=cast(int, over["threads"]),
                )
            )  # fmt: skip
    return rows + limits(context, samples, cached_rates(1, Machine.here().id))


def _rows(part: str, name: str, threads: int = 1, **shape: int) -> Rows:
    return {"part": part, "implementation": name, "threads": threads, **shape}


def _pairs(samples: pd.DataFrame) -> Iterator[tuple[str, str, float, Rows, Rows]]:
    """Part, goal, target, the rows over and those under."""
    decode, prefill = partial(_rows, "decode"), partial(_rows, "prefill")
    one = decode(FLOAT, batch_size=1)
    for size, target in ((2, 1.0), (8, 5.0)):
        goal = f"S({size}) of decode behind {CONTEXT} positions, float32, one thread"
        yield "decode", goal, target, decode(FLOAT, batch_size=size), one
    for size, target in ((1, 3.3), (2, 3.3), (8, 1.8), (32, 1.0)):
        goal = f"weights as in the file over float32, batch {size}, one thread"
        over, under = (decode(name, batch_size=size) for name in (FILE, FLOAT))
        yield "decode", goal, target, over, under
    has_two = (samples["threads"] == 2).any()
    modes = ((FLOAT, "float32"), (FILE, "file"))
    for name, mode in modes if has_two else ():
        for size, target in ((1, 1.6), (8, 1.7), (32, 1.7)):
            goal = f"two threads over one, {mode}, batch {size}"
            over, under = (decode(name, threads, batch_size=size) for threads in (2, 1))
            yield "decode", goal, target, over, under
    length = samples[samples["part"] == "prefill"]["tokens"].max()
    goal = f"weights as in the file over float32, {length} tokens, one thread"
    yield "prefill", goal, 1.0, prefill(FILE), prefill(FLOAT)
    count, characters = OVER
    goal = f"batch of {count} × {characters} characters against our baseline, warm"
    part = "tokenize over the baseline"
    yield "tokenizing", goal, 100.0, _rows(part, "numpy"), _rows(part, BASELINE)
    goal = "throughput of ragged prompts over equal ones, batch of 8"
    yield "ragged", goal, 0.85, _rows("ragged", "ragged"), _rows("ragged", "equal")
    if not has_two:
        return
    for name, mode in modes:
        goal = f"two threads over one, {mode}, {length} tokens"
        yield "prefill", goal, 1.75, prefill(name, 2), prefill(name, 1)
    for (count, characters), target in zip(TEXTS, (1.7, 1.85, 1.8), strict=True):
        goal = f"two threads over one, {count} texts of {characters:,} characters"
        over, under = (
            _rows("tokenize", "numpy", threads, batch_size=count, characters=characters)
            for threads in (2, 1)
        )
        yield "tokenizing", goal, target, over, under


def limits(context: Context, samples: pd.DataFrame, rates: Rates) -> list[Goal]:
    """Decode's time over the roofline's floor, and prefill's share of the sgemm rate.

    `rates` are raised where these records show more, so that nothing is below its floor.
    """
    config = Config.from_file(open_model(context.model or None))
    mine = samples[(samples["implementation"] == FLOAT) & (samples["threads"] == 1)]
    works = []
    for size, target in ((1, 1.15), (8, 1.7), (32, 1.8)):
        count = total(decode_counts(config, [CONTEXT + 1] * size, 4))
        works.append((_rows("decode", FLOAT, batch_size=size), size, count, target))
    length = int(mine[mine["part"] == "prefill"]["tokens"].max())
    count = total(prefill_counts(config, [length], 4))
    works.append((_rows("prefill", FLOAT), length, count, 75.0))
    found = []
    for rows, tokens, count, target in works:
        logs = fresh.rate(samples, rows)
        if logs is not None:
            seconds = [tokens / math.exp(v) for v in (logs.high, logs.value, logs.low)]
            rates = rates.raised(seconds[1], count.bytes, count.flops)
            found.append((rows, seconds, count, target))
    goals = []
    for rows, seconds, count, target in found:
        floor_s = rates.floor_s(count.bytes, count.flops)
        bound = "sgemm rate" if count.flops / count.bytes > rates.ridge_flops_per_byte else "memory"
        note = f"bound by {bound}; over {fresh.rests_on(samples)}"
        low, value, high = (s / floor_s for s in seconds)
        if rows["part"] == "decode":
            goal = f"time over the roofline's floor at batch {rows['batch_size']}"
            row = Goal("decode", goal, target, "lower", value, low, high, note=note)
        else:
            shares = [100.0 * count.flops / rates.flops_per_s / s for s in seconds]
            goal = f"share of the sgemm rate at {length} tokens"
            row = Goal(
                "prefill", goal, target, "higher", shares[1], shares[2], shares[0], "%", note
            )
        goals.append(replace(row, weights="float32"))
    return goals


def over_baseline(samples: pd.DataFrame) -> pd.DataFrame:
    """Throughput over our baseline, one at a time: whole requests by batch size, and texts."""
    rows = []
    for part, what in (("tokenize over the baseline", "tokenizing"), ("requests", "inference")):
        mine = samples[(samples["part"] == part) & (samples["implementation"] != BASELINE)]
        for size in sorted(set(mine["batch_size"])):
            over = {"part": part, "implementation": mine["implementation"].iloc[0]}
            found = fresh.ratio(
                samples, {**over, "batch_size": size}, {"part": part, "implementation": BASELINE}
            )
            if found:
                rows.append((what, size, *found, len(set(mine["process"]))))
    columns = ["part", "batch_size", "value", "low", "high", "processes"]
    return pd.DataFrame(rows, columns=columns)


def over_baseline_sentence(table: pd.DataFrame) -> str:
    """What everything together gives, in its largest batch, with what the work was."""
    works = {
        "tokenizing": f"texts of {OVER[1]} characters",
        "inference": f"requests of {REQUEST[0]} tokens that get {REQUEST[1]}, float32",
    }
    said = [
        f"{row['part']} in batches of {row['batch_size']} ({works[row['part']]}, "
        f"one thread) does {figures(row['value'])} × "
        f"[{figures(row['low'])}, {figures(row['high'])}] the work of the baseline, one at a time"
        for _, rows in table.groupby("part", sort=False)
        for row in [rows.iloc[-1]]
    ]
    rests = fresh.in_words(table["processes"].iloc[0])
    return f"{first_upper('; '.join(said))}. Intervals are over {rests}."


def scaling(samples: pd.DataFrame) -> pd.DataFrame:
    """Throughput with each number of threads over one, with 95 % intervals."""
    rows = []
    ours = samples[
        samples["implementation"].isin([FLOAT, FILE, "numpy"])
        & samples["part"].isin(["decode", "prefill", "tokenize"])
    ]
    keys = ["part", "implementation", "weights", "batch_size", "tokens", "characters"]
    for key, _ in ours.groupby(keys, sort=False):
        shape = dict(zip(keys, key, strict=True))
        for threads in sorted(set(ours["threads"])):
            found = fresh.ratio(ours, {**shape, "threads": threads}, {**shape, "threads": 1})
            if found:
                rows.append((*key, threads, *found, len(set(ours["process"]))))
    return pd.DataFrame(rows, columns=[*keys, "threads", "value", "low", "high", "processes"])


def scaling_sentence(table: pd.DataFrame) -> str:
    """What the most threads measured give each part, from least to most."""
    most = table["threads"].max()
    if most == 1:
        return "This machine has one full-speed core, so there is nothing to share."
    rows = table[table["threads"] == most]
    said = ", ".join(
        f"{part} {values['value'].min():.2f} to {values['value'].max():.2f} ×"
        for part, values in rows.groupby("part", sort=False)
    )
    rests = fresh.in_words(table["processes"].iloc[0])
    return f"{most} threads over one: {said} (from {rests}; nothing is extrapolated)."
