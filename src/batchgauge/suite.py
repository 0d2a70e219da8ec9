"""The benchmark suite: every named benchmark, declared once as data.

Notebooks, `batchgauge bench` and the regression gate take their benchmarks from here. A
benchmark knows its name, what it varies, and how to prepare one call on a `Subject`: any
tokenizer and engine that `batchgauge.registry` opens. Nothing here times anything.

    >>> [b.name for b in select("lookup/*")]
    ['lookup/items=10', 'lookup/items=1000', 'lookup/items=100000']
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import cycle
from typing import Any, Literal

from batchgauge import registry, workload
from batchgauge.core.model_facts import REFERENCE, ModelFacts
from batchgauge.errors import UserError
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    BatchStats,
    InferenceBatchRequest,
    generated_tokens,
)

ENGINE_PARTS = ("prefill", "decode", "end_to_end")  # what an engine runs
Part = Literal[
    "tokenize", "detokenize", "prefill", "decode", "statistics", "lookup", "sizing", "end_to_end"
]


class Subject:
    """What is benchmarked: a tokenizer and an engine, opened when first needed.

    `tokenizer`, `engine` and `model` are specs as in `batchgauge.registry`.
    """

    def __init__(
        self,
        *,
        tokenizer: str = "numpy",
        engine: str = "numpy",
        model: str = "",
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        self.tokenizer_spec = tokenizer
        self.engine_spec = engine
        self.model = model
        self.threads = threads
        self.seed = seed

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded once."""
        return registry.open_tokenizer(self.tokenizer_spec, self.model or None)

    @cached_property
    def engine(self) -> Engine:
        """The engine, loaded once."""
        return registry.open_engine(self.engine_spec, self.model or None, self.threads)

    @cached_property
    def workload_digest(self) -> str:
        """Ten hex digits of the texts and the seed that the benchmarks work on, and the model."""
        digest = hashlib.sha256(f"{_other_model(self.model)}:{self.seed}".encode())
        for kind in ("prose", "code", "unicode"):
            digest.update("\0".join(self.texts(200, 64, kind)).encode("utf-8", "replace"))
        return digest.hexdigest()[:10]

    def texts(self, characters: int, count: int, kind: workload.TextKind = "prose") -> list[str]:
        """Seeded pieces of real text."""
        return workload.texts(kind, characters, count, seed=self.seed)


def _other_model(path: str) -> str:
    """A digest of the model; empty for the reference model, and where none is installed."""
    try:
        digest = ModelFacts.read(path or None).digest
    except UserError:
        return path
    return "" if digest == REFERENCE else digest


@dataclass(frozen=True, slots=True)
class Prepared:
    """One call, ready to be timed, and the work that it does.

    `counters` are deterministic: equal code on equal data gives equal numbers. `tokens`
    is 0 where there are none, or none are counted.
    """

    call: Callable[[], object]
    items: int
    tokens: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named benchmark; `prepare(subject)` builds its data, runs it once and gives its call."""

    name: str
    part: Part
    batch_size: int
    parameters: Mapping[str, Any]
    prepare: Callable[[Subject], Prepared] = field(repr=False)


def _tokenize(
    subject: Subject, batch: int, characters: int, kind: workload.TextKind, *, alone: bool = False
) -> Prepared:
    tokenizer = subject.tokenizer
    texts = subject.texts(characters, batch, kind)
    tokens = len(tokenizer.encode_many(texts).ids)
    call: Callable[[], object] = partial(tokenizer.encode_many, texts)
    if alone:
        encode = tokenizer.encode

        def call() -> object:
            return [encode(text) for text in texts]

    return Prepared(call, batch, tokens, {"tokens": tokens})


def _detokenize(subject: Subject, batch: int, characters: int) -> Prepared:
    tokenizer = subject.tokenizer
    rows = tokenizer.encode_many(subject.texts(characters, batch)).tolist()
    tokens = sum(map(len, rows))
    counters = {"tokens": tokens, "characters": sum(map(len, tokenizer.decode_many(rows)))}
    return Prepared(partial(tokenizer.decode_many, rows), batch, tokens, counters)


def _infer(
    subject: Subject,
    batch: int,
    prompt_tokens: int,
    new_tokens: int,
    *,
    temperature: float = 0.0,
    ragged: bool = False,
    as_text: bool = False,
) -> Prepared:
    """A batch through the engine; ragged prompts have half to one and a half times the length."""
    ids = subject.tokenizer.encode("\n".join(subject.texts(8 * prompt_tokens * (batch + 1), 1)))
    items = []
    for row in range(batch):
        length = prompt_tokens
        if ragged:
            length = max(1, prompt_tokens // 2 + row * prompt_tokens // max(1, batch - 1))
        part = ids[row * prompt_tokens : row * prompt_tokens + length]
        request = InferenceBatchRequest(
            subject.tokenizer.decode(part) if as_text else tuple(part),
            max_tokens=new_tokens,
            temperature=temperature,
            seed=subject.seed + row,
            ignore_eos=True,
        )
        items.append(BatchItem(f"r{row}", request))
    result = subject.engine.infer_batch(items)
    failed = [r.error for r in result.responses if r.error is not None]
    if failed:
        raise UserError(
            f"The engine '{subject.engine_spec}' could not run a benchmark: {failed[0]}"
        )
    known = generated_tokens(result)
    counters = {**result.counters, **({} if known is None else {"generated_tokens": known})}
    tokens = known or 0
    tokens += 0 if new_tokens > 1 else sum(len(ids[:prompt_tokens]) for _ in items)
    return Prepared(partial(subject.engine.infer_batch, items), batch, tokens, counters)


def _statistics(_: Subject, items: int) -> Prepared:
    durations = [1.0 + (i * 7919 % 1000) / 1000.0 for i in range(items)]
    call = partial(BatchStats.from_durations, durations, sum(durations))
    return Prepared(call, items, 0, {"durations": items})


def _lookup(_: Subject, items: int) -> Prepared:
    """Lookups that take turns in several copies: where one happens to lie must not decide."""
    copies = [
        BatchResult.of([BatchResponse(f"item-{i}", i, 1.0) for i in range(items)], float(items))
        for _ in range(16 if items <= 10_000 else 2)
    ]
    wanted = [[f"item-{i * 7919 % items}" for i in range(100)] for _ in copies]
    turns = cycle([(result.get_by_id, names) for result, names in zip(copies, wanted, strict=True)])

    def call() -> object:
        find, names = next(turns)
        return [find(name) for name in names]

    return Prepared(call, len(wanted[0]), 0, {"lookups": len(wanted[0])})


def _collect(_: Subject, items: int) -> Prepared:
    rows = [BatchResponse(f"item-{i}", i, 1.0) for i in range(items)]
    return Prepared(partial(BatchResult.of, rows, float(items)), items, 0, {"responses": items})


def _sizing(_: Subject, budget_ms: float | None) -> Prepared:
    from batchgauge.sizing import CostModel, SizingConfig, suggest_batch_size, traffic_lengths
    from batchgauge.sizing.curve import Curve

    sizes = tuple(float(2**k) for k in range(13))
    costs = CostModel(
        prefill=Curve(sizes, tuple(2.0 + 0.4 * s for s in sizes)),
        decode=Curve(sizes, tuple(20.0 + 2.0 * s for s in sizes)),
        context_ms=1e-4,
    )
    config = SizingConfig(latency_budget_ms=budget_ms, max_batch_size=64)
    call = partial(suggest_batch_size, traffic_lengths(100), costs, config)
    return Prepared(call, 1, 0, {"suggested": call().size})


def _declare() -> tuple[Benchmark, ...]:
    rows: list[Benchmark] = []

    def add(
        name: str, part: Part, size: int, prepare: Callable[..., Prepared], **parameters: Any
    ) -> None:
        rows.append(Benchmark(name, part, size, parameters, partial(prepare, **parameters)))

    def tokenize(name: str, batch: int, characters: int, kind: str = "prose", **more: Any) -> None:
        parameters = {"batch": batch, "characters": characters, "kind": kind, **more}
        add(f"tokenize/{name}", "tokenize", batch, _tokenize, **parameters)

    tokenize("single/chars=200", 1, 200, alone=True)
    tokenize("single/chars=2000", 1, 2000, alone=True)
    tokenize("one-by-one/items=32/chars=200", 32, 200, alone=True)
    for batch in (1, 8, 32):
        tokenize(f"batch={batch}/chars=200", batch, 200)
    tokenize("batch=32/chars=32", 32, 32)
    tokenize("batch=32/chars=2000", 32, 2000)
    tokenize("batch=32/chars=200/code", 32, 200, "code")
    tokenize("batch=32/chars=200/unicode", 32, 200, "unicode")
    for batch in (1, 32):
        add(f"detokenize/batch={batch}/chars=200", "detokenize", batch, _detokenize,
            batch=batch, characters=200)  # fmt: skip
    for batch, length in ((1, 32), (1, 128), (4, 32)):
        add(f"prefill/batch={batch}/prompt={length}", "prefill", batch, _infer,
            batch=batch, prompt_tokens=length, new_tokens=1)  # fmt: skip
    for batch in (1, 4, 8):
        add(f"decode/batch={batch}", "decode", batch, _infer,
            batch=batch, prompt_tokens=4, new_tokens=8)  # fmt: skip
    add("decode/batch=4/temperature=0.8", "decode", 4, _infer,
        batch=4, prompt_tokens=4, new_tokens=8, temperature=0.8)  # fmt: skip
    for items in (100, 1_000, 10_000):
        add(f"statistics/items={items}", "statistics", items, _statistics, items=items)
    add("statistics/collect/items=1000", "statistics", 1_000, _collect, items=1_000)
    for items in (10, 1_000, 100_000):
        add(f"lookup/items={items}", "lookup", items, _lookup, items=items)
    add("sizing/throughput", "sizing", 1, _sizing, budget_ms=None)
    add("sizing/latency-budget", "sizing", 1, _sizing, budget_ms=2_000.0)
    for batch in (1, 4):
        add(f"end_to_end/batch={batch}", "end_to_end", batch, _infer,
            batch=batch, prompt_tokens=24, new_tokens=6, as_text=True)  # fmt: skip
    add("end_to_end/batch=4/ragged", "end_to_end", 4, _infer,
        batch=4, prompt_tokens=24, new_tokens=6, as_text=True, ragged=True)  # fmt: skip
    return tuple(rows)


BENCHMARKS: tuple[Benchmark, ...] = _declare()


def select(patterns: str | Sequence[str] = "*") -> list[Benchmark]:
    """The benchmarks whose name matches one of the patterns, in the suite's order.

    A pattern is a whole name, a part of one (`batch=32`) or a shell-style one
    (`tokenize/*`); several may stand in one text, separated by commas. Raises UserError
    when nothing matches.
    """
    texts = [patterns] if isinstance(patterns, str) else list(patterns)
    wanted = [p.strip() for text in texts for p in text.split(",") if p.strip()] or ["*"]
    names = {b.name for b in BENCHMARKS}

    def matches(name: str, pattern: str) -> bool:
        if pattern in names:
            return name == pattern
        return pattern in name or fnmatch.fnmatchcase(name, pattern)

    found = [b for b in BENCHMARKS if any(matches(b.name, p) for p in wanted)]
    if not found:
        raise UserError(
            f"No benchmark matches '{', '.join(wanted)}'; `batchgauge bench --list` names all."
        )
    return found
