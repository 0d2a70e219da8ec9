"""The KV cache: keys and values of every position seen, in rooms that rows take and give back.

A row is a request's place in the cache and has a number as long as it stays. Rows come and
go; what stays is never copied. A newcomer takes a room that somebody left, if one is about
as long as it needs, else a new one; rooms that nobody uses are kept for the next, as long as
all together are no more than were ever in use at once. What a row's head holds lies
together, position after position, so that a decode step reads it and nothing else.

Rooms are made alone or in groups of neighbours: attention by NumPy takes the rows of a group
together, as long as the longest.

Left out: pages, sharing of common prefixes, forgetting what no window shows any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, prod

import numpy as np
import numpy.typing as npt

from batchgauge.core.ops import Floats, Ints, aligned

Numbers = npt.NDArray[np.int64]
Room = tuple["Group", int]  # a group, and a place in it

SLACK = 3  # positions behind a buffer that may be read
GROUP = 8  # rows whose attention NumPy computes together in a decode step
ROOMY = 2  # a room that is left may be so many times as long as a newcomer needs


class Group:
    """Rooms for R rows of `capacity` positions each, side by side.

    keys, values  float32 [layers, R, J, C, E]; J is that of the layer with most heads
    written       int [R], positions that whoever left a room had written
    users         how many rooms are in use

    Zeros where nothing was written yet, since what is masked must still be finite, and room
    for `SLACK` more behind the last position, since compiled attention reads some at a time.
    """

    def __init__(self, layers: int, kv_heads: int, width: int, rows: int, capacity: int) -> None:
        self.keys: Floats = _zeros((layers, rows, kv_heads, capacity, width))
        self.values: Floats = _zeros((layers, rows, kv_heads, capacity, width))
        self.capacity, self.users = capacity, rows
        self.written = np.zeros(rows, np.intp)

    def __len__(self) -> int:
        return len(self.written)

    @property
    def positions(self) -> int:
        """Positions of all rooms together."""
        return len(self) * self.capacity

    def place(self, room: int) -> tuple[int, ...]:
        """Where a room lies: see `KVCache.places`."""
        k, v = self.keys, self.values
        at = k.strides[1] * room
        return k.ctypes.data + at, v.ctypes.data + at, k.strides[0], k.strides[2], 0

    def store(self, layer: int, room: int, start: int, keys: Floats, values: Floats) -> None:
        """Put T positions of a layer from `start` on; keys and values [T, J, E]."""
        stop, J = start + len(keys), keys.shape[1]
        self.keys[layer, room, :J, start:stop] = keys.transpose(1, 0, 2)
        self.values[layer, room, :J, start:stop] = values.transpose(1, 0, 2)

    def clean(self, room: int) -> None:
        """Write zeros over what a room was left with: zero times NaN is NaN, masked or not."""
        stop = self.written[room]
        self.keys[:, room, :, :stop] = 0.0
        self.values[:, room, :, :stop] = 0.0
        self.written[room] = 0


def _zeros(shape: tuple[int, ...]) -> Floats:
    size = prod(shape)
    return aligned(size + SLACK * shape[-1], zeros=True)[:size].reshape(shape)


class KVCache:
    """Keys and values of the rows of a batch, which may come and go.

    `capacities` are those of the first rows, numbered from 0; new rooms are made `group` at a
    time. With a `limit`, rooms have no more positions together, as long as those of newcomers
    and those in use (`used`) do not.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        capacities: Sequence[int] = (),
        *,
        group: int = GROUP,
        limit: float = inf,
    ) -> None:
        self._shape = shape  # layers, key/value heads, width of a head
        self._group, self._limit = group, limit
        self._groups: list[Group] = []
        self._left: list[Room] = []
        self._rooms: dict[int, Room] = {}
        self._numbers: list[int] = []  # of rows that are free again
        self._places = np.zeros((0, 5), np.int64)
        self._most_used = 0
        self.used = 0
        self.take(capacities)

    def __len__(self) -> int:
        return len(self._rooms)

    @property
    def rows(self) -> Ints:
        """Numbers of the rows, in order: [B]."""
        return np.array(sorted(self._rooms), np.intp)

    @property
    def lengths(self) -> Numbers:
        """Positions that each row holds, by its number; may be written."""
        return self._places[:, 4]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(group.keys.nbytes + group.values.nbytes for group in self._groups)

    @property
    def positions(self) -> int:
        """Positions allocated, in use or not."""
        return sum(group.positions for group in self._groups)

    def places(self, rows: Sequence[int] | Ints) -> Numbers:
        """Where the positions of rows lie: int64 [B, 5].

        The addresses of a row's keys and its values in the first layer, the bytes from one
        layer to the next and from one head to the next, and how many positions it holds.
        """
        return self._places[np.asarray(rows, np.intp)]

    def find(self, row: int) -> Room:
        """The group of a row, and its place in there. Raises KeyError for a row that is none."""
        return self._rooms[row]

    def runs(self, rows: Sequence[int] | Ints) -> Iterator[tuple[slice, Group, int]]:
        """Neighbours among rows: where they are in `rows`, their group, and the first's place."""
        rooms = [self._rooms[int(row)] for row in rows]
        first = 0
        for at in range(1, len(rooms) + 1):
            group, place = rooms[first]
            if at == len(rooms) or rooms[at] != (group, place + at - first):
                yield slice(first, at), group, place
                first = at

    def take(self, capacities: Sequence[int]) -> list[int]:
        """Rows with room for so many positions; rows without a room left lie side by side."""
        found: list[Room | None] = []
        coming = sum(capacities)
        for capacity in capacities:
            coming -= capacity
            found.append(self._left_room(capacity, coming))
            self.used += capacity if found[-1] is None else found[-1][0].capacity
        missing = [at for at, room in enumerate(found) if room is None]
        self._most_used = max(self._most_used, self.used)
        self._give_up(sum(capacities[at] for at in missing))
        for first in range(0, len(missing), self._group):
            some = missing[first : first + self._group]
            longest = max(capacities[at] for at in some)
            self.used += sum(longest - capacities[at] for at in some)
            group = Group(*self._shape, len(some), longest)
            self._groups.append(group)
            for place, at in enumerate(some):
                found[at] = (group, place)
        return [self._seat(room) for room in found if room is not None]

    def give(self, row: int) -> None:
        """Take leave of a row: its room is for others now."""
        group, place = self._rooms.pop(row)
        group.written[place] = self.lengths[row]
        self.lengths[row] = 0
        group.users -= 1
        self.used -= group.capacity
        self._left.append((group, place))
        self._numbers.append(row)

    def _seat(self, room: Room) -> int:
        if not self._numbers:
            known = len(self._places)
            more = np.zeros((max(8, known), 5), np.int64)
            self._places = np.concatenate((self._places, more))
            self._numbers = list(range(len(self._places) - 1, known - 1, -1))
        row = self._numbers.pop()
        group, place = self._rooms[row] = room
        self._places[row] = group.place(place)
        return row

    def _left_room(self, capacity: int, coming: int) -> Room | None:
        """The shortest room that was left and is long enough, cleaned; None if there is none."""
        most = min(ROOMY * capacity, self._limit - self.used - coming)
        fitting = [room for room in self._left if capacity <= room[0].capacity <= most]
        if not fitting:
            return None
        room = min(fitting, key=lambda one: one[0].capacity)
        self._left.remove(room)
        room[0].clean(room[1])
        room[0].users += 1
        return room

    def _give_up(self, positions: int) -> None:
        """Free groups that nobody uses, lest there be more than was ever in use."""
        excess = self.positions + positions - self._most_used
        for group in sorted(self._groups, key=lambda one: -one.capacity):
            if excess <= 0:
                return
            if not group.users:
                excess -= group.positions
                self._groups.remove(group)
                self._left = [room for room in self._left if room[0] is not group]
