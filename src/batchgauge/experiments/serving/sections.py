"""The serving notebook's questions, one function each: forecast, measured live, compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd
from tqdm.auto import tqdm

from batchgauge.experiments.serving import figures, forecast, study, trouble, workers_run
from batchgauge.experiments.serving.forecast import FIGURES, RunKind
from batchgauge.experiments.serving.study import ServingCase
from batchgauge.reporting import Answer, Score, Section
from batchgauge.request import PERCENTILE_FLOOR
from batchgauge.text import percent, ratio

ServingQuestion, prepare, kinds = study.ServingQuestion, study.prepare, forecast.kinds
GAIN_GOAL, OWN_GOAL = 1.5, 0.02


def traffic(case: ServingCase) -> Section:
    """How long requests are, and what today's server manages of them."""
    return Section("serving_traffic", {}, study.sentence(case))


def write_forecast(case: ServingCase, what: Sequence[RunKind]) -> Section:
    """The simulator's word on every run, before any of them is made; the CSV has the date."""
    frame = forecast.forecast(case, what, case.seeds)
    waits = (frame["returned_s"] - frame["arrival_s"]).groupby([frame[k] for k in forecast.KIND])
    firsts = (frame["first_s"] - frame["arrival_s"]).groupby([frame[k] for k in forecast.KIND])
    table = pd.DataFrame(
        {
            "mean_first_token_ms": 1e3 * firsts.mean(),
            "mean_answer_ms": 1e3 * waits.mean(),
            "in_time_share": waits.agg(lambda times: float((times <= case.target_s).mean())),
        }
    ).reset_index()
    said = (
        f"Written {frame['written_at'].iloc[0]}, before the runs: {frame['seed'].nunique()} seeds "
        f"of {case.requests} requests for each of {len(table)} kinds of run."
    )
    return Section(
        "serving_forecast", {"forecast": frame}, said, table,
        "Forecast times and share of answers in time, by policy, load and evenness of arrivals.",
    )  # fmt: skip


def run_live(case: ServingCase, what: Sequence[RunKind], written: Section) -> Section:
    """The same requests in real time, and which figures of the forecast held.

    Judged is the forecast that was renewed just before each run. Beside it stand the one that was
    written before all of them, and what is simulated at the speed that the steps then had.
    """
    total = len(case.seeds) * len(what) * case.requests
    with tqdm(total=total, desc="requests, in real time") as bar:
        requests, steps = forecast.measure(case, what, bar.update)
    table, early, followed = (
        forecast.compare(told, requests)
        for told in (
            forecast.simulated(requests, "forecast"), written.frame,
            forecast.simulated(requests, "followed"),
        )
    )  # fmt: skip
    table["early_over_live"] = early["forecast_over_live"]
    table["followed_over_live"] = followed["forecast_over_live"]
    counts, before, after = (t["verdict"].value_counts() for t in (table, early, followed))
    worst = max(table.to_dict("records"), key=lambda row: abs(row["forecast_over_live"] - 1.0))
    said = (
        f"Of {len(table)} figures {counts.get('held', 0)} held, {counts.get('failed', 0)} failed "
        f"and {counts.get('undecided', 0)} are undecided, their interval across the bound. "
        f"Furthest off: the "
        f"{worst['figure']} time to the {worst['time_to']} of {worst['policy']} batching at load "
        f"{worst['load']:g}, {worst['shape']}, forecast {worst['forecast_ms']:,.0f} ms, live "
        f"{worst['live_ms']:,.0f} ms. As forecast before the first run, "
        f"{before.get('held', 0)} held and {before.get('failed', 0)} failed; simulated again at "
        f"the speed that the steps of each run had, {after.get('held', 0)} and "
        f"{after.get('failed', 0)}."
    )
    bounds = ", ".join(f"{percent(bound)} for the {figure}" for figure, bound, *_ in FIGURES)
    return Section(
        "serving_forecast_held",
        {"compared": table, "requests": requests, "steps": steps}, said,
        table.rename(columns={"low": "low_x", "high": "high_x"}),
        f"Forecast against live; bounds were set beforehand: {bounds}. Ratios of p90 are by "
        "Harrell and Davis's estimator.",
        partial(figures.draw_forecast, table),
        "Forecast over live with 95 % intervals over seeds; broken lines: the bounds of means and "
        "of p90.",
        [_error_score(table, figure, bound) for figure, bound, *_ in FIGURES
         if (table["figure"] == figure).any()],
    )  # fmt: skip


def _error_score(table: pd.DataFrame, figure: str, bound: float) -> Score:
    """The largest error of a kind of figure, with the interval of that very row."""
    rows = table[table["figure"] == figure].to_dict("records")
    errors = [
        (abs(row["forecast_over_live"] - 1.0), row["low"] - 1.0, row["high"] - 1.0) for row in rows
    ]
    worst, low, high = max(errors)
    inside = low <= 0.0 <= high
    ends = sorted((100 * abs(low), 100 * abs(high)))
    return Score(
        f"serving_forecast_{figure}", f"Serving: forecast {figure}, off by at most", 100 * bound,
        100 * worst, 0.0 if inside else ends[0], ends[1], unit="%", better="lower",
    )  # fmt: skip


def goodput(case: ServingCase, live: Section, *, load: float) -> Section:
    """What continuous batching is worth against static batches, live, at a load."""
    requests = live.frames()["requests"]
    table = forecast.goodput_gain(requests, load, case.target_s, "static")
    gain = table[table["policy"] == "continuous"].to_dict("records")[0]
    said = (
        f"At load {load:g} continuous batching answers "
        f"{ratio(gain['value'], gain['low'], gain['high'])} as many requests within "
        f"{1e3 * case.target_s:,.0f} ms as static batches of {case.question.max_batch} "
        f"({gain['seeds']} seeds)."
    )
    score = Score(
        "serving_goodput", f"Serving: requests in time, continuous over static, load {load:g}",
        GAIN_GOAL, gain["value"], gain["low"], gain["high"], unit="×",
    )  # fmt: skip
    return Section(
        "serving_goodput", {"goodput": table}, said,
        picture=partial(figures.draw_goodput, table, load, GAIN_GOAL),
        picture_caption="Requests whose whole answer came in time, over those of static batches; "
        "95 % intervals over seeds.",
        targets=[score],
    )  # fmt: skip


def waits(live: Section, *, load: float) -> Section:
    """How long a request waits for its first token, between tokens, and for all of them."""
    table = forecast.waits(live.frames()["requests"])
    rows = table[(table["load"] == load) & (table["shape"] == "Poisson")].dropna()
    spoken = {
        "p50_first_token_ms": "ms until the first token",
        "p50_inter_token_ms": "between tokens",  # where answers have more than one
        "p50_answer_ms": "for the answer",
    }
    named = {column: words for column, words in spoken.items() if column in rows}
    said = "; ".join(
        f"{row['policy']} " + ", ".join(f"{row[c]:,.0f} {words}" for c, words in named.items())
        for row in (rows.to_dict("records") if named else ())
    )
    said = said or "too few requests for one"
    return Section(
        "serving_waits", {"waits": table}, f"Medians at load {load:g}: {said}.", table,
        "Live latency by policy, load and evenness of arrivals, all seeds together. p90 stands "
        f"where there are {PERCENTILE_FLOOR[90]} requests, p99 where there are "
        f"{PERCENTILE_FLOOR[99]}.",
    )  # fmt: skip


def course(case: ServingCase, live: Section, *, load: float) -> Section:
    """Queue and batch over time; what the scheduler itself takes."""
    requests, steps = (live.frames()[name] for name in ("requests", "steps"))
    own = trouble.scheduler_share(steps, case.question.max_batch)
    score = Score(
        "serving_scheduler", "Serving: scheduler's own time, share of a step", 100 * OWN_GOAL,
        100 * own.value, 100 * own.low, 100 * own.high, unit="%", better="lower",
    )  # fmt: skip
    said = (
        f"The scheduler itself takes {percent(own.value, 2)} [{percent(own.low, 2)}, "
        f"{percent(own.high, 2)}] of the time of a step."
    )
    return Section(
        "serving_course", {}, said, picture=partial(figures.draw_course, steps, requests, load),
        picture_caption=f"Requests under way and waiting, live: first seed, load {load:g}.",
        csv="steps", rests_on="1 run, 1 process",
        targets=[score],
    )  # fmt: skip


def two_cores(case: ServingCase, *, rounds: int) -> Section:
    """Continuous batching on one thread and on two."""
    table = trouble.two_cores(case, rounds)
    gain = trouble.second_core_gain(table)
    said = (
        f"A second core answers the same requests {ratio(gain.value, gain.low, gain.high)} as fast "
        f"(one process, {rounds} rounds)."
    )
    return Section("serving_cores", {"cores": table}, said)


def classes(case: ServingCase) -> Section:
    """Who waits when too much comes, by order of the queue."""
    table = trouble.by_order(case)
    share = table.set_index(["order", "class"])["in_time_share"]
    said = "; ".join(
        f"{name}: {percent(share['fifo', name])} in time first come first served, "
        f"{percent(share['priority', name])} by class"
        for name in dict.fromkeys(table["class"])
    )
    return Section(
        "serving_classes", {"classes": table}, f"At load {trouble.OVERLOAD:g}, {said}.",
        table, "Continuous batching when too much comes, by order of the queue; one run each.",
    )  # fmt: skip


def cancelled(case: ServingCase, *, load: float) -> Section:
    """Every tenth client goes away half-way: is the room given back, and do others gain?"""
    whole, cut, left = trouble.cancelled_tenth(case, load)
    stay = ~cut.requests["cancelled"]
    waits = [
        1e3 * float((run.requests["returned_s"] - run.requests["arrival_s"])[stay].mean())
        for run in (whole, cut)
    ]
    frame = cut.requests.assign(run="a tenth cancelled")
    said = (
        f"{int((~stay).sum())} of {len(stay)} requests were cancelled half-way; "
        f"{'all' if left == 0 else 'not all'} of their room was given back ({left} positions are "
        f"still taken). The others waited {waits[1]:,.0f} ms on average, {waits[0]:,.0f} ms where "
        "nobody was cancelled (one run each)."
    )
    return Section("serving_cancelled", {"cancelled": frame}, said)


def killed(case: ServingCase) -> Section:
    """A worker process is killed in the middle: is anything lost, or answered twice?"""
    sound, hurt = (workers_run.answer(case, kill=kill) for kill in (False, True))
    rows = [
        (name, run.seconds, run.restarts, len(run.tokens), sum(n == 1 for n in run.ends.values()),
         sum(run.tokens[i] == ids for i, ids in sound.tokens.items()))
        for name, run in (("undisturbed", sound), (hurt.disturbance, hurt))
    ]  # fmt: skip
    columns = ["run", "seconds", "restarts", "requests", "answered_once", "same_tokens"]
    table = pd.DataFrame(rows, columns=columns)
    said = workers_run.sentence(sound, hurt)
    return Section(
        "serving_killed",
        {"killed": table},
        said,
        table,
        f"One job on {workers_run.WORKERS} workers, {len(table)} times.",
    )


def answer(gain: Section, live: Section, waited: Section, *, load: float) -> Answer:
    """What continuous batching was worth, what it cost, and whether the forecast said so."""
    said = [gain.sentence(), gap_words(waited.frame, load), live.sentence()]
    return Answer(" ".join(filter(None, said)), gain.name)


def gap_words(table: pd.DataFrame, load: float) -> str:
    """The median time between tokens, continuous beside static; empty where one is not known."""
    rows = table[(table["load"] == load) & (table["shape"] == "Poisson")]
    if "p50_inter_token_ms" not in rows:  # too few requests for one
        return ""
    gaps = rows.set_index("policy")["p50_inter_token_ms"].dropna()
    if not {"continuous", "static"} <= set(gaps.index):
        return ""
    ours, today = gaps["continuous"], gaps["static"]
    if round(ours) == round(today):
        return f"Time between tokens stays the same: {ours:,.0f} ms (medians)."
    what = "It costs time between tokens" if ours > today else "It costs no time between tokens"
    return f"{what}: {ours:,.0f} ms instead of {today:,.0f} (medians)."
