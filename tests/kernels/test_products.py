"""Sums of products of rows, by tiles and by BLAS, and the loops that subtract fitted rows."""

import numpy as np
import pytest

from residmix import Residualizer
from residmix.kernels.arrays import readable, readable_weight
from residmix.kernels.loops import products
from residmix.kernels.loops.products import COLUMNS
from residmix.kernels.pairs import centred_products
from residmix.moments.affine import Affine, WithEffects
from residmix.moments.linear import linear_moments
from residmix.rows.block import Block

RNG = np.random.default_rng(0)


def expected(X, A, origin_x, origin_a, weight):
    x, a = X.astype(np.float64) - origin_x, A - origin_a
    w = np.ones(len(X)) if weight is None else weight
    return w @ x, w @ a, (a.T * w) @ a, (a.T * w) @ x, w @ x**2


@pytest.mark.parametrize("n", [1, 63, 64, 65, 2100])
@pytest.mark.parametrize("d", [1, COLUMNS, COLUMNS + 1, 2 * COLUMNS + 5])
@pytest.mark.parametrize("q", [0, 1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_products_are_those_of_the_formula(n, d, q, weighted, dtype):
    X, A = RNG.normal(size=(n, d)).astype(dtype), RNG.normal(size=(n, q))
    weight = RNG.uniform(0, 2, n) if weighted else None
    origins = RNG.normal(size=d), RNG.normal(size=q)
    for ours, theirs in zip(
        centred_products(X, A, *origins, readable_weight(weight)), expected(X, A, *origins, weight), strict=True
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * n)


def test_tiles_and_blas_agree(monkeypatch):
    X, A = RNG.normal(size=(3000, 3 * COLUMNS)), RNG.normal(size=(3000, 6))
    origins = X.mean(axis=0), A.mean(axis=0)
    tiles = centred_products(X, A, *origins, readable_weight(None))
    monkeypatch.setattr(products, "COLUMNS", 10_000)
    for one, two in zip(tiles, centred_products(X, A, *origins, readable_weight(None)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-11, atol=1e-10)


def test_a_block_that_is_sorted_or_jumps_loses_no_digits():
    # origins come from a few rows only: a block whose first rows lie far from the others must not notice
    n, d = 4096, COLUMNS
    base = np.round(RNG.normal(size=(n, d)) * 1000)
    for offsets in (np.r_[np.zeros(n // 16), np.full(n - n // 16, 1e8)], np.linspace(0, 1e8, n).round()):
        X, A = base + offsets[:, None], RNG.normal(size=(n, 2))
        moments = linear_moments(Block(0, X, A))
        exact = X.astype(np.longdouble)
        scatter = ((exact - exact.mean(axis=0)) ** 2).sum(axis=0)
        np.testing.assert_allclose(moments.s_xx, scatter.astype(float), rtol=1e-13)


def test_rows_of_weight_0_do_not_move_the_origin():
    X, A = RNG.normal(size=(500, COLUMNS)), RNG.normal(size=(500, 2))
    weight = RNG.uniform(1, 2, 500)
    weight[::2] = 0
    plain = linear_moments(Block(0, X[1::2], A[1::2], (), weight[1::2]))
    X[::2] = 1e15
    moments = linear_moments(Block(0, X, A, (), weight))
    np.testing.assert_allclose(moments.s_xx, plain.s_xx, rtol=1e-12)
    np.testing.assert_allclose(moments.s_ax, plain.s_ax, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("d", [3, COLUMNS + 3])
def test_infinities_are_found_in_the_sums_and_named(value, d):
    X, M = RNG.normal(size=(30_000, d)), RNG.normal(size=(30_000, 2))
    X[20_011, 2] = value
    X[7, 1] = np.nan
    with pytest.raises(ValueError, match="row 20011, column 'x2'"):
        Residualizer().fit(X, metadata=M)
    X[20_011, 2] = 0
    assert np.isfinite(Residualizer().fit(X, metadata=M).coef_).all()


def test_a_locked_array_is_read_without_a_copy_and_stays_locked():
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    alias = readable(array)
    assert alias.flags.writeable and np.shares_memory(alias, array) and not array.flags.writeable
    del array
    assert alias.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert readable(np.asfortranarray(alias)).flags.c_contiguous


@pytest.mark.parametrize("d", [1, 255, 256, 600])
@pytest.mark.parametrize("p", [0, 3, 4, 9, 20])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_residuals_are_those_of_the_formula(d, p, dtype):
    n = 50
    X, A = RNG.normal(size=(n, d)).astype(dtype), RNG.normal(size=(n, p + 1))
    origin_x, origin_a, coef, constant = (RNG.normal(size=s) for s in (d, p, (p, d), d))
    fitted = origin_x + (A[:, :p] - origin_a) @ coef + constant
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    affine = Affine(origin_x, origin_a, coef, constant)
    out = affine(Block(0, X, A))
    assert out.dtype == dtype
    np.testing.assert_allclose(out, X - fitted, atol=tolerance)

    effects = RNG.normal(size=(6, d)), RNG.normal(size=(3, d))
    codes = RNG.integers(-1, 5, n).astype(np.int32), RNG.integers(-1, 2, n).astype(np.int32)
    total = fitted + effects[0][codes[0]] + effects[1][codes[1]]
    for several in (1, 2):
        levels = WithEffects(origin_x, origin_a, coef, constant, 1, effects[:several])
        wanted = total if several == 2 else fitted + effects[0][codes[0]]
        np.testing.assert_allclose(levels(Block(0, X, A, codes[:several])), X + wanted, atol=tolerance)
