"""The KV cache: keys and values of every position seen, in rooms that rows take and give back.

A row is a request's place in the cache and has a number as long as it stays. Rows come and
go; what stays is never copied. A newcomer takes a room that somebody left, if one is about
as long as it needs, else a new one; rooms that nobody uses are kept for the next, as long as
all together are no more than were ever in use at once. What a row's head holds lies
together, position after position, so that a decode step reads it and nothing else.

Attention by NumPy takes the rows of a group of neighbours together, as long as the longest.

Left out: pages, sharing of common prefixes, forgetting what no window shows any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

import numpy as np
import numpy.typing as npt

from batchgauge.core.ops import Floats, Ints, aligned

Numbers = npt.NDArray[np.int64]
Room = tuple["Group", int]  # a group, and a place in it

SLACK = 3  # positions behind a buffer that may be read
GROUP = 8  # rows whose attention NumPy computes together in a decode step
ROOMY = 2  # a room that is left may be so many times as long as a newcomer needs


class Group:
    """Rooms for so many positions each, side by side in one piece of memory.

    rooms    float32 [2, layers, J, C, E] each, keys and values; J is that of the layer with
             most heads
    written  int [R], positions that whoever left a room had written
    users    how many rooms are in use

    Zeros where nothing was written yet, since what is masked must still be finite, and room
    for `SLACK` more behind each, since compiled attention reads some positions at a time.
    """

    def __init__(self, layers: int, kv_heads: int, width: int, capacities: Sequence[int]) -> None:
        self.capacities, self.users = capacities, len(capacities)
        self.written = np.zeros(len(capacities), np.intp)
        each = 2 * layers * kv_heads * width
        ends = np.cumsum([each * capacity + SLACK * width for capacity in capacities])
        self._memory = aligned(int(ends[-1]), zeros=True)
        self.rooms: list[Floats] = []
        for capacity, end in zip(capacities, ends.tolist(), strict=True):
            room = self._memory[end - SLACK * width - each * capacity : end - SLACK * width]
            self.rooms.append(room.reshape(2, layers, kv_heads, capacity, width))

    @property
    def nbytes(self) -> int:
        """Bytes of all rooms."""
        return sum(room.nbytes for room in self.rooms)

    @property
    def together(self) -> tuple[Floats, Floats]:
        """Keys and values [layers, R, J, C, E] of rooms that are all as long."""
        first = self.rooms[0]
        whole = self._memory.reshape(len(self.rooms), -1)[:, : first.size]
        keys_values = whole.reshape(-1, *first.shape).swapaxes(0, 1).swapaxes(1, 2)
        return keys_values[0], keys_values[1]

    def place(self, room: int) -> tuple[int, ...]:
        """Where a room lies, empty: see `KVCache.places`."""
        keys, values = self.rooms[room]
        return keys.ctypes.data, values.ctypes.data, keys.strides[0], keys.strides[1], 0

    def store(self, layer: int, room: int, start: int, keys: Floats, values: Floats) -> None:
        """Put T positions of a layer from `start` on; keys and values [T, J, E]."""
        stop, J = start + len(keys), keys.shape[1]
        self.rooms[room][0, layer, :J, start:stop] = keys.transpose(1, 0, 2)
        self.rooms[room][1, layer, :J, start:stop] = values.transpose(1, 0, 2)

    def clean(self, room: int) -> None:
        """Write zeros over what a room was left with: zero times NaN is NaN, masked or not."""
        self.rooms[room][..., : self.written[room], :] = 0.0
        self.written[room] = 0


def length(room: Room) -> int:
    """Positions that a room has."""
    group, place = room
    return group.capacities[place]


class KVCache:
    """Keys and values of the rows of a batch, which may come and go.

    `capacities` are those of the first rows, numbered from 0; new rooms are made `alike` at a
    time, all of them as long as the longest, or with 0 each as long as it needs. With a
    `limit`, each is as long as it needs, and all have no more positions together, as long as
    those of newcomers and those in use (`used`) do not.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        capacities: Sequence[int] = (),
        *,
        alike: int = GROUP,
        limit: float = inf,
    ) -> None:
        self._shape = shape  # layers, key/value heads, width of a head
        self._alike, self._limit = (alike if limit == inf else 1), limit
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
        return sum(group.nbytes for group in self._groups)

    @property
    def positions(self) -> int:
        """Positions allocated, in use or not."""
        return sum(sum(group.capacities) for group in self._groups)

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
            self.used += capacity if (room := found[-1]) is None else length(room)
        missing = [at for at, room in enumerate(found) if room is None]
        self._most_used = max(self._most_used, self.used)
        self._give_up(sum(capacities[at] for at in missing))
        # In one piece of memory, on large pages; with a limit one each, as a piece is freed whole.
        size = self._alike or len(missing) or 1
        for first in range(0, len(missing), size):
            some = missing[first : first + size]
            needs = [capacities[at] for at in some]
            if self._alike:
                self.used += max(needs) * len(needs) - sum(needs)
                needs = [max(needs)] * len(needs)
            group = Group(*self._shape, needs)
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
        self.used -= group.capacities[place]
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
        fitting = [room for room in self._left if capacity <= length(room) <= most]
        if not fitting:
            return None
        room = min(fitting, key=length)
        self._left.remove(room)
        room[0].clean(room[1])
        room[0].users += 1
        return room

    def _give_up(self, positions: int) -> None:
        """Free groups that nobody uses, lest there be more than was ever in use."""
        excess = self.positions + positions - self._most_used
        for group in sorted(self._groups, key=lambda one: -sum(one.capacities)):
            if excess <= 0:
                return
            if not group.users:
                excess -= sum(group.capacities)
                self._groups.remove(group)
                self._left = [room for room in self._left if room[0] is not group]
