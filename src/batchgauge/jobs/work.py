"""What a job does to a shard: answer its prompts, or turn its documents into token ids.

A `Work` is a small value that travels to a worker, which opens its engine or tokenizer once
and then turns shards into the bytes of output files. The bytes depend on the shard and on
`settings` alone, never on who worked on it, when, or beside what: no times are in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from batchgauge import registry
from batchgauge.core.default_model import default_model_path, open_model
from batchgauge.errors import UserError
from batchgauge.jobs.source import Shard, digest_of


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

    @property
    def most_lines(self) -> int:
        """How many lines or rows a shard has at most."""

    @property
    def whole_files(self) -> bool:
        """Whether a text file is one document."""

    def settings(self) -> dict[str, Any]:
        """Whatever the output depends on; what differs in them is not mixed in one folder."""

    def places(self, threads: int) -> tuple[int, int]:
        """(workers in one process, threads of each) that use `threads` threads best."""

    def open(self, threads: int) -> Callable[[Shard], ShardOutput]:
        """Load what is needed, once. Raises UserError where that cannot be."""


def model_identity(model: str, spec: str) -> str:
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


def check_whole(name: str, value: object, least: int) -> None:
    """Raise UserError unless a value is a whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} is {value!r}; expected a whole number of at least {least}.")
