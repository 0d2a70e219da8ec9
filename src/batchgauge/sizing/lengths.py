"""The requests to be batched, seen only by their lengths, and what a batch of them has to do.

A cost or memory model needs no text: the lengths of prompts and generations say
how many positions are computed and how many tokens are held. `BatchWork` turns the
requests of batches into that work; it knows the two ways in which engines treat
unequal lengths (pad or pack prompts; keep or drop finished rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from batchgauge.errors import UserError

Ints = npt.NDArray[np.int64]
DRAWS = (64, 4000)  # batches drawn from a ragged workload, fewest and most: p95 needs many
_PRICED = 120_000  # rows and steps, over all draws, that one size is priced with
_WIDEST = 4096  # no batch is larger
_BLOCK = 64  # columns that are drawn together


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

    def batches(self, size: int) -> BatchWork:
        """Sample batches of `size` requests: each by itself at 1, one where all are alike."""
        if size > _WIDEST:
            raise UserError(f"A batch of {size} is above the {_WIDEST} that plans are made for.")
        inputs = np.asarray(self.inputs, dtype=np.int64)
        new = np.asarray(self.new_tokens or [0] * len(self.inputs), dtype=np.int64)
        if self.alike or (size == 1 and len(inputs) <= DRAWS[1]):
            each = slice(1 if self.alike else None)
            return BatchWork(*(np.repeat(part[each, None], size, axis=1) for part in (inputs, new)))
        count = int(np.clip(_PRICED // (size + int(new.max())), *DRAWS))
        blocks = [_drawn(self.seed, len(inputs), at)[:count] for at in range(0, size, _BLOCK)]
        chosen = np.concatenate(blocks, axis=1)[:, :size]  # [K, b]
        return BatchWork(inputs[chosen], new[chosen])


@lru_cache(maxsize=256)  # for every size that is priced
def _drawn(seed: int, requests: int, at: int) -> npt.NDArray[np.int32]:
    """Request numbers of the columns from `at` on, int32 [as many as are priced, _BLOCK]."""
    rows = int(np.clip(_PRICED // max(1, at), *DRAWS))
    return np.random.default_rng((seed, at)).integers(0, requests, (rows, _BLOCK), dtype=np.int32)


@dataclass(frozen=True)
class BatchWork:
    """The work of K batches of one size: `inputs` and `new_tokens` are int64 [K, b]."""

    inputs: Ints
    new_tokens: Ints

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> BatchWork:
        """One of the batches."""
        return BatchWork(self.inputs[[number]], self.new_tokens[[number]])

    @classmethod
    def one(cls, inputs: Sequence[int], new_tokens: Sequence[int]) -> BatchWork:
        """Exactly these requests as one batch."""
        return cls(np.array([inputs], dtype=np.int64), np.array([new_tokens], dtype=np.int64))

    @property
    def size(self) -> int:
        """Requests in a batch."""
        return int(self.inputs.shape[1])

    def positions(self, *, padded: bool) -> Ints:
        """Prompt positions (or bytes) computed [K]: rows as long as the longest, or their own."""
        return self._summed(self.inputs, padded=padded)

    def squares(self, *, padded: bool) -> Ints:
        """Query-key pairs of the prompts' self-attention [K], without the causal half."""
        return self._summed(self.inputs**2, padded=padded)

    def _summed(self, values: Ints, *, padded: bool) -> Ints:
        found: Ints = values.max(axis=1) * self.size if padded else values.sum(axis=1)
        return found

    def steps(self, *, compacts: bool) -> tuple[Ints, Ints]:
        """Rows and summed context of every decode step, int64 [K, S]; no rows: no such step.

        The first token comes with the prefill, so S = longest generation - 1. With
        `compacts`, rows that are done leave the batch; without, they stay to the end.
        """
        new = self.new_tokens
        if not compacts:
            new = np.repeat(new.max(axis=1, keepdims=True), self.size, axis=1)
        bins = int(new.max(initial=0)) + 1  # of each batch, one a length
        ends = (np.arange(len(new))[:, None] * bins + new).ravel()

        def left(weights: Ints) -> Ints:
            """Sums over the rows that take part in step 1, 2, ... [K, S]."""
            ended = np.bincount(ends, weights.ravel(), minlength=len(new) * bins)
            gone = np.cumsum(ended.reshape(len(new), bins), axis=1).astype(np.int64)
            going: Ints = weights.sum(axis=1, keepdims=True) - gone
            return going[:, 1 : bins - 1]

        rows = left(np.ones_like(new))
        reached: Ints = rows * np.arange(1, max(bins - 1, 1))
        return rows, left(self.inputs) + reached
