"""The loop of a batch: whoever joins, leaves, is cancelled or evicted, nobody else sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.loop_mixes import draw_requests, open_at_random, record_scores, run_mix, shown
from tests.tiny_model import TOKENS, write_tiny_model

from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.kernels import products
from batchgauge.core.kernels.attention import PlainAttention
from batchgauge.errors import UserError
from batchgauge.request import BatchItem, InferenceBatchRequest

CONTEXT = 128
needs_tiles = pytest.mark.skipif(products.compiled() is None, reason="no compiled tiles here")
SHAPE: dict[str, Any] = {"d_model": 128, "heads": 2, "kv_heads": 1, "tied": False}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A tiny model whose layers compiled code takes."""
    path = tmp_path_factory.mktemp("loop") / "tiny.gguf"
    return BatchInferenceEngine.from_gguf(
        write_tiny_model(path, context_length=CONTEXT, d_ff=128, **SHAPE)
    )


def request(length=10, **changes):
    """A request of so many ids, for ten tokens."""
    made = InferenceBatchRequest(tuple(range(3, 3 + length)), max_tokens=10, ignore_eos=True)
    return replace(made, **changes)


def item(name, *args, **changes):
    """That, as an item."""
    return BatchItem(name, request(*args, **changes))


def finish(loop):
    """Step until nobody is under way: the answers by id."""
    ended = []
    while not loop.idle:
        ended += [event.id for event in loop.step() if event.ended]
    return {name: loop.response(name) for name in ended}


def compare(engine, count, distinct, seed, positions=(None, 200, 400)):
    """`count` requests in mixes of up to 60 have the tokens, and scores, that each has alone."""
    rng = np.random.default_rng(seed)
    longest = engine.model.config.context_length
    vocabulary = min(engine.tokenizer.vocab_size, engine.model.config.vocab_size)
    requests = draw_requests(rng, distinct, vocabulary, min(longest, 120))
    alone: dict[int, Any] = {}
    with record_scores() as digests:
        for number, one in enumerate(requests):
            (row,) = engine.infer_batch([BatchItem(f"alone{number}", one)]).responses
            alone[number] = shown(row), digests.get(f"alone{number}", [])
        done = answered = evicted = replayed = 0
        while done < count:
            size = min(count - done, int(rng.integers(5, 61)))
            drawn = {f"{done + i}": int(rng.integers(distinct)) for i in range(size)}
            loop = open_at_random(engine, rng, positions)
            answers, cancelled, evictions = run_mix(
                loop, {name: requests[number] for name, number in drawn.items()}, rng
            )
            assert answers.keys() | cancelled == drawn.keys()
            for name, number in drawn.items():
                tokens, scores = alone[number]
                mine = digests.pop(name, [])
                if name in answers:
                    assert (answers[name], mine) == (tokens, scores), requests[number]
                else:
                    assert mine == scores[: len(mine)]
            done += size
            answered += len(answers)
            evicted += evictions
            replayed += loop.counters["replayed"]
    assert answered > 0.6 * count
    assert evicted > 0.02 * count
    assert replayed
    return done


@needs_tiles
def test_every_request_gets_the_bits_that_it_gets_alone(engine):
    """In random mixes: a sample of what the slow test runs."""
    compare(engine, 1000, 300, seed=1)


@needs_tiles
@pytest.mark.soak
def test_ten_thousand_requests_get_the_bits_that_they_get_alone(engine):
    """On the tiny model."""
    assert compare(engine, 10_000, 2000, seed=2) == 10_000


@needs_tiles
@pytest.mark.soak
def test_two_hundred_requests_of_the_default_model_get_the_bits_that_they_get_alone():
    """On the model of the study."""
    default = BatchInferenceEngine.from_gguf()
    assert compare(default, 200, 100, seed=3, positions=(None, 500)) == 200


@needs_tiles
@pytest.mark.parametrize("weights", ["file", "bfloat16"])
def test_all_forms_of_weights_keep_the_promise(tmp_path, weights):
    """Those of the file dequantised in registers, and rounded ones."""
    path = write_tiny_model(
        tmp_path / "q.gguf", context_length=CONTEXT, d_ff=128, quantisation="Q8_0", **SHAPE
    )
    compare(BatchInferenceEngine.from_gguf(path, weights), 60, 40, seed=4)


@needs_tiles
def test_layers_that_go_step_by_step_keep_the_promise(engine, monkeypatch):
    """Compiled attention and products with Python between them."""
    monkeypatch.setattr(engine.model, "layers", None)
    compare(engine, 60, 40, seed=5)


def test_layers_by_numpy_give_the_same_tokens(engine, monkeypatch):
    """Without compiled code results agree up to rounding: greedy tokens here, bits nowhere."""
    monkeypatch.setattr(engine.model, "layers", None)
    monkeypatch.setattr(engine.model, "attention", PlainAttention(engine.model.config.windows))
    alone = engine.infer_batch([item("x", 40)]).responses[0]
    loop = engine.open_loop(12, prefill_tokens=24)
    loop.add([item(f"{i}", 10 + i) for i in range(9)])
    loop.step()
    loop.cancel("4")
    loop.step()
    loop.add([item("x", 40)])
    assert shown(finish(loop)["x"]) == shown(alone)


def test_prompts_are_read_within_the_budget(engine):
    """In the order of joining, cut at multiples of 24, while others go on decoding."""
    loop = engine.open_loop(prefill_tokens=50)
    loop.add([item("first", 5)])
    assert [event.id for event in loop.step()] == ["first"]
    loop.add([item("long", 100)])
    loop.add([item("short", 4)])
    seen = []
    for _ in range(3):
        before = loop.counters["positions"]
        seen.append(([event.id for event in loop.step()], loop.counters["positions"] - before))
    assert seen == [(["first"], 49), (["first"], 49), (["first", "long", "short"], 9)]
    answers = finish(loop)
    assert shown(answers["long"]) == shown(engine.infer_batch([item("a", 100)]).responses[0])
    assert answers["long"].data.prefill_ms > answers["short"].data.prefill_ms > 0.0


def test_what_a_step_says_adds_up(engine):
    """Every token once, then the end; a bad request ends with its sentence at the next step."""
    loop = engine.open_loop()
    loop.add([item("a", max_tokens=3), BatchItem("bad", InferenceBatchRequest(""))])
    assert len(loop) == 1
    events = loop.step()
    assert [(event.id, event.ended) for event in events] == [("bad", True), ("a", False)]
    assert loop.response("bad").error.startswith("The prompt is empty")
    events += loop.step() + loop.step()
    assert loop.idle
    assert loop.step() == []
    tokens = tuple(event.token for event in events if event.id == "a")
    assert [event.finish for event in events] == [None, None, None, "length"]
    answer = loop.response("a")
    assert answer.data.token_ids == tokens
    assert answer.data.ttft_ms + sum(answer.data.inter_token_ms) == pytest.approx(
        answer.duration_ms
    )
    with pytest.raises(KeyError):
        loop.response("a")


def test_a_loop_refuses_what_it_has_no_room_for(engine):
    """Too many, too long, an id in use: one sentence each, and nobody has joined."""
    loop = engine.open_loop(2, 40)
    loop.add([item("a", 10)])
    assert loop.used_positions == 19
    for coming in (["b", "c"], ["a"], ["b", "b"]):
        with pytest.raises(UserError):
            loop.add([item(name, 10) for name in coming])
    with pytest.raises(UserError, match="no room for 1 more requests beside 1; expected at most 2"):
        loop.add([item("b", 13)])
    assert len(loop) == 1
    (long,) = loop.read([item("b", 60)])
    assert not loop.could_fit(long)
    loop.add([item("b", 12)])
    assert loop.used_positions == 40
    finish(loop)
    assert loop.used_positions == 0


@pytest.mark.parametrize(
    "limits", [{"slots": 0}, {"slots": True}, {"positions": 0}, {"prefill_tokens": 23},
               {"prefill_tokens": 30.0}, {"slots": None}],
)  # fmt: skip
def test_limits_that_make_no_sense(engine, limits):
    """One sentence."""
    with pytest.raises(UserError, match="expected a whole number from"):
        engine.open_loop(**limits)


def test_rooms_do_not_grow(engine):
    """However many come and go, no more is allocated than was in use at once."""
    loop = engine.open_loop(4)
    rng = np.random.default_rng(0)
    most = 0
    for number in range(300):
        while len(loop) == 4:
            for event in loop.step():
                if event.ended:
                    loop.response(event.id)
        loop.add([item(f"{number}", int(rng.integers(1, 60)), max_tokens=int(rng.integers(1, 9)))])
        most = max(most, loop.used_positions)
    assert loop._cache.nbytes <= most * engine.model.kv_bytes_per_token


@pytest.mark.parametrize("numpy", [False, True])
def test_what_is_not_finite_stays_where_it_was(tmp_path, numpy):
    """A newcomer in the room of a request that overflowed, or was cancelled before it showed."""
    path = write_tiny_model(tmp_path / "m.gguf", context_length=CONTEXT, **SHAPE)
    engine: Any = BatchInferenceEngine.from_gguf(path)
    if numpy:
        engine.model.layers = None
        engine.model.attention = PlainAttention(engine.model.config.windows)
    others = [item(f"{i}", 12) for i in range(3)]
    clean = [shown(row) for row in engine.infer_batch(others).responses]
    engine.model.weights.embedding[len(TOKENS) - 1] = np.nan
    bad = BatchItem("bad", InferenceBatchRequest((len(TOKENS) - 1,) * 60, ignore_eos=True))
    loop: Any = engine.open_loop(3, 150, prefill_tokens=24)
    for cancelled in (True, False):
        loop.add([bad])
        events = loop.step()
        if cancelled:
            assert loop.cancel("bad")
        else:
            while not any(event.ended for event in events):
                events = loop.step()
            assert loop.response("bad").error.startswith("The model gave no finite score")
        loop.add(others)
        answers = finish(loop)
        assert [shown(answers[one.id]) for one in others] == clean
