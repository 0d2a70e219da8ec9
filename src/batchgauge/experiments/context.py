"""What every notebook works with: engine, tokenizer, prompts, budget, machine.

Parameters are checked when it is made; engine and tokenizer open when somebody first asks
for them, so that a notebook without an engine waits for none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

from batchgauge.adapters.checks import check_generates
from batchgauge.core.memory_need import mode_of
from batchgauge.core.model_facts import REFERENCE, ModelFacts
from batchgauge.errors import UserError
from batchgauge.experiments.scaling import (
    PROMPT,
    SLACK,
    Cost,
    WorkSize,
    blocks_s,
    fitted,
    pilot,
    said,
)
from batchgauge.machine import preflight
from batchgauge.machine.identity import Machine
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.redaction import redacted
from batchgauge.registry import check_fits, open_engine, open_tokenizer, weights_of, with_weights
from batchgauge.reporting.model import is_ours
from batchgauge.reporting.profiles import Profile
from batchgauge.reporting.result import Section
from batchgauge.request import BatchItem, BatchResult, InferenceBatchRequest, InferenceBatchResponse
from batchgauge.workload import Prompt, load_prompts, sample_prompts

Items = Sequence[BatchItem[InferenceBatchRequest]]
Result = BatchResult[InferenceBatchResponse]
SMOKE = 4  # requests of a batch, and tokens of an answer, at most in a smoke run
TYPICAL = 40  # tokens of a prompt, as the project's own have them
FORMALITIES = 64  # tokens that a chat template may put around a prompt
LARGEST = (32, 256)  # requests, and tokens of each, that a notebook must have room for


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
    notes: list[str] = field(default_factory=list, compare=False)  # what was cut or lengthened

    def __post_init__(self) -> None:
        whole(threads=self.threads)
        object.__setattr__(self, "engine_spec", with_weights(self.engine_spec, self.weights))

    @property
    def is_ours(self) -> bool:
        """Whether the engine is the project's own, which goals and advice on code are for."""
        return is_ours(self.engine_spec)

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
        """The engine of the spec. Raises UserError when it cannot be opened, or memory is short."""
        check_fits(self.engine_spec, Path(self.model) if self.model else None, LARGEST)
        return open_engine(self.engine_spec, self.model or None, threads=self.threads)

    @cached_property
    def facts(self) -> ModelFacts | None:
        """What the model's file says; None for a server's and for a user's own engine."""
        return None if mode_of(self.engine_spec) is None else ModelFacts.read(self.model or None)

    @property
    def chat(self) -> bool:
        """Whether prompts go in the chat format: unless the model's file has no template."""
        chats = self.facts is None or self.facts.chats
        self.note("" if chats else "The model has no chat template: prompts go in as they are.")
        return chats

    @property
    def is_reference(self) -> bool:
        """Whether the project's goals were set for this model."""
        return self.facts is not None and self.facts.digest == REFERENCE

    @cached_property
    def cost(self) -> Cost:
        """What the model costs with this engine, these weights and threads: a short pilot."""
        with preflight.limit_threads(self.threads):
            self.note(check_generates(self.engine))
            return pilot(self.engine, self.budget.share(1 / 20))

    def elsewhere(self) -> Context:
        """The same for another process: without engine and notes, with the cost if it is known."""
        other = replace(self, notes=[])
        if "cost" in self.__dict__:
            other.__dict__["cost"] = self.cost
        return other

    @property
    def room(self) -> int | None:
        """Positions that the model has for a prompt and its answer; None where nobody knows."""
        return (self.facts.context_length or None) if self.facts else None

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt that takes a sixtieth of the profile's time, and has half the room."""
        longest = int(self.budget.share(1 / 60) / max(self.cost.position_s, 1e-9))
        return max(PROMPT, min(longest, (self.room or longest) // 2 - FORMALITIES))

    def positions(self, wanted: int) -> int:
        """Tokens of one prefill: `wanted`, halved until it takes a fortieth of the time.

        And until the model has room for it.
        """
        most = SLACK * self.budget.share(1 / 40) / self.cost.position_s
        most, found = min(most, self.room - 1 if self.room else wanted), wanted
        while found > max(2 * PROMPT, most):
            found //= 2
        if found < wanted:
            self.note(f"Prefill: {found} tokens at once instead of {wanted}.")
        return found

    def fitted(
        self, what: str, sizes: Sequence[int], tokens: int, share: float, *,
        blocks: int = 2, alone: bool = True,
    ) -> tuple[tuple[int, ...], int]:  # fmt: skip
        """Batch sizes, and tokens of an answer, for a share of the time; see `scaling`.

        So many blocks of every batch, and of every item `alone`, must find room in it.
        """
        wanted = WorkSize(tuple(sizes), min(TYPICAL, self.longest_prompt), tokens)
        block_s = partial(blocks_s, self.cost, blocks, alone=alone)
        done = fitted(
            wanted, self.cost, self.budget.share(share), block_s=block_s, room=self.room,
            lengthen=alone,
        )  # fmt: skip
        self.note(said(what, wanted, done))
        return done.sizes, done.tokens

    def note(self, sentence: str) -> None:
        """Keep a sentence for `scale`, once."""
        if sentence and sentence not in self.notes:
            self.notes.append(sentence)

    def scale(self) -> Section:
        """What the model costs here, and in what the work follows it."""
        changed = " ".join(self.notes) or "The work is as large as the profile has it."
        return Section("scale", {}, f"{self.cost.sentence()} {changed}")

    def batch_sizes(self, sizes: Sequence[int], what: str) -> tuple[int, ...]:
        """Batch sizes that the engine takes, in rising order; a smoke run's at most `SMOKE`.

        Raises UserError as `checked_sizes` does.
        """
        checked = checked_sizes(sizes, self.engine.max_batch_size(), what)
        if self.budget.name != "smoke":
            return checked
        return tuple(s for s in checked if s <= SMOKE) or checked[:1]

    def tokens(self, max_tokens: int) -> int:
        """Tokens to generate for a request; in a smoke run at most `SMOKE`.

        Raises UserError for less than 1.
        """
        whole(max_tokens=max_tokens)
        return min(max_tokens, SMOKE) if self.budget.name == "smoke" else max_tokens

    def infer(self, items: Items) -> Result:
        """The engine's answers to a batch. Raises UserError when it could not answer an item."""
        result = self.engine.infer_batch(items)
        for response in result.responses:
            if response.error is not None:
                raise UserError(f"The engine could not answer '{response.id}': {response.error}")
        return result

    def prompts(self, count: int, keep: Callable[[Prompt], bool]) -> list[Prompt]:
        """`count` prompts of the workload, of those to `keep` (of all when none is).

        Prompts above `longest_prompt` are left out; where all are, the shortest are taken.
        Raises UserError for a workload that cannot be read, or that has no room in the model.
        """
        prompts = load_prompts(self.workload)
        prompts = [p for p in prompts if keep(p)] or prompts
        tokens = self.tokenizer.encode_many([p.prompt for p in prompts]).counts.tolist()
        if self.room and min(tokens) >= self.room:
            raise UserError(
                f"Every prompt has {min(tokens)} tokens or more; the model's context is "
                f"{self.room}."
            )
        longest = self.longest_prompt
        if left_out := sum(n > longest for n in tokens):
            self.note(
                f"Prompts: {left_out} of {len(prompts)} have more than {longest} tokens and are "
                "left out."
                if left_out < len(prompts)
                else f"Prompts: all have more than {longest} tokens; the shortest are taken."
            )
        if left_out == len(prompts):
            longest = sorted(tokens)[min(count, len(tokens)) - 1]
        fitting = [p for p, n in zip(prompts, tokens, strict=True) if n <= longest]
        return sample_prompts(fitting, count, self.seed)

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
            "model": str(self.facts or "the engine's own"),
        }
        table = pd.DataFrame({"what": list(facts), "found": [str(v) for v in facts.values()]})
        finding = blas.remedy or (
            f"Preflight: BLAS uses its {blas.core or 'own choice of'} kernels, the best it knows "
            "for this processor."
        )
        caption = "The machine and the libraries that did the work."
        return Section("preflight", {}, finding, table, caption)
