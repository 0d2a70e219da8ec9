"""The scheduler: who is next, who is refused, thrown out or too late, and what it says of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.loop_mixes import draw_requests, shown
from tests.tiny_model import write_tiny_model

from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.errors import UserError
from batchgauge.request import BatchItem, InferenceBatchRequest
from batchgauge.serving.admission import kv_positions, open_scheduler
from batchgauge.serving.policies import (
    CONTINUOUS,
    STATIC,
    Batching,
    Fifo,
    PriorityClasses,
    ShortestFirst,
    dynamic,
)
from batchgauge.serving.scheduler import DEADLINE_PASSED, ClosedError, Rules, Scheduler
from batchgauge.sizing.adaptive import AdaptiveBatchSizer


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Its seconds."""
        return self.now


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A tiny model whose layers compiled code takes."""
    path = tmp_path_factory.mktemp("scheduler") / "tiny.gguf"
    shape: dict[str, Any] = {"d_model": 128, "heads": 2, "kv_heads": 1, "d_ff": 128}
    return BatchInferenceEngine.from_gguf(write_tiny_model(path, **shape))


@pytest.fixture
def clock():
    """It begins at 100 s."""
    return Clock()


def item(name, length=10, tokens=4):
    """A request of so many ids for so many tokens."""
    request = InferenceBatchRequest(tuple(range(3, 3 + length)), max_tokens=tokens, ignore_eos=True)
    return BatchItem(name, request)


def open_one(engine, clock, *, slots=8, positions=None, **rules):
    """A scheduler with a loop of its own."""
    return Scheduler(engine.open_loop(slots, positions, 48), Rules(**rules), clock)


def run(scheduler, clock=None):
    """Step until nobody is there; ids in the order in which they ended, and their answers."""
    ended: dict[str, Any] = {}
    for _ in range(10_000):
        if scheduler.idle:
            return ended
        for event in scheduler.step():
            if event.ended:
                ended[event.id] = scheduler.response(event.id)
        if clock:
            clock.now += 0.01
    raise AssertionError("requests never end")


def test_first_come_first_served(engine, clock):
    """One after the other where the batch has room for one; times begin at the submission."""
    scheduler = open_one(engine, clock, batch=1)
    for name in "cab":
        scheduler.submit(item(name))
    assert (scheduler.waiting, scheduler.running) == (3, 0)
    answers = run(scheduler)
    assert list(answers) == list("cab")
    (alone,) = engine.infer_batch([item("x")]).responses
    assert {shown(answer) for answer in answers.values()} == {shown(alone)}
    times = [answer.data.ttft_ms for answer in answers.values()]
    assert times == sorted(times)
    assert scheduler.counts["finished"] == scheduler.counts["joined"] == 3


@pytest.mark.parametrize(
    ("ageing_s", "expected"), [(math.inf, "cadb"), (10.0, "cabd"), (0, "abcd")]
)
def test_classes_age(engine, clock, ageing_s, expected):
    """Class first; with ageing, ten seconds of waiting make up for one class."""
    scheduler = open_one(engine, clock, batch=1, order=PriorityClasses(ageing_s))
    for name, priority, at_s in (("a", 1, 0), ("b", 2, 1), ("c", 0, 9), ("d", 1, 12)):
        clock.now = 100.0 + at_s
        scheduler.submit(item(name), priority=priority)
    assert "".join(run(scheduler)) == expected


def test_the_shortest_is_first_by_what_is_predicted(engine, clock):
    """By all tokens that it may get, or by any other prediction; ageing brings long ones on."""
    lengths = {"a": 30, "b": 10, "c": 20}
    for order, expected in (
        (ShortestFirst(), "bca"),
        (ShortestFirst(lambda one: -float(len(one.prompt))), "acb"),
        (ShortestFirst(ageing_s=1.0, mean_tokens=20.0), "bac"),
    ):
        scheduler = open_one(engine, clock, batch=1, order=order)
        for number, (name, length) in enumerate(lengths.items()):
            clock.now = 100.0 + number * 0.6
            scheduler.submit(item(name, length))
        assert "".join(run(scheduler)) == expected


def test_nobody_overtakes_the_next_even_where_there_is_room(engine, clock):
    """A long request waits for memory, and a short one behind it waits for the long one."""
    scheduler = open_one(engine, clock, positions=60)
    scheduler.submit(item("first", 30, 4))  # 33 positions
    scheduler.step()
    scheduler.submit(item("long", 40, 4))
    scheduler.submit(item("short", 5, 2))
    scheduler.step()
    assert (scheduler.running, scheduler.waiting) == (1, 2)
    answers = run(scheduler)
    assert next(iter(answers)) == "first"
    with pytest.raises(UserError, match="may need 63 positions of the KV cache; expected at most"):
        scheduler.submit(item("never", 60, 4))


def test_an_urgent_request_throws_out_who_gives_way(engine, clock):
    """The least urgent goes, no more than must; it is recomputed to the same tokens."""
    scheduler = open_one(engine, clock, batch=2, order=PriorityClasses(), preempt=True)
    scheduler.submit(item("low", 20, 12), priority=2)
    scheduler.submit(item("middle", 20, 12), priority=1)
    for _ in range(4):
        scheduler.step()
    scheduler.submit(item("same", 20, 12), priority=2)
    scheduler.step()
    assert scheduler.counts["evicted"] == 0
    scheduler.submit(item("high", 20, 3), priority=0)
    scheduler.step()
    assert scheduler.counts["evicted"] == 1
    assert "low" not in scheduler.loop
    answers = run(scheduler)
    assert list(answers) == ["high", "middle", "low", "same"]
    (alone,) = engine.infer_batch([item("x", 20, 12)]).responses
    assert shown(answers["low"]) == shown(alone)


def test_who_has_aged_is_not_thrown_out(engine, clock):
    """Whose place in the queue would be before the other's stays, whatever their classes."""
    scheduler = open_one(engine, clock, batch=1, order=PriorityClasses(10.0), preempt=True)
    scheduler.submit(item("old", 10, 6), priority=1)
    scheduler.step()
    clock.now += 11.0  # ten seconds make up for the class
    scheduler.submit(item("urgent", 10, 2), priority=0)
    scheduler.step()
    assert scheduler.counts["evicted"] == 0
    assert list(run(scheduler)) == ["old", "urgent"]
    scheduler.submit(item("young", 10, 6), priority=1)
    scheduler.step()
    clock.now += 9.0
    scheduler.submit(item("urgent", 10, 2), priority=0)
    assert list(run(scheduler)) == ["urgent", "young"]


def test_nobody_is_thrown_out_in_vain(engine, clock):
    """Where all who may be evicted would not make enough room, they stay."""
    scheduler = open_one(engine, clock, positions=100, order=PriorityClasses(), preempt=True)
    scheduler.submit(item("peer", 50, 10), priority=0)
    scheduler.submit(item("low", 10, 10), priority=1)
    scheduler.step()
    scheduler.submit(item("high", 60, 5), priority=0)
    scheduler.step()
    assert scheduler.counts["evicted"] == 0
    assert list(run(scheduler))[-1] == "high"


def test_a_deadline_ends_a_request_wherever_it_is(engine, clock):
    """In the queue or under way: a named error, and its room goes to the next."""
    scheduler = open_one(engine, clock, batch=1)
    scheduler.submit(item("slow", 10, 50), deadline_s=2.0)
    scheduler.submit(item("late", 10, 3), deadline_s=1.0)
    scheduler.submit(item("fine", 10, 3), deadline_s=90.0)
    scheduler.step()
    clock.now += 1.5
    events = scheduler.step()
    assert [(event.id, event.ended) for event in events] == [("late", True), ("slow", False)]
    clock.now += 1.0
    answers = {event.id: event.error for event in scheduler.step() if event.ended}
    assert answers == {"slow": "The deadline passed after 2.5 s, when it had 2 tokens."}
    assert scheduler.response("late").error == (
        "The deadline passed after 1.5 s, when it still waited."
    )
    assert answers["slow"].startswith(DEADLINE_PASSED)
    assert list(run(scheduler)) == ["fine"]
    assert scheduler.counts["expired"] == 2
    assert not scheduler.loop.used_positions


def test_a_cancelled_request_is_gone(engine, clock):
    """From the queue, from the batch, and its answer where that waits."""
    scheduler = open_one(engine, clock, batch=1)
    for name in "abc":
        scheduler.submit(item(name, 10, 2))
    scheduler.step()
    assert scheduler.cancel("a")
    assert scheduler.cancel("b")
    assert not scheduler.cancel("b")
    assert not scheduler.cancel("nobody")
    assert "a" not in scheduler
    assert list(run(scheduler)) == ["c"]
    scheduler.submit(item("a", 10, 1))
    scheduler.step()
    assert not scheduler.cancel("a")
    with pytest.raises(KeyError):
        scheduler.response("a")


def test_a_static_batch_waits_until_it_is_full_and_answers_at_once(engine, clock):
    """Tokens are shown as they come, ends when all are done; nobody joins meanwhile."""
    scheduler = open_one(engine, clock, batch=2, batching=STATIC)
    scheduler.submit(item("short", 5, 2))
    assert scheduler.step() == []
    assert scheduler.wake_s() == math.inf
    scheduler.submit(item("long", 5, 6))
    assert scheduler.wake_s() == 0.0
    scheduler.submit(item("next", 5, 2))
    seen: list[list[tuple[str, bool]]] = []
    while scheduler.running or not seen:
        seen.append([(event.id, event.ended) for event in scheduler.step()])
    assert seen[-1][-2:] == [("short", True), ("long", True)]
    assert sum(not ended for step in seen for _, ended in step) == 8
    assert not any(ended for step in seen[:-1] for _, ended in step)
    assert scheduler.waiting == 1
    scheduler.close()
    assert list(run(scheduler)) == ["next"]
    assert {scheduler.response(name).data.finish_reason for name in ("short", "long")} == {"length"}


def test_a_dynamic_batch_waits_so_long_and_no_longer(engine, clock):
    """For a full batch, or for its oldest request's time."""
    scheduler = open_one(engine, clock, batch=4, batching=dynamic(0.5))
    scheduler.submit(item("a"))
    clock.now += 0.2
    scheduler.submit(item("b"))
    assert scheduler.step() == []
    assert scheduler.wake_s() == pytest.approx(0.3)
    clock.now += 0.31
    scheduler.step()
    assert scheduler.running == 2


def test_a_request_that_came_during_a_step_has_waited_since(engine, clock):
    """For its batch, its place in the queue and its deadline; nobody comes in the future."""
    scheduler = open_one(engine, clock, batch=4, batching=dynamic(0.5))
    scheduler.submit(item("second"), arrived_s=clock.now - 0.2)
    scheduler.submit(item("first"), arrived_s=clock.now - 0.4, deadline_s=0.6)
    scheduler.submit(item("last"), arrived_s=clock.now + 9.0)
    assert scheduler.wake_s() == pytest.approx(0.1)
    assert scheduler._waiting.next().one.id == "first"
    clock.now += 0.21
    scheduler.step()
    assert str(scheduler.response("first").error).startswith("The deadline passed after 0.61 s")
    assert scheduler.running == 0
    clock.now += 0.1
    scheduler.step()
    assert scheduler.running == 2


def test_the_batch_follows_the_sizer(engine, clock):
    """It grows while steps are within their budget, and shrinks when they are not."""
    sizer = AdaptiveBatchSizer(latency_budget_ms=1e6, max_size=6, start=1)
    scheduler = open_one(engine, clock, batch=6, sizer=sizer)
    for number in range(40):
        scheduler.submit(item(f"{number}", 4, 12))
    assert scheduler.batch_limit == 1
    run(scheduler)
    assert scheduler.batch_limit == 6
    sizer.latency_budget_ms = 1e-6
    for number in range(20):
        scheduler.submit(item(f"{number}", 4, 12))
    run(scheduler)
    assert scheduler.batch_limit == 1


def test_shutting_down_finishes(engine, clock):
    """Nothing new is taken; who waits or is under way loses nothing."""
    scheduler = open_one(engine, clock, batch=2)
    for name in "abc":
        scheduler.submit(item(name, 10, 8))
    for _ in range(3):
        scheduler.step()
    scheduler.close()
    with pytest.raises(ClosedError, match="shutting down"):
        scheduler.submit(item("d"))
    (alone,) = engine.infer_batch([item("x", 10, 8)]).responses
    assert {shown(answer) for answer in run(scheduler).values()} == {shown(alone)}
    assert scheduler.idle
    assert not scheduler.loop.used_positions


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "priority": ({"priority": -1}, "priority is -1; expected a whole number"),
    "class": ({"priority": 0.5}, "priority is 0.5; expected a whole number"),
    "deadline": ({"deadline_s": 0.0}, "deadline_s is 0.0; expected seconds above 0"),
    "nan": ({"deadline_s": math.nan}, "deadline_s is nan; expected seconds above 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_submissions(engine, clock, name):
    """One sentence, and nobody waits."""
    scheduler = open_one(engine, clock)
    changes, sentence = BAD[name]
    with pytest.raises(UserError, match=sentence):
        scheduler.submit(item("a"), **changes)
    assert scheduler.idle


def test_bad_requests(engine, clock):
    """An id in use, an empty prompt, one that is too long."""
    scheduler = open_one(engine, clock)
    scheduler.submit(item("a"))
    with pytest.raises(UserError, match="expected an id of its own"):
        scheduler.submit(item("a"))
    with pytest.raises(UserError, match="The prompt is empty"):
        scheduler.submit(BatchItem("b", InferenceBatchRequest("")))
    with pytest.raises(UserError, match="expected at most the model's context"):
        scheduler.submit(item("b", 129))
    assert list(run(scheduler)) == ["a"]
    scheduler.submit(item("b"))
    scheduler.step()
    with pytest.raises(UserError, match="expected an id of its own"):
        scheduler.submit(item("b"))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Rules(batch=0), "batch is 0"),
        (lambda: Rules(batch=True), "batch is True"),
        (lambda: Rules(preempt=True, batching=STATIC), "needs continuous batching"),
        (lambda: PriorityClasses(-1.0), "Ageing is -1.0 s"),
        (lambda: ShortestFirst(mean_tokens=0.0), "mean_tokens is 0.0"),
        (lambda: dynamic(math.nan), "max_wait_s is nan"),
    ],
)
def test_rules_that_make_no_sense(make, sentence):
    """One sentence."""
    with pytest.raises(UserError, match=sentence):
        make()


def test_admission_follows_the_memory_model(engine):
    """More memory is more positions, up to what the requests can use; too little is refused."""
    model = engine.model
    base = model.weights_bytes + (8 << 20)
    few, more = (kv_positions(engine, 2, base + extra) for extra in (0, 40_000))
    assert 24 <= few <= more <= 2 * 128
    assert kv_positions(engine, 2) == 2 * 128
    with pytest.raises(UserError, match=r"expected at least .* MB for this model and 2 requests"):
        kv_positions(engine, 2, model.weights_bytes)
    scheduler = open_scheduler(engine, Rules(batch=3), memory_bytes=1 << 30)
    assert (scheduler.batch_limit, scheduler.loop.positions) == (3, 3 * 128)


def run_traffic(scheduler, requests, rng, clock):
    """Submit at random, with classes, deadlines and cancellations: answers, and who was dropped."""
    coming = list(enumerate(requests))
    ended: dict[str, Any] = {}
    cancelled: set[str] = set()
    while coming or not scheduler.idle:
        while coming and rng.random() < 0.4:
            number, one = coming.pop()
            scheduler.submit(
                BatchItem(str(number), one),
                priority=int(rng.integers(3)),
                deadline_s=float(rng.choice([0.05, 60.0])),
            )
            if rng.random() < 0.1:
                assert scheduler.cancel(str(number))
                cancelled.add(str(number))
        if not coming:
            scheduler.close()
        for event in scheduler.step():
            if event.ended:
                assert event.id not in ended
                ended[event.id] = scheduler.response(event.id)
        clock.now += 0.01
    return ended, cancelled


@pytest.mark.parametrize("batching", [CONTINUOUS, STATIC, dynamic(0.05)], ids=lambda one: one.name)
@pytest.mark.parametrize("preempt", [False, True])
def test_everybody_is_answered_once_and_with_its_own_tokens(engine, clock, batching, preempt):
    """Random traffic through every order: all tokens are those of each request alone."""
    if preempt and batching.together:
        pytest.skip("preemption needs continuous batching")
    rng = np.random.default_rng(7)
    vocabulary = engine.tokenizer.vocab_size
    requests = [
        replace(one, max_tokens=6)
        for one in draw_requests(rng, 80, vocabulary, 100)
        if one.prompt and not (isinstance(one.prompt, str) and "\ud800" in one.prompt)
    ]
    alone = [shown(engine.infer_batch([BatchItem("x", one)]).responses[0]) for one in requests]
    for order in (Fifo(), PriorityClasses(0.3), ShortestFirst(ageing_s=1.0)):
        scheduler = open_one(
            engine, clock, positions=250, batch=5, order=order, batching=batching, preempt=preempt
        )
        ended, cancelled = run_traffic(scheduler, requests, rng, clock)
        assert ended.keys() | cancelled == set(map(str, range(len(requests))))
        assert not ended.keys() & cancelled
        answered = 0
        for name, answer in ended.items():
            late = answer.data is None and answer.error.startswith(DEADLINE_PASSED)
            assert late or shown(answer) == alone[int(name)]
            answered += not late
        assert answered > 30
        counts = scheduler.counts
        assert counts["finished"] == answered
        assert counts["expired"] + counts["cancelled"] + answered == counts["submitted"]
        if preempt and isinstance(order, PriorityClasses):
            assert counts["evicted"]
        assert not scheduler.loop.used_positions


def test_queues_forget_those_who_left(engine, clock):
    """A client that submits and cancels for ever leaves nothing behind."""
    scheduler = open_one(engine, clock, batch=1)
    scheduler.submit(item("first", 10, 50))
    for number in range(2000):
        scheduler.submit(item(f"{number}"), deadline_s=1e9)
        scheduler.cancel(f"{number}")
    for heap in (scheduler._waiting._heap, scheduler._deadlines):
        assert len(heap._entries) < 200


def test_what_a_step_records(engine, clock):
    """Rows, prompt positions, who waits, and the scheduler's own time apart."""
    scheduler = open_one(engine, clock, batch=2)
    assert scheduler.last is None
    for name in "abc":
        scheduler.submit(item(name, 10, 3))
    scheduler.step()
    first = scheduler.last
    assert first
    assert (first.rows, first.prompt_positions, first.waiting, first.running) == (0, 20, 1, 2)
    scheduler.step()
    second = scheduler.last
    assert second
    assert (second.rows, second.prompt_positions) == (2, 0)
    assert second.used_positions == 2 * 12
    assert second.own_s > 0.0
    assert second.loop_s > 0.0


def test_batching_is_data():
    """The three kinds have names; only two of them run a batch together."""
    assert [(one.name, one.together) for one in (CONTINUOUS, STATIC, dynamic())] == [
        ("continuous", False), ("static", True), ("dynamic", True),
    ]  # fmt: skip
    assert Batching("x").max_wait_s == math.inf
