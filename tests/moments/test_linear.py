"""Moments and solutions from them, on arrays, files and any cutting into blocks."""

import numpy as np
import pytest

import residmix as rm
from residmix import Residualizer
from residmix.moments.linear import linear_moments, merge_moments
from residmix.moments.solving.solve import fit_linear, solve_moments
from residmix.rows.rows import ArrayRows, fold

RNG = np.random.default_rng(0)
A, X = RNG.normal(size=(2000, 4)), RNG.normal(size=(2000, 3))


@pytest.mark.parametrize("block_rows", [7, 256, 2000])
def test_moments_do_not_depend_on_the_cutting(block_rows):
    moments = fold(ArrayRows(X, A, block_rows=block_rows), linear_moments, merge_moments)
    joint = np.cov(np.hstack([A, X]).T, bias=True) * 2000
    np.testing.assert_allclose(moments.s_aa[0], joint[:4, :4], atol=1e-10)
    np.testing.assert_allclose(moments.s_ax, joint[:4, 4:], atol=1e-10)
    np.testing.assert_allclose(moments.s_xx, np.diagonal(joint)[4:], atol=1e-10)


def test_offsets_of_1e12_cost_no_digit_of_the_scatter():
    whole = np.round(A * 1000)  # integers, so that adding the offset rounds nothing
    plain = fold(ArrayRows(X, whole, block_rows=100), linear_moments, merge_moments)
    moved = fold(ArrayRows(X, whole + 1e12, block_rows=100), linear_moments, merge_moments)
    np.testing.assert_allclose(moved.s_aa, plain.s_aa, rtol=1e-9, atol=1e-3)
    # the textbook formula has none left
    assert abs(np.mean((whole[:, 0] + 1e12) ** 2) - np.mean(whole[:, 0] + 1e12) ** 2) > 1e7


def test_the_second_look_gives_the_digits_that_moments_alone_lose():
    t = np.linspace(0, 1, 2000)
    powers = t[:, None] ** np.arange(1, 9)
    truth = np.ones((8, 1))
    rows = ArrayRows(powers @ truth + 1, powers)
    fit, moments = fit_linear(rows)
    alone = solve_moments(moments)
    assert np.abs(fit.coef - truth).max() < 1e-7
    assert np.abs(alone.coef - truth).max() > 1e2 * np.abs(fit.coef - truth).max()


def test_a_file_gives_the_bits_of_the_array(tmp_path):
    import pandas as pd

    frame = pd.DataFrame(np.hstack([A[:, :1], X]), columns=["age", "x", "y", "z"])
    frame["site"] = np.array(list("abc"))[RNG.integers(0, 3, len(frame))]
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=300)
    model = Residualizer("age + site").fit(frame)
    other = Residualizer("age + site").fit(rm.scan(tmp_path / "t.parquet"))
    np.testing.assert_array_equal(other.coef_, model.coef_)
    np.testing.assert_array_equal(other.transform(rm.scan(tmp_path / "t.parquet")), model.transform(frame))
