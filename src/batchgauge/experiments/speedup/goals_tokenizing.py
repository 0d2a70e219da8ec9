"""Goals of tokenizing: beside tiktoken and HF tokenizers, S(32), and over our own baseline."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from batchgauge.baseline.tokenizer import BaselineTokenizer
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.experiments.context import Context
from batchgauge.experiments.speedup.goals import Goal, once_ms, quick_ms, ratio, seconds
from batchgauge.measuring import measure
from batchgauge.registry import open_tokenizer
from batchgauge.workload import texts


def _peer(name: str, model: str) -> Any:
    """A foreign tokenizer's own object, or None where it is not installed or does not fit."""
    try:
        return open_tokenizer(name, model or None).raw  # type: ignore[attr-defined]  # adapters'
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
        raw = tik if peer == "tiktoken" else hf
        if raw is None:
            note = f"{peer} is not installed, or cannot hold this vocabulary"
            goals.append(Goal("tokenizing", goal, target, "higher", note=note))
            continue
        chosen = texts(kind, length, batch, context.seed)  # type: ignore[arg-type]  # of the tuple
        mine_by, mine = _quickest(_our_ways(ours, chosen))
        ways = _tiktoken_ways(raw, chosen) if peer == "tiktoken" else _hf_ways(raw, chosen)
        best, quickest = _quickest(ways)
        each, together = [ours.encode(t) for t in chosen], ours.encode_many(chosen).tolist()
        if not each == together == ways["plain"]():
            goals.append(Goal("tokenizing", goal, target, "higher", note="the ids differ: broken"))
            continue
        calls = {peer: quickest, "numpy": mine}
        fixed = quick_ms(_our_ways(ours, ["a"])[mine_by]) / quick_ms(mine)
        speeds = [_mb_per_s(call, chosen) for call in (mine, quickest)]
        note = (
            f"ids equal; {peer} by {best}, ours by {mine_by}; {speeds[0]:.0f} MB/s against "
            f"{speeds[1]:.0f}; a call on one letter takes {fixed:.0%} of our time"
        )
        goals.append(ratio(context, "tokenizing", goal, target, calls, note=note))
    return goals


Ways = dict[str, Callable[[], Any]]


def _quickest(ways: Ways) -> tuple[str, Callable[[], Any]]:
    """The quickest way and its name, by a short trial."""
    name = min(ways, key=lambda way: quick_ms(ways[way]))
    return name, ways[name]


def _our_ways(ours: BPETokenizer, chosen: list[str]) -> Ways:
    """One call for all; for a single text also `encode`, which makes a list of the ids."""
    ways: Ways = {"encode_many": partial(ours.encode_many, chosen)}
    if len(chosen) == 1:
        ways["encode"] = partial(ours.encode, chosen[0])
    return ways


def _mb_per_s(call: Callable[[], object], chosen: list[str]) -> float:
    return sum(len(t.encode()) for t in chosen) / 1e3 / quick_ms(call)


def _tiktoken_ways(raw: Any, chosen: list[str]) -> Ways:
    return {
        "plain": lambda: [raw.encode_ordinary(t) for t in chosen],
        "encode_to_numpy": lambda: [raw.encode_to_numpy(t, disallowed_special=()) for t in chosen],
        "encode_ordinary_batch": lambda: raw.encode_ordinary_batch(chosen, num_threads=1),
    }


def _hf_ways(raw: Any, chosen: list[str]) -> Ways:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # all of them on one thread

    def fast() -> list[list[int]]:
        return [e.ids for e in raw.encode_batch_fast(chosen, add_special_tokens=False)]

    def plain() -> list[list[int]]:
        return [raw.encode(t, add_special_tokens=False).ids for t in chosen]

    return {"plain": plain, "encode_batch_fast": fast}


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
    slow_ms = measure(slow, name="baseline", budget_s=seconds(context), min_samples=3).steady_ms
    fresh: list[BPETokenizer] = []
    cold_ms = []
    for _ in range(5):
        fresh.append(BPETokenizer(vocabulary))
        cold_ms.append(once_ms(cold))
    ratios = np.median(slow_ms) / np.sort(cold_ms)
    return [
        warm,
        Goal(
            "tokenizing", f"{goal}, cold", 8.0, "higher", float(np.median(ratios)),
            float(ratios.min()), float(ratios.max()), "×",
            "range over 5 fresh tokenizers, compiled before",
        ),
    ]  # fmt: skip
