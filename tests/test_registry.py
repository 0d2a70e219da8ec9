"""Names to tokenizers and engines, the user's own, and the checks on what is not ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.tiny_model import write_tiny_model

from batchgauge import extras
from batchgauge.adapters.checks import CheckedEngine, check_vocabulary
from batchgauge.errors import UserError
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.registry import (
    known_engines,
    known_tokenizers,
    missing_packages,
    open_engine,
    open_tokenizer,
)
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    InferenceBatchRequest,
    InferenceBatchResponse,
)

ITEMS = [BatchItem(name, InferenceBatchRequest("the world", max_tokens=3)) for name in "ab"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny GGUF."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def here(monkeypatch):
    """The working folder is that of the user's module."""
    monkeypatch.chdir(Path(__file__).parent)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p) != Path(__file__).parent])


class Answering:
    """An engine that answers whatever `change` makes of the right responses."""

    name = "answering"

    def __init__(self, change=lambda rows: rows, most=8):
        self._change, self._most, self.extra = change, most, "seen"

    def max_batch_size(self):
        """The limit it was made with."""
        return self._most

    def infer_batch(self, items):
        """One word for each item, changed."""
        rows = [BatchResponse(i.id, InferenceBatchResponse("x", 1), 1.0) for i in items]
        changed = self._change(rows)
        return BatchResult.of(changed, 2.0) if isinstance(changed, list) else changed


@pytest.mark.parametrize("spec", ["numpy", "baseline"])
def test_our_own_open_by_name(spec, model):
    """Our tokenizers and engines satisfy the protocols and answer."""
    tokenizer, engine = open_tokenizer(spec, model), open_engine(spec, model)
    assert isinstance(tokenizer, Tokenizer)
    assert isinstance(engine, Engine)
    assert (tokenizer.name, engine.name) == (spec, spec)
    assert engine.infer_batch(ITEMS).all_succeeded()


@pytest.mark.parametrize(("opener", "names"), [
    (open_tokenizer, known_tokenizers()), (open_engine, known_engines()),
])  # fmt: skip
def test_an_unknown_name_is_said_with_those_known(opener, names):
    """A misspelt name lists every name there is, and the form of one's own."""
    with pytest.raises(UserError, match="'nmupy' is unknown") as caught:
        opener("nmupy")
    assert all(name in str(caught.value) for name in names)
    assert "package.module:factory" in str(caught.value)


def test_a_missing_package_is_said_with_its_extra(monkeypatch):
    """A library that is not installed names the extra that installs it; nothing is imported."""
    monkeypatch.setattr(extras, "_installed", lambda package: package != "torch")
    with pytest.raises(UserError, match=r"needs torch.*pip install 'batchgauge\[transformers\]'"):
        open_engine("transformers")
    assert missing_packages("transformers:bfloat16") == ("torch",)
    assert missing_packages("numpy") == ()
    assert missing_packages("mine.module:factory") == ()
    with pytest.raises(UserError, match="unknown"):
        missing_packages("nothing")


def test_arguments_that_make_no_sense(model):
    """No threads, an argument to a name that takes none, and an unknown variant are said."""
    with pytest.raises(UserError, match="threads is 0"):
        open_engine("numpy", model, threads=0)
    with pytest.raises(UserError, match="weights is 'fast'; expected one of float32, file"):
        open_engine("numpy:fast", model)
    with pytest.raises(UserError, match="takes no argument; got 'fast'"):
        open_engine("baseline:fast", model)


@pytest.mark.usefixtures("here")
def test_an_engine_of_ones_own(model):
    """`module:factory` is found from the working folder, called, checked and wrapped."""
    engine = open_engine("user_engine:make_engine", model)
    result = engine.infer_batch(ITEMS)
    assert isinstance(engine, CheckedEngine)
    assert engine.name == "bigram"
    assert [r.data.tokens_generated for r in result.responses if r.data] == [3, 3]


def test_a_factory_gets_what_it_asks_for(tmp_path, monkeypatch, model):
    """Model and threads are handed to a factory whose signature names them."""
    code = (
        "def make(threads, model=None):\n"
        "    from tests.test_registry import Answering\n"
        "    engine = Answering()\n"
        "    engine.got = (threads, str(model))\n"
        "    return engine\n"
        "nothing = 3\n"
        "def number():\n"
        "    return 7\n"
    )
    (tmp_path / "own_factory.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    engine = open_engine("own_factory:make", model, threads=1)
    assert engine.got == (1, str(model))  # type: ignore[attr-defined]  # passes through
    with pytest.raises(UserError, match="nothing callable named 'nothing'"):
        open_engine("own_factory:nothing")
    with pytest.raises(UserError, match=r"made a int, which is no engine.*infer_batch"):
        open_engine("own_factory:number")
    with pytest.raises(UserError, match=r"made a int, which is no tokenizer.*encode_many"):
        open_tokenizer("own_factory:number")
    with pytest.raises(UserError, match="neither a known name nor a module"):
        open_tokenizer("no_such_module:make")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:1], "1 responses to 2 items"),
        (lambda rows: rows[::-1], "answered the item 'a' under the id 'b'"),
        (lambda rows: [rows[0], BatchResponse("c", rows[1].data, 1.0)], "under the id 'c'"),
        (lambda rows: [rows[0], BatchResponse("b", None, 1.0)], "neither data nor an error"),
        (lambda rows: [rows[0], BatchResponse("b", rows[1].data, 1.0, "oh")], "with both"),
        (tuple, "returned a tuple; expected a BatchResult"),
    ],
)
def test_a_result_that_does_not_fit_its_request(change, said):
    """Missing, swapped, foreign or contradictory responses are said with item and id."""
    with pytest.raises(UserError, match=said):
        CheckedEngine(Answering(change)).infer_batch(ITEMS)


def test_a_checked_engine_lets_the_rest_through():
    """Right answers, errors per item, and other attributes pass; an impossible limit does not."""
    failing = Answering(lambda rows: [rows[0], BatchResponse("b", None, 1.0, "no")])
    engine = CheckedEngine(failing)
    assert engine.infer_batch(ITEMS).success_count() == 1
    assert engine.extra == "seen"
    assert engine.max_batch_size() == 8
    with pytest.raises(UserError, match="at most 0"):
        CheckedEngine(Answering(most=0)).max_batch_size()


def test_a_vocabulary_that_does_not_fit(model):
    """A tokenizer with more ids than the model is said."""
    tokenizer = open_tokenizer("numpy", model)
    check_vocabulary(tokenizer, tokenizer.vocab_size)
    with pytest.raises(UserError, match="made for this model"):
        check_vocabulary(tokenizer, tokenizer.vocab_size - 1)
