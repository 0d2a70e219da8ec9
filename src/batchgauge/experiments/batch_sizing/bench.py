"""What the batch-sizing notebook works on, opened and checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchgauge.experiments.batch_sizing import runs, study
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.registry import open_engine, open_tokenizer
from batchgauge.sizing import (
    BatchSizeSuggestion,
    CostModel,
    HardwareProfile,
    Lengths,
    MemoryModel,
    ModelShape,
    detect_hardware,
)
from batchgauge.sizing.automatic import (
    LARGEST,
    LONGEST,
    remember,
    tokenizer_identity,
    traffic_texts,
)
from batchgauge.sizing.config import SizingConfig
from batchgauge.sizing.probes import SteadyProbe, SteadyTextProbe, tokenizer_probe


@dataclass(frozen=True)
class Bench:
    """Engine, tokenizer, texts and request lengths of one run, with its effort and question."""

    engine: Engine
    tokenizer: Tokenizer
    texts: Sequence[str]
    works: Mapping[str, Lengths]
    effort: runs.Effort
    config: SizingConfig
    hardware: HardwareProfile
    priors: Mapping[int, CostModel]
    shape: ModelShape | None
    probes: Mapping[int, SteadyProbe]
    text_probe: SteadyTextProbe
    seed: int

    @classmethod
    def open(
        cls,
        *,
        profile: str,
        model: str,
        tokenizer: str,
        engine: str,
        workload: str,
        threads: int,
        seed: int,
        sizing: Mapping[str, Any],
    ) -> Bench:
        """Check all parameters, then load. Raises UserError before anything slow happens."""
        config = SizingConfig.from_parameters({**sizing, "threads": threads})
        texts = traffic_texts(workload)
        path = Path(model) if model else None
        opened = open_engine(engine, path, threads)
        shape = runs.shape_of(opened)
        words = open_tokenizer(tokenizer, path)
        effort = runs.effort(profile, threads, most=opened.max_batch_size())
        priors = {
            count: CostModel.prior(shape, detect_hardware(threads=count))
            for count, _ in effort.largest
            if shape is not None
        }
        longest = 24 if profile == "smoke" else LONGEST
        works = study.engine_workloads(words, workload, longest=longest, seed=seed)
        if shape is not None:
            for work in works.values():
                work.check_context(shape.context_length)
        hardware = detect_hardware(threads=threads)
        probes = runs.steady_probes(opened, effort)
        text_probe = SteadyTextProbe(tokenizer_probe(words, texts))
        return cls(
            opened,
            words,
            texts,
            works,
            effort,
            config,
            hardware,
            priors,
            shape,
            probes,
            text_probe,
            seed,
        )

    @property
    def threads_swept(self) -> int:
        """The thread count whose figures are shown: the one asked for."""
        return self.config.threads

    @property
    def largest(self) -> int:
        """The largest batch swept with that thread count."""
        return dict(self.effort.largest)[self.threads_swept]

    @property
    def whole_sizes(self) -> tuple[int, ...]:
        """Sizes of the batches that are run whole."""
        return tuple(sorted({max(1, self.largest // part) for part in (12, 3, 2)}))

    def calibrate(self) -> dict[runs.Key, CostModel]:
        """Calibrate engine and tokenizer; `optimal_batch_size()` remembers what reaches as far.

        A smoke run does not, nor is an engine remembered that does not show its model.
        """
        largest = self.effort.tokenizer_largest
        words = tokenizer_identity(self.tokenizer, self.texts, largest)
        models = runs.calibrate(
            self.probes, self.text_probe, self.engine, words, self.effort, seed=self.seed
        )
        if self.largest >= min(LARGEST, self.engine.max_batch_size()):
            for (part, _), cost in models.items():
                if part == "tokenizer" or self.shape is not None:
                    remember(cost)
        return models

    def cost(self, models: Mapping[runs.Key, CostModel]) -> CostModel:
        """The engine's cost model with that thread count."""
        return models["engine", self.threads_swept]

    def own_question(
        self, models: Mapping[runs.Key, CostModel], memory: MemoryModel | None
    ) -> BatchSizeSuggestion:
        """The suggestion for the prompts of the workload under the notebook's own budgets."""
        config = replace(self.config, max_batch_size=self.largest)
        return config.suggest(self.works["prompts"], self.cost(models), memory, self.hardware)

    def recalibrate(self) -> list[CostModel]:
        """Further calibrations of the engine, one round each."""
        return [
            runs.calibrate_threads(
                self.probes[self.threads_swept],
                self.engine,
                self.threads_swept,
                self.largest,
                self.effort,
                seed=self.seed + 10 + i,
                repeats=1,
            )
            for i in range(self.effort.reruns)
        ]
