"""The baseline notebook's questions, one function each: measured, drawn and put into words.

Left out: why it is so (02), what was tried (03), which size to choose (04).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from batchgauge.experiments import fresh
from batchgauge.experiments.baseline import costs, figures, runs
from batchgauge.experiments.baseline.inference import Sweep
from batchgauge.experiments.baseline.runs import Measured
from batchgauge.experiments.context import Context
from batchgauge.reporting import Answer, Score, Section, Tile, palette
from batchgauge.text import percent, ratio

Target = tuple[int, float]  # a batch size, and the speedup that is aimed at there


in_processes = runs.in_processes


def tokenizing(measured: Measured, *, target: Target) -> Section:
    """S(b) of tokenizing."""
    sweep = runs.tokenizing(measured)
    frames = {"tokenizing": sweep.table, "tokenizing_samples": sweep.samples}
    return _speedup(
        sweep, frames, target, picture="batch_size_speedup_chart", key="tokenizing_batch_32",
        label=f"Tokenizing texts of {measured.work.characters} characters, S({{}})",
        caption=f"Batch speedup S(b) of tokenizing, with 95 % intervals over {_rests(measured)}.",
        table_caption="Tokenizing by batch size.",
    )  # fmt: skip


def detokenizing(measured: Measured) -> Section:
    """S(b) of the way back."""
    table = runs.tokenizing(measured, "detokenize").table
    said = speedup_sentence("Detokenizing", table)
    caption = "Detokenizing by batch size."
    return Section("detokenizing", {"detokenizing": table}, said, table, caption)


def inference(measured: Measured, *, target: Target) -> tuple[Section, Section, Section]:
    """S(b) of whole requests; prefill and decode apart; some prompts with their answers."""
    sweep, context = runs.requests(measured), measured.context
    frames = {"inference": sweep.table, "inference_samples": sweep.samples}
    tokens = at(sweep.table, target[0])["prompt_tokens"]
    lengths = f"{tokens:.0f} tokens" if tokens else "tokens not counted"
    kept = f", {context.weights_kept}" if context.weights_kept else ""
    whole = _speedup(
        sweep, frames, target, picture="inference_speedup_chart", key="inference_batch_8",
        label=f"Inference, S({{}}) of whole requests ({lengths}, {measured.work.max_tokens} new"
        f"{kept}, {context.threads} thr.)",
        caption=f"Batch speedup S(b) of whole requests, with 95 % intervals over "
        f"{_rests(measured)}.",
    )  # fmt: skip
    phases = Section(
        "inference_latency_chart", {"inference_phases": sweep.phases},
        latency_sentence(sweep.phases), sweep.phases,
        "Prefill and decode apart: throughput, TTFT and inter-token latency by batch size.",
        partial(figures.latency, sweep.phases, context.engine_name),
        "What a request waits for as the batch grows.",
        rests_on=_rests(measured),
    )  # fmt: skip
    caption = "Prompts and the beginnings of their answers (greedy)."
    return whole, phases, Section("answers", {}, "", sweep.answers, caption)


def statistics(measured: Measured) -> Section:
    """What a batch's statistics cost, and finding one of its responses."""
    table = runs.statistics(measured)
    few = table[(table["part"] == "statistics") & (table["items"] == 100)].iloc[0]
    low, high = (None if math.isnan(few[c]) else float(few[c]) for c in ("low_us", "high_us"))
    score = Score(
        "statistics_100_items", "Statistics of 100 items", 50.0, few["median_us"], low, high,
        "µs", "lower",
    )  # fmt: skip
    return Section(
        "statistics", {"statistics": table}, statistics_sentence(table), table,
        f"Time to compute a batch's statistics and to find one response, by items; 95 % intervals "
        f"over {_rests(measured)}.",
        targets=[score],
    )  # fmt: skip


def _rests(measured: Measured) -> str:
    return fresh.in_words(len(measured.processes))


def variation(context: Context, *, sizes: Sequence[int], max_tokens: int) -> Section:
    """Throughput as one parameter changes."""
    table = runs.variation(context, sizes, max_tokens)
    return Section(
        "baseline_variation", {"variation": table}, variation_sentence(table),
        picture=partial(figures.variation, table),
        picture_caption="Throughput as one parameter changes, the others fixed.",
    )  # fmt: skip


def memory(context: Context, *, sizes: Sequence[int], max_tokens: int) -> Section:
    """Bytes of a batch beside those that must exist."""
    table = costs.memory(context, sizes, max_tokens)
    worst = table["overhead_percent"].max()
    score = Score(
        "memory_overhead", "Memory overhead, worst batch size", 5.0, worst, unit="%",
        better="lower", of_model=True,
    )  # fmt: skip
    return Section(
        "memory", {"memory": table}, memory_sentence(table), table, "Bytes by batch size.",
        targets=[] if math.isnan(worst) else [score],
    )  # fmt: skip


def layer(context: Context, *, sizes: Sequence[int], characters: int) -> Section:
    """What items, ids, responses and statistics add to a call."""
    table = costs.layer_overhead(context, sizes, characters)
    caption = "Fixed cost of the batching layer."
    return Section("layer", {"layer_overhead": table}, layer_sentence(table), table, caption)


def answer(tokens: Section, requests: Section, waits: Section, bytes_: Section) -> Answer:
    """What batching buys for tokenizing and inference, and what it costs."""
    words, answers = at(tokens.frame, 32), at(requests.frame, 8)
    most = requests.frame.sort_values("batch_size").iloc[-1]
    text = (
        f"Inference in batches of {answers['batch_size']} does {interval(answers)} the work of the "
        f"same requests one at a time, tokenizing in batches of {words['batch_size']} "
        f"{interval(words)}. {limit_words(answers, waits.frame)}"
        f"{cost_words(waits.frame, bytes_.frame)}."
    )
    further = (
        f"; {most['speedup_x']:.1f} × at batch {most['batch_size']}"
        if most["batch_size"] > answers["batch_size"]
        else ""
    )
    tile = Tile(
        "gain",
        f"{answers['speedup_x']:.1f} × at batch {answers['batch_size']}",
        f"Whole requests against the same ones one at a time, {interval(answers)}{further}.",
    )
    return Answer(text, requests.name, [tile])


def limit_words(answers: Mapping[str, Any], phases: pd.DataFrame) -> str:
    """What keeps whole requests from gaining as decode does; empty where nothing does."""
    same = phases[phases["batch_size"] == answers["batch_size"]]
    gain = float(same["decode_speedup_x"].iloc[0]) if len(same) else math.nan
    if not gain > answers["high_x"]:
        return ""
    return (
        f"Prefill limits it: decode alone does {gain:.2f} ×, so requests with longer answers gain "
        "more. "
    )


def cost_words(phases: pd.DataFrame, memory_: pd.DataFrame) -> str:
    """What a request pays for the largest batch: a later first token, and memory."""
    first, last = phases.iloc[0], phases.iloc[-1]
    peak = memory_.iloc[-1]
    bytes_ = peak["peak_per_item_bytes"]
    costs = (
        "What memory it costs is not known"
        if math.isnan(bytes_)
        else f"It costs {bytes_ / 2**20:.1f} MiB a request"
    )
    if math.isnan(last["ttft_median_ms"]):
        return costs
    return (
        f"{costs}, and at batch {last['batch_size']:.0f} the first token comes after "
        f"{last['ttft_median_ms']:,.0f} ms instead of {first['ttft_median_ms']:,.0f} ms"
    )


def _speedup(  # noqa: PLR0913 - the texts of one section
    sweep: Sweep, frames: Mapping[str, pd.DataFrame], target: Target, *,
    picture: str, key: str, label: str, caption: str, table_caption: str = "",
) -> Section:  # fmt: skip
    """A sweep as a section, with the row at the target's batch size on the scorecard."""
    table = sweep.table
    row, faster = at(table, target[0]), table[table["verdict"] == "faster"]
    title = f"{sweep.what}: no gain of batches was seen"
    if len(faster):
        best = faster.sort_values("speedup_x").iloc[-1]
        title = (
            f"{sweep.what}: batches of {best['batch_size']} do {best['speedup_x']:.1f} × "
            "the work of one at a time"
        )
    score = Score(
        key, label.format(row["batch_size"]), target[1], row["speedup_x"], row["low_x"],
        row["high_x"], "×", of_model=True,
    )  # fmt: skip
    return Section(
        picture, frames, speedup_sentence(sweep.what, table), table if table_caption else None,
        table_caption, partial(figures.speedup, table, title, target), caption, [score],
    )  # fmt: skip


def at(table: pd.DataFrame, batch_size: int) -> dict[str, Any]:
    """The row of a batch size (the nearest below when it was not run)."""
    fitting = table[table["batch_size"] <= batch_size]
    return dict((fitting if len(fitting) else table).sort_values("batch_size").iloc[-1])


def interval(row: Mapping[str, Any] | pd.Series) -> str:
    """`4.81 × [4.70, 4.93]` from a row with speedup_x, low_x and high_x, and perhaps a verdict."""
    if row.get("verdict") == "too few":
        return f"{row['speedup_x']:.2f} × (too few for an interval)"
    return ratio(row["speedup_x"], row["low_x"], row["high_x"])


def speedup_sentence(what: str, table: pd.DataFrame) -> str:
    """S at the largest size, with interval and verdict."""
    row = table.sort_values("batch_size").iloc[-1]
    name = palette.label(str(row["implementation"]))
    return f"{what}. {name}: S({row['batch_size']}) = {interval(row)}, {row['verdict']}."


def latency_sentence(phases: pd.DataFrame) -> str:
    """How TTFT and inter-token latency grow from the smallest to the largest batch."""
    first, last = phases.iloc[0], phases.iloc[-1]
    if math.isnan(last["ttft_median_ms"]):
        return "This engine does not say when its tokens came, so there are no latencies."
    ttft = (
        f"From batch {first['batch_size']:.0f} to {last['batch_size']:.0f} the median TTFT "
        f"goes from {first['ttft_median_ms']:.0f} to {last['ttft_median_ms']:.0f} ms"
    )
    if math.isnan(last.get("first_answer_median_ms", 0.0)):
        ttft += " (of reasoning only: no answer began)"
    elif "first_answer_median_ms" in last:
        ttft += f" (of the answer behind its reasoning: {last['first_answer_median_ms']:.0f} ms)"
    if math.isnan(last["inter_token_median_ms"]):
        return f"{ttft}; its chunks are not single tokens, so there is no inter-token latency."
    if math.isnan(last["decode_tokens_per_s"]) or math.isnan(last["decode_speedup_x"]):
        return f"{ttft}; how long decoding took is not known."
    alone = ratio(*(last[f"decode_{end}_x"] for end in ("speedup", "low", "high")))
    return (
        f"{ttft} and the median inter-token latency from {first['inter_token_median_ms']:.1f} to "
        f"{last['inter_token_median_ms']:.1f} ms; decode throughput from "
        f"{first['decode_tokens_per_s']:.0f} to {last['decode_tokens_per_s']:.0f} tokens/s, "
        f"S({last['batch_size']:.0f}) of decode alone = {alone}."
    )


def memory_sentence(table: pd.DataFrame) -> str:
    """The overhead at the largest batch, or what is known without the engine's own count."""
    row = table.iloc[-1]
    if math.isnan(row["overhead_percent"]):
        here = (
            "it runs in another process"
            if math.isnan(row["process_bytes"])
            else f"this whole process holds {row['process_bytes'] / 2**20:,.0f} MiB after it"
        )
        return (
            f"What a batch of {row['batch_size']:.0f} takes is not known: the engine does not say; "
            f"{here}."
        )
    return (
        f"A batch of {row['batch_size']:.0f} peaks at {row['peak_bytes'] / 2**20:.1f} MiB beside "
        f"{row['weights_bytes'] / 2**20:.0f} MiB of weights, "
        f"{row['peak_per_item_bytes'] / 2**20:.2f} MiB an item; "
        f"the overhead over what must exist is {row['overhead_percent']:.1f} % with the weights in "
        f"it, {row['overhead_beside_weights_percent']:.0f} % beside them."
    )


def layer_sentence(table: pd.DataFrame) -> str:
    """The layer's cost an item at the largest batch."""
    row = table.iloc[-1]
    return (
        f"At batch {row['batch_size']:.0f} the batching layer adds "
        f"{row['extra_per_item_us']:.2f} µs an item: "
        f"{ratio(row['ratio_x'], row['low_x'], row['high_x'])} the time of the bare call."
    )


def statistics_sentence(table: pd.DataFrame) -> str:
    """The times at 100 and 10,000 items, and how look-up depends on the number."""
    cell = table.set_index(["part", "items"])["median_us"]
    few, many = cell["lookup by id", 100], cell["lookup by id", 10_000]
    return (
        f"Statistics of 100 items take {cell['statistics', 100]:.1f} µs, of 10,000 items "
        f"{cell['statistics', 10_000]:.0f} µs; finding one response by id takes {1e3 * few:.0f} ns "
        f"among 100 and {1e3 * many:.0f} ns among 10,000."
    )


def variation_sentence(table: pd.DataFrame) -> str:
    """How far each parameter moves the throughput, from its first to its last value."""
    if table["median_tokens_per_s"].isna().any():
        return "This engine does not say how many tokens it generated, so there are no rates."
    parts = []
    for name, rows in table.groupby("parameter", sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        change = last["median_tokens_per_s"] / first["median_tokens_per_s"] - 1
        parts.append(
            f"{str(name).replace('_', ' ')} from {first['value']:g} to {last['value']:g}: "
            f"{percent(change, sign=True)}"
        )
    return f"Throughput at batch {table['batch_size'].iloc[0]}: {'; '.join(parts)} (medians)."
