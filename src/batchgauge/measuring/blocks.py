"""Interleaved blocks: candidates in seeded order and back (A B C C B A), then a control.

A drift of the machine within a block cancels in the ratio of two of its candidates. Calls of
a second or so may go one way only: then every other block is the one before it backwards,
and the drift cancels between the two. Leaves out when to stop and what the samples say; see
`paired`.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping

import numpy as np

from batchgauge.measuring.record import Sample
from batchgauge.measuring.timing import Labels, calibrate, steady_from

CONTROL = "control"
AA_CONTROL = "baseline again"  # the baseline a second time: its ratio to itself is noise
_CONTROL_DATA = bytes(range(256)) * 1024
_WARM_UP_SAMPLES = 10


def control_workload() -> object:
    """A fixed piece of work that no change here touches: a digest of 256 KiB."""
    return hashlib.sha256(_CONTROL_DATA).digest()


def warm_up(
    runners: Mapping[str, Callable[[], object]], labels: Mapping[str, Labels], budget_s: float
) -> tuple[list[Sample], dict[str, int]]:
    """Calibrate each candidate and run it until steady, for its share of the budget at most."""
    samples: list[Sample] = []
    loops: dict[str, int] = {}
    for name in runners:
        if name == AA_CONTROL:
            continue
        end = time.perf_counter() + budget_s / len(runners)
        loops[name] = calibrate(runners[name])
        times: list[float] = []
        while len(times) < _WARM_UP_SAMPLES * 4 and time.perf_counter() < end:
            sample = labels[name].sample(
                runners[name], loops[name], block=-1, position=len(times), is_warmup=True
            )
            samples.append(sample)
            times.append(sample.wall_ms)
            if len(times) >= _WARM_UP_SAMPLES and steady_from(times[-_WARM_UP_SAMPLES:]) == 0:
                break
    return samples, loops


class Blocks:
    """Measures one block at a time and keeps log(time per item) of each candidate."""

    def __init__(
        self,
        runners: Mapping[str, Callable[[], object]],
        labels: Mapping[str, Labels],
        loops: Mapping[str, int],
        *,
        baseline: str,
        seed: int,
        with_control: bool,
        one_way: bool = False,
    ) -> None:
        self._runners = dict(runners)
        self._labels = dict(labels)
        self._loops = {AA_CONTROL: loops[baseline], **loops}
        self._rng = np.random.default_rng(seed)
        self._one_way = one_way
        self._order: list[str] = []
        self._control = Labels(
            labels[baseline].benchmark, CONTROL, "control", gc=labels[baseline].gc
        )
        self._control_loops = calibrate(control_workload) if with_control else 0
        self.logs: dict[str, list[float]] = {name: [] for name in runners}

    def next(self) -> list[Sample]:
        """Measure one block: every candidate in seeded order and back, then the control."""
        block = len(next(iter(self.logs.values())))
        if self._one_way and block % 2:
            self._order = self._order[::-1]
        else:
            order = self._rng.permutation(list(self._runners)).tolist()
            self._order = order if self._one_way else order + order[::-1]
        samples = [
            self._labels[name].sample(
                self._runners[name], self._loops[name], block=block, position=at, is_warmup=False
            )
            for at, name in enumerate(self._order)
        ]
        for name in self._runners:
            own = [s for s in samples if s.implementation == name]
            self.logs[name].append(sum(math.log(s.wall_ms / 1e3 / s.items) for s in own) / len(own))
        if self._control_loops:
            samples.append(
                self._control.sample(
                    control_workload, self._control_loops,
                    block=block, position=len(samples), is_warmup=False,
                )
            )  # fmt: skip
        return samples
