"""Random effects of two factors: against the mixed model written out densely, and statsmodels."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from numpy.testing import assert_allclose

import residmix as rm


def table(seed=0, spreads=(1.0, 0.6), n=400, d=2):
    rng = np.random.default_rng(seed)
    site, reader = rng.integers(0, 8, n), rng.integers(0, 6, n)
    age = rng.normal(50, 10, n)
    effects = spreads[0] * rng.normal(size=(8, d)), spreads[1] * rng.normal(size=(6, d))
    X = effects[0][site] + effects[1][reader] + 0.1 * age[:, None] + rng.normal(size=(n, d))
    frame = pd.DataFrame(X, columns=[f"x{j}" for j in range(d)])
    return frame.assign(site=[f"s{i}" for i in site], reader=[f"r{i}" for i in reader], age=age)


def fitted(data, **options):
    both = {"site": "blup", "reader": "blup"}
    return rm.Residualizer("site + reader + age", features=["x0", "x1"], shrinkage=both, **options).fit(data)


def dense(data):
    Z = [pd.get_dummies(data[name]).to_numpy(float) for name in ("site", "reader")]
    return Z, np.column_stack([np.ones(len(data)), data["age"]])


def restricted_deviance(x, Z, F, gains):
    V = np.eye(len(x)) + sum(gain * z @ z.T for gain, z in zip(gains, Z, strict=True))
    inverse = np.linalg.inv(V)
    inner = F.T @ inverse @ F
    rest = x - F @ np.linalg.solve(inner, F.T @ inverse @ x)
    return (len(x) - F.shape[1]) * np.log(rest @ inverse @ rest) + np.linalg.slogdet(V)[1] + np.linalg.slogdet(inner)[1]


@pytest.mark.slow
def test_variance_ratios_maximise_the_restricted_likelihood():
    data = table()
    found = fitted(data).random_effects_
    Z, F = dense(data)
    for j in range(2):
        gains = np.array([1 / found[name].ratio[j] for name in ("site", "reader")])
        x = data[f"x{j}"].to_numpy()
        best = restricted_deviance(x, Z, F, gains)
        for nudge in ([1.01, 1], [0.99, 1], [1, 1.01], [1, 0.99], [1.5, 0.7], [0.1, 5]):
            assert best < restricted_deviance(x, Z, F, gains * nudge)


def test_effects_and_residuals_are_those_of_the_mixed_model_at_these_ratios():
    data = table()
    model = fitted(data)
    Z, F = dense(data)
    both = np.hstack(Z)
    for j in range(2):
        ratios = np.concatenate(
            [
                np.full(z.shape[1], model.random_effects_[name].ratio[j])
                for name, z in zip(("site", "reader"), Z, strict=True)
            ]
        )
        A, x = np.hstack([F, both]), data[f"x{j}"].to_numpy()
        solved = np.linalg.solve(A.T @ A + np.diag(np.r_[0, 0, ratios]), A.T @ x)
        assert_allclose(model.random_effects_["site"].effects[:, j], solved[2:10], atol=1e-9)
        assert_allclose(model.random_effects_["reader"].effects[:, j], solved[10:], atol=1e-9)
        rest = x - A @ solved
        assert_allclose(model.transform(data)[:, j], rest - rest.mean(), atol=1e-9)


def test_variances_are_those_of_statsmodels():
    data = table()
    found = fitted(data).random_effects_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its line search complains at the last digits
        mixed = sm.MixedLM.from_formula(
            "x0 ~ age",
            groups=np.ones(len(data)),
            vc_formula={"reader": "0 + C(reader)", "site": "0 + C(site)"},
            re_formula="0",
            data=data,
        ).fit(method="bfgs", gtol=1e-8)
    theirs = mixed.scale / mixed.vcomp  # in the order of the names
    assert_allclose([found["reader"].ratio[0], found["site"].ratio[0]], theirs, rtol=1e-3)


def test_a_factor_without_effects_of_its_own_gets_none():
    data = table(spreads=(1.0, 0.0))
    for name in ("x0", "x1"):
        # readers' means, given the rest, explain less than chance
        fixed = rm.Residualizer("reader + site + age", features=[name]).fit(data)
        columns = fixed.design_.terms[0].columns
        data[name] -= fixed.design_.matrix(data).dense[:, columns] @ fixed.coef_[columns, 0]
    found = fitted(data).random_effects_
    assert (found["reader"].ratio > 1e300).all()
    assert np.abs(found["reader"].effects).max() < 1e-12
    assert (found["site"].ratio < 10).all()


def test_weights_gaps_and_chunks_are_dealt_with():
    data = table()
    whole = fitted(data)
    split = rm.Residualizer("site + reader + age", features=["x0", "x1"], shrinkage={"site": "blup", "reader": "blup"})
    split.partial_fit(data[:250]).partial_fit(data[250:])
    assert_allclose(split.coef_, whole.coef_, atol=1e-6)
    gap = data.copy()
    gap.loc[3, "x1"] = np.nan
    assert_allclose(fitted(gap).coef_[:, 0], whole.coef_[:, 0], atol=1e-7)
    alone = fitted(data.drop(index=3))
    assert_allclose(fitted(gap).coef_[:, 1], alone.coef_[:, 1], atol=1e-6)


def test_what_is_no_factor_is_named():
    with pytest.raises(ValueError, match="needs a factor, but 'age' is numeric"):
        rm.Residualizer("site + age", shrinkage={"site": "blup", "age": "blup"}).fit(table()[["x0", "site", "age"]])
    with pytest.raises(ValueError, match="names no factor"):
        rm.Residualizer("site", shrinkage={}).fit(table()[["x0", "site"]])
