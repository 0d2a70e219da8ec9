"""`batchgauge serve` as a user starts and ends it, and what it says to bad options."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
from tests.tiny_model import write_tiny_model

httpx = pytest.importorskip("httpx")
for name in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model."""
    return write_tiny_model(tmp_path_factory.mktemp("m") / "tiny.gguf", context_length=65_536)


def command(*arguments):
    """`batchgauge serve` with these arguments."""
    return [sys.executable, "-m", "batchgauge", "serve", *map(str, arguments)]


@contextmanager
def started(*arguments, **environment):
    """A server process and its address, inside the `with` block."""
    with subprocess.Popen(
        command(*arguments, "--port", 0), stdout=subprocess.PIPE, text=True,
        env=os.environ | environment,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "it did not start"
            yield process, line.split(" on ")[1].split(",")[0]
        finally:
            process.kill()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_it_serves_until_it_is_told_to_end(model):
    """Two worker processes; SIGTERM lets what is under way finish, and nothing is left."""
    options = ("--workers", 2, "--slots", 2, "--threads", 1, "--name", "mine", "--policy",
               "priority", "--budget-ms", 1000)  # fmt: skip
    with started(model, *options, BATCHGAUGE_API_KEY="sesame") as (process, url):
        headers = {"Authorization": "Bearer sesame"}
        assert httpx.get(f"{url}/models").status_code == 401
        (card,) = httpx.get(f"{url}/models", headers=headers).json()["data"]
        assert (card["id"], card["max_model_len"]) == ("mine", 65_536)
        said = {
            "model": "mine", "prompt": "a", "stream": True, "max_tokens": 400, "ignore_eos": True,
            "priority": 3,
        }  # fmt: skip
        with httpx.stream(
            "POST", f"{url}/completions", json=said, headers=headers, timeout=60
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        process.wait(60)
    assert process.returncode in {0, -signal.SIGTERM}


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=pytest.mark.soak)])
def test_three_times_what_it_can(model, seconds):
    """Refusals say when to come again, the others are answered, memory stays, and it recovers."""
    with started(model, "--slots", 4, "--queue", 8, "--threads", 1) as (process, url):
        found = asyncio.run(overload(process.pid, f"{url}/completions", seconds))
    assert found["refused"] > 0.3 * found["sent"], found
    assert found["answered"] + found["refused"] == found["sent"], found
    assert found["grown_mb"] < 40, found
    assert found["recovered_s"] < 10, found


async def overload(pid, url, seconds):
    """Send three times as many requests as are answered when each waits for the one before."""
    said = {"model": "tiny", "prompt": "hello", "max_tokens": 150, "ignore_eos": True}
    found = {"sent": 0, "answered": 0, "refused": 0}

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=500)) as client:

        async def ask():
            reply = await client.post(url, json=said)
            if reply.status_code == 429:
                assert 1 <= int(reply.headers["retry-after"]) <= 60
                return "refused"
            assert reply.status_code == 200, reply.text
            assert reply.json()["usage"]["completion_tokens"] == 150
            return "answered"

        async def in_turn(until):
            done = 0
            while time.monotonic() < until:
                done += await ask() == "answered"
            return done

        for run_s in (1.0, 2.0):  # the first pays for pages and threads
            until = time.monotonic() + run_s
            capacity = sum(await asyncio.gather(*(in_turn(until) for _ in range(8)))) / run_s
        before = resident_mb(pid)
        began = time.monotonic()
        tasks: list[asyncio.Task[str]] = []
        while (now := time.monotonic() - began) < seconds:
            due = int(3 * capacity * now) - len(tasks)
            tasks += [asyncio.create_task(ask()) for _ in range(due)]
            await asyncio.sleep(0.005)
        after = time.monotonic()
        for how in await asyncio.gather(*tasks):
            found[how] += 1
        found["sent"] = len(tasks)
        while await ask() != "answered":
            await asyncio.sleep(0.01)
        recovered_s = time.monotonic() - after
        grown_mb = resident_mb(pid) - before
    return found | {"capacity": capacity, "recovered_s": recovered_s, "grown_mb": grown_mb}


def resident_mb(pid):
    """Memory of a process and those that it started."""
    process = psutil.Process(pid)
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) / 1e6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--slots", "0"), "slots is '0'; expected auto or a whole number from 1 to 100"),
        (("--slots", "many"), "slots is 'many'"),
        (("--weights", "int3", "--slots", "1"), "weights is 'int3'"),
        (("--threads", "9999", "--slots", "1"), "threads is 9999"),
        (("--host", "nowhere.invalid"), "cannot listen on 'nowhere.invalid'"),
        (("--queue", "-1"), "Invalid value for '--queue'"),
        (("--policy", "lifo"), "Invalid value for '--policy'"),
    ],
)
def test_bad_options_are_one_sentence(model, options, words):
    """And exit code 2, whether the server or its worker finds out."""
    done = subprocess.run(
        command(model, "--port", 0, *options), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_none(tmp_path):
    """Named in the sentence."""
    done = subprocess.run(
        command(tmp_path / "nix.gguf"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "nix.gguf" in done.stderr
    assert "Traceback" not in done.stderr
