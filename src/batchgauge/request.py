"""What goes into a batch and what comes out: items, responses, results, statistics.

These types are shared by every tokenizer and engine, ours or foreign. They hold
data and answer questions about it; they never time anything and never import
the core. A response can carry an error, so that one bad item never fails its
neighbours.

    >>> items = [BatchItem("a", 1), BatchItem("b", 2)]
    >>> result = BatchResult.of([BatchResponse(i.id, i.data * 2, 1.0) for i in items],
    ...                         total_duration_ms=2.0)
    >>> result.get_by_id("b").data
    4
    >>> result.stats.items_per_second
    1000.0
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from batchgauge.errors import UserError
from batchgauge.text import has_surrogate

T = TypeVar("T")

# No percentile is printed from fewer samples than it needs: p^n <= 0.0013, so that
# the chance of having seen nothing beyond it is at most one-sided three sigma.
PERCENTILE_FLOOR: Mapping[int, int] = {50: 10, 90: 64, 95: 130, 99: 662}


@dataclass(frozen=True, slots=True)
class BatchItem(Generic[T]):
    """One unit of work: an `id` that is unique within its batch, and its `data`."""

    id: str
    data: T

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise UserError(f"An item's id is {_shown(self.id)}; expected a str.")


@dataclass(frozen=True, slots=True)
class BatchResponse(Generic[T]):
    """The answer to one item; `error` says in one sentence why `data` is None."""

    id: str
    data: T | None
    duration_ms: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What a batch cost. Durations in milliseconds.

    `avg_item_time_ms` and `items_per_second` are shares of the whole batch's wall
    time, which is what batching changes; the percentiles are over the items' own
    durations and are NaN below `PERCENTILE_FLOOR` samples.
    """

    total_items: int
    total_duration_ms: float
    p50_ms: float = math.nan
    p90_ms: float = math.nan
    p95_ms: float = math.nan
    p99_ms: float = math.nan

    @classmethod
    def from_durations(
        cls, durations_ms: Sequence[float] | npt.NDArray[np.float64], total_duration_ms: float
    ) -> BatchStats:
        """Statistics of items that took `durations_ms` [N] each, `total_duration_ms` in all.

        Percentiles interpolate linearly between order statistics (Hyndman & Fan
        1996, type 7, NumPy's default). Raises UserError for a negative or NaN time.
        """
        ordered = np.sort(np.asarray(durations_ms, dtype=np.float64))  # [N], NaN sorts last
        n = ordered.size
        bad_items = n and not (ordered[0] >= 0.0 and ordered[-1] < math.inf)
        if bad_items or not 0.0 <= total_duration_ms < math.inf:
            raise UserError("A duration is negative or not finite; expected milliseconds >= 0.")
        p50, p90, p95, p99 = (
            _interpolate(ordered, q) if n >= floor else math.nan
            for q, floor in PERCENTILE_FLOOR.items()
        )
        return cls(n, float(total_duration_ms), p50, p90, p95, p99)

    @property
    def avg_item_time_ms(self) -> float:
        """Wall time of the batch divided by its items; NaN for an empty batch."""
        return self.total_duration_ms / self.total_items if self.total_items else math.nan

    @property
    def items_per_second(self) -> float:
        """Throughput of the batch in items per second; NaN when it took no time."""
        seconds = self.total_duration_ms / 1e3
        return self.total_items / seconds if seconds > 0.0 else math.nan

    def speedup_vs_single(self, single: BatchStats) -> float:
        """Measured S(b): this batch's throughput over that of `single`, the same items one by one.

        Raises UserError when the two did not process the same number of items: a
        speedup is a ratio on the same work. A point estimate; for an interval, use
        `batchgauge.measuring`.
        """
        if single.total_items != self.total_items:
            raise UserError(
                f"A speedup needs the same items on both sides; got {self.total_items} "
                f"in the batch and {single.total_items} one by one."
            )
        return self.items_per_second / single.items_per_second


def _interpolate(ordered: npt.NDArray[np.float64], percent: int) -> float:
    position = (ordered.size - 1) * percent / 100.0
    below = int(position)
    low = ordered[below]
    high = ordered[min(below + 1, ordered.size - 1)]
    return float(low + (high - low) * (position - below))


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[T]):
    """All responses of a batch, in request order, with O(1) look-up by id.

    `stages_ms` says where the wall time went (stage name to milliseconds) and
    `counters` how much work was done (deterministic: tokens, padded positions,
    decode steps); either is empty when the producer cannot see that far.
    """

    responses: tuple[BatchResponse[T], ...]
    stats: BatchStats
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    _index: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        responses: Iterable[BatchResponse[T]],
        total_duration_ms: float,
        stages_ms: Mapping[str, float] | None = None,
        counters: Mapping[str, int] | None = None,
    ) -> BatchResult[T]:
        """Collect `responses`, index them by id and compute their statistics.

        Raises UserError when two responses carry the same id.
        """
        rows = tuple(responses)
        index = {row.id: position for position, row in enumerate(rows)}
        if len(index) != len(rows):
            raise UserError("Two items of one batch have the same id; expected unique ids.")
        stats = BatchStats.from_durations([row.duration_ms for row in rows], total_duration_ms)
        return cls(rows, stats, stages_ms or {}, counters or {}, index)

    def get_by_id(self, item_id: str) -> BatchResponse[T]:
        """The response to the item with this id, in constant time. Raises KeyError."""
        return self.responses[self._index[item_id]]

    def success_count(self) -> int:
        """How many responses carry no error."""
        return sum(row.error is None for row in self.responses)

    def all_succeeded(self) -> bool:
        """True when no response carries an error (also for an empty batch)."""
        return all(row.error is None for row in self.responses)


@dataclass(frozen=True, slots=True)
class TokenizeBatchRequest:
    """A text to tokenize; `allow_special` reads special tokens in it as tokens, not as text."""

    text: str
    allow_special: bool = False


@dataclass(frozen=True, slots=True)
class TokenizeBatchResponse:
    """The token ids of one text, and how many there are."""

    tokens: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True)
class DetokenizeBatchRequest:
    """Token ids to turn back into text."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DetokenizeBatchResponse:
    """The text of one id sequence (invalid UTF-8 shows as U+FFFD), and its token count."""

    text: str
    count: int


@dataclass(frozen=True, slots=True)
class InferenceBatchRequest:
    """A prompt to continue.

    `prompt` is text, or token ids when the caller has tokenized already. `chat`
    wraps a text prompt in the model's chat template. `temperature` 0.0 is greedy
    (range 0.0 to 2.0); with a `seed`, a request's result does not depend on its
    neighbours in the batch. `stop` are texts that end the generation, or one such
    text; the model's own end tokens always do, unless `ignore_eos` (a benchmark that
    must generate exactly `max_tokens`).

    Numbers and arrays of NumPy are taken for Python's. Raises UserError for a field of
    another type or out of range. Whether the prompt fits a model, the engine says.
    """

    prompt: str | tuple[int, ...]
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    chat: bool = False
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, value in _checked_fields(self).items():
            object.__setattr__(self, name, value)


def checked(request: object) -> InferenceBatchRequest:
    """The request with its fields in their own types. Raises UserError for what is none.

    For those that run requests: an object can be built around its own checks.
    """
    if not isinstance(request, InferenceBatchRequest):
        raise UserError(f"The request is {_shown(request)}; expected an InferenceBatchRequest.")
    try:
        fields = _checked_fields(request)
    except AttributeError as error:
        raise UserError(f"The request is incomplete: {error}.") from None
    if all(getattr(request, name) is value for name, value in fields.items()):
        return request
    return InferenceBatchRequest(**fields)  # type: ignore[arg-type]  # just checked


def check_items(items: object) -> None:
    """Raise UserError unless these are items in a sequence and each has an id of its own."""
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise UserError(f"The batch is {_shown(items)}; expected a sequence of BatchItem.")
    for item in items:
        if not isinstance(item, BatchItem):
            raise UserError(f"An item of the batch is {_shown(item)}; expected a BatchItem.")
        if not isinstance(getattr(item, "id", None), str):
            raise UserError("An item of the batch has no id; expected a str.")
    if len({item.id for item in items}) < len(items):
        raise UserError("Two items of one batch have the same id; expected unique ids.")


def token_ids(ids: object, name: str) -> tuple[int, ...]:
    """Token ids as a tuple of ints; `name` is what a sentence calls them.

    Takes tuples, lists and one-dimensional arrays. Raises UserError for anything else,
    and for an id that is no whole number.
    """
    if isinstance(ids, np.ndarray) and ids.ndim == 1:
        ids = ids.tolist()
    if not isinstance(ids, tuple | list):
        raise UserError(f"{name} is {_shown(ids)}; expected token ids in a tuple.")
    if {type(i) for i in ids} <= {int}:
        return tuple(ids)
    return tuple(_whole(f"A token id of {name.lower()}", i) for i in ids)


def _checked_fields(request: InferenceBatchRequest) -> dict[str, object]:
    """The fields in their own types, or UserError."""
    prompt: object = request.prompt
    if not isinstance(prompt, str | tuple | list | np.ndarray):
        raise UserError(f"The prompt is {_shown(prompt)}; expected a str, or token ids.")
    max_tokens = _whole("max_tokens", request.max_tokens)
    temperature = _number("temperature", request.temperature)
    top_p = _number("top_p", request.top_p)
    seed = _whole("seed", request.seed)
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}; expected at least 1.")
    if not 0.0 <= temperature <= 2.0:
        raise UserError(f"temperature is {temperature}; expected 0.0 to 2.0.")
    if not 0.0 < top_p <= 1.0:
        raise UserError(f"top_p is {top_p}; expected a number above 0 and at most 1.")
    if seed < 0:
        raise UserError(f"seed is {seed}; expected at least 0.")
    return {
        "prompt": prompt if isinstance(prompt, str) else token_ids(prompt, "The prompt"),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": _stop(request.stop),
        "chat": _flag("chat", request.chat),
        "ignore_eos": _flag("ignore_eos", request.ignore_eos),
    }


def _stop(stop: object) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, tuple | list):
        raise UserError(f"stop is {_shown(stop)}; expected a text, or a tuple of texts.")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise UserError(f"A stop text is {_shown(text)}; expected a str that is not empty.")
        if has_surrogate(text):
            raise UserError("A stop text has a lone surrogate; expected text that UTF-8 can hold.")
    return tuple(texts)


def _whole(name: str, value: object) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise UserError(f"{name} is {_shown(value)}; expected a whole number.")


def _number(name: str, value: object) -> float:
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise UserError(f"{name} is {_shown(value)}; expected a number.")


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise UserError(f"{name} is {_shown(value)}; expected True or False.")


def _shown(value: object) -> str:
    """A value in a sentence: short, with its type where that is what is wrong."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  (of an object that cannot even be shown)
        text = "?"
    text = text if len(text) <= 60 else f"{text[:60]}…"
    return "None" if value is None else f"{text} of type {type(value).__name__}"


FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True, slots=True)
class InferenceBatchResponse:
    """What was generated, and when.

    `ttft_ms` is tokenize + prefill + first sample, from the start of the batch.
    `prefill_ms` and `decode_ms` are the wall time of the phases this request took
    part in, `inter_token_ms` [tokens_generated - 1] the time from each token to the
    next. Times an engine cannot see are NaN or empty. `tokens_generated` is None where
    nobody counted them, `prompt_tokens` 0. A server that sends its model's reasoning
    apart has it in `reasoning`: then `ttft_ms` is the first token of either kind and
    `first_answer_ms` the first of `text` (NaN where there is none, or no such server).
    """

    text: str
    tokens_generated: int | None
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    finish_reason: FinishReason = "length"
    ttft_ms: float = math.nan
    prefill_ms: float = math.nan
    decode_ms: float = math.nan
    inter_token_ms: tuple[float, ...] = ()
    reasoning: str = ""
    first_answer_ms: float = math.nan

    @property
    def is_empty(self) -> bool:
        """Whether nothing was generated at all."""
        return not (self.text or self.reasoning or self.tokens_generated)


def generated_tokens(result: BatchResult[InferenceBatchResponse]) -> int | None:
    """The tokens generated in a batch; None where those of any answer are unknown."""
    counts = [r.data.tokens_generated for r in result.responses if r.data is not None]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
