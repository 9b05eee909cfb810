"""Absorbed factors against least squares on written-out dummy columns."""

import numpy as np
import pytest

from residmix.moments.absorbed import fit as factor_module
from residmix.moments.absorbed import schur
from residmix.moments.absorbed.fit import fit_factors, solve_factors
from residmix.moments.absorbed.sums import FactorStep, merge_factor_moments
from residmix.rows.rows import ArrayRows

RNG = np.random.default_rng(0)
N, D = 1500, 3


def problem(sizes, q, weighted=False, seed=0):
    rng = np.random.default_rng(seed)
    codes = tuple(rng.integers(0, L, N).astype(np.int32) for L in sizes)
    A = rng.normal(size=(N, q)) + 0.3 * codes[0][:, None] / sizes[0] if q else np.empty((N, 0))
    X = A @ rng.normal(size=(q, D)) + rng.normal(size=(N, D)) + 7
    for code, L in zip(codes, sizes, strict=True):
        X += rng.normal(size=(L, D))[code]
    return X, A, codes, rng.uniform(0.5, 2.0, N) if weighted else None


def dummies(A, codes, sizes):
    return np.hstack([A, *(np.eye(L)[code] for code, L in zip(codes, sizes, strict=True)), np.ones((N, 1))])


def fitted(X, A, codes, weight, sizes, block_rows=None):
    rows = ArrayRows(X, A, codes, weight)
    fit, moments = fit_factors(rows, sizes)
    return fit, np.vstack(list(rows.map(fit.affine()))), moments


def by_lstsq(X, A, codes, weight, sizes):
    Z = dummies(A, codes, sizes)
    root = np.ones(N) if weight is None else np.sqrt(weight)
    beta, _, rank, _ = np.linalg.lstsq(Z * root[:, None], X * root[:, None], rcond=None)
    return beta[: A.shape[1]], X - Z @ beta, rank


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("q", [0, 2])
@pytest.mark.parametrize("sizes", [(40,), (40, 12), (12, 40), (30, 10, 8)])
def test_residuals_and_coefficients_are_those_of_written_out_dummies(sizes, q, weighted, monkeypatch):
    monkeypatch.setattr(factor_module, "factor_block_rows", lambda sizes, d: 400)  # several blocks, so merges
    X, A, codes, weight = problem(sizes, q, weighted)
    fit, residual, _ = fitted(X, A, codes, weight, sizes)
    coef, expected, rank = by_lstsq(X, A, codes, weight, sizes)
    np.testing.assert_allclose(residual, expected, atol=1e-11)
    np.testing.assert_allclose(fit.coef, coef, atol=1e-12)
    assert fit.rank == rank - 1
    w = np.ones(N) if weight is None else weight
    np.testing.assert_allclose(fit.rss, (w[:, None] * expected**2).sum(axis=0), rtol=1e-10)


def test_standard_errors_are_those_of_written_out_dummies():
    sizes = (40, 12)
    X, A, codes, _ = problem(sizes, 2)
    fit, _, _ = fitted(X, A, codes, None, sizes)
    Z = dummies(A, codes, sizes)
    np.testing.assert_allclose(fit.covariance[0], np.linalg.pinv(Z.T @ Z)[:2, :2], rtol=1e-9)


def test_conjugate_gradients_agree_with_the_direct_solution(monkeypatch):
    sizes = (60, 25)
    X, A, codes, _ = problem(sizes, 2)
    direct, expected, _ = fitted(X, A, codes, None, sizes)
    monkeypatch.setattr(schur, "_DENSE_LIMIT", 5)
    iterated, residual, _ = fitted(X, A, codes, None, sizes)
    np.testing.assert_allclose(residual, expected, atol=1e-10)
    np.testing.assert_allclose(iterated.coef, direct.coef, atol=1e-11)


def test_nearly_nested_factors_are_solved_exactly():
    # 60 scanners nested in 30 sites but for 0.5 % of the rows: alternating projections need minutes here
    site = RNG.integers(0, 30, N)
    scanner = (2 * site + RNG.integers(0, 2, N)).astype(np.int32)
    moved = RNG.random(N) < 0.005
    scanner[moved] = RNG.integers(0, 60, moved.sum())
    codes = (site.astype(np.int32), scanner)
    X = RNG.normal(size=(N, D)) + RNG.normal(size=(30, D))[site] + RNG.normal(size=(60, D))[scanner]
    _, residual, _ = fitted(X, np.empty((N, 0)), codes, None, (30, 60))
    for code, L in zip(codes, (30, 60), strict=True):
        sums = np.eye(L)[code].T @ residual
        assert np.abs(sums).max() < 1e-9


def test_a_factor_nested_in_another_is_told_and_does_no_harm():
    subject = RNG.integers(0, 100, N).astype(np.int32)
    site = (subject // 10).astype(np.int32)
    X = RNG.normal(size=(N, D)) + RNG.normal(size=(100, D))[subject]
    fit, residual, _ = fitted(X, np.empty((N, 0)), (site, subject), None, (10, 100))
    assert fit.nested is not None
    assert list(fit.nested) == [0]
    assert len(set(fit.nested[0])) == 9
    assert fit.rank == 99
    _, alone, _ = fitted(X, np.empty((N, 0)), (subject,), None, (100,))
    np.testing.assert_allclose(residual, alone, atol=1e-12)


def test_a_dense_column_that_levels_determine_is_told():
    X, A, codes, _ = problem((40,), 2)
    A[:, 1] = codes[0] ** 2
    fit, residual, _ = fitted(X, A, codes, None, (40,))
    assert list(fit.aliased) == [1]
    np.testing.assert_allclose(residual, by_lstsq(X, A, codes, None, (40,))[1], atol=1e-11)


def test_level_means_vanish_at_an_offset_of_1e8():
    X, A, codes, _ = problem((40,), 1)
    _, residual, _ = fitted(X + 1e8, A + 1e8, codes, None, (40,))
    assert np.abs(np.eye(40)[codes[0]].T @ residual).max() < 1e-5  # 40 rows, each known to 1.5e-8


def test_effects_have_weighted_mean_zero_and_unknown_levels_get_their_average():
    X, A, codes, weight = problem((40,), 1, weighted=True)
    fit, _, _ = fitted(X, A, codes, weight, (40,))
    np.testing.assert_allclose(np.bincount(codes[0], weight) @ fit.effects[0], 0.0, atol=1e-10)
    np.testing.assert_allclose(fit.affine().effects[0][-1], fit.effects[0].mean(axis=0), atol=1e-14)


@pytest.mark.parametrize("sizes", [(40,), (40, 12)])
def test_each_feature_is_fitted_on_the_rows_that_it_has(sizes):
    X, A, codes, _ = problem(sizes, 2)
    gappy = X.copy()
    gappy[RNG.random(X.shape) < 0.2] = np.nan
    fit, residual, _ = fitted(gappy, A, codes, None, sizes)
    np.testing.assert_array_equal(np.isnan(residual), np.isnan(gappy))
    for j in range(D):
        has = ~np.isnan(gappy[:, j])
        Z = dummies(A, codes, sizes)[has]
        beta = np.linalg.lstsq(Z, gappy[has, j], rcond=None)[0]
        np.testing.assert_allclose(residual[has, j], gappy[has, j] - Z @ beta, atol=1e-10)
        np.testing.assert_allclose(fit.coef[:, j], beta[:2], atol=1e-11)


def test_moments_of_parts_merge_to_those_of_the_whole():
    sizes = (40, 12)
    X, A, codes, _ = problem(sizes, 2)
    whole, _, _ = fitted(X, A, codes, None, sizes)
    parts = []
    for rows in (slice(0, 700), slice(700, N)):
        part = ArrayRows(X[rows], A[rows], tuple(code[rows] for code in codes))
        parts += list(part.with_block_rows(N).map(FactorStep(sizes)))
    merged = solve_factors(merge_factor_moments(*parts))
    np.testing.assert_allclose(merged.coef, whole.coef, atol=1e-13)
    np.testing.assert_allclose(merged.effects[0], whole.effects[0], atol=1e-12)


def test_ten_thousand_levels_need_no_ten_thousand_columns():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 10_000, 60_000).astype(np.int32)
    X = rng.normal(size=(60_000, 4)) + rng.normal(size=(10_000, 4))[codes]
    rows = ArrayRows(X, codes=(codes,))
    fit, _ = fit_factors(rows, (10_000,))
    residual = np.vstack(list(rows.map(fit.affine())))
    count = np.bincount(codes, minlength=10_000)
    for j in range(4):
        assert np.abs(np.bincount(codes, residual[:, j], 10_000) / np.maximum(count, 1)).max() < 1e-13
