"""What one fresh process measures: decode, prefill, whole requests, tokenizing, by taking turns.

By weights mode, threads and engine; with our baseline beside, where that is asked for. Leaves
out whether answers are equal: the tests and notebook 06 compare them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from batchgauge import workload
from batchgauge.adapters.own import NumpyStepper
from batchgauge.adapters.stepped import SteppedEngine, Stepper
from batchgauge.baseline.engine import BaselineEngine
from batchgauge.baseline.tokenizer import BaselineTokenizer
from batchgauge.clock import timed
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.experiments import fresh
from batchgauge.machine.identity import Run
from batchgauge.machine.limits import performance_cores
from batchgauge.measuring.record import Amount, Labels, Sample, to_frame
from batchgauge.measuring.timing import Conditions
from batchgauge.protocols import Engine
from batchgauge.registry import open_engine, weights_of

CONTEXT = 32  # positions that a decode step looks back on at first
REQUEST = (16, 8)  # tokens of a whole request's prompt and answer
PAUSE_S = 0.005  # in which threads of the engine before go to sleep
TEXT_BYTES = 4e6  # of a sample of tokenizing, so that it is long beside the waking of threads
BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Entrant:
    """One engine on one file."""

    name: str
    spec: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a process measures: each entrant at each size, length and number of threads.

    `requests`, `ragged` and the baseline are with one thread, and by the first entrant. The
    number of `blocks` is even: every other one goes through the entrants backwards.
    """

    entrants: tuple[Entrant, ...]
    decode_sizes: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()  # those of them with more than one thread; empty: all
    prompts: tuple[int, ...] = ()  # tokens of the one prompt of a prefill
    readers: tuple[str, ...] = ()  # names of entrants that prefill; empty: all
    texts: tuple[tuple[int, int], ...] = ()  # texts of a batch, characters of each
    threads: tuple[int, ...] = (1,)
    context: int = CONTEXT
    blocks: int = 2
    seed: int = 0
    model: str = ""  # of the tokenizer
    requests: tuple[int, ...] = ()  # batches of whole requests, our baseline's alone beside them
    ragged: tuple[int, ...] = ()  # tokens of prompts, beside as many of equal length
    over_texts: tuple[int, int] = (0, 0)  # as `texts`, our baseline's one by one beside them

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", 2 * math.ceil(self.blocks / 2))


@dataclass(frozen=True, slots=True)
class Turn:
    """A call that takes turns with others, and the work that it does."""

    name: str
    call: Callable[[], object]
    batch_size: int
    tokens: int
    characters: int = 0
    loops: int = 1


Opened = Mapping[str, tuple[Engine, Stepper]]
Works = Iterator[tuple[str, dict[int, list[Turn]]]]  # a part, and its turns by number of threads


def thread_counts() -> tuple[int, ...]:
    """1, 2, 4 … and all full-speed cores."""
    most = performance_cores()
    return tuple(sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {most}))


def measure(*plans: Plan, processes: int, budget_s: float = math.inf) -> pd.DataFrame:
    """Records of fresh processes, one row a call; each process does all plans in turn.

    An entrant that cannot be opened has no rows. See `fresh.each`.
    """
    work = partial(_in_process, plans)
    return pd.concat(fresh.each(work, processes=processes, budget_s=budget_s), ignore_index=True)


def _in_process(plans: Sequence[Plan], process: int) -> pd.DataFrame:
    return pd.concat([_done(plan, process) for plan in plans], ignore_index=True)


def _done(plan: Plan, process: int) -> pd.DataFrame:
    opened = _open(plan)
    kept = {e.name: weights_of(e.spec) for e in plan.entrants}
    run, frames = Run.here(seed=plan.seed), []
    for part, by_threads in _works(plan, opened):
        for threads, turns in by_threads.items():
            for _, stepper in opened.values():
                if hasattr(stepper, "set_threads"):
                    stepper.set_threads(threads)
            with Conditions(threads).held():
                samples = _take_turns(plan, part, turns, process, threads)
            frame = to_frame(samples, run).assign(threads=threads)
            characters = {turn.name: turn.characters for turn in turns}
            names = frame["implementation"]
            frames.append(
                frame.assign(characters=names.map(characters), weights=names.map(kept).fillna(""))
            )
    return pd.concat(frames, ignore_index=True)


def _open(plan: Plan) -> Opened:
    found: dict[str, tuple[Engine, Stepper]] = {}
    for entrant in plan.entrants:
        try:
            engine = open_engine(entrant.spec, entrant.model or None, 1)
        except UserError:
            if weights_of(entrant.spec) and entrant.spec.startswith("numpy"):
                raise
            continue  # a peer that is not installed
        if isinstance(engine, BatchInferenceEngine):
            found[entrant.name] = engine, NumpyStepper(engine.model)
        elif isinstance(engine, SteppedEngine):
            found[entrant.name] = engine, engine.stepper
    return found


def _works(plan: Plan, opened: Opened) -> Works:
    rng = np.random.default_rng(plan.seed)
    for batch in plan.decode_sizes:
        room = (plan.blocks + 1) * len(plan.threads)
        steps = []
        for name, (_, stepper) in opened.items():
            rows = rng.integers(0, stepper.vocab_size, (batch, plan.context)).tolist()
            with Conditions(performance_cores()).held():
                stepper.prefill(rows, room)
            step = partial(stepper.decode, np.arange(batch, dtype=np.int32))
            steps.append(Turn(name, step, batch, batch))
        alone = plan.shared and batch not in plan.shared
        yield "decode", dict.fromkeys(plan.threads[:1] if alone else plan.threads, steps)
    for length in plan.prompts:
        prompts = []
        for name, (_, stepper) in opened.items():
            if plan.readers and name not in plan.readers:
                continue
            ids = rng.integers(0, stepper.vocab_size, (1, length)).tolist()
            prompts.append(Turn(name, partial(stepper.prefill, ids, 1), 1, length))
        yield "prefill", dict.fromkeys(plan.threads, prompts)
    if plan.requests or plan.ragged:
        yield from _whole(plan, opened)
    if plan.texts or plan.over_texts[0]:
        yield from _texts(plan)


def _whole(plan: Plan, opened: Opened) -> Works:
    """Whole requests by the first entrant: by batch size over the baseline, ragged over equal."""
    first, (prompt, new) = plan.entrants[0], REQUEST
    ours, _ = opened[first.name]

    def turn(name: str, engine: Engine, lengths: Sequence[int]) -> Turn:
        count = len(lengths)
        items = workload.exact_requests(lengths, [new] * count)
        return Turn(name, partial(engine.infer_batch, items), count, count * new)

    if plan.requests:
        alone = turn(BASELINE, BaselineEngine.from_gguf(first.model or None), [prompt])
        batches = [turn(first.name, ours, [prompt] * size) for size in plan.requests]
        yield "requests", {1: [alone, *batches]}
    if plan.ragged:
        equal = [sum(plan.ragged) // len(plan.ragged)] * (len(plan.ragged) - 1)
        equal.append(sum(plan.ragged) - sum(equal))
        yield "ragged", {1: [turn("equal", ours, equal), turn("ragged", ours, plan.ragged)]}


def _texts(plan: Plan) -> Works:
    """Tokenizing in batches, and one by one by the baseline beside."""
    path = plan.model or None
    ours = {n: BPETokenizer.from_gguf(path, threads=n) for n in {1, *plan.threads}}

    def together(texts: list[str], characters: int, threads: int) -> Turn:
        tokens = len(ours[1].encode_many(texts).ids)
        loops = math.ceil(TEXT_BYTES / sum(len(text.encode()) for text in texts))
        call = partial(ours[threads].encode_many, texts)
        return Turn("numpy", call, len(texts), tokens, characters, loops)

    for count, characters in plan.texts:
        texts = workload.texts("prose", characters, count, plan.seed)
        yield "tokenize", {n: [together(texts, characters, n)] for n in plan.threads}
    if plan.over_texts[0]:
        count, characters = plan.over_texts
        texts = workload.texts("prose", characters, count, plan.seed)
        encode = BaselineTokenizer.from_gguf(path).encode
        fast = together(texts, characters, 1)
        slow = replace(fast, name=BASELINE, call=lambda: [encode(t) for t in texts], loops=1)
        yield "tokenize over the baseline", {1: [slow, fast]}


def _take_turns(
    plan: Plan, part: str, turns: Sequence[Turn], process: int, threads: int
) -> list[Sample]:
    """Each call once a block, in turning order; the first block is a warm-up.

    Of whole requests only the baseline has one: by then the process has run our own code for
    a second, and none of its.
    """
    samples, is_warm = [], part in {"requests", "ragged"}
    for block in range(plan.blocks + 1):
        for position, turn in enumerate(turns if block % 2 else turns[::-1]):
            if block == 0 and is_warm and turn.name != BASELINE:
                continue
            if threads > 1:
                time.sleep(PAUSE_S)
            labels = Labels(
                f"{part}/batch={turn.batch_size}/threads={threads}", turn.name, part,
                {"tokens": turn.tokens}, process,
            )  # fmt: skip
            place = {"block": block, "position": position, "is_warmup": block == 0}
            amount = Amount(turn.batch_size, turn.tokens, turn.batch_size)
            samples.append(labels.sample(amount, timed(turn.call, turn.loops), **place))
    return samples
