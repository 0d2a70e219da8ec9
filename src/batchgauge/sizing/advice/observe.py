"""What the search learns from one run of a setting.

A closed loop's rate is what was done in the seconds in which every slot was busy: of a request
that lies only partly in them, that part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy

from batchgauge.errors import UserError
from batchgauge.sizing.advice.percentiles import alike, p95_log
from batchgauge.sizing.advice.records import Asked, Run
from batchgauge.text import figures

Array = npt.NDArray[np.float64]
Objective = Literal["throughput", "goodput"]
METRICS = {
    "ttft": "time to first token",
    "inter_token": "time between tokens",
    "latency": "latency of a request",
}
LEAST_SD = 0.002  # of a run's logarithm
_MOST_REFUSED = 0.002  # of the requests of a setting that is advised, or none of a short run's
_MOST_FAILED = 0.01  # without a word of load: connections break now and then
_MOST_BLOCKS = 12  # of a run
_BUSY = 0.75  # of the slots, until when a run goes on after nothing more is sent
_LEAST_WIDTH = 0.01  # of the logarithm of a time: nothing is timed better
_OUT_OF_NOTHING = 20.0  # growth within a run that is no figure
_GROWN = 2.0  # the mean latency of an open run's last third over that of its first


@dataclass(frozen=True)
class Observation:
    """What one run says: logarithms with their standard deviations.

    value, value_sd   what the objective counts, per second
    rate              tokens per second (requests, where those are not counted), in time or not
    degrees           degrees of freedom of `value_sd`
    metrics           name -> (log of the 95th percentile in ms, standard deviation)
    unsteady          what was not steady; "" for nothing
    """

    run: Run
    seconds: float
    value: float
    value_sd: float
    degrees: int
    metrics: Mapping[str, tuple[float, float]]
    unsteady: str = ""
    rate: float = math.nan

    @property
    def setting(self) -> float:
        """The setting that ran."""
        return self.run.setting

    @property
    def is_taken(self) -> bool:
        """Whether the server took (nearly) all requests."""
        busy_share = self.run.share(lambda a: a.status > 0)  # a status is about load
        is_refused = busy_share > _MOST_REFUSED or self.run.refused_share > _MOST_FAILED
        return not is_refused and not self.is_overloaded

    @property
    def is_broken(self) -> bool:
        """Whether requests got no answer at all: the server broke off, or went away."""
        return self.run.share(lambda a: a.is_broken) > _MOST_FAILED

    @property
    def is_overloaded(self) -> bool:
        """Whether requests came faster than they were answered: the wait grew all the time."""
        if self.run.kind != "open":
            return False
        waits = np.array([a.latency_ms for a in self.run.answered])
        third = waits.size // 3
        if third < 8:
            return False
        first, middle, last = (waits[i * third : (i + 1) * third].mean() for i in range(3))
        return bool(last > middle > first and last > _GROWN * first)


def observe(
    run: Run, seconds: float, objective: Objective, targets: Mapping[str, float], *, tokens: bool
) -> Observation:
    """What a run says; `tokens` where throughput is in tokens, else in requests.

    Raises UserError for a run without a single answer.
    """
    if not run.answered:
        raise UserError(_nothing(run))
    tokens = tokens and objective == "throughput"
    in_time = _rates_in_time(run, tokens=tokens)
    degrees, variance = in_time.size - 1, 0.0
    if run.kind == "open":
        rate = _open_rate(run, tokens=tokens)
        amounts = np.array([_amount(a, tokens=tokens) for a in run.counted if a.is_ok])
        sd = float(amounts.std() / math.sqrt(amounts.size) / amounts.mean())
        # Where the server fell behind, its rate is less sure.
        other = run.setting * float(amounts.sum()) / len(run.counted)
        variance = (math.log(rate / other) / 2.0) ** 2
    else:
        amount, busy_s, *_ = blocks_of(run, tokens=tokens)
        amount = np.maximum(amount, 1e-9)
        degrees, rate = amount.size - 1, float(amount.sum() / busy_s.sum())
        sd = ratio_error(amount, busy_s)
    variance += max(LEAST_SD, sd) ** 2
    plain = math.log(rate)
    if objective == "goodput":
        kept = _kept(run, targets)
        share = max(float(kept.mean()), 0.5 / (kept.size + 1.0))
        rate *= share
        variance += alike(kept) * (1.0 - share) / (share * kept.size)
    metrics = {
        name: p95_log(values) for name in METRICS if (values := run.values_of(name)).size >= 3
    }
    missing = sorted(set(targets) - set(metrics))
    if missing:
        raise UserError(
            f"The {METRICS[missing[0]]} cannot be seen on this engine (answers come whole, or with "
            "less than two tokens); expected no target for it."
        )
    return Observation(
        run, seconds, math.log(rate), math.sqrt(variance), degrees, metrics, _trend(in_time), plain
    )


def ratio_error(amount: Array, seconds: Array) -> float:
    """Relative standard error of sum(amount) / sum(seconds), both [parts].

    Cochran, "Sampling Techniques" (1977), eq. 6.13.
    """
    apart = seconds - amount * (seconds.sum() / amount.sum())
    return math.sqrt(apart @ apart / max(1, apart.size - 1) / apart.size) / float(seconds.mean())


def _kept(run: Run, targets: Mapping[str, float]) -> Array:
    """How likely an answer like each keeps every target, float64 [answers].

    Few answers say little by how many of them keep a target: one far within it is surer than one
    just within. Times are smoothed by a normal kernel of Silverman's width ("Density Estimation",
    1986, eq. 3.28) on their logarithms. A time that is not known breaks none.
    """
    kept = np.ones(len(run.answered))
    for name, target in targets.items():
        logs = np.log([max(getattr(a, f"{name}_ms"), 1e-3) for a in run.answered])
        known = np.isfinite(logs)
        width = max(_LEAST_WIDTH, 1.06 * float(logs[known].std()) * known.sum() ** -0.2)
        kept[known] *= scipy.special.ndtr((math.log(target) - logs[known]) / width)
    return kept


def _amount(asked: Asked, *, tokens: bool) -> float:
    return float(asked.tokens or 0) if tokens else 1.0


def _open_rate(run: Run, *, tokens: bool) -> float:
    """Tokens or requests per second of arrivals at a rate.

    How many came is chance, at what rate is not: answers a request, times the rate; less where
    the server fell behind, and answered for longer than they came.
    """
    counted = [a for a in run.counted if a.is_ok]
    done_s = max(a.end_s for a in counted) - min(a.due_s for a in counted)
    behind = max(1.0, (done_s - _typical(run)) / (run.deadline_s - run.begin_s))
    answered = sum(_amount(a, tokens=tokens) for a in counted)
    return run.setting * answered / len(run.counted) / behind


def _typical(run: Run) -> float:
    """Median seconds of a request."""
    return float(np.median([a.end_s - a.due_s for a in run.answered]))


def _rates_in_time(run: Run, *, tokens: bool) -> Array:
    """Tokens or requests per second in blocks of equal seconds, float64 [blocks], at least 2."""
    cycles = (run.deadline_s - run.begin_s) / max(_typical(run), 1e-9)
    edges = np.linspace(run.begin_s, run.deadline_s, min(_MOST_BLOCKS, max(2, int(cycles))) + 1)
    amount, seconds, *_ = _done_between(run, edges, tokens=tokens)
    rates: Array = amount / seconds
    return rates if rates.mean() > 0 else rates + 1e-9


def blocks_of(run: Run, *, tokens: bool) -> Array:
    """Amount and seconds of parts of a run, and what prompts may add to them, float64 [6, blocks].

    A part is a batch; its prompts add by the sum of their letters, by its longest's times its
    size, and by both of squares. Of a closed loop it is the seconds in which about one request of
    each slot was done; prompts add by their letters and by those over the slots, which take their
    prompts in side by side or one after the other, and by both of squares.
    """
    if run.kind == "batch":
        return _batches(run, tokens=tokens)
    return _done_between(run, _edges(run), tokens=tokens)


def _batches(run: Run, *, tokens: bool) -> Array:
    found: dict[float, list[Asked]] = {}
    for asked in run.asked:
        if asked.is_ok:
            found.setdefault(asked.due_s, []).append(asked)
    columns = []
    for batch in found.values():
        letters = np.array([float(a.letters) for a in batch])
        mix = [len(batch) * f(x) for x in (letters, letters**2) for f in (np.mean, np.max)]
        amount = sum(_amount(a, tokens=tokens) for a in batch)
        columns.append([amount, batch[0].end_s - batch[0].due_s, *mix])
    return np.array(columns).T


def _edges(run: Run) -> Array:
    """When parts of a closed loop's run begin and end, all slots busy, float64 [3 or more].

    At ends of requests, about as many in each part as there are slots.
    """
    ok = [a for a in run.asked if a.is_ok]
    sent, ended = np.sort([a.sent_s for a in ok]), np.sort([a.end_s for a in ok])
    under_way = np.searchsorted(sent, ended) - np.arange(ended.size)  # until each of the ends
    is_busy = (ended <= run.deadline_s) | (under_way >= _BUSY * run.setting)
    done = ended[is_busy & (ended > run.begin_s)]
    count = min(_MOST_BLOCKS, max(2, round(done.size / run.setting)))
    if done.size >= count:
        places = np.round(np.linspace(0, done.size, count + 1)[1:]).astype(int) - 1
        edges = np.unique([run.begin_s, *done[places]])
        if edges.size > 2:
            return edges
    return np.linspace(run.begin_s, max(run.begin_s + 1e-9, ended[-1]), 3)


def _done_between(run: Run, edges: Array, *, tokens: bool) -> Array:
    """What `blocks_of` gives, between edges in time.

    Every answer's amount is spread evenly from its first token to its end. Its prompt's letters
    are taken in before the first token, since it was due or, where it waited, since the server
    last answered anything.
    """
    ok = [a for a in run.asked if a.is_ok]
    due, first, end, letters = np.array([(a.due_s, a.first_s, a.end_s, a.letters) for a in ok]).T
    amounts = np.array([_amount(a, tokens=tokens) for a in ok])
    is_known = ~np.isnan(first)
    amount = _spread(edges, np.where(is_known, first, due), end, amounts)
    events = np.sort(np.concatenate([[-math.inf], first[is_known], end]))
    before = events[np.maximum(0, np.searchsorted(events, first) - 1)]
    since = np.where(is_known, np.maximum(due, before), due)
    until = np.where(is_known, first, end)
    mix = [_spread(edges, since, until, letters**power) for power in (1, 2)]
    slots = run.setting
    return np.array([amount, np.diff(edges), *(row / over for row in mix for over in (1.0, slots))])


def _spread(edges: Array, begins: Array, ends: Array, amounts: Array) -> Array:
    """What falls between edges [e] of amounts that each lie between two times, float64 [e - 1]."""
    begins = np.minimum(begins, ends - 1e-9)
    done = np.clip((edges[:, None] - begins) / (ends - begins), 0.0, 1.0) @ amounts
    return np.asarray(np.diff(done))


def _trend(blocks: Array) -> str:
    """What was not steady in the blocks of a run; empty when nothing stands out."""
    half = blocks.size // 2
    if half < 2:
        return ""
    first, last = blocks[:half], blocks[-half:]
    noise = math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / half)
    change = float(last.mean() / max(first.mean(), 1e-12) - 1.0)
    if abs(change) < 0.15 or abs(last.mean() - first.mean()) < 4.0 * noise:
        return ""
    if change > _OUT_OF_NOTHING:
        return "hardly anything was answered in the first half of a run"
    return f"the rate changed by {100 * change:+.0f} % within a run"


def _nothing(run: Run) -> str:
    """Why a run without an answer had none."""
    said, at = [a for a in run.asked if not a.is_ok], figures(run.setting)
    if not said:
        return (
            f"No request was answered in time at {at}: the engine is too slow for requests of this "
            "length; expected shorter answers."
        )
    last = said[-1]
    if last.is_unfit:
        return f"No request of the workload is taken: {last.error}"
    if last.status:
        return f"Every request was refused at {at}: {last.error}"
    return f"Every request failed at {at}: {last.error}"
