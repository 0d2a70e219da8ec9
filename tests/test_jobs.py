"""Jobs: nothing lost, nothing twice, the same bytes whoever works, however often it was stopped."""

from __future__ import annotations

import functools
import gc
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import PROJECT
from tests.job_engine import EchoEngine
from tests.tiny_model import write_tiny_model

from batchgauge.core.tokenizer import BPETokenizer
from batchgauge.errors import UserError
from batchgauge.jobs import PromptWork, TokenizeWork, Where, manifest, prompts, run_job, source
from batchgauge.jobs.source import cut, decoded, find_inputs, line_spans, loaded, of_lines, read
from batchgauge.request import BatchResponse, BatchResult
from batchgauge.sizing import automatic
from batchgauge.workload import Prompt

ECHO = PromptWork(engine="tests.job_engine:make", batch_size=3, most_lines=4)


def write_prompts(path: Path, prompts: list[str]) -> Path:
    """A file of prompts with ids of their own."""
    lines = [json.dumps({"id": f"p{i}", "prompt": p}) for i, p in enumerate(prompts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows_of(out: Path) -> list[dict[str, object]]:
    """Every row of the output, in the order of its parts."""
    parts = sorted(out.glob("part-*.jsonl"))
    return [json.loads(line) for p in parts for line in p.read_text("utf-8").splitlines()]


def content(out: Path) -> dict[str, bytes]:
    """Name to bytes of a job's files, hidden ones apart."""
    return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=40),
    st.booleans(),
    st.booleans(),
    st.integers(1, 30),
    st.integers(1, 6),
)
@settings(max_examples=200, deadline=None)
def test_spans_are_whole_lines_in_order_within_both_limits(lines, ends, mark, most_bytes, most):
    """Whatever the bytes: nothing is lost, no line is cut, numbers follow."""
    start = b"\xef\xbb\xbf" if mark else b""
    if not mark and lines and lines[0].startswith(b"\xef\xbb\xbf"):
        return
    data = start + b"\n".join(lines) + (b"\n" if ends and lines else b"")
    spans = list(line_spans(io.BytesIO(data), most_bytes, most))
    body = data[len(start) :]
    assert b"".join(data[a:b] for _, a, b in spans) == body
    expected = 1
    for first, a, b in spans:
        piece = data[a:b]
        count = piece.count(b"\n") + (not piece.endswith(b"\n"))
        assert first == expected
        assert count <= most
        assert count == 1 or b - a <= most_bytes
        expected += count


def test_spans_cross_blocks_of_the_file(monkeypatch):
    """A line may lie in several blocks that are read."""
    monkeypatch.setattr(source, "_BLOCK", 5)
    data = b"".join(b"%d\n" % i for i in range(200))
    spans = list(line_spans(io.BytesIO(data), 40, 7))
    assert b"".join(data[a:b] for _, a, b in spans) == data
    assert {data[a:b].count(b"\n") for _, a, b in spans[:-1]} == {7}


def test_a_line_that_is_not_utf8_is_an_error_of_that_line_alone():
    """Its neighbours are read."""
    for bad in (b"\xff\xfe", b"\xc3", b"\xed\xa0\x80"):
        texts, errors = decoded(of_lines(b"a\r\nb\n" + bad + b"\n" + "ü".encode()))
        assert texts == ["a", "b", "", "ü"]
        assert errors == {2: errors[2]}
        assert errors[2].startswith("not UTF-8 (")


def test_a_column_whose_bytes_are_no_utf8_has_error_rows(tmp_path):
    """Parquet promises UTF-8 and does not check; a null is no text."""
    rows = [b"one", None, b"a\xffb", b"\xc3", b"", "ü".encode()]
    column = pa.array(rows, pa.binary()).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    run_job(TokenizeWork(), tmp_path / "a.parquet", tmp_path / "o", progress=False)
    offsets = np.load(tmp_path / "o" / "part-000000.offsets.npy")
    assert (np.diff(offsets) > 0).tolist() == [True, False, False, False, False, True]
    said = (tmp_path / "o" / "part-000000.errors.jsonl").read_text().splitlines()
    errors = {row["line"]: row["error"] for row in map(json.loads, said)}
    assert list(errors) == [2, 3, 4]
    assert errors[2] == "no text"
    assert errors[3].startswith("not UTF-8")


def test_a_line_too_long_is_never_read(tmp_path, monkeypatch):
    """It would have to be held whole."""
    monkeypatch.setattr(source, "LONGEST_BYTES", 100)
    path = tmp_path / "a.txt"
    path.write_text("short\n" + "x" * 5000 + "\nlast\n")
    shards = list(cut(find_inputs(path, tmp_path / "o"), most_bytes=50, most_lines=10))
    assert [s.too_long for s in shards] == [False, True, False]
    found = [read(s) for s in shards]
    assert [decoded(d)[0] for d in found] == [["short"], [""], ["last"]]
    assert "5,001 bytes" in found[1].errors[0]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda _: None, "cannot be read"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes("a\n".encode("utf-16")), "is UTF-16"),
        (lambda p: p.mkdir(), "is no regular file|is empty"),
    ],
)
def test_input_that_is_none_is_one_sentence(tmp_path, make, sentence):
    """And no output folder is made."""
    make(tmp_path / "in.txt")
    with pytest.raises(UserError, match=sentence):
        run_job(ECHO, tmp_path / "in.txt", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_another_ending_and_an_output_within_the_input(tmp_path):
    """Neither can be worked on."""
    (tmp_path / "a.csv").write_text("x\n")
    with pytest.raises(UserError, match=r"neither a folder nor a \.txt"):
        run_job(ECHO, tmp_path / "a.csv", tmp_path / "out", progress=False)
    with pytest.raises(UserError, match="is inside the input"):
        run_job(ECHO, tmp_path, tmp_path / "out", progress=False)


def test_every_line_is_answered_in_order_and_bad_ones_by_number(tmp_path):
    """With a byte order mark, Windows line ends and blank lines."""
    path = tmp_path / "p.jsonl"
    good = [json.dumps({"id": f"q{i}", "prompt": "x" * (i % 5)}) for i in range(10)]
    lines = [*good[:3], "{bad", "", "[1]", '{"prompt": "\\ud800"}', '{"no": 1}', *good[3:]]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    summary = run_job(ECHO, path, tmp_path / "out", progress=False)
    rows = rows_of(tmp_path / "out")
    assert [r["line"] for r in rows] == [1, 2, 3, 4, 6, 7, 8, *range(9, 16)]
    assert [r["line"] for r in rows if "error" in r] == [4, 6, 7, 8]
    assert [r["id"] for r in rows if "id" in r] == [f"q{i}" for i in range(10)]
    assert (summary.documents, summary.errors, summary.parts) == (14, 4, 4)


def test_answers_do_not_depend_on_batch_size_or_neighbours(tmp_path):
    """The bytes are the same."""
    path = write_prompts(tmp_path / "p.jsonl", [f"prompt {i}" * (i % 7) for i in range(30)])
    run_job(ECHO, path, tmp_path / "a", progress=False)
    run_job(replace(ECHO, batch_size=1), path, tmp_path / "b", progress=False)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_auto_measures_only_once_the_job_has_run_as_long_as_that_takes(tmp_path, monkeypatch):
    """A calibration that is there is used at once; the answers are the same bytes."""
    asked, sizes = [], []
    infer = EchoEngine.infer_batch

    def advised(*_, **__):
        asked.append(True)
        return 2

    def seen(engine, items):
        sizes.append(len(items))
        return infer(engine, items)

    monkeypatch.setattr(prompts.PromptWorker, "_advised", advised)
    monkeypatch.setattr(EchoEngine, "infer_batch", seen)
    path = write_prompts(tmp_path / "p.jsonl", ["wait"] * 20)
    (shard,) = cut(find_inputs(path, tmp_path / "o"), most_bytes=1 << 20, most_lines=99)
    auto = replace(ECHO, batch_size=0)
    answers = []
    for calibrated, patience_s, expected in (
        (False, 60.0, [7, 7, 6]),
        (False, 0.1, [7, *[2] * 6, 1]),
        (True, 60.0, [2] * 10),
    ):
        monkeypatch.setattr(prompts, "is_calibrated", lambda *_, known=calibrated: known)
        worker = prompts.PromptWorker(auto, EchoEngine(), patience_s=patience_s)
        answers += [worker(shard), worker(shard)]
        assert sizes[: len(expected)] == expected
        assert len(asked) == (patience_s < 1 or calibrated)
        sizes.clear()
        asked.clear()
    assert all(answer == answers[0] for answer in answers)


class Server(EchoEngine):
    """Shows no model and refuses chats; without `reply`, everything."""

    def __init__(self, reply=True):
        self.reply, self.asked = reply, []

    def infer_batch(self, items):
        """As its parent, but for what it refuses."""
        self.asked += [item.data for item in items]
        time.sleep(0.01)
        if not self.reply or any(item.data.chat for item in items):
            refused: list[BatchResponse[Any]] = [
                BatchResponse(item.id, None, 1.0, "no template") for item in items
            ]
            return BatchResult.of(refused, 1.0)
        return super().infer_batch(items)


def test_auto_measures_the_jobs_own_requests(monkeypatch):
    """Chat, temperature and seed are those of the job; where nothing runs it begins as usual."""
    monkeypatch.setattr(
        prompts, "measured_size", functools.partial(automatic.measured_size, budget_s=1.0)
    )
    work = replace(ECHO, batch_size=0, chat=False, temperature=0.5, seed=3)
    asked = [Prompt(str(i), "text", "x" * (1 + i), 4) for i in range(6)]
    server = Server()
    assert prompts.PromptWorker(work, server)._advised(asked, 3) <= 3
    assert {(r.chat, r.temperature, r.seed) for r in server.asked} == {(False, 0.5, 3)}
    assert prompts.PromptWorker(work, Server(reply=False))._advised(asked, 7) == 7


def test_auto_pays_nothing_for_waiting(monkeypatch):
    """Nobody waits for a prompt of a job: the advisor is asked for throughput at any wait."""
    configs = []

    def advised(_engine, config, **_):
        configs.append(config)
        return SimpleNamespace(size=5)

    monkeypatch.setattr(prompts, "shows_its_model", lambda _engine: True)
    monkeypatch.setattr(prompts, "suggest_for_engine", advised)
    worker = prompts.PromptWorker(replace(ECHO, batch_size=0), EchoEngine())
    assert worker._advised([Prompt("a", "text", "x", 4)], 7) == 5
    assert [(config.wait_price, config.max_batch_size) for config in configs] == [(0.0, 7)]


def test_the_same_job_again_does_nothing_and_another_is_refused(tmp_path):
    """Other settings or other input do not mix with what is there."""
    path = write_prompts(tmp_path / "p.jsonl", [f"prompt {i}" for i in range(9)])
    out = tmp_path / "out"
    first = run_job(ECHO, path, out, progress=False)
    before = content(out)
    again = run_job(replace(ECHO, engine="tests.job_engine:make"), path, out, progress=False)
    assert (again.parts_before, again.documents) == (first.parts, first.documents)
    assert content(out) == before
    for other, wrong in [(replace(ECHO, seed=1), "seed"), (replace(ECHO, max_tokens=3), "max_tok")]:
        with pytest.raises(UserError, match=f"of another job: its {wrong}"):
            run_job(other, path, out, progress=False)
    with pytest.raises(UserError, match="its job is 'run'"):
        run_job(TokenizeWork(), path, out, progress=False)
    write_prompts(path, [f"prompt {i}" for i in range(10)])
    with pytest.raises(UserError, match="other files or other content"):
        run_job(ECHO, path, out, progress=False)
    assert content(out) == before


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    """It is no output folder."""
    path = write_prompts(tmp_path / "p.jsonl", ["a"])
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'thesis\.txt'"):
        run_job(ECHO, path, out, progress=False)
    assert content(out) == {"thesis.txt": b"mine"}


def test_parts_that_are_damaged_or_gone_are_done_again(tmp_path):
    """Their checksums tell."""
    path = write_prompts(tmp_path / "p.jsonl", [f"prompt {i}" for i in range(20)])
    out = tmp_path / "out"
    run_job(ECHO, path, out, progress=False)
    before = content(out)
    (out / "part-000001.jsonl").write_text("{}")
    (out / "part-000003.jsonl").unlink()
    assert run_job(ECHO, path, out, progress=False).parts_before == 3
    assert content(out) == before


def test_a_part_that_keeps_failing_is_named_and_the_others_are_kept(tmp_path):
    """One prompt that fails among others is an answer, not a failure."""
    prompts = ["fine"] * 10
    prompts[4:8] = ["please raise"] * 4
    prompts[9] = "please raise"
    path = write_prompts(tmp_path / "p.jsonl", prompts)
    sentence = r"1 of 3 parts failed, the first from line 5 of 'p.jsonl': Every prompt failed alike"
    with pytest.raises(UserError, match=sentence) as problem:
        run_job(ECHO, path, tmp_path / "out", where=Where(retries=1), progress=False)
    assert problem.value.exit_code == 1
    rows = rows_of(tmp_path / "out")
    assert [r["line"] for r in rows] == [1, 2, 3, 4, 9, 10]
    assert "not for me" in str(rows[-1]["error"])


def test_a_full_disk_stops_the_job_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    """It goes on when there is room again."""
    path = write_prompts(tmp_path / "p.jsonl", [f"prompt {i}" for i in range(20)])
    run_job(ECHO, path, tmp_path / "a", progress=False)
    written = Path.write_bytes

    def full(self, data):
        if "part-000002" in self.name:
            raise OSError(28, "No space left on device")
        return written(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match="cannot be written: No space left on device"):
            run_job(ECHO, path, tmp_path / "b", progress=False)
    assert not list((tmp_path / "b").glob("*000002*"))
    run_job(ECHO, path, tmp_path / "b", progress=False)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_progress_that_cannot_be_read_is_said(tmp_path):
    """Else all that was done would be done again; a job without any has none to read."""
    path = write_prompts(tmp_path / "p.jsonl", ["prompt"] * 9)
    run_job(ECHO, path, tmp_path / "out", progress=False)
    (tmp_path / "out" / manifest.PROGRESS).mkdir()
    with pytest.raises(UserError, match=r"progress.*cannot be read: Is a directory"):
        run_job(ECHO, path, tmp_path / "out", progress=False)


def test_shards_travel_to_workers_that_do_not_see_the_files(tmp_path):
    """With their bytes."""
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    (shard,) = cut(find_inputs(path, tmp_path / "o"), most_bytes=100, most_lines=9)
    sent = loaded(shard)
    path.unlink()
    assert decoded(read(sent))[0] == ["one", "two"]
    with pytest.raises(UserError, match="cannot be read"):
        read(shard)


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_tokens_are_those_of_the_tokenizer_wherever_a_document_stands(tmp_path, form, monkeypatch):
    """For lines, rows of JSON and columns, each document under its number."""
    monkeypatch.setattr("batchgauge.jobs.run.SHARD_BYTES", 300)
    corpus = tmp_path / "corpus"
    (corpus / "sub").mkdir(parents=True)
    lines = [f"Line {i}, naïve café №{i * 37} 日本" for i in range(40)]
    (corpus / "a.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [json.dumps({"text": t}) for t in lines[:7]]
    (corpus / "sub" / "b.jsonl").write_text("\n".join([*rows, "oops", '{"text": 3}']))
    pq.write_table(pa.table({"text": [*lines[:5], None]}), corpus / "c.parquet")
    (corpus / ".hidden.txt").write_text("no")
    (corpus / "notes.md").write_text("no")
    out = tmp_path / "out"
    summary = run_job(TokenizeWork(form=form), corpus, out, progress=False)
    assert (summary.documents, summary.errors) == (40 + 9 + 6, 3)
    parts = json.loads((out / "manifest.json").read_text())["parts"]
    found: dict[tuple[str, int], list[int]] = {}
    for part in parts:
        stem = f"part-{part['part']:06d}"
        if form == "npy":
            ids, at = np.load(out / f"{stem}.ids.npy"), np.load(out / f"{stem}.offsets.npy")
            documents = [ids[at[i] : at[i + 1]].tolist() for i in range(at.size - 1)]
        else:
            documents = pq.read_table(out / f"{stem}.parquet")["ids"].to_pylist()
        found.update({(part["source"], part["first"] + i): d for i, d in enumerate(documents)})
    tokenizer = BPETokenizer.from_gguf(None)
    for name, texts in {"a.txt": lines, "sub/b.jsonl": lines[:7], "c.parquet": lines[:5]}.items():
        for number, text in enumerate(texts, start=1):
            assert found[name, number] == tokenizer.encode(text)
    assert found["sub/b.jsonl", 8] == found["c.parquet", 6] == []


def test_whole_files_are_documents_where_asked_for(tmp_path):
    """Line feeds and all."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    texts = ["one\ntwo\n", "three", "four\n\n"]
    for i, text in enumerate(texts):
        (corpus / f"{i}.txt").write_bytes(text.encode())
    run_job(TokenizeWork(whole_files=True), corpus, tmp_path / "out", progress=False)
    at = np.load(tmp_path / "out" / "part-000000.offsets.npy")
    ids = np.load(tmp_path / "out" / "part-000000.ids.npy")
    tokenizer = BPETokenizer.from_gguf(None)
    assert [tokenizer.decode(ids[at[i] : at[i + 1]].tolist()) for i in range(3)] == texts


def test_a_parquet_without_text_or_that_is_none_is_one_sentence(tmp_path):
    """A file of the ending need not be one."""
    pq.write_table(pa.table({"number": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no column 'text'"):
        run_job(TokenizeWork(), tmp_path / "a.parquet", tmp_path / "o", progress=False)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        run_job(TokenizeWork(), tmp_path / "b.parquet", tmp_path / "o2", progress=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"workers": -1}, "workers is -1"),
        ({"threads": 10_000}, "threads is 10000"),
        ({"retries": True}, "retries is True"),
        ({"workers": 2, "dask": "tcp://x:1"}, "Both workers"),
    ],
)
def test_numbers_without_sense_are_one_sentence(arguments, sentence):
    """Before anything is opened."""
    with pytest.raises(UserError, match=sentence):
        Where(**arguments)


def started(*arguments: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}"}
    return subprocess.Popen(
        [sys.executable, "-m", "batchgauge", *arguments],
        cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run_until_done(arguments: list[str], out: Path, seed: int, end: int) -> int:
    """Stop the driver by `end` at random moments after its first part until it comes through."""
    rng = random.Random(seed)
    stopped = 0
    for _ in range(60):
        process = started(*arguments)
        parts = len(list(out.glob("part-*")))
        while process.poll() is None and len(list(out.glob("part-*"))) <= parts:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))
        if process.poll() is None:
            process.send_signal(end)
            stopped += 1
        said, _ = process.communicate(timeout=60)
        assert process.returncode in {0, -signal.SIGKILL, 130}, said.decode()
        assert b"Traceback" not in said
        if process.returncode == 0:
            return stopped
    raise AssertionError("it never came to its end")


def test_the_model_is_part_of_what_a_job_is(tmp_path, monkeypatch):
    """By its content, also where an engine has an argument; not of who brings its own."""
    one, other = (write_tiny_model(tmp_path / f"{n}.gguf", seed=n) for n in (1, 2))
    for engine in ("numpy", "numpy:file", "llama-cpp"):
        said = [PromptWork(engine, str(path)).settings()["model"] for path in (one, other)]
        assert said[0] != said[1]
        monkeypatch.setenv("BATCHGAUGE_MODEL", str(one))
        assert PromptWork(engine).settings()["model"] == said[0]
    assert PromptWork("openai:http://127.0.0.1:1/v1").settings()["model"] == ""
    assert ECHO.settings()["model"] == ""
    with pytest.raises(UserError, match=r"no\.gguf"):
        PromptWork(model=str(tmp_path / "no.gguf")).settings()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_stopped_again_and_again_leaves_the_bytes_of_an_undisturbed_one(tmp_path, end):
    """By kill -9 and by Ctrl-C."""
    path = write_prompts(tmp_path / "p.jsonl", [f"wait {i}" for i in range(60)])
    run_job(replace(ECHO, most_lines=512), path, tmp_path / "a", progress=False)
    out = tmp_path / "b"
    given_to = ["--engine", "tests.job_engine:make", "--batch-size", "2"]
    small = [*map(str, ("run", path, "--out", out)), *given_to, "--part-lines", "6"]
    assert run_until_done(small, out, seed=end, end=end) >= 1
    run_job(replace(ECHO, most_lines=6), path, tmp_path / "c", progress=False)
    assert content(out) == content(tmp_path / "c")
    assert [r["line"] for r in rows_of(out)] == list(range(1, 61))


@pytest.mark.slow
def test_two_processes_and_a_worker_that_dies_leave_the_same_bytes(tmp_path):
    """Its shard is worked on again."""
    prompts = [f"prompt {i}" for i in range(40)]
    prompts[13] = f"die once {tmp_path / 'died'}"
    path = write_prompts(tmp_path / "p.jsonl", prompts)
    run_job(ECHO, path, tmp_path / "b", where=Where(workers=2), progress=False)
    assert (tmp_path / "died").exists()
    run_job(ECHO, path, tmp_path / "a", progress=False)  # it is there now: nobody dies
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.slow
def test_a_part_that_takes_every_worker_down_is_named(tmp_path):
    """The others beside it are not."""
    prompts = [f"prompt {i}" for i in range(20)]
    prompts[9] = "die"
    path = write_prompts(tmp_path / "p.jsonl", prompts)
    with pytest.raises(UserError, match="1 of 5 parts failed, the first from line 9"):
        run_job(ECHO, path, tmp_path / "out", where=Where(workers=2, retries=1), progress=False)
    assert len(rows_of(tmp_path / "out")) == 16


def test_a_scheduler_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch):
    """Nor is an address that is none. No client is left, whose end could meet another's begin."""
    from distributed import Client

    monkeypatch.setattr("batchgauge.dask_client._CONNECT_S", 0.2)

    def clients() -> int:
        return sum(type(each) is Client for each in gc.get_objects())

    gc.collect()
    before, path = clients(), write_prompts(tmp_path / "p.jsonl", ["a"])
    for address in ("tcp://127.0.0.1:1", "nonsense", "ftp://x"):
        with pytest.raises(UserError, match="does not answer"):
            run_job(ECHO, path, tmp_path / "out", where=Where(dask=address), progress=False)
        assert clients() == before


def test_other_versions_on_a_worker_are_named():
    """What was expected stands beside."""
    from batchgauge.dask_client import check_versions

    def said(**changed):
        packages = {"python": "3.11.7", "dask": "1", "distributed": "1", "batchgauge": "1"}
        return {"host": {}, "packages": {**packages, **changed}}

    class Client:
        def __init__(self, **changed):
            self.changed = changed

        def get_versions(self, packages):
            assert packages == ["batchgauge"]
            scheduler, workers = said(batchgauge=None), {"tcp://w": said(**self.changed)}
            return {"client": said(), "scheduler": scheduler, "workers": workers}

    check_versions(Client(python="3.11.9"))
    wrong: list[tuple[dict[str, str | None], str]] = [
        ({"distributed": "2"}, "worker 'tcp://w' has distributed 2, this process 1"),
        ({"batchgauge": None}, "has batchgauge not at all"),
        ({"python": "3.12.1"}, "has python 3.12"),
    ]
    for changed, sentence in wrong:
        with pytest.raises(UserError, match=sentence):
            check_versions(Client(**changed))


def test_what_a_killed_worker_left_of_a_part_is_gone_when_others_end_the_job(tmp_path):
    """The output is that of an undisturbed job, hidden files included."""
    path = write_prompts(tmp_path / "p.jsonl", ["a"])
    begun = manifest.Manifest.open(tmp_path / "out", ECHO, find_inputs(path, tmp_path / "out"))
    (tmp_path / "out" / ".part-000000-x.jsonl.partial").write_bytes(b"half")
    begun.save(complete=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [manifest.MANIFEST]
