"""Common axes: a step turns each pair once, and fits end where turning on changes nothing."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import residmix as rm
from residmix.mixture.families.orientation import common_axes


def objective(found, W, n):
    _, log_det = np.linalg.slogdet(found)
    return float(n @ (log_det + np.trace(np.linalg.solve(found, W), axis1=1, axis2=2)))


def turned_on(W, n, volume, found, steps):
    for _ in range(steps):
        found = common_axes(W, n, volume, found)
    return found


@pytest.mark.parametrize(("kind", "volume"), [("EVE", "E"), ("VVE", "V")])
def test_fits_end_at_the_axes_that_the_step_would_reach_in_the_end(kind, volume):
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    widths = np.exp(rng.normal(size=(3, 4)))
    label = rng.integers(0, 3, 600)
    X = 8 * rng.normal(size=(3, 4))[label] + (widths[label] * rng.normal(size=(600, 4))) @ axes.T
    model = rm.GaussianMixture(3, covariance_type=kind, reg_covar=0.0, tol=1e-10, random_state=0).fit(X)
    share = model.predict_proba(X)
    n = share.sum(axis=0)
    means = share.T @ X / n[:, None]
    W = np.stack([(share[:, k, None] * (X - means[k])).T @ (X - means[k]) / n[k] for k in range(3)])
    there = objective(model.covariances_, W, n)
    whole = turned_on(W, n, volume, model.covariances_, 500)
    assert there - objective(whole, W, n) < 1e-6 * 600  # less than what the fit's own tolerance leaves
    assert_allclose(model.covariances_, whole, atol=1e-3 * np.abs(whole).max())
    # the control: one step from elsewhere isn't there yet
    spherical = np.repeat(np.eye(4)[None], 3, axis=0)
    assert objective(common_axes(W, n, volume, spherical), W, n) - there > 1e-3
