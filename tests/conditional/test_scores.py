"""Centiles of a mixture given metadata."""

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.stats import kstest, norm

import residmix as rm


def drawn(n=1500, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"site": rng.choice(list("ab"), n), "age": rng.uniform(20, 80, n)})
    skewed = rng.gamma(2.0, 1.0, size=(n, 2))
    mean = np.sin(table["age"] / 10) + 2.0 * (table["site"] == "b")
    return skewed + mean.to_numpy()[:, None], table


def test_scores_of_skewed_features_are_normal_for_later_rows():
    X, table = drawn()
    later, profile = drawn(seed=1)
    model = rm.ResidualMixture(3, formula="site + s(age)", random_state=0).fit(X, metadata=table)
    z = model.z_scores(later, metadata=profile)
    centiles = model.centiles(later, metadata=profile)
    plain = rm.Residualizer("site + s(age)").fit(X, metadata=table).z_scores(later, metadata=profile)
    for j in range(2):
        assert kstest(z[:, j], "norm").statistic < 0.06 < 0.08 < kstest(plain[:, j], "norm").statistic
    np.testing.assert_allclose(centiles, 100 * norm.cdf(z), atol=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"distribution": "t"}, {"covariance_type": "diag"}, {"estimation": "joint", "gating": "metadata"}]
)
@pytest.mark.slow
def test_a_centile_is_the_integral_of_the_density_up_to_the_value(options):
    X, table = drawn(400)
    model = rm.ResidualMixture(2, formula="site + age", random_state=0, **options).fit(X[:, :1], metadata=table)
    centiles = model.centiles(X[:3, :1], metadata=table[:3])
    for row in range(3):
        profile = table[row : row + 1]

        def density(x, profile=profile):
            return float(np.exp(model.score_samples(np.array([[x]]), metadata=profile))[0])

        below = quad(density, -40, X[row, 0], limit=400, points=[X[:, 0].min()])[0]
        assert centiles[row, 0] == pytest.approx(100 * below, abs=0.05)


@pytest.mark.parametrize("covariance_by", [None, "site"])
def test_scores_with_effects_by_component_are_sums_over_scipys_components(covariance_by):
    # each component's effects came off all at once: an array of (K, n, d)
    X, table = drawn(300)
    settings = {"effects": "by-component", "covariance_by": covariance_by, "random_state": 0}
    model = rm.ResidualMixture(2, formula="site + age", **settings).fit(X, metadata=table)
    for row in (0, 7, 200):
        at = model.at(table[row : row + 1])
        spread = np.sqrt(np.diagonal(at.covariances_, axis1=1, axis2=2))
        expected = at.weights_ @ norm.cdf(X[row], at.means_, spread)
        found = model.centiles(X[row : row + 1], metadata=table[row : row + 1])
        np.testing.assert_allclose(found, 100 * expected[None], atol=1e-8)
    z = model.z_scores(X, metadata=table)
    assert z.shape == X.shape
    assert np.abs(z.mean(axis=0)).max() < 0.1 and np.abs(z.std(axis=0) - 1).max() < 0.1


def test_far_values_keep_their_digits_and_noise_has_no_scores():
    X, table = drawn(400)
    model = rm.ResidualMixture(1, formula="site").fit(X, metadata=table)
    far = np.tile(X.mean(axis=0) + 15 * X.std(axis=0), (1, 1))
    assert np.isfinite(model.z_scores(far, metadata=table[:1])).all()
    noisy = rm.ResidualMixture(1, formula="site", noise=True).fit(X, metadata=table)
    with pytest.raises(ValueError, match="noise=True"):
        noisy.centiles(X, metadata=table)
