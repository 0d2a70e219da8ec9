"""Measuring callables on a noisy machine: samples, paired ratios, memory, counters.

from batchgauge.measuring import compare_interleaved, measure

c = compare_interleaved({"one by one": loop, "batch": batch}, items=32, budget_s=5)
c.ratio("batch"), c.noise_floor, c.minimum_detectable_change, c.stopped_because, c.frame()
"""

from batchgauge.machine.identity import Machine, Run
from batchgauge.measuring.memory import (
    Allocations,
    Resident,
    allocations,
    memory_overhead,
    rss_peak,
)
from batchgauge.measuring.paired import Comparison, compare_interleaved
from batchgauge.measuring.record import COLUMNS, Measurement, Sample, merge, read, to_frame
from batchgauge.measuring.statistics import Estimate, location, percentile, proportion
from batchgauge.measuring.timing import conditions, measure, pinned
from batchgauge.measuring.verdicts import Ratio, Verdict, frame_of, judge, judged

__all__ = [
    "COLUMNS",
    "Allocations",
    "Comparison",
    "Estimate",
    "Machine",
    "Measurement",
    "Ratio",
    "Resident",
    "Run",
    "Sample",
    "Verdict",
    "allocations",
    "compare_interleaved",
    "conditions",
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
    "rss_peak",
    "to_frame",
]
