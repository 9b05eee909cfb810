"""Rows that are taken out again: as if they had never been there, or an error."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import residmix as rm


def rows(n=300, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"site": rng.choice(list("abc"), n), "age": rng.normal(50, 10, n)})
    X = rng.normal(size=(n, 4)) + 1e6 + frame["age"].to_numpy()[:, None] * [1.0, 0.0, 2.0, -1.0]
    return X, frame


@pytest.mark.parametrize("setting", [{}, {"alpha": 2.0}, {"preserve": "age"}])
def test_forgotten_rows_leave_no_trace(setting):
    X, frame = rows()
    formula = "C(site)" if "preserve" in setting else "C(site) + age"
    model = rm.Residualizer(formula, **setting).fit(X, metadata=frame)
    model.forget(X[:50], metadata=frame[:50])
    other = rm.Residualizer(formula, **setting).fit(X[50:], metadata=frame[50:])
    assert_allclose(model.coef_, other.coef_, rtol=1e-8, atol=1e-8)
    assert_allclose(model.intercept_, other.intercept_, rtol=1e-9)
    left = model.transform(X, metadata=frame)
    assert_allclose(left, other.transform(X, metadata=frame), atol=1e-6)
    # the control: they did leave one
    assert (
        np.abs(left - rm.Residualizer(formula, **setting).fit(X, metadata=frame).transform(X, metadata=frame)).max()
        > 1e-3
    )


def test_what_came_in_by_parts_goes_out_again_with_weights_and_gaps():
    X, frame = rows()
    X[np.random.default_rng(1).uniform(size=X.shape) < 0.1] = np.nan
    weight = np.random.default_rng(2).uniform(0.5, 2, 300)
    model = rm.Residualizer("C(site) + age").fit(X[:200], metadata=frame[:200], sample_weight=weight[:200])
    before = model.coef_.copy()
    model.partial_fit(X[200:], metadata=frame[200:], sample_weight=weight[200:])
    assert np.abs(model.coef_ - before).max() > 1e-4
    model.forget(X[200:], metadata=frame[200:], sample_weight=weight[200:])
    assert_allclose(model.coef_, before, rtol=1e-7, atol=1e-7)


def test_rows_that_are_no_part_or_nearly_all_are_refused():
    X, frame = rows()
    model = rm.Residualizer("C(site) + age").fit(X, metadata=frame)
    twice = np.repeat(X, 2, axis=0), frame.loc[frame.index.repeat(2)]
    with pytest.raises(ValueError, match="must be rows of the fit"):
        model.forget(twice[0], metadata=twice[1])
    with pytest.raises(ValueError, match="millionth of the variation of features"):
        model.forget(X[:50] + 1e3 * np.arange(50)[:, None], metadata=frame[:50])
    # a row that is nearly all there is
    X[0] += 1e9
    model = rm.Residualizer("C(site) + age", check_leakage=False).fit(X, metadata=frame)
    with pytest.raises(ValueError, match="call fit on the remaining rows"):
        model.forget(X[:1], metadata=frame[:1])


@pytest.mark.filterwarnings("ignore::residmix.errors.ResidmixWarning")
def test_fits_that_need_more_than_moments_refuse():
    X, frame = rows()
    model = rm.Residualizer("C(site)", shrinkage="eb").fit(X, metadata=frame)
    with pytest.raises(ValueError, match=r"sums by level|need all rows"):
        model.forget(X[:5], metadata=frame[:5])
