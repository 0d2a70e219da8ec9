"""The engine taken apart: kernels for the roofline, stages by batch size, padding, GIL probes.

Letters: B rows, T positions, D model width, H query heads, E head width, F
feed-forward width, V vocabulary, L layers. Bytes are what must come from or
go to memory at the least: each weight once, keys and values once, activations not
(they stay in the caches); operations are those of the matrix products, two a
multiply-add.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.core.kv_cache import KVCache
from batchgauge.core.model import LlamaModel
from batchgauge.experiments.bottlenecks.parts import Subject
from batchgauge.experiments.context import Context, Items
from batchgauge.machine.identity import Machine
from batchgauge.machine.rates import Rates, measure_rates, remember
from batchgauge.profiling.parallelism import probe_gil
from batchgauge.profiling.roofline import Kernel, place
from batchgauge.request import BatchItem
from batchgauge.workload import MEAN_CONTEXT, exact_requests, request_lengths

CONTEXT = 128  # positions that a decode step looks back on
PROMPT = 32  # positions a row in the prefill that is placed on the roofline
DECODE_KERNELS = ("QKV", "attention", "output", "MLP", "head")


def kernels(model: LlamaModel, batch_size: int) -> list[Kernel]:
    """The kernels of a decode step over all layers, a whole step, and a prefill, at B rows."""
    c, B = model.config, batch_size
    D, H, E, V, L = c.d_model, c.heads, c.head_dim, c.vocab_size, c.layers
    kv_heads, inner = (sum(getattr(s, name) for s in c.shapes) for name in ("kv_heads", "d_ff"))
    layers = model.weights.layers
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, D), dtype=np.float32)
    wide = rng.standard_normal((B, H * E), dtype=np.float32)
    queries = wide.reshape(B, H, E)
    news = rng.standard_normal((B, c.kv_heads, E), dtype=np.float32)  # keys and values
    cache = filled_cache(model, B, CONTEXT - 1)
    rows = cache.rows

    def qkv() -> None:
        for layer in layers:
            layer.qkv(x)

    def output() -> None:
        for layer in layers:
            layer.output(wide)

    def mlp() -> None:
        for layer in layers:
            layer.down(model.gated(layer.gate_up(x)))

    def attention() -> None:
        out = np.empty((B, H * E), np.float32)
        for number in range(L):
            model.attention.step(cache, number, rows, queries, news, news, out)

    each = model.weights.bytes_each
    weights = {
        "QKV": D * E * (L * H + 2 * kv_heads),
        "output": L * D * H * E,
        "MLP": 3 * D * inner,
        "head": V * D,
    }
    kv_bytes = B * CONTEXT * c.kv_bytes_per_token
    attention_flops = 4.0 * B * L * H * E * CONTEXT
    all_weights = sum(weights.values())
    positions = B * PROMPT
    body = all_weights - weights["head"]
    prefill_flops = 2.0 * positions * body + 2.0 * B * weights["head"]
    prefill_flops += 2.0 * B * L * H * E * PROMPT * (PROMPT + 1)  # half of the square is masked

    def product(name: str, call: Callable[[], object]) -> Kernel:
        return Kernel(name, call, each * weights[name], 2.0 * B * weights[name], B)

    prefill_bytes = each * all_weights + positions * c.kv_bytes_per_token
    decode_bytes = each * all_weights + kv_bytes
    decode_flops = 2.0 * B * all_weights + attention_flops
    return [
        product("QKV", qkv),
        Kernel("attention", attention, kv_bytes, attention_flops, B),
        product("output", output),
        product("MLP", mlp),
        product("head", lambda: model.logits(x)),
        Kernel("decode", decode_call(model, B), decode_bytes, decode_flops, B),
        Kernel("prefill", prefill_call(model, B, PROMPT), prefill_bytes, prefill_flops, B),
    ]


def filled_cache(model: LlamaModel, rows: int, length: int) -> KVCache:
    """A cache that holds `length` positions in each row, with room for some more.

    Written to, because pages of zeros that nobody wrote to share one page of memory.
    """
    cache = model.new_cache([length + 8] * rows)
    for row in cache.rows.tolist():
        group, place = cache.find(row)
        group.rooms[place].fill(0.01)
    cache.lengths[:] = length
    return cache


def decode_call(model: LlamaModel, rows: int) -> Callable[[], object]:
    """One decode step of `rows` rows, each with `CONTEXT` positions behind it, again and again."""
    cache = filled_cache(model, rows, CONTEXT)
    tokens = np.arange(rows, dtype=np.int32)

    def decode_step() -> npt.NDArray[np.float32]:
        cache.lengths[:] = CONTEXT
        return model.decode(tokens, cache)

    return decode_step


def prefill_call(model: LlamaModel, rows: int, positions: int) -> Callable[[], object]:
    """A prefill of `rows` prompts of so many positions, again and again."""
    cache = model.new_cache([positions] * rows)
    prompts = [list(range(positions))] * rows

    def prefill() -> npt.NDArray[np.float32]:
        cache.lengths[:] = 0
        return model.prefill(prompts, cache)

    return prefill


def batch_sizes(subject: Subject) -> list[int]:
    """Batch sizes of the sweep: powers of two (of four in a smoke run), and the one asked for."""
    step, top = subject.context.budget.choose(smoke=(8, 1), default=(4, 16), thorough=(2, 64))
    most = subject.engine.max_batch_size() if subject.engine else 1
    sizes = {step**i for i in range(8) if step**i <= min(top, most)}
    return sorted(sizes | {subject.batch_size})


def roofline(
    context: Context, model: LlamaModel, sizes: Sequence[int]
) -> tuple[pd.DataFrame, Rates]:
    """Every kernel at every batch size, placed against the rates measured just before.

    The rates are kept: whoever needs them after this has the same numbers.
    """
    choose = context.budget.choose
    rates = measure_rates(context.threads, seconds=choose(smoke=0.4, default=4.0, thorough=15.0))
    made = [kernel for size in sizes for kernel in kernels(model, size)]
    frame, rates = place(
        made, rates, seconds=len(sizes) * choose(smoke=0.2, default=2.0, thorough=20.0)
    )
    return frame, remember(rates, Machine.here().id)


def stages(subject: Subject, sizes: Sequence[int]) -> pd.DataFrame:
    """Where a batch's time goes by batch size: batch_size, stage, wall_ms, share, and unassigned.

    The same items in batches of each size, one run after a warm-up; the stage `unassigned` is
    what the engine's own clock did not cover. Empty where the engine reports no stages.
    """
    if subject.engine is None:
        return pd.DataFrame()
    rows = []
    for size in sizes:
        items = _renamed(subject.items, size)
        result = subject.engine.infer_batch(items)
        if not result.stages_ms:
            return pd.DataFrame()
        total = result.stats.total_duration_ms
        named = dict(result.stages_ms)
        named["unassigned"] = max(0.0, total - sum(named.values()))
        rows += [(size, stage, ms, ms / total) for stage, ms in named.items()]
    return pd.DataFrame(rows, columns=["batch_size", "stage", "wall_ms", "share"])


def _renamed(items: Items, count: int) -> Items:
    """`count` of the items, going round again under new ids."""
    laps = [(i // len(items), items[i % len(items)]) for i in range(count)]
    return [BatchItem(f"{item.id}/{lap}" if lap else item.id, item.data) for lap, item in laps]


def padding(subject: Subject, mean_tokens: int) -> pd.DataFrame:
    """Padding waste by spread of prompt lengths, one prefill each.

    Columns spread, lengths_tokens, rectangle_waste (what padding every prompt to the longest
    would compute in vain, of all computed), engine_waste (what this engine reports), wall_ms,
    padded_positions, positions. Empty where the engine does not count positions.
    """
    if subject.engine is None:
        return pd.DataFrame()
    B = subject.batch_size
    traffic, _ = request_lengths(
        B, scale=mean_tokens / MEAN_CONTEXT, longest=8 * mean_tokens, seed=subject.context.seed
    )
    even = np.linspace(-1, 1, B)
    spreads: Mapping[str, npt.NDArray[np.float64]] = {
        "all equal": np.full(B, float(mean_tokens)),
        "± 25 %": mean_tokens * (1 + 0.25 * even),
        "± 75 %": mean_tokens * (1 + 0.75 * even),
        "real traffic": traffic.astype(np.float64),
    }
    rows = []
    for name, wanted in spreads.items():
        lengths = np.maximum(1, wanted.round()).astype(int)  # [B]
        result = subject.engine.infer_batch(exact_requests(lengths.tolist(), [1] * B))
        if "positions" not in result.counters:
            return pd.DataFrame()
        padded = result.counters.get("padded_positions", 0)
        computed = result.counters["positions"]
        rows.append(
            {
                "spread": name,
                "lengths_tokens": " ".join(map(str, sorted(lengths.tolist()))),
                "rectangle_waste": 1 - lengths.sum() / (B * lengths.max()),
                "engine_waste": padded / computed,
                "padded_positions": padded,
                "positions": computed,
                "wall_ms": result.stats.total_duration_ms,
            }
        )
    return pd.DataFrame(rows)


def gil_probes(subject: Subject) -> pd.DataFrame:
    """Which kinds of work release the GIL: every callable is made anew for each thread."""
    makers = {part.name: part.fresh for part in subject.parts if part.fresh}
    square = np.ones((512, 512), dtype=np.float32)
    makers["sgemm 512³"] = lambda: functools.partial(
        np.matmul, square, square, out=np.empty_like(square)
    )
    if (model := subject.model) is not None:
        makers["decode step"] = lambda: decode_call(model, subject.batch_size)
        makers["prefill"] = lambda: prefill_call(model, 1, PROMPT)
    choose = subject.context.budget.choose
    seconds = choose(smoke=0.03, default=0.08, thorough=1.0)
    return probe_gil(makers, seconds=seconds, rounds=choose(smoke=1, default=3, thorough=5))
