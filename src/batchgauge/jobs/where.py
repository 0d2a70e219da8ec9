"""Who works on a job: this process, processes beside it, or the workers of a Dask cluster."""

from __future__ import annotations

from dataclasses import dataclass

from batchgauge.errors import UserError
from batchgauge.machine.limits import usable_cores


@dataclass(frozen=True, slots=True)
class Where:
    """Who does the work.

    workers  processes on this machine, by Dask; 0: this process
    dask     address of a Dask scheduler; empty: none
    threads  of this process, or of each worker; 0: what the machine gives
    retries  how often a shard that failed is tried again
    """

    workers: int = 0
    dask: str = ""
    threads: int = 0
    retries: int = 2

    def __post_init__(self) -> None:
        for name, most in (("workers", 1024), ("threads", usable_cores()), ("retries", 100)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise UserError(f"{name} is {value!r}; expected a whole number from 0 to {most}.")
        if self.workers and self.dask:
            raise UserError("Both workers and a Dask address were given; expected one of them.")
