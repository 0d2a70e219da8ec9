"""Jobs whose processes are killed, whose disk fills up, and whose machines share no files.

Network namespaces and small disks need root; elsewhere those tests are skipped.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from tests.conftest import PROJECT
from tests.test_jobs import ECHO, content, started, write_prompts

from batchgauge.errors import UserError
from batchgauge.jobs import TokenizeWork, Where, run_job
from batchgauge.workload import texts

pytest.importorskip("distributed")

MOMENTS = 20
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}"}

root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes namespaces and disks"
)


def write_corpus(folder: Path, files: int) -> Path:
    """So many files of prose, a part each, where lines are few."""
    folder.mkdir()
    for number in range(files):
        lines = (text.replace("\n", " ") for text in texts("prose", 300, 40, seed=number))
        (folder / f"{number:03d}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def kill_at(pid: int, after_s: float) -> bool:
    """End a process without warning after a time; whether it was there."""
    time.sleep(after_s)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


@pytest.mark.parametrize("moments", [2, pytest.param(MOMENTS, marks=pytest.mark.soak)])
def test_a_driver_killed_at_random_moments_leaves_the_bytes_of_an_undisturbed_one(
    tmp_path, moments
):
    """From its first import to its last line; what it left behind is gone on with."""
    corpus = write_corpus(tmp_path / "corpus", 150)
    begin = time.monotonic()
    whole = started("tokenize", str(corpus), "--out", str(tmp_path / "a"))
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said.decode()
    lasts_s = time.monotonic() - begin
    rng, out = random.Random(0), tmp_path / "b"
    in_time = 0
    for moment in range(moments):
        process = started("tokenize", str(corpus), "--out", str(out))
        in_time += kill_at(process.pid, rng.uniform(0, lasts_s)) and process.wait(60) != 0
        process.communicate(timeout=60)
        if moment % 2 and out.exists() and (out / "manifest.json").exists():
            final = run_job(TokenizeWork(), corpus, out, progress=False)
            assert final.documents == 150 * 40
            assert content(out) == content(tmp_path / "a")
            shutil.rmtree(out)
    assert in_time >= moments // 4
    run_job(TokenizeWork(), corpus, out, progress=False)
    assert content(out) == content(tmp_path / "a")


@contextmanager
def cluster(folder: Path, hosts: tuple[tuple[list[str], str], ...]) -> Iterator[str]:
    """A scheduler and one worker for each (command before Python, address); the first has both."""
    before, host = hosts[0]
    with ExitStack() as stack:

        def begin(*arguments: str) -> None:
            with (folder / f"log-{time.monotonic_ns()}").open("wb") as log:
                process = subprocess.Popen(
                    arguments, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log
                )

            def end() -> None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    with suppress(psutil.Error):
                        child.kill()
                process.kill()
                process.wait()

            stack.callback(end)

        name = folder / "scheduler.json"
        python, where = sys.executable, ["--scheduler-file", str(name)]
        begin(*before, python, "-m", "distributed.cli.dask_scheduler", "--host", host, "--port",
              "0", "--no-dashboard", *where)  # fmt: skip
        while not name.exists():
            time.sleep(0.05)
        address = str(json.loads(name.read_text())["address"])
        for prefix, own in hosts:
            begin(*prefix, python, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1",
                  "--host", own, "--local-directory", str(folder), "--no-dashboard")  # fmt: skip
        logs = list(folder.glob("log-*"))
        until = time.monotonic() + 60
        while sum(b"Registered to" in log.read_bytes() for log in logs) < len(hosts):
            assert time.monotonic() < until, [log.read_text() for log in logs]
            time.sleep(0.1)
        yield address


def process_ids(client) -> list[int]:
    """Of both workers; one that was just killed is waited for until another took its place."""
    while True:
        client.wait_for_workers(2, timeout=60)
        with suppress(OSError):
            return sorted(client.run(os.getpid).values())
        time.sleep(0.2)


@pytest.mark.soak
def test_workers_killed_at_random_moments_leave_the_bytes_of_an_undisturbed_job(tmp_path):
    """One of two, again and again, while the job runs."""
    from distributed import Client

    path = write_prompts(tmp_path / "p.jsonl", [f"wait {i}" for i in range(300)])
    run_job(ECHO, path, tmp_path / "a", progress=False)
    rng = random.Random(1)
    here: tuple[list[str], str] = ([], "127.0.0.1")
    killed = 0
    with cluster(tmp_path, (here, here)) as address, Client(address) as client:
        for number in range(MOMENTS):
            victim = rng.choice(process_ids(client))
            out = tmp_path / f"b{number}"
            killer = threading.Thread(target=kill_at, args=(victim, rng.uniform(0, 4)))
            killer.start()
            summary = run_job(ECHO, path, out, where=Where(dask=address), progress=False)
            running = killer.is_alive()
            killer.join()
            killed += not running
            assert summary.documents == 300
            assert content(out) == content(tmp_path / "a")
            shutil.rmtree(out)
    assert killed >= MOMENTS // 4


@root
@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_sentence_and_the_job_goes_on_when_there_is_room(tmp_path):
    """A real one, of little more than a megabyte: no part is half there."""
    corpus = write_corpus(tmp_path / "corpus", 150)
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "none", str(small)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(UserError, match="cannot be written: No space left on device"):
            run_job(TokenizeWork(), corpus, small / "out", progress=False)
        assert not list((small / "out").glob(".*partial"))
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        run_job(TokenizeWork(), corpus, small / "out", progress=False)
        run_job(TokenizeWork(), corpus, tmp_path / "a", progress=False)
        assert content(small / "out") == content(tmp_path / "a")
    finally:
        subprocess.run(["umount", small], check=True)


@contextmanager
def two_hosts(hidden: Path) -> Iterator[tuple[tuple[list[str], str], ...]]:
    """Two network namespaces with a cable between them; the second does not see a folder."""
    names = [f"bg{os.getpid()}{end}" for end in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "va", "netns", names[0], "type", "veth", "peer", "vb", "netns", names[1])
        for name, end, number in zip(names, ("va", "vb"), (1, 2), strict=True):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
        within = [["ip", "netns", "exec", name] for name in names]
        blind = f'mount -t tmpfs none "{hidden}" && exec "$@"'
        within[1] += ["unshare", "-m", "sh", "-c", blind, "sh"]
        yield (within[0], "10.77.0.1"), (within[1], "10.77.0.2")
    except (OSError, subprocess.CalledProcessError) as problem:
        pytest.skip(f"no network namespace can be made here: {problem}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@root
@pytest.mark.slow
def test_two_hosts_that_share_no_files_leave_the_same_bytes(tmp_path):
    """Input and output travel to the one that sees neither folder; the command is the same."""
    data = tmp_path / "data"
    data.mkdir()
    corpus = write_corpus(data / "corpus", 40)
    run_job(TokenizeWork(), corpus, data / "a", progress=False)
    logs = tmp_path / "logs"
    logs.mkdir()
    with two_hosts(data) as hosts, cluster(logs, hosts) as address:
        within = hosts[0][0]
        command = [*within, sys.executable, "-m", "batchgauge", "tokenize", str(corpus)]
        done = subprocess.run(
            [*command, "--out", str(data / "b"), "--dask", address],
            env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        workers = subprocess.run(
            [*within, sys.executable, "-c", _WORKERS, address],
            env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
    assert "10.77.0.1" in workers
    assert "10.77.0.2" in workers
    assert content(data / "a") == content(data / "b")


_WORKERS = "import sys, distributed as d; print(d.Client(sys.argv[1]).scheduler_info()['workers'])"


def without_the_package(folder: Path) -> list[str]:
    """What to write before Python so that it has all packages that are here, but not this one.

    The interpreter that the environment was made from, and links to the environment's packages.
    """
    folder.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "batchgauge" not in package.name and package.suffix != ".pth":
            (folder / package.name).symlink_to(package)
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    return ["sh", "-c", f'shift; PYTHONPATH={folder} exec {python} "$@"', "sh"]


@pytest.mark.slow
def test_a_worker_without_the_package_is_one_sentence(tmp_path):
    """It runs Dask, but has neither this package nor the engine."""
    path = write_prompts(tmp_path / "p.jsonl", ["a"])
    bare = without_the_package(tmp_path / "packages")
    sentence = "has batchgauge not at all, this process"
    with (
        cluster(tmp_path, ((bare, "127.0.0.1"),)) as address,
        pytest.raises(UserError, match=sentence),
    ):
        run_job(ECHO, path, tmp_path / "out", where=Where(dask=address), progress=False)


def test_a_folder_that_cannot_be_written_is_no_worker_that_ended(tmp_path, monkeypatch):
    """What Dask says of a worker that is gone is tried again, an error of a file is not."""
    from distributed.comm import CommClosedError

    from batchgauge.jobs import dask_pool

    calls: list[bool] = []
    monkeypatch.setattr(dask_pool, "sleep", lambda _s: None)

    def fails(*problems):
        left = list(problems)

        def call():
            calls.append(True)
            if left:
                raise left.pop(0)
            return "done"

        return call

    unreached = OSError("Timed out trying to connect to tcp://10.0.0.1:1")
    assert dask_pool._in_time(fails(CommClosedError("gone"), TimeoutError(), unreached)) == "done"
    assert len(calls) == 4
    with pytest.raises(UserError, match=r"end as the job begins \(in a worker: closed\)"):
        dask_pool._in_time(fails(*[CommClosedError("in a worker: closed")] * 5))
    del calls[:]
    with pytest.raises(OSError, match="No space"):
        dask_pool._in_time(fails(OSError(errno.ENOSPC, "No space left on device")))
    assert len(calls) == 1
    with pytest.raises(UserError, match=r"'.*gone' cannot be written: No such file"):
        dask_pool._shared(None, {}, tmp_path / "gone")
