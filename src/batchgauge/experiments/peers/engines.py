"""Prefill, decode and load beside transformers and llama.cpp, each pair in fresh processes.

The same prompts and tokens, logits of every row taken out. A decode call is one step behind
`CONTEXT` positions and a few more. A peer's processes hold nothing but it and ours. How
many there are is the profile's, whatever one takes: fewer than five would say nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from batchgauge.adapters.gguf_copy import copy_as, obstacle
from batchgauge.core.default_model import open_model
from batchgauge.errors import UserError
from batchgauge.experiments import turns
from batchgauge.experiments.peers.participants import Peers
from batchgauge.experiments.peers.rates import OURS, table
from batchgauge.experiments.turns import Entrant, Plan
from batchgauge.experiments.ways import ENGINES, FEWER, FLOAT
from batchgauge.redaction import redacted
from batchgauge.registry import weights_of

CONTEXT = 8  # few, as filling the caches of all engines is most of what a process takes


def measure_engines(peers: Peers, decode_sizes: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode at `decode_sizes` and prefill on one thread; on two the largest batch and prefill.

    One row a shape, peer and engine (tokens/s), and every timing.
    """
    context = peers.context
    choose = context.budget.choose
    kept, _ = context.fitted("Decode", sorted(decode_sizes), 2, 0.5, blocks=8, alone=False)
    length = choose(smoke=32, default=128, thorough=512)
    length = length if context.budget.name == "smoke" else context.positions(length)
    found = []
    with tempfile.TemporaryDirectory(prefix="batchgauge-") as folder:
        for peer, entrants in pairs(peers, Path(folder)).items():
            plan = Plan(
                entrants, kept, prompts=(length,),
                threads=tuple(n for n in turns.thread_counts() if n <= choose(
                    smoke=1, default=2, thorough=2
                )),
                shared=() if context.budget.name == "thorough" else (max(kept),),
                context=CONTEXT,
                blocks=choose(smoke=4, default=2, thorough=6), seed=context.seed,
                model=context.model,
            )  # fmt: skip
            processes = context.budget.processes if len(entrants) > 1 else 1
            samples = turns.measure(plan, processes=processes)
            found.append(samples.assign(pair=peer))
    every = pd.concat(found, ignore_index=True)
    rows = table(every)
    return rows.assign(weights=rows["implementation"].map(weights_of)), every


def pairs(peers: Peers, folder: Path) -> dict[str, tuple[Entrant, ...]]:
    """Each peer that takes part with ours beside it; ours alone where there is none.

    A copy of the model in Q4_0 goes to `folder`.
    """
    model, found = peers.context.model, dict[str, tuple[Entrant, ...]]()
    specs = [spec for spec in peers.steppers() if spec.partition(":")[0] != OURS]
    if "llama-cpp" in specs and peers.context.budget.name != "smoke":
        specs.append(FEWER)
    for spec in specs:
        theirs = Entrant(redacted(spec), spec, model)
        if spec == FEWER:
            file = open_model(model or None)
            if obstacle(file, "Q4_0"):
                continue
            copy = copy_as(file, folder / "fewer.gguf", "Q4_0")
            theirs = Entrant(FEWER, "llama-cpp", str(copy))
        ours = tuple(Entrant(mine, mine, model) for mine in ENGINES.get(spec, (FLOAT,)))
        found[theirs.name] = (*ours, theirs)
    return found or {OURS: (Entrant(FLOAT, FLOAT, model),)}


def load_table(peers: Peers) -> pd.DataFrame:
    """One row an engine, each from a fresh process; the smoke profile takes two of them.

    Raises UserError when one fails.
    """
    rows = []
    specs, model = list(peers.engines), peers.context.model
    for spec in specs[
        :: peers.context.budget.choose(smoke=len(specs) - 1 or 1, default=1, thorough=1)
    ]:
        done = subprocess.run(
            [sys.executable, "-m", "batchgauge.experiments.peers.load", spec, model],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise UserError(f"The engine '{spec}' could not be loaded alone: {last[0]}.")
        rows.append({"engine": redacted(spec), **json.loads(done.stdout.strip().splitlines()[-1])})
    return pd.DataFrame(rows)
