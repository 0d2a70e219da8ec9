"""Products with blocked weights: the same numbers by tiles, by BLAS, alone and together."""

from __future__ import annotations

import sys

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


@needs_tiles
def test_threads_share_the_blocks(monkeypatch):
    """Several threads, more than there are blocks too, give the same bits as one."""
    x, blocks = made(9, 64, 5)
    alone = products.product(x, blocks)
    monkeypatch.setattr(products, "WORTH_SHARING", 0)
    for threads in (2, 3, 50):
        monkeypatch.setattr(products, "allowed_threads", lambda n=threads: n)
        np.testing.assert_array_equal(products.product(x, blocks), alone)


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
    """Inside `own_threads` BLAS has one thread and products have its others; then all is back."""
    with threadpool_limits(2, user_api="blas"):
        allowed = products.allowed_threads()
        with products.own_threads():
            assert products.allowed_threads() == 1
            assert allowed in {1, getattr(products._here, "threads", 0)}
        assert products.allowed_threads() == allowed
        with pytest.raises(ZeroDivisionError), products.own_threads():
            _ = 1 / 0
        assert products.allowed_threads() == allowed
