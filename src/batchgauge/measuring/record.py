"""The record: one immutable row a measured sample, the same columns in every CSV.

| column | meaning |
| --- | --- |
| run_id, timestamp | one measuring session, and when it began (UTC) |
| benchmark | name, e.g. `tokenize/batch=32/chars=200` |
| implementation | what was run, e.g. `numpy`; in a comparison, the candidate's name |
| part | tokenize, detokenize, prefill, decode, statistics, lookup, sizing, end_to_end … |
| batch_size, parameters | items in one batch; further parameters as JSON |
| process, block, position | which process, which round, which place in the round |
| is_warmup | True for samples before the times were steady; kept, never analysed |
| inner_loops | calls timed together as this one sample |
| wall_ms, cpu_ms | milliseconds of ONE call: wall clock; CPU time of all threads, or empty |
| items, tokens | work done by one call; tokens are 0 where none are counted |
| counters | deterministic work of one call as JSON: tokens, steps, bytes, instructions |
| outlier | "" or low/high mild/severe by Tukey's fences; a label, no row is dropped |
| gc | garbage collection while timing: `off` (young objects collected before), or `on` |
| threads, seed | threads allowed; seed of the order and the data |
| weights | how the engine keeps them: float32, file, bfloat16; empty: no engine, or not said |
| git_commit, versions | what was measured; a `+` says the files differ from the commit |
| machine_id, machine | digest and description of the machine |
| workload | digest of the data worked on; different data are not compared |

Leaves out what the numbers mean: see `statistics`, `paired` and `compare`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchgauge.clock import Elapsed
from batchgauge.errors import UserError
from batchgauge.files import write_csv
from batchgauge.machine.identity import Run

_PICOSECONDS = 9  # decimals of a millisecond: a clock's nanosecond over a thousand calls


@dataclass(frozen=True, slots=True)
class Sample:
    """One timing; times in milliseconds of one call. See the module's table."""

    benchmark: str
    implementation: str
    part: str
    batch_size: int
    parameters: str
    process: int
    block: int
    position: int
    is_warmup: bool
    inner_loops: int
    wall_ms: float
    cpu_ms: float
    items: int
    tokens: int
    counters: str = "{}"
    outlier: str = ""
    gc: str = "off"


@dataclass(frozen=True, slots=True)
class Amount:
    """What one call does: items, tokens, and further deterministic counters.

    Raises UserError for fewer than one item: a throughput needs work.
    """

    items: int = 1
    tokens: int = 0
    batch_size: int = 1
    counters: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.items < 1:
            raise UserError(f"A call has {self.items} items; expected at least 1.")


@dataclass(frozen=True, slots=True)
class Labels:
    """What all samples of one measurement say about themselves."""

    benchmark: str
    implementation: str = "numpy"
    part: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    process: int = 0

    def sample(self, amount: Amount, elapsed: Elapsed, **place: Any) -> Sample:
        """The row of some calls; `place` are the fields block, position, is_warmup and gc."""
        return Sample(
            benchmark=self.benchmark,
            implementation=self.implementation,
            part=self.part,
            batch_size=amount.batch_size,
            parameters=as_json(self.parameters),
            process=self.process,
            inner_loops=elapsed.loops,
            wall_ms=round(elapsed.wall_ms, _PICOSECONDS),
            cpu_ms=round(elapsed.cpu_ms, _PICOSECONDS),
            items=amount.items,
            tokens=amount.tokens,
            counters=as_json(amount.counters),
            **place,
        )


_RUN_COLUMNS = (
    *("threads", "weights", "seed", "git_commit", "versions", "machine_id", "machine"),
    "workload",
    "timestamp",
)
COLUMNS: tuple[str, ...] = ("run_id", *(f.name for f in fields(Sample)), *_RUN_COLUMNS)
_WITHOUT_ENGINE = ("tokenize", "detokenize", "statistics", "lookup", "sizing")  # parts
_TIMES = ("wall_ms", "cpu_ms")
_WHOLE = (
    *("batch_size", "process", "block", "position", "inner_loops", "items", "tokens"),
    *("threads", "seed"),
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """All samples of one benchmark of one implementation, warm-up included, and their run."""

    name: str
    samples: tuple[Sample, ...]
    run: Run
    stopped_because: str = ""

    @property
    def steady_ms(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Wall milliseconds of one call [samples], warm-up left out."""
        return np.array([s.wall_ms for s in self.samples if not s.is_warmup])

    @property
    def median_ms(self) -> float:
        """Median wall time of one call."""
        return float(np.median(self.steady_ms))

    def to_frame(self) -> pd.DataFrame:
        """One row a sample, columns `COLUMNS`."""
        return to_frame(self.samples, self.run)

    def write(self, path: Path | str) -> Path:
        """Write the rows as CSV, whole or not at all."""
        return write_csv(self.to_frame(), path)


def to_frame(samples: Iterable[Sample], run: Run) -> pd.DataFrame:
    """Samples of one run as a frame with the columns `COLUMNS`."""
    machine = {"machine_id": run.machine.id, "machine": run.machine.describe()}
    shared: dict[str, Any] = {**asdict(run), **machine}
    frame = pd.DataFrame([asdict(s) for s in samples]).assign(**shared)[list(COLUMNS)]
    frame["weights"] = frame["weights"].mask(frame["part"].isin(_WITHOUT_ENGINE), "")
    return frame


def as_json(values: Mapping[str, Any]) -> str:
    """Parameters or counters as JSON with sorted keys, so that equal ones are equal text."""
    return json.dumps(dict(values), sort_keys=True, default=str)


def read(path: Path | str) -> pd.DataFrame:
    """Samples from a CSV that `write` or a notebook made, checked: what was written comes back.

    A `cpu_ms` that was not taken is empty, and NaN here. Raises UserError for a file that is
    missing, empty, truncated, of other columns, or with wall times that are missing, negative
    or not numbers.
    """
    source = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(source, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"'{source}' cannot be read: {problem}.") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"'{source}' is empty; expected a CSV of samples.") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as problem:
        raise UserError(f"'{source}' is no whole CSV: {str(problem).strip()}.") from None
    return checked(frame, str(source))


def checked(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """`frame` with typed columns. Raises UserError when it is no table of samples."""
    if "weights" not in frame.columns:  # tables of before weights modes
        frame = frame.assign(weights="")
    missing = [c for c in COLUMNS if c not in frame.columns]
    if missing:
        raise UserError(
            f"'{source}' is no table of samples: it lacks {', '.join(missing[:4])}"
            f"{' and more' if len(missing) > 4 else ''}."
        )
    if frame.empty:
        raise UserError(f"'{source}' has columns but no samples.")
    typed = frame.copy()
    flags = typed["is_warmup"].astype(str).str.lower()
    if not flags.isin(["true", "false"]).all() or typed["timestamp"].fillna("").eq("").any():
        raise UserError(f"'{source}' has rows cut short; is the file truncated?")
    for column in (*_WHOLE, *_TIMES):
        number, what = (_whole, "whole number") if column in _WHOLE else (_real, "number")
        cells = typed[column].tolist()
        values = [number(cell) for cell in cells]
        untaken = {"", "nan"} if column == "cpu_ms" else set()
        for line, (cell, value) in enumerate(zip(cells, values, strict=True), start=2):
            if value is None and str(cell) not in untaken:
                raise UserError(
                    f"'{source}', line {line}: {column} is no {what}; is the file truncated?"
                )
        typed[column] = [math.nan if v is None else v for v in values]
    typed["is_warmup"] = flags == "true"
    if (typed["wall_ms"] <= 0).any() or (typed["cpu_ms"] < 0).any():
        raise UserError(f"'{source}' has times that are zero or negative; expected milliseconds.")
    if not typed["is_warmup"].eq(other=False).any():
        raise UserError(f"'{source}' has warm-up samples only; nothing to compare.")
    return typed


def _whole(cell: Any) -> int | None:
    """A whole number of any size; None for anything else. A `32.0` is one."""
    if isinstance(cell, str | int):
        with suppress(ValueError):
            return int(cell)
    real = _real(cell)
    return int(real) if real is not None and real.is_integer() else None


def _real(cell: Any) -> float | None:
    """A finite number; None for anything else."""
    try:
        real = float(cell)
    except (ValueError, TypeError, OverflowError):
        return None
    return real if math.isfinite(real) else None
