"""The KV cache: keys and values of every position seen, allocated once for a whole batch.

Rows are kept in groups of neighbours, each as long as its longest row needs: with rows
in order of length, little is allocated or computed that nobody uses. What a row's head
holds lies together, position after position, so that a decode step reads it and nothing
else, however much room there is behind it.

Left out: pages, sharing of common prefixes, forgetting what no window shows any more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from batchgauge.core.ops import Floats, aligned

Numbers = npt.NDArray[np.int64]

SLACK = 3  # positions behind a buffer that may be read
GROUP = 8  # rows whose attention is computed together in a decode step


class Group:
    """Rows that are attended to together; row r holds lengths[r] positions.

    keys, values  float32 [layers, R, J, C, E]; J is that of the layer with most heads
    Zeros where nothing was written yet, since what is masked must still be finite, and room
    for `SLACK` more behind the last position, since compiled attention reads some at a time.
    """

    def __init__(self, layers: int, kv_heads: int, width: int, capacities: Sequence[int]) -> None:
        C, R = max(capacities), len(capacities)
        self.keys: Floats = _zeros((layers, R, kv_heads, C, width))
        self.values: Floats = _zeros((layers, R, kv_heads, C, width))
        self.lengths = np.zeros(R, np.intp)
        self._rows = np.arange(R)

    def __len__(self) -> int:
        return self.lengths.size

    def places(self) -> Numbers:
        """Where each row's positions lie: int64 [R, 5].

        The addresses of its keys and its values in the first layer, the bytes from one layer
        to the next and from one head to the next, and how many positions it holds.
        """
        found = np.empty((len(self), 5), np.int64)
        for place, held in enumerate((self.keys, self.values)):
            found[:, place] = held.ctypes.data + held.strides[1] * self._rows
        found[:, 2], found[:, 3] = self.keys.strides[0], self.keys.strides[2]
        found[:, 4] = self.lengths
        return found

    def store(self, layer: int, row: int, keys: Floats, values: Floats) -> None:
        """Put T positions behind those that row holds; keys and values [T, J, E]."""
        start = int(self.lengths[row])
        stop = start + len(keys)
        J = keys.shape[1]
        self.keys[layer, row, :J, start:stop] = keys.transpose(1, 0, 2)
        self.values[layer, row, :J, start:stop] = values.transpose(1, 0, 2)

    def store_step(self, layer: int, keys: Floats, values: Floats) -> None:
        """Put one position behind those of every row; keys and values [R, J, E]."""
        J = keys.shape[1]
        self.keys[layer, self._rows, :J, self.lengths] = keys
        self.values[layer, self._rows, :J, self.lengths] = values

    def clear(self, row: int) -> None:
        """Write zeros over what a row holds."""
        self.keys[:, row, :, : self.lengths[row]] = 0.0
        self.values[:, row, :, : self.lengths[row]] = 0.0

    def drop(self, row: int) -> int:
        """Forget a row; the last one takes its place. Gives that one's former number."""
        last = len(self) - 1
        if row != last:
            length = self.lengths[last]
            self.keys[:, row, :, :length] = self.keys[:, last, :, :length]
            self.values[:, row, :, :length] = self.values[:, last, :, :length]
            self.lengths[row] = length
        self.lengths, self._rows = self.lengths[:last], self._rows[:last]
        self.keys = self.keys[:, :last]
        self.values = self.values[:, :last]
        return last


def _zeros(shape: tuple[int, ...]) -> Floats:
    size = prod(shape)
    return aligned(size + SLACK * shape[-1], zeros=True)[:size].reshape(shape)


class KVCache:
    """Keys and values of a batch; row b has room for capacities[b] positions."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, capacities: Sequence[int]
    ) -> None:
        self.groups = [
            Group(layers, kv_heads, head_dim, capacities[first : first + GROUP])
            for first in range(0, len(capacities), GROUP)
        ]

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    @property
    def lengths(self) -> npt.NDArray[np.intp]:
        """Positions held by each row: [B]."""
        return np.concatenate([group.lengths for group in self.groups])

    def places(self) -> Numbers:
        """Where each row's positions lie: [B, 5], see `Group.places`."""
        return np.concatenate([group.places() for group in self.groups])

    def advance(self) -> None:
        """Count one more position in every row."""
        for group in self.groups:
            group.lengths += 1

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(group.keys.nbytes + group.values.nbytes for group in self.groups)

    def find(self, row: int) -> tuple[Group, int]:
        """The group of a row, and its number in there."""
        for group in self.groups:
            if row < len(group):
                return group, row
            row -= len(group)
        raise IndexError("the cache has no such row")

    def clear(self, row: int) -> None:
        """Write zeros over what a row holds: zero times NaN is NaN, masked or not."""
        group, place = self.find(row)
        group.clear(place)

    def keep(self, wanted: Collection[int]) -> npt.NDArray[np.intp]:
        """Forget all rows but these. Gives the former numbers of those left, in the new order."""
        order: list[int] = []
        first = 0
        for group in self.groups:
            here = list(range(first, first + len(group)))
            first += len(group)
            for row in reversed(range(len(here))):
                if here[row] not in wanted:
                    here[row] = here[group.drop(row)]
                    here.pop()
            order += here
        self.groups = [group for group in self.groups if len(group)]
        return np.asarray(order, dtype=np.intp)
