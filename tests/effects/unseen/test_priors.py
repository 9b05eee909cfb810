"""What is expected of a level's spread, against the distribution that it comes from."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import residmix as rm
from residmix.effects.unseen.priors import log_variance


@pytest.mark.parametrize("degrees", [1.0, 3.0, 12.0])
def test_half_the_log_of_a_variance_estimate_has_the_mean_and_the_variance_of_a_chi_square(degrees):
    bias, weight = log_variance(np.array([degrees]))
    chi2 = stats.chi2(degrees)
    mean = chi2.expect(lambda x: 0.5 * np.log(x / degrees))
    variance = chi2.expect(lambda x: (0.5 * np.log(x / degrees) - mean) ** 2)
    assert bias[0] == pytest.approx(mean, abs=1e-6)
    assert 1 / weight[0] == pytest.approx(variance, rel=1e-5)


def test_the_spread_of_a_new_level_is_the_unbiased_estimate_drawn_to_the_known_ones(rng):
    site = np.repeat([f"a{i}" for i in range(12)], 40)
    wide = np.repeat(np.exp(rng.normal(0, 0.5, 12)), 40)[:, None]
    known = pd.DataFrame(wide * rng.normal(size=(480, 3)), columns=["x", "y", "z"]).assign(site=site)
    new = pd.DataFrame(3 * rng.normal(size=(4, 3)), columns=["x", "y", "z"]).assign(site="new")
    levels = rm.Residualizer("site", scale=True).fit(known).adapt(new).new_levels_["site"]
    # half the mean of the log of a chi-square over its degrees of freedom, and its variance, by integration
    chi2 = stats.chi2(3)
    bias = chi2.expect(lambda x: 0.5 * np.log(x / 3))
    noise = chi2.expect(lambda x: (0.5 * np.log(x / 3) - bias) ** 2)
    estimate = 0.5 * np.log(levels.totals.within[0] / 3 / levels.spread.variance) - bias
    prior = levels.spread.prior
    share = 1 / (1 + noise * prior.ratio)
    expected = prior.mean + share * (estimate - prior.mean)
    # row 0 is the new level
    np.testing.assert_allclose(levels.spreads(shrink=True)[0], np.ravel(expected), rtol=1e-4)
