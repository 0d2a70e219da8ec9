"""Turning documents into token ids: ids and offsets for each shard."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgauge import extras, registry
from batchgauge.errors import UserError
from batchgauge.files import json_line
from batchgauge.jobs.source import Documents, Shard, decoded, pieces
from batchgauge.jobs.work import ShardOutput, check_whole, model_identity
from batchgauge.protocols import TokenBatch, Tokenizer
from batchgauge.text import has_surrogate
from batchgauge.workload import prompt_text


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
        check_whole("most_lines", self.most_lines, 1)
        if self.form not in {"npy", "parquet"}:
            raise UserError(f"The format is '{self.form}'; expected npy or parquet.")
        if self.form == "parquet":
            extras.require("Parquet output", "parquet", "pyarrow")

    def settings(self) -> dict[str, Any]:
        """Tokenizer, vocabulary and form."""
        return {
            "tokenizer": self.tokenizer,
            "model": model_identity(self.model, self.tokenizer),
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
