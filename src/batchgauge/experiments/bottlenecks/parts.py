"""What the bottleneck notebook takes apart: parts of the work, or a function of the user's own.

A part is one kind of work by one implementation: tokenizing, inference, statistics,
each by the chosen implementation and by the baseline; of an engine that is not ours its
inference alone; or, instead of all of them, the user's own function (`target`), which runs in
child processes with a time limit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from threadpoolctl import threadpool_limits

from batchgauge.baseline.stats import baseline_stats, find_by_id
from batchgauge.core.model import LlamaModel
from batchgauge.errors import UserError
from batchgauge.experiments.context import SMOKE, Context, Items, whole
from batchgauge.profiling.allocations import AllocationProfile
from batchgauge.profiling.lines import LineProfile
from batchgauge.profiling.stacks import StackProfile
from batchgauge.profiling.target import TOOLS, TargetProfiles, profile_target
from batchgauge.protocols import Engine
from batchgauge.registry import open_engine, open_tokenizer
from batchgauge.reporting.model import is_ours
from batchgauge.request import BatchResponse, BatchResult, BatchStats
from batchgauge.workload import texts, to_items

T = TypeVar("T")
CHARACTERS = 1500  # of prose per text: a page
STATISTICS_ITEMS = 100
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
        """`tokenizing (numpy)`."""
        return f"{self.work} ({self.implementation})"


@dataclass
class Subject:
    """What is profiled: the parts, or a target; and what each profiler saw of them.

    `notes` says which tool could not run on which part, and why.
    """

    context: Context
    tools: tuple[str, ...]
    batch_size: int
    parts: list[Part] = field(default_factory=list)
    items: Items = field(default_factory=list)
    target: TargetProfiles | None = None
    samples: dict[str, StackProfile] = field(default_factory=dict)
    lines: dict[str, LineProfile] = field(default_factory=dict)
    allocations: dict[str, AllocationProfile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def engine(self) -> Engine | None:
        """The engine that is looked into; None beside a target."""
        return None if self.target else self.context.engine

    @property
    def model(self) -> LlamaModel | None:
        """The engine's model when it is the core's own, which can be taken apart; else None."""
        model = getattr(self.engine, "model", None)
        return model if isinstance(model, LlamaModel) else None

    def runs(self, tool: str) -> bool:
        """Whether `tools` ask for this tool here: a target's profiles are there already."""
        return not self.target and tool in self.tools


def start(
    context: Context,
    *,
    target: str = "",
    tools: Sequence[str] = TOOLS,
    batch_size: int = 8,
    time_limit_s: float = 60.0,
) -> Subject:
    """Check the notebook's parameters and make its parts.

    With a `target` its profiles are taken here, in child processes. Raises UserError for a
    parameter that cannot be used, and for a target that does not import, raises, or has not
    returned after `time_limit_s`.
    """
    whole(batch_size=batch_size)
    if unknown := [tool for tool in tools if tool not in TOOLS]:
        raise UserError(f"Unknown tool '{unknown[0]}'; expected some of {', '.join(TOOLS)}.")
    if context.budget.name == "smoke":
        batch_size = min(batch_size, SMOKE)
    subject = Subject(context, tuple(tools), batch_size)
    if target:
        seen = profile_target(target, batch_size=batch_size, tools=tools, limit_s=time_limit_s)
        subject.target = seen
        subject.samples = _of_target(target, seen.calls)
        subject.lines = _of_target(target, seen.lines)
        subject.allocations = _of_target(target, seen.allocations)
        subject.notes = [f"{tool}: {said}" for tool, said in seen.notes.items()]
        return subject
    threadpool_limits(context.threads, user_api="blas")  # for the rest of this kernel
    most = context.engine.max_batch_size()
    if batch_size > most:
        raise UserError(f"batch_size is {batch_size}; this engine takes at most {most}.")
    subject.items = _items(context, batch_size)
    subject.parts = _parts(context, subject.items)
    for part in subject.parts:
        part.call()  # compiles and fills caches before anybody looks
    return subject


def _of_target(target: str, found: T | None) -> dict[str, T]:
    return {} if found is None else {target: found}


def _parts(context: Context, items: Items) -> list[Part]:
    pages = texts("prose", CHARACTERS, len(items), context.seed)
    tokenizer, engine, model = context.tokenizer_name, context.engine_name, context.model or None

    def tokenizing(spec: str) -> Part:
        def fresh() -> Callable[[], object]:
            return functools.partial(open_tokenizer(spec, model=model).encode_many, pages)

        return Part("tokenizing", spec, fresh(), fresh)

    def inference(spec: str, opened: Engine, items: Items) -> Part:
        bare = getattr(opened, "unchecked", opened)
        return Part("inference", spec, functools.partial(bare.infer_batch, items))

    def statistics(name: str, compute: Compute, look_up: LookUp) -> Part:
        fresh = functools.partial(_Statistics, compute, look_up)
        return Part("statistics", name, fresh(), fresh)

    if not context.is_ours:  # whose user cannot change our code
        own = [] if is_ours(tokenizer) else [tokenizing(tokenizer)]
        return [inference(engine, context.engine, items), *own]
    parts = [
        tokenizing(tokenizer),
        inference(engine, context.engine, items),
        statistics("numpy", BatchStats.from_durations, BatchResult.get_by_id),
    ]
    if tokenizer != "baseline":
        parts.append(tokenizing("baseline"))
    if engine != "baseline" and context.budget.name != "smoke":  # a second copy of the weights
        slow_engine = open_engine("baseline", model=model, threads=context.threads)
        few = items[: context.budget.choose(smoke=1, default=2, thorough=8)]
        parts.append(inference("baseline", slow_engine, few))
    return [*parts, statistics("baseline", baseline_stats, _walk)]


def _items(context: Context, count: int) -> Items:
    """Prompts of the workload (short ones of the project's own), each to one exact length."""
    kinds = {"question", "list", "chat", "code"}
    prompts = context.prompts(count, lambda p: bool(context.workload) or p.kind in kinds)
    wanted = context.budget.choose(smoke=3, default=16, thorough=32)
    _, max_tokens = context.fitted("Profiled batch", [count], wanted, 0.3, blocks=10, alone=False)
    return to_items(
        prompts, max_tokens=max_tokens, seed=context.seed, chat=context.chat, ignore_eos=True
    )


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
