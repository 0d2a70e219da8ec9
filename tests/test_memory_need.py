"""Memory before loading: refusals with numbers, on invented limits; what a model needs."""

from __future__ import annotations

import re

import pytest
from tests.tiny_model import write_tiny_model

from batchgauge.core import memory_need
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.memory_need import check_memory, mode_of, need
from batchgauge.core.model_facts import ModelFacts
from batchgauge.errors import UserError
from batchgauge.experiments.context import Context
from batchgauge.registry import open_engine
from batchgauge.reporting import profile_named
from batchgauge.reporting.study import run_study


@pytest.fixture
def model(tmp_path):
    """A model most of whose weights are quantised: modes differ."""
    return write_tiny_model(
        tmp_path / "m.gguf", d_model=512, d_ff=2048, layers=4, quantisation="Q8_0"
    )


def test_needs_add_up_and_follow_the_mode(model):
    """Weights as `Weights` counts them; the cache by requests and tokens, within the context."""
    facts = ModelFacts.read(model)
    full, kept = need(facts, "float32"), need(facts, "file")
    assert full.weights == facts.weights_bytes["float32"] > 3 * kept.weights
    assert full.total == full.weights + full.cache + full.work + full.tokenizer
    assert need(facts, "file", (8, 64)).cache == 8 * need(facts, "file", (1, 64)).cache
    assert need(facts, "file", (1, 10**6)).cache == need(facts, "file", (1, 128)).cache


def test_what_is_free_decides(model):
    """Enough is silent; a byte less names the numbers and the ways that would fit."""
    facts = ModelFacts.read(model)
    whole, kept = need(facts, "float32").total, need(facts, "file").total
    check_memory(facts, "float32", free=whole)
    with pytest.raises(UserError, match=r"needs 0\.\d+ GB of memory with weights=float32") as found:
        check_memory(facts, "float32", free=whole - 1)
    assert "weights=file needs" in str(found.value)
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match="even weights=file needs"):
        check_memory(facts, "float32", free=kept // 2)
    with pytest.raises(UserError, match="no other way to keep its weights takes less"):
        check_memory(facts, "file", free=kept // 2)
    batch = (64, 128)
    with pytest.raises(UserError, match=r"batches of \d+ would fit") as found:
        check_memory(facts, "file", batch, free=need(facts, "file", batch).total - 1)
    (said,) = re.findall(r"batches of (\d+)", str(found.value))
    check_memory(facts, "file", (int(said), 128), free=need(facts, "file", batch).total - 1)


@pytest.mark.parametrize(
    "spec",
    [
        *("numpy", "numpy:file", "baseline"),
        *(pytest.param(spec, marks=pytest.mark.peers) for spec in ("transformers", "llama-cpp")),
    ],
)
def test_every_way_to_open_asks_first(model, monkeypatch, spec):
    """As function, by the registry and in a notebook's context: before anything is loaded."""
    monkeypatch.setattr(memory_need, "usable_memory", lambda: (2**30, 10_000_000))
    with pytest.raises(UserError, match="are free"):
        open_engine(spec, model)
    with pytest.raises(UserError, match="are free"):
        _ = Context(profile_named("smoke"), engine_spec=spec, model=str(model)).engine
    with pytest.raises(UserError, match="are free"):
        BatchInferenceEngine.from_gguf(model, "file")


def test_a_study_asks_before_its_first_notebook(model, monkeypatch, tmp_path):
    """Nothing is run or written for a model that does not fit, or is not there."""
    for folder, said in (("", "are free"), ("gone/", "cannot be read")):
        monkeypatch.setattr(memory_need, "usable_memory", lambda: (2**30, 10_000_000))
        named = {"model": str(model.parent / folder / model.name)}
        with pytest.raises(UserError, match=said):
            run_study(profile="smoke", only=["00"], parameters=named, out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_others_nothing_is_known():
    """Servers and users' own engines are not refused."""
    assert mode_of("openai:http://localhost:1/v1") is None
    assert mode_of("mine:make") is None
    assert mode_of("numpy:bfloat16") == ("bfloat16", 1.0)
    assert mode_of("transformers:bfloat16,cuda") == mode_of("transformers:bfloat16")
