"""The speedup notebook's questions, one function each: measured, drawn and put into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd

from batchgauge.experiments import fresh
from batchgauge.experiments.context import Context
from batchgauge.experiments.speedup import beside, by_size, figures, goals, quality, runs
from batchgauge.experiments.speedup.by_size import OVER_BASELINE, STRICT
from batchgauge.experiments.speedup.ladder import ALONE, CUMULATIVE
from batchgauge.reporting import Answer, Score, Section
from batchgauge.reporting.tables import number
from batchgauge.text import Markdown

check = runs.check


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
        f"{part.capitalize()}: {what}",
    )  # fmt: skip


def tokenizing_by_size(
    context: Context, *, sizes: Sequence[int], target: tuple[int, float], over_baseline: float
) -> Section:
    """S(b) of tokenizing; `over_baseline` is the goal over the baseline at up to batch 32."""
    table = by_size.tokenizing_by_size(context, sizes)
    over = table[(table["implementation"] == OVER_BASELINE) & (table["batch_size"] <= 32)]
    row = over.iloc[-1]
    score = Score(
        "tokenizing_over_baseline", f"Tokenizing at batch {row['batch_size']} over our baseline",
        over_baseline, row["value"], row["low"], row["high"], "×", of_model=True,
    )  # fmt: skip
    return _by_size("tokenizing", table, target, "Tokenizing: S(b) by batch size.", [score])


def inference_by_size(
    context: Context, *, sizes: Sequence[int], target: tuple[int, float]
) -> Section:
    """S(b) of inference, the largest size at most 4 in a smoke run."""
    most = context.budget.choose(smoke=4, default=100, thorough=100)
    table = by_size.inference_by_size(context, [size for size in sizes if size <= most] or [1])
    return _by_size("inference", table, target, "Inference: S(b) by batch size, whole requests.")


def _by_size(
    part: str, table: pd.DataFrame, target: tuple[int, float], caption: str,
    scores: Sequence[Score] = (),
) -> Section:  # fmt: skip
    said = by_size_sentence(table)
    return Section(
        f"speedup_{part}_by_size", {f"{part}_by_size": table}, f"{said}.", targets=scores,
        picture=partial(figures.by_size, table, said, target), picture_caption=caption,
    )  # fmt: skip


def forms_of_weights(context: Context) -> tuple[Section, Section]:
    """What each form of the weights costs in quality and buys in speed; S(b) by form."""
    with quality.in_temporary_folder() as folder:
        every, absent = quality.forms(context, folder)
        windows = quality.measure_quality(context, every)
        speed = quality.measure_speed(context, every)
    table, gained = quality.summary(windows, speed), quality.gains(speed)
    said = quality.sentence(table, absent)
    shown = table[[c for c in table if not str(c).endswith(("_low", "_high"))]]
    return (
        Section(
            "speedup_weights",
            {"weights": table, "weights_windows": windows, "weights_samples": speed}, said, shown,
            "Forms of the weights: bytes, quality on held-out text against float32 of the same "
            f"file, and decode tokens/s on one thread from {fresh.rests_on(speed)}; intervals are "
            "in the CSV.",
            partial(figures.forms, table, "Speed and quality of the weights"),
            "Further right is faster, further down is closer to float32; bars are 95 % intervals.",
        ),
        Section(
            "speedup_weights_gains", {"weights_gains": gained}, quality.gains_sentence(gained),
            picture=partial(figures.gains, gained),
            picture_caption=f"What batching buys by weights, with 95 % intervals over "
            f"{fresh.rests_on(speed)}.",
        ),
    )  # fmt: skip


def in_fresh_processes(context: Context) -> Section:
    """Weights modes and threads, beside peers, in fresh processes: rates, and how they scale."""
    with quality.in_temporary_folder() as folder:
        samples = beside.measure(context, folder)
    table = beside.scaling(samples)
    said = beside.scaling_sentence(table)
    data = {"fresh_samples": samples, "fresh": fresh.rates(samples), "threads": table}
    return Section(
        "speedup_threads", data, said,
        picture=partial(figures.scaling, table, "What threads give"),
        picture_caption="Throughput with more threads over one, with 95 % intervals over "
        f"{fresh.rests_on(samples)}; decode looks back on {fresh.CONTEXT} positions or a few more.",
    )  # fmt: skip


def reached(context: Context, ladders: Mapping[str, Section], steps: Section) -> Section:
    """Every goal of the core, those of `steps` (`in_fresh_processes`) with them.

    Beside one that was missed, what its part's ladder tried.
    """
    measured = pd.concat(
        [runs.measure_goals(context), goals.as_frame(beside.goals(steps.frame))], ignore_index=True
    )
    table = goals.with_tried(measured, {part: found.frame for part, found in ladders.items()})
    decode = table[table["goal"] == "S(8) of decode alone"].iloc[0]
    score = Score(
        "decode_batch_8", "Decode alone, S(8)", 5.0, decode["value"], decode["low"], decode["high"],
        "×", of_model=True,
    )  # fmt: skip
    caption = "Goals, measured values with 95 % intervals, verdicts."
    said = goals.summary(table)
    shown = goals.readable(table)
    return Section("goals", {"goals": table}, said, shown, caption, targets=[score])


def answer(ladders: Sequence[Section], met: Section) -> Answer:
    """How high each ladder goes, its largest step, and how many goals were reached."""
    parts, figure = [], ""
    for section in ladders:
        whole = of_form(section.frame, CUMULATIVE).query("status == 'ok'")
        if whole.empty:
            continue
        top, best = whole.iloc[-1], whole.sort_values("step_x").iloc[-1]
        idle = int((whole["step_low_x"] <= 1).sum())
        figure = figure or section.name
        parts.append(
            f"{str(top['part']).capitalize()} is {number(top['speedup_x'])} × "
            f"[{number(top['low_x'])}, {number(top['high_x'])}] as fast as the straightforward "
            f"baseline{_conditions(top)}, the largest step “{best['rung']}” "
            f"({number(best['step_x'])} "
            f"×); {idle} of {len(whole)} rungs did not pay."
        )
    return Answer(" ".join([*parts, goals.counts(met.frame)]), figure)


def _conditions(row: pd.Series) -> str:
    """What the last rung differs in from the baseline, which has float32 and one thread."""
    threads = int(row["threads"])
    said = [f"weights {row['weights']}"] if row["weights"] not in {"", "float32"} else []
    said += [f"{threads} threads"] if threads > 1 else []
    return f" ({', '.join(said)})" if said else ""


def of_form(table: pd.DataFrame, form: str) -> pd.DataFrame:
    """The rungs measured alone or cumulatively."""
    return table[table["form"] == form]


def sentence(row: pd.Series) -> str:
    """What a cumulative row says: what the rung is worth, and whether it paid."""
    if row["status"] != "ok":
        return f"{row['rung']}: {row['status']}, not timed."
    step = f"{row['step_x']:.2f} × [{row['step_low_x']:.2f}, {row['step_high_x']:.2f}]"
    paid = (
        "it paid"
        if row["step_low_x"] > 1
        else ("it cost" if row["step_high_x"] < 1 else "no significant difference")
    )
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
    return pd.DataFrame(
        {
            "part": whole["part"],
            "idea": whole["idea"],
            "status": whole["status"],
            "alone_x": alone.reindex(whole.index),
            "step_x": whole["step_x"],
            "cumulative_x": whole["speedup_x"],
            "low_x": whole["low_x"],
            "high_x": whole["high_x"],
            "peak_change_bytes": whole["peak_change_bytes"],
        }
    ).reset_index()


def by_size_sentence(table: pd.DataFrame) -> str:
    """Both speedups at the largest batch."""
    last = table[table["batch_size"] == table["batch_size"].max()].set_index("implementation")
    strict, over = last.loc[STRICT], last.loc[OVER_BASELINE]
    return (
        f"{str(strict['part']).capitalize()} in batches of {strict['batch_size']}: "
        f"{strict['value']:.2f} × one at a time, {number(over['value'])} × the baseline"
    )
