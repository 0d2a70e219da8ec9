"""Load time and memory of one engine, in a process of its own: prints one line of JSON.

`python -m batchgauge.experiments.peers.load SPEC MODEL`. Resident memory counts
pages of a mapped file too (llama.cpp maps the model), so it is what the machine must hold.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

import psutil

MIB = 2**20
BATCH, PROMPT, NEW = 8, 64, 8


def here(spec: str, model: str) -> dict[str, float]:
    """Import, load and one batch of 8, on one thread: seconds, and resident MiB after each."""
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
    engine = open_engine(spec, model or None, 1)
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


if __name__ == "__main__":
    sys.stdout.write(json.dumps(here(*sys.argv[1:])) + "\n")
