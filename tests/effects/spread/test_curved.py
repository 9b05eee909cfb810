"""Spreads that are smooth functions, and spreads of levels as random effects."""

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.effects.mean.reml import known_noise_ratios


def drawn(n=1500, d=8, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"age": rng.uniform(8, 90, n), "site": rng.choice(list("abcd"), n, p=[0.4, 0.3, 0.2, 0.1])})
    log_sd = (0.5 * np.sin(table["age"] / 15) + 0.3 * (table["site"] == "b")).to_numpy()
    X = np.sin(table["age"] / 12).to_numpy()[:, None] + rng.normal(size=(n, d)) * np.exp(log_sd)[:, None]
    return X, table, log_sd


def log_factor(model, table):
    return np.log(model.scale_.factor(model.design_.matrix(table, preserved=True).dense))


def missed(model, table, truth):
    gap = log_factor(model, table) - truth[:, None]
    return np.sqrt(np.mean((gap - gap.mean(axis=0)) ** 2))


def test_a_smooth_spread_is_nearer_to_the_truth_than_one_without_penalty():
    X, table, log_sd = drawn()
    curve = rm.Residualizer("site + s(age)", scale=True).fit(X, metadata=table)
    plain = rm.Residualizer("site + cr(age, df=9)", scale=True).fit(X, metadata=table)
    assert missed(curve, table, log_sd) < 0.9 * missed(plain, table, log_sd) < 0.1


def test_the_score_of_unpenalised_columns_is_zero_in_any_unit():
    X, table, _ = drawn(400, 3)
    model = rm.Residualizer("site + s(age, k=6)", scale=True).fit(X, metadata=table)
    again = rm.Residualizer("site + s(age, k=6)", scale=True).fit(3 * X + 100, metadata=table)
    np.testing.assert_allclose(log_factor(again, table), log_factor(model, table), atol=1e-6)
    # of what is left no level has another spread: the score of unpenalised columns is 0
    z = model.z_scores(X, metadata=table)
    for site in "abcd":
        own = (table["site"] == site).to_numpy()
        # one less the mean leverage, whatever the feature
        left = np.mean(z[own] ** 2, axis=0)
        assert 0.94 < left.mean() < 1.0 and np.ptp(left) < 1e-3


def test_of_equal_spreads_nothing_is_made():
    rng = np.random.default_rng(2)
    table = pd.DataFrame({"age": rng.uniform(8, 90, 600), "site": rng.choice([f"s{i}" for i in range(20)], 600)})
    X = rng.normal(size=(600, 10))
    calm = rm.Residualizer("site + s(age)", scale=True, shrinkage={"site": "blup"}).fit(X, metadata=table)
    plain = rm.Residualizer("site + cr(age, df=9)", scale=True).fit(X, metadata=table)
    assert log_factor(calm, table).std() < 0.25 * log_factor(plain, table).std()


def test_spreads_of_small_sites_are_shrunk_to_the_others():
    rng = np.random.default_rng(3)
    sizes = [3] * 15 + [80] * 15
    site = np.repeat([f"s{i:02d}" for i in range(30)], sizes)
    log_sd = 0.3 * rng.normal(size=30)
    X = rng.normal(size=(len(site), 20)) * np.exp(np.repeat(log_sd, sizes))[:, None]
    table = pd.DataFrame({"site": site})
    random = rm.Residualizer("site", scale=True, shrinkage={"site": "blup"}).fit(X, metadata=table)
    fixed = rm.Residualizer("site", scale=True).fit(X, metadata=table)
    small = np.repeat(np.array(sizes) == 3, sizes)
    truth = np.repeat(log_sd, sizes)

    def error(model, rows):
        gap = (log_factor(model, table) - truth[:, None])[rows]
        return np.sqrt(np.mean(gap**2))

    assert error(random, small) < 0.6 * error(fixed, small)
    assert error(random, ~small) == pytest.approx(error(fixed, ~small), rel=0.25)
    with pytest.raises(ValueError, match="need all rows"):
        random.merge(fixed)


def test_known_noise_has_the_restricted_likelihood_of_its_model():
    rng = np.random.default_rng(4)
    Z = rng.normal(size=(60, 9))
    X = Z @ (rng.normal(size=(9, 4)) * np.array([0, 0.2, 1, 3])) + rng.normal(size=(60, 4))
    parts = [slice(0, 4), slice(4, 9)]
    found = known_noise_ratios((Z.T @ Z)[None], Z.T @ X, parts)

    def deviance(j, gains):
        V = np.eye(60) + (Z * np.repeat(gains, [4, 5])) @ Z.T
        return X[:, j] @ np.linalg.solve(V, X[:, j]) + np.linalg.slogdet(V)[1]

    for j in range(4):
        for t in range(2):
            for factor in (0.7, 1.4):
                moved = found[:, j] * np.where(np.arange(2) == t, factor, 1.0)
                assert deviance(j, moved) >= deviance(j, found[:, j]) - 1e-9
                assert deviance(j, moved + (np.arange(2) == t) * 1e-3) >= deviance(j, found[:, j]) - 1e-9


@pytest.mark.filterwarnings("ignore::residmix.errors.ResidmixWarning")
@pytest.mark.parametrize("seed", [41, 43, 45, 50])
def test_more_columns_than_rows_are_no_failure_of_linear_algebra(seed):
    # two curves of nine columns each on a dozen rows: ratios run to their bound, where rounding exceeds the identity
    rng = np.random.default_rng(seed)
    metadata = pd.DataFrame({"age": rng.normal(50, 10, 12), "sex": rng.choice(["F", "M"], 12)})
    X = rng.normal(size=(12, 3))
    model = rm.Residualizer("s(age, by=sex) + sex", scale=True, check_leakage=False)
    assert np.isfinite(model.fit_transform(X, metadata=metadata)).all()
