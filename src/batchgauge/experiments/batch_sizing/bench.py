"""What the batch-sizing notebook works on, opened and checked once, and how much it may run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from threadpoolctl import threadpool_limits

from batchgauge.experiments.context import Context
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
from batchgauge.sizing.probes import SteadyProbe, SteadyTextProbe, engine_probe, tokenizer_probe
from batchgauge.workload import load_prompts

Key = tuple[str, int]  # (part, threads): ("engine", 1), ("tokenizer", 1)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a profile may run: (threads, largest batch) pairs, passes, repeats, batches."""

    largest: tuple[tuple[int, int], ...]
    passes: int
    knots: int
    repeats: int
    max_positions: int
    reruns: int
    whole: int
    adaptive_s: float
    tokenizer_largest: int


EFFORTS: Mapping[str, Effort] = {
    "smoke": Effort(((1, 6),), 1, 4, 1, 32, 1, 1, 1.0, 32),
    "default": Effort(((1, LARGEST), (2, LARGEST)), 4, 11, 3, 256, 4, 6, 12.0, 1000),
    "thorough": Effort(((1, 96), (2, 96)), 12, 18, 9, 512, 8, 16, 60.0, 1000),
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
    probes: Mapping[int, SteadyProbe]  # shared by calibrations and sweep: times compare
    text_probe: SteadyTextProbe
    seed: int

    @classmethod
    def open(cls, context: Context, sizing: Mapping[str, Any]) -> Bench:
        """Check the fields of a `SizingConfig` too, then load.

        Raises UserError before anything slow happens.
        """
        profile, threads = context.budget.name, context.threads
        config = SizingConfig.from_parameters({**sizing, "threads": threads})
        texts = traffic_texts(context.workload)
        opened, words = context.engine, context.tokenizer
        shape = shape_of(opened)
        much = effort(profile, threads, most=opened.max_batch_size())
        priors, probes = {}, {}
        longest = 24 if profile == "smoke" else LONGEST
        works = engine_workloads(words, context.workload, longest=longest, seed=context.seed)
        if shape is not None:
            for work in works.values():
                work.check_context(shape.context_length)
        for count, _ in much.largest:
            if shape is not None:
                priors[count] = CostModel.prior(shape, detect_hardware(threads=count))
            with threadpool_limits(count, user_api="blas"):
                probes[count] = SteadyProbe(engine_probe(opened))
        text_probe = SteadyTextProbe(tokenizer_probe(words, texts))
        hardware = detect_hardware(threads=threads)
        return cls(
            opened, words, texts, works, much, config, hardware, priors, shape, probes,
            text_probe, context.seed,
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
