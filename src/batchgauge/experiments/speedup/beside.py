"""Goals of weights modes and threads, beside peers, from one run in fresh processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pandas as pd

from batchgauge.adapters.gguf_copy import copy_as, obstacle
from batchgauge.core.default_model import open_model
from batchgauge.experiments import fresh
from batchgauge.experiments.context import Context
from batchgauge.experiments.fresh import Entrant, Plan
from batchgauge.experiments.speedup.goals import Goal
from batchgauge.registry import missing_packages

FLOAT, FILE, ROUNDED = "numpy:float32", "numpy:file", "numpy:bfloat16"
AS_IS, IN_FLOAT, FEWER = "llama-cpp", "llama-cpp:f32", "llama-cpp, Q4_0"
TORCH = "transformers:bfloat16"
TEXTS = ((64, 200), (128, 200), (64, 2000))  # texts of a batch, characters of each
PROMPT = 512  # tokens of the prompt of a prefill

Rows = Mapping[str, object]


def entrants(context: Context, folder: Path) -> tuple[Entrant, ...]:
    """Ours in each mode and every peer that is installed; a Q4_0 copy goes to `folder`."""
    model = context.model
    found = [Entrant(spec, spec, model) for spec in (FLOAT, FILE)]
    if context.budget.name == "smoke":
        return tuple(found)
    found.append(Entrant(ROUNDED, ROUNDED, model))
    peers = [s for s in (AS_IS, IN_FLOAT, TORCH) if not missing_packages(s)]
    found += [Entrant(spec, spec, model) for spec in peers]
    file = open_model(model or None)
    if AS_IS in peers and not obstacle(file, "Q4_0"):
        found.append(Entrant(FEWER, AS_IS, str(copy_as(file, folder / "fewer.gguf", "Q4_0"))))
    return tuple(found)


def measure(context: Context, folder: Path) -> pd.DataFrame:
    """Records of decode, prefill and tokenizing on one thread and on several."""
    choose = context.budget.choose
    plan = Plan(
        entrants(context, folder),
        choose(smoke=(1, 4), default=(1, 2, 8, 32), thorough=(1, 2, 8, 32)),
        choose(smoke=(16,), default=(PROMPT,), thorough=(PROMPT,)),
        (FLOAT, FILE, TORCH),
        choose(smoke=TEXTS[:1], default=TEXTS, thorough=TEXTS),
        fresh.thread_counts(),
        blocks=choose(smoke=2, default=2, thorough=6),
        seed=context.seed,
        model=context.model,
    )
    return fresh.measure(
        plan, processes=choose(smoke=1, default=5, thorough=11), budget_s=context.budget.seconds
    )


def goals(samples: pd.DataFrame) -> list[Goal]:
    """A goal for each pair that was measured; peers that are not installed have none."""
    rests = fresh.rests_on(samples)
    rows = []
    for part, goal, target, over, under in _pairs(samples):
        if found := fresh.ratio(samples, over, under):
            row = Goal(part, goal, target, "higher", *found, note=f"over {rests}")
            mode = str(over.get("implementation", "")).partition(":")[2]
            rows.append(replace(row, weights=mode, threads=cast(int, over["threads"])))
    return rows


def _pairs(samples: pd.DataFrame) -> Iterator[tuple[str, str, float, Rows, Rows]]:
    """Part, goal, target, the rows over and those under."""

    def decode(name: str, size: int, threads: int = 1) -> Rows:
        return {
            "part": "decode", "implementation": name, "batch_size": size, "threads": threads,
        }  # fmt: skip

    for size, target in ((1, 3.3), (2, 3.3), (8, 1.8), (32, 1.0)):
        goal = f"weights as in the file over float32, batch {size}, one thread"
        yield "decode", goal, target, decode(FILE, size), decode(FLOAT, size)
    for size, target in ((1, 1.7), (2, 2.4), (8, 3.2), (32, 4.0)):
        goal = f"weights as in the file over llama.cpp on the same file, batch {size}, one thread"
        yield "decode", goal, target, decode(FILE, size), decode(AS_IS, size)
    for size in (1, 2, 8, 32):
        goal = f"weights as in the file over llama.cpp on a Q4_0 file, batch {size}, one thread"
        yield "decode", goal, 1.1, decode(FILE, size), decode(FEWER, size)
    two = max((n for n in set(samples["threads"]) if n <= 2), default=1)
    if two == 2:
        for name, mode in ((FLOAT, "float32"), (FILE, "file")):
            for size, target in ((1, 1.6), (8, 1.7), (32, 1.7)):
                goal = f"two threads over one, {mode}, batch {size}"
                yield "decode", goal, target, decode(name, size, 2), decode(name, size)
        for mine, theirs, target, label in (
            (FLOAT, IN_FLOAT, 1.3, "float32 over llama.cpp float32"),
            (FILE, AS_IS, 1.3, "weights as in the file over llama.cpp on the same file"),
            (ROUNDED, TORCH, 1.2, "bfloat16 over torch bfloat16"),
            (FILE, TORCH, 1.2, "weights as in the file over torch bfloat16"),
        ):
            for size in (1, 8, 32):
                goal = f"{label}, batch {size}, two threads"
                yield "decode", goal, target, decode(mine, size, 2), decode(theirs, size, 2)
    yield from _prefill_and_texts(two)


def _prefill_and_texts(two: int) -> Iterator[tuple[str, str, float, Rows, Rows]]:
    def prefill(name: str, threads: int) -> Rows:
        return {"part": "prefill", "implementation": name, "threads": threads}

    yield ("prefill", "weights as in the file over float32, one thread", 1.0,
           prefill(FILE, 1), prefill(FLOAT, 1))  # fmt: skip
    if two < 2:
        return
    for name, mode in ((FLOAT, "float32"), (FILE, "file")):
        goal = f"two threads over one, {mode}"
        yield "prefill", goal, 1.75, prefill(name, 2), prefill(name, 1)
    goal = "float32 over torch bfloat16, two threads"
    yield "prefill", goal, 1.0, prefill(FLOAT, 2), prefill(TORCH, 2)
    for (count, characters), target in zip(TEXTS, (1.7, 1.85, 1.8), strict=True):
        texts = {"part": "tokenize", "batch_size": count, "characters": characters}
        goal = f"two threads over one, {count} texts of {characters:,} characters"
        yield "tokenizing", goal, target, {**texts, "threads": 2}, {**texts, "threads": 1}


def scaling(samples: pd.DataFrame) -> pd.DataFrame:
    """Throughput of ours with each number of threads over one, with 95 % intervals."""
    rows = []
    ours = samples[samples["implementation"].isin([FLOAT, FILE, "numpy"])]
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
    count = table["processes"].iloc[0]
    rests = f"{count} fresh processes" if count > 1 else "the blocks of one fresh process"
    return f"{most} threads over one: {said} (from {rests}; nothing is extrapolated)."
