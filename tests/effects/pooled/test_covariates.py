"""ComBatLS: site effects pooled where the spread also depends on covariates."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from residmix import Residualizer, load, save
from residmix.errors import ResidmixWarning

SITES = {"a": 260, "b": 180, "c": 90, "d": 40}
LS = {"preserve": "age", "scale": "site + age", "shrinkage": "eb", "check_leakage": False}


def people(d=12, seed=0, sizes=SITES, shift=1.0):
    """Rows whose spread grows with age; sites shift and stretch them, and saw people of different ages."""
    rng = np.random.default_rng(seed)
    site = np.repeat(list(sizes), list(sizes.values()))
    k = np.searchsorted(list(sizes), site)
    age = rng.uniform(20, 60, len(site)) + 12.0 * k
    effects = np.random.default_rng(1)
    shift, stretch = shift * effects.normal(size=(len(sizes), d)), np.exp(0.3 * effects.normal(size=(len(sizes), d)))
    slope = effects.uniform(0.01, 0.03, size=d)
    own = np.exp(slope * (age[:, None] - 50.0))
    X = 5.0 + 0.02 * age[:, None] + own * (shift[k] + stretch[k] * rng.normal(size=(len(site), d)))
    return X, pd.DataFrame({"site": site, "age": age}), slope


def spread_by_optimiser(e, A, leverage):
    """Slopes of the log variance on A = [1, ...] that maximise the restricted likelihood, by a general optimiser."""
    size = np.log(np.mean(e**2))

    def loss(g):
        eta = size + A @ g
        u = e**2 * np.exp(-eta)
        return 0.5 * np.mean(u + (1 - leverage) * eta), 0.5 * A.T @ ((1 - leverage) - u) / len(e)

    found = minimize(loss, np.zeros(A.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 500})
    return found.x


def comfam(X, site, age):
    """The update of ComBatFamily's comfam with a location and a log-linear scale model, written from its formulas."""
    levels = np.unique(site)
    dummies = (site[:, None] == levels).astype(float)
    n = dummies.sum(axis=0)
    # columns of ages are centred and scaled only for the optimiser's sake
    A = np.column_stack([dummies, (age - 50.0) / 20.0])
    coef = np.linalg.lstsq(A, X, rcond=None)[0]
    leverage = np.sum((A @ np.linalg.inv(A.T @ A)) * A, axis=1)
    e = X - A @ coef
    slopes = np.array([spread_by_optimiser(own, A, leverage)[-1] for own in e.T])
    sd = np.exp(0.5 * np.outer(A[:, -1], slopes))
    sd *= np.sqrt(np.mean((e / sd) ** 2, axis=0))
    mean = (n / n.sum()) @ coef[:-1] + np.outer(A[:, -1], coef[-1])
    z, out = (X - mean) / sd, np.empty_like(X)
    for k in levels:
        own = z[site == k]
        hat_g, hat_d, m = own.mean(axis=0), own.var(axis=0, ddof=1), len(own)
        bar, tau = hat_g.mean(), hat_g.var(ddof=1)
        a = (2 * hat_d.var(ddof=1) + hat_d.mean() ** 2) / hat_d.var(ddof=1)
        b = (hat_d.mean() * hat_d.var(ddof=1) + hat_d.mean() ** 3) / hat_d.var(ddof=1)
        g, v = hat_g, hat_d
        for _ in range(500):
            g = (m * tau * hat_g + v * bar) / (m * tau + v)
            v = (np.sum((own - g) ** 2, axis=0) / 2 + b) / (m / 2 + a - 1)
        out[site == k] = (own - g) / np.sqrt(v)
    return out * sd + mean, slopes / 40.0


def test_it_is_comfams_update_with_the_likelihoods_own_spread():
    X, metadata, _ = people()
    site, age = metadata["site"].to_numpy(), metadata["age"].to_numpy()
    model = Residualizer("site", **LS)
    harmonized = model.fit_transform(X, metadata=metadata) + X.mean(axis=0)
    expected, slopes = comfam(X, site, age)
    assert_allclose(model._found.stretched.spread.coef[-1], slopes, atol=1e-7)
    assert_allclose(harmonized, expected, atol=1e-5)  # the optimiser stops where its gradient is 1e-10
    plain = Residualizer("site", **{**LS, "scale": True}).fit_transform(X, metadata=metadata) + X.mean(axis=0)
    assert np.abs(plain - expected).max() > 0.5


def slopes_left(residual, metadata):
    """Slope of the log standard deviation on age within sites, after age's effect on the mean."""
    site, age = pd.get_dummies(metadata["site"]).to_numpy(float), metadata["age"].to_numpy()
    A = np.column_stack([site, age])
    e = residual - A @ np.linalg.lstsq(A, residual, rcond=None)[0]
    return np.linalg.lstsq(A, np.log(np.abs(e)), rcond=None)[0]


def test_sites_lose_their_spread_and_age_keeps_its_own():
    sizes = {k: 15 * n for k, n in SITES.items()}
    X, metadata, slope = people(sizes=sizes)
    residual = {
        kind: Residualizer("site", **{**LS, "scale": kind}).fit_transform(X, metadata=metadata)
        for kind in (True, "site + age")
    }
    found = {kind: slopes_left(own, metadata) for kind, own in residual.items()}
    assert_allclose(found["site + age"][-1], slope, atol=0.004)
    # sites whose people are older have the larger spread, which ComBat takes for theirs
    assert np.ptp(found["site + age"][:-1], axis=0).mean() < 0.35
    assert np.ptp(found[True][:-1], axis=0).mean() > 2 * np.ptp(found["site + age"][:-1], axis=0).mean()


def test_covariates_that_are_removed_lose_their_spread_too():
    X, metadata, slope = people(sizes={k: 40 * n for k, n in SITES.items()}, shift=0.0)
    residual = Residualizer("site + age", **{**LS, "preserve": None}).fit_transform(X, metadata=metadata)
    # the error of a slope of log |e| is 1.11 / (11.5 sqrt(22,800)) = 0.0006
    assert np.abs(slopes_left(residual, metadata)[-1]).max() < 0.003 < slope.min()


@pytest.mark.parametrize("formula", ["site", "site + age"])
@pytest.mark.parametrize("reference", [None, "b"])
def test_it_is_undone_and_later_rows_are_as_those_of_the_fit(formula, reference, tmp_path):
    X, metadata, _ = people()
    options = {**LS, "preserve": "age" if formula == "site" else None, "reference": reference}
    model = Residualizer(formula, **options).fit(X, metadata=metadata)
    residual = model.transform(X, metadata=metadata)
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-11)
    some = np.random.default_rng(0).permutation(len(X))[:50]
    assert_allclose(model.transform(X[some], metadata=metadata.iloc[some]), residual[some], atol=1e-12)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert_array_equal(again.transform(X, metadata=metadata), residual)
    single = model.transform(X.astype(np.float32), metadata=metadata)
    assert single.dtype == np.float32
    assert_allclose(single, residual, atol=1e-4)


def test_a_reference_site_stays_as_it_is():
    X, metadata, _ = people()
    model = Residualizer("site", **LS, reference="b").fit(X, metadata=metadata)
    at_b = metadata.assign(site="b")
    harmonized = model.inverse_transform(model.transform(X, metadata=metadata), metadata=at_b)
    own = (metadata["site"] == "b").to_numpy()
    assert_allclose(harmonized[own], X[own], atol=1e-11)
    assert np.abs(harmonized[~own] - X[~own]).max() > 1.0


def test_a_later_site_gets_what_the_fit_gave_the_same_rows():
    """Rows of a known site under a new name have its mean and variance, so that adapt must find its effects."""
    X, metadata, _ = people()
    model = Residualizer("site", **LS, on_unknown="mean").fit(X, metadata=metadata)
    before = model.transform(X, metadata=metadata)
    own = (metadata["site"] == "b").to_numpy()
    later = metadata[own].assign(site="new")
    assert np.abs(model.transform(X[own], metadata=later) - before[own]).max() > 0.5
    half = np.count_nonzero(own) // 2
    for some in (slice(0, half), slice(half, None)):
        model.adapt(X[own][some], metadata=later[some])
    assert_allclose(model.transform(X[own], metadata=later), before[own], atol=1e-9)
    assert_allclose(model.inverse_transform(before[own], metadata=later), X[own], atol=1e-9)
    assert_array_equal(model.transform(X, metadata=metadata), before)


def test_named_terms_are_all_there_is():
    """Naming the site alone is ComBat; naming every term, without pooling, is scale=True."""
    X, metadata, _ = people()
    combat = {**LS, "scale": True}
    assert_array_equal(
        Residualizer("site", **{**LS, "scale": "C(site)"}).fit_transform(X, metadata=metadata),
        Residualizer("site", **combat).fit_transform(X, metadata=metadata),
    )
    plain = {"preserve": "age", "check_leakage": False}
    assert_allclose(
        Residualizer("site", scale="site + age", **plain).fit_transform(X, metadata=metadata),
        Residualizer("site", scale=True, **plain).fit_transform(X, metadata=metadata),
        atol=1e-12,
    )
    one = Residualizer("site + age", scale="site", check_leakage=False).fit(X, metadata=metadata)
    assert_array_equal(one.scale_.coef[-1], 0.0)
    # for one factor the estimates are the sample variances of its levels, but for what the slope of age takes
    e = Residualizer("site + age", check_leakage=False).fit_transform(X, metadata=metadata)
    expected = np.log([e[metadata["site"] == k].std(axis=0) for k in SITES])
    assert_allclose(
        np.diff(np.vstack([np.zeros(len(e.T)), one.scale_.coef[:-1]]), axis=0), np.diff(expected, axis=0), atol=0.02
    )


def test_curves_of_the_spread_are_smooth_where_the_mean_is():
    X, metadata, slope = people(sizes={k: 4 * n for k, n in SITES.items()})
    model = Residualizer("site", preserve="s(age)", scale="site + s(age)", shrinkage="eb", check_leakage=False)
    residual = model.fit_transform(X, metadata=metadata)
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-10)
    assert_allclose(slopes_left(residual, metadata)[-1], slope, atol=0.008)


@pytest.mark.parametrize("covariance", [True, "scores"])
def test_covariances_come_after_it(covariance):
    X, metadata, _ = people()
    model = Residualizer("site", **LS, covariance=covariance)
    residual = model.fit_transform(X, metadata=metadata)
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-10)
    assert_allclose(model.transform(X, metadata=metadata), residual, atol=1e-11)


def test_robust_moments_leave_odd_rows_aside():
    X, metadata, _ = people()
    odd = X.copy()
    odd[:8] += 50.0
    options = {**LS, "shrinkage": "eb-robust"}
    quiet = Residualizer("site", **options).fit_transform(X, metadata=metadata)
    loud = Residualizer("site", **options).fit_transform(odd, metadata=metadata)
    moments = Residualizer("site", **LS)
    rest = slice(8, None)
    moved = np.abs(loud - quiet)[rest].mean()
    by_moments = np.abs(
        moments.fit_transform(odd, metadata=metadata)[rest]
        - Residualizer("site", **LS).fit_transform(X, metadata=metadata)[rest]
    ).mean()
    assert moved < 0.7 * by_moments


def test_what_cannot_be_is_told():
    X, metadata, _ = people()
    metadata = metadata.assign(scanner=np.where(np.arange(len(X)) % 2, "s", "t"))
    with pytest.raises(ValueError, match="must name what shrinkage='eb' pools: add 'site'"):
        Residualizer("site + age", scale="age", shrinkage="eb").fit(X, metadata=metadata)
    with pytest.raises(ValueError, match="names no term that is removed"):
        Residualizer("site", preserve="age", scale="age").fit(X, metadata=metadata)
    with pytest.raises(ValueError, match=r"scale: unknown term 'agee' - did you mean 'age'\?"):
        Residualizer("site", preserve="age", scale="site + agee", shrinkage="eb").fit(X, metadata=metadata)
    with pytest.raises(ValueError, match="works with one factor pooled"):
        Residualizer(
            "site + scanner", preserve="age", scale="site + scanner + age", shrinkage={"site": "eb", "scanner": "eb"}
        ).fit(X, metadata=metadata)
    with pytest.raises(ValueError, match="scale='' names no term"):
        Residualizer("site", scale="").fit(X, metadata=metadata)
    model = Residualizer("site", **LS).fit(X, metadata=metadata)
    with pytest.raises(ValueError, match="partial_fit and merge don't work with scale='site"):
        model.partial_fit(X, metadata=metadata)


def test_a_feature_that_is_constant_at_a_site_is_left_alone_and_named():
    X, metadata, _ = people()
    X[metadata["site"] == "d", 3] = 2.0
    with pytest.warns(ResidmixWarning, match="'x3' at d|constant within a level"):
        model = Residualizer("site", **LS).fit(X, metadata=metadata)
    residual = model.transform(X, metadata=metadata)
    assert_allclose(residual[:, 3] - X[:, 3], (residual[:, 3] - X[:, 3])[0], atol=1e-11)
    assert np.isfinite(residual).all()
