"""One function for every job: cut the input into shards, share them out, keep what is done.

    run_job(TokenizeWork(), "corpus/", "ids/")                        # threads of this process
    run_job(PromptWork(engine="numpy:file"), "prompts.jsonl", "answers/",
            where=Where(workers=2))                                   # two processes, by Dask
    run_job(work, source, out, where=Where(dask="tcp://10.0.0.1:8786"))

The same command again goes on where the last one stopped. A shard that fails is tried again;
one that keeps failing is named at the end, and the others are kept.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import NoReturn, Protocol

from tqdm.auto import tqdm

from batchgauge import extras
from batchgauge.errors import UserError
from batchgauge.jobs.manifest import MANIFEST, Manifest, OutputError, ShardRecord, write_part
from batchgauge.jobs.source import Input, Shard, cut, find_inputs
from batchgauge.jobs.where import Where
from batchgauge.jobs.work import ShardOutput, Work
from batchgauge.lock import locked
from batchgauge.machine.limits import default_threads

SHARD_BYTES = 16 << 20
_PATIENCE_S = 1.0  # between two looks at whether anybody is still at work


@dataclass(frozen=True, slots=True)
class Summary:
    """What a job has come to: its counts, over all runs, and the seconds of this one."""

    out: Path
    parts: int
    documents: int
    errors: int
    tokens: int
    parts_before: int
    seconds: float = field(compare=False)

    def sentence(self, job: str) -> str:
        """The result in one sentence."""
        done = "Answered" if job == "run" else "Tokenized"
        what = "prompts" if job == "run" else "documents"
        bad = f", {self.errors:,} of them errors" if self.errors else ""
        before = f" ({self.parts_before:,} there before)" if self.parts_before else ""
        return (
            f"{done} {self.documents:,} {what}{bad}: {self.tokens:,} tokens in {self.parts:,} "
            f"part{'s' * (self.parts != 1)}{before}, {self.seconds:.1f} s; listed in "
            f"'{self.out / MANIFEST}'."
        )


class Pool(Protocol):
    """Workers that take shards."""

    width: int  # shards that are worked on at once

    def submit(self, shard: Shard) -> Future[ShardRecord]:
        """Have a shard worked on and its files written."""

    def check(self) -> None:
        """Raise UserError where nobody can be at work any more."""


class _Threads:
    """Workers in this process, each with an engine or a tokenizer of its own."""

    def __init__(self, work: Work, folder: Path, threads: int) -> None:
        self.width, each = work.places(threads)
        self._own = threading.local()
        self._first: Callable[[Shard], ShardOutput] | None = work.open(each)  # fails now
        self._open = partial(work.open, each)
        self._folder = folder
        self._lock = threading.Lock()
        self.executor = ThreadPoolExecutor(self.width)

    def submit(self, shard: Shard) -> Future[ShardRecord]:
        """Have one of the threads work on it."""
        return self.executor.submit(self._run, shard)

    def _run(self, shard: Shard) -> ShardRecord:
        if not hasattr(self._own, "worker"):
            with self._lock:
                given, self._first = self._first, None
            self._own.worker = given or self._open()
        return write_part(shard, self._own.worker(shard), self._folder)

    def check(self) -> None:
        """Threads do not vanish."""


def run_job(
    work: Work,
    source: str | Path,
    out: str | Path,
    *,
    where: Where | None = None,
    progress: bool = True,
) -> Summary:
    """Do a job on a file or a folder of files; its output is `out` with its manifest.

    Raises UserError for bad input, for an output folder of another job, and, with exit code
    1, when shards kept failing: what was finished is kept, and the same call goes on.
    """
    where = where or Where()
    began = perf_counter()
    folder = Path(out)
    inputs = find_inputs(Path(source), folder)
    with locked(folder, "job"):
        manifest = Manifest.open(folder, work, inputs)
        before = len(manifest.parts)
        shards = cut(
            inputs, most_bytes=SHARD_BYTES, most_lines=work.most_lines, whole_files=work.whole_files
        )
        with tqdm(  # bytes of input, only for who can see it
            total=sum(item.bytes for item in inputs), unit="B", unit_scale=True, unit_divisor=1000,
            disable=None if progress else True,
        ) as bar:  # fmt: skip
            waiting = _unfinished(shards, manifest, bar)
            if (first := next(waiting, None)) is not None:
                with _pool(work, inputs, folder, where) as pool:
                    done = _Progress(pool, manifest, bar, where.retries)
                    done.run(chain([first], waiting))
                if done.failed:
                    raise _failures(done.failed, manifest)
        manifest.save(complete=True)
    documents, errors, tokens = map(manifest.total, ("documents", "errors", "tokens"))
    parts, seconds = len(manifest.parts), perf_counter() - began
    return Summary(folder, parts, documents, errors, tokens, before, seconds)


def _unfinished(
    shards: Iterable[Shard], manifest: Manifest, bar: tqdm[NoReturn]
) -> Iterator[Shard]:
    for shard in shards:
        if shard.number in manifest.parts:
            bar.update(shard.size)
        else:
            yield shard


@contextmanager
def _pool(work: Work, inputs: Sequence[Input], folder: Path, where: Where) -> Iterator[Pool]:
    if where.workers or where.dask:
        extras.require("Work on several processes", "distributed", "distributed")
        from batchgauge.jobs.dask_pool import dask_pool

        with dask_pool(work, inputs, folder, where) as pool:
            yield pool
        return
    threads = _Threads(work, folder, where.threads or default_threads())
    try:
        yield threads
    finally:
        threads.executor.shutdown(cancel_futures=True)


def _failures(failed: Mapping[int, tuple[Shard, BaseException]], manifest: Manifest) -> UserError:
    """What kept failing, the first with its place and reason."""
    shard, problem = failed[min(failed)]
    reason = str(problem) or type(problem).__name__
    return UserError(
        f"{len(failed)} of {len(failed) + len(manifest.parts)} parts failed, the first from line "
        f"{shard.first} of '{shard.source}': {reason.rstrip('.')}; the same command tries "
        "them again.",
        exit_code=1,
    )


@dataclass
class _Progress:
    """Shards under way, a few at a time, and what became of them."""

    pool: Pool
    manifest: Manifest
    bar: tqdm[NoReturn]
    retries: int
    running: dict[Future[ShardRecord], Shard] = field(default_factory=dict)
    again: deque[Shard] = field(default_factory=deque)
    attempts: Counter[int] = field(default_factory=Counter)
    failed: dict[int, tuple[Shard, BaseException]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.documents = self.manifest.total("documents")

    def run(self, shards: Iterable[Shard]) -> None:
        """Work through the shards. Raises OutputError when nothing more can be written.

        One that failed is tried again at the end and alone: where it takes a worker down, it
        takes no other shard with it.
        """
        try:
            for shard in shards:
                while len(self.running) >= 2 * self.pool.width:
                    self._collect()
                self.running[self.pool.submit(shard)] = shard
            while self.running or self.again:
                if not self.running:
                    shard = self.again.popleft()
                    self.running[self.pool.submit(shard)] = shard
                self._collect()
        finally:
            for future in self.running:
                future.cancel()

    def _collect(self) -> None:
        done, _ = wait(self.running, timeout=_PATIENCE_S, return_when=FIRST_COMPLETED)
        if not done:
            self.pool.check()
        for future in done:
            shard = self.running.pop(future)
            if future.cancelled() or (problem := future.exception()) is not None:
                self._fail(shard, CancelledError() if future.cancelled() else problem)
                continue
            part = future.result()
            self.manifest.add(part)
            self.documents += part.counts["documents"]
            self.bar.set_postfix_str(f"{self.documents:,} documents", refresh=False)
            self.bar.update(shard.size)

    def _fail(self, shard: Shard, problem: BaseException | None) -> None:
        """Have it tried again, unless that was done often enough or can be of no use."""
        assert problem is not None
        if isinstance(problem, OutputError) or not isinstance(problem, Exception | CancelledError):
            raise problem
        self.pool.check()
        self.attempts[shard.number] += 1
        if self.attempts[shard.number] <= self.retries:
            self.again.append(shard)
        else:
            self.failed[shard.number] = (shard, problem)
