"""`batchgauge suggest` on real engines and servers, each beside sweeps of the whole workload.

    python -m tests.advice_engines --engines llama-cpp,transformers
    python -m tests.advice_engines --engines llama-server=openai:http://127.0.0.1:8080/v1 \
        --weights file

Each engine is asked three times for its best throughput on the project's prompts. Then one sweep
runs all prompts at every setting of a list and at those advised; the two that were quickest in it
and the advised ones run all prompts twice more. The share is of those last runs alone: who was
lucky in the first sweep is not so in them. An engine in this process answers the shuffled prompts
in batches, one after the other; a server always has so many of them at once.
`data/advice_engines.csv` has the answers, `data/advice_sweeps.csv` every run; rows of engines
asked before stay in both.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import perf_counter, time
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits

from batchgauge.advise import Load, suggest
from batchgauge.files import write_csv
from batchgauge.registry import open_engine, weights_of
from batchgauge.request import BatchItem, InferenceBatchRequest
from batchgauge.sizing.advice.decision import Question
from batchgauge.sizing.advice.load import letters
from batchgauge.workload import load_prompts, to_items

RUNS, BUDGET_S, LARGEST, TOKENS, THREADS = 3, 120.0, 16, 16, 1
SWEPT = (1, 2, 3, 4, 6, 8, 12, 16)
QUICKEST, AGAIN = 2, 2  # settings of the sweep that run again beside the advised ones, how often
Items = Sequence[BatchItem[InferenceBatchRequest]]


def in_batches(engine: Any, items: Items, size: int, seed: int) -> float:
    """Tokens per second of all items, shuffled, in batches of so many."""
    order = random.Random(seed).sample(list(items), len(items))
    engine.infer_batch(order[:size])
    begin, tokens = perf_counter(), 0
    for first in range(0, len(order), size):
        result = engine.infer_batch(order[first : first + size])
        tokens += sum(row.data.tokens_generated for row in result.responses)
    return tokens / (perf_counter() - begin)


def at_once(server: Any, items: Items, number: int, seed: int) -> float:
    """Tokens per second of all items, shuffled and new to the server, so many at once.

    The last quarter are short ones, so that hardly a slot is idle while the last ones end.
    """
    rng = random.Random(seed)
    by_length = sorted(items, key=lambda item: letters(item.data))
    last = rng.sample(by_length[: len(items) // 2], len(items) // 4)
    kept = {item.id for item in last}
    order = [item for item in rng.sample(by_length, len(items)) if item.id not in kept] + last
    begin, mark = perf_counter(), int(time() % 1e5)
    work = [replace(item.data, prompt=f"{mark} {item.data.prompt}") for item in order]
    with ThreadPoolExecutor(number) as pool:
        tokens: int = sum(answer.tokens_generated for answer in pool.map(server.ask, work))
    return tokens / (perf_counter() - begin)


def best_and_shares(
    sweep: Mapping[int, float], again: Mapping[int, Sequence[float]], advised: Sequence[int]
) -> tuple[int, list[float]]:
    """The best of what was quickest in the sweep, and the advised settings' shares of it.

    Both by the runs of `again`, tokens per second by setting: which have a run of each of them.
    """
    quickest = sorted(sweep, key=lambda setting: sweep[setting])[-QUICKEST:]
    means = {setting: statistics.mean(rates) for setting, rates in again.items()}
    best = max(quickest, key=lambda setting: means[setting])
    return best, [means[setting] / means[best] for setting in advised]


def compared(name: str, spec: str, weights: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row an answer; one row a run of the sweeps."""
    items = to_items(load_prompts(""), max_tokens=TOKENS, seed=1)
    engine: Any = open_engine(spec, None, THREADS)
    rate = at_once if hasattr(engine, "ask") else in_batches
    load = Load(max_tokens=TOKENS, largest=LARGEST)
    found = [
        suggest(engine, Question(budget_s=BUDGET_S, seed=seed), load, threads=THREADS)
        for seed in range(RUNS)
    ]
    advised = [int(advice.setting or 0) for advice in found]
    print(name, "advised", advised, flush=True)  # noqa: T201
    settings, runs, seen = sorted({*SWEPT, *advised}), list[dict[str, object]](), dict[int, float]()
    again: dict[int, list[float]] = {}
    sweep_s, begin = 0.0, perf_counter()
    for number in range(1 + AGAIN):
        if number == 1:
            sweep_s = perf_counter() - begin
            settings = sorted({*sorted(seen, key=lambda s: seen[s])[-QUICKEST:], *advised})
        for setting in random.Random(number).sample(settings, len(settings)):
            per_s = rate(engine, items, setting, number)
            print(name, number, setting, round(per_s, 2), flush=True)  # noqa: T201
            runs.append({"engine": name, "run": number, "setting": setting, "tokens_per_s": per_s})
            if number:
                again.setdefault(setting, []).append(per_s)
            else:
                seen[setting] = per_s
    best, shares = best_and_shares(seen, again, advised)
    answers = [
        {
            "engine": name, "weights": weights or weights_of(spec), "threads": THREADS,
            "max_tokens": TOKENS, "seed": seed,
            "advised_setting": advised[seed], "best_setting": best,
            "throughput_share": round(shares[seed], 4),
            "stated_within_5_percent": round(advice.found.decision.within[0.95], 3),
            "limit": advice.limit.name, "search_s": round(advice.found.seconds, 1),
            "sweep_s": round(sweep_s, 1),
        }
        for seed, advice in enumerate(found)
    ]  # fmt: skip
    return pd.DataFrame(answers), pd.DataFrame(runs)


def main() -> None:
    """Every engine that is named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", required=True, help="NAME=SPEC, with commas between them")
    parser.add_argument("--weights", default="", help="of servers, which do not tell")
    parser.add_argument("--out", type=Path, default=Path("data"))
    given = parser.parse_args()
    for named in given.engines.split(","):
        name, _, spec = named.partition("=")
        with threadpool_limits(THREADS):
            tables = compared(name, spec or name, given.weights)
        for file, rows in zip(("advice_engines.csv", "advice_sweeps.csv"), tables, strict=True):
            path, whole = given.out / file, rows
            if path.exists():
                before = pd.read_csv(path)
                whole = pd.concat([before[before["engine"] != name], rows])
            write_csv(whole, path)
        print(tables[0].to_string(), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
