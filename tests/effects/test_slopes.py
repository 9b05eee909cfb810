"""Random intercepts and slopes of subjects: against statsmodels, and the restricted likelihood written out densely."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from numpy.testing import assert_allclose, assert_array_equal

from residmix import Residualizer, load, save
from residmix.errors import ResidmixWarning

SCANNERS = np.array(["a", "b", "c"])
BOTH = {"subject": "blup", "time:subject": "blup"}
LINES = "time + subject + time:subject"


def visits(n=40, d=3, per=5, seed=0, slope=0.6, correlation=-0.4):
    """Subjects with lines of their own, seen at several times by three scanners."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(n), per)
    time = np.tile(np.arange(float(per)), n) + rng.uniform(0, 1, n * per)
    scanner = rng.choice(SCANNERS, n * per)
    root = np.linalg.cholesky(np.array([[1.5, correlation * 1.2 * slope], [correlation * 1.2 * slope, slope**2]]))
    u = np.einsum("rs,nsd->nrd", root, rng.normal(size=(n, 2, d)))
    X = u[subject, 0] + (u[subject, 1] + 0.3) * time[:, None] + rng.normal(size=(n * per, d))
    X += 0.7 * np.searchsorted(SCANNERS, scanner)[:, None]
    return X, pd.DataFrame({"subject": [f"s{k:03d}" for k in subject], "time": time, "scanner": scanner}), subject


def fitted(X, metadata, preserve=LINES, shrinkage=BOTH, **options):
    model = Residualizer("scanner", preserve=preserve, shrinkage=shrinkage, check_leakage=False, **options)
    return model.fit(X, metadata=metadata)


def matrices(metadata):
    time = metadata["time"].to_numpy()
    return (
        np.column_stack([np.ones(len(time)), time, *(metadata["scanner"] == k for k in SCANNERS[1:])]).astype(float),
        np.column_stack([np.ones(len(time)), time]),
    )


@pytest.mark.slow
def test_effects_and_variances_are_those_of_statsmodels():
    X, metadata, subject = visits()
    model, (F, Z) = fitted(X, metadata), matrices(metadata)
    found, time = model.random_effects_, metadata["time"].to_numpy()
    for j in range(X.shape[1]):
        peer = sm.MixedLM(X[:, j], F, groups=subject, exog_re=Z).fit(reml=True)
        # its optimiser stops at 1e-5 of its parameters
        assert_allclose(model.coef_[:, j], peer.fe_params[2:], atol=2e-5)
        assert_allclose(found["subject"].noise[j], peer.scale, rtol=2e-4)
        assert_allclose(1.0 / found["time:subject"].ratio[j], peer.cov_re[1, 1] / peer.scale, rtol=2e-3)
        centred = np.array([[1.0, time.mean()], [0.0, 1.0]]) @ peer.cov_re @ np.array([[1.0, 0.0], [time.mean(), 1.0]])
        assert_allclose(1.0 / found["subject"].ratio[j], centred[0, 0] / peer.scale, rtol=2e-3)
        expected = centred[0, 1] / np.sqrt(centred[0, 0] * centred[1, 1])
        assert_allclose(found["time:subject"].correlation[j], expected, atol=2e-3)
        slopes = np.array([peer.random_effects[k].iloc[1] for k in range(40)])
        assert_allclose(found["time:subject"].effects[:, j], slopes, atol=2e-3)


def deviance(x, F, blocks, gamma):
    """Twice the negative restricted log-likelihood of one feature, profiled over the noise, from n x n matrices."""
    V = np.eye(len(x)) + sum(z @ gamma @ z.T for z in blocks)
    inverse = np.linalg.inv(V)
    inner = F.T @ inverse @ F
    rest = x - F @ np.linalg.solve(inner, F.T @ inverse @ x)
    return (len(x) - F.shape[1]) * np.log(rest @ inverse @ rest) + np.linalg.slogdet(V)[1] + np.linalg.slogdet(inner)[1]


def test_the_covariance_maximises_the_restricted_likelihood():
    X, metadata, subject = visits(n=25)
    found, (F, Z) = fitted(X, metadata).random_effects_, matrices(metadata)
    Z[:, 1] -= Z[:, 1].mean()
    blocks = [np.where((subject == k)[:, None], Z, 0.0) for k in range(25)]
    for j in range(X.shape[1]):
        sizes = [1.0 / found["subject"].ratio[j], 1.0 / found["time:subject"].ratio[j]]
        beside = found["time:subject"].correlation[j] * np.sqrt(np.prod(sizes))
        gamma = np.array([[sizes[0], beside], [beside, sizes[1]]])
        best = deviance(X[:, j], F, blocks, gamma)
        for nudge in (
            [1.01, 1, 1],
            [0.99, 1, 1],
            [1, 1.01, 1],
            [1, 0.99, 1],
            [1, 1, 1.02],
            [1, 1, 0.98],
            [1.5, 0.7, 1],
        ):
            other = gamma * np.array([[nudge[0], nudge[2]], [nudge[2], nudge[1]]])
            assert best < deviance(X[:, j], F, blocks, other)


def test_neither_the_origin_nor_the_unit_of_time_matters():
    X, metadata, _ = visits()
    expected = fitted(X, metadata).transform(X, metadata=metadata)
    for change in (lambda t: t + 2000.0, lambda t: 365.25 * t - 40.0):
        other = metadata.assign(time=change(metadata["time"]))
        # as near as the optimiser goes
        assert_allclose(fitted(X, other).transform(X, metadata=other), expected, atol=1e-5)
    assert (
        np.abs(
            fitted(X, metadata, "time + subject", {"subject": "blup"}).transform(X, metadata=metadata) - expected
        ).max()
        > 0.02
    )


def test_subjects_whose_slopes_are_more_alike_than_noise_would_make_them_have_intercepts_only():
    X, metadata, subject = visits(slope=1e-6)
    time = metadata["time"].to_numpy()
    for k in range(40):
        own = subject == k
        t = time[own] - time[own].mean()
        X[own] -= np.outer(t, t @ X[own] / (t @ t)) - 0.3 * t[:, None]
    lines, alone = fitted(X, metadata), fitted(X, metadata, "time + subject", {"subject": "blup"})
    # not none at all: slopes that are a multiple of the intercepts may fit a little better
    assert (lines.random_effects_["time:subject"].ratio > 1e3).all()
    assert_allclose(lines.coef_, alone.coef_, atol=5e-3)
    assert_allclose(lines.random_effects_["subject"].ratio, alone.random_effects_["subject"].ratio, rtol=0.01)


def test_parts_merge_and_features_with_gaps_are_fitted_on_their_own_rows():
    X, metadata, subject = visits()
    whole = fitted(X, metadata)
    first = subject < 20
    levels = sorted(set(metadata["subject"]))
    preserve = f"time + C(subject, levels={levels}) + time:C(subject, levels={levels})"
    formula = "C(scanner, levels=['a', 'b', 'c'])"
    shrinkage = {"subject": "blup", f"time:C(subject, levels={levels})": "blup"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResidmixWarning)  # of subjects that a part doesn't have
        one, two = (
            Residualizer(formula, preserve=preserve, shrinkage=shrinkage, check_leakage=False).fit(
                X[k], metadata=metadata[k]
            )
            for k in (first, ~first)
        )
    assert_allclose(one.merge(two).coef_, whole.coef_, atol=1e-6)
    gaps = X.copy()
    gaps[::7, 1] = np.nan
    known = ~np.isnan(gaps[:, 1])
    assert_allclose(fitted(gaps, metadata).coef_[:, 1], fitted(X[known], metadata[known]).coef_[:, 1], atol=1e-6)
    assert_allclose(fitted(gaps, metadata).coef_[:, 0], whole.coef_[:, 0], atol=1e-6)


def long_combat(X, metadata, subject):
    """Longitudinal ComBat with random lines (Beer et al. 2020): statsmodels' REML fit, then ComBat's update."""
    F, Z = matrices(metadata)
    scanner = metadata["scanner"].to_numpy()
    n = np.array([np.count_nonzero(scanner == k) for k in SCANNERS])
    gamma, sigma, fits = np.empty((3, X.shape[1])), np.empty(X.shape[1]), np.empty_like(X)
    for j, x in enumerate(X.T):
        peer = sm.MixedLM(x, F, groups=subject, exog_re=Z).fit(reml=True)
        shift = np.array([0.0, *peer.fe_params[2:]])
        gamma[:, j] = shift - n @ shift / n.sum()
        sigma[j], fits[:, j] = np.sqrt(peer.scale), peer.fittedvalues
    own = np.searchsorted(SCANNERS, scanner)
    z = (X - fits + gamma[own]) / sigma
    out = np.empty_like(X)
    for k in range(3):
        rows, hat = z[own == k], (gamma / sigma)[k]
        variance = rows.var(axis=0, ddof=1)
        bar, tau2 = hat.mean(), hat.var(ddof=1)
        mean, size = variance.mean(), variance.var(ddof=1)
        shape, rate = (2 * size + mean**2) / size, (mean * size + mean**3) / size
        g, s2 = hat, variance
        for _ in range(300):
            g = (n[k] * tau2 * hat + s2 * bar) / (n[k] * tau2 + s2)
            s2 = (rate + 0.5 * np.sum((rows - g) ** 2, axis=0)) / (n[k] / 2 + shape - 1)
        out[own == k] = sigma / np.sqrt(s2) * (rows - g) + (fits - gamma[own])[own == k]
    return out


@pytest.mark.slow
def test_with_pooled_scanners_it_is_longitudinal_combat(tmp_path):
    X, metadata, subject = visits(d=5)
    model = Residualizer(
        "scanner", preserve=LINES, scale=True, shrinkage={"scanner": "eb", **BOTH}, check_leakage=False
    )
    residual = model.fit_transform(X, metadata=metadata)
    expected = long_combat(X, metadata, subject)
    assert_allclose(residual - residual.mean(axis=0), expected - expected.mean(axis=0), atol=2e-3)
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-10)
    save(model, tmp_path / "m")
    assert_array_equal(load(tmp_path / "m").transform(X, metadata=metadata), residual)
    plain = Residualizer(
        "scanner", preserve="time + subject", scale=True, shrinkage={"scanner": "eb", "subject": "blup"}
    ).fit_transform(X, metadata=metadata)
    assert np.abs(plain - residual).max() > 0.05


def test_what_lines_need_is_told():
    X, metadata, _ = visits(n=10)
    metadata = metadata.assign(reader=np.where(np.arange(len(X)) % 2, "r", "q"))
    with pytest.raises(ValueError, match="random slopes, which need random intercepts"):
        fitted(X, metadata, shrinkage={"time:subject": "blup"})
    with pytest.raises(ValueError, match="random slopes, which need random intercepts"):
        fitted(X, metadata, LINES + " + reader", {**BOTH, "reader": "blup"})
    with pytest.raises(ValueError, match="the number's own effect"):
        fitted(X, metadata, "subject + time:subject")
    with pytest.raises(ValueError, match="random slopes don't work with s"):
        fitted(X, metadata, "s(time) + time + subject + time:subject")
    with pytest.raises(ValueError, match="the spread can't depend on random slopes"):
        fitted(X, metadata, scale=True)
    assert np.isfinite(fitted(X, metadata, scale="scanner").transform(X, metadata=metadata)).all()
