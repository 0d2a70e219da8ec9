"""What the job layer really costs, on worker processes of this machine.

Two Dask workers of one thread each, started anew for each block: a process can be slow for its
whole life. What they do is timed as parts of a job, with the model loaded, except where loading
is the question. Whatever is compared is interleaved in blocks, each on parts of its own.

Left out: more than one machine. What is said of more than two workers is extrapolated.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from threadpoolctl import threadpool_limits

from batchgauge.experiments.context import Context
from batchgauge.experiments.roadmap import jobs_results as names
from batchgauge.jobs import PromptWork, TokenizeWork, Where, run_job
from batchgauge.jobs.manifest import MANIFEST, PROGRESS
from batchgauge.jobs.prompts import PromptWorker
from batchgauge.jobs.run import SHARD_BYTES, Pool
from batchgauge.jobs.source import Input, Shard, cut, find_inputs
from batchgauge.jobs.work import ShardOutput
from batchgauge.protocols import Engine
from batchgauge.request import BatchItem, InferenceBatchRequest
from batchgauge.workload import texts

if TYPE_CHECKING:
    from distributed import Client

Row = tuple[str, str, int, float]  # measure, way, block, value

_TEXT_PARTS = 4  # different ones
_PROMPTS = 8  # prompts of a part, and in a batch
_PROMPT = 24  # characters of a prompt


@dataclass(frozen=True)
class Amounts:
    """How much of each is done.

    empty_tasks, blocks, repeats  empty tasks; blocks of one and two workers; pairs in process
    starts                        of workers; blocks are shared out among them
    text_parts, prompt_parts      parts for each worker in a block, alone and both at once
    lines                         documents of a part; 8,192 are the 16 MiB of `SHARD_BYTES`
    tokens                        generated for a prompt
    sizes                         fixed batch sizes
    """

    empty_tasks: int
    blocks: int
    starts: int
    repeats: int
    text_parts: int
    lines: int
    prompt_parts: int
    tokens: int
    sizes: tuple[int, ...]


AMOUNTS = {
    "smoke": Amounts(16, 2, 1, 2, 1, 1024, 1, 2, (1, 4)),
    "default": Amounts(100, 6, 6, 6, 2, 8192, 4, 8, (1, 4, 8, 16, 32)),
    "thorough": Amounts(1000, 12, 12, 16, 4, 8192, 4, 16, (1, 2, 4, 8, 16, 32)),
}


@dataclass(frozen=True, slots=True)
class SlowedTokenizing(TokenizeWork):
    """The same job, whose worker of one process takes `factor` times as long: it sleeps."""

    process: int = 0
    factor: float = 1.0

    def open(self, threads: int) -> Callable[[Shard], ShardOutput]:
        """The tokenizer, loaded."""
        run = TokenizeWork.open(self, threads)
        if os.getpid() != self.process:
            return run

        def slowed(shard: Shard) -> ShardOutput:
            begin = time.perf_counter()
            output = run(shard)
            time.sleep((self.factor - 1.0) * (time.perf_counter() - begin))
            return output

        return slowed


@dataclass(frozen=True, slots=True)
class LoadedPrompts(PromptWork):
    """The same job in this process, with an engine that is loaded already."""

    loaded: Engine | None = None

    def open(self, threads: int) -> Callable[[Shard], ShardOutput]:
        """The engine as it is."""
        assert self.loaded is not None
        return PromptWorker(self, self.loaded)


def measure(context: Context) -> pd.DataFrame:
    """Everything as it was timed: one row a measure, way and block, with its value.

    Values are milliseconds of an empty task, megabytes or tokens per second of a way, and
    seconds of a start, of a job's parts and of whole jobs. Needs `distributed`.
    """
    amounts = AMOUNTS[context.budget.name]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="batchgauge-measured-") as scratch:
        folder = Path(scratch)
        _workers(context, amounts, folder, rows)
        with threadpool_limits(1, user_api="blas"):
            _in_process(context, amounts, folder, rows)
            _batch_sizes(context, amounts, folder, rows)
    return pd.DataFrame(rows, columns=["measure", "way", "block", "value"])


def _workers(context: Context, amounts: Amounts, folder: Path, rows: list[Row]) -> None:
    """Whatever needs worker processes; they are started here, and the last have one killed."""
    from batchgauge.jobs.dask_pool import client_of

    first, each = 1 + names.WORKERS, 2 * names.WORKERS
    documents = _write_documents(
        folder / "text.txt", first + each * amounts.text_parts, amounts.lines
    )
    parts = first + amounts.blocks * each * amounts.prompt_parts
    prompts = _write_prompts(folder / "prompts.jsonl", parts * _PROMPTS, amounts)
    tokenizing = TokenizeWork(context.tokenizer_name, context.model, most_lines=amounts.lines)
    generating = PromptWork(
        context.engine_spec, context.model, batch_size=_PROMPTS, most_lines=_PROMPTS, chat=False
    )
    rows.append((names.TOKENIZING, "part, MB", 0, amounts.lines * (names.LINE + 1) / 1e6))
    works: list[_Timed] = []
    for name, work, source, count in (
        (names.GENERATING, generating, prompts, amounts.prompt_parts),
        (names.TOKENIZING, tokenizing, documents, amounts.text_parts),
    ):
        inputs = find_inputs(source, folder / name)
        shards = cycle(cut(inputs, most_bytes=SHARD_BYTES, most_lines=work.most_lines))
        (folder / name).mkdir()
        (folder / name / MANIFEST).touch()  # by which workers know the folder as ours
        works.append(_Timed(name, work, inputs, folder / name, shards, count))
    for start in range(amounts.starts):
        blocks = range(start, amounts.blocks, amounts.starts)
        begin = time.perf_counter()
        with client_of(Where(workers=names.WORKERS, threads=1)) as client:
            rows.append((names.COLD, "workers started", start, time.perf_counter() - begin))
            for timed in works:
                _one_and_two(client, timed, blocks, rows, begin)
            if start == amounts.starts - 1:
                _empty_tasks(client, amounts.empty_tasks, rows)
                _trouble(client, tokenizing, documents, rows)


@dataclass(frozen=True)
class _Timed:
    """A kind of work that one worker and two do: its name, input, output folder and parts."""

    name: str
    work: PromptWork | TokenizeWork
    inputs: Sequence[Input]
    folder: Path
    shards: Iterator[Shard]
    count: int  # of parts for each worker


def _one_and_two(
    client: Client, timed: _Timed, blocks: Sequence[int], rows: list[Row], began: float
) -> None:
    """Rates of one worker and of two, in blocks; and how long it took until they were open."""
    from batchgauge.jobs.dask_pool import dask_pool

    generates = timed.name == names.GENERATING
    where = Where(dask=client.scheduler.address, threads=1)
    opening = time.perf_counter()
    with dask_pool(timed.work, timed.inputs, timed.folder, where) as pool:
        rows.append((timed.name, "opened, s", blocks[0], time.perf_counter() - opening))
        pool.submit(next(timed.shards)).result()
        if generates:
            rows.append((names.COLD, "first answer", blocks[0], time.perf_counter() - began))
        addresses = sorted(client.scheduler_info(n_workers=-1)["workers"])
        for address in addresses:  # so that both have compiled what they compile
            pool.on([address]).submit(next(timed.shards)).result()
        # One worker is each of them in turn.
        pools = {names.ONE: [pool.on([a]) for a in addresses], names.TWO: [pool]}
        for block in blocks:
            for way in (names.ONE, names.TWO) if block % 2 == 0 else (names.TWO, names.ONE):
                mine = [(p, list(islice(timed.shards, timed.count * p.width))) for p in pools[way]]
                rows.append((timed.name, way, block, _rate(mine, by_tokens=generates)))


def _rate(work: Sequence[tuple[Pool, Sequence[Shard]]], *, by_tokens: bool) -> float:
    """Tokens, or megabytes of input, per second of pools in turn, each as busy as in `run_job`."""
    amount, seconds = 0.0, 0.0
    for pool, shards in work:
        waiting = iter(shards)
        begin = time.perf_counter()
        running = {pool.submit(shard) for shard in islice(waiting, 2 * pool.width)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            amount += sum(future.result().counts["tokens"] for future in done) if by_tokens else 0
            running |= {pool.submit(shard) for shard in islice(waiting, len(done))}
        seconds += time.perf_counter() - begin
        amount += 0 if by_tokens else sum(shard.size for shard in shards) / 1e6
    return amount / seconds


def _empty_tasks(client: Client, count: int, rows: list[Row]) -> None:
    client.submit(os.getpid, pure=False).result()
    for number in range(count):
        begin = time.perf_counter()
        client.submit(os.getpid, pure=False).result()
        rows.append((names.EMPTY, "round trip", number, 1e3 * (time.perf_counter() - begin)))


def _trouble(client: Client, work: TokenizeWork, source: Path, rows: list[Row]) -> None:
    """One job three times: both workers sound, one of them slowed down, one killed in the middle.

    Outputs that differ from the first one's are counted.
    """
    where = Where(dask=client.scheduler.address, threads=1)
    process = min(client.run(_process).values())  # and have the workers import this module
    fields = (work.tokenizer, work.model)
    slowed = SlowedTokenizing(
        *fields, most_lines=work.most_lines, process=process, factor=names.SLOWER
    )
    found: dict[str, Mapping[str, bytes]] = {}
    parts = 0
    for way, job in ((names.SOUND, work), (names.SLOW, slowed), (names.KILLED, work)):
        out = source.with_name(f"job-{len(found)}")
        begin = time.perf_counter()
        if way == names.KILLED:
            killer = threading.Thread(target=_kill, args=(process, out, parts, begin, rows))
            killer.start()
        summary = run_job(job, source, out, where=where, progress=False)
        parts = summary.parts
        rows.append((way, "job, s", 0, summary.seconds))
        if way == names.KILLED:
            killer.join()
        found[way] = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
        rows.append((way, "differs", 0, float(found[way] != found[names.SOUND])))
    rows.append((names.SOUND, "parts", 0, parts))


def _process() -> int:
    return os.getpid()


def _kill(process: int, out: Path, parts: int, begin: float, rows: list[Row]) -> None:
    """End a worker without warning when a third of the parts is done; or not, when it is late."""
    while time.perf_counter() - begin < 60.0:
        progress = out / PROGRESS
        done = progress.read_bytes().count(b"\n") if progress.exists() else 0
        if done >= max(1, parts // 3):
            os.kill(process, signal.SIGKILL)
            rows.append((names.KILLED, "after, s", 0, time.perf_counter() - begin))
            return
        time.sleep(0.005)


def _in_process(context: Context, amounts: Amounts, folder: Path, rows: list[Row]) -> None:
    """A job in this process against a plain loop over the same batches."""
    for block in range(-1, amounts.repeats):  # the first one warms up
        count = amounts.prompt_parts * _PROMPTS
        source = _write_prompts(folder / f"plain-{block}.jsonl", count, amounts, seed=1000 + block)
        for way in (names.PLAIN, names.LAYER) if block % 2 == 0 else (names.LAYER, names.PLAIN):
            begin = time.perf_counter()
            if way == names.PLAIN:
                _plain_loop(context.engine, source, folder / f"plain-{block}.out")
            else:
                _job(context, source, folder / f"layer-{block}")
            if block >= 0:
                rows.append((names.OVERHEAD, way, block, time.perf_counter() - begin))


def _plain_loop(engine: Engine, source: Path, out: Path) -> None:
    """What somebody would write who needs no job layer: read, answer in batches, write."""
    lines = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    with out.open("w", encoding="utf-8") as file:
        for i in range(0, len(lines), _PROMPTS):
            group = lines[i : i + _PROMPTS]
            items = [
                BatchItem(row.pop("id"), InferenceBatchRequest(**row, chat=False)) for row in group
            ]
            for answer in engine.infer_batch(items).responses:
                said = {"id": answer.id, "text": answer.data and answer.data.text}
                file.write(json.dumps(said) + "\n")


def _job(context: Context, source: Path, out: Path) -> None:
    work = LoadedPrompts(
        context.engine_spec, context.model, batch_size=_PROMPTS, chat=False, loaded=context.engine
    )
    run_job(work, source, out, where=Where(threads=1), progress=False)


def _batch_sizes(context: Context, amounts: Amounts, folder: Path, rows: list[Row]) -> None:
    """Tokens per second of parts at every fixed size, and at the one that `auto` chooses.

    The engine's worker chooses once, at once, on its first part; that is not in the rates.
    """
    sizes = [size for size in amounts.sizes if size <= context.engine.max_batch_size()]
    most = max(*sizes, _PROMPTS)
    workers = {
        str(size): (PromptWorker(PromptWork(batch_size=size, chat=False), context.engine), size)
        for size in sizes
    }
    auto = PromptWorker(PromptWork(chat=False), context.engine, patience_s=0.0)
    begin = time.perf_counter()
    auto(_one_part(folder / "auto.jsonl", most, amounts, seed=1))
    rows.append((names.SIZES, "advice, s", 0, time.perf_counter() - begin))
    rows.append((names.SIZES, "size chosen", 0, auto.size))
    workers[names.AUTO] = (auto, auto.size)
    for block in range(max(2, amounts.repeats // 2)):
        order = list(workers) if block % 2 == 0 else list(workers)[::-1]
        for way in order:
            worker, size = workers[way]
            count = size * -(-_PROMPTS // 2 // size)  # whole batches
            shard = _one_part(folder / f"{way}-{block}.jsonl", count, amounts, seed=2000 + block)
            begin = time.perf_counter()
            output = worker(shard)
            seconds = time.perf_counter() - begin
            rows.append((names.SIZES, way, block, output.counts["tokens"] / seconds))


def _one_part(path: Path, prompts: int, amounts: Amounts, *, seed: int) -> Shard:
    inputs = find_inputs(_write_prompts(path, prompts, amounts, seed=seed), path.parent / "none")
    return next(cut(inputs, most_bytes=SHARD_BYTES, most_lines=prompts))


def _write_documents(path: Path, parts: int, lines: int) -> Path:
    """Lines of prose for so many parts, each line from a place of its own; parts come again."""
    kinds = range(min(parts, _TEXT_PARTS))
    some = [[t.replace("\n", " ") for t in texts("prose", names.LINE, lines, n)] for n in kinds]
    return _write_lines(path, chain.from_iterable(islice(cycle(some), parts)))


def _write_prompts(path: Path, count: int, amounts: Amounts, *, seed: int = 0) -> Path:
    """Prompts of one length, so that every way makes the same batches of them."""
    rows = (
        {"id": f"p{number}", "prompt": text, "max_tokens": amounts.tokens}
        for number, text in enumerate(texts("prose", _PROMPT, count, seed))
    )
    return _write_lines(path, map(json.dumps, rows))


def _write_lines(path: Path, lines: Iterable[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path
