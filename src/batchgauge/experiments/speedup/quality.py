"""What a form of the weights costs in quality and buys in speed.

Quality is that of scores on prose that nothing was fitted to, every position of some
windows of it: perplexity, mean KL divergence from float32 of the same model, and how often the
first choice is the same. Windows are the units of the intervals. Speed is measured by
`processes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm.auto import tqdm

from batchgauge.adapters.gguf_copy import copy_as, obstacle
from batchgauge.core.default_model import default_model_path, open_model
from batchgauge.core.model import LlamaModel
from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer
from batchgauge.core.weights import MODES
from batchgauge.errors import UserError
from batchgauge.experiments import fresh
from batchgauge.experiments.context import Context
from batchgauge.machine.limits import performance_cores
from batchgauge.machine.preflight import limit_threads
from batchgauge.statistics import Interval, location
from batchgauge.text import figures, ratio
from batchgauge.workload import corpus

Floats = npt.NDArray[np.float32]
KINDS = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0")
SOME = ("F16", "Q8_0", "Q4_K", "Q4_0")  # of them, where there is less time


@dataclass(frozen=True, slots=True)
class Form:
    """A file and how its weights are kept."""

    name: str
    path: Path
    weights: str


def forms(context: Context, folder: Path) -> tuple[list[Form], dict[str, str]]:
    """The model's own file in every mode, and copies in `folder` of every type that it can have.

    Beside them, why a type is left out. A smoke run takes two modes and one type, the default
    one some of the types.
    """
    path = Path(context.model) if context.model else default_model_path()
    file = open_model(path)
    quick = context.budget.name == "smoke"
    found = [Form(f"{mode}, own file", path, mode) for mode in (MODES[:2] if quick else MODES)]
    absent = {}
    kinds = context.budget.choose(smoke=KINDS[-1:], default=SOME, thorough=KINDS)
    for kind in tqdm(kinds, desc="Files", leave=False):
        if why := obstacle(file, kind):
            absent[kind] = why
            continue
        try:
            found.append(Form(kind, copy_as(file, folder / f"{kind}.gguf", kind), "file"))
        except UserError as problem:  # no room for it
            absent[kind] = str(problem)
    return found, absent


def windows(context: Context, count: int, tokens: int) -> list[list[int]]:
    """`count` windows of the reference text, evenly spread, `tokens` long each."""
    ids = BPETokenizer.from_gguf(context.model or None).encode(corpus("prose"))
    starts = np.linspace(0, max(0, len(ids) - tokens - 1), count).astype(int)
    return [ids[start : start + tokens] for start in starts]


def log_probabilities(model: LlamaModel, window: Sequence[int]) -> Floats:
    """Log-probabilities [T - 1, V] of what follows each position but the last."""
    cache = model.new_cache([len(window)])
    length = np.array([len(window)])
    x = model.read(np.array(window, np.int32), cache, cache.rows, [len(window)], length)
    scores = model.logits(x[:-1])
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, dtype=np.float64))[:, None].astype(np.float32)
    return scores


def compared(mine: Floats, reference: Floats, window: Sequence[int]) -> tuple[float, float, float]:
    """Mean surprise (nats), KL divergence from the reference (nats), same first choice (share)."""
    surprise = -mine[np.arange(len(mine)), list(window[1:])].mean(dtype=np.float64)
    divergence = (np.exp(reference) * (reference - mine)).sum(axis=1, dtype=np.float64).mean()
    same = (mine.argmax(axis=1) == reference.argmax(axis=1)).mean()
    return float(surprise), float(divergence), float(same)


def measure_quality(context: Context, every: Sequence[Form]) -> pd.DataFrame:
    """One row a form and window: surprise, divergence, agreement; and the bytes of each form."""
    count, tokens = context.budget.choose(smoke=(3, 24), default=(8, 64), thorough=(48, 512))
    texts, rows = windows(context, count, tokens), []
    reference: list[Floats] = []
    with limit_threads(performance_cores()):
        for form in tqdm(every, desc="Quality", leave=False):
            model = LlamaModel.load(form.path, form.weights)
            for number, window in enumerate(texts):
                mine = log_probabilities(model, window)
                if len(reference) == number:
                    reference.append(mine)
                rows.append(
                    (form.name, form.weights, number, tokens, form.path.stat().st_size,
                     model.weights_bytes, *compared(mine, reference[number], window))
                )  # fmt: skip
    columns = ["form", "weights", "window", "window_tokens", "file_bytes", "resident_bytes"]
    return pd.DataFrame(rows, columns=[*columns, "surprise", "divergence", "agreement"])


def summary(quality: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """One row a form: bytes, perplexity, divergence, agreement, tokens/s, with 95 % intervals."""
    found = fresh.rates(speed[speed["part"].eq("decode") & speed["threads"].eq(1)])
    ends = found["batch_size"].min(), found["batch_size"].max()
    rows = []
    for name, part in quality.groupby("form", sort=False):
        first = part.iloc[0]
        row = {
            "form": name,
            "weights": first["weights"],
            "file_bytes": first["file_bytes"],
            "resident_bytes": first["resident_bytes"],
            **location(part["surprise"]).exp().columns("perplexity"),
            **location(part["divergence"]).columns("divergence_nats"),
            **location(100 * part["agreement"]).columns("same_first_percent"),
            "windows": len(part),
            "window_tokens": first["window_tokens"],
        }
        mine = found["implementation"] == name
        for rate in found[mine & found["batch_size"].isin(ends)].to_dict("records"):
            speeds = Interval(rate["tokens_per_s"], rate["low"], rate["high"])
            row |= speeds.columns(f"tokens_per_s_{rate['batch_size']}")
        rows.append({**row, "processes": len(set(speed["process"])), "threads": 1})
    return pd.DataFrame(rows)


def gains(speed: pd.DataFrame) -> pd.DataFrame:
    """What batching buys each form: S(b) of decode, with 95 % intervals."""
    steps = speed[speed["part"].eq("decode") & speed["threads"].eq(1)]
    rows = []
    for name, mine in steps.groupby("implementation", sort=False):
        first, *sizes = sorted(set(mine["batch_size"]))
        for size in sizes:
            found = fresh.ratio(mine, {"batch_size": size}, {"batch_size": first})
            if found:
                rows.append((name, size, *found, len(set(mine["process"]))))
    return pd.DataFrame(rows, columns=["form", "batch_size", "value", "low", "high", "processes"])


def gains_sentence(table: pd.DataFrame) -> str:
    """S(b) of each mode at the largest batch, and whether smaller weights gain less."""
    last = table[table["batch_size"] == table["batch_size"].max()]
    own = last[last["form"].str.endswith("own file")].set_index("form")
    said = "; ".join(
        f"{name.partition(',')[0]} " + ratio(row["value"], row["low"], row["high"], "{:.1f}".format)
        for name, row in own.iterrows()
    )
    full, file = own.loc["float32, own file"], own.loc["file, own file"]
    smaller = (
        "smaller weights leave batching less to share: S(b) shrinks with them"
        if file["high"] < full["low"]
        else "the intervals do not tell float32 and file apart"
    )
    return f"S({last['batch_size'].iloc[0]}) of decode by weights: {said}; {smaller}."


def sentence(table: pd.DataFrame, absent: dict[str, str]) -> str:
    """What the file's own weights give, which form loses least and most, what is left out."""
    full, file = table.iloc[0], table.iloc[1]
    others = table.iloc[2:].sort_values("divergence_nats")
    text = (
        f"Weights as the file has them take {file['resident_bytes'] / 2**20:.0f} MiB instead of "
        f"{full['resident_bytes'] / 2**20:.0f} and decode one request at "
        f"{file['tokens_per_s_1'] / full['tokens_per_s_1']:.2f} × float32's rate; their KL "
        f"divergence from float32 is {figures(file['divergence_nats'], 2)} nats. "
    )
    hows = ("loses least of the others", "most") if len(others) > 1 else ("loses some",)
    ends = others.iloc[[0, -1] if len(others) > 1 else slice(None)].to_dict("records")
    text += "; ".join(
        f"{row['form']} {how} ({figures(row['divergence_nats'], 2)} nats, "
        f"{row['same_first_percent']:.1f} % the same first choice)"
        for row, how in zip(ends, hows, strict=False)
    ) + ("." if ends else "")
    why: dict[str, list[str]] = {}
    for kind, reason in absent.items():
        why.setdefault(reason, []).append(kind)
    left = "; ".join(f"{', '.join(kinds)}: {reason}" for reason, kinds in why.items())
    return f"{text} Losses are against this model's own file, which is quantised already." + (
        f" Left out: {left}." if left else ""
    )
