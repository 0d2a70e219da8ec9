"""The input of a job: files cut into shards of whole lines, rows or files, read one at a time.

A shard knows where its part of a file is, so that whoever sees the file can read it; only
rows of Parquet and shards for workers on other machines carry their content. Whatever the
size of the input, memory holds a few shards. One document is one line of a `.txt` or
`.jsonl` file, one row of a `.parquet` file, or one whole `.txt` file. Documents stay bytes,
`END` behind each, for as long as nobody needs a `str`: of a large corpus, nobody does.

Lines end at a line feed; a carriage return before it and a byte order mark do not count.
Left out: compressed files, and text that is not UTF-8 (a line that is not is an error of
that line; a UTF-16 file is refused before anything runs).
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from batchgauge import extras
from batchgauge.errors import UserError

END = b"\xff"  # a byte that UTF-8 does not have
KINDS = {".txt", ".jsonl", ".parquet"}
LONGEST_BYTES = 32 << 20  # a longer line or file is an error: it would have to be held whole
_BLOCK = 1 << 18  # bytes that are read and worked on at once: they stay in a processor's caches
_SAMPLE = 1 << 20  # what tells one content from another: this much of both ends, and the size


@dataclass(frozen=True, slots=True)
class Input:
    """One file of a job: its name in the manifest, where it is, and how large."""

    name: str
    path: Path
    bytes: int

    @property
    def kind(self) -> str:
        """`.txt`, `.jsonl` or `.parquet`."""
        return self.path.suffix.lower()


@dataclass(frozen=True, slots=True)
class Documents:
    """What a shard holds: the bytes of each document, `END` behind it and nowhere else.

    `errors` maps the position of a bad one to its sentence; it is empty there. What is not
    UTF-8 may not have been found yet: `decoded` finds it.
    """

    data: bytes = field(repr=False)
    errors: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of the input: lines [first, first + ...) of one file, rows of one, or several files.

    number       its place in the job, from 0
    source       the name of its file; of several, of the first
    first        number of its first line, row or file, from 1
    path         where its bytes [start, stop) are; without bytes: `texts` or `files`
    files        whole files, a document each
    content      what it holds: of Parquet, and for a worker that does not see the file
    too_long     one line that is not read: it is longer than `LONGEST_BYTES`
    size         bytes of input, for the progress bar
    """

    number: int
    source: str
    first: int
    size: int
    path: Path | None = None
    start: int = 0
    stop: int = 0
    files: tuple[Path, ...] | None = None
    content: Documents | None = None
    too_long: bool = False


def find_inputs(source: Path, out: Path) -> list[Input]:
    """The files of `source`, a file or a folder with its folders, in the order of their names.

    Raises UserError for what cannot be read, is none of the three kinds or has no bytes, and
    for an output folder within the input, where the next run would read it.
    """
    try:
        if source.is_dir():
            if out.resolve().is_relative_to(source.resolve()):
                raise UserError(
                    f"The output folder '{out}' is inside the input '{source}'; expected another."
                )
            paths = sorted(
                Path(folder, name)
                for folder, _, names in os.walk(source)
                for name in names
                if Path(name).suffix.lower() in KINDS
                if not any(p[:1] == "." for p in (*Path(folder).relative_to(source).parts, name))
            )
        elif source.suffix.lower() not in KINDS:
            raise UserError(
                f"The input '{source}' is neither a folder nor a .txt, .jsonl or .parquet file."
            )
        else:
            paths = [source]
        top = source if source.is_dir() else source.parent
        found = [Input(p.relative_to(top).as_posix(), p, _checked(p)) for p in paths]
    except OSError as error:
        raise UserError(
            f"The input '{error.filename or source}' cannot be read: {error.strerror or error}."
        ) from None
    if not any(item.bytes for item in found):
        raise UserError(f"The input '{source}' is empty; expected .txt, .jsonl or .parquet files.")
    if any(item.kind == ".parquet" for item in found):
        extras.require("A .parquet input", "parquet", "pyarrow")
    return found


def _checked(path: Path) -> int:
    """Bytes of a file that can be opened. Raises UserError for UTF-16 and for no regular file."""
    if path.exists() and not path.is_file():
        raise UserError(f"The input '{path}' is no regular file; expected UTF-8 text.")
    with path.open("rb") as file:
        if file.read(2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
            raise UserError(f"The input '{path}' is UTF-16; expected UTF-8 text.")
    return path.stat().st_size


def digest_of(path: Path) -> str:
    """Sixteen hex digits of a file's size and of both its ends."""
    size = path.stat().st_size
    digest = sha256(f"{size}:".encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def cut(
    inputs: Sequence[Input], *, most_bytes: int, most_lines: int, whole_files: bool = False
) -> Iterator[Shard]:
    """The shards of a job, in order; the same for the same input, whoever works on them.

    A shard ends at `most_lines` lines or rows, or before `most_bytes`; it has one at least.
    With `whole_files`, `.txt` files are documents, and small ones share a shard.
    """
    for number, shard in enumerate(_shards(inputs, most_bytes, most_lines, whole_files)):
        yield replace(shard, number=number)


def _shards(
    inputs: Sequence[Input], most_bytes: int, most_lines: int, whole_files: bool
) -> Iterator[Shard]:
    group: list[Input] = []
    for place, item in enumerate(inputs, start=1):
        is_whole = whole_files and item.kind == ".txt"
        if group and not (is_whole and sum(i.bytes for i in [*group, item]) <= most_bytes):
            yield _of_files(group, place - len(group))
            group = []
        if is_whole:
            group.append(item)
        elif item.kind == ".parquet":
            yield from _rows(item, most_bytes, most_lines)
        else:
            yield from _lines(item, most_bytes, most_lines)
    if group:
        yield _of_files(group, len(inputs) + 1 - len(group))


def _of_files(group: Sequence[Input], first: int) -> Shard:
    size = sum(item.bytes for item in group)
    return Shard(0, group[0].name, first, size, files=tuple(item.path for item in group))


def _lines(item: Input, most_bytes: int, most_lines: int) -> Iterator[Shard]:
    with item.path.open("rb") as file:
        for first, start, stop in line_spans(file, most_bytes, most_lines):
            size = stop - start
            too_long = size > max(LONGEST_BYTES, most_bytes)
            yield Shard(0, item.name, first, size, item.path, start, stop, too_long=too_long)


def line_spans(file: BinaryIO, most_bytes: int, most_lines: int) -> Iterator[tuple[int, int, int]]:
    """(number of the first line, first byte, end) of runs of whole lines; holds no line itself."""
    start = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
    file.seek(start)
    position, first = start, 1
    ends = np.zeros(0, dtype=np.int64)  # [lines that are whole and not yet given]
    at_end = False
    while not at_end:
        block = file.read(_BLOCK)
        at_end = not block
        new = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + position + 1
        position += len(block)
        last = [position] if at_end and position > (ends[-1] if ends.size else start) else []
        ends = np.concatenate([ends, new, np.asarray(last, dtype=np.int64)])
        while ends.size:
            within = int(np.searchsorted(ends, start + most_bytes, side="right"))
            count = max(1, min(most_lines, within))
            if count == ends.size < most_lines and not at_end and within == count:
                break  # more lines may fit
            yield first, start, int(ends[count - 1])
            first, start, ends = first + count, int(ends[count - 1]), ends[count:]


def _rows(item: Input, most_bytes: int, most_lines: int) -> Iterator[Shard]:
    """Rows of the text column, a batch at a time. Raises UserError for a file without one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(item.path)  # type: ignore[no-untyped-call, unused-ignore]
        names = [f.name for f in table.schema_arrow if f.type in (pa.string(), pa.large_string())]
        column = next((n for n in ("text", "prompt", "content") if n in names), "")
        if not column:
            raise UserError(
                f"The input '{item.path}' has no column 'text', 'prompt' or 'content' of texts; "
                f"it has {', '.join(table.schema_arrow.names[:8]) or 'none'}."
            )
        rows = max(1, table.metadata.num_rows)
        per_row = max(1, item.bytes // rows)
        size = max(1, min(most_lines, most_bytes // per_row))
        first = 1
        for batch in table.iter_batches(batch_size=size, columns=[column]):
            content = _of_column(batch.column(0))
            yield Shard(0, item.name, first, per_row * batch.num_rows, content=content)
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The input '{item.path}' cannot be read as Parquet: {reason}.") from None


def _of_column(column: Any) -> Documents:
    """The texts of a column of Arrow's, without making a `str` of any."""
    import pyarrow as pa
    import pyarrow.compute as pc

    binary = pc.fill_null(column.cast(pa.large_binary()), b"")
    missing = dict.fromkeys(np.flatnonzero(column.is_null()).tolist(), "no text")
    ends = pa.scalar(END, pa.large_binary())
    ended = pc.binary_join_element_wise(binary, ends, pa.scalar(b"", pa.large_binary()))
    data = ended.buffers()[2].to_pybytes()[: pc.sum(pc.binary_length(ended)).as_py()]
    if data.count(END) == len(column):
        return Documents(data, missing)
    found = _ended(binary.to_pylist())
    return Documents(found.data, found.errors | missing)


def loaded(shard: Shard) -> Shard:
    """The shard with its content, for a worker that does not see the file. Raises UserError."""
    return shard if shard.too_long else replace(shard, content=read(shard), files=None)


def read(shard: Shard) -> Documents:
    """The documents of a shard. Raises UserError where its file cannot be read any more."""
    if shard.too_long:
        return Documents(END, {0: _too_long(shard.size)})
    if shard.content is not None:
        return shard.content
    if shard.files is not None:
        return _files(shard.files)
    return of_lines(b"".join(_blocks(shard)))


def pieces(shard: Shard) -> Iterator[Documents]:
    """The documents of a shard some at a time, as `read` gives them together.

    Lines of a file are read as they are needed. Raises UserError as `read` does.
    """
    if shard.path is not None and shard.content is None and not shard.too_long:
        yield from map(of_lines, _blocks(shard))
        return
    whole = read(shard)
    at, texts, data = 0, 0, whole.data
    while at < len(data):
        end = 1 + max(data.rfind(END, at, at + _BLOCK), data.index(END, at))
        count = data.count(END, at, end)
        errors = {i - texts: e for i, e in whole.errors.items() if texts <= i < texts + count}
        yield Documents(data[at:end], errors)
        at, texts = end, texts + count


def of_lines(data: bytes) -> Documents:
    """The lines of some bytes."""
    if not data.endswith(b"\n"):
        data += b"\n"
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    if END in data:
        return _ended(data.split(b"\n")[:-1])
    return Documents(data.replace(b"\n", END))


def _ended(rows: Iterable[bytes]) -> Documents:
    """Documents of bytes that may hold what ends them here: those are no UTF-8."""
    kept: list[bytes] = []
    errors: dict[int, str] = {}
    for row in rows:
        if END in row:
            errors[len(kept)] = _not_utf8(row)
        kept.append(b"" if END in row else row)
    return Documents(b"".join(row + END for row in kept), errors)


def decoded(documents: Documents) -> tuple[list[str], dict[int, str]]:
    """Texts and errors by position; what is not UTF-8 is an error of that document alone."""
    rows, errors = documents.data.split(END)[:-1], dict(documents.errors)
    try:
        return [row.decode() for row in rows], errors
    except UnicodeDecodeError:
        errors |= {i: why for i, row in enumerate(rows) if (why := _not_utf8(row))}
        return ["" if i in errors else row.decode() for i, row in enumerate(rows)], errors


def _not_utf8(data: bytes) -> str:
    """What is wrong with bytes that are no UTF-8; empty where nothing is."""
    try:
        data.decode()
    except UnicodeDecodeError as problem:
        return f"not UTF-8 ({problem.reason})"
    return ""


def _too_long(size: int) -> str:
    return f"{size:,} bytes long; expected at most {LONGEST_BYTES:,}"


def _blocks(shard: Shard) -> Iterator[bytes]:
    """Whole lines of a shard's part of its file. Raises UserError."""
    assert shard.path is not None
    left, rest = shard.stop - shard.start, b""
    try:
        with shard.path.open("rb", buffering=0) as file:
            file.seek(shard.start)
            while left:
                if not (block := file.read(min(_BLOCK, left))):
                    raise UserError(f"The input '{shard.path}' became shorter while it was read.")
                left -= len(block)
                end = len(block) if not left else block.rfind(b"\n") + 1
                if end:
                    yield rest + block[:end]
                    rest = block[end:]
                else:
                    rest += block
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"The input '{shard.path}' cannot be read: {reason}.") from None


def _files(paths: Sequence[Path]) -> Documents:
    """Whole files; one that is too long is not read. Raises UserError for one that is gone."""
    rows: list[bytes] = []
    errors: dict[int, str] = {}
    for path in paths:
        try:
            size = path.stat().st_size
            if size > LONGEST_BYTES:
                errors[len(rows)] = _too_long(size)
            rows.append(path.read_bytes() if size <= LONGEST_BYTES else b"")
        except OSError as problem:
            raise UserError(
                f"The input '{path}' cannot be read: {problem.strerror or problem}."
            ) from None
    found = _ended(row.removeprefix(codecs.BOM_UTF8) for row in rows)
    return Documents(found.data, found.errors | errors)


def described(inputs: Sequence[Input]) -> list[Mapping[str, str | int]]:
    """What a manifest keeps of the input: names, bytes and digests."""
    return [{"name": i.name, "bytes": i.bytes, "digest": digest_of(i.path)} for i in inputs]
