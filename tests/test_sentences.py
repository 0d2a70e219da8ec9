"""Every generated sentence against the frame it was made from: signs, units, superlatives.

The frames are invented and drawn anew for every seed, so that no sentence is right by chance.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchgauge.experiments.baseline import sections as baseline
from batchgauge.experiments.batch_sizing import sentences as sizing
from batchgauge.experiments.bottlenecks import sentences as bottlenecks
from batchgauge.experiments.peers import figures as peers
from batchgauge.experiments.peers import sections as peers_sections
from batchgauge.experiments.regression import sections as regression
from batchgauge.experiments.roadmap import ideas, machines, policies
from batchgauge.experiments.serving import figures as serving_figures
from batchgauge.experiments.serving import sections as serving
from batchgauge.experiments.speedup import sections as speedup
from batchgauge.machine.rates import Rates
from batchgauge.profiling.findings import (
    Hotspot,
    finding_sentence,
    rank_findings,
    worth_a_sentence,
)
from batchgauge.profiling.lines import LineProfile
from batchgauge.reporting import palette, tables
from batchgauge.text import first_upper, percent, span

SEEDS = range(6)
PEERS = ["transformers", "llama-cpp", "hf"]


def drawn(seed: int, low: float = 0.1, high: float = 9.0, size: int = 3) -> list[float]:
    """Different numbers between two ends."""
    return [float(v) for v in np.random.default_rng(seed).uniform(low, high, size)]


def largest(frame: pd.DataFrame, column: str) -> pd.Series:
    """The row with the largest value."""
    return frame.sort_values(column).iloc[-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_speedups_name_their_largest_batch_and_their_interval(seed):
    """S(b) of the largest batch, between its own ends."""
    values = drawn(seed)
    table = pd.DataFrame(
        {
            "implementation": "numpy", "batch_size": [1, 8, 32], "speedup_x": values,
            "low_x": [0.9 * v for v in values], "high_x": [1.1 * v for v in values],
            "verdict": ["no", "maybe", "faster"],
        }
    ).sample(frac=1, random_state=seed)  # fmt: skip
    said = baseline.speedup_sentence("Tokenizing", table)
    v = values[2]
    assert f"S(32) = {v:.2f} × [{0.9 * v:.2f}, {1.1 * v:.2f}], faster" in said


@pytest.mark.parametrize("seed", SEEDS)
def test_latencies_go_from_the_first_to_the_last_batch(seed):
    """Each unit once, each value from its own row."""
    frame = pd.DataFrame({"batch_size": [1, 16]})
    for at, name in enumerate(("ttft", "inter_token")):
        frame[f"{name}_median_ms"] = drawn(seed + at, 10, 900, 2)
    for at, name in enumerate(("decode_tokens_per_s", "decode_speedup_x", "decode_low_x")):
        frame[name] = drawn(seed + 10 + at, 1, 300, 2)
    frame["decode_high_x"] = frame["decode_speedup_x"] + 1
    said = baseline.latency_sentence(frame)
    one, many = frame.iloc[0], frame.iloc[1]
    assert f"TTFT goes from {one['ttft_median_ms']:.0f} to {many['ttft_median_ms']:.0f} ms" in said
    assert (
        f"from {one['decode_tokens_per_s']:.0f} to {many['decode_tokens_per_s']:.0f} tokens/s"
        in said
    )
    assert f"S(16) of decode alone = {many['decode_speedup_x']:.2f} ×" in said


@pytest.mark.parametrize("seed", SEEDS)
def test_changes_have_their_sign(seed):
    """Throughput that falls has a minus, throughput that rises a plus."""
    first, last = drawn(seed, 10, 100, 2)
    table = pd.DataFrame(
        {
            "parameter": "max_tokens", "value": [4, 64], "batch_size": 8,
            "median_tokens_per_s": [first, last],
        }
    )  # fmt: skip
    said = baseline.variation_sentence(table)
    assert f"max tokens from 4 to 64: {percent(last / first - 1, sign=True)} (medians)" in said
    assert ("+" in said) == (last > first) or round(100 * (last / first - 1)) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_resident_memory_falls_with_a_minus(seed):
    """The end against the beginning, the peak over all."""
    line = pd.DataFrame({"time_s": range(4), "rss_bytes": [v * 1e8 for v in drawn(seed, size=4)]})
    said = bottlenecks.timeline_sentence(line)
    grown = line["rss_bytes"].iloc[-1] - line["rss_bytes"].iloc[0]
    assert said.endswith("at the end")
    assert f"; {'-' if grown < 0 else '+'}" in said


@pytest.mark.parametrize("seed", SEEDS)
def test_the_furthest_kernel_is_the_furthest(seed):
    """The largest ratio at the batch size asked for."""
    ratios = drawn(seed, 0.5, 9, 6)
    frame = pd.DataFrame(
        {"kernel": ["QKV", "MLP", "decode"] * 2, "batch_size": [1] * 3 + [8] * 3, "ratio": ratios}
    )
    rates = Rates(1, 20e9, 100e9)
    said = bottlenecks.roofline_sentence(frame, rates, 8)
    worst = largest(frame[frame["batch_size"] == 8], "ratio")
    assert f"{worst['kernel']} is furthest from its floor: {worst['ratio']:.1f} times" in said
    assert "20.0 GB/s" in said
    assert "on 1 thread." in said


@pytest.mark.parametrize("seed", SEEDS)
def test_profilers_padding_and_idle_parts_are_the_extremes(seed):
    """Cheapest and dearest, widest and emptiest: by the column that the word is about."""
    cost = pd.DataFrame({"tool": ["a", "b", "c"], "slowdown": drawn(seed, 1, 50)})
    said = bottlenecks.overhead_sentence(cost)
    ordered = cost.sort_values("slowdown")["tool"].tolist()
    assert said.index(f"with {ordered[0]}") < said.index(f"with {ordered[-1]}")
    waste = pd.DataFrame(
        {
            "spread": ["even", "ragged", "wild"], "rectangle_waste": drawn(seed, 0, 1),
            "engine_waste": drawn(seed + 9, 0, 0.2),
        }
    )  # fmt: skip
    widest = largest(waste, "rectangle_waste")
    said = bottlenecks.padding_sentence(waste)
    assert f"“{widest['spread']}” lengths a rectangle wastes" in said
    assert said.endswith(f"this engine {percent(widest['engine_waste'])}")
    system = pd.DataFrame(
        {"part": ["x", "y", "z"], "cpu_utilisation": drawn(seed), "minor_faults": drawn(seed + 3)}
    )
    said = bottlenecks.system_sentence(system)
    assert f"lowest in {system.sort_values('cpu_utilisation')['part'].iloc[0]}:" in said
    assert f"first time in {largest(system, 'minor_faults')['part']}:" in said


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bottlenecks_answer_leads_with_the_largest_stage(seed):
    """Shares in falling order; what the floors would give is between 1 and the whole."""
    a, b = drawn(seed, 0.1, 0.45, 2)
    spots = [
        Hotspot("inference (numpy)", "decode", a, "numpy", 1.6, "memory"),
        Hotspot("inference (numpy)", "prefill", b, "numpy", 1.2, "compute"),
        Hotspot("tokenizing (numpy)", "merge", 0.95, "python"),
    ]
    ranked = rank_findings(spots, {"inference (numpy)": 1.0, "tokenizing (numpy)": 0.003})
    said = bottlenecks.answer(ranked, 8)
    first, second = ("decode", "prefill") if a > b else ("prefill", "decode")
    assert said.startswith(f"Of a batch of 8, {first} {percent(max(a, b))} and {second} ")
    gain = 1 / (1 - a * (1 - 1 / 1.6) - b * (1 - 1 / 1.2))
    assert f"{gain:.2f} × as fast" in said
    assert "merge" not in said
    assert ranked["where"].tolist()[-1] == "merge"
    for _, row in ranked.iterrows():
        bound = re.search(r"would be ([\d.]+) times", finding_sentence(row))
        assert bound
        assert 1.0 <= float(bound[1]) <= 20


@pytest.mark.parametrize("seed", SEEDS)
def test_wins_and_losses_are_counted(seed):
    """As many as the column says; best and worst are the ends of the ratios."""
    ratios = drawn(seed, 0.3, 4, 3)
    table = pd.DataFrame(
        {
            "part": "decode", "threads": 1, "batch_size": 8, "tokens": 1, "implementation": PEERS,
            "ours": "numpy:float32",
            "ours_over_theirs_x": ratios,
            "ours_is": ["faster" if r > 1.1 else "slower" if r < 0.9 else "same" for r in ratios],
        }
    )  # fmt: skip
    said = peers.verdicts(table)
    wins, losses = ((table["ours_is"] == word).sum() for word in ("faster", "slower"))
    assert f"faster in {wins} and slower in {losses}" in said
    worst = table.sort_values("ours_over_theirs_x").iloc[0]
    assert ("at worst" in said) == (worst["ours_is"] == "slower")
    ends = peers.extremes(table)
    assert palette.label(worst["implementation"]) in ends.partition("at worst")[2]
    best = palette.label(largest(table, "ours_over_theirs_x")["implementation"])
    assert best in ends.partition("at worst")[0]
    assert peers_sections.sentence(table, "decode").startswith("Decode, our throughput ÷ theirs: ")


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_size_within_a_budget_is_within_it(seed):
    """Throughput in tokens/s, latency in ms, and no size that is late."""
    sizes = [1, 4, 16, 32]
    frame = pd.DataFrame(
        {
            "workload": "prompts", "batch_size": sizes, "tokens_per_s": drawn(seed, 20, 300, 4),
            "latency_ms": drawn(seed + 1, 100, 2000, 4), "suggested": [False, False, False, True],
        }
    )  # fmt: skip
    budget = float(frame["latency_ms"].median())
    said = sizing.budget_sentence(frame, "prompts", budget)
    ours = frame.iloc[3]
    assert said.startswith(
        f"Batches of 32 do {ours['tokens_per_s']:,.0f} tokens/s and answer in "
        f"{ours['latency_ms']:,.0f} ms"
    )
    best = largest(frame[frame["latency_ms"] <= budget], "tokens_per_s")
    named = re.search(r"within [\d,]+ ms batches of (\d+) do", said)
    assert (named is None) == bool(best["suggested"])
    assert named is None or int(named[1]) == best["batch_size"]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_other_rule_is_the_best_in_its_worst_tenth(seed):
    """Not the one with the best median."""
    table = pd.DataFrame(
        {
            "strategy": ["advisor", "fixed 8", "fixed 32", "halve"],
            "median_score": drawn(seed, 0.5, 1, 4), "p10_score": drawn(seed + 2, 0, 1, 4),
        }
    )  # fmt: skip
    ours, other = sizing.ours_and_best_other(table)
    assert ours["strategy"] == "advisor"
    assert other["p10_score"] == table["p10_score"][1:].max()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rung_paid_only_beyond_its_interval(seed):
    """It paid above 1, it cost below 1, else nothing is said of it."""
    low = drawn(seed, 0.6, 1.2, 1)[0]
    verdict = "faster" if low > 1 else "slower" if low + 0.2 < 1 else "no significant difference"
    row = pd.Series(
        {
            "rung": "cache", "status": "ok", "step_x": low + 0.1, "step_low_x": low,
            "step_high_x": low + 0.2, "speedup_x": 1234.5, "step_verdict": verdict,
        }
    )  # fmt: skip
    said = speedup.sentence(row)
    wanted = "it paid" if low > 1 else "it cost" if low + 0.2 < 1 else "no significant difference"
    assert said.endswith(f"{wanted}.")
    assert "e+" not in said
    assert "1,230 × over the baseline" in said


@pytest.mark.parametrize("seed", SEEDS)
def test_what_limits_a_batch_is_said_only_where_decode_gains_more(seed):
    """Prefill is named where decode alone is beyond the interval of the whole, with its figure."""
    whole, alone = drawn(seed, 1, 9, 2)
    answers = {"batch_size": 8, "speedup_x": whole, "high_x": whole + 0.5}
    phases = pd.DataFrame({"batch_size": [1, 8], "decode_speedup_x": [1.0, alone]})
    said = baseline.limit_words(answers, phases)
    assert bool(said) == (alone > whole + 0.5)
    assert not said or said.startswith(f"Prefill limits it: decode alone does {alone:.2f} ×")
    assert baseline.limit_words(answers, phases[:1]) == ""


@pytest.mark.parametrize("seed", SEEDS)
def test_what_continuous_batching_and_our_engine_cost(seed):
    """The gap between tokens by its sign; memory beside whoever holds least."""
    gaps = drawn(seed, 20, 90, 2)
    table = pd.DataFrame(
        {
            "policy": ["static", "continuous"] * 2, "load": [0.8, 0.8, 0.5, 0.5],
            "shape": "Poisson", "p50_inter_token_ms": [*gaps, 1.0, 2.0],
        }
    )  # fmt: skip
    said = serving.gap_words(table, 0.8)
    assert ("costs no time" in said) == (gaps[1] <= gaps[0])
    assert f"{gaps[1]:,.0f} ms instead of {gaps[0]:,.0f}" in said
    level = serving.gap_words(table.assign(p50_inter_token_ms=[18.2, 17.8] * 2), 0.8)
    assert level == "Time between tokens stays the same: 18 ms (medians)."
    assert serving.gap_words(table[:1], 0.8) == ""
    gains, halves = drawn(seed, 0.5, 2, 2), drawn(seed + 7, 0.1, 0.9, 2)
    goodput = pd.DataFrame(
        {
            "policy": ["static", "dynamic", "continuous"], "value": [1.0, *gains],
            "low": [1.0, *np.subtract(gains, halves)], "high": [1.0, *np.add(gains, halves)],
            "in_time_share": 0.5,
        }
    )  # fmt: skip
    title = serving_figures.draw_goodput(goodput, 0.8, 1.5).title
    sure = [g for g, half in zip(gains, halves, strict=True) if g - half > 1.0]
    assert f": {max(sure):.2f} × the requests" in title if sure else title.startswith("No policy")
    wide = goodput.assign(value=[1.0, 2.0, 4.0], low=[1.0, 0.9, 1.49], high=[1.0, 4.0, 60.0])
    title = serving_figures.draw_goodput(wide, 0.8, 1.5).title
    assert title == "Continuous: at least 1.49 × the requests in time"
    held = drawn(seed, 100, 2000, 3)
    loads = pd.DataFrame({"engine": ["numpy", "a", "b"], "rss_after_batch_mib": held})
    said = peers_sections.memory_words(loads)
    assert ("the least of all" in said) == (held[0] == min(held))
    assert f"ours holds {held[0]:,.0f} MiB" in said.replace("Ours", "ours")
    assert held[0] == min(held) or f"{min(held):,.0f} MiB." in said
    assert peers_sections.memory_words(loads[:1]) == ""


@pytest.mark.parametrize("seed", SEEDS)
def test_findings_in_prose_are_those_that_move_a_request(seed):
    """None that would leave a request as it is; of no request at all the largest stay."""
    shares = drawn(seed, 0.03, 0.9)
    spots = [Hotspot("decode", name, s, "python") for name, s in zip("abc", shares, strict=True)]
    for of_request in (0.001, 0.5):
        ranked = rank_findings(spots, {"decode": of_request})
        told = worth_a_sentence(ranked)
        worth = [w for w, s in zip("abc", shares, strict=True) if 1 / (1 - s * of_request) >= 1.01]
        assert sorted(told["where"]) == (worth or ["a", "b", "c"])
    assert len(worth_a_sentence(rank_findings(spots))) == len(spots)


@pytest.mark.parametrize("explained", [0.4, 1.0, 1.64])
def test_lines_that_hold_a_call_twice_explain_nothing(explained):
    """More than the whole run is said to be counted twice."""
    frame = pd.DataFrame(
        {
            "function": "f", "file": "a.py", "line": [1, 2], "source": ["x()", "y"],
            "hits": [3, 4], "self_ms": [75.0 * explained, 25.0 * explained], "share": [0.75, 0.25],
        }
    )  # fmt: skip
    said = bottlenecks.lines_sentence("decode", LineProfile(frame, 100.0))
    assert "`x()` in `f` (line 1) has 75 % of the lines' time in 3 hits" in said
    assert ("count twice" in said) == (explained > 1.1)
    assert percent(explained) in said


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gate_s_rates_are_counts_with_their_interval(seed):
    """Failures of decisions, slow-downs apart; how long one takes, over how many runs."""
    fails = np.random.default_rng(seed).random(12) < 0.5
    rows = pd.DataFrame(
        {
            "run_id": ["a", "b", "c"] * 4, "slowdown": [0.0] * 6 + [0.05] * 6, "benchmark": "t",
            "status": "no change seen", "fails": fails, "seconds": [7.0] * 6 + [15.0] * 6,
            "blocks": 9,
        }
    )  # fmt: skip
    said = regression.rates_sentence(rows)
    assert f"unchanged code in {fails[:6].sum()} of 6 decisions [" in said
    assert f"a slow-down of 5 % in {fails[6:].sum()} of 6 decisions [" in said
    assert "a decision takes 7 to 15 s. Intervals are over 3 runs" in said
    assert (span([3, 3]), span([5, 3])) == ("3", "3 to 5")


@pytest.mark.parametrize("seed", SEEDS)
def test_costs_of_a_batch_are_those_of_the_largest(seed):
    """Bytes become MiB, microseconds stay; what no engine says is not known."""
    peak, weights, each = (v * 2**30 for v in drawn(seed))
    table = pd.DataFrame(
        {
            "batch_size": [1, 32], "peak_bytes": [1.0, peak], "weights_bytes": weights,
            "peak_per_item_bytes": [1.0, each], "overhead_percent": [9.9, 1.5],
            "overhead_beside_weights_percent": [99.0, 31.0], "process_bytes": [np.nan, 2.0**30],
        }
    )  # fmt: skip
    said = baseline.memory_sentence(table)
    assert f"of 32 peaks at {peak / 2**20:.1f} MiB beside {weights / 2**20:.0f} MiB" in said
    assert f"{each / 2**20:.2f} MiB an item" in said
    assert "1.5 % with the weights in it, 31 % beside them" in said
    unknown = baseline.memory_sentence(table.assign(overhead_percent=np.nan))
    assert "of 32 takes is not known" in unknown
    assert "holds 1,024 MiB" in unknown
    extra, of = drawn(seed, 0.5, 1.5, 2)
    layer = pd.DataFrame(
        {
            "batch_size": [1, 32], "extra_per_item_us": [9.0, extra], "ratio_x": [9.0, of],
            "low_x": of - 0.1, "high_x": of + 0.1,
        }
    )  # fmt: skip
    said = baseline.layer_sentence(layer)
    assert f"At batch 32 the batching layer adds {extra:.2f} µs an item: {of:.2f} × [" in said
    times = drawn(seed, 0.2, 40, 4)
    parts = [("statistics", 100), ("lookup by id", 100)]
    parts += [(part, 10_000) for part, _ in parts]
    cost = pd.DataFrame(parts, columns=["part", "items"]).assign(median_us=times)
    said = baseline.statistics_sentence(cost)
    assert f"of 100 items take {times[0]:.1f} µs, of 10,000 items {times[2]:.0f} µs" in said
    assert f"{1e3 * times[1]:.0f} ns among 100 and {1e3 * times[3]:.0f} ns among 10,000" in said


@pytest.mark.parametrize("seed", SEEDS)
def test_the_exam_s_sentences_count_scenarios(seed):
    """Scores of the advisor and of the best other; what is apart, flat and stable."""
    table = pd.DataFrame(
        {
            "strategy": ["advisor", "fixed 8", "halve"], "scenarios": 150,
            "median_log2_distance": drawn(seed, 0, 1),
            "late_share": drawn(seed + 4, 0, 0.3), "over_memory_share": drawn(seed + 5, 0, 0.3),
            **{
                f"{which}_{score}": drawn(seed + at, 0.3, 1)
                for at, (which, score) in enumerate(
                    (a, b) for a in ("median", "p10") for b in ("score", "fair_score")
                )
            },
        }
    )  # fmt: skip
    said = sizing.scores_sentence(table)
    ours, other = sizing.ours_and_best_other(table)
    assert f"10th percentile {ours['p10_score']:.3f} (goal 0.90)" in said
    assert f"the luck of the best, {ours['median_fair_score']:.3f} and" in said
    assert "the luck" not in sizing.scores_sentence(table.assign(median_fair_score=np.nan))
    assert f"a latency budget in {percent(ours['late_share'])}" in said
    broken = other["late_share"] + other["over_memory_share"]
    assert said.endswith(f"broke budgets in {percent(broken)}.")
    told = np.random.default_rng(seed).random(9) < 0.6
    scored = pd.DataFrame(
        {
            "scenario": ["a, no budget", "a, latency", "b"] * 3, "informative": told,
            "score": drawn(seed, 0.5, 1, 9), "good_share": drawn(seed, 0, 1, 9),
        }
    )  # fmt: skip
    said = sizing.open_sentence(scored)
    reached = scored["score"][~told].median()
    assert f"In {(~told).sum()} further scenarios" in said
    assert f"reaches {100 * reached:.0f} % of it" in said
    assert "In every scenario" in sizing.open_sentence(scored.assign(informative=True))
    flat = scored["good_share"].to_numpy().reshape(3, 3)
    said = sizing.flatness_sentence(scored)
    assert f"without a budget {percent(np.median(flat[:, 0]))}" in said
    assert f"under a budget {percent(np.median(flat[:, 1:]))}" in said
    same = pd.DataFrame({"same_share": drawn(seed, 0.5, 1, 20)})
    said = sizing.stable_sentence(same, 4)
    assert said.startswith("Calibrated 5 times")
    assert f"for {100 * (same['same_share'] >= 0.8).mean():.0f} % of 20 scenarios" in said


@pytest.mark.parametrize("seed", SEEDS)
def test_stages_and_floors_are_those_of_their_batch(seed):
    """The largest stage of either end, in its own letters; what is neither prefill nor decode."""
    names = ["prefill", "decode", "KV cache", "unassigned"]
    frame = pd.DataFrame(
        {
            "batch_size": [1] * 4 + [8] * 4, "stage": names * 2,
            "share": np.random.default_rng(seed).dirichlet([1] * 4, 2).ravel(),
        }
    )  # fmt: skip
    said = bottlenecks.stages_sentence(frame)
    ends = [largest(rows, "share") for _, rows in frame.groupby("batch_size")]
    told = [
        f"{top['stage']} takes {percent(top['share'])} of a batch of {size}"
        for size, top in zip((1, 8), ends, strict=True)
    ]
    assert said == first_upper(", ".join(told))
    rest = frame[frame["stage"].isin(names[2:])].groupby("batch_size")["share"].sum().max()
    assert bottlenecks.stages_finding(frame).endswith(f"at most {percent(rest, 1)}.")
    ratios = drawn(seed, 0.9, 4, 4)
    floors = pd.DataFrame(
        {"kernel": ["decode", "prefill"] * 2, "batch_size": [1, 1, 8, 8], "ratio": ratios}
    )
    wanted = f"decode at {ratios[2]:.1f} × its floor, prefill at {ratios[3]:.1f} × its floor"
    assert bottlenecks.roofline_title(floors, 8) == f"Batch 8: {wanted}"


@pytest.mark.parametrize("seed", SEEDS)
def test_peers_are_equal_loaded_and_lost_to_as_their_rows_say(seed):
    """Counts of equal answers, seconds that add up, losses without a ratio by name."""
    rng = np.random.default_rng(seed)
    ids = pd.DataFrame({"identical": rng.random(5) < 0.5, "texts": 700})
    answers = pd.DataFrame(
        {
            "engine": ["x", "y", "z"], "float32": [True, True, False], "prompts": 20,
            "equal_answers": [20, *rng.integers(0, 20, 2)],
            "largest_logit_difference": drawn(seed),
        }
    )  # fmt: skip
    said = peers_sections.equality_sentence(ids, answers)
    assert f"{ids['identical'].sum()} of 5 tokenizers gave identical ids on 700 texts" in said
    assert "1 of 2 float32 engines the same greedy tokens on 20 prompts" in said
    assert f"z agrees on {answers['equal_answers'][2]} of them" in said
    held = pd.DataFrame(
        {
            "engine": ["x", "y"],
            "import_s": drawn(seed, size=2), "load_s": drawn(seed + 1, size=2),
            "rss_after_batch_mib": drawn(seed, 100, 3000, 2),
        }
    )  # fmt: skip
    said = peers_sections.load_sentence(held)
    for row in held.to_dict("records"):
        whole, mib = row["import_s"] + row["load_s"], row["rss_after_batch_mib"]
        assert f"{row['engine']} {whole:.1f} s and {mib:,.0f} MiB" in said
    ratios = drawn(seed, 0.3, 4)
    table = pd.DataFrame(
        {
            "implementation": ["tiktoken", "hf", "hf"], "batch_size": [32, 32, 1], "threads": 1,
            "state": "cold", "characters": 200, "ours_over_theirs_x": [np.nan, *ratios[1:]],
            "ours_is": ["slower", "faster", "faster"],
        }
    )  # fmt: skip
    said = peers_sections.tokenizing_sentence(table, "cold")
    assert f"At batch 32, cold, we run at {tables.number(ratios[1], 2)} × " in said
    assert "slower without a ratio: tiktoken (batch 32, 200 characters, cold, 1 thr.)" in said
    assert "without a ratio:" not in peers_sections.tokenizing_sentence(table[1:], "cold")


@pytest.mark.parametrize("seed", SEEDS)
def test_extrapolated_and_simulated_shares_are_at_their_place(seed):
    """The band at the most workers; ideas together beside today; a share a class and an order."""
    ends = drawn(seed, 1, 8, 4)
    law = pd.DataFrame(
        {
            "workers": [2, 8, 8, 2], "law": ["USL", "USL", "Amdahl", "USL"], "what": "decode",
            "low": ends, "high": [e + 1 for e in ends],
        }
    )  # fmt: skip
    said = machines.extrapolation_sentence(law)
    assert "from 1 and 2 to 8 workers" in said
    assert f": decode: {ends[1]:.1f} to {ends[1] + 1:.1f} ×. " in said
    shares = drawn(seed, 0, 1, 4)
    queue = pd.DataFrame(
        {
            "order": ["first come", "first come", "priority", "priority"],
            "class": ["urgent", "other"] * 2, "in_time_share": shares, "arrival_rate": 3.0,
        }
    )  # fmt: skip
    case: Any = SimpleNamespace(target_s=2.0, rate=1.5)
    said = policies.classes_sentence(queue, case)
    assert f"urgent: {percent(shares[0])} (first come), {percent(shares[2])} (priority)" in said
    assert "answered within 2000 ms" in said
    together = pd.DataFrame({"in_time_share": shares, "sustained_requests_per_s": shares})
    runs = pd.DataFrame(
        {"idea": "today", "arrival_rate": [1.5, 1.5, 9.0, 9.0], "in_time_share": shares}
    )
    said = ideas.ladder_sentence(together, runs, case)
    assert f"bring {percent(shares[-1])} of requests in time" in said
    assert f"(today {percent(float(np.mean(shares[:2])))})" in said
