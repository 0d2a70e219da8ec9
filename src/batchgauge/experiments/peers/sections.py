"""The peers notebook's questions, one function each: measured, drawn and put into words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from batchgauge.experiments.peers import engines, figures, load, participants
from batchgauge.experiments.peers.participants import Peers, records
from batchgauge.experiments.peers.tokenizing import measure_tokenizing
from batchgauge.machine import preflight
from batchgauge.machine.identity import Machine
from batchgauge.reporting import Answer, Score, Section, Tile, plots
from batchgauge.reporting.tables import number

GOALS = {  # (part, batch size, peer) -> our throughput over theirs, one thread
    ("decode", 8, "transformers"): 2.0,
    ("decode", 32, "transformers"): 2.0,
    ("decode", 8, "transformers:bfloat16"): 1.2,
    ("decode", 32, "transformers:bfloat16"): 1.2,
    ("decode", 8, "llama-cpp:f32"): 1.3,
    ("decode", 32, "llama-cpp:f32"): 1.3,
    ("prefill", 1, "llama-cpp:f32"): 1.2,
}


take_part = Peers.open


def conditions(peers: Peers) -> Section:
    """Who takes part and how, on which machine, and who is passed over."""
    remedy = preflight.check().remedy
    where = f"Measured on {Machine.here().describe()}." + (f" {remedy}" if remedy else "")
    return Section(
        "conditions", {}, f"{where} {peers.absent_sentence()}",
        participants.conditions_table(peers),
        "Who takes part: versions, build flags, and the way each is used.",
    )  # fmt: skip


def equality(peers: Peers) -> tuple[Section, Section]:
    """Token ids and greedy answers beside ours; who differs is not timed."""
    ids, answers = participants.same_ids(peers), participants.same_answers(peers)
    return (
        Section("ids", {}, "", ids, "Token ids on prose, code and other scripts, beside ours."),
        Section(
            "answers", {"equality": answers}, equality_sentence(ids, answers), answers,
            "Greedy answers, and the logits of a ragged prefill and a decode step, beside ours.",
        ),
    )  # fmt: skip


def tokenizing(
    peers: Peers, *, lengths: Sequence[int], sizes: Sequence[int]
) -> tuple[Section, Section]:
    """MB/s of every tokenizer, warm and cold."""
    table, samples = measure_tokenizing(peers, lengths, sizes)
    data = {"tokenizing": table, "tokenizing_samples": samples}
    caption = (
        "Tokenizing throughput by batch size and text length, warm, one thread, with 95 % "
        "intervals."
    )
    warm, cold = (
        (tokenizing_sentence(table, state), partial(figures.tokenizing, _state(table, state)))
        for state in ("warm", "cold")
    )
    return (
        Section(
            "peers_tokenizing_warm", data, f"{warm[0]}.",
            picture=partial(warm[1], warm[0], "warm"), picture_caption=caption,
        ),
        Section(
            "peers_tokenizing_cold", {}, f"{cold[0]}.", table,
            "Tokenizing: MB/s with 95 % intervals, and our throughput over theirs.",
            partial(cold[1], cold[0], "cold"), "The same on empty caches.",
        ),
    )  # fmt: skip


def prefill_and_decode(peers: Peers, *, decode_sizes: Sequence[int]) -> tuple[Section, Section]:
    """Tokens a second of every engine; our throughput over each peer's, with its goals."""
    table, samples = engines.measure_engines(peers, decode_sizes)
    decode = sentence(table, "decode")
    compared = _compared(table)
    return (
        Section(
            "peers_decode", {"engines": table, "engines_samples": samples}, f"{decode}.",
            picture=partial(figures.decode, table[table["part"] == "decode"], decode),
            picture_caption="Decode throughput by batch size, with 95 % intervals.",
        ),
        Section(
            "peers_ratios", {"engines": table}, f"{sentence(table, 'prefill')}.", table,
            "Prefill and decode: tokens/s with 95 % intervals, and our throughput over theirs.",
            partial(figures.ratios, compared),
            "Our throughput over each peer's on one thread, with 95 % intervals.",
            goals(compared),
        ),
    )  # fmt: skip


def loading(peers: Peers) -> Section:
    """Seconds to load, and memory held, each engine in a process of its own."""
    table = engines.load_table(peers)
    caption = "Seconds to import, to load and for the first batch; resident memory after each."
    return Section("load", {"load": table}, load_sentence(table), table, caption)


def goals(compared: pd.DataFrame) -> list[Score]:
    """The goals beside peers as rows of the scorecard; `compared` has a row a shape and peer."""
    scores = []
    for (part, batch, peer), goal in GOALS.items():
        rows = compared[
            (compared["part"] == part)
            & (compared["batch_size"] == batch)
            & (compared["implementation"] == peer)
        ]
        for row in records(rows):
            prompts = f"Prefill of {batch} × {row['tokens']} tokens"
            what = prompts if part == "prefill" else f"Decode at batch {batch}"
            key = f"peers_{part}_{batch}_{peer.replace(':', '_').replace('-', '_')}"
            ratio, low, high = (
                row[c] for c in ("ours_over_theirs_x", "ratio_low_x", "ratio_high_x")
            )
            label = f"{what} beside {plots.label(peer)}"
            scores.append(Score(key, label, goal, ratio, low, high, "×", of_model=True))
    return scores


def _state(table: pd.DataFrame, state: str) -> pd.DataFrame:
    return table[(table["threads"] == 1) & (table["state"] == state)]


def tokenizing_sentence(table: pd.DataFrame, state: str) -> str:
    """Our rate over each peer's at the largest batch, from the shortest to the longest text."""
    table = _state(table, state)
    largest = table[table["batch_size"] == table["batch_size"].max()].dropna(
        subset=["ours_over_theirs_x"]
    )
    if largest.empty:
        return "No other tokenizer is installed"
    parts = [
        f"{_span(rows['ours_over_theirs_x'])} × {plots.label(str(name))}"
        for name, rows in largest.groupby("implementation", sort=False)
    ]
    return f"At batch {largest['batch_size'].iloc[0]}, {state}, we run at {', '.join(parts)}"


def _span(values: Sequence[float] | pd.Series[Any]) -> str:
    low, high = (number(end, 2) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def sentence(table: pd.DataFrame, part: str) -> str:
    """Our decode or prefill throughput over each peer's at the largest batch, one thread."""
    table = table[(table["part"] == part) & (table["threads"] == 1)]
    rows = table[table["batch_size"] == table["batch_size"].max()]
    rows = rows.dropna(subset=["ours_over_theirs_x"])
    if rows.empty:
        return "No other engine is installed"
    parts = [
        f"{number(r['ours_over_theirs_x'], 2)} × {plots.label(r['implementation'])}"
        for r in records(rows)
    ]
    size, tokens = rows["batch_size"].iloc[0], rows["tokens"].iloc[0]
    where = f"At batch {size}" if part == "decode" else f"With {size} × {tokens} tokens"
    return f"{where} we {part} at {', '.join(parts)}"


def load_sentence(table: pd.DataFrame) -> str:
    """Who loads and holds how much."""
    parts = [
        f"{row['engine']} {row['import_s'] + row['load_s']:.1f} s "
        f"and {row['rss_after_batch_mib']:,.0f} MiB"
        for row in records(table)
    ]
    return f"To import and load, and resident after a batch of {load.BATCH}: {'; '.join(parts)}."


def equality_sentence(ids: pd.DataFrame, answers: pd.DataFrame) -> str:
    """Whether outputs were equal before anything was timed."""
    exact = answers[answers["float32"]]
    same = exact[exact["equal_answers"] == exact["prompts"]]["engine"].tolist()
    others = answers[~answers["float32"]]
    text = (
        f"Before timing, {int(ids['identical'].sum())} of {len(ids)} tokenizers gave identical ids "
        f"on {ids['texts'].iloc[0]} texts, and {len(same)} of {len(exact)} float32 engines the "
        f"same greedy tokens on {answers['prompts'].iloc[0]} prompts"
    )
    if len(others):
        text += "; of those with fewer bits " + ", ".join(
            f"{row['engine']} agrees on {row['equal_answers']} of them, logits differ by up to "
            f"{row['largest_logit_difference']:.2g}"
            for row in records(others)
        )
    return text + "."


def answer(words: Section, steps: Section, answers: Section) -> Answer:
    """How many comparisons we win and lose, the worst of them, and whether outputs were equal."""
    engines = _compared(steps.frame)
    tokenizers = _compared(words.frame)
    said = [
        figures.verdicts(table, what)
        for table, what in ((engines, "engines"), (tokenizers, "tokenizers"))
        if len(table)
    ]
    if not said:
        return Answer("No other engine or tokenizer is installed, so nothing is compared.")
    tiles = []
    for table, what in ((engines, "engines"), (tokenizers, "tokenizers")):
        if len(table):
            counts = table["ours_is"].value_counts()
            value = (
                f"{what.capitalize()}: faster in {counts.get('faster', 0)}, slower in "
                f"{counts.get('slower', 0)} of {len(table)}"
            )
            tiles.append(Tile("peers", value, figures.extremes(table)))
    text = " ".join(f"{part}." for part in said)
    return Answer(f"{text} {answers.sentence()}", "peers_ratios", tiles)


def _compared(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of one thread in which somebody is beside us."""
    return table.query("threads == 1").dropna(subset=["ours_over_theirs_x"])
