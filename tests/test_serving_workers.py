"""Workers and the asyncio engine: killed, poisoned and unfit workers, cancelling, the end."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import threading
from contextlib import contextmanager
from typing import Any

import pytest
from tests.tiny_model import write_tiny_model
from tests.tiny_serving import until

from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.errors import UserError
from batchgauge.request import BatchItem, InferenceBatchRequest
from batchgauge.serving import workers as workers_module
from batchgauge.serving.async_engine import (
    AnswerError,
    AsyncEngine,
    EndPace,
    FullError,
    StoppedError,
)
from batchgauge.serving.messages import Job, JobEvent, News, Ready, State, Unfit
from batchgauge.serving.metrics import Metrics
from batchgauge.serving.server import read_model
from batchgauge.serving.starters import CAN_FORK, Nursery, Spawned, Threads
from batchgauge.serving.worker import Opener, WorkerPlan
from batchgauge.serving.workers import Starter, Workers

forks = pytest.mark.skipif(not CAN_FORK, reason="processes do not fork here")
LONG = InferenceBatchRequest("a", max_tokens=60_000, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with room for answers that take long."""
    return write_tiny_model(tmp_path_factory.mktemp("m") / "tiny.gguf", context_length=65_536)


def mixed(seed, count, most=150):
    """Requests of all kinds and lengths."""
    rng = random.Random(seed)
    return [
        InferenceBatchRequest(
            rng.choice(["hello", "the world", "and a", "in the hello world"]) * rng.randint(1, 6),
            max_tokens=rng.randint(1, most),
            temperature=rng.choice([0.0, 0.8, 1.3]),
            seed=rng.randrange(1000),
            stop=rng.choice([(), (), ("the",), ("e", "in")]),
            ignore_eos=rng.random() < 0.7,
        )
        for _ in range(count)
    ]


def alone(model, requests):
    """What the engine answers to each on its own."""
    engine = BatchInferenceEngine.from_gguf(model)
    found = [engine.infer_batch([BatchItem("a", one)]).responses[0].data for one in requests]
    return [(one.text, one.token_ids, one.finish_reason) for one in found if one is not None]


@contextmanager
def engine_of(model, starter, *, count=1, queue=1000):
    """An engine over so many workers; its loop and the `with` block are the test's."""
    workers = Workers(starter, count)
    engine = AsyncEngine(workers, read_model(str(model))[0], queue)
    try:
        workers.wait_ready(120)
        yield engine
    finally:
        asyncio.run(engine.close())


def whole(pieces):
    """Text, ids and finish of an answer in pieces, of which only the last has a finish."""
    assert all(piece.finish is None for piece in pieces[:-1])
    ids = tuple(i for piece in pieces for i in piece.tokens)
    return "".join(piece.text for piece in pieces), ids, pieces[-1].finish


def plan_of(model, slots=4):
    """What workers are like."""
    return WorkerPlan(model=str(model), slots=slots)


def in_threads(plan):
    """Workers in threads."""
    return Threads(Opener(plan))


WAYS: dict[str, Any] = {"threads": in_threads, "spawned": Spawned, "nursery": Nursery}


@pytest.mark.parametrize("way", [
    "threads", "spawned", pytest.param("nursery", marks=forks)
])  # fmt: skip
def test_answers_are_those_of_the_engine(model, way):
    """However workers are started, and whatever runs beside a request."""
    requests = mixed(1, 40)
    expected = alone(model, requests)

    async def all_at_once(engine):
        return await asyncio.gather(*(engine.answer(one) for one in requests))

    with engine_of(model, WAYS[way](plan_of(model)), count=1 if way == "threads" else 2) as engine:
        assert [whole(pieces) for pieces in asyncio.run(all_at_once(engine))] == expected


@forks
def test_killed_workers_lose_no_request_and_answer_none_twice(model):
    """SIGKILL at random moments, to workers and once to the process that they are forked from."""
    assert kill_while_answering(model, requests=40, rounds=3, seed=3, kills_nursery=True) == 3


@forks
def test_a_server_comes_back_once_its_model_does(model, tmp_path):
    """Where workers and the process they are forked from die, and the model cannot be read."""
    path = shutil.copy(model, tmp_path / "m.gguf")
    away = tmp_path / "away.gguf"
    request = InferenceBatchRequest("hello", max_tokens=5)
    nursery = Nursery(plan_of(path))

    async def ask(engine):
        return await asyncio.wait_for(engine.answer(request), 60)

    with engine_of(path, nursery) as engine:
        path.rename(away)
        workers = engine.workers
        for pid in (nursery.pid, *workers.pids):
            os.kill(pid, signal.SIGKILL)
        until(lambda: workers.restarts > 1)
        away.rename(path)
        assert [whole(asyncio.run(ask(engine)))] == alone(model, [request])


@pytest.mark.soak
@forks
def test_workers_killed_at_twenty_random_moments(model):
    """200 requests each time; all 4,000 answered once, with the tokens of a run alone."""
    assert kill_while_answering(model, requests=200, rounds=20, seed=5) == 20


def kill_while_answering(model, *, requests, rounds, seed, kills_nursery=False):
    """Answer requests again and again, and kill a worker each time, at a random moment.

    How many kills there were while requests were under way. Fails unless each is answered once,
    as it is alone.
    """
    rng = random.Random(seed)
    asked = mixed(seed, requests, most=300)
    expected = alone(model, asked)
    nursery = Nursery(plan_of(model))

    async def ask(engine, number, answered):
        assert whole(await engine.answer(asked[number])) == expected[number]
        answered.append(number)

    async def one_round(engine, answered):
        moment = rng.randrange(requests - requests // 8)

        async def kill():
            while len(answered) < moment or not engine.workers.pids:
                await asyncio.sleep(0.001)
            victims = engine.workers.pids
            if kills_nursery:
                victims = rng.choice([victims, [nursery.pid]])
            os.kill(rng.choice(victims), signal.SIGKILL)
            return len(answered) < requests

        killing = asyncio.create_task(kill())
        await asyncio.gather(*(ask(engine, number, answered) for number in range(requests)))
        return await killing

    async def all_rounds(engine):
        kills = 0
        for _ in range(rounds):
            answered: list[int] = []
            kills += await one_round(engine, answered)
            assert sorted(answered) == list(range(requests))
        return kills

    with engine_of(model, nursery, count=2) as engine:
        return asyncio.run(all_rounds(engine))


def test_pieces_come_as_they_are_made(model):
    """The first piece long before the last; who stops listening gives the room back."""

    async def listen(engine):
        seen = 0
        async for piece in engine.stream(LONG):
            seen += len(piece.tokens)
            if seen > 20:
                break
        return seen

    with engine_of(model, in_threads(plan_of(model))) as engine:
        assert 20 < asyncio.run(listen(engine)) < 1000
        until(lambda: engine.state().running == 0)


def test_cancelled_tasks_give_their_room_back(model):
    """Also those that wait, and those whose prompt is still being read."""

    async def cancel(engine):
        tasks = [asyncio.create_task(engine.answer(LONG)) for _ in range(12)]
        await asyncio.sleep(0)
        for task in tasks[8:]:
            task.cancel()  # before anything was read
        while engine.state().waiting < 4:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found)
        return whole(await engine.answer(short))

    short = InferenceBatchRequest("hello", max_tokens=5)
    with engine_of(model, in_threads(plan_of(model))) as engine:
        assert [asyncio.run(cancel(engine))] == alone(model, [short])
        until(lambda: engine.state()[:2] == (0, 0))


def test_a_full_engine_refuses(model):
    """One error each, at once; the others go on."""

    async def crowd(engine):
        tasks = [asyncio.create_task(engine.answer(LONG)) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(FullError, match="3 requests under way or waiting") as problem:
            await engine.answer(LONG)
        assert 1 <= problem.value.retry_after_s <= 60
        for task in tasks:
            task.cancel()

    with engine_of(model, in_threads(plan_of(model, slots=1)), queue=2) as engine:
        asyncio.run(crowd(engine))


def test_the_pace_is_that_of_ends_without_idle_time():
    """One end a second, or ten, also after a pause; one that takes longer counts already."""
    for each_s in (1.0, 10.0):
        pace, now = EndPace(), 500.0
        for pause_s in (0.0, 3600.0):
            now += pause_s
            pace.begin(now)
            for _ in range(30):
                now += each_s
                pace.end(now)
            assert pace.each_s(now) == pytest.approx(each_s)
        assert pace.each_s(now + 4 * each_s) == pytest.approx(4 * each_s)
    new = EndPace()
    new.begin(7.0)
    assert new.each_s(9.0) == 2.0


def test_what_is_not_finished_in_time_is_handed_back(model):
    """Close waits for so long; then who waits gets an error that has the request."""

    async def end(engine):
        slow = asyncio.create_task(engine.answer(LONG))
        quick = engine.stream(InferenceBatchRequest("hello", max_tokens=50))
        pieces = [await anext(quick)]  # it is under way until its last piece is taken
        closing = asyncio.create_task(engine.close(grace_s=2.0))
        await asyncio.sleep(0)
        with pytest.raises(StoppedError) as refused:
            await engine.answer(LONG)
        assert refused.value.request is None
        pieces += [piece async for piece in quick]
        with pytest.raises(StoppedError) as handed_back:
            await slow
        assert handed_back.value.request == LONG
        await closing
        return pieces

    with engine_of(model, in_threads(plan_of(model))) as engine:
        assert whole(asyncio.run(end(engine)))[1]


def test_a_bad_prompt_is_its_requests_own(model):
    """A sentence, and nothing of it is left."""

    async def ask(engine, request):
        return await engine.answer(request)

    with engine_of(model, in_threads(plan_of(model))) as engine:
        for request, words in (
            (InferenceBatchRequest("", max_tokens=3), "prompt is empty"),
            (InferenceBatchRequest((10**6,), max_tokens=3), "unknown token id"),
        ):
            with pytest.raises(UserError, match=words):
                asyncio.run(ask(engine, request))
        until(lambda: engine.state()[:2] == (0, 0))


@pytest.mark.parametrize("way", ["threads", "spawned", pytest.param("nursery", marks=forks)])
def test_workers_without_a_model_say_why(tmp_path, way):
    """A sentence, at once, instead of starts without end."""
    workers = Workers(WAYS[way](plan_of(tmp_path / "nix.gguf")))
    reading = threading.Thread(target=lambda: list(workers.events()))
    reading.start()
    try:
        with pytest.raises(UserError, match=r"nix\.gguf"):
            workers.wait_ready(60)
    finally:
        workers.close()
        reading.join()


class Scripted(Starter):
    """Workers in threads whose news a script makes of each job, for what real ones do not do."""

    def __init__(self, script, *, ready=True, unfit=()):
        self.script, self.ready, self.unfit, self.started = script, ready, unfit, 0

    def start(self, connection):
        """Begin one."""
        self.started += 1
        threading.Thread(target=self._work, args=(connection, self.started), daemon=True).start()

    def _work(self, connection, number):
        with connection:
            if not self.ready:
                return
            if number in self.unfit:
                connection.send(Unfit("No memory."))
                return
            connection.send(Ready(number, 4))
            try:
                while True:
                    job = connection.recv()
                    for events in self.script(number, job) if isinstance(job, Job) else ():
                        if events is None:
                            return
                        connection.send(News(events, State()))
            except (EOFError, OSError):
                return

    def close(self):
        """Nothing to do."""


def events_of(workers):
    """All events until the first that is the last of its request."""
    found = []
    for events in workers.events():
        found += events
        if events and events[-1].is_last:
            workers.close()
    return found


def test_a_second_run_gives_no_token_twice():
    """What was given before the worker died is not given again."""

    def script(number, job):
        yield [JobEvent(job.id, (5,))]
        yield [JobEvent(job.id, (6,))]
        if number < 3:
            yield None
        yield [JobEvent(job.id, (7, 8))]
        yield [JobEvent(job.id, (), "length")]

    workers = Workers(Scripted(script))
    workers.submit(Job("a", InferenceBatchRequest((1,))))
    assert events_of(workers) == [
        JobEvent("a", (5,)), JobEvent("a", (6,)), JobEvent("a", (7, 8)),
        JobEvent("a", (), "length"),
    ]  # fmt: skip
    assert workers.restarts == 2


def test_a_second_run_that_differs_fails():
    """Rather than a mixture of two answers."""

    def differing(number, job):
        if number == 1:
            yield from ([JobEvent(job.id, (5,))], None)
        yield [JobEvent(job.id, (4,))]

    workers = Workers(Scripted(differing))
    workers.submit(Job("a", InferenceBatchRequest((1,))))
    (first, second) = events_of(workers)
    assert first == JobEvent("a", (5,))
    assert second.failing == "failed"


def test_a_request_that_ends_every_worker_fails(monkeypatch):
    """After so many runs it is to blame."""
    monkeypatch.setattr(workers_module, "MOST_RUNS", 3)
    monkeypatch.setattr(workers_module, "PAUSE_S", 0.001)
    workers = Workers(Scripted(lambda _number, _job: [None]))
    workers.submit(Job("a", InferenceBatchRequest((1,))))
    (event,) = events_of(workers)
    assert event.failing == "failed"
    assert "3 workers ended" in event.error


def first_end(workers, name):
    """Submit a job, and read on until it is over."""
    workers.submit(Job(name, InferenceBatchRequest((1,))))
    return next(e for events in workers.events() for e in events if e.id == name and e.is_last)


def test_workers_that_never_are_ready_are_given_up(monkeypatch):
    """And what waits for one is told, as is who comes later."""
    monkeypatch.setattr(workers_module, "PAUSE_S", 0.001)
    starter = Scripted(None, ready=False)
    workers = Workers(starter)
    for name in "ab":
        assert first_end(workers, name) == JobEvent(
            name, failing="failed", error="All workers ended."
        )
    assert starter.started == workers_module.MOST_STILLBORN
    workers.close()


def test_an_unfit_worker_is_final_only_where_none_ever_was_ready(monkeypatch):
    """One of a kind that was ready before is followed by another; else all that come fail."""
    monkeypatch.setattr(workers_module, "PAUSE_S", 0.001)

    def script(number, job):
        yield [JobEvent(job.id, (number,), "length")]
        yield None

    starter = Scripted(script, unfit={2, 3})
    workers = Workers(starter)
    assert [first_end(workers, name).tokens for name in "abc"] == [(1,), (4,), (5,)]
    workers.close()
    starter = Scripted(script, unfit={1})
    workers = Workers(starter)
    for name in "ab":
        assert first_end(workers, name) == JobEvent(name, failing="failed", error="No memory.")
    assert starter.started == 1
    workers.close()


def test_a_server_without_workers_fails_its_requests(model, monkeypatch):
    """It is not the request's fault, and it was not cancelled."""
    monkeypatch.setattr(workers_module, "PAUSE_S", 0.001)
    told = Told()

    async def ask(workers):
        engine = AsyncEngine(workers, read_model(str(model))[0], 9, told)
        for prompt in ((5,), "hello"):
            with pytest.raises(AnswerError, match="No memory") as problem:
                await engine.answer(InferenceBatchRequest(prompt))
            assert problem.value.failing == "failed"
        with pytest.raises(UserError, match="prompt is empty"):
            await engine.answer(InferenceBatchRequest(""))
        await engine.close()

    asyncio.run(ask(Workers(Scripted(None, unfit={1}))))
    assert told.ends == ["failed", "failed", "invalid"]


class Told(Metrics):
    """A watch that keeps how requests ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []

    def ended(self, how: str, seconds: float, prompt_tokens: int, tokens: int) -> None:
        """Note it."""
        super().ended(how, seconds, prompt_tokens, tokens)
        self.ends.append(how)


def test_a_failed_request_is_an_error_for_who_waits(model):
    """With whose fault it is."""

    def script(_number, job):
        yield [JobEvent(job.id, failing="deadline", error="It took too long.")]

    async def ask(engine):
        return await engine.answer(InferenceBatchRequest((5,)))

    with (
        engine_of(model, Scripted(script)) as engine,
        pytest.raises(AnswerError, match="too long") as problem,
    ):
        asyncio.run(ask(engine))
    assert problem.value.failing == "deadline"
