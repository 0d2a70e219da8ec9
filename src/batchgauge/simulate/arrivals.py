"""Requests and when they arrive: Poisson, bursty, or replayed from a user's trace.

Arrays over requests have shape [N], in order of arrival. Lengths are tokens, times
seconds from the beginning. What the requests say does not matter here, only how long
they are; `batchgauge.workload.request_lengths` draws lengths in the shape of real traffic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.errors import UserError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

INTERACTIVE, BACKGROUND = 0, 1
CLASS_NAMES = ("interactive", "background")
TRACE_COLUMNS = ("timestamp", "context_tokens", "generated_tokens")


@dataclass(frozen=True)
class Arrivals:
    """A stream of requests.

    times_s    float64 [N]  arrival, rising from 0 or later
    context    int64 [N]    prompt tokens, at least 1
    generated  int64 [N]    tokens to generate, at least 1
    rank       int64 [N]    class: 0 is served first under priority (CLASS_NAMES)
    """

    times_s: Floats
    context: Ints
    generated: Ints
    rank: Ints

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

    def first(self, count: int) -> Arrivals:
        """The first `count` requests (all, when there are fewer)."""
        return self.window(0, count)

    def window(self, start: int, count: int) -> Arrivals:
        """Up to `count` requests from number `start` on, at their own times."""
        part = slice(start, start + count)
        return Arrivals(
            self.times_s[part], self.context[part], self.generated[part], self.rank[part]
        )


def poisson(
    rate: float, context: Ints, generated: Ints, *, background: float = 0.0, seed: int = 0
) -> Arrivals:
    """Independent arrivals at `rate` per second; a seeded share `background` is of the low class.

    Raises UserError for a rate that is not above 0 or a share outside 0 to 1.
    """
    return bursty(rate, context, generated, burstiness=1.0, background=background, seed=seed)


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
    to real LLM traffic), smaller is more even. Raises UserError as `poisson` does.
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
    """Arrivals from a CSV with the columns timestamp, context_tokens and generated_tokens.

    Column names are matched without case and underscores, so that the Azure LLM
    inference traces work as they are; timestamps are seconds or ISO dates. A request
    that generated 0 tokens counts as 1: its prefill yields one. Other columns are
    ignored, except an optional `priority` (0 first). Raises UserError for a file that
    cannot be read, wrong columns, unsorted or negative times, lengths that are no
    whole numbers.
    """
    where = f"Trace '{path}'"
    try:
        table = pd.read_csv(path)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as why:
        raise UserError(f"{where} cannot be read as CSV: {why}.") from None
    folded = {_fold(name): name for name in table.columns}
    missing = [name for name in TRACE_COLUMNS if _fold(name) not in folded]
    if missing:
        raise UserError(
            f"{where} has the columns {', '.join(map(str, table.columns))}; "
            f"expected {', '.join(TRACE_COLUMNS)}."
        )
    if table.empty:
        raise UserError(f"{where} has no rows; expected at least one request.")
    time, context, generated = (table[folded[_fold(name)]] for name in TRACE_COLUMNS)
    if "priority" in folded:
        rank = _whole(table[folded["priority"]], where, "priority", least=0)
    else:
        rank = (np.random.default_rng(seed).random(len(table)) < background).astype(np.int64)
    times = _seconds(time, where)
    lengths = _whole(context, where, "context_tokens", least=1)
    answers = _whole(generated, where, "generated_tokens", least=0)
    try:
        return Arrivals(times, lengths, np.maximum(answers, 1), rank)
    except UserError as why:
        raise UserError(f"{where}: {why}") from None


def _fold(name: object) -> str:
    return str(name).strip().lower().replace("_", "")


def _seconds(column: pd.Series, where: str) -> Floats:
    """Seconds [N]: numbers as they are, dates from the first row's date on."""
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().all():
        return np.asarray(numbers, np.float64)
    dates = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    if dates.isna().any():
        row = int(dates.isna().to_numpy().argmax())
        raise UserError(
            f"{where} has the timestamp '{column.iloc[row]}' in row {row + 1}; "
            "expected seconds or an ISO date."
        )
    from_first: Floats = np.asarray((dates - dates.iloc[0]).dt.total_seconds(), np.float64)
    if (np.diff(from_first) < 0.0).any():  # said before a date before the first reads as negative
        row = int(np.argmax(np.diff(from_first) < 0.0)) + 2
        raise UserError(f"{where} is not sorted by time: row {row} is earlier than the one before.")
    return from_first


def _whole(column: pd.Series, where: str, name: str, *, least: int) -> Ints:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    bad = ~((numbers >= least) & (numbers == np.rint(numbers)) & (numbers < 2**53))
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"{where} has {name} '{column.iloc[row]}' in row {row + 1}; "
            f"expected a whole number of at least {least}."
        )
    return numbers.astype(np.int64)
