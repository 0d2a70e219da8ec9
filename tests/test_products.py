"""Products with blocked weights: the same numbers by tiles, by BLAS, alone and together."""

from __future__ import annotations

import os
import sys
import threading
from time import monotonic, sleep

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from batchgauge.core.kernels import products

needs_tiles = pytest.mark.skipif(products.compiled() is None, reason="no compiled tiles here")


def made(rows, inputs, blocks, width=64):
    """Activations [rows, inputs] and blocks [blocks, inputs, width] to multiply."""
    rng = np.random.default_rng(rows + inputs)
    x = rng.standard_normal((rows, inputs), dtype=np.float32)
    return x, rng.standard_normal((blocks, inputs, width), dtype=np.float32)


@pytest.mark.parametrize("way", [products.product, products.blas_product])
@pytest.mark.parametrize("inputs", [2, 96, 98, 131, 576])
def test_both_ways_give_the_plain_product(way, inputs):
    """Any number of rows, and inputs that fill no whole chunk or are odd."""
    for rows in (1, 2, 5, 6, 7, 13, 32, 71, 72, 130):
        x, blocks = made(rows, inputs, 3)
        plain = np.einsum("tk,nkw->tnw", x.astype(np.float64), blocks).reshape(rows, -1)
        np.testing.assert_allclose(way(x, blocks), plain, rtol=0, atol=2e-3)


@needs_tiles
def test_a_row_does_not_depend_on_its_neighbours():
    """A row's product is the same to the last bit alone and in any batch."""
    x, blocks = made(100, 576, 2)
    together = products.product(x, blocks)
    for rows in (1, 4, 8, 33, 72):
        np.testing.assert_array_equal(products.product(x[:rows], blocks), together[:rows])


@pytest.fixture
def sharing(monkeypatch):
    """Have products and attention of this thread shared by a team of so many threads."""
    monkeypatch.setattr(products, "WORTH_SHARING", 0)

    def share_by(threads):
        team = products._team().Team(threads)
        team.processors = products.usable_processors()
        monkeypatch.setattr(products._here, "team", team, raising=False)
        return team

    return share_by


@needs_tiles
@pytest.mark.parametrize("threads", [2, 3, 9])
def test_threads_share_the_blocks(sharing, threads):
    """Several threads, more than there are blocks or processors too, give the bits of one."""
    x, blocks = made(9, 64, 5)
    alone = products.product(x, blocks)
    sharing(threads)
    for _ in range(200):
        np.testing.assert_array_equal(products.product(x, blocks), alone)


@needs_tiles
def test_a_team_sleeps_and_is_woken(sharing):
    """Without work its threads soon block; then they, or the caller alone, do what comes."""
    x, blocks = made(9, 64, 5)
    alone = products.product(x, blocks)
    team = sharing(2)
    for _ in range(3):
        np.testing.assert_array_equal(products.product(x, blocks), alone)
        until = monotonic() + 30
        while any(call.is_set() for call in team._calls) and monotonic() < until:
            sleep(0.001)
        assert not any(call.is_set() for call in team._calls)


@needs_tiles
def test_a_busy_team_is_not_waited_for(sharing):
    """While another thread has the team, one works alone."""
    x, blocks = made(9, 64, 5)
    alone = products.product(x, blocks)
    with sharing(2).free:
        np.testing.assert_array_equal(products.product(x, blocks), alone)


@needs_tiles
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_a_team_of_its_own(monkeypatch):
    """A child has none of its parent's threads: it makes new ones, and gets the same bits."""
    monkeypatch.setattr(products, "WORTH_SHARING", 0)
    monkeypatch.setattr(products, "usable_processors", lambda: {0, 1})
    x, blocks = made(9, 64, 5)
    with threadpool_limits(2, user_api="blas"), products.own_threads():
        alone = products.product(x, blocks)
    if (child := os.fork()) == 0:
        with threadpool_limits(2, user_api="blas"), products.own_threads():
            same = np.array_equal(products.product(x, blocks), alone)
        os._exit(0 if same and threading.active_count() == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_weights_that_no_tile_fits_go_through_blas():
    """Blocks narrower than a tile's width, and rows that are not contiguous, are multiplied too."""
    x, blocks = made(4, 6, 2, width=3)
    np.testing.assert_allclose(products.product(x, blocks), np.hstack(list(x @ blocks)), atol=1e-5)
    x, blocks = made(8, 64, 2)
    plain = np.hstack(list(x[::2] @ blocks))
    np.testing.assert_allclose(products.product(x[::2], blocks), plain, atol=1e-4)


def test_blas_takes_over_where_nothing_is_compiled(monkeypatch):
    """Without Numba the kernel's module cannot be imported, and BLAS multiplies."""
    monkeypatch.setitem(sys.modules, "batchgauge.core.kernels.product_kernel", None)
    products.compiled.cache_clear()
    try:
        assert products.compiled() is None
        x, blocks = made(3, 64, 2)
        np.testing.assert_array_equal(products.product(x, blocks), products.blas_product(x, blocks))
    finally:
        products.compiled.cache_clear()


def test_blas_is_kept_to_one_thread_meanwhile():
    """Inside `own_threads` BLAS has one thread and products have their others; then all is back."""
    with threadpool_limits(2, user_api="blas"):
        allowed = products.allowed_threads()
        with products.own_threads():
            assert products.allowed_threads() == 1
            shared = allowed > 1 < len(products.usable_processors())
            assert bool(products._here.team) == (shared and products.compiled() is not None)
        assert products._here.team is None
        assert products.allowed_threads() == allowed
        with pytest.raises(ZeroDivisionError), products.own_threads():
            _ = 1 / 0
        assert products.allowed_threads() == allowed
