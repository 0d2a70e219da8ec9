"""Our server beside llama.cpp's: tokens a second of `STREAMS` clients at once, over HTTP.

Both servers of a pair are started anew in each round, with the same weights, threads and slots,
and take turns under a closed loop of the same requests. llama.cpp's is `llama-server` where one is
on the path or beside this Python, else the server of llama-cpp-python, which has one slot.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchgauge import extras
from batchgauge.adapters.gguf_copy import as_gguf, float32_copy
from batchgauge.core.default_model import open_model
from batchgauge.core.model_file import ModelFile
from batchgauge.errors import UserError
from batchgauge.experiments.peers.participants import Peers
from batchgauge.experiments.peers.rates import table
from batchgauge.experiments.ways import FILE, FLOAT
from batchgauge.machine.limits import default_threads
from batchgauge.registry import open_engine, weights_of
from batchgauge.sizing.advice.launch import Launched
from batchgauge.sizing.advice.load import Requests
from batchgauge.sizing.advice.observe import observe
from batchgauge.text import one_line
from batchgauge.workload import exact_requests

STREAMS, PROMPT, NEW = 8, 32, 16
CYCLES = 3  # of every stream in a run: all end at about one time, and one more or less counts
PAIRS = {"llama-cpp:f32": FLOAT, "llama-cpp": FILE}  # a peer's weights, and ours beside them
LLAMA_SERVER = "llama-server"


def measure_servers(peers: Peers) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a pair and server (tokens/s), and every run; both empty where there is no peer.

    A pair of which one does not start, or dies, is left out; `peers.absent` says why.
    """
    context, rows, threads = peers.context, list[dict[str, Any]](), default_threads()
    pairs = {p: ours for p, ours in PAIRS.items() if p in peers.engines and their_server()}
    if not pairs:
        return pd.DataFrame(), pd.DataFrame()
    file = open_model(context.model or None)
    for peer, ours in pairs.items():
        commands = {
            ours: our_command(ours, context.model, threads),
            peer: their_command(peer, file, threads),
        }
        try:
            for number in range(context.budget.processes):
                found = _round(commands, as_gguf(file), context.seed, number)
                rows += [{**row, "pair": peer} for row in found]
        except UserError as problem:
            peers.absent[f"the server beside {peer}"] = one_line(problem).rstrip(".")
            rows = [row for row in rows if row["pair"] != peer]
    if not rows:
        return pd.DataFrame(), pd.DataFrame()
    samples = pd.DataFrame(rows).assign(
        part="server", threads=threads, batch_size=STREAMS, is_warmup=False
    )
    rates = table(samples)
    return rates.assign(weights=rates["implementation"].map(weights_of)), samples


def their_server() -> str:
    """What llama.cpp serves with here: a program's path, `llama_cpp.server`, or nothing."""
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    if found := shutil.which(LLAMA_SERVER, path=beside):
        return found
    return "" if extras.missing("llama_cpp", "sse_starlette") else "llama_cpp.server"


def our_command(spec: str, model: str, threads: int) -> str:
    """`batchgauge serve` with the weights of `spec`; see `Launched` for the braces."""
    of_model = [model] if model else []
    return _braced(
        [sys.executable, "-m", "batchgauge", "serve", *of_model, "--threads", str(threads),
         "--weights", weights_of(spec), "--name", "model"],
        "--slots {slots} --port {port}",
    )  # fmt: skip


def their_command(spec: str, file: ModelFile, threads: int) -> str:
    """llama.cpp's server with the weights of `spec`: no prompt is cached, room for all slots."""
    path = str(float32_copy(file) if spec.endswith("f32") else as_gguf(file))
    server, room = their_server(), STREAMS * 2 * (PROMPT + NEW)
    if server != "llama_cpp.server":
        return _braced(
            [server, "--model", path, "--threads", str(threads), "--threads-batch", str(threads),
             "--ctx-size", str(room), "--no-cache-prompt", "--cache-ram", "0"],
            "--parallel {slots} --port {port}",
        )  # fmt: skip
    return _braced(
        [sys.executable, "-m", server, "--model", path, "--n_threads", str(threads),
         "--n_threads_batch", str(threads), "--n_ctx", str(room), "--interrupt_requests", "false"],
        "--model_alias for-{slots} --port {port}",
    )  # fmt: skip


def _braced(arguments: list[str], ending: str) -> str:
    plain = shlex.join(arguments).replace("{", "{{").replace("}", "}}")
    return f"{plain} {ending}"


def _round(commands: Mapping[str, str], file: Path, seed: int, number: int) -> list[dict[str, Any]]:
    """A run of each server; both are new and there, and who is first alternates."""
    rows = []
    with ExitStack() as stack:
        servers = [
            (name, stack.enter_context(closing(_launched(command, file, seed + number))))
            for name, command in commands.items()
        ]
        for name, server in servers[:: -1 if number % 2 else 1]:
            run = server.run(float(STREAMS), 1.0, CYCLES)
            rate = math.exp(observe(run, 0.0, "throughput", {}, tokens=True).rate)
            tokens = STREAMS * NEW  # what all streams answer once
            rows.append({"implementation": name, "process": number, "block": 0,
                         "answers": len(run.answered), "tokens": tokens,
                         "wall_ms": 1e3 * tokens / rate})  # fmt: skip
    return rows


def _launched(command: str, file: Path, seed: int) -> Launched:
    """A server to be, at a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = 16 * STREAMS  # more than two runs take
    items = exact_requests([PROMPT] * count, [NEW] * count, seed=seed)
    connect: Any = partial(open_engine, f"openai:http://127.0.0.1:{port}/v1", file)
    return Launched(command, port, connect, Requests(items, seed), np.array([float(STREAMS)]))
