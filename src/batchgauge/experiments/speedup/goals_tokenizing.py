"""Goals of tokenizing: beside tiktoken and HF tokenizers, S(32), and over our own baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from batchgauge.baseline.tokenizer import BaselineTokenizer
from batchgauge.clock import timed
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.experiments.context import Context
from batchgauge.experiments.speedup.goals import Goal, ratio, seconds
from batchgauge.experiments.ways import quick_ms, quickest, ways
from batchgauge.measuring import Labels, Stopping, measure
from batchgauge.protocols import Tokenizer
from batchgauge.registry import open_tokenizer
from batchgauge.text import percent
from batchgauge.workload import texts


def _peer(name: str, model: str) -> Tokenizer | None:
    """A foreign tokenizer, or None where it is not installed or does not fit."""
    try:
        return open_tokenizer(name, model or None)
    except UserError:
        return None


def against_peers(context: Context, ours: BPETokenizer, model: str) -> list[Goal]:
    """One at a time and in batches of 32, warm, against tiktoken's and HF's best ways."""
    tik, hf = _peer("tiktoken", model), _peer("hf", model)
    goals = []
    for kind, length, batch, peer, target in (
        ("prose", 200, 1, "tiktoken", 1.2),
        ("prose", 2000, 1, "tiktoken", 6.0),
        ("prose", 200, 1, "HF tokenizers", 5.0),
        ("prose", 200, 32, "tiktoken", 5.0),
        ("prose", 200, 32, "HF tokenizers", 18.0),
        ("prose", 2000, 32, "tiktoken", 10.0),
        ("prose", 2000, 32, "HF tokenizers", 40.0),
        ("unicode", 200, 32, "tiktoken", 2.0),
    ):
        what = "one text" if batch == 1 else f"batch of {batch} texts"
        goal = f"{what} of {length} characters ({kind}), against {peer}"
        theirs = tik if peer == "tiktoken" else hf
        if theirs is None:
            note = f"{peer} is not installed, or cannot hold this vocabulary"
            goals.append(Goal("tokenizing", goal, target, "higher", note=note))
            continue
        chosen = texts(kind, length, batch, context.seed)  # type: ignore[arg-type]  # of the tuple
        mine_by, mine = quickest(ways(ours, chosen))
        best, call = quickest(ways(theirs, chosen))
        each, together = [ours.encode(t) for t in chosen], ours.encode_many(chosen).tolist()
        if not each == together == ways(theirs, chosen)["plain"]():
            goals.append(Goal("tokenizing", goal, target, "higher", note="the ids differ: broken"))
            continue
        calls = {peer: call, "numpy": mine}
        fixed = quick_ms(ways(ours, ["a"])[mine_by]) / quick_ms(mine)
        speeds = [_mb_per_s(way, chosen) for way in (mine, call)]
        note = (
            f"ids equal; {peer} by {best}, ours by {mine_by}; {speeds[0]:.0f} MB/s against "
            f"{speeds[1]:.0f}; a call on one letter takes {percent(fixed)} of our time"
        )
        goals.append(ratio(context, "tokenizing", goal, target, calls, note=note))
    return goals


def _mb_per_s(call: Callable[[], object], chosen: list[str]) -> float:
    return sum(len(t.encode()) for t in chosen) / 1e3 / quick_ms(call)


def _one_by_one(ours: BPETokenizer, chosen: list[str]) -> list[list[int]]:
    return [ours.encode(text) for text in chosen]


def _batches_of_one(ours: BPETokenizer, chosen: list[str]) -> None:
    for text in chosen:
        ours.encode_many([text])


def strict(context: Context, ours: BPETokenizer) -> list[Goal]:
    """S(32): the same implementation, one call a text against one call for all."""
    goals = []
    for length, target in ((32, 10.0), (200, 5.0)):
        chosen = texts("prose", length, 32, context.seed)
        alone = ratio(
            context,
            "tokenizing", f"S(32), texts of {length} characters, same implementation", target,
            {
                "one at a time": partial(_one_by_one, ours, chosen),
                "batch": partial(ours.encode_many, chosen),
            },
        )  # fmt: skip
        each = _mb_per_s(partial(_one_by_one, ours, chosen), chosen)
        whole = _mb_per_s(partial(ours.encode_many, chosen), chosen)
        singles = _mb_per_s(partial(_batches_of_one, ours, chosen), chosen)
        note = (
            f"{each:.0f} MB/s one at a time by encode, {whole:.0f} MB/s in the batch; the goal "
            f"asks for {target * each:.0f} MB/s there. With encode_many for every text "
            f"({singles:.0f} MB/s), S(32) is {whole / singles:.1f} ×"
        )
        goals.append(replace(alone, note=note))
    return goals


def against_baseline(context: Context, ours: BPETokenizer, model: str) -> list[Goal]:
    """Batch 32 against our own baseline, warm (words seen before) and cold (an empty table)."""
    baseline = BaselineTokenizer.from_gguf(model or None)
    chosen = texts("prose", 200, 32, context.seed)
    vocabulary = ours.vocabulary

    def slow() -> object:
        return [baseline.encode(t) for t in chosen]

    def cold() -> object:
        return fresh.pop().encode_many(chosen)

    goal = "batch of 32 × 200 characters against our baseline"
    warm = ratio(
            context,
        "tokenizing", f"{goal}, warm", 100.0,
        {"baseline": slow, "numpy": partial(ours.encode_many, chosen)},
    )  # fmt: skip
    slow_ms = measure(
        slow, Labels("baseline"), stopping=Stopping(seconds(context), least=3, most=1000)
    ).steady_ms
    fresh: list[BPETokenizer] = []
    cold_ms = []
    for _ in range(5):
        fresh.append(BPETokenizer(vocabulary, threads=1))
        cold_ms.append(timed(cold).wall_ms)
    ratios = np.median(slow_ms) / np.sort(cold_ms)
    return [
        warm,
        Goal(
            "tokenizing", f"{goal}, cold", 8.0, "higher", float(np.median(ratios)),
            float(ratios.min()), float(ratios.max()), "×",
            "range over 5 fresh tokenizers, compiled before",
        ),
    ]  # fmt: skip
