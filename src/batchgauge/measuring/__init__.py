"""Measuring callables on a noisy machine: samples, paired ratios, memory, counters.

c = compare_interleaved({"one by one": loop, "batch": batch}, amount=Amount(items=32))
c.ratio("batch"), c.noise_floor, c.minimum_detectable_change, c.stopped_because, c.frame()
"""

from batchgauge.machine.identity import Run
from batchgauge.measuring.memory import allocations
from batchgauge.measuring.paired import Comparison, Design, compare_interleaved
from batchgauge.measuring.record import Amount, Labels, Sample, read, to_frame
from batchgauge.measuring.timing import Conditions, Stopping, measure, pinned
from batchgauge.measuring.verdicts import Ratio, judged
from batchgauge.statistics import Estimate, location

__all__ = [
    "Amount",
    "Comparison",
    "Conditions",
    "Design",
    "Estimate",
    "Labels",
    "Ratio",
    "Run",
    "Sample",
    "Stopping",
    "allocations",
    "compare_interleaved",
    "judged",
    "location",
    "measure",
    "pinned",
    "read",
    "to_frame",
]
