"""One bad item fails itself alone: at building, in every engine, in every tokenizer batch."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.fuzzing import seeds
from tests.tiny_model import write_tiny_model

from batchgauge.adapters.checks import CheckedEngine
from batchgauge.core.tokenizer.batch_tokenizer import BatchTokenizer
from batchgauge.errors import UserError
from batchgauge.registry import missing_packages, open_engine, open_tokenizer
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    DetokenizeBatchRequest,
    InferenceBatchRequest,
    InferenceBatchResponse,
    TokenizeBatchRequest,
)

BAD: list[dict[str, Any]] = [
    {"prompt": None}, {"prompt": b"abc"}, {"prompt": 5}, {"prompt": ("a",)}, {"prompt": (1.5,)},
    {"prompt": (True,)}, {"prompt": (None,)}, {"prompt": [[1]]}, {"prompt": {1: 2}},
    {"prompt": np.array([1.5])}, {"prompt": np.array([[1, 2]])}, {"prompt": np.array(1)},
    {"max_tokens": 1.5}, {"max_tokens": True}, {"max_tokens": 0}, {"max_tokens": -3},
    {"max_tokens": "4"}, {"max_tokens": None}, {"max_tokens": math.inf},
    {"temperature": "1"}, {"temperature": math.nan}, {"temperature": math.inf},
    {"temperature": -1e-9}, {"temperature": 2.5}, {"temperature": None}, {"temperature": True},
    {"temperature": 1j}, {"temperature": 10**400},
    {"top_p": 0}, {"top_p": math.nan}, {"top_p": "0.9"}, {"top_p": 1.1}, {"top_p": None},
    {"seed": -1}, {"seed": 1.5}, {"seed": None}, {"seed": "1"}, {"seed": True},
    {"stop": ("\ud800",)}, {"stop": (None,)}, {"stop": ("",)}, {"stop": ""}, {"stop": None},
    {"stop": 5}, {"stop": (b"a",)}, {"stop": {"a"}}, {"stop": "\udfff"},
    {"chat": "yes"}, {"chat": None}, {"chat": 1}, {"ignore_eos": 0}, {"ignore_eos": None},
]  # fmt: skip
AT_RUN: list[dict[str, Any]] = [
    {"prompt": ""}, {"prompt": ()}, {"prompt": "a\ud800"}, {"prompt": (-1,)}, {"prompt": (10**9,)},
    {"prompt": (2**70,)}, {"prompt": (5,) * 4000}, {"prompt": "hello " * 4000},
]  # fmt: skip
GOOD = [
    InferenceBatchRequest("hello world", max_tokens=5, ignore_eos=True),
    InferenceBatchRequest((5, 6, 7), max_tokens=3, temperature=0.8, seed=3, ignore_eos=True),
]


def forced(fields):
    """A request built around its checks."""
    request = object.__new__(InferenceBatchRequest)
    for field in dataclasses.fields(InferenceBatchRequest):
        default = None if field.default is dataclasses.MISSING else field.default
        object.__setattr__(request, field.name, fields.get(field.name, default))
    return request


def complete(fields):
    """With a prompt, where the case is about something else."""
    return {"prompt": "hello", **fields}


@pytest.mark.parametrize("fields", BAD, ids=str)
def test_wrong_fields_are_refused_where_the_request_is_built(fields):
    """One sentence that names the field and what was expected."""
    with pytest.raises(UserError, match="expected") as said:
        InferenceBatchRequest(**complete(fields))
    (name,) = fields
    assert name in str(said.value).lower().replace("a stop text", "stop")
    with pytest.raises(UserError, match="expected"):
        dataclasses.replace(GOOD[0], **fields)


def test_what_is_meant_is_taken():
    """Arrays and numbers of NumPy, lists, one stop text, whole temperatures."""
    meant: dict[str, Any] = {
        "prompt": np.array([1, 2], np.uint16), "max_tokens": np.int64(3), "temperature": 1,
        "seed": np.uint8(4), "top_p": np.float32(0.5), "stop": "END", "chat": np.bool_(False),
    }  # fmt: skip
    request = InferenceBatchRequest(**meant)
    assert request == InferenceBatchRequest(
        (1, 2), max_tokens=3, temperature=1.0, seed=4, top_p=0.5, stop=("END",)
    )
    assert all(type(i) is int for i in request.prompt)
    assert [type(v) for v in (request.max_tokens, request.temperature, request.chat)] == [
        int, float, bool,
    ]  # fmt: skip
    lists: dict[str, Any] = {"prompt": [np.int32(7), 8], "stop": ["a", "b"]}
    assert InferenceBatchRequest(**lists) == InferenceBatchRequest((7, 8), stop=("a", "b"))
    hash(request)


@pytest.mark.parametrize("bad", [1, None, b"a", ["a"], {}, 1.5])
def test_an_items_id_is_a_text(bad):
    """Anything else is refused where the item is built."""
    with pytest.raises(UserError, match=r"id is .*; expected a str"):
        BatchItem(bad, None)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A tiny model file."""
    return write_tiny_model(tmp_path_factory.mktemp("bad") / "tiny.gguf")


class Strict:
    """An engine of one's own that raises over a prompt it does not like."""

    name = "strict"

    def max_batch_size(self):
        """The largest batch taken."""
        return 64

    def infer_batch(self, items):
        """Answers, or ZeroDivisionError for an empty prompt."""
        rows = []
        for item in items:
            answer = InferenceBatchResponse(str(item.data.prompt), 1 // len(item.data.prompt) + 1)
            rows.append(BatchResponse(item.id, answer, 1.0))
        return BatchResult.of(rows, 1.0)


def engine_of(spec, path):
    """The engine, or a skipped test where its package is missing."""
    if spec == "strict":
        return CheckedEngine(Strict())
    if missing := missing_packages(spec):
        pytest.skip(f"{missing[0]} not installed")
    return open_engine(spec, path)


def texts_of(result):
    """What was generated, or None, item by item."""
    return [row.data and (row.data.text, row.data.token_ids) for row in result.responses]


PEERS = [pytest.param(spec, marks=pytest.mark.peers) for spec in ("transformers", "llama-cpp")]


@pytest.mark.parametrize("spec", ["numpy", "baseline", "strict", *PEERS])
def test_bad_items_fail_alone_in_every_engine(spec, path):
    """Built around the checks or not: a sentence each, and the good ones' answers unchanged."""
    engine = engine_of(spec, path)
    bad: list[Any] = [forced(complete(fields)) for fields in BAD]
    bad += [None, 5, "text", SimpleNamespace(prompt="x"), TokenizeBatchRequest("x")]
    bad.append(object.__new__(InferenceBatchRequest))
    if spec == "strict":
        bad.append(InferenceBatchRequest(()))
    else:
        bad += [InferenceBatchRequest(**fields) for fields in AT_RUN]
    alone = texts_of(engine.infer_batch([BatchItem(f"g{i}", r) for i, r in enumerate(GOOD)]))
    for at in range(0, len(bad), 20):
        some = bad[at : at + 20]
        items = [BatchItem("g0", GOOD[0]), *(BatchItem(f"b{i}", r) for i, r in enumerate(some))]
        result = engine.infer_batch([*items, BatchItem("g1", GOOD[1])])
        assert [row.id for row in result.responses] == [*(item.id for item in items), "g1"]
        found = texts_of(result)
        assert [found[0], found[-1]] == alone
        for request, row in zip(some, result.responses[1:-1], strict=True):
            assert row.data is None, request
            assert row.error, request
            assert any(part in row.error for part in ("expected", "incomplete", "failed with"))
            assert "\n" not in row.error


@pytest.mark.parametrize("spec", ["numpy", "baseline", "strict"])
def test_batches_that_are_none_are_refused(spec, path):
    """Without items there is nobody to answer: one sentence."""
    engine = engine_of(spec, path)
    batches: list[Any] = [[GOOD[0]], None, 5, "ab", [None], {"a": 1}, iter([])]
    for wrong in batches:
        with pytest.raises(UserError, match=r"expected a (sequence of )?BatchItem|expected 1 to"):
            engine.infer_batch(wrong)


@pytest.mark.parametrize("spec", ["numpy", "baseline"])
def test_a_stop_text_and_cold_temperatures(spec, path):
    """`stop` as one text is that text; a temperature that float32 cannot hold is greedy."""
    engine = engine_of(spec, path)
    free = InferenceBatchRequest("hello", max_tokens=30, ignore_eos=True, temperature=1.0)
    text = engine.infer_batch([BatchItem("a", free)]).responses[0].data.text
    stop = text[len(text) // 2 :][:3]
    (plain, listed, around) = engine.infer_batch(
        [
            BatchItem("plain", dataclasses.replace(free, stop=stop)),
            BatchItem("listed", dataclasses.replace(free, stop=(stop,))),
            BatchItem("around", forced(dataclasses.asdict(free) | {"stop": stop})),
        ]
    ).responses
    assert plain.data.text == listed.data.text == around.data.text == text[: text.index(stop)]
    greedy = InferenceBatchRequest("hello", max_tokens=6, ignore_eos=True)
    want = engine.infer_batch([BatchItem("a", greedy)]).responses[0].data.token_ids
    for temperature in (5e-324, 1e-46, 1e-40, 1e-30, 1e-9):
        cold = dataclasses.replace(greedy, temperature=temperature, top_p=0.9)
        with np.errstate(all="raise", under="ignore"):
            assert engine.infer_batch([BatchItem("a", cold)]).responses[0].data.token_ids == want


TOKENIZERS = ["hf", "tiktoken", "llama-cpp"]


@pytest.mark.parametrize(
    "spec", ["numpy", "baseline", *(pytest.param(s, marks=pytest.mark.peers) for s in TOKENIZERS)]
)
def test_bad_items_fail_alone_in_every_tokenizer(spec, path):
    """Texts that are none and ids that are none, among good ones."""
    if missing := missing_packages(spec):
        pytest.skip(f"{missing[0]} not installed")
    tokenizer = BatchTokenizer(open_tokenizer(spec, path))
    size = tokenizer.tokenizer.vocab_size
    wrong: list[Any] = [None, b"a", 5, ["a"]]
    requests: list[Any] = [TokenizeBatchRequest(text) for text in wrong]
    requests += [None, "text", TokenizeBatchRequest("x", allow_special="no")]  # type: ignore[arg-type]
    requests.append(TokenizeBatchRequest("x", allow_special=[]))  # type: ignore[arg-type]
    good: Any = tokenizer.encode_batch([BatchItem("g", TokenizeBatchRequest("hello"))])
    items = [BatchItem(str(i), r) for i, r in enumerate(requests)]
    result = tokenizer.encode_batch([*items, BatchItem("g", TokenizeBatchRequest("hello"))])
    assert [row.data is None for row in result.responses] == [True] * len(items) + [False]
    assert all(row.error for row in result.responses[:-1])
    assert result.get_by_id("g").data == good.get_by_id("g").data
    ids = good.responses[0].data.tokens
    rows: list[Any] = [(size,), (-1,), (2**70,), (1.0,), (True,), (None,), ("1",), b"ab", "12",
                       None, 5, (1.5,), np.array([1.5]), np.array([[1]])]  # fmt: skip
    bad = [BatchItem(str(i), DetokenizeBatchRequest(row)) for i, row in enumerate(rows)]
    fine = [
        BatchItem("g", DetokenizeBatchRequest(ids)),
        BatchItem("n", DetokenizeBatchRequest(np.array(ids))),  # type: ignore[arg-type]
        BatchItem("l", DetokenizeBatchRequest(list(ids))),  # type: ignore[arg-type]
    ]
    nothing: Any = BatchItem("x", None)
    back: Any = tokenizer.decode_batch([*bad, nothing, *fine])
    assert [row.data is None for row in back.responses] == [True] * (len(bad) + 1) + [False] * 3
    assert {back.get_by_id(name).data.text for name in "gnl"} == {"hello"}
    with pytest.raises(UserError, match="expected a BatchItem"):
        tokenizer.encode_batch([None])  # type: ignore[list-item]


ANY: list[Any] = [
    None, True, False, 0, 1, 3, -1, 2**64, 10**400, 0.0, 0.5, 1.0, 1.5, -0.0, 1e-46, 1e-300, 2.0,
    math.nan, math.inf, -math.inf, "", "a", "hello the", "\ud800", "é🙂", b"", b"a", (), [], {},
    ("a",), ("", "b"), (1, 2), (1, 2.0), [5, 6], (-1,), (278,), (279,), {"a"}, np.int64(4),
    np.float32(0.5), np.float64("nan"), np.array([1, 2]), np.array([0.5]), np.array([]),
    np.array("a"), np.bool_(True), 1j, range(3), iter([1]), object, SimpleNamespace(), "1",
    "x" * 999,
    Ellipsis, lambda: 1, (None,), ((1,),), np.array([True]), np.array([2**40]), frozenset(),
]  # fmt: skip


@pytest.mark.fuzz
def test_any_request_is_answered_or_refused(path):
    """Fields of every type: refused where it is built, or an answer or an error where it runs."""
    engines = [open_engine("numpy", path), open_engine("baseline", path)]
    good = [BatchItem(f"g{i}", request) for i, request in enumerate(GOOD)]
    alone = [texts_of(engine.infer_batch(good)) for engine in engines]
    names = [field.name for field in dataclasses.fields(InferenceBatchRequest)]
    for seed in seeds("requests"):
        rng = random.Random(seed)
        fields = {name: rng.choice(ANY) for name in names if rng.random() < 0.3 or name == "prompt"}
        if rng.random() < 0.6:
            fields["prompt"] = rng.choice(["hello", (5, 6), np.array([7]), "a"])
        try:
            built: Any = InferenceBatchRequest(**fields)
        except UserError:
            built = rng.choice([forced(fields), rng.choice(ANY)])
        if isinstance(built, InferenceBatchRequest) and isinstance(built.max_tokens, int):
            object.__setattr__(built, "max_tokens", min(built.max_tokens, 5))
        for engine, want in zip(engines, alone, strict=True):
            result = engine.infer_batch([good[0], BatchItem("x", built), good[1]])
            found = texts_of(result)
            assert [found[0], found[2]] == want, f"seed {seed}"
            row = result.responses[1]
            assert (row.data is None) == bool(row.error), f"seed {seed}"
            assert row.data is None or all(0 <= i < 279 for i in row.data.token_ids)


FORKS = """
import os, signal, threading, time
from tests.tokenizer_cases import toy_metadata
from batchgauge.core.tokenizer.bpe_plain import PlainEncoder
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.core.tokenizer.vocabulary import Vocabulary

vocabulary = Vocabulary.from_metadata(toy_metadata("llama-bpe"))
tokenizers = [BPETokenizer(vocabulary), BPETokenizer(vocabulary, PlainEncoder(vocabulary))]
texts = ["the quick brown fox " * 400, "über 1234 字 "] * 20
want = [t.encode_many(texts) for t in tokenizers]
over = threading.Event()

def work(tokenizer):
    while not over.is_set():
        tokenizer.encode_many(texts)
        tokenizer.encode(texts[0])

for t in tokenizers:
    for _ in range(2):
        threading.Thread(target=work, args=(t,), daemon=True).start()
children = []
for _ in range(12):
    time.sleep(0.003)
    child = os.fork()
    if not child:
        signal.alarm(60)
        same = all(t.encode_many(texts) == w for t, w in zip(tokenizers, want))
        os._exit(0 if same else 1)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
over.set()
print(codes.count(0))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_children_encode_while_another_thread_does():
    """No child waits for a lock that a thread of its parent holds."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.fail("A forked child hangs; expected that it encodes with a lock of its own.")
    assert done.stdout == "12\n", done.stderr
