"""Offline jobs: a hundred thousand prompts to answer, a corpus to tokenize.

One function, `run_job`, in this process, on its processes or on the machines of a Dask
cluster; it never loses a part, never does one twice, and goes on where it stopped.
"""

from batchgauge.jobs.prompts import PromptWork
from batchgauge.jobs.run import Summary, run_job
from batchgauge.jobs.tokenizing import TokenizeWork
from batchgauge.jobs.where import Where

__all__ = ["PromptWork", "Summary", "TokenizeWork", "Where", "run_job"]
