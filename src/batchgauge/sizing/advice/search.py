"""The search: which settings to run, in which order, and when to stop.

Four settings first, far apart; then always the one that promises most for its seconds; the
advised setting is run again before it is advised. Stops when the advice is sure enough or the
budget is spent. What fails at a setting is a finding, not an end: only a target that fails
twice in a row ends the search, which keeps what it has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from batchgauge.errors import UserError
from batchgauge.request import PERCENTILE_FLOOR
from batchgauge.sizing.advice import curves
from batchgauge.sizing.advice.decision import (
    MOST_BROKEN,
    Beliefs,
    Decision,
    Question,
    calibrated,
    decide,
    gains,
    judge,
)
from batchgauge.sizing.advice.load import first_settings
from batchgauge.sizing.advice.noise import less_mix, variances
from batchgauge.sizing.advice.observe import Observation, observe
from batchgauge.sizing.advice.percentiles import p95_log
from batchgauge.sizing.advice.records import Run
from batchgauge.text import figures, setting_in_words

Array = npt.NDArray[np.float64]

SAMPLES = 800  # S
SURE = 0.95  # probability of being within 5 % of the best at which the search stops
LEAST_REGRET = 0.01  # and the expected share of the best that is missed
LEAST_RUNS = 5
_LEAST_GAIN = 3e-4  # share of the best that the next run must promise
_RECOVERY_S = 3.0  # before a setting that failed is tried again
_GONE = 2  # failures in a row that are the engine, not the setting
_REQUESTS = 24  # of a run, about; each slot has 2 to 4 cycles after its warm-up
_FAR_OVER = 1.5  # a percentile over its target by so much: larger settings are not tried at first
_LARGEST_ERROR = 0.04  # standard error of the advised setting's value, by its own runs
_LONG_RUN = 600  # arrivals that confirm a rate
_LARGEST_SHARE = 0.35  # of the seconds left that one of the first runs may take
_LEAST_ERROR = 0.01  # of a rate: short runs differ by so much from what would be seen for hours


class Target(Protocol):
    """What is searched: an engine or a server under some load.

    It may also have `first`, the settings to begin with, and `requests`, whose `letters` are those
    of every prompt of the workload, float64 [prompts].
    """

    unit: str  # "requests at once", "requests per second" or "requests in a batch"

    @property
    def candidates(self) -> Array:
        """The settings that can be advised, rising, float64 [c]."""
        ...

    def run(self, setting: float, least_s: float, cycles: int, most_s: float) -> Run:
        """Load the target, for `most_s` at most. Raises UserError when that cannot be done."""
        ...


Ending = Literal["sure", "nothing more to learn", "budget", "no setting keeps it", "failed"]


@dataclass(frozen=True)
class Found:
    """What the search knows at its end.

    failures  settings that could not be run, with what was said
    notes     what happened on the way
    """

    question: Question
    unit: str
    observations: Sequence[Observation]
    beliefs: Beliefs
    decision: Decision
    ending: Ending
    seconds: float
    counts_tokens: bool
    next_gain_per_s: float
    failures: Sequence[tuple[float, str]] = ()
    notes: Sequence[str] = ()


class Search:
    """One search of one target."""

    def __init__(
        self,
        target: Target,
        question: Question,
        *,
        progress: Callable[[str, float], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.target, self.question = target, question
        self.candidates = np.asarray(target.candidates, dtype=np.float64)
        self.observations: list[Observation] = []
        self.failures: list[tuple[float, str]] = []
        self._progress = progress or (lambda _text, _left: None)
        self.notes: list[str] = []
        self._failed_in_a_row, self._is_confirming = 0, False
        self._forgiven: set[float] = set()
        self._clock, self._sleep, self._began = clock, sleep, clock()
        self._counts_tokens = True
        self._rng = np.random.default_rng(question.seed)

    def find(self) -> Found:
        """Run until the advice is sure enough or the budget is spent.

        Raises UserError when nothing can be measured.
        """
        for setting in getattr(self.target, "first", None) or first_settings(self.candidates):
            if not self._is_out_of_reach(setting):
                self._measure(setting)
        while True:
            with threadpool_limits(1, user_api="blas"):  # many small products
                beliefs = self._beliefs()
                decision = decide(beliefs)
                wins = gains(beliefs, self._noise(), int(self._rng.integers(2**31)))
            seconds = np.array([self.seconds_of(c) for c in self.candidates])
            per_s = wins / seconds
            # Where the best run is beyond the seconds left, a smaller setting may still tell much.
            told = (seconds <= self._left()) & (wins >= _LEAST_GAIN)
            worth = np.where(told, per_s, 0.0) if told.any() else per_s
            ending, setting = self._next(decision, wins, worth)
            if not ending and self.seconds_of(setting) > self._left():
                ending = "budget"
            if ending in {"budget", "failed"} and decision.index is not None:
                # What never ran is not advised, however promising, but between rates that did.
                ran = [o.setting for o in self.observations]
                is_open, largest = self._is_open, max(ran)
                known = self.candidates <= largest if is_open else np.isin(self.candidates, ran)
                decision = decide(beliefs, known)
            if decision.index and ending and self._is_open:
                # Headroom: at the very edge, a longer queue is a matter of time. One step where a
                # long run bore the rate, else two.
                steps = 1 if self._bore(float(self.candidates[decision.index])) else 2
                decision = judge(beliefs, max(0, decision.index - steps))
            if ending:
                error = _LEAST_ERROR * self._rng.standard_normal((SAMPLES, 1))  # alike everywhere
                beliefs = replace(beliefs, values=beliefs.values + error)
                return Found(
                    self.question, self.target.unit, self._runs(), beliefs,
                    calibrated(decision), ending,
                    self._clock() - self._began, self._counts_tokens, float(per_s.max()),
                    self.failures, self.notes,
                )  # fmt: skip
            self._measure(setting)

    def _next(self, decision: Decision, wins: Array, per_s: Array) -> tuple[Ending | None, float]:
        """Why to stop, if so; else the setting to run."""
        if self._failed_in_a_row >= _GONE:
            return "failed", 0.0
        if self._failed_in_a_row:  # is it the setting, or is the engine gone?
            return None, min(o.setting for o in self.observations)
        promising = float(self.candidates[int(np.argmax(per_s))])
        if decision.index is None:
            if decision.any_keeps < MOST_BROKEN:
                return "no setting keeps it", 0.0
            return None, promising
        advised = float(self.candidates[decision.index])
        sure = (
            decision.within[0.95] >= SURE
            and decision.regret <= LEAST_REGRET
            and decision.keeps >= 1.0 - MOST_BROKEN
        )
        if (sure or wins.max() < _LEAST_GAIN) and len(self.observations) >= LEAST_RUNS:
            if not self._is_confirmed(advised):
                self._is_confirming = True
                return None, advised
            return ("sure" if sure else "nothing more to learn"), 0.0
        if self._is_last_chance(advised):
            self._is_confirming = True
            return None, advised
        return None, promising

    def _is_last_chance(self, rate: float) -> bool:
        """Whether a rate has to be confirmed now, or the budget will not hold the long run."""
        needed = _LONG_RUN / rate
        return (
            self._is_open and needed <= self._left() < 1.5 * needed and not self._is_confirmed(rate)
        )

    def _is_confirmed(self, setting: float) -> bool:
        """Whether the setting ran twice, with as many requests as a percentile needs.

        Arrivals at a rate need one long run: a queue near its limit grows slowly.
        """
        runs = [o.run for o in self.observations if o.setting == setting]
        if runs and runs[0].kind == "open":
            return any(len(run.asked) >= _LONG_RUN for run in runs) or (
                self._left() < _LONG_RUN / setting
            )
        answers = sum(len(run.answered) for run in runs)
        needed = PERCENTILE_FLOOR[95] if self.question.targets else 0
        # At the edge of a cliff runs differ much: two may be lucky together.
        here = np.array([o.setting == setting for o in self.observations])
        error = float((1.0 / variances(self._runs())[here]).sum()) ** -0.5 if runs else math.inf
        return len(runs) >= 2 and answers >= needed and error <= _LARGEST_ERROR

    def _bore(self, rate: float) -> bool:
        """Whether a long run at the rate, or above it, kept every target."""
        return any(
            o.setting >= rate and len(o.run.asked) >= _LONG_RUN and o.is_taken
            and all(o.metrics[n][0] <= math.log(t) for n, t in self.question.targets.items())
            for o in self.observations
        )  # fmt: skip

    def _left(self) -> float:
        return self.question.budget_s - (self._clock() - self._began)

    def _is_out_of_reach(self, setting: float) -> bool:
        """Whether the setting lies beyond one that failed, or would take too long to begin with."""
        bad = self._bad()
        for name, target in self.question.targets.items():
            bad += [
                o.setting
                for o in self.observations
                if name in o.metrics and math.exp(o.metrics[name][0]) > _FAR_OVER * target
            ]
        if any(setting >= s for s in bad):
            return True
        last = self.observations[-1] if self.observations else None
        if last is None or setting < last.setting:
            return False
        # At worst a run takes longer in proportion.
        return last.seconds * setting / last.setting > _LARGEST_SHARE * self._left()

    def _bad(self) -> list[float]:
        """Settings that did not work, for a reason of their own.

        Where one ran all the same, or the target failed twice in a row, the engine went away.
        """
        gone = self._failed_in_a_row >= _GONE
        told = self.failures[: -self._failed_in_a_row] if gone else self.failures
        ran = {o.setting for o in self.observations}
        return [o.setting for o in self.observations if not o.is_taken] + [
            setting for setting, _ in told if setting not in ran
        ]

    @property
    def _is_open(self) -> bool:
        return self.observations[0].run.kind == "open"

    @property
    def _least_s(self) -> float:
        return min(3.0, max(0.4, self.question.budget_s / 60.0))

    def seconds_of(self, setting: float) -> float:
        """About how long a run of the setting takes; beyond those known, at worst in proportion."""
        if not self.observations:
            return 0.0
        by_setting: dict[float, float] = {o.setting: o.seconds for o in self.observations}
        known = sorted(by_setting)
        logs = np.log([by_setting[s] for s in known])
        beyond = 1.0 if self._is_open else max(1.0, setting / known[-1])
        return beyond * float(np.exp(np.interp(math.log(setting), np.log(known), logs)))

    def _measure(self, setting: float) -> None:
        """Run a setting, a second time where it failed: servers restart."""
        said = ""
        for attempt in (1, 2):
            self._progress(f"running {setting_in_words(setting, self.target.unit)}", self._left())
            try:
                seen = self._observe(setting)
            except UserError as problem:
                if not self.observations:
                    raise
                said = str(problem)
            else:
                if not seen.is_broken or attempt == 2:
                    if said:
                        self.notes.append(f"{figures(setting)} ran again after it failed: {said}")
                        if setting in {o.setting for o in self.observations}:
                            self._forgive()
                    self.observations.append(seen)
                    self._failed_in_a_row = 0
                    return
                said = next(a.error for a in seen.run.asked if a.is_broken)
            if attempt == 1 and self._left() > _RECOVERY_S:
                self._progress("it failed; waiting before it is tried again", self._left())
                self._sleep(_RECOVERY_S)
        self.failures.append((setting, said))
        self._failed_in_a_row += 1

    def _forgive(self) -> None:
        """Take back, once each, the last failures: a setting that had run failed with them.

        The engine was away, whatever its setting. One that fails again may be what ends it.
        """
        first = len(self.failures) - self._failed_in_a_row
        recent = self.failures[first:]
        self.failures[first:] = [row for row in recent if row[0] in self._forgiven]
        for setting in {row[0] for row in recent} - self._forgiven:
            self._forgiven.add(setting)
            self.notes.append(f"{figures(setting)} failed while the engine was away.")

    def _observe(self, setting: float) -> Observation:
        begin = self._clock()
        cycles = int(min(4, max(2, _REQUESTS // setting)))
        is_long = self._is_confirming and self._is_open
        least_s = 1.01 * _LONG_RUN / setting if is_long else self._least_s
        self._is_confirming = False
        run = self.target.run(setting, least_s, cycles, max(self._least_s, self._left()))
        self._check(run)
        question = self.question
        return observe(
            run, self._clock() - begin, question.objective, question.targets,
            tokens=self._counts_tokens,
        )  # fmt: skip

    def _check(self, run: Run) -> None:
        """Say what no number can mend, on the first run; see whether tokens are counted."""
        if self.observations or not run.answered:
            return
        if all(a.is_empty for a in run.answered):
            raise UserError(
                "Every answer was empty: nothing was generated; expected prompts that this model "
                "answers, or its chat template."
            )
        self._counts_tokens = all(a.tokens for a in run.answered)

    def _beliefs(self) -> Beliefs:
        question, rows = self.question, self._runs()
        settings = np.array([o.setting for o in rows])
        values = curves.Seen(settings, np.array([o.value for o in rows]), variances(rows))
        seed = int(self._rng.integers(2**31))
        kind: curves.Kind = "latency by arrivals" if self._is_open else "latency"
        metrics = {
            name: curves.sample(kind, self._percentiles(name), self.candidates, SAMPLES, seed + 1)
            for name in question.targets
        }
        if self._is_open:  # more arrivals make no request quicker
            metrics = {name: np.sort(values, axis=1) for name, values in metrics.items()}
        return Beliefs(
            self.candidates,
            curves.sample("rate", values, self.candidates, SAMPLES, seed),
            metrics,
            question.targets,
            self._taken(seed + 2),
        )

    def _percentiles(self, name: str) -> curves.Seen:
        """A metric's 95th percentile at each setting, over the answers of all its runs.

        A mean of the runs' own percentiles would be too low where runs differ.
        """
        pooled: dict[float, list[Array]] = {}
        for seen in self.observations:
            if name in seen.metrics:
                pooled.setdefault(seen.setting, []).append(seen.run.values_of(name))
        rows = [p95_log(np.concatenate(parts)) for parts in pooled.values()]
        return curves.Seen(
            np.array(list(pooled)),
            np.array([log for log, _ in rows]),
            np.array([sd**2 for _, sd in rows]),
        )

    def _runs(self) -> list[Observation]:
        """What was seen, less what differs by the prompts that came."""
        tokens = self._counts_tokens and self.question.objective == "throughput"
        letters = getattr(getattr(self.target, "requests", None), "letters", np.empty(0))
        return less_mix(self.observations, letters, tokens=tokens)

    def _noise(self) -> dict[str, Array]:
        """Standard deviation of one more run's logarithms at each candidate [c]."""
        ones = np.ones(self.candidates.size)
        found = {"value": ones * math.sqrt(float(np.median(variances(self._runs()))) + 0.003**2)}
        for name in self.question.targets:
            sds = [o.metrics[name][1] for o in self.observations if name in o.metrics]
            found[name] = ones * float(np.median(sds))
        return found

    def _taken(self, seed: int) -> npt.NDArray[np.bool_]:
        """Whether each candidate's requests are all taken, bool [S, c].

        The limit lies anywhere between the largest setting taken and the smallest refused.
        """
        bad = self._bad()
        if not bad:
            return np.ones((SAMPLES, self.candidates.size), dtype=np.bool_)
        refused = min(bad)
        good = [o.setting for o in self.observations if o.is_taken and o.setting < refused]
        low = math.log(max(good)) if good else math.log(self.candidates[0] / 2.0)
        limits = np.random.default_rng(seed).uniform(low, math.log(refused), SAMPLES)
        return np.asarray(np.log(self.candidates)[None, :] <= limits[:, None] + 1e-9)
