"""Random lives of a `BatchLoop`: requests join, leave, are cancelled and evicted in any order.

`run_mix` drives one loop until all are over; `record_scores` keeps a digest of the scores
that each token of each request was chosen by, so that bits can be compared, not tokens only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from batchgauge.core.batch_loop import BatchLoop
from batchgauge.core.generation import Generation
from batchgauge.core.ops import Floats
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    InferenceBatchRequest,
    InferenceBatchResponse,
)

Answer = tuple[object, ...]  # all of an answer but times
STOPS = ("he", " and", "the", "\n", "o w", "🙂")


@contextmanager
def record_scores() -> Iterator[dict[str, list[int]]]:
    """Inside, a digest of the scores of every choice, by the id of the request."""
    digests: dict[str, list[int]] = {}
    choose = Generation.choose

    def recording(self: Generation, logits: Floats) -> int | None:
        digests.setdefault(self.id, []).append(zlib.crc32(logits.tobytes()))
        return choose(self, logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generation, "choose", recording)
        yield digests


def draw_requests(
    rng: np.random.Generator, count: int, vocabulary: int, longest: int
) -> list[InferenceBatchRequest]:
    """Prompts of ids and of text, greedy and sampled, with stop texts or without, some bad."""
    found = []
    for number in range(count):
        length = int(min(longest, 1 + rng.geometric(1.0 / 18.0)))
        ids = tuple(rng.integers(3, vocabulary, length).tolist())
        request = InferenceBatchRequest(
            ids,
            max_tokens=int(rng.integers(1, 14)),
            temperature=float(rng.choice([0.0, 0.7, 1.5])),
            top_p=float(rng.choice([1.0, 0.8])),
            seed=number,
            ignore_eos=bool(rng.random() < 0.5),
        )
        kind = rng.random()
        if kind < 0.3:
            texts = rng.choice(STOPS, rng.integers(1, 3), replace=False)
            request = replace(
                request, prompt="hello and the " * (length // 6 + 1), stop=texts.tolist()
            )
        elif kind < 0.33:
            request = replace(request, prompt=str(rng.choice(["", "a\ud800b"])))
        found.append(request)
    return found


def shown(response: BatchResponse[InferenceBatchResponse]) -> Answer:
    """What must be the same however a request was run."""
    if response.data is None:
        return (response.error,)
    data = response.data
    return data.token_ids, data.text, data.finish_reason, data.prompt_tokens


def run_mix(
    loop: BatchLoop, requests: Mapping[str, InferenceBatchRequest], rng: np.random.Generator
) -> tuple[dict[str, Answer], set[str], int]:
    """Run requests in a random mix: the answers, who was cancelled, and how many evictions."""
    waiting: list[BatchItem[InferenceBatchRequest] | Generation] = [
        BatchItem(name, request) for name, request in requests.items()
    ]
    streamed: dict[str, list[int]] = {}
    answers: dict[str, Answer] = {}
    cancelled: set[str] = set()
    evictions = 0
    while waiting or not loop.idle:
        if waiting and rng.random() < 0.5:
            _join(loop, waiting, int(rng.integers(1, 6)))
        under_way = list(loop._seats)
        if under_way and rng.random() < 0.05:
            name = str(rng.choice(under_way))
            assert loop.cancel(name)
            assert not loop.cancel(name)
            assert name not in loop
            cancelled.add(name)
        elif under_way and rng.random() < 0.08:
            one = loop.evict(str(rng.choice(under_way)))
            assert one.id not in loop
            waiting.insert(int(rng.integers(len(waiting) + 1)), one)
            evictions += 1
        if loop.prefill_tokens is not None and rng.random() < 0.1:
            loop.prefill_tokens = int(rng.integers(24, 120))
        for event in loop.step():
            assert event.id not in answers
            if event.token is not None:
                streamed.setdefault(event.id, []).append(event.token)
            if event.ended:
                response = loop.response(event.id)
                answers[event.id] = shown(response)
                if response.data is not None:
                    assert tuple(streamed.get(event.id, [])) == response.data.token_ids
                    assert event.finish == response.data.finish_reason
                else:
                    assert event.error == response.error
        assert len(loop) <= loop.slots
        assert loop.used_positions <= (loop.positions or 1 << 30)
    assert not loop.used_positions
    return answers, cancelled, evictions


def _join(
    loop: BatchLoop, waiting: list[BatchItem[InferenceBatchRequest] | Generation], count: int
) -> None:
    """Let some of the first that wait join, as far as there is room."""
    for entry in waiting[:count]:
        (one,) = [entry] if isinstance(entry, Generation) else loop.read([entry])
        if isinstance(one, Generation):
            if not loop.fits([one]):
                return
            loop.join([one])
        else:
            assert isinstance(entry, BatchItem)
            loop.add([entry])
        waiting.remove(entry)


def open_at_random(
    engine: object, rng: np.random.Generator, positions: Sequence[int | None]
) -> BatchLoop:
    """A loop with random limits."""
    return engine.open_loop(  # type: ignore[attr-defined, no-any-return]
        int(rng.integers(1, 13)),
        rng.choice(np.array(positions, object)),
        rng.choice(np.array([None, 24, 50, 96], object)),
    )
