"""Load time and memory of one engine, in a process of its own: prints one line of JSON.

`python -m batchgauge.experiments.peers.load SPEC MODEL THREADS`. Resident memory counts
pages of a mapped file too (llama.cpp maps the model), so it is what the machine must hold.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import pandas as pd

    from batchgauge.experiments.peers.study import Peers

MIB = 2**20
BATCH, PROMPT, NEW = 8, 64, 8


def here(spec: str, model: str, threads: int) -> dict[str, float]:
    """Import, load and one batch of 8: seconds, and resident MiB after each."""
    process = psutil.Process()
    begin = time.perf_counter()
    name = spec.partition(":")[0]
    module = f"{name.replace('-', '_')}_adapter" if name in {"transformers", "llama-cpp"} else "own"
    importlib.import_module(f"batchgauge.adapters.{module}")
    if name == "numpy":
        importlib.import_module("batchgauge.core.engine")
    from batchgauge.registry import open_engine
    from batchgauge.request import BatchItem, InferenceBatchRequest

    imported, base = time.perf_counter(), process.memory_info().rss
    engine = open_engine(spec, model or None, threads)
    loaded, held = time.perf_counter(), process.memory_info().rss
    prompt = tuple(range(20, 20 + PROMPT))
    request = InferenceBatchRequest(prompt, max_tokens=NEW, ignore_eos=True)
    engine.infer_batch([BatchItem(str(i), request) for i in range(BATCH)])
    after = process.memory_info()
    return {
        "import_s": imported - begin,
        "load_s": loaded - imported,
        "first_batch_s": time.perf_counter() - loaded,
        "rss_imported_mib": base / MIB,
        "rss_loaded_mib": held / MIB,
        "rss_after_batch_mib": after.rss / MIB,
    }


def load_table(peers: Peers, threads: int = 1) -> pd.DataFrame:
    """One row an engine, each from a fresh process; the smoke profile takes two of them.

    Raises UserError when one fails.
    """
    import pandas as pd

    from batchgauge.errors import UserError
    from batchgauge.redaction import redacted

    rows = []
    specs, model = list(peers.engines), peers.model
    for spec in specs[:: peers.budget.choose(smoke=len(specs) - 1 or 1, default=1, thorough=1)]:
        done = subprocess.run(
            [sys.executable, "-m", "batchgauge.experiments.peers.load", spec, model, str(threads)],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise UserError(f"The engine '{spec}' could not be loaded alone: {last[0]}.")
        rows.append({"engine": redacted(spec), **json.loads(done.stdout.strip().splitlines()[-1])})
    return pd.DataFrame(rows)


def load_sentence(table: pd.DataFrame) -> str:
    """Who loads and holds how much."""
    from batchgauge.experiments.peers.study import records

    parts = [
        f"{row['engine']} {row['import_s'] + row['load_s']:.1f} s "
        f"and {row['rss_after_batch_mib']:,.0f} MiB"
        for row in records(table)
    ]
    return f"To import and load, and resident after a batch of {BATCH}: {'; '.join(parts)}."


if __name__ == "__main__":
    sys.stdout.write(json.dumps(here(sys.argv[1], sys.argv[2], int(sys.argv[3]))) + "\n")
