"""Normative scores: standard normal at every profile, for rows that the fit hasn't seen."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest, norm

import residmix as rm


def population(n, seed, d=6):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {"age": rng.uniform(8, 90, n), "site": rng.choice(list("abc"), n), "case": rng.integers(0, 2, n)}
    )
    spread = np.exp(table["age"] / 90 - 0.4 * (table["site"] == "c")).to_numpy()
    mean = np.log(table["age"]).to_numpy() + (table["site"] == "b").to_numpy()
    return mean[:, None] + spread[:, None] * rng.normal(size=(n, d)), table


def test_scores_of_later_rows_are_standard_normal_at_every_age_and_site():
    X, table = population(4000, 0)
    norms = rm.Residualizer("site + s(age)", scale=True).fit(X, metadata=table)
    later, profile = population(3000, 1)
    z = norms.z_scores(later, metadata=profile)
    plain = rm.Residualizer("site + s(age)").fit(X, metadata=table).z_scores(later, metadata=profile)
    for part in (profile["age"] < 25, profile["age"] > 70, profile["site"] == "c"):
        own = part.to_numpy()
        assert kstest(z[own].ravel(), "norm").statistic < 0.02
        # a control: one spread for all ages and sites isn't enough
        assert kstest(plain[own].ravel(), "norm").statistic > 0.04
    np.testing.assert_allclose(norms.centiles(later, metadata=profile), 100 * norm.cdf(z))


def test_scores_are_residuals_over_their_standard_deviation():
    X, table = population(300, 0)
    model = rm.Residualizer("site + s(age)").fit(X, metadata=table)
    z = model.z_scores(X, metadata=table)
    degrees = len(X) - 1 - 2 - model.edf_.to_numpy()[:, 0]
    np.testing.assert_allclose(np.sum(z**2, axis=0), degrees, rtol=1e-10)
    assert model.z_scores(X.astype(np.float32), metadata=table).dtype == np.float32


def test_scores_go_to_a_file_and_keep_gaps(tmp_path):
    X, table = population(300, 0)
    X[5, 2] = np.nan
    model = rm.Residualizer("site + age", scale=True).fit(X, metadata=table)
    path = model.z_scores(X, metadata=table, out=tmp_path / "z.parquet")
    z = model.z_scores(X, metadata=table)
    assert np.isnan(z[5, 2]) and np.isnan(z).sum() == 1
    np.testing.assert_array_equal(pd.read_parquet(path).to_numpy(), z)


def test_what_is_preserved_stays_in_the_scores():
    X, table = population(2000, 0)
    X[:, 0] += 2.0 * table["case"]
    model = rm.Residualizer("site + s(age)", preserve="case").fit(X, metadata=table)
    z = model.z_scores(X, metadata=table)
    case = table["case"].to_numpy() == 1
    assert z[case, 0].mean() - z[~case, 0].mean() > 0.7
    assert abs(z[case, 1].mean() - z[~case, 1].mean()) < 0.15


def test_a_new_site_has_scores_after_few_of_its_rows():
    X, table = population(2000, 0)
    model = rm.Residualizer("site + s(age)", scale=True, shrinkage={"site": "blup"}, on_unknown="shrink")
    model.fit(X, metadata=table)
    later, profile = population(400, 1)
    later, profile = later + 0.8, profile.assign(site="d")
    before = np.abs(model.z_scores(later, metadata=profile).mean())
    model.adapt(later[:60], metadata=profile[:60])
    after = model.z_scores(later[60:], metadata=profile[60:])
    assert np.abs(after.mean()) < 0.35 * before
    assert 0.85 < after.std() < 1.15


def test_features_that_do_not_vary_have_no_scores():
    X, table = population(200, 0)
    X[:, 1] = 3.0
    z = rm.Residualizer("site").fit(X, metadata=table).z_scores(X, metadata=table)
    assert np.isnan(z[:, 1]).all() and np.isfinite(np.delete(z, 1, axis=1)).all()


def test_regressors_have_no_scores():
    from sklearn.linear_model import LinearRegression

    X, table = population(200, 0)
    model = rm.Residualizer("age", estimator=LinearRegression()).fit(X, metadata=table)
    with pytest.raises(ValueError, match="z_scores and centiles don't work"):
        model.z_scores(X, metadata=table)
