"""What keeps the advised setting from being larger, read off the runs around it.

The signs: requests refused; a client that is busy or late; requests that wait while no more of
them are answered at once (the server's own slots: by Little's law, those in service are those in
flight less rate times waiting); throughput that falls (padding, where batches take as long as
their longest prompts say, else memory that all requests share, most often); arrivals faster than
answers; or none of these, and larger settings simply give no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from batchgauge.sizing.advice.noise import is_padded
from batchgauge.sizing.advice.observe import METRICS, Observation
from batchgauge.sizing.advice.search import Found
from batchgauge.text import figures, percent

Name = Literal[
    "cap",
    "memory",
    "padding",
    "queue",
    "refusals",
    "client",
    "compute",
    "largest setting",
    "failure",
    "budget",
    "target",
]
_BUSY = 0.85  # share of a core at which the client is the limit
_SHORT = 0.9  # in flight over asked for, below which the client does not keep up
_FULL = 0.95  # share of the KV cache in use, as a server tells it
_FALLS = 0.08  # fall of the value that is no plateau
_SURE = 2.0  # standard errors
_RISES = 0.05  # rise of the value per doubling that is none either
_FAR = 1.4  # a run at so much more than another can tell whether requests wait
_SAME_SERVED = 1.25  # growth of those in service by less is none


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit's name, what it was seen by, and the target that it breaks ("" for none).

    at    where it lies, as a setting or a number of slots; NaN where that is not known
    """

    name: Name
    evidence: str
    target: str = ""
    at: float = math.nan


def limit_of(found: Found) -> Limit:
    """What limits the advised setting (the smallest one where none is advised)."""
    index = found.decision.index or 0
    advised = float(found.beliefs.candidates[index])
    rows = sorted(found.observations, key=lambda o: o.setting)
    above = [o for o in rows if o.setting > advised * 1.001]
    target = _broken_target(found, above)
    client = _client(rows, advised)
    if client:
        return Limit("client", client, target)
    if found.decision.index is None and (broken := _broken_target(found, rows)):
        return Limit("target", "no setting that ran keeps it", broken)
    ran = [advised, *(o.setting for o in rows)]
    failed = [(s, said) for s, said in found.failures if s > max(ran)]
    refusing = [o for o in above if o.run.refused_share > 0 and not o.is_taken]
    if refusing:
        first = refusing[0]
        said = next(a.error for a in first.run.asked if not a.is_ok and not a.is_unfit).rstrip(".")
        return Limit(
            "refusals",
            f"at {figures(first.setting)}, {percent(first.run.refused_share)} of the requests "
            f"failed: {said}",
            target, first.setting,
        )  # fmt: skip
    if failed:
        at, said = min(failed)
        return Limit("failure", f"{figures(at)} failed: {said.rstrip('.')}", target, at)
    if found.observations[0].run.kind == "open":
        return Limit("queue", "requests that come faster than that wait longer and longer", target)
    return _from_curve(found, rows, advised, target)


def _from_curve(found: Found, rows: Sequence[Observation], advised: float, target: str) -> Limit:
    """Cap, memory, compute or the largest setting, by what larger settings do."""
    above = [o for o in rows if o.setting > advised * 1.001]
    unit = found.unit
    full = [o for o in rows if o.run.server.get("kv_cache_used", 0.0) >= _FULL]
    fall = _fall(rows, advised)
    slots = _slots(rows)
    if fall and (not slots or full):
        at, share = fall
        name: Name = "padding" if is_padded(rows) else "memory"
        told = " (the server says that its KV cache is full)" if full else ""
        if name == "padding":
            told = "; batches take as long as if every prompt were as long as their longest"
        return Limit(
            name,
            f"from {figures(at)} {unit} on, throughput is {percent(share)} lower{told}",
            target, at,
        )  # fmt: skip
    if slots:
        return Limit(
            "cap",
            f"about {slots:.0f} requests are served at once; more wait for one of them to end",
            target, slots,
        )  # fmt: skip
    last = float(found.beliefs.candidates[-1])
    if not above and advised < last * 0.999:
        return Limit("budget", "no larger setting ran within the budget", target)
    if advised >= last * 0.999 and _rises(found, advised):
        return Limit(
            "largest setting", f"{figures(last)} was the largest setting to try", target, last
        )
    return Limit("compute", "more at once give hardly more throughput", target)


def _broken_target(found: Found, above: Sequence[Observation]) -> str:
    """The target that these runs, the next larger ones or all, break, if one does."""
    for name, limit in found.question.targets.items():
        for seen in above:
            if name in seen.metrics and seen.metrics[name][0] > math.log(limit):
                return f"{METRICS[name]} (95th percentile) {figures(limit)} ms"
    return ""


def _client(rows: Sequence[Observation], advised: float) -> str:
    """Why the client is the limit at or above the advice; empty when it is not."""
    for seen in rows:
        run = seen.run
        if seen.setting < advised or run.kind == "batch":
            continue
        if run.client_cpu > _BUSY:
            return (
                f"at {figures(seen.setting)} this client used {percent(run.client_cpu)} of a "
                "processor; several clients would tell more"
            )
        if (
            run.kind == "closed"
            and not run.refused_share
            and run.in_flight() < _SHORT * run.setting
        ):
            return f"of {seen.setting:.0f} requests only {run.in_flight():.0f} were under way"
    return ""


def _slots(rows: Sequence[Observation]) -> float:
    """How many requests the server works on at once where larger settings only wait; else 0."""
    closed = [o for o in rows if o.run.kind == "closed" and not math.isnan(o.run.decoding())]
    if len(closed) < 2 or closed[-1].setting < _FAR * closed[0].setting:
        return 0.0
    largest = closed[-1]
    for smaller in reversed(closed[:-1]):
        if largest.setting < _FAR * smaller.setting:
            continue
        grown = largest.run.decoding() / max(smaller.run.decoding(), 1e-9)
        waits = _mean(largest, "ttft") - _mean(smaller, "ttft")
        service = _mean(smaller, "latency")
        # Twice as many would add about a whole service time of waiting.
        expected = (largest.setting / smaller.setting - 1.0) * service
        if grown > _SAME_SERVED or waits < 0.5 * expected:
            break
        return _served(largest, closed[0])
    # Only the largest setting lies beyond the cap: what is in service falls far short of it.
    served = _served(largest, closed[0])
    return served if served < largest.setting / 2.0 else 0.0


def _served(seen: Observation, alone: Observation) -> float:
    """Requests in service: in flight less rate times waiting, for the first token's usual share."""
    run = seen.run
    rate = len(run.answered) / sum(a.latency_ms for a in run.answered) * 1e3 * run.setting
    per_token = _mean(seen, "inter_token") / _mean(alone, "inter_token")
    usual = _mean(alone, "ttft") * (per_token if math.isfinite(per_token) else 1.0)
    return max(1.0, run.setting - rate * max(0.0, _mean(seen, "ttft") - usual) / 1e3)


def _mean(seen: Observation, metric: str) -> float:
    values = seen.run.values_of(metric)
    return float(values.mean()) if values.size else math.nan


def _fall(rows: Sequence[Observation], advised: float) -> tuple[float, float] | None:
    """Where and by how much the rate falls above the advice; None where it does not."""
    here = [o.rate for o in rows if o.setting == advised] or [
        max(o.rate for o in rows if o.setting <= advised)
    ]
    usual = float(np.mean(here))
    for seen in rows:
        noise = _SURE * max(seen.value_sd, 0.01)
        if seen.setting > advised and seen.rate < usual + math.log(1.0 - _FALLS) - noise:
            return seen.setting, 1.0 - math.exp(seen.rate - usual)
    return None


def _rises(found: Found, advised: float) -> bool:
    """Whether the last doubling before the advice still brought more."""
    candidates = found.beliefs.candidates
    half = int(np.argmin(np.abs(candidates - advised / 2.0)))
    here = found.decision.index or 0
    gain = found.beliefs.values[:, here] - found.beliefs.values[:, half]
    return bool(float(np.median(gain)) > math.log1p(_RISES))
