"""`batchgauge suggest` on real engines and servers, each against a sweep of its own.

    python -m tests.advice_engines --engines llama-cpp,transformers --out data/advice_engines.csv
    python -m tests.advice_engines --engines llama-server=openai:http://127.0.0.1:8080/v1 --out …

Each engine is asked three times for its best throughput, and three times for the best with a
target of the latency that 95 of 100 requests keep: four times what one request takes alone. Then
two sweeps in shuffled order run the advised settings and many others. Each sweep says which
setting is best, the other what that and the advised one give: who was lucky in one is not so in
the other. Rows of engines that were asked before stay in the file.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from threadpoolctl import threadpool_limits

from batchgauge.advise import Load, suggest
from batchgauge.files import write_csv
from batchgauge.registry import open_engine
from batchgauge.sizing.advice.decision import Question
from batchgauge.sizing.advice.load import Batches, ClosedLoop, Requests, whole_settings
from batchgauge.sizing.advice.observe import observe
from batchgauge.sizing.advice.search import Target
from batchgauge.workload import load_prompts, to_items

RUNS, BUDGET_S, LARGEST, TOKENS, THREADS = 3, 40.0, 32, 8, 1
SWEPT = (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32)
LEAST_S, CYCLES = 1.0, 3  # of a run of a sweep
PATIENCE = 4.0  # target over the latency of one request alone
SLACK = 1.05  # a target counts as kept up to this: the sweep's own noise


class Seen(NamedTuple):
    """What a sweep saw at a setting: units of work a second, latency of 95 of 100 in ms."""

    rate: float
    latency_ms: float


def look(target: Target, setting: float) -> Seen:
    """One run at a setting."""
    run = target.run(setting, LEAST_S, CYCLES, math.inf)
    seen = observe(run, LEAST_S, "throughput", {}, tokens=True)
    return Seen(math.exp(seen.value), math.exp(seen.metrics["latency"][0]))


def sweep(target: Target, settings: Sequence[float], seed: int) -> dict[float, Seen]:
    """Every setting once, in shuffled order."""
    order = random.Random(seed).sample(list(settings), len(settings))
    return {setting: look(target, setting) for setting in order}


def judged(
    advised: float, sweeps: Sequence[Mapping[float, Seen]], target_ms: float
) -> tuple[float, float, bool]:
    """(share of the best throughput, the best setting, whether the target is kept).

    The best setting of one sweep is compared in the other, both ways; the share is the mean. 0
    where nothing is advised.
    """
    shares, bests = [], []
    for chooses, judges in (sweeps, sweeps[::-1]):
        kept = [s for s, seen in chooses.items() if seen.latency_ms <= target_ms] or [min(chooses)]
        best = max(kept, key=lambda setting: chooses[setting].rate)
        bests.append(best)
        shares.append(judges[advised].rate / judges[best].rate if advised else 0.0)
    mean_ms = sum(s[advised].latency_ms for s in sweeps) / 2 if advised else math.inf
    return sum(shares) / 2, bests[0], mean_ms <= SLACK * target_ms


def compared(name: str, engine: str) -> list[dict[str, object]]:
    """One row an answer."""
    load = Load(max_tokens=TOKENS, largest=LARGEST, chat=False)
    items = to_items(load_prompts(""), max_tokens=TOKENS, chat=False, seed=1)
    opened: Any = open_engine(engine, None, THREADS)
    kind = ClosedLoop if hasattr(opened, "ask") else Batches
    target = kind(opened, Requests(items, 1), whole_settings(LARGEST))
    alone_ms = look(target, 1.0).latency_ms
    asked = []
    for latency_ms in (math.inf, PATIENCE * alone_ms):
        targets = {} if math.isinf(latency_ms) else {"latency": latency_ms}
        for seed in range(RUNS):
            question = Question("throughput", targets, BUDGET_S, seed)
            asked.append((latency_ms, seed, suggest(opened, question, load, threads=THREADS)))
            print(name, latency_ms, seed, asked[-1][2].setting, flush=True)  # noqa: T201
    settings = sorted({*map(float, SWEPT), *(advice.setting or 1.0 for *_, advice in asked)})
    sweeps = [sweep(target, settings, seed) for seed in (0, 1)]
    rows: list[dict[str, object]] = []
    for latency_ms, seed, advice in asked:
        share, best, keeps = judged(advice.setting or 0.0, sweeps, latency_ms)
        rows.append(
            {
                "engine": name, "threads": THREADS, "seed": seed,
                "latency_target_ms": latency_ms, "advised": advice.setting, "best": best,
                "throughput_share": round(share, 4), "target_kept": keeps,
                "stated_within_5_percent": round(advice.found.decision.within[0.95], 3),
                "limit": advice.limit.name, "search_s": round(advice.found.seconds, 1),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Every engine that is named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", required=True, help="NAME=SPEC, with commas between them")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for named in given.engines.split(","):
        name, _, engine = named.partition("=")
        with threadpool_limits(THREADS):
            rows = pd.DataFrame(compared(name, engine or name))
        if given.out.exists():
            before = pd.read_csv(given.out)
            rows = pd.concat([before[~before["engine"].isin(rows["engine"])], rows])
        write_csv(rows, given.out)
        print(rows.to_string(), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
