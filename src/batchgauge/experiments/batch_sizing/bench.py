"""What the batch-sizing notebook works on, opened and checked once, and how much it may run."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from batchgauge.experiments.batch_sizing.sweep import dense_sizes
from batchgauge.experiments.context import Context
from batchgauge.experiments.scaling import SLACK, Cost
from batchgauge.machine.limits import performance_cores
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.sizing import (
    BatchSizeSuggestion,
    CostModel,
    HardwareProfile,
    Lengths,
    MemoryModel,
    ModelShape,
    SizingConfig,
    detect_hardware,
    suggest_batch_size,
    traffic_lengths,
)
from batchgauge.sizing.automatic import LARGEST, LONGEST, traffic_texts
from batchgauge.sizing.probes import (
    FEW,
    MANY,
    Steady,
    SteadyProbe,
    SteadyTextProbe,
    engine_probe,
    tokenizer_probe,
)
from batchgauge.workload import load_prompts

TEXT_RUNS = 50  # of the tokenizer's control, that its reference speed rests on
FURTHER = 19  # sizes of a calibration beside those that it chooses; small ones count half
FEWER_POSITIONS = 256  # of a prefill; longer ones are the first that a slow model does without
SMALLEST = 8  # the largest batch stays at least as large, of those asked for
S = TypeVar("S", bound=Steady | SteadyProbe)
Key = tuple[str, int]  # (part, threads): ("engine", 1), ("tokenizer", 1)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a profile may run: (threads, largest batch) pairs, passes, repeats, batches.

    `settle_runs` are those of a control that its reference speed rests on.
    """

    largest: tuple[tuple[int, int], ...]
    passes: int
    knots: int
    repeats: int
    max_positions: int
    reruns: int
    whole: int
    adaptive_s: float
    tokenizer_largest: int
    settle_runs: int = 30


EFFORTS: Mapping[str, Effort] = {
    "smoke": Effort(((1, 6),), 1, 2, 1, 32, 1, 1, 1.0, 32, 3),
    "default": Effort(((1, 64), (2, LARGEST)), 3, 6, 3, 1024, 2, 10, 12.0, 1000),
    "thorough": Effort(((1, 100), (2, 100)), 12, 12, 9, 1024, 8, 40, 60.0, 1000),
}


def effort(profile: str, threads: int, most: int = 1_000) -> Effort:
    """The effort of a profile, for batches of `most` at most.

    Thread counts above the machine's are left out unless asked for.
    """
    chosen = EFFORTS[profile]
    cores = performance_cores()
    pairs = {t: min(size, most) for t, size in chosen.largest if t <= cores}
    pairs.setdefault(threads, min(most, *(size for _, size in chosen.largest)))
    return replace(chosen, largest=tuple(sorted(pairs.items())))


def effort_s(effort: Effort, cost: Cost) -> float:
    """About how long calibrations, sweeps and whole batches take, with all thread counts."""
    total = effort.whole * cost.batch_s(effort.largest[-1][1] // 3 + 1, 32, 16)
    control = sum(cost.batch_s(rows, prompt, 1 + steps) for rows, prompt, steps in (FEW, MANY))
    for _, most in effort.largest:
        rounds = (effort.knots + FURTHER) * (effort.repeats + effort.reruns / len(effort.largest))
        prefills = 3.5 * effort.max_positions * cost.position_s
        total += rounds * (control + cost.batch_s(most // 2 + 1, 1, 3))
        dense = len(dense_sizes(most)) * (control + cost.batch_s(most // 2 + 1, 1, 4))
        total += effort.passes * (dense + prefills)
    return total


def affordable(wanted: Effort, cost: Cost, seconds: float) -> Effort:
    """The effort, cut until it takes `SLACK` times so many seconds: long prefills, passes … sizes.

    Two passes stay where there were two: scores are judged by one half of them each.
    """
    found = wanted
    while effort_s(found, cost) > SLACK * seconds:
        largest = max(size for _, size in found.largest)
        if found.max_positions > FEWER_POSITIONS:
            found = replace(found, max_positions=found.max_positions // 2)
        elif found.passes > 2:
            found = replace(found, passes=found.passes - 1)
        elif found.repeats > 1:
            found = replace(found, repeats=found.repeats - 1)
        elif found.reruns > 1 or found.whole > 2:
            found = replace(found, reruns=1, whole=min(found.whole, 2))
        elif found.max_positions > 32:
            found = replace(found, max_positions=found.max_positions // 2)
        elif largest > SMALLEST:
            smaller = tuple(
                (t, min(size, max(SMALLEST, largest // 2))) for t, size in found.largest
            )
            found = replace(found, largest=smaller)
        else:
            break
    return found


def effort_note(wanted: Effort, done: Effort) -> str:
    """In what the effort differs from the profile's; empty when in nothing."""
    words = {
        "passes": "passes",
        "repeats": "calibration rounds",
        "max_positions": "tokens a prefill",
    }
    changes = [
        f"{getattr(done, name)} {what} instead of {getattr(wanted, name)}"
        for name, what in words.items()
        if getattr(done, name) != getattr(wanted, name)
    ]
    before, after = (max(size for _, size in e.largest) for e in (wanted, done))
    if after != before:
        changes.append(f"batches up to {after} instead of {before}")
    return f"Sizing: {', '.join(changes)}." if changes else ""


def shape_of(engine: Engine) -> ModelShape | None:
    """The shape of an engine's model; None for an engine that does not show it."""
    model = getattr(engine, "model", None)
    try:
        return ModelShape.of(model.config, model.weights_bytes)  # type: ignore[union-attr]  # checked by the except
    except AttributeError:
        return None


def engine_workloads(
    tokenizer: Tokenizer, workload: str = "", *, longest: int = LONGEST, seed: int = 0
) -> dict[str, Lengths]:
    """Request lengths to size for: even short and long ones, real traffic's shape, real prompts.

    Traffic and prompts are scaled down or cut to what a small model on two cores can sweep;
    the shape (skew, raggedness) is kept.
    """
    prompts = load_prompts(workload)
    counts = tokenizer.encode_many([p.prompt for p in prompts]).counts
    limits = [min(p.max_tokens, 16) for p in prompts]
    return {
        "short": Lengths.uniform(8, 8),
        "medium": Lengths.uniform(32, 16),
        "long prompt": Lengths.uniform(longest, 8),
        "long answer": Lengths.uniform(8, 48),
        "ragged traffic": traffic_lengths(longest=longest, seed=seed),
        "prompts": Lengths(tuple(int(min(c, longest)) for c in counts), tuple(limits)),
    }


def drawn_workloads(count: int, longest: int, seed: int) -> dict[str, Lengths]:
    """Workloads that nobody has seen before: half of them even, half ragged, by `seed`."""
    rng, found = np.random.default_rng(seed), dict[str, Lengths]()
    for number in range(count):
        prompt, new = (int(2 ** rng.uniform(2, math.log2(most))) for most in (longest, 48))
        if number % 2:
            shape = np.exp(rng.normal(0.0, rng.uniform(0.3, 0.9), size=(2, 60)))  # [2, requests]
            inputs, tokens = (
                np.clip(np.rint(mean * some), 1, top).astype(int).tolist()
                for mean, some, top in zip((prompt, new), shape, (longest, 64), strict=True)
            )
            found[f"drawn {number}, ragged"] = Lengths(tuple(inputs), tuple(tokens), seed)
        else:
            found[f"drawn {number}, even"] = Lengths.uniform(prompt, new)
    return found


def two_references(make: Callable[[], S], runs: int) -> tuple[S, S]:
    """Two probes whose references share no run, taken in turn: the machine's speed drifts."""
    both = make(), make()
    for _ in range(runs - 1):
        for probe in both:
            probe.settle()
    return both


@dataclass(frozen=True)
class Bench:
    """Engine, tokenizer, texts and request lengths of one run, with its effort and question."""

    engine: Engine
    tokenizer: Tokenizer
    texts: Sequence[str]
    works: Mapping[str, Lengths]
    effort: Effort
    config: SizingConfig
    hardware: HardwareProfile
    priors: Mapping[int, CostModel]
    shape: ModelShape | None
    probes: Mapping[int, SteadyProbe]  # of calibrations
    judges: Mapping[int, SteadyProbe]  # of sweeps, which have a reference speed of their own
    text_probe: SteadyTextProbe
    text_judge: SteadyTextProbe
    seed: int
    exam_seed: int  # of scenarios and of the batches that they are judged by

    @classmethod
    def open(cls, context: Context, sizing: Mapping[str, Any], exam_seed: int = 0) -> Bench:
        """Check the fields of a `SizingConfig` too, then load.

        An `exam_seed` of 0 is another in every run.

        Raises UserError before anything slow happens.
        """
        profile, threads = context.budget.name, context.threads
        config = SizingConfig.from_parameters({**sizing, "threads": threads})
        texts = traffic_texts(context.workload)
        opened, words = context.engine, context.tokenizer
        shape = shape_of(opened)
        wanted = effort(profile, threads, most=opened.max_batch_size())
        if context.room:
            fits = max(8, context.room // 4)
            wanted = replace(wanted, max_positions=min(wanted.max_positions, fits))
        much = affordable(wanted, context.cost, context.budget.share(1.5))
        context.note(effort_note(wanted, much))
        priors, probes, judges = {}, {}, {}
        longest = min(24 if profile == "smoke" else LONGEST, context.longest_prompt)
        exam_seed = exam_seed or 1 + secrets.randbelow(10**6)
        works = engine_workloads(words, context.workload, longest=longest, seed=context.seed)
        works |= drawn_workloads(4 if profile == "smoke" else 12, longest, exam_seed)
        if shape is not None:
            for work in works.values():
                work.check_context(shape.context_length)
        for count, _ in much.largest:
            if shape is not None:
                priors[count] = CostModel.prior(shape, detect_hardware(threads=count))
            with threadpool_limits(count, user_api="blas"):
                probes[count], judges[count] = two_references(
                    lambda: SteadyProbe(engine_probe(opened)), much.settle_runs
                )
        # A run takes a millisecond, and the first of them can be slow.
        text_probe, text_judge = two_references(
            lambda: SteadyTextProbe(tokenizer_probe(words, texts)), TEXT_RUNS
        )
        hardware = detect_hardware(threads=threads)
        return cls(
            opened, words, texts, works, much, config, hardware, priors, shape, probes, judges,
            text_probe, text_judge, context.seed, exam_seed,
        )  # fmt: skip

    @property
    def threads(self) -> int:
        """The thread count whose figures are shown: the one asked for."""
        return self.config.threads

    @property
    def largest(self) -> int:
        """The largest batch swept with that thread count."""
        return dict(self.effort.largest)[self.threads]

    def cost(self, models: Mapping[Key, CostModel]) -> CostModel:
        """The engine's cost model with that thread count."""
        return models["engine", self.threads]

    def own_question(
        self, models: Mapping[Key, CostModel], memory: MemoryModel | None
    ) -> BatchSizeSuggestion:
        """The suggestion for the prompts of the workload under the notebook's own budgets."""
        return suggest_batch_size(
            self.works["prompts"],
            self.cost(models),
            replace(self.config, max_batch_size=self.largest),
            memory_model=memory,
            hardware=self.hardware,
        )
