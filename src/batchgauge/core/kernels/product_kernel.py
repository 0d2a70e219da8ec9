"""The compiled product of rows and blocked weights: memory is read once, and kept busy.

BLAS packs its operands first, which for a few rows costs more than the multiplication,
or takes a kernel that leaves the memory idle while it computes. Here weights come from
memory once, a chunk of a block's inputs at a time; the tiles of all rows take their turn
on a chunk, and each asks for its share of the next one meanwhile.

Importing this module needs what `vectors` needs. Left out: an odd number of inputs.
"""

from __future__ import annotations

from typing import Any

from numba import cfunc, njit

from batchgauge.core.kernels import team_kernel, tile, vectors
from batchgauge.core.kernels.team_kernel import digest, number
from batchgauge.core.kernels.tile import ROWS, tile_alone, tile_of_few, tile_of_many
from batchgauge.core.kernels.vectors import FEATURES

CHUNK = 96  # inputs of a chunk: with 64 features 24 KiB, half of a nearest cache
MANY = 12  # tiles of rows from which on a block stays in the second cache, and is no longer cut
AHEAD = 2048  # bytes that a tile alone asks for ahead of itself
# While memory sets the pace, more and lower tiles than needed ask for it more evenly: up to so
# many rows, so many tiles. Found by trial, as was that three tiles or more do better when
# they are not all of one height.
TILES = ((4, 1), (8, 2), (16, 3), (30, 5))


@njit(nogil=True)
def turns_of(T):
    """In how many tiles, one below the other, T rows are taken."""
    for rows, turns in TILES:
        if rows >= T:
            return turns
    return (T + ROWS - 1) // ROWS


@njit(nogil=True)
def height(T, turns, turn, row):
    """Rows of the tile whose `turn` it is, at `row`: even shares, or the first one higher.

    Nine rows in three turns are tiles of 4, 3 and 2 rows.
    """
    left = turns - turn
    return min(ROWS, T - row, (T - row + left - 1 + (turn == 0 and turns > 2)) // left)


def _compile(source: int) -> Any:
    """`multiply`, compiled for these sources: see `team_kernel.digest`."""

    @cfunc("void(int64, int64)", cache=True)
    def multiply(job, block):
        """Fill y's columns of one block; `job` is that of `team_kernel.multiply`.

        x       float32 [T, K]      K even
        blocks  float32 [n, K, W]   W a multiple of FEATURES
        y       float32 [T, n * W]
        """
        if source < 0:
            return
        x_at, T, K = number(job, 0), number(job, 1), number(job, 2)
        w_at, y_at, y_step = number(job, 3), number(job, 5), number(job, 6)
        W = number(job, 4) // (4 * K)
        panels = W // FEATURES
        turns = turns_of(T)
        tiles = turns * panels  # of a chunk
        x_step, w_step = 4 * K, 4 * W
        chunk = CHUNK if turns < MANY else K
        for begin in range(0, K, chunk):
            inputs = min(chunk, K - begin)
            here = w_at + (block * K + begin) * w_step
            following = here + inputs * w_step
            share = inputs * w_step // tiles
            n = 0
            for panel in range(0, W, FEATURES):
                row = 0
                for turn in range(turns):
                    rows = height(T, turns, turn, row)
                    x_here = x_at + row * x_step + 4 * begin
                    w_here = here + 4 * panel
                    y_here = y_at + row * y_step + 4 * (block * W + panel)
                    ahead = following + n * share
                    if tiles == 1:
                        tile_alone(
                            rows, x_here, x_step, w_here, w_step, inputs,
                            y_here, y_step, here + AHEAD, w_step, begin == 0,
                        )  # fmt: skip
                    elif tiles < 4:
                        tile_of_few(
                            rows, x_here, x_step, w_here, w_step, inputs,
                            y_here, y_step, ahead, share // inputs, begin == 0,
                        )  # fmt: skip
                    else:
                        tile_of_many(
                            rows, x_here, x_step, w_here, w_step, inputs,
                            y_here, y_step, ahead, share // inputs + 1, begin == 0,
                        )  # fmt: skip
                    row += rows
                    n += 1

    return multiply


multiply: int = _compile(digest(tile, vectors, team_kernel)).address
