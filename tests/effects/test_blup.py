"""Effects of levels as random effects: against statsmodels, and in their limits."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from statsmodels.tools.sm_exceptions import ConvergenceWarning

import residmix as rm
from residmix.effects.random.one import random_effects

NAMES = np.array(list("abcdefgh"))


def table(seed=0, spread=1.0, rows=(3, 5, 10, 20, 40, 80, 100, 3000)):
    """Return sites of very different sizes, an age, and two features."""
    rng = np.random.default_rng(seed)
    site = np.repeat(np.arange(len(rows)), rows)
    age = rng.normal(50, 10, len(site)) + site
    effects = spread * rng.normal(size=(len(rows), 2))
    X = effects[site] + 0.1 * age[:, None] * [1.0, -1.0] + rng.normal(size=(len(site), 2))
    return pd.DataFrame({"site": NAMES[site], "age": age, "x": X[:, 0], "y": X[:, 1]})


def blup(data, **options):
    return rm.Residualizer("site + age", shrinkage={"site": "blup"}, **options).fit(data)


def test_predicted_effects_and_variance_ratio_are_those_of_a_mixed_model():
    data = table()
    model = blup(data)
    found = model.random_effects_["site"]
    for j, name in enumerate(["x", "y"]):
        design = np.column_stack([np.ones(len(data)), data["age"]])
        with warnings.catch_warnings():
            # Asked for the last digits, its line search reports that it can't improve any more.
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixed = sm.MixedLM(data[name].to_numpy(), design, groups=data["site"].to_numpy()).fit(
                method="bfgs", gtol=1e-8
            )
        theirs = np.array([np.asarray(mixed.random_effects[level])[0] for level in NAMES])
        ratio = mixed.scale / mixed.cov_re[0, 0]
        # By default statsmodels stops 4e-3 short of its optimum; with a small gtol the two agree to 1e-6.
        np.testing.assert_allclose(found.ratio[j], ratio, rtol=1e-5)
        np.testing.assert_allclose(found.effects[:, j], theirs, atol=1e-5)
        # Given the same ratio there is nothing left to differ about but rounding.
        term = model.design_.terms[0]
        fit, same = random_effects(
            model.moments_, model.fit_, term.columns, model.design_.level_rows(term), np.full(2, ratio)
        )
        np.testing.assert_allclose(same.effects[:, j], theirs, atol=1e-8)
        np.testing.assert_allclose(fit.coef[-1, j], mixed.fe_params[1], atol=1e-8)
        np.testing.assert_allclose(same.noise[j], mixed.scale, rtol=1e-8)


def test_the_variance_ratio_maximises_the_restricted_likelihood():
    data = table(rows=(3, 5, 4, 6, 8, 10, 12, 14))
    ratio = blup(data).random_effects_["site"].ratio
    Z = (data["site"].to_numpy()[:, None] == NAMES).astype(float)
    F = np.column_stack([np.ones(len(data)), data["age"]])

    def deviance(x, gain):
        inverse = np.linalg.inv(np.eye(len(x)) + gain * Z @ Z.T)
        inner = F.T @ inverse @ F
        rest = x - F @ np.linalg.solve(inner, F.T @ inverse @ x)
        return (
            (len(x) - 2) * np.log(rest @ inverse @ rest) - np.linalg.slogdet(inverse)[1] + np.linalg.slogdet(inner)[1]
        )

    for j, name in enumerate(["x", "y"]):
        x = data[name].to_numpy()
        best = deviance(x, 1 / ratio[j])
        for nudge in (0.5, 0.99, 0.999, 1.001, 1.01, 2.0):
            assert best < deviance(x, nudge / ratio[j])


def test_residuals_are_those_of_the_ridge_system_with_the_estimated_ratio():
    data = table()
    model = blup(data)
    ratio = model.random_effects_["site"].ratio[0]
    Z = (data["site"].to_numpy()[:, None] == NAMES).astype(float)
    A = np.column_stack([np.ones(len(data)), data["age"], Z])
    x = data["x"].to_numpy()
    solved = np.linalg.solve(A.T @ A + np.diag([0.0, 0.0] + [ratio] * len(NAMES)), A.T @ x)
    plain = x - A @ solved
    np.testing.assert_allclose(model.transform(data)[:, 0], plain - plain.mean(), atol=1e-9)


def test_a_small_site_is_shrunk_and_a_large_one_is_not():
    found = blup(table(spread=0.5)).random_effects_["site"]
    share = found.rows / (found.rows + found.ratio)
    assert (share[0] < 0.75).all() and (share[-1] > 0.99).all()
    np.testing.assert_allclose(found.rows[:, 0], [3, 5, 10, 20, 40, 80, 100, 3000], rtol=1e-9)


def test_levels_that_do_not_differ_have_no_effect():
    data = table(rows=(50,) * 8)
    for name in ("x", "y"):  # take out what the sites' means hold
        data[name] -= data.groupby("site")[name].transform("mean")
    data["age"] -= data.groupby("site")["age"].transform("mean")
    found = blup(data).random_effects_["site"]
    assert (found.ratio > 1e300).all()
    assert np.abs(found.effects).max() < 1e-12


def test_without_penalty_they_are_fixed_effects():
    data = table()
    fixed = rm.Residualizer("site + age").fit(data)
    term = fixed.design_.terms[0]
    fit, found = random_effects(
        fixed.moments_, fixed.fit_, term.columns, fixed.design_.level_rows(term), ratio=np.zeros(2)
    )
    np.testing.assert_allclose(fit.coef, fixed.fit_.coef, atol=1e-9)
    np.testing.assert_allclose(found.effects.mean(axis=0), 0.0, atol=1e-10)


def test_reference_level_makes_no_difference_nor_do_batches_nor_missing_values_elsewhere():
    data = table()
    expected = blup(data)
    other = rm.Residualizer("C(site, contr.sum) + age", shrinkage={"site": "blup"}).fit(data)
    np.testing.assert_allclose(other.transform(data), expected.transform(data), atol=1e-8)
    with_gap = data.copy()
    with_gap.loc[7, "y"] = np.nan
    np.testing.assert_allclose(blup(with_gap).coef_[:, 0], expected.coef_[:, 0], atol=1e-8)
    split = rm.Residualizer("site + age", shrinkage={"site": "blup"})
    mixed = pd.concat([data.groupby("site").head(3), data.drop(data.groupby("site").head(3).index)])
    split.partial_fit(mixed[:24]).partial_fit(mixed[24:])
    np.testing.assert_allclose(split.coef_, expected.coef_, atol=1e-7)


def test_a_saved_model_gives_the_same_residuals(tmp_path):
    data = table()
    model = blup(data)
    rm.save(model, tmp_path / "model.safetensors")
    again = rm.load(tmp_path / "model.safetensors")
    assert np.array_equal(again.transform(data), model.transform(data))
    assert np.array_equal(again.random_effects_["site"].effects, model.random_effects_["site"].effects)


@pytest.mark.parametrize(
    ("shrinkage", "message"),
    [
        ({"sight": "blup"}, "did you mean 'site'"),
        ({"site": "ridge"}, "must be 'blup', 'eb'"),
        ({"age": "blup"}, "needs a factor"),
        ({"site": "blup", "age": "blup"}, "needs a factor"),
    ],
)
def test_what_cannot_be_shrunk_is_named(shrinkage, message):
    with pytest.raises(ValueError, match=message):
        rm.Residualizer("site + age", shrinkage=shrinkage).fit(table())
