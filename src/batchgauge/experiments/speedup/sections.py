"""The speedup notebook's questions, one function each: measured, drawn and put into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from batchgauge.experiments import fresh
from batchgauge.experiments.context import Context
from batchgauge.experiments.speedup import figures, goals, processes, quality, runs
from batchgauge.experiments.speedup.ladder import ALONE, CUMULATIVE
from batchgauge.experiments.turns import CONTEXT
from batchgauge.profiling.flamegraph import amount
from batchgauge.reporting import Answer, Score, Section
from batchgauge.reporting.tables import number
from batchgauge.text import Markdown, first_upper, ratio

check = runs.check


@dataclass(frozen=True)
class Processes:
    """Records of fresh processes, quality of weights by window, forms left out and why."""

    samples: pd.DataFrame
    windows: pd.DataFrame
    absent: dict[str, str]


def ladder_of_tokenizing(context: Context, *, characters: int, texts: int) -> Section:
    """Each idea of the tokenizer, cumulatively and alone."""
    return _ladder("tokenizing", runs.climb_tokenizing(context, characters, texts))


def ladder_of_inference(context: Context) -> Section:
    """Each idea of the engine, cumulatively and alone."""
    return _ladder("inference", runs.climb_inference(context))


def ladders_of_statistics(context: Context) -> Section:
    """Each idea of statistics and look-up."""
    table = runs.climb_statistics(context)
    caption = "The rungs of statistics and look-up."
    data = {"ladder_statistics": table}
    return Section("ladder_statistics", data, findings(table), readable(table), caption)


def _ladder(part: str, table: pd.DataFrame) -> Section:
    what = "speedup over the baseline, cumulatively and alone, with 95 % intervals."
    forms = (of_form(table, form) for form in (CUMULATIVE, ALONE))
    return Section(
        f"speedup_ladder_{part}", {f"ladder_{part}": table}, findings(table), readable(table),
        f"The rungs of {part}: idea, gain, memory.", partial(figures.ladder, *forms),
        f"{first_upper(part)}: {what}",
    )  # fmt: skip


def in_processes(context: Context) -> Processes:
    """Everything about speed that this page states, measured in fresh processes."""
    with TemporaryDirectory(prefix="batchgauge-") as folder:
        forms, absent = quality.forms(context, Path(folder))
        return Processes(
            processes.measure(context, forms), quality.measure_quality(context, forms), absent
        )


def over_the_baseline(measured: Processes, *, target: float) -> Section:
    """What everything together gives over the baseline; `target` for tokenizing."""
    table = processes.over_baseline(measured.samples)
    row = table[table["part"] == "tokenizing"].iloc[-1]
    score = Score(
        "tokenizing_over_baseline",
        f"Tokenizing {row['batch_size']} texts of {processes.OVER[1]} characters over our baseline",
        target, row["value"], row["low"], row["high"], "×", of_model=True,
    )  # fmt: skip
    return Section(
        "speedup_over_baseline", {"over_baseline": table},
        processes.over_baseline_sentence(table), table,
        f"Over the baseline, one at a time, with 95 % intervals over "
        f"{fresh.rests_on(measured.samples)}.",
        targets=[score],
    )  # fmt: skip


def forms_of_weights(measured: Processes) -> tuple[Section, Section]:
    """What each form of the weights costs in quality and buys in speed; S(b) by form."""
    windows, speed = measured.windows, measured.samples
    table, gained = quality.summary(windows, speed), quality.gains(speed)
    said = quality.sentence(table, measured.absent)
    shown = table[[c for c in table if not str(c).endswith(("_low", "_high"))]]
    return (
        Section(
            "speedup_weights", {"weights": table, "weights_windows": windows}, said, shown,
            "Forms of the weights: bytes, quality on held-out text against float32 of the same "
            f"file, and decode tokens/s on one thread from {fresh.rests_on(speed)}; intervals are "
            "in the CSV.",
            partial(figures.forms, table),
            "Further right is faster, further down is closer to float32; bars are 95 % intervals.",
        ),
        Section(
            "speedup_weights_gains", {"weights_gains": gained}, quality.gains_sentence(gained),
            picture=partial(figures.gains, gained),
            picture_caption=f"What batching buys by weights, with 95 % intervals over "
            f"{fresh.rests_on(speed)}.",
        ),
    )  # fmt: skip


def threads(measured: Processes) -> Section:
    """How decode, prefill and tokenizing scale with threads; all records and rates."""
    samples = measured.samples
    table = processes.scaling(samples)
    said = processes.scaling_sentence(table)
    data = {"fresh_samples": samples, "fresh": fresh.rates(samples), "threads": table}
    return Section(
        "speedup_threads", data, said,
        picture=partial(figures.scaling, table),
        picture_caption="Throughput with more threads over one, with 95 % intervals over "
        f"{fresh.rests_on(samples)}; decode looks back on {CONTEXT} positions or a few more.",
    )  # fmt: skip


def reached(context: Context, ladders: Mapping[str, Section], measured: Processes) -> Section:
    """Every goal of the core; beside one that was missed, what its part's ladder tried."""
    met = [*processes.goals(context, measured.samples), *runs.measure_goals(context)]
    table = goals.with_tried(
        goals.as_frame(met, comparable=context.is_reference),
        {part: found.frame for part, found in ladders.items()},
    )
    scores = [
        Score(
            "decode_batch_8", str(row["goal"]), 5.0, row["value"], row["low"], row["high"], "×",
            of_model=True,
        )
        for row in table[table["goal"].str.startswith("S(8) of decode")].to_dict("records")
    ]  # fmt: skip
    caption = "Goals, measured values with 95 % intervals, verdicts."
    shown = goals.readable(table)
    return Section("goals", {"goals": table}, goals.summary(table), shown, caption, targets=scores)


def answer(ladders: Sequence[Section], over: Section, met: Section) -> Answer:
    """What all ideas together give, which rungs paid most and not at all, the goals."""
    parts, figure = [over.sentence()], ""
    for section in ladders:
        whole = of_form(section.frame, CUMULATIVE).query("status == 'ok'")
        if whole.empty:
            continue
        part, paid = whole["part"].iloc[0], whole[whole["step_verdict"] == "faster"]
        if paid.empty:
            said = f"No single step of {part} was seen to pay"
        else:
            best = paid.sort_values("step_x").iloc[-1]
            idle = len(whole) - len(paid)
            said = (
                f"The largest step of {part} was “{best['rung']}” ({number(best['step_x'])} ×); "
                f"{idle} of {len(whole)} rungs were not seen to pay"
            )
        figure = figure or section.name
        parts.append(f"{said}; {_memory_words(whole.iloc[-1])}.")
    return Answer(" ".join([*parts, goals.counts(met.frame)]), figure)


def _memory_words(row: pd.Series) -> str:
    """What all rungs cost in memory: the peak of a call beside the baseline's."""
    change = row["peak_change_bytes"]
    where = "below" if change < 0 else "above"
    return f"a call's memory peaks {amount(abs(change), 'bytes')} {where} the baseline's"


def of_form(table: pd.DataFrame, form: str) -> pd.DataFrame:
    """The rungs measured alone or cumulatively."""
    return table[table["form"] == form]


def sentence(row: pd.Series) -> str:
    """What a cumulative row says: what the rung is worth, and whether it paid."""
    if row["status"] != "ok":
        return f"{row['rung']}: {row['status']}, not timed."
    step = ratio(*row[["step_x", "step_low_x", "step_high_x"]])
    paid = {"faster": "it paid", "slower": "it cost"}.get(row["step_verdict"], row["step_verdict"])
    return (
        f"{row['rung']}: {step} on top of the rung before, {number(row['speedup_x'])} × over the "
        f"baseline; {paid}."
    )


def findings(table: pd.DataFrame) -> Markdown:
    """All cumulative rungs of one part as a list."""
    rows = of_form(table, CUMULATIVE)
    return Markdown("\n".join(Markdown("- {}").format(sentence(row)) for _, row in rows.iterrows()))


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The cumulative rungs with their gains alone beside them, for a table on the page."""
    whole = of_form(table, CUMULATIVE).set_index("rung")
    alone = of_form(table, ALONE).set_index("rung")["speedup_x"]
    shown = whole.assign(alone_x=alone.reindex(whole.index), cumulative_x=whole["speedup_x"])
    columns = ["part", "idea", "status", "alone_x", "step_x", "cumulative_x", "low_x", "high_x"]
    return shown[[*columns, "peak_change_bytes"]].reset_index()
