"""S(b) of inference: whole requests and decode alone, with prefill, TTFT and latency apart.

Every engine can be measured whole. Phases need an engine that says when its tokens came;
for one that does not, their columns are empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.experiments.baseline.sweep import Sweep, Timed, as_ratio, block_ratios, run_blocks
from batchgauge.experiments.context import Lab
from batchgauge.machine.identity import Run
from batchgauge.machine.preflight import limit_threads
from batchgauge.measuring.record import Sample, as_json, to_frame
from batchgauge.measuring.statistics import minimum_detectable_change
from batchgauge.measuring.verdicts import judge
from batchgauge.reporting import plots
from batchgauge.request import (
    BatchItem,
    BatchResult,
    InferenceBatchRequest,
    InferenceBatchResponse,
    generated_tokens,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = BatchResult[InferenceBatchResponse]
Items = Sequence[BatchItem[InferenceBatchRequest]]


@dataclass(frozen=True, slots=True)
class InferenceSweep(Sweep):
    """A sweep of whole requests (`table`) with `phases` by batch size and some `answers`."""

    phases: pd.DataFrame
    answers: pd.DataFrame

    def draw_latency(self) -> Figure:
        """TTFT and inter-token latency by batch size: median, and range over requests."""
        import matplotlib.pyplot as plt

        fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
        for ax, what, title in (
            (axes[0], "ttft", "Time to first token"),
            (axes[1], "inter_token", "Inter-token latency"),
        ):
            columns = (f"{what}_{q}_ms" for q in ("median", "least", "most"))
            plots.line_with_interval(
                ax,
                self.phases["batch_size"].to_numpy(),
                *(self.phases[c].to_numpy() for c in columns),
                implementation=str(self.table["implementation"].iloc[0]),
            )
            plots.batch_axis(ax, self.phases["batch_size"])
            ax.set(title=title, ylabel="ms (median, range over requests)", ylim=(0, None))
        return fig

    def latency_sentence(self) -> str:
        """How TTFT and inter-token latency grow from the smallest to the largest batch."""
        first, last = self.phases.iloc[0], self.phases.iloc[-1]
        if math.isnan(last["ttft_median_ms"]):
            return "This engine does not say when its tokens came, so there are no latencies."
        ttft = (
            f"From batch {first['batch_size']:.0f} to {last['batch_size']:.0f} the median TTFT "
            f"goes from {first['ttft_median_ms']:.0f} to {last['ttft_median_ms']:.0f} ms"
        )
        if math.isnan(last.get("first_answer_median_ms", 0.0)):
            ttft += " (of reasoning only: no answer began)"
        elif "first_answer_median_ms" in last:
            ttft += (
                f" (of the answer behind its reasoning: {last['first_answer_median_ms']:.0f} ms)"
            )
        if math.isnan(last["inter_token_median_ms"]):
            return f"{ttft}; its chunks are not single tokens, so there is no inter-token latency."
        if math.isnan(last["decode_tokens_per_s"]) or math.isnan(last["decode_speedup_x"]):
            return f"{ttft}; how long decoding took is not known."
        return (
            f"{ttft} and the "
            f"median inter-token latency from {first['inter_token_median_ms']:.1f} to "
            f"{last['inter_token_median_ms']:.1f} ms; decode throughput from "
            f"{first['decode_tokens_per_s']:.0f} to {last['decode_tokens_per_s']:.0f} tokens/s, "
            f"S({last['batch_size']:.0f}) of decode alone = {last['decode_speedup_x']:.2f} × "
            f"[{last['decode_low_x']:.2f}, {last['decode_high_x']:.2f}]."
        )


def long_sweep(
    lab: Lab,
    what: str,
    part: str,
    items: Items,
    sizes: Sequence[int],
    *,
    share: float,
    at_least: int | None = None,
) -> InferenceSweep:
    """Blocks of every item alone and every batch size; see `sweep.run_blocks`.

    Raises UserError when the engine fails an item.
    """

    def infer(chosen: Items) -> Result:
        result = lab.engine.infer_batch(chosen)
        bad = next((r for r in result.responses if r.error is not None), None)
        if bad:
            raise UserError(f"The engine could not answer '{bad.id}': {bad.error}")
        return result

    with limit_threads(lab.threads):
        timings = run_blocks(
            lambda i: infer(items[i : i + 1]),
            lambda b: infer(items[:b]),
            sizes,
            budget_s=lab.budget.share(share),
            min_blocks=at_least or lab.budget.choose(smoke=2, default=3, thorough=10),
            max_blocks=lab.budget.max_blocks,
            name=what,
        )
    batches = [t for t in timings if t.item < 0]
    return InferenceSweep(
        what,
        _table(lab, timings, sizes),
        _samples(lab, part, timings),
        pd.DataFrame([_phases(timings, size, lab.seed) for size in sizes]),
        _answers(items, batches[-1].result),
    )


def _table(lab: Lab, timings: Sequence[Timed[Result]], sizes: Sequence[int]) -> pd.DataFrame:
    floor_logs = block_ratios(timings, 1, _wall_ms) if 1 in sizes else None
    half = as_log_half_width(floor_logs, lab.seed)
    rows = []
    for size in sizes:
        logs = block_ratios(timings, size, _wall_ms)
        ratio = as_ratio(logs, lab.seed)
        mine = [t.wall_ms for t in timings if t.item < 0 and t.batch_size == size]
        alone = [
            sum(t.wall_ms for t in timings if t.block == block and 0 <= t.item < size)
            for block in sorted({t.block for t in timings})
        ]
        floor, mdc = math.expm1(half), minimum_detectable_change(half)
        rows.append(
            {
                "implementation": lab.engine_name,
                "batch_size": size,
                "speedup_x": ratio.value,
                "low_x": ratio.low,
                "high_x": ratio.high,
                "verdict": judge(
                    ratio.low, ratio.high, ratio.p, noise_floor=floor, mdc=mdc, threshold=0.05
                ),
                "noise_floor_percent": 100 * floor,
                "detectable_percent": 100 * mdc,
                "blocks": ratio.n,
                "alone_ms": float(np.median(alone)),
                "batch_ms": float(np.median(mine)),
            }
        )
    return pd.DataFrame(rows)


def as_log_half_width(logs: Any, seed: int) -> float:
    """Half-width of the 95 % interval of log ratios, NaN when there are none or only one."""
    from batchgauge.measuring.statistics import location

    if logs is None or len(logs) < 2:
        return math.nan
    return location(logs, seed=seed).half_width


def _wall_ms(timed: Timed[Result]) -> float:
    return timed.wall_ms


def _decode_ms(timed: Timed[Result]) -> float:
    """Time in decode steps: by the engine's own stages, else by its responses."""
    stages = timed.result.stages_ms
    if "decode" in stages:
        return stages["decode"]
    told = [r.data.decode_ms for r in timed.result.responses if r.data]
    return max((ms for ms in told if ms > 0), default=math.nan)


def _phases(timings: Sequence[Timed[Result]], size: int, seed: int) -> dict[str, Any]:
    """Prefill and decode throughput, decode's own S(b), TTFT and inter-token latency."""
    mine = [t for t in timings if t.item < 0 and t.batch_size == size]
    data = [r.data for t in mine for r in t.result.responses if r.data]
    prompt = sum(d.prompt_tokens for d in data)
    counts = [math.nan if d.tokens_generated is None else d.tokens_generated for d in data]
    later = math.nan if any(map(math.isnan, counts)) else sum(max(n - 1, 0) for n in counts)
    prefill_ms = sum(max(r.data.prefill_ms for r in t.result.responses if r.data) for t in mine)
    decode_ms = sum(_decode_ms(t) for t in mine)
    gaps = [g for d in data for g in d.inter_token_ms]
    firsts = [d.ttft_ms for d in data]
    answers = (
        {}
        if not any(d.reasoning for d in data)
        else {"first_answer_median_ms": float(np.median([d.first_answer_ms for d in data]))}
    )
    alone = [t for t in timings if 0 <= t.item < size]
    known = all(_decode_ms(t) > 0 for t in [*mine, *alone])
    ratio = as_ratio(block_ratios(timings, size, _decode_ms), seed) if known else None
    return {
        "batch_size": size,
        "prefill_tokens_per_s": 1e3 * prompt / prefill_ms,
        "decode_tokens_per_s": 1e3 * later / decode_ms if known else math.nan,
        "decode_speedup_x": ratio.value if ratio else math.nan,
        "decode_low_x": ratio.low if ratio else math.nan,
        "decode_high_x": ratio.high if ratio else math.nan,
        "ttft_median_ms": float(np.median(firsts)),
        "ttft_least_ms": min(firsts),
        "ttft_most_ms": max(firsts),
        **answers,
        "inter_token_median_ms": float(np.median(gaps)) if gaps else math.nan,
        "inter_token_least_ms": min(gaps, default=math.nan),
        "inter_token_most_ms": max(gaps, default=math.nan),
    }


def _samples(lab: Lab, part: str, timings: Sequence[Timed[Result]]) -> pd.DataFrame:
    """The timings as records, one row a call."""
    samples = [
        Sample(
            benchmark=f"{part}/batch={t.batch_size}/max_tokens={lab.max_tokens}",
            implementation=lab.engine_name,
            part=part,
            batch_size=t.batch_size,
            parameters=as_json({"item": t.item, "max_tokens": lab.max_tokens}),
            process=0,
            block=t.block,
            position=t.position,
            is_warmup=False,
            inner_loops=1,
            wall_ms=t.wall_ms,
            cpu_ms=math.nan,
            items=t.batch_size,
            tokens=generated_tokens(t.result) or 0,
            counters=as_json(t.result.counters),
            gc="on",
        )
        for t in timings
    ]
    return to_frame(samples, Run.here(threads=lab.threads, seed=lab.seed))


def _answers(items: Items, result: Result) -> pd.DataFrame:
    rows = [
        (
            item.id,
            " ".join(str(item.data.prompt).split())[:80],
            " ".join(response.data.text.split())[:120] if response.data else "",
        )
        for item, response in zip(items, result.responses, strict=False)
    ]
    return pd.DataFrame(rows, columns=["id", "prompt", "answer"])
