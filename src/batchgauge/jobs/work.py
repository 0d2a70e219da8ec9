"""What a job does to a shard: answer its prompts, or turn its documents into token ids.

A `Work` is a small value that travels to a worker, which opens its engine or tokenizer once
and then turns shards into the bytes of output files. The bytes depend on the shard and on
`settings` alone, never on who worked on it, when, or beside what: no times are in them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchgauge import extras, registry
from batchgauge.core.default_model import default_model_path, open_model
from batchgauge.errors import UserError
from batchgauge.files import json_line
from batchgauge.jobs.source import Documents, Shard, decoded, digest_of, pieces, read
from batchgauge.protocols import Engine, TokenBatch, Tokenizer
from batchgauge.redaction import redacted
from batchgauge.request import BatchItem, BatchResponse, InferenceBatchRequest
from batchgauge.sizing.automatic import (
    LARGEST,
    is_calibrated,
    measured_size,
    shows_its_model,
    suggest_for_engine,
)
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.suggestion import SizingConfig
from batchgauge.workload import Prompt, has_surrogate, prompt_from_json, prompt_text, to_items

_FIRST = 8
_CALIBRATION_S = 15.0  # what one takes, about: no job is held up by more than it lasts
_CHARACTERS_PER_TOKEN = 4  # of English text, to sort prompts by; no result depends on it


@dataclass(frozen=True, slots=True)
class ShardOutput:
    """What became of a shard.

    files   the bytes of each output file, by the ending of its name
    counts  documents, errors and what else is worth adding up
    """

    files: Mapping[str, bytes] = field(repr=False)
    counts: Mapping[str, int]


class Work(Protocol):
    """One kind of job with its settings; can be pickled."""

    @property
    def name(self) -> str:
        """`run` or `tokenize`."""
        ...

    @property
    def most_lines(self) -> int:
        """How many lines or rows a shard has at most."""
        ...

    @property
    def whole_files(self) -> bool:
        """Whether a text file is one document."""
        ...

    def settings(self) -> dict[str, Any]:
        """Whatever the output depends on; what differs in them is not mixed in one folder."""
        ...

    def places(self, threads: int) -> tuple[int, int]:
        """(workers in one process, threads of each) that use `threads` threads best."""
        ...

    def open(self, threads: int) -> Callable[[Shard], ShardOutput]:
        """Load what is needed, once. Raises UserError where that cannot be."""
        ...


@dataclass(frozen=True, slots=True)
class PromptWork:
    """Answer prompts: one line of JSON for each line of the input, in its order.

    engine, model  as in `batchgauge.registry`
    batch_size     prompts at once; 0: what the sizing advisor says on the worker's machine for
                   prompts of a shard's lengths, from a calibration that is kept for the machine.
                   Where there is none, prompts are answered `_FIRST` at once until that took as
                   long as a calibration does: only then is one made
    max_tokens     for prompts that name none; 0: 64

    A prompt that the engine refuses is answered by its error. Where all prompts of a part fail
    for one and the same reason, the engine is what failed, and the part is not done.
    """

    engine: str = "numpy"
    model: str = ""
    batch_size: int = 0
    max_tokens: int = 0
    temperature: float = 0.0
    seed: int = 0
    chat: bool = True
    most_lines: int = 512
    name: str = "run"
    whole_files: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 0), ("max_tokens", 0), ("most_lines", 1), ("seed", 0)):
            _check_whole(name, getattr(self, name), least)
        InferenceBatchRequest("", temperature=self.temperature)

    def settings(self) -> dict[str, Any]:
        """Everything but the batch size, which decides how fast, not what."""
        return {
            "engine": redacted(self.engine),
            "model": _model_identity(self.model, self.engine),
            "max_tokens": self.max_tokens or 64,
            "temperature": self.temperature,
            "seed": self.seed,
            "chat": self.chat,
            "lines_per_part": self.most_lines,
        }

    def places(self, threads: int) -> tuple[int, int]:
        """One engine with all threads."""
        return 1, threads

    def open(self, threads: int) -> Callable[[Shard], ShardOutput]:
        """The engine, loaded."""
        return PromptWorker(self, registry.open_engine(self.engine, self.model or None, threads))


class PromptWorker:
    """An engine that answers shards.

    Where `auto` has no calibration, it waits for `patience_s` seconds of work before it makes one.
    """

    def __init__(
        self, work: PromptWork, engine: Engine, *, patience_s: float = _CALIBRATION_S
    ) -> None:
        self.work = work
        self.engine = engine
        self.size = min(work.batch_size, engine.max_batch_size())  # 0: not known yet
        self._most = engine.max_batch_size()
        self._patience_s = patience_s
        self._calibrated: bool | None = None  # not looked at yet

    def __call__(self, shard: Shard) -> ShardOutput:
        """Its answers, in the order of its lines."""
        texts, errors = decoded(read(shard))
        rows: dict[int, dict[str, Any]] = {}  # by line, in order; a blank line has none
        prompts: list[tuple[int, Prompt]] = []
        for position, text in enumerate(texts):
            line, error = shard.first + position, errors.get(position)
            if error is None and not text.strip():
                continue
            rows[line] = {"line": line}
            if error is None:
                try:
                    prompts.append((line, self._prompt(shard, text, line)))
                except UserError as problem:
                    error = str(problem)
            if error is not None:
                rows[line]["error"] = error
        for line, answer in self._answers(prompts):
            rows[line] |= answer
        done = list(rows.values())
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in done)
        return ShardOutput(
            {".jsonl": text.encode("utf-8", "backslashreplace")},
            {
                "documents": len(done),
                "errors": sum("error" in row for row in done),
                "tokens": sum(row.get("tokens") or 0 for row in done),
            },
        )

    def _prompt(self, shard: Shard, text: str, line: int) -> Prompt:
        default = self.work.max_tokens or 64
        if not shard.source.lower().endswith(".jsonl"):
            return Prompt(f"line-{line}", "text", text, default)
        return prompt_from_json(text, f"line {line}", line, default)

    def _answers(self, prompts: list[tuple[int, Prompt]]) -> list[tuple[int, dict[str, Any]]]:
        """(line, answer) of every prompt, in batches of like lengths."""
        if not prompts:
            return []
        order = sorted(prompts, key=lambda p: (p[1].max_tokens, len(p[1].prompt), p[0]))
        found: list[tuple[int, dict[str, Any]]] = []
        at_once = iter(order)
        while group := list(islice(at_once, self._size([prompt for _, prompt in prompts]))):
            items = [BatchItem(str(at), self._request(prompt)) for at, prompt in group]
            begin = perf_counter()
            result = self.engine.infer_batch(items)
            self._patience_s -= perf_counter() - begin
            found += [
                (at, {"id": prompt.id, **_row(answer)})
                for (at, prompt), answer in zip(group, result.responses, strict=True)
            ]
        reasons = {row.get("error") for _, row in found}
        if len(found) > 1 and len(reasons) == 1 and (reason := reasons.pop()) is not None:
            raise UserError(f"Every prompt failed alike: {reason}")  # a server that is gone, say
        return found

    def _size(self, prompts: Sequence[Prompt]) -> int:
        """Prompts of the next batch: as asked for, or the advisor's size, or the first one."""
        if not self.size:
            largest = min(LARGEST, self._most)
            if self._calibrated is None:
                self._calibrated = is_calibrated(self.engine, largest)
            if not self._calibrated and self._patience_s > 0:
                return min(_FIRST, self._most)
            self.size = _advised(self.engine, prompts, largest)
        return self.size

    def _request(self, prompt: Prompt) -> InferenceBatchRequest:
        return InferenceBatchRequest(
            prompt.prompt,
            max_tokens=prompt.max_tokens,
            temperature=self.work.temperature,
            seed=self.work.seed,
            chat=self.work.chat,
        )


def _row(answer: BatchResponse[Any]) -> dict[str, Any]:
    """One answer as it is written: its text and counts, or its error."""
    if answer.data is None:
        return {"error": answer.error or "no answer"}
    row = {
        "text": answer.data.text,
        "tokens": answer.data.tokens_generated,
        "prompt_tokens": answer.data.prompt_tokens,
        "finish_reason": answer.data.finish_reason,
    }
    return {**row, "reasoning": answer.data.reasoning} if answer.data.reasoning else row


def _advised(engine: Engine, prompts: Sequence[Prompt], largest: int) -> int:
    """The advisor's size for these prompts on this machine.

    By the cost model where an engine shows its model, else by running some of the prompts.
    """
    if not shows_its_model(engine):
        return measured_size(engine, to_items(prompts), largest)
    lengths = Lengths(
        tuple(max(1, len(p.prompt) // _CHARACTERS_PER_TOKEN) for p in prompts),
        tuple(p.max_tokens for p in prompts),
    )
    return suggest_for_engine(engine, SizingConfig(max_batch_size=largest), workload=lengths).size


@dataclass(frozen=True, slots=True)
class TokenizeWork:
    """Turn documents into token ids: ids and offsets for each shard.

    tokenizer, model  as in `batchgauge.registry`
    form              `npy`: `.ids.npy` [tokens] and `.offsets.npy` int64 [documents + 1], where
                      document i is ids[offsets[i]:offsets[i + 1]]; `parquet`: a row a document
    key               the key of a `.jsonl` line that holds the text; empty: `text`, `prompt`,
                      `input` or the messages

    A document that is bad or empty has no ids; what is wrong stands in `.errors.jsonl`. Special
    tokens in a text are read as text, and no begin-of-text token is added.
    """

    tokenizer: str = "numpy"
    model: str = ""
    form: str = "npy"
    key: str = ""
    whole_files: bool = False
    most_lines: int = 1 << 20
    name: str = "tokenize"

    def __post_init__(self) -> None:
        _check_whole("most_lines", self.most_lines, 1)
        if self.form not in {"npy", "parquet"}:
            raise UserError(f"The format is '{self.form}'; expected npy or parquet.")
        if self.form == "parquet":
            extras.require("Parquet output", "parquet", "pyarrow")

    def settings(self) -> dict[str, Any]:
        """Tokenizer, vocabulary and form."""
        return {
            "tokenizer": self.tokenizer,
            "model": _model_identity(self.model, self.tokenizer),
            "format": self.form,
            "key": self.key,
            "documents": "files" if self.whole_files else "lines",
        }

    def places(self, threads: int) -> tuple[int, int]:
        """A tokenizer of one thread for every thread: reading and writing are shared out too."""
        return threads, 1

    def open(self, threads: int) -> Callable[[Shard], ShardOutput]:
        """The tokenizer, loaded."""
        return _TokenizeWorker(self, registry.open_tokenizer(self.tokenizer, self.model or None))


class _TokenizeWorker:
    """A tokenizer that works on shards."""

    def __init__(self, work: TokenizeWork, tokenizer: Tokenizer) -> None:
        self.work = work
        self.tokenizer = tokenizer
        self.encode_ended = getattr(tokenizer, "encode_ended", None)  # that of `BPETokenizer`
        small = tokenizer.vocab_size <= 1 << 16
        self.type: type[np.uint16 | np.int32] = np.uint16 if small else np.int32

    def __call__(self, shard: Shard) -> ShardOutput:
        lines = shard.path is not None and shard.source.lower().endswith(".jsonl")
        ids: list[npt.NDArray[Any]] = []
        ends, texts, tokens = [np.zeros(1, np.int64)], 0, 0
        bad: dict[int, str] = {}
        for piece in pieces(shard):
            batch, errors = self._encode(piece, shard.first + texts if lines else None)
            bad |= {texts + at: errors[at] for at in sorted(errors)}
            ids.append(batch.ids.astype(self.type))
            ends.append(batch.offsets[1:] + tokens)
            texts += len(batch)
            tokens += batch.ids.size
        offsets = np.concatenate(ends)
        if self.work.form == "npy":
            files = {".ids.npy": _npy(ids, tokens), ".offsets.npy": _npy([offsets], offsets.size)}
        else:
            files = {".parquet": _parquet(shard, np.concatenate(ids), offsets, bad)}
        if bad:
            rows = [
                {"source": shard.source, "line": shard.first + at, "error": error}
                for at, error in bad.items()
            ]
            files[".errors.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return ShardOutput(files, {"documents": texts, "errors": len(bad), "tokens": tokens})

    def _encode(self, piece: Documents, line: int | None) -> tuple[TokenBatch, dict[int, str]]:
        """Ids and errors by position; of lines of JSON from number `line` on, or of text."""
        if line is None and self.encode_ended is not None:
            with suppress(UnicodeError):
                return self.encode_ended(piece.data), piece.errors
        texts, errors = decoded(piece)
        if line is not None:
            for at, text in enumerate(texts):
                texts[at] = ""  # what is blank or bad
                if text.strip():
                    try:
                        texts[at] = self._text(text, f"line {line + at}")
                    except UserError as problem:
                        errors[at] = str(problem)
        return self.tokenizer.encode_many(texts), errors

    def _text(self, line: str, where: str) -> str:
        row = json_line(line, where)
        if self.work.key:
            text = row.get(self.work.key)
            if not isinstance(text, str):
                raise UserError(f"{where} has no text in '{self.work.key}'.")
        else:
            body = row.get("body", row)
            text = prompt_text(body if isinstance(body, dict) else row, where)
        if has_surrogate(text):
            raise UserError(f"{where} has a lone surrogate; expected text that UTF-8 can hold.")
        return text


def _npy(parts: Sequence[npt.NDArray[Any]], size: int) -> bytes:
    """An .npy file of one array that is the parts together."""
    header = io.BytesIO()
    kind = np.lib.format.dtype_to_descr(parts[0].dtype)
    about = {"descr": kind, "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(header, about)
    return b"".join([header.getvalue(), *(part.data for part in parts)])


def _parquet(
    shard: Shard, ids: npt.NDArray[Any], offsets: npt.NDArray[np.int64], errors: dict[int, str]
) -> bytes:
    """A table with `line`, `ids` (a list) and `error` (null where there is none)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = offsets.size - 1
    table = pa.table(
        {
            "line": pa.array(np.arange(shard.first, shard.first + documents)),
            "ids": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids)),
            "error": pa.array([errors.get(i) for i in range(documents)], pa.string()),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return, unused-ignore]


def _model_identity(model: str, spec: str) -> str:
    """The model by name and content; empty where the spec brings its own and none is named."""
    name, _, argument = spec.partition(":")
    known = name in {*registry.known_engines(), *registry.known_tokenizers()}
    own = name in {"openai", "sentencepiece"} or (name in {"hf", "tiktoken"} and argument)
    if not model and (own or not known):
        return ""
    place = Path(model) if model else default_model_path()
    try:
        written = place.stat() if place.is_file() else None
    except OSError:
        written = None
    if written is None:
        return _identity(model)
    return _identity_of_file(str(place), written.st_mtime_ns, written.st_size)


@lru_cache(maxsize=8)
def _identity_of_file(model: str, _written_ns: int, _size: int) -> str:
    """The same of a file, whose head takes longer to read than a small job may cost."""
    return _identity(model)


def _identity(model: str) -> str:
    file = open_model(model or None)
    try:
        return " ".join([file.path.name, *(digest_of(path) for path in file.files)])
    except OSError as error:
        raise UserError(
            f"The model '{file.path}' cannot be read: {error.strerror or error}."
        ) from None


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} is {value!r}; expected a whole number of at least {least}.")
