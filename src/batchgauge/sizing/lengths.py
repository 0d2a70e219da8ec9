"""The requests to be batched, seen only by their lengths, and what a batch of them has to do.

A cost or memory model needs no text: the lengths of prompts and generations say
how many positions are computed and how many tokens are held. `Plan` turns the
requests of one batch into that work; it knows the two ways in which engines treat
unequal lengths (pad or pack prompts; keep or drop finished rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from batchgauge.errors import UserError

Ints = npt.NDArray[np.int64]
DRAWS = 32  # batches drawn from a ragged workload: who meets whom is luck, p95 bad luck
_WIDEST = 4096  # columns of the draw: no batch is larger
_REMEMBERED = 128  # sizes up to which plans are kept: they are asked for again and again


@dataclass(frozen=True)
class Lengths:
    """Lengths of the requests that a workload is made of.

    inputs      tokens of each prompt; for a tokenizer, bytes of each text
    new_tokens  tokens to generate for each; empty for a tokenizer

    Batches are drawn with replacement by `seed`; a batch of b is the first b columns
    of one draw, so that sizes are compared on the same requests. Raises UserError
    for an empty workload or lengths that make no sense.
    """

    inputs: tuple[int, ...]
    new_tokens: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError("The workload is empty; expected the length of at least one request.")
        if min(self.inputs) < 0:
            raise UserError("A request's length is negative; expected tokens or bytes >= 0.")
        if self.new_tokens and len(self.new_tokens) != len(self.inputs):
            raise UserError(
                f"The workload has {len(self.inputs)} prompts but {len(self.new_tokens)} "
                "generation lengths; expected one for each."
            )
        if self.new_tokens and min(self.new_tokens) < 1:
            raise UserError("A request generates no token; expected new_tokens of at least 1.")

    @classmethod
    def uniform(cls, inputs: int, new_tokens: int = 0) -> Lengths:
        """A workload whose requests are all alike; without `new_tokens`, texts to tokenize."""
        return cls((inputs,), (new_tokens,) if new_tokens else ())

    @classmethod
    def texts(cls, texts: Sequence[str], seed: int = 0) -> Lengths:
        """The workload of tokenizing these texts, by their UTF-8 bytes."""
        return cls(tuple(len(text.encode()) for text in texts), seed=seed)

    @property
    def generates(self) -> bool:
        """True for inference, False for tokenizing."""
        return bool(self.new_tokens)

    @property
    def alike(self) -> bool:
        """True when all requests have the same lengths."""
        return len(set(zip(self.inputs, self.new_tokens or self.inputs, strict=True))) == 1

    def check_context(self, context_length: int) -> None:
        """Raise UserError when a request cannot fit in the model's context at any batch size."""
        need = max(
            p + n
            for p, n in zip(self.inputs, self.new_tokens or [0] * len(self.inputs), strict=True)
        )
        if need > context_length:
            raise UserError(
                f"A request needs {need} tokens (prompt and generation), above the model's context "
                f"of {context_length}; shorten it: no batch size can help."
            )

    def plans(self, size: int) -> tuple[BatchWork, ...]:
        """Sample batches of `size` requests: one when all requests are alike, else `DRAWS`."""
        if size > _WIDEST:
            raise UserError(f"A batch of {size} is above the {_WIDEST} that plans are made for.")
        if size in self._plans:
            return self._plans[size]
        chosen = self._draws[:, :size]  # [K, b]
        inputs = np.asarray(self.inputs, dtype=np.int64)
        new = np.asarray(self.new_tokens or [0] * len(self.inputs), dtype=np.int64)
        plans = tuple(BatchWork(inputs[row], new[row]) for row in chosen)
        if size <= _REMEMBERED:
            self._plans[size] = plans
        return plans

    @cached_property
    def _plans(self) -> dict[int, tuple[BatchWork, ...]]:
        return {}

    @cached_property
    def _draws(self) -> Ints:
        """Request numbers, int64 [K, _WIDEST]."""
        rng = np.random.default_rng(self.seed)
        return rng.integers(0, len(self.inputs), size=(1 if self.alike else DRAWS, _WIDEST))


@dataclass(frozen=True)
class BatchWork:
    """The work of one batch: `inputs` and `new_tokens` are int64 [b]."""

    inputs: Ints
    new_tokens: Ints
    _cache: dict[bool, tuple[Ints, Ints]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Requests in the batch."""
        return int(self.inputs.size)

    @property
    def tokens(self) -> int:
        """Tokens generated by the batch."""
        return int(self.new_tokens.sum())

    def positions(self, *, padded: bool) -> int:
        """Prompt positions (or bytes) computed: every row as long as the longest, or its own."""
        if padded:
            return int(self.inputs.max(initial=0)) * self.size
        return int(self.inputs.sum())

    def squares(self, *, padded: bool) -> int:
        """Query-key pairs of the prompts' self-attention, without the causal half."""
        if padded:
            return int(self.inputs.max(initial=0)) ** 2 * self.size
        return int((self.inputs**2).sum())

    def steps(self, *, compacts: bool) -> tuple[Ints, Ints]:
        """Rows and summed context of every decode step, int64 [S] each.

        The first token comes with the prefill, so S = longest generation - 1. With
        `compacts`, rows that are done leave the batch; without, they stay to the end.
        """
        if compacts not in self._cache:
            last = int(self.new_tokens.max(initial=0))
            step = np.arange(1, last, dtype=np.int64)[:, None]  # [S, 1]
            if compacts:
                active = self.new_tokens[None, :] > step  # [S, b]
            else:
                active = np.ones((step.size, self.size), dtype=bool)
            context = np.where(active, self.inputs[None, :] + step, 0)  # [S, b]
            self._cache[compacts] = (active.sum(axis=1), context.sum(axis=1))
        return self._cache[compacts]
