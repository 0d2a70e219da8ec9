"""The peers study: equal output before timing, ratios the right way round, absent peers said."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from tests.conftest import chart_of, rows_of
from tests.tiny_model import write_tiny_model

from batchgauge.clock import Elapsed
from batchgauge.core.default_model import open_model
from batchgauge.errors import UserError
from batchgauge.experiments.context import Context
from batchgauge.experiments.peers import figures, sections, servers
from batchgauge.experiments.peers import participants as peers
from batchgauge.experiments.peers import rates as peers_rates
from batchgauge.experiments.peers.participants import Peers
from batchgauge.machine.identity import Run
from batchgauge.measuring import Amount, Labels, to_frame
from batchgauge.protocols import TokenBatch
from batchgauge.registry import missing_packages, open_tokenizer
from batchgauge.reporting import Section
from batchgauge.reporting.profiles import profile_named

HELD = Section("loads", {"load": pd.DataFrame(
    {"engine": ["numpy", "llama-cpp"], "rss_after_batch_mib": [700.0, 300.0]}
)})  # fmt: skip

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


def records(rates, *, processes=5, blocks=4):
    """Records of a pair: {implementation: (tokens a second, log noise of a block)}."""
    rng = np.random.default_rng(0)
    frames = []
    for process in range(processes):
        rows = [
            Labels("b", name, "decode", {}, process).sample(
                Amount(8, 8, 8),
                Elapsed(round(8e9 / rate * np.exp(noise * rng.choice([-1, 1]))), 0, 1),
                block=block, position=0, is_warmup=block == 0,
            )
            for name, (rate, noise) in rates.items()
            for block in range(blocks + 1)
        ]  # fmt: skip
        frames.append(to_frame(rows, Run.here()).assign(characters=0))
    return pd.concat(frames, ignore_index=True).assign(pair=list(rates)[-1])


def test_ratios_are_ours_over_theirs():
    """A slower peer gives a ratio above 1 and `faster`; each of ours beside it has its own."""
    rows = {"numpy:float32": (300, 0.01), "numpy:file": (50, 0.01), "torch": (100, 0.01)}
    table = peers_rates.table(records(rows)).to_dict("records")
    found = {(row["implementation"], row["ours"]): row for row in table}
    ours = found["numpy:float32", ""]
    assert np.isnan(ours["ours_over_theirs_x"])
    assert ours["low"] <= ours["value"] <= ours["high"]
    won, lost = (found["torch", f"numpy:{mode}"] for mode in ("float32", "file"))
    assert won["ours_over_theirs_x"] == pytest.approx(3.0, rel=0.05)
    assert won["ratio_low_x"] <= won["ours_over_theirs_x"] <= won["ratio_high_x"]
    assert (won["ours_is"], lost["ours_is"]) == ("faster", "slower")
    assert (won["processes"], won["pair"]) == (5, "torch")


def test_an_unstable_peer_has_no_ratio():
    """Where one side's blocks differ by more than 15 % and overlap, that is all that is said."""
    table = peers_rates.table(records({"numpy:float32": (300, 0.01), "torch": (250, 0.3)}))
    row = table[table["implementation"] == "torch"].iloc[0]
    assert row["ours_is"] == "unstable"
    assert np.isnan(row["ours_over_theirs_x"])
    assert row["spread"] == row["larger_spread"] > 0.15
    said = f"15 %, most torch (decode 8, 1 thread: {100 * row['spread']:.0f} %)."
    assert sections.unstable_sentence(table).endswith(said)
    unsaid = "in 1 a side is too unstable to say"
    assert sections.sentence(table, "decode").endswith(f"slower in 0; {unsaid}")
    assert figures.ratios(table).title.endswith("in 0 of 1, slower in 0 (1 unstable, not drawn)")


@pytest.mark.parametrize(("theirs", "is_"), [(900, "slower"), (100, "faster")])
def test_an_unstable_peer_far_away_is_a_win_or_a_loss_without_a_ratio(theirs, is_):
    """Blocks that never overlap say who is faster, however much they differ; a loss is listed."""
    pair = {"numpy:float32": (300, 0.01), "torch": (theirs, 0.3)}
    table = peers_rates.table(records(pair))
    row = table[table["implementation"] == "torch"].iloc[0]
    assert row["ours_is"] == is_
    assert np.isnan(row["ours_over_theirs_x"])
    said = sections.sentence(table, "decode")
    assert "(in 1 of these without a ratio, since a side is unstable)" in said
    assert ("; slower without a ratio: torch (decode, batch 8" in said) == (is_ == "slower")
    assert sections.unstable_sentence(table)
    assert not sections.goals(table)
    assert figures.verdicts(table) == figures.tally(table)
    engines, nobody = Section("engines", {"engines": table}), Section("words", {"words": table[:0]})
    answer = sections.answer(nobody, engines, nobody, HELD)
    (tile,) = answer.tiles
    for said in (answer.text, tile.text):
        assert ("slower without a ratio: torch" in said) == (is_ == "slower")
    assert answer.text.endswith("ours holds 700 MiB after a batch of 8, llama.cpp 300 MiB.")
    few = peers_rates.table(records(pair, processes=2))
    assert few["ours_is"].tolist() == ["", "unstable"]


def test_whose_blocks_differ_is_said_with_their_spread():
    """Where ours is the unstable side, ours is named, with its own spread and not the peer's."""
    table = peers_rates.table(records({"numpy:float32": (300, 0.3), "torch": (100, 0.01)}))
    ours, theirs = (table[table["implementation"] == n].iloc[0] for n in ("numpy:float32", "torch"))
    assert theirs["larger_spread"] == ours["spread"] > 0.15 > theirs["spread"]
    said = f"ours, float32, beside torch (decode 8, 1 thread: {100 * ours['spread']:.0f} %)."
    assert sections.unstable_sentence(table).startswith("1 comparison without a ratio, since")
    assert sections.unstable_sentence(table).endswith(said)


def test_two_processes_are_too_few_for_a_verdict():
    """Nothing that was measured twice is called faster."""
    rates = {"numpy:float32": (300, 0.001), "torch": (100, 0.001)}
    table = peers_rates.table(records(rates, processes=2))
    assert table["ours_is"].tolist() == ["", "too few"]
    said = "in 1 there are too few processes to say"
    assert figures.verdicts(table).endswith(f"slower in 0; {said}")
    assert "told apart" not in figures.verdicts(table)
    assert figures.extremes(table) == f"{figures.tally(table)}."
    assert not sections.goals(table.assign(implementation="transformers"))
    engines, nobody = Section("engines", {"engines": table}), Section("words", {"words": table[:1]})
    (tile,) = sections.answer(nobody, engines, nobody, HELD).tiles
    assert tile.value == "Engines: no verdict on 1 comparison"


def test_the_best_and_the_worst_are_told_apart():
    """A ratio that nobody can tell from 1, or of too few processes, is no best and no worst."""
    rows = [("faster", 2.0), ("not told apart", 0.7), ("too few", 0.1), ("too few", 9.0),
            ("slower", 0.8), ("unstable", np.nan), ("", np.nan)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["ours_is", "ours_over_theirs_x"])
    table = table.assign(implementation="torch", batch_size=8)
    said = "At best 2.0 × torch (batch 8), at worst 0.80 × torch (batch 8)."
    assert figures.extremes(table) == said
    alone = figures.extremes(table[table["ours_is"] != "slower"])
    assert alone == "The only ratio that could be told from 1: 2.0 × torch (batch 8)."
    assert figures.verdicts(table) == (
        "Of 6 comparisons with other engines we are faster in 1 and slower in 1; in 1 the two are "
        "not told apart; in 2 there are too few processes to say; in 1 a side is too unstable to "
        "say; at worst 0.80 × torch (batch 8)"
    )


def test_the_tokenizing_study(field):
    """Warm and cold rows of every shape and tokenizer, a picture, and a sentence that names it."""
    warm, cold = sections.tokenizing(field, lengths=(40, 200), sizes=(1, 2))
    table = warm.frame
    assert set(table["state"]) == {"warm", "cold"}
    assert set(table["implementation"]) == {"numpy", "baseline"}
    assert (table["value"] > 0).all()
    assert set(warm.frames()["tokenizing_samples"]["part"]) >= {"tokenize"}
    assert set(table["ours_is"]) <= {"", "faster", "inconclusive", "not told apart", "unstable"}
    rows = table[table["state"] == "cold"]
    drawn = rows_of(chart_of(cold))
    for length in (40, 200):
        wanted = rows[(rows["characters"] == length) & (rows["threads"] == 1)]
        shown = drawn.loc[drawn["panel"] == f"{length} characters", "value"]
        assert all(np.isclose(shown, value, rtol=1e-5).any() for value in wanted["value"])


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
    assert set(table["implementation"]) == {"numpy:file", "llama-cpp"}
    steps = table[(table["part"] == "decode") & (table["threads"] == 1)]
    drawn = steps.drop_duplicates(["implementation", "batch_size"])["value"].tolist()
    assert rows_of(chart_of(decode))["value"].tolist() == pytest.approx(drawn, rel=1e-5)
    compared = table["ours_over_theirs_x"].notna()  # of a tiny model, perhaps none is steady enough
    drawn_ratios = [row for row in rows_of(chart_of(ratios)).to_dict("records") if row]
    assert len(drawn_ratios) == compared.sum()
    assert "llama.cpp" in decode.sentence() + ratios.sentence()
    assert "llama-cpp" in peers.conditions_table(field)["peer"].tolist()


def test_goals_beside_peers_are_scored_where_the_peer_was_measured():
    """Rows of the wanted shape become scores, losses are said; without a peer there are none."""
    rows = [
        {"part": "decode", "threads": 1, "batch_size": b, "tokens": 1, "implementation": name,
         "ours": ours, "value": 9.0, "low": 8.0, "high": 10.0, "ours_over_theirs_x": x,
         "ratio_low_x": 0.9 * x, "ratio_high_x": 1.1 * x, "ours_is": is_}
        for b, name, ours, x, is_ in [
            (8, "transformers", "numpy:float32", 3.0, "faster"),
            (2, "transformers", "numpy:float32", 0.5, "slower"),
            (8, "numpy:float32", "", np.nan, ""),
        ]
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    (score,) = sections.goals(table)
    assert score.key == "peers_decode_8_1_numpy_float32_transformers"
    assert (score.goal, score.verdict) == (2.0, "met")
    said = sections.sentence(table, "decode")
    assert "0.50 × (batch 2, float32, 1 thr.) to 3.0 × (batch 8" in said
    assert "slower: 0.50 × (batch 2, float32, 1 thr.) beside" in said
    assert sections.sentence(table[2:], "decode") == "No other engine is installed"
    assert not sections.goals(table[2:])
    assert len(rows_of(figures.ratios(table))) == 2


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


def test_without_a_server_of_llama_cpp_nothing_is_served(field, monkeypatch):
    """The section says so, and neither table nor goal is there."""
    found = sections.serving(field)
    assert found.sentence() == "No server of llama.cpp is installed here."
    assert not found.frames()
    assert not found.scores()
    monkeypatch.setattr(servers, "PAIRS", {"numpy": "numpy:file"})
    monkeypatch.setattr(servers, "their_server", lambda: "")
    assert not sections.serving(field).frames()


@pytest.mark.slow
def test_two_servers_take_turns_on_the_same_requests(field, monkeypatch):
    """Both are started, loaded alike and ended; here a second one of ours is the peer."""
    monkeypatch.setattr(servers, "PAIRS", {"baseline": "numpy:file"})
    monkeypatch.setattr(servers, "their_server", lambda: "a-server")
    model = field.context.model
    theirs = servers.our_command("numpy:float32", model, 1)
    monkeypatch.setattr(servers, "their_command", lambda *_: theirs)
    found = sections.serving(field)
    table, samples = (found.frames()[name] for name in ("servers", "servers_runs"))
    weights = dict(zip(table["implementation"], table["weights"], strict=True))
    assert len(table) == 2
    assert set(weights) == {"numpy:file", "baseline"}
    assert weights["numpy:file"] == "file"
    assert samples["implementation"].tolist() == ["numpy:file", "baseline"]
    assert (samples["answers"] >= servers.STREAMS).all()
    assert "With 8 streams" in found.sentence()
    assert "a-server" in found.sentence()


def test_a_server_that_does_not_start_is_said_and_left_out(field, monkeypatch):
    """The notebook goes on without that pair."""
    monkeypatch.setattr(servers, "PAIRS", {"baseline": "numpy:file"})
    monkeypatch.setattr(servers, "their_server", lambda: "a-server")
    failing = f"{shlex.quote(sys.executable)} -c 'import sys; sys.exit(\"no luck\")' {{slots}}"
    for name in ("our_command", "their_command"):
        monkeypatch.setattr(servers, name, lambda *_: failing)
    found = sections.serving(field)
    assert not found.frames()
    assert found.sentence().startswith("Left out is the server beside baseline: The launched")
    assert "no luck" in found.sentence()


def test_a_command_of_a_server_keeps_odd_paths(tmp_path, monkeypatch):
    """Blanks and braces in a path are part of it, not of the command."""
    monkeypatch.setattr(servers, "their_server", lambda: "/opt/llama {x}/llama-server")
    odd = tmp_path / "a {b} c.gguf"
    write_tiny_model(odd)
    command = servers.their_command("llama-cpp", open_model(str(odd)), 2)
    words = shlex.split(command.format(slots=8, port=80))
    assert words[:3] == ["/opt/llama {x}/llama-server", "--model", str(odd)]
    assert words[-4:] == ["--parallel", "8", "--port", "80"]
    room = int(words[words.index("--ctx-size") + 1])
    assert room >= servers.STREAMS * (servers.PROMPT + servers.NEW)
