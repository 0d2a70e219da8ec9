"""The peers study: equal output before timing, ratios the right way round, absent peers said."""

from __future__ import annotations

import math
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from tests.conftest import axes_of, chart_of, rows_of
from tests.tiny_model import write_tiny_model

from batchgauge.adapters.own import NumpyStepper
from batchgauge.errors import UserError
from batchgauge.experiments.context import Context
from batchgauge.experiments.peers import engines as peers_engines
from batchgauge.experiments.peers import participants as peers
from batchgauge.experiments.peers import rates as peers_rates
from batchgauge.experiments.peers import sections
from batchgauge.experiments.peers.participants import Peers
from batchgauge.measuring import Design, Stopping, compare_interleaved
from batchgauge.protocols import TokenBatch
from batchgauge.registry import missing_packages, open_tokenizer
from batchgauge.reporting.profiles import profile_named

mpl.use("Agg")
SMOKE = profile_named("smoke")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny GGUF."""
    return str(write_tiny_model(tmp_path_factory.mktemp("m") / "tiny.gguf", context_length=512))


@pytest.fixture
def field(model, monkeypatch):
    """Ours and a second copy of ours under another name."""
    monkeypatch.setattr(peers, "TOKENIZERS", ("numpy", "baseline"))
    monkeypatch.setattr(peers, "ENGINES", ("numpy", "baseline"))
    return Peers.open(Context(SMOKE, model=model))


def spoil(tokenizer):
    """The same tokenizer with every first id changed."""

    class Spoiled:
        name, vocab_size = "spoiled", tokenizer.vocab_size
        encode, decode, decode_many = tokenizer.encode, tokenizer.decode, tokenizer.decode_many

        def encode_many(self, texts, *, allow_special=False):
            """Ids of which the first is another."""
            rows = tokenizer.encode_many(texts, allow_special=allow_special).tolist()
            return TokenBatch.from_lists([[row[0] ^ 1, *row[1:]] if row else row for row in rows])

    return Spoiled()


def test_a_missing_peer_is_said_and_passed_over(model, monkeypatch):
    """A peer that is not installed is named with what it lacks, and the rest goes on."""
    monkeypatch.setattr(peers, "ENGINES", ("numpy",))
    monkeypatch.setattr(peers, "missing_packages", lambda _: ("tiktoken",))

    def opener(spec, path):
        if spec == "tiktoken":
            raise UserError("not here")
        return open_tokenizer("numpy", path)

    monkeypatch.setattr(peers, "open_tokenizer", opener)
    found = Peers.open(Context(SMOKE, model=model))
    assert "tiktoken" not in found.tokenizers
    assert "tiktoken (tiktoken not installed)" in found.absent_sentence()
    with pytest.raises(UserError, match="unknown"):
        Peers.open(Context(SMOKE, engine_spec="nonsense", model=model))


def test_a_tokenizer_with_other_ids_is_not_timed(field):
    """Different ids show in the table, and the tokenizer takes no further part."""
    field.tokenizers["spoiled"] = spoil(field.tokenizers["numpy"])
    table = peers.same_ids(field).set_index("tokenizer")
    assert table["identical"].to_dict() == {"numpy": True, "baseline": True, "spoiled": False}
    assert list(field.tokenizers) == ["numpy", "baseline"]
    assert "spoiled (its ids differ" in field.absent_sentence()


def test_a_float32_engine_that_answers_otherwise_is_not_timed(field, monkeypatch):
    """An engine said to be float32 whose greedy answers differ is left out."""
    monkeypatch.setattr(peers, "FLOAT32", frozenset({"numpy", "baseline"}))
    first = peers.same_answers(field)
    assert first["equal_answers"].tolist() == first["prompts"].tolist()
    assert list(field.engines) == ["numpy", "baseline"]
    ends = field.engines["numpy"].model.config.vocab_size
    field.engines["baseline"].model = None  # every request now fails
    field.engines["baseline"].infer_batch = lambda items: type(
        "Result", (), {"responses": [type("R", (), {"data": None})() for _ in items]}
    )()
    assert ends > 0
    peers.same_answers(field)
    assert list(field.engines) == ["numpy"]
    assert "its greedy answers differ" in field.absent["baseline"]


def test_our_stepper_rewinds(field):
    """After a rewind our model gives the same logits for the same step."""
    stepper = field.steppers()["numpy"]
    assert isinstance(stepper, NumpyStepper)
    stepper.prefill([[5, 6, 7], [8, 9], [4] * 9], 4)
    ids = np.array([11, 12, 13], dtype=np.int32)
    first = [stepper.decode(ids).copy() for _ in range(2)]
    stepper.rewind()
    again = [stepper.decode(ids).copy() for _ in range(2)]
    np.testing.assert_array_equal(first, again)


def test_decode_steps_go_round(field):
    """Decode steps rewind when their reserve is used up, and never run past the cache."""
    stepper = field.steppers()["numpy"]
    steps = peers_engines.DecodeSteps(stepper, 2, seed=1)
    first = np.array(steps())
    for _ in range(peers_engines.RESERVE - 1):
        steps()
    np.testing.assert_array_equal(np.array(steps()), first)


def test_ratios_are_ours_over_theirs():
    """A slower peer gives a ratio above 1, its interval turned round with it, and `faster`."""
    done = compare_interleaved(
        {"numpy": lambda: sum(range(2_000)), "slow": lambda: sum(range(20_000))},
        design=Design("numpy", control=False), stopping=Stopping(0.3, least=8, most=12),
        progress=False,
    )  # fmt: skip
    ours, slow = peers_rates.rates(done, {"numpy": 5.0, "slow": 5.0}, {"batch_size": 1})
    assert "ours_over_theirs_x" not in ours
    assert slow["ratio_low_x"] <= slow["ours_over_theirs_x"] <= slow["ratio_high_x"]
    assert slow["ours_over_theirs_x"] > 2.0
    assert slow["ours_is"] == "faster"
    assert ours["low"] <= ours["value"] <= ours["high"]
    seconds = math.exp(float(np.mean(done.logs["slow"])))
    assert slow["value"] == pytest.approx(5.0 / seconds, rel=0.5)


def test_the_tokenizing_study(field):
    """Warm and cold rows of every shape and tokenizer, a picture, and a sentence that names it."""
    warm, cold = sections.tokenizing(field, lengths=(40, 200), sizes=(1, 2))
    table = warm.frame
    assert set(table["state"]) == {"warm", "cold"}
    assert set(table["implementation"]) == {"numpy", "baseline"}
    assert (table["value"] > 0).all()
    assert set(warm.frames()["tokenizing_samples"]["part"]) >= {"tokenize"}
    assert "× baseline" in warm.sentence()
    rows = table[table["state"] == "cold"]
    for ax, length in zip(axes_of(cold), (40, 200), strict=True):
        wanted = rows[(rows["characters"] == length) & (rows["threads"] == 1)]
        drawn = np.concatenate([line.get_ydata() for line in ax.lines])
        assert set(wanted["value"]) <= set(drawn)


@pytest.mark.peers
def test_the_engine_study(model, monkeypatch):
    """Prefill and decode rows of both engines, pictures and sentences from the same table."""
    if missing := missing_packages("llama-cpp"):
        pytest.skip(f"{missing[0]} not installed")
    monkeypatch.setattr(peers, "TOKENIZERS", ("numpy",))
    monkeypatch.setattr(peers, "ENGINES", ("numpy", "llama-cpp"))
    field = Peers.open(Context(SMOKE, model=model))
    decode, ratios = sections.prefill_and_decode(field, decode_sizes=(1, 4))
    table = decode.frame
    assert set(table["part"]) == {"prefill", "decode"}
    assert set(table["implementation"]) == {"numpy", "llama-cpp"}
    lines = [line for ax in axes_of(decode) for line in ax.lines]
    drawn = np.concatenate([np.asarray(line.get_ydata()) for line in lines])
    assert set(table[table["part"] == "decode"]["value"]) <= set(drawn)
    compared = table.query("threads == 1")["ours_over_theirs_x"].notna().sum()
    assert len(rows_of(chart_of(ratios))) == compared > 0
    assert "× llama.cpp" in decode.sentence()
    assert "× llama.cpp" in ratios.sentence()
    assert "llama-cpp" in peers.conditions_table(field)["peer"].tolist()


def test_goals_beside_peers_are_scored_where_the_peer_was_measured():
    """Rows of the wanted shape become scores; without any peer there are none, and it is said."""
    rows = [
        {"part": "decode", "threads": 1, "batch_size": b, "tokens": 1, "implementation": name,
         "value": 9.0, "low": 8.0, "high": 10.0, "ours_over_theirs_x": x, "ratio_low_x": 0.9 * x,
         "ratio_high_x": 1.1 * x, "ours_is": "faster"}
        for b, name, x in [(8, "transformers", 3.0), (2, "transformers", 2.0), (8, "numpy", np.nan)]
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    (score,) = sections.goals(table.dropna())
    assert (score.key, score.goal, score.verdict) == ("peers_decode_8_transformers", 2.0, "met")
    assert "3" in sections.sentence(table, "decode")
    assert sections.sentence(table[2:], "decode") == "No other engine is installed"
    assert not sections.goals(table[2:].dropna())


def test_load_and_memory_in_a_fresh_process(field):
    """Each engine is loaded in a process of its own; one that fails is said."""
    loads = sections.loading(field)
    table = loads.frame
    assert table["engine"].tolist() == ["numpy", "baseline"]
    assert (table["rss_loaded_mib"] > 10).all()
    assert "numpy" in loads.sentence()
    field.context = replace(field.context, model="nothing.gguf")
    with pytest.raises(UserError, match="could not be loaded alone"):
        sections.loading(field)
