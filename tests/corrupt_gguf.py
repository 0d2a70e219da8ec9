"""Seeded corruptions of a GGUF file, by its structure: `corrupted(content, seed)`.

An own reader of the format, for files that are in order, finds where everything lies; a
corruption is one or two changes of a kind: bits, bytes, cuts, counts, types, special
values, and keys or tensors that are doubled, dropped, swapped or moved.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
FLOATS = {6: "<f", 12: "<d"}
STRING, ARRAY = 8, 9
SPECIAL = [0, 1, 2, 3, 7, 31, 33, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32]
SPECIAL += [1 << 48, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
SPECIAL_FLOATS = [0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, 1e-30, 1e30, 3e38, np.nan, np.inf, -np.inf]
EXTRA_KEYS = [
    *("llama.rope.scaling.factor", "llama.rope.scaling.type", "llama.rope.scale_linear"),
    *("llama.attention.sliding_window", "llama.logit_scale", "llama.expert_count"),
    *("general.alignment", "split.count", "llama.attention.key_length", "general.note", "x"),
]


@dataclass
class Places:
    """Where things lie: (first byte, behind the last) of pairs and table entries, and fields."""

    pairs: list[tuple[int, int]] = field(default_factory=list)
    entries: list[tuple[int, int]] = field(default_factory=list)
    names: list[tuple[int, int]] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)  # place, width
    types: list[int] = field(default_factory=list)  # 4 bytes each, of values
    layouts: list[int] = field(default_factory=list)  # 4 bytes each, of tensors
    scalars: list[tuple[int, int]] = field(default_factory=list)  # place, value type
    offsets: list[int] = field(default_factory=list)
    head: int = 0


def find_places(content: bytes) -> Places:
    """Walk through the head of a file that is in order."""
    p, at = Places(), 24
    tensors, pairs = struct.unpack_from("<QQ", content, 8)
    p.counts += [(8, 8), (16, 8)]

    def string(at: int) -> int:
        p.counts.append((at, 8))
        return int(at + 8 + struct.unpack_from("<Q", content, at)[0])

    for _ in range(pairs):
        start, at = at, string(at)
        p.names.append((start + 8, at))
        p.types.append(at)
        (kind,) = struct.unpack_from("<I", content, at)
        at += 4
        if kind == STRING:
            at = string(at)
        elif kind == ARRAY:
            p.types.append(at)
            p.counts.append((at + 4, 8))
            of, count = struct.unpack_from("<IQ", content, at)
            at += 12
            if of == STRING:
                for _ in range(count):
                    at = string(at)
            else:
                at += WIDTHS[of] * count
        else:
            p.scalars.append((at, kind))
            at += WIDTHS[kind]
        p.pairs.append((start, at))
    for _ in range(tensors):
        start, at = at, string(at)
        p.names.append((start + 8, at))
        p.counts.append((at, 4))
        (sides,) = struct.unpack_from("<I", content, at)
        p.counts += [(at + 4 + 8 * i, 8) for i in range(sides)]
        at += 4 + 8 * sides
        p.layouts.append(at)
        p.offsets.append(at + 4)
        at += 12
        p.entries.append((start, at))
    p.head = at
    return p


class Corruptor:
    """The changes, each to `content` in place."""

    def __init__(self, content: bytes, rng: np.random.Generator) -> None:
        self.content, self.rng = bytearray(content), rng
        self.places = find_places(content)

    def one_of(self, things: Sequence[Any]) -> Any:
        """One of some, uniformly."""
        return things[int(self.rng.integers(len(things)))]

    def put(self, place: int, value: int, width: int) -> None:
        """A whole number in so many bytes."""
        low = value & ((1 << 8 * width) - 1)
        self.content[place : place + width] = low.to_bytes(width, "little")

    def bits(self) -> None:
        """Flip a bit of the head, up to three times."""
        for place in self.rng.integers(0, self.places.head, self.rng.integers(1, 4)):
            self.content[place] ^= 1 << int(self.rng.integers(8))

    def name(self) -> None:
        """Flip a bit of a key or a tensor's name."""
        start, end = self.one_of(self.places.names)
        self.content[int(self.rng.integers(start, end))] ^= 1 << int(self.rng.integers(8))

    def data_bits(self) -> None:
        """Flip bits of the weights."""
        for place in self.rng.integers(self.places.head, len(self.content), 3):
            self.content[place] ^= 1 << int(self.rng.integers(8))

    def data_value(self) -> None:
        """Write a special float among the weights, in one of two widths."""
        form = self.one_of(["<f", "<e"])
        value = np.float32(self.one_of(SPECIAL_FLOATS))
        with np.errstate(over="ignore"):
            raw = value.tobytes() if form == "<f" else np.float16(value).tobytes()
        place = int(self.rng.integers(self.places.head, len(self.content) - 4)) // 4 * 4
        self.content[place : place + len(raw)] = raw

    def span(self) -> None:
        """Overwrite some bytes anywhere: by chance, zeros or ones."""
        length = int(self.one_of([1, 4, 8, 100, 5000]))
        place = int(self.rng.integers(0, self.places.head))
        fill = self.one_of([self.rng.bytes(length), bytes(length), b"\xff" * length])
        self.content[place : place + length] = fill[: len(self.content) - place]

    def cut(self) -> None:
        """End the file anywhere."""
        whole = self.one_of([self.places.head, len(self.content)])
        del self.content[int(self.rng.integers(0, whole)) :]

    def count(self) -> None:
        """Another length, count or side: a special one, or near the right one."""
        place, width = self.one_of(self.places.counts)
        right = int.from_bytes(self.content[place : place + width], "little")
        self.put(place, self.one_of([*SPECIAL, right + 1, right - 1, 2 * right]), width)

    def kind(self) -> None:
        """Another type of a value, or of what is in an array."""
        self.put(self.one_of(self.places.types), self.one_of([*range(15), 255, 1 << 31]), 4)

    def layout(self) -> None:
        """Another type of a tensor."""
        self.put(self.one_of(self.places.layouts), self.one_of([*range(45), 255, 1 << 31]), 4)

    def scalar(self) -> None:
        """A special value of the right type."""
        place, kind = self.one_of(self.places.scalars)
        if kind in FLOATS:
            with np.errstate(over="ignore"):
                value = np.float32(self.one_of(SPECIAL_FLOATS))
            struct.pack_into(FLOATS[kind], self.content, place, value)
        else:
            self.put(place, self.one_of(SPECIAL), WIDTHS[kind])

    def offset(self) -> None:
        """A tensor elsewhere."""
        place = self.one_of(self.places.offsets)
        right = int.from_bytes(self.content[place : place + 8], "little")
        other = self.one_of(self.places.offsets)
        there = int.from_bytes(self.content[other : other + 8], "little")
        near = [right + 1, right + 32, right - 32, there]
        self.put(place, self.one_of([*SPECIAL, *near]), 8)

    def structure(self) -> None:
        """Double, drop or swap pairs of metadata or entries of the table; counts may follow."""
        spans, count_at = self.one_of([(self.places.pairs, 16), (self.places.entries, 8)])
        parts = [bytes(self.content[a:b]) for a, b in spans]
        place = int(self.rng.integers(len(parts)))
        what = self.one_of(["double", "drop", "swap", "move"])
        if what == "double":
            parts.insert(int(self.rng.integers(len(parts))), parts[place])
        elif what == "drop":
            parts.pop(place)
        elif what == "swap":
            other = int(self.rng.integers(len(parts)))
            parts[place], parts[other] = parts[other], parts[place]
        else:
            parts.append(parts.pop(place))
        self._replace(spans, parts, count_at)

    def extra(self) -> None:
        """One more key, of any type and value."""
        key = self.one_of(EXTRA_KEYS).encode()
        kind = self.one_of([0, 4, 6, 7, STRING, ARRAY])
        value = {
            STRING: struct.pack("<Q6s", 6, b"linear"),
            ARRAY: struct.pack("<IQII", 4, 2, *self.rng.integers(0, 5, 2).tolist()),
            6: struct.pack("<f", self.one_of(SPECIAL_FLOATS[:9])),
            7: b"\x01",
        }.get(kind, struct.pack("<I", int(self.rng.integers(0, 300)))[: WIDTHS.get(kind, 4)])
        pair = struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
        parts = [bytes(self.content[a:b]) for a, b in self.places.pairs]
        self._replace(self.places.pairs, [*parts, pair], 16)

    def shift(self) -> None:
        """Some bytes more or fewer anywhere."""
        place = int(self.rng.integers(0, len(self.content)))
        if self.rng.random() < 0.5:
            self.content[place:place] = bytes(int(self.rng.integers(1, 100)))
        else:
            del self.content[place : place + int(self.rng.integers(1, 100))]

    def nested(self) -> None:
        """Arrays in arrays, a thousand deep, as the last pair's value."""
        start = self.places.pairs[-1][0]
        deep = struct.pack("<Q1sI", 1, b"n", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 1000
        parts = [bytes(self.content[start : self.places.pairs[-1][1]]), deep]
        self._replace(self.places.pairs[-1:], parts, 16)

    def _replace(self, spans: list[tuple[int, int]], parts: list[bytes], count_at: int) -> None:
        """Other parts in the place of those at `spans`; the data keeps its alignment mostly."""
        if self.rng.random() < 0.9:
            right = int.from_bytes(self.content[count_at : count_at + 8], "little")
            self.put(count_at, right + len(parts) - len(spans), 8)
        head, data = self.places.head, -(-self.places.head // 32) * 32
        rest = bytes(self.content[spans[-1][1] : head])
        start = bytes(self.content[: spans[0][0]]) + b"".join(parts) + rest
        padding = bytes(-len(start) % 32)
        self.content[:] = start + padding + self.content[data:]


CHANGES: list[Callable[[Corruptor], None]] = [
    *(Corruptor.bits, Corruptor.name, Corruptor.data_bits, Corruptor.data_value, Corruptor.span),
    *(Corruptor.cut, Corruptor.count, Corruptor.kind, Corruptor.scalar, Corruptor.offset),
    *(Corruptor.structure, Corruptor.extra, Corruptor.shift, Corruptor.nested),
    *(Corruptor.count, Corruptor.layout, Corruptor.scalar, Corruptor.structure, Corruptor.name),
]


def corrupted(content: bytes, seed: int) -> tuple[str, bytes]:
    """What was done, and the file after it: one change."""
    rng = np.random.default_rng(seed)
    change = CHANGES[seed % len(CHANGES)]
    work = Corruptor(content, rng)
    change(work)
    return change.__name__, bytes(work.content)
