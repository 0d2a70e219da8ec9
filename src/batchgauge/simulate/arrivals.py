"""Requests and when they arrive: Poisson, bursty, or replayed from a user's trace.

Arrays over requests have shape [N], in order of arrival. Lengths are tokens, times
seconds from the beginning. What the requests say does not matter here, only how long
they are; `batchgauge.workload.request_lengths` draws lengths in the shape of real traffic.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.files import json_line, text_lines

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

INTERACTIVE, BACKGROUND = 0, 1
CLASS_NAMES = ("interactive", "background")
# What a trace must tell, and how traces call it: Azure's, BurstGPT's, Vidur's, Mooncake's names.
_NAMES = {
    "timestamp": ("timestamp", "arrivedat"),
    "context_tokens": ("contexttokens", "requesttokens", "numprefilltokens", "inputlength"),
    "generated_tokens": ("generatedtokens", "responsetokens", "numdecodetokens", "outputlength"),
}


@dataclass(frozen=True)
class Arrivals:
    """A stream of requests.

    times_s    float64 [N]  arrival, rising from 0 or later
    context    int64 [N]    prompt tokens, at least 1
    generated  int64 [N]    tokens to generate, at least 1
    rank       int64 [N]    class: 0 is served first under priority (CLASS_NAMES)
    notes      how a trace was read, and what of it was dropped
    """

    times_s: Floats
    context: Ints
    generated: Ints
    rank: Ints
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        sizes = {a.shape for a in (self.times_s, self.context, self.generated, self.rank)}
        if len(sizes) != 1 or self.times_s.ndim != 1:
            raise UserError("Arrival times, lengths and classes differ in number.")
        if not self.times_s.size:
            raise UserError("There are no requests; expected at least one arrival.")
        if not np.isfinite(self.times_s).all() or self.times_s[0] < 0.0:
            raise UserError("An arrival time is negative or not a number; expected seconds >= 0.")
        if (np.diff(self.times_s) < 0.0).any():
            row = int(np.argmax(np.diff(self.times_s) < 0.0)) + 2
            raise UserError(f"Arrival times are not sorted: request {row} comes before the last.")
        if min(self.context.min(), self.generated.min()) < 1 or self.rank.min() < 0:
            raise UserError("A request has no tokens or a negative class; expected lengths >= 1.")

    def __len__(self) -> int:
        return self.times_s.size

    @property
    def rate(self) -> float:
        """Mean arrivals per second between the first and the last; infinite when all at once."""
        span = float(self.times_s[-1] - self.times_s[0])
        return (len(self) - 1) / span if span > 0.0 else np.inf

    def at_rate(self, rate: float) -> Arrivals:
        """The same requests in the same pattern, stretched to `rate` per second.

        Raises UserError for a rate that is not above 0, or when all came at once.
        """
        _check_rate(rate)
        if not np.isfinite(self.rate):
            raise UserError("All requests arrive at the same time; their rate cannot be changed.")
        return replace(self, times_s=(self.times_s - self.times_s[0]) * (self.rate / rate))

    def at_once(self) -> Arrivals:
        """The same requests, all waiting at time 0: what the server manages at its best."""
        return replace(self, times_s=np.zeros(len(self)))

    def shortened(self, scale: float, longest: int) -> Arrivals:
        """The same stream with all lengths times `scale`, at least 1 and at most `longest`."""
        if not scale > 0.0 or longest < 1:
            raise UserError(f"The length scale is {scale}; expected a number above 0.")
        context, generated = (
            np.clip(np.rint(a * scale), 1, longest).astype(np.int64)
            for a in (self.context, self.generated)
        )
        return replace(self, context=context, generated=generated)

    def picked(self, which: slice | Ints) -> Arrivals:
        """The requests of these numbers, in order of arrival, at their own times."""
        arrays = ("times_s", "context", "generated", "rank")
        return replace(self, **{name: getattr(self, name)[which] for name in arrays})

    def window(self, start: int, count: int) -> Arrivals:
        """Up to `count` requests from number `start` on, at their own times."""
        return self.picked(slice(start, start + count))


def bursty(
    rate: float,
    context: Ints,
    generated: Ints,
    *,
    burstiness: float = 4.0,
    background: float = 0.0,
    seed: int = 0,
) -> Arrivals:
    """Arrivals with gamma-distributed gaps whose squared coefficient of variation is `burstiness`.

    1 is Poisson, larger comes in bursts (BurstGPT, Wang et al. 2024, fits gamma gaps
    to real LLM traffic), smaller is more even. A seeded share
    `background` is of the low class. Raises UserError for a rate that is not above 0.
    """
    _check_rate(rate)
    if burstiness <= 0.0 or not 0.0 <= background <= 1.0:
        raise UserError(
            f"burstiness is {burstiness} and background {background}; "
            "expected a number above 0 and a share from 0 to 1."
        )
    rng = np.random.default_rng(seed)
    count = len(context)
    gaps = rng.gamma(1.0 / burstiness, burstiness / rate, size=count)  # [N], mean 1 / rate
    rank = (rng.random(count) < background).astype(np.int64)
    return Arrivals(
        np.cumsum(gaps), np.asarray(context, np.int64), np.asarray(generated, np.int64), rank
    )


def _check_rate(rate: float) -> None:
    if not 0.0 < rate < np.inf:
        raise UserError(f"The arrival rate is {rate}; expected requests per second above 0.")


def read_trace(path: str | Path, *, background: float = 0.0, seed: int = 0) -> Arrivals:
    """Arrivals from a trace: a CSV (commas, semicolons or tabs), or JSON lines.

    Reads a time, prompt tokens and generated tokens under any of the names in `_NAMES`
    (without case, spaces and underscores), so that the traces of Azure, BurstGPT, Vidur and
    Mooncake work as they are. Times are ISO dates, times since 1970 in s, ms, µs or ns
    (told apart by their size), or seconds from the beginning; Mooncake's are ms. A request
    that generated nothing is dropped where the trace calls that a failure (BurstGPT), and
    elsewhere counts as 1 token: its prefill yields one. `notes` says what was dropped and
    how times were read. Other columns are ignored, except an optional `priority` (0 first).
    Raises UserError for a file that cannot be read, wrong columns, unsorted or negative
    times, lengths that are no whole numbers.
    """
    where = f"Trace '{path}'"
    table = _table(path, where)
    folded: dict[str, Any] = {}
    for column in table.columns:
        folded.setdefault(_fold(column), column)
    found = {
        want: next((folded[name] for name in names if name in folded), None)
        for want, names in _NAMES.items()
    }
    if None in found.values():
        raise UserError(
            f"{where} has the columns {', '.join(map(str, table.columns))}; "
            f"expected {', '.join(_NAMES)}, or those of Azure, BurstGPT, Vidur or Mooncake."
        )
    if table.empty:
        raise UserError(f"{where} has no rows; expected at least one request.")
    time, context, generated = (table[found[want]] for want in _NAMES)
    if "priority" in folded:
        rank = _whole(table[folded["priority"]], where, "priority")
    else:
        rank = (np.random.default_rng(seed).random(len(table)) < background).astype(np.int64)
    unit_s = 1e-3 if _fold(found["context_tokens"]) == "inputlength" else None
    times, read_as = _seconds(time, where, unit_s)
    answers = _whole(generated, where, "generated_tokens")
    kept = np.ones(len(table), bool)
    notes = [f"{len(table):,} rows; {read_as}"]
    if _fold(found["generated_tokens"]) == "responsetokens":
        kept = answers > 0
        notes.append(f"{int((~kept).sum()):,} without an answer dropped")
        if not kept.any():
            raise UserError(f"{where} has no row with an answer; expected at least one request.")
    lengths = _whole(context, where, "context_tokens", least=kept.astype(np.int64))
    try:
        stream = times[kept], lengths[kept], np.maximum(answers[kept], 1), rank[kept]
        return Arrivals(*stream, notes=tuple(notes))
    except UserError as why:
        raise UserError(f"{where}: {why}") from None


def _table(path: str | Path, where: str) -> pd.DataFrame:
    lines = text_lines(path, where)
    if not lines:
        raise UserError(f"{where} is empty; expected a line of column names.")
    if lines[0][1].lstrip().startswith("{"):
        rows = [json_line(line, f"{where}, line {number},") for number, line in lines]
        try:
            return pd.DataFrame(rows)
        except UnicodeEncodeError:  # of pyarrow, where that is what pandas keeps texts in
            raise UserError(f"{where} has half of a surrogate pair; expected text.") from None
    head = lines[0][1]
    separator = max(",;\t|", key=head.count)
    text = io.StringIO("\n".join(line for _, line in lines))
    try:
        table = pd.read_csv(text, sep=separator, decimal="," if separator == ";" else ".")
    except ValueError as why:  # pandas' own errors of reading are ValueErrors
        raise UserError(f"{where} cannot be read as CSV: {why}.") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas would take the first for row names
        raise UserError(f"{where} has rows of more fields than names; expected a name for each.")
    return table


def _fold(name: object) -> str:
    return str(name).strip().lower().replace("_", "").replace(" ", "")


def _seconds(column: pd.Series, where: str, unit_s: float | None) -> tuple[Floats, str]:
    """Seconds [N], and how they were read; times since 1970 and dates count from the first."""
    numbers = _numbers(column)
    if np.isfinite(numbers).all():
        if unit_s is None:
            epochs = (("ns", 1e17, 1e-9), ("µs", 1e14, 1e-6), ("ms", 1e11, 1e-3), ("s", 1e8, 1.0))
            found = [(unit, scale) for unit, least, scale in epochs if numbers[0] >= least]
            if not found:
                return numbers, "times are seconds"
            unit, scale = found[0]
            seconds = (numbers - numbers[0]) * scale
            _check_sorted(seconds, where)
            return seconds, f"times are {unit} since 1970"
        return numbers * unit_s, f"times are {unit_s:g} s"
    dates = pd.to_datetime(column.astype(str), errors="coerce", utc=True, format="ISO8601")
    if dates.isna().any():
        row = int(dates.isna().to_numpy().argmax())
        raise UserError(
            f"{where} has the timestamp '{column.iloc[row]}' in row {row + 1}; "
            "expected seconds or an ISO date."
        )
    from_first: Floats = np.asarray((dates - dates.iloc[0]).dt.total_seconds(), np.float64)
    _check_sorted(from_first, where)
    return from_first, "times are dates"


def _check_sorted(times: Floats, where: str) -> None:
    """Said before a time before the first reads as negative."""
    if (np.diff(times) < 0.0).any():
        row = int(np.argmax(np.diff(times) < 0.0)) + 2
        raise UserError(f"{where} is not sorted by time: row {row} is earlier than the one before.")


def _numbers(column: pd.Series) -> Floats:
    """The column as numbers [N]; NaN for whatever is none, truth values included."""
    numbers = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(np.float64)
    truth = np.array([isinstance(value, bool | np.bool_) for value in column])
    return np.where(truth, np.nan, numbers)


def _whole(column: pd.Series, where: str, name: str, *, least: int | Ints = 0) -> Ints:
    """The column as whole numbers [N] of at least `least`, one for all or [N]. Raises UserError."""
    numbers = _numbers(column)
    bad = ~((numbers >= least) & (numbers == np.rint(numbers)) & (numbers < 2**53))
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"{where} has {name} '{column.iloc[row]}' in row {row + 1}; "
            f"expected a whole number of at least {np.broadcast_to(least, bad.shape)[row]}."
        )
    return numbers.astype(np.int64)
