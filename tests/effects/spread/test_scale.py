"""The spread as a function of the metadata: theorems, and what a forest can tell before and after."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from residmix import Residualizer
from residmix.effects.spread.steps import Pairs
from residmix.errors import DesignWarning, LeakageWarning

SITE_SD = np.array([1.0, 2.0, 0.1, 5.0])


def sites(n=2000, d=5, seed=0):
    rng = np.random.default_rng(seed)
    site = rng.integers(0, 4, n)
    dummies = (site[:, None] == [1, 2, 3]).astype(float)
    X = rng.normal(size=(n, d)) * SITE_SD[site][:, None] + site[:, None]
    return X, dummies, site


def test_every_level_gets_the_pooled_variance():
    X, dummies, site = sites()
    plain = Residualizer().fit_transform(X, metadata=dummies)
    even = Residualizer(scale=True).fit_transform(X, metadata=dummies)
    # The estimate of a level is its sample variance (divisor n - 1), so that is what comes out equal.
    spread = np.array([even[site == k].var(axis=0, ddof=1) for k in range(4)])
    assert_allclose(spread, np.broadcast_to(spread[0], spread.shape), rtol=1e-8)
    assert_allclose(np.sum(even**2, axis=0), np.sum(plain**2, axis=0), rtol=1e-10)
    assert np.ptp([plain[site == k].var(axis=0) for k in range(4)], axis=0).min() > 20


def test_every_level_gets_the_pooled_variance_of_the_values_that_there_are():
    X, dummies, site = sites(n=48)
    X[(site == 1) & (np.arange(48) % 3 > 0), 0] = np.nan  # few are left, so that n - 1 isn't n
    X[::2, 3] = np.nan
    even = Residualizer(scale=True, check_leakage=False).fit_transform(X, metadata=dummies)
    spread = np.array([np.nanvar(even[site == k], axis=0, ddof=1) for k in range(4)])
    assert_allclose(spread, np.broadcast_to(spread[0], spread.shape), rtol=1e-7)
    for j in (0, 3):
        have = ~np.isnan(X[:, j])
        alone = Residualizer(scale=True, check_leakage=False).fit(X[have, j : j + 1], metadata=dummies[have])
        assert_allclose(even[have, j], alone.transform(X[have, j : j + 1], metadata=dummies[have])[:, 0], atol=1e-9)


def test_continuous_metadata_agree_with_a_gamma_regression():
    rng = np.random.default_rng(1)
    age, n = rng.normal(50, 10, 3000), 3000
    X = rng.normal(size=(n, 3)) * np.exp(0.05 * (age - 50))[:, None] + 0.3 * age[:, None]
    model = Residualizer(scale=True).fit(X, metadata=age)
    A = np.column_stack([np.ones(n), age])
    leverage = np.sum((A @ np.linalg.inv(A.T @ A)) * A, axis=1)
    e = X - A @ np.linalg.lstsq(A, X, rcond=None)[0]
    family = sm.families.Gamma(sm.families.links.Log())
    expected = [
        sm.GLM(e[:, j] ** 2 / (1 - leverage), A, family=family, var_weights=1 - leverage).fit(tol=1e-13).params[1] / 2
        for j in range(3)
    ]
    # 1e-7 is where the scoring stops; the truth is 0.05 within its standard error of 0.0013.
    assert_allclose(model.scale_.coef[0], expected, rtol=1e-6)
    assert_allclose(model.scale_.coef[0], 0.05, atol=0.006)


def test_few_rows_settle_too():
    """With 40 rows Fisher scoring alone needs more than a hundred passes; the score is 0 at the end."""
    rng = np.random.default_rng(12)
    m, X = rng.normal(size=40), rng.normal(size=(40, 8))
    scale = Residualizer(scale=True).fit(X, metadata=m).scale_
    A = np.column_stack([np.ones(40), m])
    free = 1 - np.sum((A @ np.linalg.inv(A.T @ A)) * A, axis=1)
    e = X - A @ np.linalg.lstsq(A, X, rcond=None)[0]
    u = e**2 / scale.factor(m[:, None]) ** 2
    u *= free.sum() / u.sum(axis=0)
    assert_allclose(A.T @ (u - free[:, None]), 0.0, atol=1e-8)


def test_a_forest_cannot_tell_the_site_by_its_spread():
    rng = np.random.default_rng(2)
    site = np.arange(1200) % 2
    X = rng.normal(size=(1200, 5)) * np.where(site == 1, 3.0, 1.0)[:, None]

    def auc(residual):
        forest = RandomForestClassifier(60, min_samples_leaf=3, random_state=0)
        return roc_auc_score(site, cross_val_predict(forest, residual, site, cv=3, method="predict_proba")[:, 1])

    assert auc(Residualizer().fit_transform(X, metadata=site)) > 0.9
    assert auc(Residualizer(scale=True).fit_transform(X, metadata=site)) <= 0.55


@pytest.mark.parametrize("preserve", [None, "m3"])
def test_inverse_transform_gives_the_features_back(preserve):
    X, dummies, _ = sites()
    metadata = np.column_stack([dummies, np.linspace(0, 1, len(X))])
    model = Residualizer("m0 + m1 + m2", preserve=preserve, scale=True)
    residual = model.fit_transform(X, metadata=metadata)
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-11)
    assert_allclose(model.transform(X, metadata=metadata), residual, atol=1e-12)


def test_preserved_effects_keep_their_size():
    X, dummies, _ = sites()
    group = (np.random.default_rng(3).random(len(X)) < 0.5).astype(float)
    metadata = np.column_stack([dummies, group])
    model = Residualizer("m0 + m1 + m2", preserve="m3", scale=True).fit(X + 10 * group[:, None], metadata=metadata)
    residual = model.transform(X + 10 * group[:, None], metadata=metadata)
    # In this site residuals grow 28-fold, and so does the error of the estimated effect, about 0.12: 3.4 from 10.
    # An effect that was rescaled as well would be 280.
    small = metadata[:, 1] == 1
    difference = residual[small & (group == 1)].mean(axis=0) - residual[small & (group == 0)].mean(axis=0)
    assert_allclose(difference, 10.0, atol=7.0)


def test_scale_of_columns_and_offsets_do_not_matter():
    X, dummies, _ = sites(n=500)
    reference = Residualizer(scale=True).fit_transform(X, metadata=dummies)
    units = np.array([1e-6, 1.0, 1e6])
    other = Residualizer(scale=True).fit_transform(X * 1e5, metadata=dummies * units + 1e3 * units)
    assert_allclose(other, 1e5 * reference, atol=1e5 * 1e-6)


def test_threads_change_no_bit(monkeypatch):
    X, dummies, _ = sites(n=30_000, d=3)
    out = []
    for threads in ("1", "3"):
        monkeypatch.setenv("RESIDMIX_NUM_THREADS", threads)
        out.append(Residualizer(scale=True).fit_transform(X, metadata=dummies))
    assert_array_equal(*out)


def test_a_feature_without_spread_somewhere_keeps_its_own_and_is_named():
    X, dummies, site = sites(n=500)
    X[site == 2, 1] = 0.3
    X[:, 3] = 7.0
    with (
        pytest.warns(DesignWarning, match=r"1 of 5 features \('x1'\)"),
        pytest.warns(LeakageWarning, match=r"features with repeated values \('x1'\)"),
    ):
        model = Residualizer(scale=True).fit(X, metadata=dummies)
    factor = model.scale_.factor(dummies)
    assert_array_equal(factor[:, [1, 3]], 1.0)
    assert factor[:, 0].max() > 1.5


@pytest.mark.filterwarnings("ignore:values repeat far outside")
@pytest.mark.parametrize("value", [0.0, 0.3, -1e6])
def test_a_feature_of_one_value_at_a_site_keeps_one_value_there(value):
    """There is no spread to bring anywhere; without that, the preserved effect would be blown up into the zeros."""
    rng = np.random.default_rng(0)
    site, age = rng.choice(list("abcde"), 300), rng.uniform(20, 80, 300)
    metadata = pd.DataFrame({"site": site, "age": age})
    X = rng.normal(size=(300, 4)) * np.where(site == "a", 2.0, 1.0)[:, None] + 0.02 * age[:, None]
    alone = Residualizer("site", preserve="age", scale=True).fit(X[site != "c"], metadata=metadata[site != "c"])
    X[site == "c", 0] = value
    model = Residualizer("site", preserve="age", scale=True)
    with (
        pytest.warns(DesignWarning, match=r"1 of 4 features .*\('x0' at site=c\)"),
        pytest.warns(LeakageWarning, match="'x0'"),
    ):
        residual = model.fit_transform(X, metadata=metadata)
    assert np.ptp(residual[site == "c", 0]) <= 1e-12 * max(abs(value), 1.0)
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-11 * max(abs(value), 1.0))
    # the other sites have the spreads that they have without it
    factor = model.scale_.factor(model.design_.matrix(metadata, preserved=True).dense)[:, 0]
    ratio = factor[site == "a"][0] / factor[site == "b"][0]
    other = alone.scale_.factor(alone.design_.matrix(metadata[site != "c"], preserved=True).dense)[:, 0]
    known = site[site != "c"]
    assert_allclose(ratio, other[known == "a"][0] / other[known == "b"][0], rtol=0.05)
    assert 1.5 < ratio < 2.5


def test_partial_fit_and_merge_refuse_since_they_see_no_rows_again():
    X, dummies, _ = sites(n=100)
    with pytest.raises(ValueError, match="don't work with scale=True"):
        Residualizer(scale=True).partial_fit(X, metadata=dummies)


def test_information_of_a_factors_own_columns_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    site, age = rng.integers(0, 6, 400), rng.normal(50.0, 8.0, 400)
    design = np.column_stack([np.eye(6)[site][:, 1:], age])
    mean, sd, u = design.mean(axis=0), design.std(axis=0), rng.gamma(1.0, size=(400, 3))
    a = np.column_stack([np.ones(400), (design - mean) / sd])
    few, all_pairs = Pairs.of(mean, sd, slice(0, 5), np.eye(6)[:, 1:]), Pairs.of(mean, sd)
    assert len(few.left) == 18 and len(all_pairs.left) == 28
    found = [
        pairs.turn.T @ pairs.information(u.T @ pairs.products(a, design)) @ pairs.turn for pairs in (few, all_pairs)
    ]
    assert_allclose(*found, rtol=1e-9, atol=1e-9)
    assert_allclose(found[0], np.einsum("nj,np,nq->jpq", u, a, a), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("formula", "preserve"), [("site", "tesla"), ("site + tesla", None), ("tesla + site", "age")])
def test_spreads_of_aliased_metadata_do_not_depend_on_the_order_of_levels_or_units(formula, preserve):
    X, _, site = sites(n=200)
    age = np.random.default_rng(1).uniform(20, 80, len(X))
    metadata = pd.DataFrame({"site": np.array(list("abcd"))[site], "tesla": np.where(site < 2, 3.0, 1.5), "age": age})
    other = metadata.assign(site=np.array(list("zmay"))[site], tesla=-2.0 * metadata["tesla"], age=age / 7 + 100)
    made = {"preserve": preserve, "scale": True, "check_leakage": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = Residualizer(formula, **made).fit_transform(X, metadata=metadata)
        two = Residualizer(formula, **made).fit_transform(X, metadata=other)
    assert_allclose(one / SITE_SD[site][:, None], two / SITE_SD[site][:, None], rtol=0, atol=1e-6)
    if preserve == "tesla":  # what both could explain is removed, as of the mean
        alone = Residualizer("site", scale=True, check_leakage=False).fit_transform(X, metadata=metadata)
        assert_allclose(one, alone, atol=1e-6)
