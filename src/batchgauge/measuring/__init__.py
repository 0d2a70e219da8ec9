"""Measuring callables on a noisy machine: samples, paired ratios, memory, counters.

c = compare_interleaved({"one by one": loop, "batch": batch}, amount=Amount(items=32))
c.ratio("batch"), c.noise_floor, c.minimum_detectable_change, c.stopped_because, c.frame()
"""

from batchgauge.machine.identity import Machine, Run
from batchgauge.measuring.memory import Allocations, allocations, memory_overhead
from batchgauge.measuring.paired import Comparison, Design, compare_interleaved
from batchgauge.measuring.record import (
    COLUMNS,
    Amount,
    Labels,
    Measurement,
    Sample,
    merge,
    read,
    to_frame,
)
from batchgauge.measuring.timing import Conditions, Stopping, measure, pinned
from batchgauge.measuring.verdicts import Ratio, Verdict, frame_of, judge, judged
from batchgauge.statistics import Estimate, location, percentile, proportion

__all__ = [
    "COLUMNS",
    "Allocations",
    "Amount",
    "Comparison",
    "Conditions",
    "Design",
    "Estimate",
    "Labels",
    "Machine",
    "Measurement",
    "Ratio",
    "Run",
    "Sample",
    "Stopping",
    "Verdict",
    "allocations",
    "compare_interleaved",
    "frame_of",
    "judge",
    "judged",
    "location",
    "measure",
    "memory_overhead",
    "merge",
    "percentile",
    "pinned",
    "proportion",
    "read",
    "to_frame",
]
