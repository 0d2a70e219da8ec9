"""What a batch costs in time: t(b, lengths) for prefill and decode, with its own error.

    prefill(batch) = curve over positions computed + cost of each query-key pair
    decode step    = curve over rows + cost of each token of context
    batch          = prefill + the sum of its decode steps, as rows finish

The curves come from a short calibration (`calibration`) or, without one, from the
machine's roofline. A model knows how far it was off on sizes it had not seen, and
widens its predictions by that. It is saved with the identity of the machine and the
model it was measured on, and refuses to answer for another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import scipy

from batchgauge.errors import UserError
from batchgauge.files import write_text
from batchgauge.machine.hardware import HardwareProfile
from batchgauge.sizing.curve import Curve, Floats, roofline_curve
from batchgauge.sizing.lengths import BatchWork, Lengths
from batchgauge.sizing.memory_model import ModelShape

SCHEMA = 1
PRIOR_ERROR = 0.7  # a roofline is good to about a factor of two; no more is claimed
Metric = Literal["request", "ttft", "inter_token"]
Over = Literal["p95", "mean"]  # batches, of which some are unlucky


class Costs(Protocol):
    """Anything that prices phases: a cost model, or a table of what was measured."""

    @property
    def padded(self) -> bool:
        """True when every prompt of a batch costs as much as the longest."""
        ...

    @property
    def compacts(self) -> bool:
        """True when rows that are done leave the batch."""
        ...

    def prefill_ms(self, positions: npt.ArrayLike, squares: npt.ArrayLike) -> Floats:
        """Milliseconds of prefills, from the positions and query-key pairs computed; both [K]."""
        ...

    def decode_ms(self, rows: npt.ArrayLike, context: npt.ArrayLike) -> Floats:
        """Milliseconds of decode steps with `rows` and summed `context`, of one shape."""
        ...


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """Times of batches of one size: the whole batch, its first tokens, its steps.

    Means over the batches drawn; `p95` has the 95th percentile of each, in the same order,
    without which the means stand for it. `throughput_per_s` counts generated tokens for
    inference and texts for tokenizing.
    """

    size: int
    request_ms: float
    ttft_ms: float
    inter_token_ms: float
    throughput_per_s: float
    p95: tuple[float, float, float] | None = None

    def latency_ms(self, metric: Metric, over: Over = "mean") -> float:
        """The latency that a budget is about: the mean over batches, or its 95th percentile."""
        if over == "p95" and self.p95:
            return self.p95[("request", "ttft", "inter_token").index(metric)]
        return float(getattr(self, f"{metric}_ms"))


def batch_times(costs: Costs, lengths: Lengths, size: int) -> BatchTimes:
    """Price batches of `size` requests of this workload: phases added up, draws averaged.

    Texts are counted by their share of the workload's bytes, so that no size looks better for
    having drawn short ones.
    """
    work = lengths.batches(size)
    firsts, steps = price(costs, work)  # [K], [K, S]
    wholes = firsts + steps.sum(axis=1)
    means = steps.sum(axis=1) / np.maximum((steps > 0.0).sum(axis=1), 1)
    if lengths.generates:
        done = float(work.new_tokens.sum())
    else:
        done = float(work.inputs.sum()) / (sum(lengths.inputs) / len(lengths.inputs) or 1.0)
    three = (wholes, firsts, means)
    request, first, step = (float(np.mean(ms)) for ms in three)
    late = tuple(float(np.quantile(ms, 0.95, method="inverted_cdf")) for ms in three)
    seconds = float(wholes.sum()) / 1e3
    rate = done / seconds if seconds > 0.0 else math.inf
    return BatchTimes(size, request, first, step, rate, (late[0], late[1], late[2]))


def price(costs: Costs, work: BatchWork) -> tuple[Floats, Floats]:
    """Milliseconds of each batch's prefill [K] and of its decode steps [K, S], 0 without rows."""
    positions = work.positions(padded=costs.padded)
    firsts = costs.prefill_ms(positions, work.squares(padded=costs.padded))
    rows, context = work.steps(compacts=costs.compacts)
    return firsts, np.where(rows > 0, costs.decode_ms(np.maximum(rows, 1), context), 0.0)


class Identity(NamedTuple):
    """What a calibration is valid for; `model` is any text that names model and weights."""

    machine: str = ""
    model: str = ""
    threads: int = 1


@dataclass(frozen=True)
class HeldOut:
    """One prediction made before its measurement: a held-out check."""

    phase: str
    size: float
    predicted_ms: float
    measured_ms: float

    @property
    def relative(self) -> float:
        """log(measured / predicted), which is the relative error where that is small."""
        return math.log(self.measured_ms / self.predicted_ms)


@dataclass(frozen=True)
class CostModel:
    """Calibrated or prior costs of one model on one machine with one thread count.

    prefill       curve over positions (bytes for a tokenizer), for all rows together
    square_ms     per query-key pair of the prompts
    decode        curve over rows at no context
    context_ms    per token of context that a step attends to
    error         relative standard error on sizes not calibrated on
    noise         the same on sizes that were: how well runs repeat; 0 when unknown
    seconds       what the calibration cost
    """

    prefill: Curve
    decode: Curve = field(default_factory=lambda: Curve((1.0,), (0.0,)))
    square_ms: float = 0.0
    context_ms: float = 0.0
    padded: bool = False
    compacts: bool = True
    error: float = PRIOR_ERROR
    noise: float = 0.0
    held_out: tuple[HeldOut, ...] = ()
    source: Literal["measured", "roofline prior"] = "measured"
    machine: str = ""
    model: str = ""
    threads: int = 1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if min(self.square_ms, self.context_ms) < 0.0 or not self.error >= 0.0:
            raise UserError("A cost model has a negative coefficient or error.")

    @classmethod
    def prior(
        cls, shape: ModelShape, hardware: HardwareProfile, *, largest: int = 4096
    ) -> CostModel:
        """The roofline guess for a model on a machine: nothing run, wide intervals.

        A decode step reads the weights once and its context's KV cache, and multiplies
        2 flops per weight and row. Raises UserError when the machine's rates are unknown.
        """
        curve = roofline_curve(
            overhead_ms=hardware.step_overhead_ms,
            fixed_bytes=shape.weight_bytes,
            flops_per_unit=shape.flops_per_token,
            bandwidth_bytes_per_s=hardware.bandwidth_bytes_per_s,
            flops_per_s=hardware.flops_per_s,
            largest=largest,
        )
        kv_ms = 1e3 * shape.kv_bytes_per_token / hardware.bandwidth_bytes_per_s
        attend_ms = 1e3 * shape.attention_flops_per_pair / hardware.flops_per_s
        return cls(
            prefill=curve,
            decode=curve,
            square_ms=attend_ms / 2.0,  # causal: half of the pairs
            context_ms=max(kv_ms, attend_ms),
            source="roofline prior",
            machine=hardware.identity,
            threads=hardware.threads,
        )

    def prefill_ms(self, positions: npt.ArrayLike, squares: npt.ArrayLike) -> Floats:
        """Milliseconds of prefills, from the positions and query-key pairs computed; both [K]."""
        at = np.asarray(positions, dtype=np.float64)
        return np.where(at > 0.0, self.prefill(at) + self.square_ms * np.asarray(squares), 0.0)

    def decode_ms(self, rows: npt.ArrayLike, context: npt.ArrayLike) -> Floats:
        """Milliseconds of decode steps with `rows` and summed `context`, of one shape."""
        return self.decode(rows) + self.context_ms * np.asarray(context, dtype=np.float64)

    @property
    def half_width(self) -> float:
        """Relative half-width of the 95 % interval of a prediction (Student's t).

        With fewer than two held-out sizes, the stated error is taken as known.
        """
        return self._quantile * self.error

    @property
    def one_sided(self) -> float:
        """The reach of the one-sided 95 % limit, as a share of the two-sided interval's."""
        n = max(2, len(self.held_out))
        return float(np.divide(*scipy.special.stdtrit(n, [0.95, 0.975])))

    @property
    def _quantile(self) -> float:
        n = len(self.held_out)
        return float(scipy.special.stdtrit(n, 0.975)) if n >= 2 else 1.96

    def half_width_at(self, size: int, lengths: Lengths) -> float:
        """The half-width for batches of `size`: narrower where it was measured.

        A ragged batch passes through all smaller sizes, so these must be known as well.
        """
        passed = (size,) if lengths.alike else range(1, size + 1)
        if self.noise and lengths.generates and {*map(float, passed)} <= {*self.decode.knots}:
            return self._quantile * min(self.noise, self.error)
        return self.half_width

    def interval(self, value: float, half_width: float | None = None) -> tuple[float, float]:
        """The 95 % interval of a predicted time or throughput."""
        share = self.half_width if half_width is None else half_width
        return value / (1.0 + share), value * (1.0 + share)

    def save(self, path: Path | str) -> Path:
        """Write the model as JSON, whole or not at all."""
        return write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1), path)

    @property
    def identity(self) -> Identity:
        """What the model was measured on."""
        return Identity(self.machine, self.model, self.threads)

    @classmethod
    def load(cls, path: Path | str, identity: Identity | None = None) -> CostModel:
        """Read a saved model, which must be of this identity.

        Raises UserError for a missing or broken file, and for one that belongs to
        another machine, model or thread count.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"No calibration can be read at {path}: {error.strerror}.") from error
        except ValueError as error:
            raise UserError(f"{path} is not a calibration: it is no JSON.") from error
        found = _parse(data, path)
        for name, value in identity._asdict().items() if identity else ():
            if getattr(found, name) != value:
                label = "thread count" if name == "threads" else name
                raise UserError(
                    f"The calibration {path} is from another {label} ({getattr(found, name)!r}, "
                    f"this is {value!r}); calibrate again here."
                )
        return found


def _parse(data: Any, path: Path | str) -> CostModel:
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a calibration of schema {SCHEMA}; calibrate again.")
    fields = {name: value for name, value in data.items() if name != "schema"}
    try:
        fields["prefill"] = Curve.from_json(fields["prefill"])
        fields["decode"] = Curve.from_json(fields["decode"])
        fields["held_out"] = tuple(HeldOut(**row) for row in fields["held_out"])
        return CostModel(**fields)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a whole calibration: {error}.") from error
