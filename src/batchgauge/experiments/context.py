"""What the baseline and speedup notebooks work with: tokenizer, engine, prompts, budget, sizes.

Opening it checks every parameter of the notebook, so that a wrong one is said before
anything is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from batchgauge.errors import UserError
from batchgauge.machine import preflight
from batchgauge.measuring import Machine
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.redaction import redacted
from batchgauge.registry import open_engine, open_tokenizer
from batchgauge.reporting.profiles import Profile
from batchgauge.workload import Prompt, load_prompts, sample_prompts

# Of the sweep's prompts: the few very long ones would drown the rest.
LONGEST_CHARACTERS = {"smoke": 150, "default": 700, "thorough": 700}


def checked_sizes(sizes: Sequence[int], most: int, what: str) -> tuple[int, ...]:
    """Batch sizes in rising order. Raises UserError for none, one below 1, or one above `most`."""
    wrong = [s for s in sizes if isinstance(s, bool) or not isinstance(s, int) or s < 1]
    if not sizes or wrong:
        raise UserError(
            f"The {what} batch sizes are {list(sizes)}; expected whole numbers of at least 1."
        )
    if max(sizes) > most:
        raise UserError(f"The {what} batch size {max(sizes)} is too large; at most {most}.")
    return tuple(sorted(set(sizes)))


@dataclass(frozen=True, slots=True)
class Lab:
    """Everything that is measured, and how much time it may take."""

    tokenizer: Tokenizer
    engine: Engine
    tokenizer_name: str
    engine_name: str
    model: str
    prompts: tuple[Prompt, ...]
    budget: Profile
    tokenize_sizes: tuple[int, ...]
    inference_sizes: tuple[int, ...]
    characters: int
    max_tokens: int
    threads: int
    seed: int

    @classmethod
    def open(
        cls,
        *,
        tokenizer: str,
        engine: str,
        model: str,
        workload: str,
        budget: Profile,
        tokenize_batch_sizes: Sequence[int],
        inference_batch_sizes: Sequence[int],
        characters: int,
        max_tokens: int,
        threads: int,
        seed: int,
    ) -> Lab:
        """Check the parameters, load model and prompts. Raises UserError for what is wrong."""
        for name, value in (
            ("characters", characters),
            ("max_tokens", max_tokens),
            ("threads", threads),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}; expected a whole number of at least 1.")
        tokenize_sizes = checked_sizes(tokenize_batch_sizes, 1000, "tokenizing")
        prompts = load_prompts(workload)
        longest = LONGEST_CHARACTERS[budget.name]
        short = [p for p in prompts if len(p.prompt) <= longest] or prompts
        machine = open_engine(engine, model or None, threads=threads)
        inference_sizes = checked_sizes(
            inference_batch_sizes, machine.max_batch_size(), "inference"
        )
        if budget.name == "smoke":  # shows that everything works; measures little
            inference_sizes = tuple(s for s in inference_sizes if s <= 4) or inference_sizes[:1]
            max_tokens = min(max_tokens, 4)
        return cls(
            tokenizer=open_tokenizer(tokenizer, model or None),
            engine=machine,
            tokenizer_name=tokenizer,
            engine_name=redacted(engine),
            model=model,
            prompts=tuple(sample_prompts(short, max(inference_sizes), seed)),
            budget=budget,
            tokenize_sizes=tokenize_sizes,
            inference_sizes=inference_sizes,
            characters=characters,
            max_tokens=max_tokens,
            threads=threads,
            seed=seed,
        )

    def preflight(self) -> pd.DataFrame:
        """Machine, BLAS and its kernels, threads: one row a fact."""
        machine, blas = Machine.here(), preflight.check()
        facts = {
            "machine": machine.describe(),
            "BLAS": f"{blas.blas} {blas.version}, {blas.core or 'unnamed'} kernels",
            "BLAS threads measured": self.threads,
            "tokenizer": self.tokenizer_name,
            "engine": self.engine_name,
            "weights": getattr(self.engine, "weights", "as the engine keeps them"),
            "model": self.model or "the default model, SmolLM2-135M-Instruct",
        }
        return pd.DataFrame({"what": list(facts), "found": [str(v) for v in facts.values()]})

    def preflight_sentence(self) -> str:
        """The remedy when BLAS runs with slower kernels than it could, else that it does not."""
        blas = preflight.check()
        return blas.remedy or (
            f"Preflight: BLAS uses its {blas.core or 'own choice of'} kernels, the best it knows "
            "for this processor."
        )


@dataclass(frozen=True)
class Context:
    """What is measured, and how much time it may take. Raises UserError for `threads` below 1."""

    budget: Profile
    tokenizer_name: str = "numpy"
    engine_name: str = "numpy"
    model: str = ""
    workload: str = ""
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 1:
            raise UserError(f"threads is {self.threads!r}; expected a whole number of at least 1.")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the name. Raises UserError when it cannot be opened."""
        return open_tokenizer(self.tokenizer_name, self.model or None)

    @cached_property
    def engine(self) -> Engine:
        """The engine of the name. Raises UserError when it cannot be opened."""
        return open_engine(self.engine_name, self.model or None, threads=self.threads)
