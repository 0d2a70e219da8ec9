"""The answer to "which setting?": what it gives, how sure that is, what limits it.

As text it reads like a decision; `as_json` has the same for scripts:

    schema               1
    engine, objective    what was asked; `targets_ms`: metric -> 95th percentile
    setting, unit        the advice (null: no setting keeps every target) and what it counts
    value                {value, low, high}: what it gives, in `value_unit`, with 95 % interval
    percentiles_ms       metric -> {p50, p95, low, high}; p95 with its 95 % interval, null where
                         there were too few requests for it
    probability          {within_2_percent, within_5_percent, keeps_targets, any_keeps}
    regret               expected share of the best that is missed
    limit                {name, evidence, at, target}
    ended                why the search stopped; `further_minute`: expected gain of 60 s more
    seconds, requests    what the search cost
    runs                 [{setting, value, in_flight, p95_ms, refused_share, unsteady}, …]
    notes                [sentences]
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgauge.sizing.advice.limits import Limit, limit_of
from batchgauge.sizing.advice.observe import METRICS
from batchgauge.sizing.advice.percentiles import percentile_interval
from batchgauge.sizing.advice.search import Found
from batchgauge.statistics import Interval
from batchgauge.text import (
    Markdown,
    counted,
    escaped,
    figures,
    first_upper,
    percent,
    setting_in_words,
)

SCHEMA = 1
_LATE_MS = 5.0  # an open loop that sends later than this says so
_DIFFERS = 0.1  # runs of one setting that differ by more, beyond their own noise
_AGAIN = 3.0  # standard errors

_ENDINGS = {
    "sure": "the answer is sure enough",
    "nothing more to learn": "no further run promised anything",
    "budget": "the budget was spent",
    "no setting keeps it": "no setting keeps every target",
    "failed": "the engine stopped answering",
}
_UNITS = {
    "cap": "the engine's own cap",
    "memory": "the engine's memory",
    "padding": "padding to a batch's longest prompt",
    "queue": "queueing",
    "refusals": "the server's own limit on requests",
    "client": "this client",
    "compute": "the engine's compute",
    "largest setting": "the largest setting that was allowed",
    "failure": "the engine fails beyond",
    "budget": "the search's budget",
    "target": "the target itself",
}


@dataclass(frozen=True)
class MeasuredAdvice:
    """A search's end, put so that a person or a script can act on it."""

    engine: str
    found: Found
    limit: Limit
    notes: Sequence[str]

    @classmethod
    def of(cls, engine: str, found: Found, notes: Sequence[str] = ()) -> MeasuredAdvice:
        """The advice of a search."""
        return cls(engine, found, limit_of(found), [*notes, *_notes(found)])

    @property
    def setting(self) -> float | None:
        """The advised setting; None where none keeps every target."""
        index = self.found.decision.index
        return None if index is None else float(self.found.beliefs.candidates[index])

    @property
    def value_unit(self) -> str:
        """What `value` counts."""
        if self.found.question.objective == "goodput":
            return "answers in time per second"
        return "tokens per second" if self.found.counts_tokens else "answers per second"

    @property
    def value(self) -> Interval | None:
        """What the advised setting gives, with its 95 % interval."""
        index = self.found.decision.index
        if index is None:
            return None
        low, middle, high = np.exp(
            np.quantile(self.found.beliefs.values[:, index], [0.025, 0.5, 0.975])
        )
        return Interval(float(middle), float(low), float(high))

    @property
    def requests(self) -> int:
        """How many requests the search asked."""
        return sum(len(o.run.asked) for o in self.found.observations)

    @property
    def further_minute(self) -> float:
        """Expected gain of a further minute of measuring, as a share of the best."""
        return min(self.found.decision.regret, 60.0 * self.found.next_gain_per_s)

    def percentiles_ms(self) -> dict[str, dict[str, float | None]]:
        """Median and 95th percentile of each metric, over all runs of the advised setting."""
        runs = [o.run for o in self.found.observations if o.setting == self.setting]
        found: dict[str, dict[str, float | None]] = {}
        for name in METRICS:
            values = np.concatenate([np.empty(0), *(run.values_of(name) for run in runs)])
            if not values.size:
                continue
            tail = percentile_interval(values) or (None, None, None)
            middle = float(np.median(values))
            found[name] = {"p50": middle, "p95": tail[0], "low": tail[1], "high": tail[2]}
        return found

    def as_dict(self) -> dict[str, Any]:
        """The advice for scripts; the module's docstring says what each name means."""
        found, decision = self.found, self.found.decision
        value = self.value
        return {
            "schema": SCHEMA,
            "engine": self.engine,
            "objective": found.question.objective,
            "targets_ms": dict(found.question.targets),
            "setting": self.setting,
            "unit": found.unit,
            "value": value and {"value": value.value, "low": value.low, "high": value.high},
            "value_unit": self.value_unit,
            "percentiles_ms": self.percentiles_ms(),
            "probability": {
                "within_2_percent": decision.within[0.98],
                "within_5_percent": decision.within[0.95],
                "keeps_targets": decision.keeps,
                "any_keeps": decision.any_keeps,
            },
            "regret": decision.regret,
            "limit": {
                "name": self.limit.name,
                "evidence": self.limit.evidence,
                "at": self.limit.at if math.isfinite(self.limit.at) else None,
                "target": self.limit.target or None,
            },
            "ended": found.ending,
            "further_minute": self.further_minute,
            "seconds": found.seconds,
            "requests": self.requests,
            "runs": [
                {
                    "setting": o.setting,
                    "value": math.exp(o.value),
                    "in_flight": o.run.in_flight(),
                    "p95_ms": {name: math.exp(log) for name, (log, _) in o.metrics.items()},
                    "refused_share": o.run.refused_share,
                    "unsteady": o.unsteady,
                }
                for o in sorted(found.observations, key=lambda o: o.setting)
            ],
            "notes": list(self.notes),
        }

    def as_json(self) -> str:
        """`as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False, default=str)

    def sentences(self) -> list[str]:
        """The decision, its risk, its reason and its cost."""
        found, decision = self.found, self.found.decision
        if decision.index is None:
            lines = [_nothing_keeps(found)]
        else:
            limit = self.limit
            target = f"; larger settings break the target of {limit.target}" * bool(limit.target)
            reason = f"What limits it: {_UNITS[limit.name]} ({limit.evidence}){target}."
            lines = [self._decision(), self._risk(), reason]
        runs = counted(len(found.observations), "run")
        cost = f"{runs}, {self.requests:,} requests, {found.seconds:.0f} s"
        lines.append(
            f"Search: {cost}; it stopped because {_ENDINGS[found.ending]}. "
            f"A further minute would be expected to bring {100 * self.further_minute:.1f} % more."
        )
        return [*lines, *(f"Note: {note}" for note in self.notes)]

    def _decision(self) -> str:
        value, setting = self.value, self.setting
        assert value is not None
        assert setting is not None
        times = []
        for name, row in self.percentiles_ms().items():
            middle, *tail = (figures(ms) for ms in row.values() if ms is not None)
            wide = ", 95th percentile {} ms [{}, {}]".format(*tail) if tail else ""
            times.append(f"{METRICS[name]} {middle} ms{wide}")
        said = f" In the median: {'; '.join(times)}." if times else ""
        return (
            f"Run {setting_in_words(setting, self.found.unit)}: {figures(value.value, 4)} "
            f"{self.value_unit} [{figures(value.low, 4)}, {figures(value.high, 4)}].{said}"
        )

    def _risk(self) -> str:
        decision = self.found.decision
        keeps = (
            f" Every target is kept with a probability of {_percent(decision.keeps)}."
            if self.found.question.targets
            else ""
        )
        near, nearer = (_percent(decision.within[share]) for share in (0.95, 0.98))
        return (
            f"It is within 2 % of the best with a probability of {nearer}, within 5 % with {near}; "
            f"expected to miss {100 * decision.regret:.1f} % of the best.{keeps}"
        )

    def as_text(self) -> str:
        """The decision, a sentence a line."""
        return "\n".join(self.sentences())

    def as_markdown(self) -> str:
        """The decision, and a table of the runs."""
        head = "\n\n".join(escaped(line) for line in self.sentences())
        rows = [
            f"| {figures(o.setting)} | {figures(math.exp(o.value), 4)} | "
            f"{figures(o.run.in_flight())} | "
            + " | ".join(
                f"{math.exp(o.metrics[name][0]):,.0f}" if name in o.metrics else "–"
                for name in METRICS
            )
            + f" | {100 * o.run.refused_share:.0f} % |"
            for o in sorted(self.found.observations, key=lambda o: o.setting)
        ]
        names = " | ".join(f"{words}, p95 (ms)" for words in METRICS.values())
        header = f"| {self.found.unit} | {self.value_unit} | in flight | {names} | refused |"
        rule = "| " + " | ".join(["---:"] * (4 + len(METRICS))) + " |"
        return Markdown("\n".join([head, "", header, rule, *rows]))


def _percent(p: float) -> str:
    """A probability in percent, never more certain than the samples are."""
    if p > 0.995:
        return "over 99 %"
    return "under 1 %" if p < 0.005 else f"{100 * p:.0f} %"


def _nothing_keeps(found: Found) -> str:
    """That no setting keeps every target, and what would be needed."""
    least: dict[str, tuple[float, float]] = {}
    for seen in found.observations:
        for name in found.question.targets:
            if name in seen.metrics:
                at = (math.exp(seen.metrics[name][0]), seen.setting)
                least[name] = min(least.get(name, at), at)
    needed = [
        f"{METRICS[name]}: the least 95th percentile was {figures(ms)} ms, at "
        f"{setting_in_words(setting, found.unit)}, the target is "
        f"{figures(found.question.targets[name])} ms"
        for name, (ms, setting) in least.items()
        if ms > found.question.targets[name]
    ]
    if not found.question.targets:
        return "No setting had (nearly) all of its requests answered."
    if not needed:
        return "No setting is likely to keep every target together; loosen one of them."
    return (
        f"No setting keeps every target. {first_upper('; '.join(needed))}. Give at least that, or "
        "send shorter requests."
    )


def _notes(found: Found) -> list[str]:
    """What a reader should know of the measuring itself."""
    notes = [
        f"at {figures(o.setting)}, not steady: {o.unsteady}."
        for o in found.observations
        if o.unsteady
    ]
    for setting in dict.fromkeys(o.setting for o in found.observations):
        rows = [o for o in found.observations if o.setting == setting]
        noise = math.sqrt(2.0) * max(o.value_sd for o in rows)
        far = max(o.value for o in rows) - min(o.value for o in rows)
        if far > max(_DIFFERS, _AGAIN * noise):
            notes.append(
                f"runs of {figures(setting)} differ by {percent(math.expm1(far))}: the engine's "
                "speed is not steady; something else may be using it."
            )
    late = max((o.run.late_ms for o in found.observations), default=0.0)
    if late > _LATE_MS:
        notes.append(
            f"requests were sent up to {late:.0f} ms late (95th percentile); latency counts from "
            "when they were due."
        )
    if not found.counts_tokens and found.question.objective == "throughput":
        notes.append(
            "nobody counted tokens, so answers are counted; of a server that sends no usage, "
            "`model` names the file whose tokenizer counts them."
        )
    errors = Counter(a.error for o in found.observations for a in o.run.asked if a.error)
    notes += [f"{count} requests failed: {said}" for said, count in errors.most_common(3)]
    if _breaks_only_together(found):
        notes.append(
            "streams broke only where requests ran side by side; llama-cpp-python's server ends "
            "one stream for the next unless it is started with --interrupt_requests False."
        )
    notes += [
        *found.notes,
        *(f"{figures(setting)} failed: {said}" for setting, said in found.failures),
    ]
    return notes


def _breaks_only_together(found: Found) -> bool:
    """Whether answers broke at several requests at once, and never at one."""
    broken = [o.setting for o in found.observations if o.is_broken]
    whole = [o.setting for o in found.observations if not o.is_broken]
    return found.unit.startswith("requests at once") and bool(broken) and 1.0 in whole
