"""Workers of `dask.distributed`, on this machine or on many; imported only when asked for.

A worker plugin opens the engine or the tokenizer once a worker, on its own machine and with
its own threads; the model is never sent. Where every worker sees the same input and output
files (one machine, a shared file system), shards are read and written where they are worked
on; otherwise their bytes travel, and this process writes.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

import dask
from distributed import Client, LocalCluster, Worker, WorkerPlugin, get_worker
from tqdm.auto import tqdm

from batchgauge import extras
from batchgauge.dask_client import check_versions, connected
from batchgauge.errors import UserError
from batchgauge.jobs.manifest import MANIFEST, ShardRecord, write_part
from batchgauge.jobs.source import Input, Shard, loaded
from batchgauge.jobs.where import Where
from batchgauge.jobs.work import ShardOutput, Work
from batchgauge.machine.limits import performance_cores
from batchgauge.text import one_line

_LOCAL = {  # a cluster for one job on one machine: no core's time is for watching it
    "distributed.scheduler.allowed-failures": 0,  # tried again by `run_job`
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.interval": "1s",
}
T = TypeVar("T")
_ABSENT_S = 60.0  # so long without a worker, and the job stops


@dataclass(eq=False)
class Loaded(WorkerPlugin):  # type: ignore[misc, unused-ignore]  # untyped
    """A worker's engine or tokenizer, opened when the worker starts, used by one task at a time.

    `folder` is the output folder where all workers see it, and `files` what one that joins later
    must see as well: it would write parts where nobody looks.
    """

    work: Work
    threads: int
    folder: Path | None
    files: Mapping[str, int]

    def setup(self, worker: Worker) -> None:
        """Open it with the worker's threads, unless a number of them was asked for.

        Raises UserError where that cannot be.
        """
        if self.folder is not None and not _sees(self.files):
            raise UserError(f"the worker does not see the input and the folder '{self.folder}'")
        self.lock = threading.Lock()
        self.run = self.work.open(self.threads or worker.state.nthreads)

    def __getstate__(self) -> dict[str, Any]:
        return {n: v for n, v in self.__dict__.items() if n not in {"lock", "run"}}


def _work_on(name: str, shard: Shard) -> ShardRecord | ShardOutput:
    """What a task does: the shard's part where the folder is seen, else its bytes."""
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, Loaded)
    with plugin.lock:
        outcome = plugin.run(shard)
    return outcome if plugin.folder is None else write_part(shard, outcome, plugin.folder)


def _sees(files: Mapping[str, int]) -> bool:
    """Whether this process has files of these names and sizes."""
    with suppress(OSError):
        return all(Path(name).stat().st_size == size for name, size in files.items())
    return False


@dataclass
class DaskPool:
    """A client's workers as a pool, or those at some addresses.

    `name` is that of the plugin; in `shared` folders workers read and write for themselves.
    """

    client: Client
    name: str
    folder: Path
    shared: bool
    workers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        self._executor = self.client.get_executor(pure=False, workers=self.workers)
        self._seen = monotonic()
        every = self.client.scheduler_info(n_workers=-1)["workers"]
        self.width = max(1, len(self.workers or every))

    def on(self, workers: Sequence[str]) -> DaskPool:
        """The same pool on some of its workers, by their addresses."""
        return replace(self, workers=workers)

    def submit(self, shard: Shard) -> Future[ShardRecord]:
        """Have a worker work on it."""
        given = shard if self.shared else loaded(shard)
        future: Future[Any] = self._executor.submit(_work_on, self.name, given)
        written = partial(write_part, shard, folder=self.folder)
        return future if self.shared else _then(future, written)

    def check(self) -> None:
        """Raise UserError when the scheduler is gone, or has had no worker for a minute."""
        if self.client.status not in {"running", "connecting"}:
            raise UserError("The Dask scheduler is gone; the same command goes on.", exit_code=1)
        if self.client.scheduler_info(n_workers=-1)["workers"]:
            self._seen = monotonic()
        elif monotonic() - self._seen > _ABSENT_S:
            raise UserError(
                f"No Dask worker has been there for {_ABSENT_S:.0f} s; the same command goes on.",
                exit_code=1,
            )


def _then(
    future: Future[ShardOutput], last: Callable[[ShardOutput], ShardRecord]
) -> Future[ShardRecord]:
    """A future of what `last` makes of the other future's result."""
    following: Future[ShardRecord] = Future()

    def done(finished: Future[ShardOutput]) -> None:
        if finished.cancelled():
            following.cancel()
            return
        try:
            following.set_result(last(finished.result()))
        except BaseException as problem:  # noqa: BLE001 - handed on
            following.set_exception(problem)

    future.add_done_callback(done)
    return following


@contextmanager
def dask_pool(
    work: Work, inputs: Sequence[Input], folder: Path, where: Where
) -> Iterator[DaskPool]:
    """The workers of a scheduler, or new ones on this machine, with everything loaded.

    Raises UserError for a scheduler that does not answer, has no worker, or runs other
    versions, and for workers that lack the package or the model.
    """
    with client_of(where) as client:
        check_versions(client)
        name = f"batchgauge-{uuid.uuid4().hex}"
        files = {str(i.path.resolve()): i.bytes for i in (*inputs[:20], *inputs[-20:])}
        manifest = (folder / MANIFEST).resolve()
        files[str(manifest)] = manifest.stat().st_size
        shared = _in_time(partial(_shared, client, files, folder))
        plugin = Loaded(work, where.threads, folder.resolve() if shared else None, files)
        plugin.name = name
        try:
            _in_time(partial(client.register_plugin, plugin, name=name))
        except UserError as error:
            raise UserError(f"A Dask worker cannot begin: {error}") from None
        except (ImportError, AttributeError, OSError) as error:
            raise UserError(
                f"A Dask worker cannot begin: {error}; expected batchgauge installed there, and "
                "what the engine needs."
            ) from None
        try:
            if sys.stderr.isatty():
                link = client.dashboard_link or "none, as bokeh is not installed"
                tqdm.write(f"Dask's dashboard: {link}", file=sys.stderr)
            yield DaskPool(client, name, folder, shared)
        finally:
            with suppress(Exception):  # the scheduler may be gone
                client.unregister_worker_plugin(name)


@contextmanager
def client_of(where: Where) -> Iterator[Client]:
    """A client of the scheduler asked for, or of new worker processes on this machine."""
    for name in ("distributed", "distributed.client"):  # whose levels Dask's configuration sets
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if where.dask:
        with connected(where.dask) as client:
            yield client
        return
    threads = where.threads or max(1, performance_cores() // where.workers)
    with (
        dask.config.set(_LOCAL),
        tempfile.TemporaryDirectory(prefix="batchgauge-dask-") as scratch,
        LocalCluster(
            n_workers=where.workers,
            threads_per_worker=threads,
            dashboard_address=None if extras.missing("bokeh") else "127.0.0.1:0",
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _in_time(call: Callable[[], T]) -> T:
    """What a call to all workers gives; again, where one of them ended meanwhile.

    Raises UserError where that goes on. An error with a number is one of files and is
    raised; Dask's own, of a worker that cannot be reached, has none.
    """
    said = ""
    for _ in range(5):
        try:
            return call()
        except OSError as problem:
            if problem.errno is not None and not isinstance(
                problem, ConnectionError | TimeoutError
            ):
                raise
            said = one_line(problem) or type(problem).__name__
        sleep(1.0)
    raise UserError(
        f"Dask workers end as the job begins ({said[:120]}); expected some that stay.", exit_code=1
    )


def _shared(client: Client, files: Mapping[str, int], folder: Path) -> bool:
    """Whether all workers see the input and what is written to the output folder."""
    with ExitStack() as stack:
        try:
            probe = stack.enter_context(
                tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-", buffering=0)
            )
            probe.write(uuid.uuid4().bytes)
        except OSError as error:
            raise UserError(
                f"The folder '{folder}' cannot be written: {error.strerror or error}.", exit_code=1
            ) from None
        probed = {**files, str(Path(probe.name).resolve()): 16}
        return all(client.run(_sees, probed).values())
