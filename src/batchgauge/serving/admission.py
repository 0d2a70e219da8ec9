"""How many requests at once, and how much KV cache: from the sizing advisor and memory model."""

from __future__ import annotations

from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.model import CUT, PART, SPARE, TILE
from batchgauge.errors import UserError
from batchgauge.machine.limits import usable_memory
from batchgauge.serving.scheduler import Rules, Scheduler
from batchgauge.sizing.memory_model import MemoryModel, ModelShape


def kv_positions(engine: BatchInferenceEngine, rows: int, memory_bytes: int | None = None) -> int:
    """Positions of KV cache for `rows` requests at once: no more than they can use.

    `memory_bytes` are for weights, cache and work together; None: what is free now beside the
    weights. Raises UserError where there is no room for one request of `CUT` positions.
    """
    model = engine.model
    shape = ModelShape.of(model.config, model.weights_bytes)
    memory = MemoryModel.from_shape(shape, part=PART, tile=TILE, spare=SPARE)
    budget = usable_memory()[1] + model.weights_bytes if memory_bytes is None else memory_bytes
    found = memory.positions_within(budget, rows, PART)
    if found < CUT:
        least = memory.bytes_for(CUT, rows, PART)
        raise UserError(
            f"The memory budget is {budget / 1e6:,.0f} MB; expected at least {least / 1e6:,.0f} MB "
            f"for this model and {rows} requests at once."
        )
    return min(found, rows * model.config.context_length)


def open_scheduler(
    engine: BatchInferenceEngine,
    rules: Rules | None = None,
    *,
    memory_bytes: int | None = None,
    prefill_tokens: int | None = 256,
) -> Scheduler:
    """A scheduler around a loop of an engine.

    memory_bytes    for weights, cache and work; None: what is free
    prefill_tokens  prompt positions a step beside those that decode; None: whole prompts

    Raises UserError for limits that make no sense.
    """
    rules = rules or Rules()
    positions = kv_positions(engine, rules.batch, memory_bytes)
    return Scheduler(engine.open_loop(rules.batch, positions, prefill_tokens), rules)
