"""Stacks with weights: the common form of every call and allocation profile here.

A profile is a set of call stacks, outermost frame first, each with a weight
(seconds for time, bytes for memory). From it come the tree that a flame graph
draws, the table of self and total shares per function, and the shares of the
colour classes. How the stacks were collected is not known here: see `calls`
and `allocations`.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

Kind = Literal["python", "numpy", "native", "waiting"]

KIND_LABELS: dict[Kind, str] = {
    "python": "Python",
    "numpy": "NumPy and BLAS",
    "native": "other compiled code",
    "waiting": "waiting",
}

UNNAMED = "compiled code without a name"

_WAITING = re.compile(
    r"^(time_)?sleep$|nanosleep|^(__)?(poll|ppoll|select|pselect|epoll_wait|kevent|read|recv\w*|"
    r"accept\d?|wait\w*|futex\w*|sched_yield)$|pthread_(cond_\w*wait|join)|lock_wait|sem_\w*wait|"
    r"PyThread_acquire_lock|^acquire$|take_gil|^(fsync|fdatasync)$|__futex_abstimed"
)
_NUMPY_FILE = re.compile(r"numpy|openblas|\bmkl|libblas|blis|accelerate|veclib", re.IGNORECASE)
_NATIVE_FILE = re.compile(r"\.(so|dylib|dll|pyd)([.\d]*)$")
_C_SOURCE = re.compile(r"\.(c|cc|cpp|cxx|h|hpp|rs)$")  # of libraries with debug information
_FOREIGN_CALL = "_call_function_pointer"  # ctypes's, below which a library without names runs
_INTERPRETER = re.compile(r"(libpython|/python|^python)[\d.]*", re.IGNORECASE)
_C_LIBRARY = re.compile(r"(^|/)(libc|libpthread|ld-linux|libm)[-.]|libsystem|ntdll|vdso")


@dataclass(frozen=True, slots=True)
class Frame:
    """One call on a stack: its name, the file (or library) and line, and its colour class."""

    name: str
    file: str
    line: int
    kind: Kind

    def is_called(self, function: str) -> bool:
        """True for a function or method of this name (samplers differ in naming the class)."""
        return self.name.rpartition(".")[2] == function

    @property
    def label(self) -> str:
        """`name (file:line)`, with the file's last two parts only."""
        place = "/".join(self.file.replace("\\", "/").split("/")[-2:])
        return f"{self.name} ({place}:{self.line})" if self.line else f"{self.name} ({place})"


def classify(name: str, file: str, parent: Kind = "python") -> Kind:
    """The colour class of a frame from its function's name and its file or library.

    The C library serves whoever called it, so that `memcpy` below a NumPy frame counts
    as NumPy (`parent`); the interpreter's own C functions count as Python.
    """
    if _WAITING.search(name):
        return "waiting"
    if _NUMPY_FILE.search(file):
        return "numpy"
    if name == _FOREIGN_CALL:
        return "native"
    if file == "<built-in>" or _INTERPRETER.search(file):
        return "python"
    if _C_LIBRARY.search(file):
        return parent
    if _NATIVE_FILE.search(file) or name == UNNAMED:
        return "native"
    return "python"


@dataclass(slots=True)
class Node:
    """One box of a flame graph: a frame, its total weight, and what it called."""

    frame: Frame
    weight: float = 0.0
    children: dict[tuple[str, str], Node] = field(default_factory=dict)


@dataclass(frozen=True)
class StackProfile:
    """Weighted stacks of one run.

    `stacks` holds (frames outermost first, weight); `unit` is `s` or `bytes`;
    `total` is what the weights should add up to (wall seconds, bytes allocated);
    `note` says what the reader must know about how it was taken.
    """

    tool: str
    unit: str
    stacks: tuple[tuple[tuple[Frame, ...], float], ...]
    total: float
    samples: int
    calls: int = 1
    note: str = ""

    @property
    def attributed(self) -> float:
        """Share of `total` that the stacks account for (1.0 is all of it)."""
        return sum(weight for _, weight in self.stacks) / self.total if self.total else 0.0

    def below(self, function: str) -> StackProfile:
        """Only the stacks that pass through `function` (or a method so named), it outermost.

        `total` becomes their own sum: a phase of a longer run, looked at alone.
        """
        cut = []
        for frames, weight in self.stacks:
            at = next((i for i, f in enumerate(frames) if f.is_called(function)), None)
            if at is not None:
                cut.append((frames[at:], weight))
        whole = sum(weight for _, weight in self.stacks) or 1.0
        total = sum(weight for _, weight in cut)
        samples = round(self.samples * total / whole)
        return StackProfile(self.tool, self.unit, tuple(cut), total, samples, self.calls, self.note)

    def depths(self) -> dict[str, int]:
        """How deep on a stack each function (by its name without the class) was seen at most."""
        deepest: dict[str, int] = {}
        for frames, _ in self.stacks:
            for depth, frame in enumerate(frames):
                name = frame.name.rpartition(".")[2]
                deepest[name] = max(depth, deepest.get(name, 0))
        return deepest

    def tree(self, name: str = "all") -> Node:
        """The stacks merged into one tree; the same function called from one place is one box."""
        root = Node(Frame(name, "", 0, "python"))
        for frames, weight in self.stacks:
            root.weight += weight
            node = root
            for frame in frames:
                key = (frame.name, frame.file)
                node = node.children.setdefault(key, Node(frame))
                node.weight += weight
        return root

    def table(self) -> pd.DataFrame:
        """One row a function: self and total weight and share, heaviest self first.

        Self weights add up to `attributed`; a recursive function's total counts once a stack.
        """
        own: dict[tuple[str, str, str], float] = {}
        total: dict[tuple[str, str, str], float] = {}
        for frames, weight in self.stacks:
            keys = [(f.name, f.file, f.kind) for f in frames]
            if keys:
                own[keys[-1]] = own.get(keys[-1], 0.0) + weight
            for key in set(keys):
                total[key] = total.get(key, 0.0) + weight
        scale = self.total or 1.0
        rows = [
            (*key, own.get(key, 0.0), weight, own.get(key, 0.0) / scale, weight / scale)
            for key, weight in total.items()
        ]
        columns = [
            "function", "file", "kind", f"self_{self.unit}", f"total_{self.unit}",
            "self_share", "total_share",
        ]  # fmt: skip
        frame = pd.DataFrame(rows, columns=columns)
        return frame.sort_values("self_share", ascending=False, kind="stable", ignore_index=True)

    def by_kind(self) -> dict[Kind, float]:
        """Share of each colour class, by the innermost frame; they add up to `attributed`."""
        shares = dict.fromkeys(KIND_LABELS, 0.0)
        for frames, weight in self.stacks:
            if frames:
                shares[frames[-1].kind] += weight / (self.total or 1.0)
        return shares

    def by_owner(self) -> pd.DataFrame:
        """Weight by the innermost Python line of one's own: library time goes to who called it.

        Columns function, file, line, kind (of the innermost frame), weight, share.
        """
        rows = []
        for frames, weight in self.stacks:
            python = [
                f for f in frames
                if f.line and not _NATIVE_FILE.search(f.file) and not _C_SOURCE.search(f.file)
            ]  # fmt: skip
            if python:
                owner = ([f for f in python if not is_library(f.file)] or python)[-1]
                rows.append((owner.name, owner.file, owner.line, frames[-1].kind, weight))
        keys = ["function", "file", "line", "kind"]
        frame = pd.DataFrame(rows, columns=[*keys, "weight"])
        frame = frame.groupby(keys, as_index=False, sort=False).sum()
        frame["share"] = frame["weight"] / (self.total or 1.0)
        return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)


_LIBRARIES = ("site-packages", sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))


def is_library(file: str) -> bool:
    """True for a file of an installed package or of the standard library."""
    return any(place in file for place in _LIBRARIES) or file.startswith("<")


def with_kinds(frames: Iterable[tuple[str, str, int]]) -> tuple[Frame, ...]:
    """Frames from (name, file, line), outermost first, each classified below its parent."""
    made: list[Frame] = []
    for name, file, line in frames:
        kind = classify(name, file, made[-1].kind if made else "python")
        made.append(Frame(name, file, line, kind))
    return tuple(made)
