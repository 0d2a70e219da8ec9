"""`optimal_batch_size()` of a tokenizer or an engine: calibrate once, remember, suggest.

The first call on a machine measures for a few seconds and keeps the result as JSON
in the user's cache folder, named by machine, model and threads; later calls only
read it. The batch-sizing notebook asks about the same requests, and its calibration, a
longer one, takes the place of the short one here. The newest calibration counts, and advice
reaches as far as it was measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from batchgauge.errors import UserError
from batchgauge.machine.identity import Machine
from batchgauge.machine.preflight import blas_identity
from batchgauge.machine.rates import cache_folder
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.request import BatchItem, InferenceBatchRequest
from batchgauge.sizing.advice.decision import Question
from batchgauge.sizing.advice.load import Batches, Requests, whole_settings
from batchgauge.sizing.advice.search import Search
from batchgauge.sizing.calibration import Extent, calibrate_engine, calibrate_tokenizer
from batchgauge.sizing.cost_model import CostModel, Identity
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.probes import engine_probe, tokenizer_probe
from batchgauge.sizing.suggest import suggest_batch_size
from batchgauge.sizing.suggestion import BatchSizeSuggestion, SizingConfig
from batchgauge.workload import load_prompts, request_lengths, texts

# Real traffic is divided by this for a model of this size (its shape is what matters), and
# prompts are cut to what such a model can still sweep.
SCALE = 16
LONGEST = 128
# The largest batch that is calibrated and advised unasked: beyond, the last percents of
# throughput are paid for with twice the latency.
LARGEST = 32


def traffic_lengths(
    requests: int = 200, *, scale: float = SCALE, longest: int = LONGEST, seed: int = 0
) -> Lengths:
    """Request lengths in the shape of real conversation traffic, divided by `scale`.

    Prompts and generations have `longest` tokens at most; see `workload.request_lengths`.
    """
    context, new = request_lengths(requests, scale=1 / scale, longest=longest, seed=seed)
    return Lengths(tuple(context.tolist()), tuple(new.tolist()))


def traffic_texts(workload: str = "") -> list[str]:
    """Texts to tokenize: the workload's prompts, and prose in pieces of many lengths."""
    pieces = [t for size in (40, 120, 400, 1200) for t in texts("prose", size, 60, seed=size)]
    return [prompt.prompt for prompt in load_prompts(workload)] + pieces


def engine_identity(engine: Engine, model: str = "") -> Identity:
    """What a calibration of the engine is valid for, with the threads that BLAS has now.

    Where `model` is empty, the engine's own title and size of weights name it, if it shows
    them. Another BLAS is another engine.
    """
    weights = getattr(getattr(engine, "model", None), "weights_bytes", "")
    name = model or f"{getattr(engine, 'title', '')} {weights}".strip()
    blas, threads = blas_identity()
    return Identity(Machine.here().id, f"{engine.name}, {name}, {blas}", threads)


def tokenizer_identity(
    tokenizer: Tokenizer, sample: Sequence[str], max_batch_size: int, model: str = ""
) -> Identity:
    """The same of a tokenizer on texts like these in batches of at most so many."""
    digest = sha256("\0".join(sample).encode("utf-8", "surrogatepass")).hexdigest()[:10]
    size = getattr(tokenizer, "vocab_size", "")
    name = f"{tokenizer.name}, {model or size}, {max_batch_size} of {digest}"
    return Identity(Machine.here().id, name)


def optimal_for_engine(
    engine: Engine, *, model: str = "", workload: Lengths | None = None, cache: Path | None = None
) -> int:
    """The batch size with the most throughput for this engine on this machine, at any wait.

    Calibrates for a few seconds the first time for a machine, `model` (see `engine_identity`)
    and thread count, and caches that as JSON. For budgets, other objectives and the reasons,
    use `suggest_for_engine`.
    """
    return suggest_for_engine(engine, model=model, workload=workload, cache=cache).size


def suggest_for_engine(
    engine: Engine,
    config: SizingConfig | None = None,
    *,
    model: str = "",
    workload: Lengths | None = None,
    cache: Path | None = None,
) -> BatchSizeSuggestion:
    """A whole suggestion for an engine; where there is no `config`, for throughput at any wait.

    A `config.max_batch_size` beyond what was calibrated is calibrated anew; without a config
    the advice reaches as far as the calibration.
    """
    most = engine.max_batch_size()
    wanted = min(most, config.max_batch_size if config else LARGEST)
    identity = engine_identity(engine, model)
    cost = recalled(identity, cache)
    if cost is None or cost.decode.knots[-1] < wanted:
        most_positions = _longest_prefill(engine)
        extent = Extent(max(1, wanted), max_positions=most_positions, sizes=4, repeats=2)
        cost = calibrate_engine(engine_probe(engine), extent, identity=identity)
        remember(cost, cache)
    reach = min(most, int(cost.decode.knots[-1]))
    config = config or SizingConfig(max_batch_size=reach, wait_price=0.0)
    return suggest_batch_size(workload or traffic_lengths(), cost, config)


def is_calibrated(engine: Engine, largest: int) -> bool:
    """Whether advice up to this size is there without measuring anything."""
    cost = recalled(engine_identity(engine))
    return cost is not None and cost.decode.knots[-1] >= largest


def measured_size(
    engine: Engine,
    items: Sequence[BatchItem[InferenceBatchRequest]],
    largest: int = LARGEST,
    *,
    budget_s: float = 10.0,
) -> int:
    """The batch size with the most throughput for an engine of which no cost model is known.

    Runs batches of the requests themselves; see `batchgauge.sizing.advice.search`. Nothing is
    remembered: what a server can do depends on who else uses it. Raises UserError where no size
    works.
    """
    sizes = whole_settings(min(largest, engine.max_batch_size()))
    found = Search(Batches(engine, Requests(items), sizes), Question(budget_s=budget_s)).find()
    if found.decision.index is None:
        raise UserError(f"No batch size of the engine '{engine.name}' answers all its requests.")
    return int(sizes[found.decision.index])


def shows_its_model(engine: Engine) -> bool:
    """Whether the cost model's laws are known to hold for the engine: it shows its own model."""
    return hasattr(getattr(engine, "model", None), "config")


def _longest_prefill(engine: Engine) -> int:
    """Positions of a calibration's largest prefill: 256, or what twice of fits a short context."""
    config = getattr(getattr(engine, "model", None), "config", None)
    context = getattr(config, "context_length", None)
    return max(1, min(256, (context - 8) // 2)) if isinstance(context, int) else 256


def optimal_for_tokenizer(
    tokenizer: Tokenizer,
    *,
    max_batch_size: int = 1000,
    model: str = "",
    texts: list[str] | None = None,
    cache: Path | None = None,
) -> int:
    """The batch size with the most texts a second for this tokenizer on this machine.

    Calibrates for a fraction of a second the first time and caches that as JSON.
    `texts` are what to calibrate with; by default `traffic_texts`.
    """
    sample = texts or traffic_texts()
    identity = tokenizer_identity(tokenizer, sample, max_batch_size, model)
    cost = recalled(identity, cache)
    if cost is None:
        cost = calibrate_tokenizer(
            tokenizer_probe(tokenizer, sample),
            max_batch_size=max_batch_size,
            identity=identity,
        )
        remember(cost, cache)
    config = SizingConfig(max_batch_size=max_batch_size, wait_price=0.0)
    return suggest_batch_size(Lengths.texts(sample), cost, config).size


def remember(cost: CostModel, cache: Path | None = None) -> None:
    """Keep a calibration for later calls; a folder that cannot be written is no matter."""
    with contextlib.suppress(UserError):
        cost.save(_path(cost.identity, cache))


def recalled(identity: Identity, cache: Path | None = None) -> CostModel | None:
    """The calibration that was remembered for this; None without one, or with a broken one."""
    with contextlib.suppress(UserError):
        return CostModel.load(_path(identity, cache), identity)
    return None


def _path(identity: Identity, cache: Path | None) -> Path:
    text = "|".join(map(str, identity))
    return (cache or cache_folder()) / f"costs-{sha256(text.encode()).hexdigest()[:16]}.json"
