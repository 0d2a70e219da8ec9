"""What the bottleneck notebook runs: parts of the work, and each profiler on every part.

A part is one kind of work by one implementation: tokenising, inference, statistics,
each by the chosen implementation and by the baseline; or, instead of all of them, the
user's own function (`target`), which runs in child processes with a time limit.
Every profiler has a pass of its own, and none of them is timed. The engine's kernels
and stages are in `bottleneck_kernels`, pictures and sentences in `bottleneck_pictures`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits

from batchgauge.baseline.stats import baseline_stats, find_by_id
from batchgauge.core.model import LlamaModel
from batchgauge.errors import UserError
from batchgauge.experiments.steps import decode_call
from batchgauge.profiling.allocations import (
    AllocationProfile,
    memory_lines,
    memory_timeline,
    track_allocations,
)
from batchgauge.profiling.calls import sample_calls
from batchgauge.profiling.lines import LineProfile, functions_seen, profile_lines
from batchgauge.profiling.overhead import PUBLISHED, measure_overhead
from batchgauge.profiling.stacks import StackProfile
from batchgauge.profiling.target import TOOLS, TargetProfiles, profile_target
from batchgauge.protocols import Engine
from batchgauge.registry import open_engine, open_tokenizer
from batchgauge.reporting import Profile, profile_named
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    BatchStats,
    InferenceBatchRequest,
)
from batchgauge.workload import load_prompts, sample_prompts, texts, to_items

CHARACTERS = 1500  # of prose per text: a page
STATISTICS_ITEMS = 100
Items = list[BatchItem[InferenceBatchRequest]]
Compute = Callable[[list[float], float], BatchStats]
LookUp = Callable[[BatchResult[int], str], BatchResponse[int]]


@dataclass(frozen=True)
class Part:
    """One kind of work by one implementation; `fresh` makes a call that shares no state."""

    work: str
    implementation: str
    call: Callable[[], object]
    fresh: Callable[[], Callable[[], object]] | None = None

    @property
    def name(self) -> str:
        """`tokenising (numpy)`."""
        return f"{self.work} ({self.implementation})"


@dataclass
class Study:
    """What the notebook's cells share: the parts, and what each profiler saw of them.

    `notes` says which tool could not run on which part, and why.
    """

    profile: Profile
    tools: tuple[str, ...]
    threads: int
    batch_size: int
    parts: list[Part]
    engine: Engine | None = None
    items: Items = field(default_factory=list)
    target: TargetProfiles | None = None
    samples: dict[str, StackProfile] = field(default_factory=dict)
    lines: dict[str, LineProfile] = field(default_factory=dict)
    allocations: dict[str, AllocationProfile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> LlamaModel | None:
        """The engine's model when it is the core's own, which can be taken apart; else None."""
        model = getattr(self.engine, "model", None)
        return model if isinstance(model, LlamaModel) else None

    def runs(self, tool: str) -> bool:
        """True when the notebook's `tools` parameter asks for this tool."""
        return tool in self.tools


def start(
    *,
    profile: str,
    model: str = "",
    tokenizer: str = "numpy",
    engine: str = "numpy",
    workload: str = "",
    target: str = "",
    tools: Sequence[str] = TOOLS,
    batch_size: int = 8,
    time_limit_s: float = 60.0,
    threads: int = 1,
    seed: int = 0,
) -> Study:
    """Check the notebook's parameters and make its parts.

    With a `target` its profiles are taken here, in child processes. Raises UserError for a
    parameter that cannot be used, and for a target that does not import, raises, or has not
    returned after `time_limit_s`.
    """
    budget = profile_named(profile)
    _check(batch_size=batch_size, threads=threads, tools=tools)
    if target:
        seen = profile_target(target, batch_size=batch_size, tools=tools, limit_s=time_limit_s)
        study = Study(budget, tuple(tools), threads, batch_size, [], target=seen)
        study.notes = [f"{tool}: {said}" for tool, said in seen.notes.items()]
        return study
    threadpool_limits(threads, user_api="blas")  # for the rest of this kernel
    weights = model or None
    chosen_engine = open_engine(engine, model=weights, threads=threads)
    most = chosen_engine.max_batch_size()
    if batch_size > most:
        raise UserError(f"batch_size is {batch_size}; this engine takes at most {most}.")
    items = _items(workload, batch_size, budget.choose(smoke=3, default=16, thorough=32), seed)
    pages = texts("prose", CHARACTERS, batch_size, seed)

    def tokenising(spec: str) -> Part:
        def fresh() -> Callable[[], object]:
            return functools.partial(open_tokenizer(spec, model=weights).encode_many, pages)

        return Part("tokenising", spec, fresh(), fresh)

    def statistics(name: str, compute: Compute, look_up: LookUp) -> Part:
        fresh = functools.partial(_Statistics, compute, look_up)
        return Part("statistics", name, fresh(), fresh)

    parts = [
        tokenising(tokenizer),
        Part("inference", engine, functools.partial(chosen_engine.infer_batch, items)),
        statistics("numpy", BatchStats.from_durations, BatchResult.get_by_id),
    ]
    if tokenizer != "baseline":
        parts.append(tokenising("baseline"))
    if engine != "baseline" and budget.name != "smoke":  # a second copy of the weights
        slow_engine = open_engine("baseline", model=weights, threads=threads)
        few = items[: budget.choose(smoke=1, default=2, thorough=8)]
        parts.append(Part("inference", "baseline", functools.partial(slow_engine.infer_batch, few)))
    parts.append(statistics("baseline", baseline_stats, _walk))
    for part in parts:
        part.call()  # compiles and fills caches before anybody looks
    return Study(budget, tuple(tools), threads, batch_size, parts, chosen_engine, items)


def _check(*, batch_size: int, threads: int, tools: Sequence[str]) -> None:
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name} is {value!r}; expected a whole number of at least 1.")
    unknown = [tool for tool in tools if tool not in TOOLS]
    if unknown:
        raise UserError(f"Unknown tool '{unknown[0]}'; expected some of {', '.join(TOOLS)}.")


def _items(workload: str, count: int, max_tokens: int, seed: int) -> Items:
    """Prompts of the workload (short ones of the project's own), exactly `max_tokens` each."""
    prompts = load_prompts(workload)
    if not workload:
        prompts = [p for p in prompts if p.kind in {"question", "list", "chat", "code"}]
    chosen = sample_prompts(prompts, count, seed)
    return to_items(chosen, max_tokens=max_tokens, seed=seed, ignore_eos=True)


def _walk(result: BatchResult[int], item_id: str) -> BatchResponse[int]:
    return find_by_id(result.responses, item_id)


class _Statistics:
    """Statistics of 100 items and a look-up of each, as one call."""

    def __init__(self, compute: Compute, look_up: LookUp) -> None:
        self.compute, self.look_up = compute, look_up
        self.durations_ms = [1.0 + (37 * i % 101) / 10 for i in range(STATISTICS_ITEMS)]
        self.rows = [BatchResponse(f"item-{i}", i, d) for i, d in enumerate(self.durations_ms)]
        self.result = BatchResult.of(self.rows, sum(self.durations_ms))

    def __call__(self) -> None:
        self.compute(self.durations_ms, self.result.stats.total_duration_ms)
        for row in self.rows:
            self.look_up(self.result, row.id)


def sample(study: Study) -> dict[str, StackProfile]:
    """Sample the calls of every part; inference also cut into prefill and decode where it shows."""
    if study.target:
        found = study.target.calls
        study.samples = {study.target.target: found} if found else {}
    elif study.runs("calls"):
        seconds = study.profile.choose(smoke=0.3, default=1.3, thorough=10.0)
        for part in study.parts:
            whole = sample_calls(part.call, seconds=seconds)
            study.samples[part.name] = whole
            for phase in ("prefill", "decode"):
                cut = whole.below(phase)
                if cut.stacks:
                    study.samples[f"{phase} ({part.implementation})"] = cut
    return study.samples


def profile_by_line(study: Study) -> dict[str, LineProfile]:
    """Line profiles of the functions that sampling saw in each part."""
    if study.target:
        found = study.target.lines
        study.lines = {study.target.target: found} if found else {}
    elif study.runs("lines"):
        for part in study.parts:
            seen = study.samples.get(part.name)
            functions = functions_seen(seen) if seen else []
            if not functions:
                study.notes.append(f"lines: nothing seen of {part.name} is Python of its own.")
                continue
            study.lines[part.name] = profile_lines(
                part.call, functions, repeat=_repeat(part.call, 0.1), seen=seen
            )
    return study.lines


def _repeat(call: Callable[[], object], seconds: float) -> int:
    """How often `call` fits into `seconds`, 1 to 100."""
    begin = time.perf_counter()
    call()
    return max(1, min(100, int(seconds / (time.perf_counter() - begin))))


def track_memory(study: Study) -> dict[str, AllocationProfile]:
    """Allocations of every part, and of one decode step where the model can be taken apart."""
    if study.target:
        found = study.target.allocations
        study.allocations = {study.target.target: found} if found else {}
    elif study.runs("allocations"):
        parts = [*study.parts, *_decode_step(study)]
        if study.profile.name == "smoke" and study.model:  # the decode step stands for inference
            parts = [part for part in parts if part.work != "inference"]
        for part in parts:
            often = 1 if part.work == "inference" else 3  # thousands of allocations a call
            study.allocations[part.name] = track_allocations(
                part.call, calls=often, warm_up=part.work != "inference"
            )
    return study.allocations


def _decode_step(study: Study) -> list[Part]:
    model, name = study.model, getattr(study.engine, "name", "")
    return (
        [] if model is None else [Part("decode step", name, decode_call(model, study.batch_size))]
    )


def resident_memory(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Memory time line of inference (or the target), and its lines by memory_profiler."""
    empty = pd.DataFrame()
    if study.target:
        line, table = study.target.memory_timeline, study.target.memory_lines
        return (empty if line is None else line), (empty if table is None else table)
    part = next(part for part in study.parts if part.work == "inference")
    line = memory_timeline(part.call) if study.runs("memory_timeline") else empty
    seen = study.samples.get(part.name)
    functions = functions_seen(seen, smallest=0.9) if seen else []
    if seen is None or not functions or not study.runs("memory_lines"):
        return line, empty
    depth = seen.depths()
    return line, memory_lines(part.call, max(functions, key=lambda f: depth[f.__name__]))


def cost_of_looking(study: Study) -> pd.DataFrame:
    """Slow-down of each profiler on baseline tokenising of one text: a tight Python loop.

    Of a target, whose functions are not in this process, nothing is measured here.
    """
    if study.target:
        return pd.DataFrame()
    part = next(p for p in study.parts if (p.work, p.implementation) == ("tokenising", "baseline"))
    rounds = study.profile.choose(smoke=1, default=3, thorough=15)
    one_text: Any = part.call
    call = functools.partial(one_text.func, texts("prose", CHARACTERS, 1, seed=1))
    functions = functions_seen(study.samples[part.name]) if part.name in study.samples else []
    return measure_overhead(
        call,
        functions,
        tools=PUBLISHED,
        rounds=rounds,
        limit_s=study.profile.choose(smoke=0.2, default=2.0, thorough=20.0),
    )
