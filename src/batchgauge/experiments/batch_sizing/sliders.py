"""The sliders of the batch-sizing notebook: budgets in, suggestion out, while the kernel lives."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from batchgauge.errors import UserError
from batchgauge.experiments.batch_sizing.tables import suggest
from batchgauge.sizing import CostModel, Lengths, MemoryModel
from batchgauge.sizing.cost_model import batch_times


def sliders(
    works: Mapping[str, Lengths], cost: CostModel, memory: MemoryModel | None, largest: int
) -> Any:
    """A box with a workload, two budgets and the suggestion's sentence, which follows them."""
    import ipywidgets as widgets

    slowest = max(batch_times(cost, work, largest).request_ms for work in works.values())
    work = widgets.Dropdown(options=list(works), description="workload")
    latency = widgets.FloatLogSlider(
        value=slowest, base=10, min=1.5, max=5, step=0.02, description="latency, ms"
    )
    room = widgets.IntSlider(
        value=256, min=1, max=512, description="MiB for batch", disabled=memory is None
    )
    said = widgets.HTML()

    def follow(_: object = None) -> None:
        try:
            found = suggest(works[work.value], cost, memory, largest, latency.value, room.value)
            said.value = escape(found.sentence())
        except UserError as problem:
            said.value = escape(str(problem))

    for control in (work, latency, room):
        control.observe(follow, names="value")
    follow()
    return widgets.VBox([work, latency, room, said])
