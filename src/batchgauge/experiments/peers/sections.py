"""The peers notebook's questions, one function each: measured, drawn and put into words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from batchgauge.experiments import fresh
from batchgauge.experiments.peers import engines, figures, load, participants, servers
from batchgauge.experiments.peers.participants import Peers
from batchgauge.experiments.peers.rates import UNSTABLE
from batchgauge.experiments.peers.tokenizing import measure_tokenizing
from batchgauge.experiments.ways import FEWER, FILE, FLOAT, ROUNDED
from batchgauge.machine import preflight
from batchgauge.machine.identity import Machine
from batchgauge.reporting import Answer, Score, Section, Tile, palette, tables
from batchgauge.reporting.tables import number
from batchgauge.text import counted, first_upper, percent, ratio
from batchgauge.text import figures as rounded

ONE, TWO = 1, 2
GOALS = {  # (part, batch size, threads, ours, peer) -> our throughput over theirs
    ("decode", 8, ONE, FLOAT, "transformers"): 2.0,
    ("decode", 32, ONE, FLOAT, "transformers"): 2.0,
    ("decode", 8, ONE, FLOAT, "transformers:bfloat16"): 1.2,
    ("decode", 32, ONE, FLOAT, "transformers:bfloat16"): 1.2,
    ("decode", 32, TWO, ROUNDED, "transformers:bfloat16"): 1.2,
    ("decode", 8, ONE, FLOAT, "llama-cpp:f32"): 1.3,
    ("decode", 32, ONE, FLOAT, "llama-cpp:f32"): 1.3,
    ("decode", 1, ONE, FILE, "llama-cpp"): 1.7,
    ("decode", 8, ONE, FILE, "llama-cpp"): 3.2,
    ("decode", 32, ONE, FILE, "llama-cpp"): 4.0,
    ("decode", 8, ONE, FILE, FEWER): 1.1,
    ("prefill", 1, ONE, FLOAT, "llama-cpp:f32"): 1.2,
    ("prefill", 1, TWO, FLOAT, "transformers:bfloat16"): 1.0,
    ("server", servers.STREAMS, TWO, FLOAT, "llama-cpp:f32"): 1.2,
}
TEXTS = {  # (texts, characters, peer) -> our throughput over theirs, warm, one thread
    (1, 200, "tiktoken"): 1.2, (1, 2000, "tiktoken"): 6.0, (1, 200, "hf"): 5.0,
    (32, 200, "tiktoken"): 5.0, (32, 200, "hf"): 18.0,
    (32, 2000, "tiktoken"): 10.0, (32, 2000, "hf"): 40.0,
}  # fmt: skip


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
        f"intervals over {_processes(table)} a pair."
    )
    warm, cold = (
        (tokenizing_sentence(table, state), partial(figures.tokenizing, _state(table, state)))
        for state in ("warm", "cold")
    )
    return (
        Section(
            "peers_tokenizing_warm", data, f"{warm[0]}.",
            picture=partial(warm[1], warm[0], "warm"), picture_caption=caption,
            targets=goals_of_texts(table),
        ),
        Section(
            "peers_tokenizing_cold", {}, f"{cold[0]}.", table,
            "Tokenizing: MB/s with 95 % intervals, and our throughput over theirs.",
            partial(cold[1], cold[0], "cold"), "The same on empty caches.",
            csv="tokenizing", rests_on=tables.basis(_state(table, "cold")),
        ),
    )  # fmt: skip


def prefill_and_decode(peers: Peers, *, decode_sizes: Sequence[int]) -> tuple[Section, Section]:
    """Tokens a second of every engine; our throughput over each peer's, with its goals."""
    table, samples = engines.measure_engines(peers, decode_sizes)
    decode = sentence(table, "decode")
    return (
        Section(
            "peers_decode", {"engines": table, "engines_samples": samples}, f"{decode}.",
            picture=partial(figures.decode, table[table["threads"] == 1]),
            picture_caption="Decode throughput by batch size, one thread, with 95 % intervals over "
            f"{_processes(table)} a pair.",
        ),
        Section(
            "peers_ratios", {"engines": table},
            f"{sentence(table, 'prefill')}. {unstable_sentence(table)}".strip(), table,
            "Prefill and decode: tokens/s with 95 % intervals, how far its own blocks differ, and "
            "our throughput over theirs; verdicts are adjusted over the table.",
            partial(figures.ratios, table),
            "Our throughput over each peer's, with 95 % intervals over the processes of each pair: "
            f"{_processes(table)}.",
            goals(table),
        ),
    )  # fmt: skip


def loading(peers: Peers) -> Section:
    """Seconds to load, and memory held, each engine in a process of its own."""
    table = engines.load_table(peers)
    caption = "Seconds to import, to load and for the first batch; resident memory after each."
    return Section("load", {"load": table}, load_sentence(table), table, caption)


def serving(peers: Peers) -> Section:
    """Tokens a second of our server and llama.cpp's, a few streams at once, over HTTP."""
    table, runs = servers.measure_servers(peers)
    failed = " ".join(
        f"Left out is {name}: {why}."
        for name, why in peers.absent.items()
        if name.startswith("the server beside ")
    )
    if table.empty:
        return Section("servers", {}, failed or "No server of llama.cpp is installed here.")
    return Section(
        "servers", {"servers": table, "servers_runs": runs},
        f"{servers_sentence(table)} {failed}".strip(), table,
        f"{servers.STREAMS} streams of {servers.PROMPT} + {servers.NEW} tokens over HTTP: tokens/s "
        f"with 95 % intervals over {_processes(table)} of each server, and our throughput over "
        "theirs.",
        targets=goals(table),
    )  # fmt: skip


def servers_sentence(table: pd.DataFrame) -> str:
    """Our server's throughput over llama.cpp's, by weights; which server of theirs it was."""
    said = [
        f"{ratio(row['ours_over_theirs_x'], row['ratio_low_x'], row['ratio_high_x'])} "
        f"{palette.label(row['implementation'])}"
        for row in table.dropna(subset=["ours_over_theirs_x"]).to_dict("records")
    ]
    ratios = f": {', '.join(said)}" if said else ""
    return (
        f"With {servers.STREAMS} streams on {counted(int(table['threads'].iloc[0]), 'thread')} "
        f"our server answers beside {Path(servers.their_server()).name}{ratios}. "
        f"{figures.verdicts(table, 'servers')}."
    )


def goals(table: pd.DataFrame) -> list[Score]:
    """The goals beside peers as rows of the scorecard; `table` has a row a shape and pair."""
    words = {
        "decode": "Decode at batch {batch_size}",
        "prefill": "Prefill of {batch_size} × {tokens} tokens",
        "server": "Server with {batch_size} streams",
    }

    def label(row: Mapping[Any, Any]) -> str:
        what = words[row["part"]].format_map(row)
        return f"{what}, {row['ours'].partition(':')[2]}, {row['threads']} thr.,"

    keys = ["part", "batch_size", "threads", "ours", "implementation"]
    return _scores(table, keys, GOALS, label)


def goals_of_texts(table: pd.DataFrame) -> list[Score]:
    """The goals of tokenizing beside peers, warm and on one thread."""
    keys = ["batch_size", "characters", "implementation"]
    label = "Tokenizing {batch_size} × {characters} characters".format_map
    return _scores(_state(table, "warm"), keys, TEXTS, label, "texts_")


def _scores(
    table: pd.DataFrame, keys: list[str], goals: Mapping[tuple[Any, ...], float],
    label: Callable[[Mapping[Any, Any]], str], prefix: str = "",
) -> list[Score]:  # fmt: skip
    """The ratios of the shapes that have goals, where enough processes were measured."""
    judged = table[table["ours_over_theirs_x"].notna() & (table["ours_is"] != "too few")]
    scores = []
    for key, goal in goals.items():
        name = "peers_" + re.sub(r"\W+", "_", prefix + "_".join(map(str, key)))
        for row in judged[(judged[keys] == list(key)).all(axis=1)].to_dict("records"):
            value, low, high = (
                row[c] for c in ("ours_over_theirs_x", "ratio_low_x", "ratio_high_x")
            )
            said = f"{label(row)} beside {palette.label(row['implementation'])}"
            scores.append(Score(name, said, goal, value, low, high, "×", of_model=True))
    return scores


def _processes(table: pd.DataFrame) -> str:
    """What the intervals of a table are over: `3 to 5 fresh processes`."""
    least, most = int(table["processes"].min()), int(table["processes"].max())
    return fresh.in_words(most) if least == most else f"{least} to {fresh.in_words(most)}"


def _state(table: pd.DataFrame, state: str) -> pd.DataFrame:
    return table[(table["threads"] == 1) & (table["state"] == state)]


def tokenizing_sentence(table: pd.DataFrame, state: str) -> str:
    """Our rate over each peer's at the largest batch, from the shortest to the longest text."""
    table = _state(table, state)
    if not (table["ours_is"] != "").any():
        return "No other tokenizer is installed"
    largest = figures.told_apart(table[table["batch_size"] == table["batch_size"].max()])
    if largest.empty:
        return figures.tally(table, "tokenizers") + figures.losses_without_ratio(table)
    parts = [
        f"{_span(rows['ours_over_theirs_x'])} × {palette.label(str(name))}"
        for name, rows in largest.groupby("implementation", sort=False)
    ]
    said = f"At batch {largest['batch_size'].iloc[0]}, {state}, we run at {', '.join(parts)}"
    return said + figures.losses_without_ratio(table)


def _span(values: Sequence[float] | pd.Series[Any]) -> str:
    low, high = (number(end, 2) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def sentence(table: pd.DataFrame, part: str) -> str:
    """Our decode or prefill throughput over each peer's: wins and losses, from worst to best."""
    table = table[table["part"] == part]
    if not (table["ours_is"] != "").any():
        return figures.NOBODY
    rows = figures.told_apart(table)
    said = []
    for name, mine in rows.groupby("implementation", sort=False):
        ends = mine.sort_values("ours_over_theirs_x").iloc[[0, -1]]
        worst, best = (_place(row, part) for row in ends.to_dict("records"))
        said.append(
            f"{palette.label(str(name))} {worst}" + (f" to {best}" if len(mine) > 1 else "")
        )
    lost = [
        f"{_place(row, part)} beside {palette.label(row['implementation'])}"
        for row in rows[rows["ours_is"] == "slower"].to_dict("records")
    ]
    ratios = f", our throughput ÷ theirs: {'; '.join(said)}" if said else ""
    slower = f"; slower: {'; '.join(lost)}" if lost else ""
    bare = figures.losses_without_ratio(table)
    return f"{first_upper(part)}{ratios}. {figures.tally(table)}{slower}{bare}"


def _place(row: Mapping[Any, Any], part: str) -> str:
    size = f"batch {row['batch_size']}" if part == "decode" else f"{row['tokens']} tokens"
    threads = f"{row['threads']} thr."
    times = number(row["ours_over_theirs_x"], 2)
    return f"{times} × ({size}, {row['ours'].partition(':')[2]}, {threads})"


def unstable_sentence(table: pd.DataFrame) -> str:
    """How many have no ratio since blocks differ too much, and whose differ most; else empty."""
    bare = (table["ours_is"] != "") & table["ours_over_theirs_x"].isna()
    rows = table[bare & (table["larger_spread"] > UNSTABLE)].sort_values("larger_spread")
    if rows.empty:
        return ""
    row = rows.iloc[-1]
    peer = palette.label(row["implementation"])
    is_ours = row["larger_spread"] > row["spread"]
    who = f"ours, {row['ours'].partition(':')[2]}, beside {peer}" if is_ours else peer
    return (
        f"{counted(len(rows), 'comparison')} without a ratio, since the blocks of one side differ "
        f"by more than {percent(UNSTABLE)}, most {who} ({row['part']} {row['batch_size']}, "
        f"{counted(row['threads'], 'thread')}: {percent(row['larger_spread'])})."
    )


def load_sentence(table: pd.DataFrame) -> str:
    """Who loads and holds how much."""
    parts = [
        f"{row['engine']} {row['import_s'] + row['load_s']:.1f} s "
        f"and {row['rss_after_batch_mib']:,.0f} MiB"
        for row in table.to_dict("records")
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
            f"{rounded(row['largest_logit_difference'], 2)}"
            for row in others.to_dict("records")
        )
    return text + "."


def answer(words: Section, steps: Section, answers: Section, loads: Section) -> Answer:
    """How many comparisons we win and lose, which, whether outputs were equal, what ours holds."""
    compared = {
        what: told
        for what, frame in (("engines", steps.frame), ("tokenizers", words.frame))
        if len(told := frame[frame["ours_is"] != ""])
    }
    if not compared:
        return Answer(
            "No other engine or tokenizer is installed, so nothing is compared.", "peers_decode"
        )
    tiles = []
    for what, table in compared.items():
        won, lost = ((table["ours_is"] == verdict).sum() for verdict in figures.TOLD_APART)
        value = f"faster in {won}, slower in {lost} of {len(table)}"
        if not won + lost:
            value = f"no verdict on {counted(len(table), 'comparison')}"
        value = f"{first_upper(what)}: {value}"
        lost_most = figures.losses_without_ratio(table)
        tiles.append(
            Tile("peers", value, f"{figures.extremes(table, what).rstrip('.')}{lost_most}.")
        )
    said = [
        f"{figures.verdicts(table, what)}{figures.losses_without_ratio(table)}."
        for what, table in compared.items()
    ]
    equal = answers.sentence().partition(";")[0].rstrip(".")
    said += filter(None, [equal and f"{equal}.", memory_words(loads.frame)])
    return Answer(" ".join(said), "peers_ratios", tiles)


def memory_words(table: pd.DataFrame) -> str:
    """What ours holds beside the engine that holds least; empty without another."""
    if len(table) < 2 or "numpy" not in set(table["engine"]):
        return ""
    ours = table[table["engine"] == "numpy"]["rss_after_batch_mib"].iloc[0]
    least = table.sort_values("rss_after_batch_mib").iloc[0]
    held = f"holds {ours:,.0f} MiB after a batch of {load.BATCH}"
    if least["engine"] == "numpy":
        return f"Ours {held}, the least of all."
    other = f"{palette.label(least['engine'])} {least['rss_after_batch_mib']:,.0f} MiB"
    return f"It costs memory: ours {held}, {other}."
