"""A batch server to simulate: its policies, and the record of a run.

Queue orders do not depend on the time: linear ageing adds the same to everybody's
claim, so that "class, minus time waited" is the fixed key "arrival + class x ageing".
Not simulated: the network, prefix caches, speculative decoding, and priorities that
throw out running work. `events` holds the clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from batchgauge.errors import UserError
from batchgauge.simulate.arrivals import Arrivals

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Columns of SimulatedRun.steps. `joined` rows decode for the first time since their prefill; the
# others had waited `stall_s` for prefills in between. `held` is the KV cache in tokens.
END_S, STEP_S, ROWS, JOINED, STALL_S, POSITIONS, PADDED, HELD, IN_BATCH = range(9)
STEP_COLUMNS = 9


@dataclass(frozen=True)
class Host:
    """Python's work beside the model's, in seconds.

    request_s, token_s   a request and a token (tokenize, sample, detokenize), after the
                         step, or beside it with `overlap`
    batch_s, step_s      fixed work as a static or dynamic batch begins, and of every step
    """

    request_s: float = 0.0
    token_s: float = 0.0
    batch_s: float = 0.0
    step_s: float = 0.0
    overlap: bool = False

    def __post_init__(self) -> None:
        _check((self.request_s, self.token_s, self.batch_s, self.step_s), ())


@dataclass(frozen=True)
class Fleet:
    """The workers that serve one queue; times in seconds.

    sharing     how many times longer a step takes with 1, 2, … workers busy
    speeds      time factor of each worker (a straggler has 2.0); shorter: 1.0 for the rest
    mtbf_s, restart_s   mean time between failures of a worker, and until it is back
    seed        of the failures
    """

    workers: int = 1
    sharing: tuple[float, ...] = (1.0,)
    speeds: tuple[float, ...] = ()
    mtbf_s: float = math.inf
    restart_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"The server has {self.workers} workers; expected at least 1.")
        if not self.sharing:
            raise UserError("A fleet's `sharing` is empty; expected a factor for one worker.")
        _check((self.restart_s,), (*self.sharing, *self.speeds, self.mtbf_s))


def _check(amounts: tuple[float, ...], factors: tuple[float, ...]) -> None:
    if not all(a >= 0 for a in amounts) or not all(f > 0 for f in factors):
        raise UserError("A server's times and limits are at least 0, its factors above 0.")


@dataclass(frozen=True)
class Server:
    """What the server does with its queue. Times in seconds, memory in cached tokens.

    batching    static: waits for a full batch; dynamic: for a full batch or `max_wait_s`;
                both answer when the whole batch is done. continuous: joins at any step.
    order       fifo, priority (by class), shortest (fewest tokens, which only an oracle
                or a predictor knows)
    ageing_s    waiting that makes up for one class, or for the mean length; inf: none
    chunk_tokens    prompt tokens a step beside the decoding rows; 0: whole prompts,
                    while decoding stands still
    kv_limit_tokens cache of one worker; 0: no limit. With `preempt`, requests enter on
                    their prompt alone, and when memory runs out the youngest is thrown
                    out and prefilled again later; without, room is reserved to the end
    padded      a batch's prompts are prefilled at the longest one's length
    """

    batching: Literal["static", "dynamic", "continuous"] = "static"
    max_batch: int = 8
    max_wait_s: float = 0.05
    order: Literal["fifo", "priority", "shortest"] = "fifo"
    ageing_s: float = math.inf
    chunk_tokens: int = 0
    kv_limit_tokens: int = 0
    preempt: bool = False
    padded: bool = False
    host: Host = Host()
    fleet: Fleet = Fleet()

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise UserError(f"The server has batches of {self.max_batch}; expected at least 1.")
        known = self.batching in {"static", "dynamic", "continuous"}
        if not known or self.order not in {"fifo", "priority", "shortest"}:
            raise UserError(
                f"The policy '{self.batching}, {self.order}' is unknown; expected static, dynamic "
                "or continuous batching and fifo, priority or shortest order."
            )
        _check((self.max_wait_s, self.ageing_s, self.chunk_tokens, self.kv_limit_tokens), ())
        if self.batching != "continuous" and (self.chunk_tokens or self.preempt):
            raise UserError("Chunked prefill and preemption need continuous batching.")


@dataclass(frozen=True)
class SimulatedRun:
    """What happened to each request, arrays [N] in order of arrival, and in each step.

    start_s     taken from the queue for the first time
    first_s     first token computed
    done_s      last token computed
    returned_s  answer handed over: with the whole batch, or at once when continuous
    retries     times thrown out and begun again
    steps       float64 [steps, 9], columns END_S … IN_BATCH
    """

    arrivals: Arrivals
    server: Server
    start_s: Floats
    first_s: Floats
    done_s: Floats
    returned_s: Floats
    retries: Ints
    steps: Floats


def queue_order(arrivals: Arrivals, server: Server) -> Ints:
    """Requests [N] from first to last to be served, if all were waiting."""
    if server.order == "fifo":
        return np.arange(len(arrivals))
    size = (arrivals.context + arrivals.generated).astype(np.float64)
    weight = size / size.mean() if server.order == "shortest" else arrivals.rank.astype(np.float64)
    if math.isinf(server.ageing_s):
        return np.lexsort((arrivals.times_s, weight))
    return np.argsort(arrivals.times_s + server.ageing_s * weight, kind="stable")
