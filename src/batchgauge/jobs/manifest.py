"""The output folder of a job: which parts are done, and that nothing else is mixed in.

`manifest.json` says what the job is (settings and input) and, at its end, lists every part
with counts and checksums. While the job runs, each finished part is a line of
`progress.jsonl`, written after the part's files have their names: a killed job has lost at
most the parts that were under way. Neither file holds times, so an undisturbed job and one
that was killed and went on leave the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from batchgauge.errors import UserError
from batchgauge.files import atomic_path, check_folders, write_text
from batchgauge.jobs.source import Input, Shard, described
from batchgauge.jobs.work import ShardOutput, Work

MANIFEST = "manifest.json"
PROGRESS = "progress.jsonl"
FORMAT = 2  # 1 cut other parts


class OutputError(UserError):
    """The output cannot be written: no other part could be either."""


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One finished shard: where it came from, what is in it, and its files' checksums."""

    number: int
    source: str
    first: int
    counts: Mapping[str, int]
    files: Mapping[str, str]  # name -> SHA-256

    def as_json(self) -> dict[str, Any]:
        """One line of `progress.jsonl`."""
        return {
            "part": self.number,
            "source": self.source,
            "first": self.first,
            **self.counts,
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ShardRecord:
        """The part of such a line. Raises KeyError, TypeError or ValueError for another."""
        names = {"part", "source", "first", "files"}
        counts = {name: int(value) for name, value in row.items() if name not in names}
        files = {str(name): str(value) for name, value in row["files"].items()}
        return cls(int(row["part"]), str(row["source"]), int(row["first"]), counts, files)


def write_part(shard: Shard, outcome: ShardOutput, folder: Path) -> ShardRecord:
    """Write a shard's files, each whole or not at all. Raises OutputError."""
    files = {}
    try:
        for ending, data in outcome.files.items():
            name = f"part-{shard.number:06d}{ending}"
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(data)
            files[name] = sha256(data).hexdigest()
    except UserError as error:
        raise OutputError(str(error)) from None
    return ShardRecord(shard.number, shard.source, shard.first, outcome.counts, files)


@dataclass(slots=True)
class Manifest:
    """What a folder's job is and how far it has come."""

    folder: Path
    header: Mapping[str, Any]
    parts: dict[int, ShardRecord] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, work: Work, inputs: Sequence[Input]) -> Manifest:
        """Begin a job, or go on with the same one; parts whose files are amiss count as not done.

        Raises UserError for a folder that holds another job or anything else.
        """
        header = {
            "format": FORMAT,
            "job": work.name,
            "settings": work.settings(),
            "input": described(inputs),
        }
        check_folders(folder)
        manifest = cls(folder, json.loads(json.dumps(header)))
        path = folder / MANIFEST
        if path.exists():
            manifest._go_on(_json(path))
        else:
            names = (p.name for p in folder.iterdir() if not p.name.startswith("."))
            if other := next(names, None):
                raise UserError(
                    f"The output folder '{folder}' holds '{other}', which is no job's; "
                    "expected an empty folder, or that of the same job."
                )
            manifest.save(complete=False)
        manifest._sweep()
        return manifest

    def _sweep(self) -> None:
        """Remove what killed processes left of parts."""
        for stale in self.folder.glob(".part-*.partial"):
            stale.unlink(missing_ok=True)

    def _go_on(self, found: Mapping[str, Any]) -> None:
        for name, value in self.header.items():
            if found.get(name) != value:
                raise UserError(
                    f"The output folder '{self.folder}' is of another job: "
                    f"{_difference(name, found.get(name), value)}; expected an empty folder, or "
                    "the same input and settings."
                )
        for row in [*found.get("parts", ()), *self._progress()]:
            try:
                part = ShardRecord.from_json(row)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # it is done again
            if _whole(part, self.folder):
                self.parts[part.number] = part

    def _progress(self) -> list[Any]:
        """The lines that are whole; the last may have been cut."""
        path = self.folder / PROGRESS
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from None
        rows = []
        for line in lines:
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def add(self, part: ShardRecord) -> None:
        """Note that a part is done. Raises OutputError where that cannot be written."""
        self.parts[part.number] = part
        try:
            with (self.folder / PROGRESS).open("ab") as file:
                # A line feed first: what a killed process left of a line stays a line of its own.
                file.write(b"\n" + json.dumps(part.as_json()).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"'{self.folder / PROGRESS}' cannot be written: {error.strerror or error}."
            ) from None

    def save(self, *, complete: bool) -> None:
        """Write the manifest: its parts once all are done."""
        parts = [self.parts[n].as_json() for n in sorted(self.parts)] if complete else []
        content = {**self.header, "complete": complete, "parts": parts}
        write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", self.folder / MANIFEST)
        if complete:
            (self.folder / PROGRESS).unlink(missing_ok=True)
            self._sweep()  # a worker may have been killed meanwhile

    def total(self, name: str) -> int:
        """The sum of a count over the parts that are done."""
        return sum(part.counts.get(name, 0) for part in self.parts.values())


def _whole(part: ShardRecord, folder: Path) -> bool:
    try:
        return all(
            sha256((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in part.files.items()
        )
    except OSError:
        return False


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"'{path}' is no manifest of a job; expected an empty folder.")
    return found


def _difference(name: str, old: object, new: object) -> str:
    """What differs, by its name and both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return f"its {keys[0]} is {old.get(keys[0])!r}, not {new.get(keys[0])!r}"
    if name == "input":
        return "its input has other files or other content"
    return f"its {name} is {old!r}, not {new!r}"
