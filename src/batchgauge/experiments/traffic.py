"""What simulated and real servers are asked: lengths, when an answer is in time, error bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from batchgauge.experiments.context import Context
from batchgauge.experiments.scaling import SLACK
from batchgauge.simulate.arrivals import Arrivals
from batchgauge.simulate.events import simulate
from batchgauge.simulate.server import Server
from batchgauge.simulate.steps import StepTime
from batchgauge.text import figures
from batchgauge.workload import MEAN_CONTEXT, MEAN_GENERATED

PATIENCE = 10.0  # latency target in unloaded requests when none is given
LONGEST = 512  # tokens of a prompt or an answer after scaling
LEAST_ANSWER = 3.0  # tokens of a mean answer that lengths are not cut below: some must be decoded
MEAN_BOUND, P90_BOUND = 0.10, 0.15  # of simulated over real times, set before any run


def longest_of(context: Context) -> int:
    """Most tokens of a prompt or an answer: both have to fit into the model's context."""
    return min(LONGEST, (context.room or 2 * LONGEST) // 2)


def unloaded_s(sample: Arrivals, step_s: StepTime, server: Server) -> float:
    """Seconds until one request of the sample's median lengths is answered, alone."""
    prompt, tokens = (
        np.array([np.median(lengths)], np.int64) for lengths in (sample.context, sample.generated)
    )
    alone = Arrivals(np.zeros(1), prompt, tokens, np.zeros(1, np.int64))
    return float(simulate(alone, step_s, replace(server, batching="continuous")).returned_s[0])


def affordable_scale(context: Context, scale: float, requests: float, share: float) -> float:
    """`scale` of lengths, or less where so many requests in real time take too long.

    That is by the model's cost, for `share` of the budget; about four requests share a step.
    """
    cost = context.cost
    each = MEAN_CONTEXT * cost.position_s + MEAN_GENERATED * (cost.step_s / 4 + cost.row_s)
    factor = SLACK * context.budget.share(share) / (requests * scale * each)
    factor = max(factor, LEAST_ANSWER / (scale * MEAN_GENERATED))
    if factor >= 1.0:
        return scale
    context.note(
        f"Lengths of requests: {figures(factor, 2)} times those of the parameter length_scale."
    )
    return factor * scale
