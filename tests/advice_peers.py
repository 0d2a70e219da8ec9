"""`batchgauge suggest` beside the searches of guidellm and AIPerf, on one scheduler server.

    python -m tests.advice_peers --guidellm PATH --aiperf PATH --out data/advice_peers.csv

All three are asked how many requests at once, up to 64, give most answers a second within a
latency that 95 of 100 keep, of the same prompts; each with its own way of searching: guidellm's
`goodput` profile, AIPerf's adaptive search for goodput. Truth is the same scheduler in virtual
time. Neither of them is installed by the project: each has a virtual environment of its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from tests.scheduler import Plan, simulate
from tests.scheduler_server import Running, scheduler_server

from batchgauge.advise import Load, suggest
from batchgauge.files import write_csv
from batchgauge.sizing.advice.decision import Question
from batchgauge.sizing.advice.observe import observe

LARGEST, TOKENS, WORDS = 64, 6, 20
REQUESTS, SECONDS = 200, 6  # of a run of AIPerf's, and of one of guidellm's
ITERATIONS = 15  # of AIPerf's search, which asks for a number
LIMIT_S = 1800.0
BUDGETS_S = (20.0, 60.0)  # of ours
KEY = ["run", "question", "searcher"]
_COMMON: dict[str, Any] = {"prompt_tokens": (WORDS,), "new_tokens": (TOKENS,), "noise": 0.03}
# name -> the server, and the latency in ms that 95 of 100 requests have to keep
QUESTIONS: dict[str, tuple[Plan, float]] = {
    "slots": (Plan(base_s=0.03, each_s=0.0005, slots=11, **_COMMON), 700.0),
    "memory": (Plan(base_s=0.03, each_s=0.0008, kv_tokens=420, swap=2.0, **_COMMON), 600.0),
    "compute": (Plan(base_s=0.03, each_s=0.003, **_COMMON), 900.0),
}
Tool = Callable[[Running, Path, float], float]


@functools.cache
def truth(plan: Plan, target_ms: float, at_once: float) -> tuple[float, bool]:
    """Answers a second within the target at so many at once, and whether 95 of 100 keep it."""
    run = simulate(plan, at_once, cycles=max(12, 600 / at_once), seed=77)
    seen = observe(run, 1.0, "goodput", {"latency": target_ms}, tokens=True)
    return math.exp(seen.value), seen.metrics["latency"][0] <= math.log(target_ms)


def ours(budget_s: float, server: Running, folder: Path, target_ms: float) -> float:
    """What this project advises; NaN for no setting."""
    question = Question("goodput", {"latency": target_ms}, budget_s)
    load = Load(str(folder / "prompts.jsonl"), chat=False, largest=LARGEST)
    return suggest(f"openai:{server.url}", question, load).setting or math.nan


def guidellm(command: str, server: Running, folder: Path, target_ms: float) -> float:
    """The highest concurrency that passed; NaN for none."""
    said = folder / "guidellm.json"
    _run(
        command, "run", "--disable-progress",
        "--backend", f"kind=openai_http,target=http://127.0.0.1:{server.port},model=mock,"
        "validate_backend=false,request_format=/v1/completions",
        "--profile", f"kind=goodput,max_streams={LARGEST}",
        "--data", f"kind=json_file,path={folder / 'prompts.jsonl'}",
        "--metrics", json.dumps({"kind": "generative", "slo": {"e2el_ms": target_ms}}),
        "--constraint", f"kind=max_duration,seconds={SECONDS}",
        "--output", f"kind=json,path={said}",
    )  # fmt: skip
    found = json.loads(said.read_text(encoding="utf-8"))
    return float(_under(found, "best_passing_streams") or math.nan)


def aiperf(command: str, server: Running, folder: Path, target_ms: float) -> float:
    """The concurrency of its best trial; NaN for none."""
    _run(
        command, "profile", "--model", "mock", "--url", f"http://127.0.0.1:{server.port}",
        "--endpoint-type", "completions", "--streaming", "--ui", "none",
        "--tokenizer", str(_word_tokenizer(folder)), "--use-server-token-count",
        "--input-file", str(folder / "prompts.jsonl"), "--custom-dataset-type", "single_turn",
        "--extra-inputs", f"max_tokens:{TOKENS}", "--request-count", str(REQUESTS),
        "--goodput", f"request_latency:{target_ms}",
        "--search-space", f"concurrency:1,{LARGEST}:int", "--search-metric", "goodput",
        "--search-direction", "maximize", "--search-max-iterations", str(ITERATIONS),
        "--workers-max", "2", "--artifact-dir", str(folder / "aiperf"),
    )  # fmt: skip
    history = next((folder / "aiperf").rglob("search_history.json"))
    best = _under(json.loads(history.read_text(encoding="utf-8")), "best_trials")
    return float(_under(best[0], "phases.profiling.concurrency")) if best else math.nan


def _word_tokenizer(folder: Path) -> Path:
    """A tokenizer of words as the server counts them: AIPerf's own is fetched when it is used."""
    model = {"type": "WordLevel", "vocab": {"?": 0, "w": 1}, "unk_token": "?"}
    whole: dict[str, Any] = {
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "normalizer": None, "post_processor": None, "decoder": None, "model": model,
    }  # fmt: skip
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?"}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _run(*command: str) -> None:
    """Run a tool, its words kept for a failure; one worker, which so little load leaves idle."""
    alone = {**os.environ, "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    done = subprocess.run(
        command, env=alone, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")


def _under(found: Any, key: str) -> Any:
    """The first value of that key anywhere in what JSON holds; None where there is none."""
    if isinstance(found, dict):
        if key in found:
            return found[key]
        found = list(found.values())
    parts = found if isinstance(found, list) else []
    return next((value for part in parts if (value := _under(part, key)) is not None), None)


def compared(run: int, name: str, tool: str, search: Tool) -> dict[str, object]:
    """One row: a question put to a tool, on a server of its own, whose noise is the run's."""
    plan, target_ms = QUESTIONS[name]
    with TemporaryDirectory() as place, scheduler_server(plan, seed=run) as server:
        folder = Path(place)
        rows = [
            {"prompt": f"{number} " + "w " * (WORDS - 1), "text": f"{number} " + "w " * (WORDS - 1),
             "max_tokens": TOKENS, "output_tokens_count": TOKENS}
            for number in range(64)
        ]  # fmt: skip
        (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
        began = time.perf_counter()
        answer = search(server, folder, target_ms)
        seconds, requests = time.perf_counter() - began, server.requests()
    true, keeps = truth(plan, target_ms, answer) if answer >= 1 else (0.0, False)
    best = max(truth(plan, target_ms, n)[0] for n in range(1, LARGEST + 1))
    return {
        "run": run, "question": name, "searcher": tool, "advised_at_once": answer,
        "requests": requests, "search_s": round(seconds, 1),
        "goodput_share": round(true / best, 4), "target_kept": keeps,
    }  # fmt: skip


def main() -> None:
    """Every question to every tool that is named, one after the other; other rows stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guidellm", default="", help="its command; without, it is left out")
    parser.add_argument("--aiperf", default="", help="its command; without, it is left out")
    parser.add_argument("--questions", default=",".join(QUESTIONS))
    parser.add_argument("--runs", default="0,1", help="their numbers, the seeds of the servers")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    tools: dict[str, Tool] = {
        f"batchgauge, {budget_s:.0f} s": functools.partial(ours, budget_s) for budget_s in BUDGETS_S
    }
    tools |= {"guidellm": functools.partial(guidellm, given.guidellm)} if given.guidellm else {}
    tools |= {"aiperf": functools.partial(aiperf, given.aiperf)} if given.aiperf else {}
    rows = pd.read_csv(given.out) if given.out.exists() else pd.DataFrame()
    for run, name in product(map(int, given.runs.split(",")), given.questions.split(",")):
        for tool, search in tools.items():
            row = pd.DataFrame([compared(run, name, tool, search)])
            print(row.to_string(header=False), flush=True)  # noqa: T201
            rows = pd.concat([rows, row]).drop_duplicates(KEY, keep="last").sort_values(KEY)
            write_csv(rows, given.out)


if __name__ == "__main__":
    main()
