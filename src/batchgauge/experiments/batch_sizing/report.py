"""Sections of the batch-sizing notebook that need the engine to show its model's shape.

One that does not is calibrated, swept and scored like any other; its memory is neither
predicted nor checked, and the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchgauge.experiments.batch_sizing import figures, peaks, tables, words
from batchgauge.experiments.batch_sizing.bench import Bench
from batchgauge.sizing import MemoryModel
from batchgauge.sizing.memory_model import Peak

if TYPE_CHECKING:
    from batchgauge.reporting import Report


def memory(report: Report, bench: Bench) -> tuple[MemoryModel | None, Sequence[Peak]]:
    """The memory model, and fresh peaks that it never saw; None and none without a shape."""
    if bench.shape is None:
        report.finding(
            f"The engine '{bench.engine.name}' does not show its model's shape: its memory is "
            "neither predicted nor checked here, and memory budgets are not asked about."
        )
        return None, []
    model, fitted = peaks.fit_memory(bench.engine, bench.shape)
    fresh = peaks.fresh_peaks(bench.engine, bench.largest)
    report.csv(bench.peaks_table(model, fitted, fresh), "memory")
    report.figure(
        figures.memory_check(model, fitted, fresh),
        "sizing_memory_check",
        alt=words.memory(model, fresh),
        caption="Predicted against measured peak memory of a batch, above the weights.",
    )
    report.finding(words.memory(model, fresh))
    report.score(
        "memory_prediction_error",
        label="Memory prediction, worst error on fresh batches",
        goal=5.0,
        value=100 * model.worst_error(fresh),
        unit="%",
        better="lower",
    )
    return model, fresh


def simulated(report: Report, bench: Bench, model: MemoryModel | None) -> None:
    """The advice on machines that do not exist."""
    if bench.shape is None or model is None:
        return
    table = tables.simulated_table(bench.shape, model, bench.works["ragged traffic"])
    report.csv(table, "simulated")
    report.table(
        table,
        caption="Simulated machines, priced by their rooflines, nothing measured; "
        "objective: balanced.",
    )
