"""What every notebook works with: engine, tokenizer, prompts, budget, machine.

Parameters are checked when it is made; engine and tokenizer open when somebody first asks
for them, so that a notebook without an engine waits for none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from batchgauge.errors import UserError
from batchgauge.machine import preflight
from batchgauge.machine.identity import Machine
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.redaction import redacted
from batchgauge.registry import open_engine, open_tokenizer, weights_of, with_weights
from batchgauge.reporting.profiles import Profile
from batchgauge.reporting.result import Section
from batchgauge.workload import Prompt, load_prompts, sample_prompts


def whole(**numbers: object) -> None:
    """Raises UserError for the first of `numbers` that is no whole number of at least 1."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} is {value!r}; expected a whole number of at least 1.")


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


@dataclass(frozen=True)
class Context:
    """What is measured, and how much time it may take.

    `weights` becomes a part of `engine_spec`. Raises UserError for `threads` below 1, and for
    weights that the engine does not keep.
    """

    budget: Profile
    tokenizer_name: str = "numpy"
    engine_spec: str = "numpy"
    model: str = ""
    workload: str = ""
    threads: int = 1
    seed: int = 0
    weights: str = "float32"

    def __post_init__(self) -> None:
        whole(threads=self.threads)
        object.__setattr__(self, "engine_spec", with_weights(self.engine_spec, self.weights))

    @property
    def weights_kept(self) -> str:
        """How the engine keeps its weights; empty where its spec does not say."""
        return weights_of(self.engine_spec)

    @property
    def columns(self) -> dict[str, object]:
        """Conditions of the whole run, for every CSV."""
        return {"weights": self.weights_kept, "threads": self.threads}

    @property
    def engine_name(self) -> str:
        """The engine's spec as it may be shown, without keys."""
        return redacted(self.engine_spec)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the name. Raises UserError when it cannot be opened."""
        return open_tokenizer(self.tokenizer_name, self.model or None)

    @cached_property
    def engine(self) -> Engine:
        """The engine of the spec. Raises UserError when it cannot be opened."""
        return open_engine(self.engine_spec, self.model or None, threads=self.threads)

    def batch_sizes(self, sizes: Sequence[int], what: str, smoke: int = 4) -> tuple[int, ...]:
        """Batch sizes that the engine takes, in rising order; a smoke run's at most `smoke`.

        Raises UserError as `checked_sizes` does.
        """
        checked = checked_sizes(sizes, self.engine.max_batch_size(), what)
        if self.budget.name != "smoke":
            return checked
        return tuple(s for s in checked if s <= smoke) or checked[:1]

    def tokens(self, max_tokens: int, smoke: int = 4) -> int:
        """Tokens to generate for a request; in a smoke run at most `smoke`.

        Raises UserError for less than 1.
        """
        whole(max_tokens=max_tokens)
        return min(max_tokens, smoke) if self.budget.name == "smoke" else max_tokens

    def prompts(self, count: int, keep: Callable[[Prompt], bool]) -> list[Prompt]:
        """`count` prompts of the workload, of those to `keep` (of all when none is).

        Raises UserError for a workload that cannot be read.
        """
        prompts = load_prompts(self.workload)
        return sample_prompts([p for p in prompts if keep(p)] or prompts, count, self.seed)

    def preflight(self) -> Section:
        """Machine, BLAS and its kernels, threads; and the remedy where BLAS could be faster."""
        blas = preflight.check()
        facts = {
            "machine": Machine.here().describe(),
            "BLAS": f"{blas.blas} {blas.version}, {blas.core or 'unnamed'} kernels",
            "BLAS threads measured": self.threads,
            "tokenizer": self.tokenizer_name,
            "engine": self.engine_name,
            "weights": getattr(self.engine, "weights", "as the engine keeps them"),
            "model": self.model or "the default model, SmolLM2-135M-Instruct",
        }
        table = pd.DataFrame({"what": list(facts), "found": [str(v) for v in facts.values()]})
        finding = blas.remedy or (
            f"Preflight: BLAS uses its {blas.core or 'own choice of'} kernels, the best it knows "
            "for this processor."
        )
        caption = "The machine and the libraries that did the work."
        return Section("preflight", {}, finding, table, caption)
