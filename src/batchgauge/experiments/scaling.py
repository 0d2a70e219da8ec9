"""How large an experiment may be for what the model costs here: a pilot, and one rule.

The pilot is a prefill and a few decode steps of the very engine, threads and weights. The rule
keeps the work that was asked for as long as it takes about the time it may take; else answers
become shorter, then the largest batches go. A model so quick that a request would be lost
in the clock's noise gets longer answers instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

from batchgauge.protocols import Engine
from batchgauge.sizing.probes import engine_probe
from batchgauge.text import figures

SLACK = 2.0  # work is cut when it would take so many times its time: machines differ, too
FEW_TOKENS, LEAST_TOKENS = 4, 2  # before batches go, and after
SMALL_BATCH = 4  # the largest batch stays at least as large, of those asked for
LEAST_S = 0.005  # a request below this is lengthened
MOST_TOKENS = 64  # of a lengthened one
TRIES, TRIES_S = 25, 1.0  # probes of a kind, and seconds in which they begin, at the most
PILOT, PROMPT = 32, 16  # tokens of the pilot's prompt, and the least that prompts are cut to


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a prompt's token, of a decode step of one request, and of each further one."""

    position_s: float
    step_s: float
    row_s: float = 0.0

    def batch_s(self, rows: int, prompt: int, tokens: int) -> float:
        """Seconds of a batch: prompts of so many tokens, then so many generated."""
        steps = max(tokens - 1, 0)
        return rows * prompt * self.position_s + steps * (self.step_s + (rows - 1) * self.row_s)

    def sentence(self) -> str:
        """What the pilot found."""
        if self.step_s <= 0.0:
            return (
                f"Here a token of a prompt takes {_time(self.position_s)}; a decode step takes too "
                "little to be told from none."
            )
        further = (
            f"each further request {_time(self.row_s)} more"
            if self.row_s > 0.0
            else "further requests too little more to be seen"
        )
        return (
            f"Here a token of a prompt takes {_time(self.position_s)}, a decode step of one "
            f"request {_time(self.step_s)} and {further}."
        )


@dataclass(frozen=True, slots=True)
class WorkSize:
    """Batch sizes in rising order, tokens of a prompt and of an answer."""

    sizes: tuple[int, ...]
    prompt: int
    tokens: int

    def smaller(self) -> WorkSize | None:
        """The next smaller work; None when there is none."""
        if self.tokens > FEW_TOKENS:
            return replace(self, tokens=max(FEW_TOKENS, self.tokens // 2))
        if len(self.sizes) > 1 and self.sizes[-1] > SMALL_BATCH:
            return replace(self, sizes=self.sizes[:-1])
        if self.tokens > LEAST_TOKENS:
            return replace(self, tokens=LEAST_TOKENS)
        return None


def pilot(engine: Engine, seconds: float = TRIES_S) -> Cost:
    """What the engine costs; `seconds` for probes of a kind, of which there are two at least.

    Raises UserError when it answers with an error.
    """
    least = partial(_least, seconds=min(seconds, TRIES_S))
    probe = engine_probe(engine)
    rows = min(SMALL_BATCH, engine.max_batch_size())
    probe(rows, 1, 1)  # compiles and fills caches
    first, step = least(lambda: probe(1, PILOT, 1))
    wide = least(lambda: probe(rows, 1, 1))[1] if rows > 1 else step
    further = max(0.0, wide - step) / max(rows - 1, 1)
    return Cost(first / PILOT / 1e3, step / 1e3, further / 1e3)


def _least(probe: Callable[[], tuple[float, float]], *, seconds: float) -> tuple[float, float]:
    """The least of several probes, each number by itself: what other processes do only adds."""
    started, seen = perf_counter(), [probe(), probe()]
    while len(seen) < TRIES and perf_counter() - started < seconds:
        seen.append(probe())
    first, step = (min(each) for each in zip(*seen, strict=True))
    return first, step


def fitted(
    wanted: WorkSize,
    cost: Cost,
    seconds: float,
    *,
    block_s: Callable[[WorkSize], float],
    room: int | None = None,
    lengthen: bool = True,
) -> WorkSize:
    """The work to do in `seconds`: what was wanted, cut or lengthened by the module's rule.

    `block_s` gives the seconds that a work takes at the least, `room` the positions that the
    model has for prompt and answer (None: nobody knows); `lengthen`
    where single calls are timed, which may be too short to time.
    """
    work = wanted
    if room is not None:
        work = replace(work, tokens=max(1, min(work.tokens, room - work.prompt)))
    while block_s(work) > SLACK * seconds and (less := work.smaller()):
        work = less
    most = MOST_TOKENS if room is None else min(MOST_TOKENS, room - work.prompt)
    while (
        lengthen
        and cost.batch_s(1, work.prompt, work.tokens) < LEAST_S
        and 2 * work.tokens <= most
        and block_s(replace(work, tokens=2 * work.tokens)) <= seconds
    ):
        work = replace(work, tokens=2 * work.tokens)
    return work


def blocks_s(cost: Cost, blocks: int, work: WorkSize, *, alone: bool = True) -> float:
    """Seconds of so many blocks: every batch once, and every item of the largest `alone`."""
    one = cost.batch_s(1, work.prompt, work.tokens) if alone else 0.0
    batches = sum(cost.batch_s(size, work.prompt, work.tokens) for size in work.sizes)
    return blocks * (work.sizes[-1] * one + batches)


def said(what: str, wanted: WorkSize, done: WorkSize) -> str:
    """In what the work differs from what was wanted; empty when in nothing."""
    changes = []
    if done.tokens != wanted.tokens:
        changes.append(f"answers of {done.tokens} tokens instead of {wanted.tokens}")
    if done.sizes != wanted.sizes:
        changes.append(f"batches up to {done.sizes[-1]} instead of {wanted.sizes[-1]}")
    return f"{what}: {' and '.join(changes)}." if changes else ""


def spread(values: Sequence[int], factor: float, least: int) -> tuple[int, ...]:
    """Numbers in rising order, each `factor` times as large and none below `least`."""
    return tuple(sorted({max(least, round(factor * value)) for value in values}))


def _time(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{figures(seconds / size)} {unit}"
    return f"{figures(seconds * 1e6)} µs"
