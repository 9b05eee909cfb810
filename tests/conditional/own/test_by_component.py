"""Effects by component: the density is the formula's, the fit is a maximum, and shared effects are a special case."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

import residmix as rm
from residmix.conditional.given import components_given
from residmix.em.loop import run_em
from residmix.errors import DesignWarning
from residmix.mixture.given.by_component import steep
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import make_params
from residmix.rows.rows import ArrayRows

# with a gate by the same factor little else says which component of a site is which
pytestmark = pytest.mark.filterwarnings("ignore:labels can't be matched")

SLOPES = np.array([[0.2, -0.1], [-0.2, 0.1]])


def crossing(seed=0, n=800, slopes=SLOPES):
    """Two clusters whose features change with age in opposite ways."""
    rng = np.random.default_rng(seed)
    cluster, age = rng.integers(0, 2, n), rng.normal(50, 10, n)
    X = np.array([[0.0, 0.0], [1.0, 2.0]])[cluster] + slopes[cluster] * (age[:, None] - 50)
    return X + 0.7 * rng.normal(size=(n, 2)), age, cluster


def sites(seed=0, n=1200, scale=1.5):
    """Three clusters, three sites, a shift of each cluster at each site; proportions differ between sites."""
    rng = np.random.default_rng(seed)
    site = rng.integers(0, 3, n)
    shares = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5]])
    cluster = (rng.random(n)[:, None] > shares[site].cumsum(axis=1)[:, :-1]).sum(axis=1)
    shift = scale * rng.normal(size=(3, 3, 2)) * (np.arange(3) > 0)[:, None, None]
    X = 6.0 * np.array([[0, 0], [1, 0], [0, 1]])[cluster] + shift[site, cluster] + rng.normal(size=(n, 2))
    return X, np.array(["a", "b", "c"])[site], cluster


def own(K=2, **options):
    return rm.ResidualMixture(K, **{"estimation": "joint", "effects": "by-component", "random_state": 0} | options)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical", "VEV", "EEI"])
def test_the_density_is_the_formulas_and_the_attributes_say_so(kind):
    X, site, cluster = sites(n=400)
    A = np.stack([site == "b", site == "c"], axis=1).astype(float)
    model = own(3, covariance_type=kind, gating="metadata", labels_init=cluster).fit(X, metadata=site)
    assert model.coef_.shape == (3, 2, 2) and model.intercept_.shape == (2,)
    means = model.intercept_ + model.means_ + np.einsum("np,kpd->nkd", A, model.coef_)
    logits = A @ model.gate_coef_.T + model.gate_intercept_
    prior = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    given = components_given(model, site)
    assert_allclose(given.means, means, atol=1e-9)
    assert_allclose(np.exp(given.log_weights), prior, atol=1e-12)
    joint = np.log(prior)
    for k in range(3):
        joint[:, k] += multivariate_normal(np.zeros(2), given.covariances[0, k]).logpdf(X - means[:, k])
    density = np.logaddexp.reduce(joint, axis=1)
    assert_allclose(model.score_samples(X, metadata=site), density, rtol=1e-9, atol=1e-9)
    assert_allclose(model.score(X, metadata=site), model.lower_bound_, rtol=1e-9)
    share = np.exp(joint - density[:, None])
    assert_allclose(model.predict_proba(X, metadata=site), share, atol=1e-9)
    assert (model.predict(X, metadata=site) == joint.argmax(axis=1)).all()
    assert_allclose(model.weights_ @ model.means_, 0, atol=1e-9)
    # residuals are the rows less their expected effect about the average metadata, and have mean zero
    residual = model.residuals(X, metadata=site)
    effect = np.einsum("nk,np,kpd->nd", share, A - A.mean(axis=0), model.coef_)
    assert_allclose(np.ptp(X - effect - residual, axis=0), 0, atol=1e-8)
    assert_allclose(residual.mean(axis=0), 0, atol=1e-3)
    assert_allclose(model.at(site[:1]).means_, means[0], atol=1e-9)
    # 2 gates of 3, 3 components of 2 coefficients and a mean in 2 features, the covariances
    covariances = {"full": 9, "tied": 3, "diag": 6, "spherical": 3, "VEV": 7, "EEI": 2}[kind]
    parameters = 6 + 3 * 3 * 2 + covariances
    assert_allclose(model.aic(X, metadata=site), -2 * density.sum() + 2 * parameters, rtol=1e-9)
    assert_allclose(model.bic(X, metadata=site), -2 * density.sum() + parameters * np.log(len(X)), rtol=1e-9)


@pytest.mark.parametrize("gating", ["constant", "metadata"])
@pytest.mark.parametrize("kind", ["full", "tied", "VVI", "VEE"])
def test_it_is_never_less_likely_than_shared_effects_and_never_falls(kind, gating):
    for seed in range(2):
        X, site, _ = sites(seed, n=400, scale=0.6)
        begin = 6.0 * np.array([[0, 0], [1, 0], [0, 1]]) - X.mean(axis=0)
        options = {"covariance_type": kind, "gating": gating, "means_init": begin, "reg_covar": 0.0}
        shared = rm.ResidualMixture(3, estimation="joint", **options).fit(X, metadata=site)
        free = own(3, **options).fit(X, metadata=site)
        assert free.lower_bound_ >= shared.lower_bound_ - 1e-9
        assert np.diff(free.lower_bounds_).min(initial=0) >= -1e-12


@pytest.mark.slow
def test_clusters_that_cross_are_found_where_a_shared_effect_mixes_them():
    X, age, cluster = crossing()
    model = own(2, covariance_type="spherical").fit(X, metadata=age)
    assert adjusted_rand_score(cluster, model.predict(X, metadata=age)) > 0.9
    order = np.argsort(-model.coef_[:, 0, 0])
    assert_allclose(model.coef_[order, 0], SLOPES, atol=0.02)
    shared = rm.ResidualMixture(2, estimation="joint", covariance_type="spherical", random_state=0)
    shared.fit(X, metadata=age)
    assert adjusted_rand_score(cluster, shared.predict(X, metadata=age)) < 0.7  # the control
    assert model.bic(X, metadata=age) < shared.bic(X, metadata=age) - 100


def test_data_with_a_shared_effect_lose_nothing():
    gains, chosen = [], 0
    for seed in range(8):
        X, age, _ = crossing(seed, n=400, slopes=np.array([[0.2, -0.1]] * 2))
        X[:, 0] += 5.0 * (X[:, 1] > 1)
        start = {"means_init": np.array([[-2.5, -1.0], [2.5, 1.0]]), "tol": 1e-8}
        shared = rm.ResidualMixture(2, estimation="joint", **start).fit(X, metadata=age)
        free = own(2, **start).fit(X, metadata=age)
        gains.append(2 * 400 * (free.lower_bound_ - shared.lower_bound_))
        chosen += shared.bic(X, metadata=age) < free.bic(X, metadata=age)
    assert np.min(gains) >= -1e-6
    assert chosen >= 7
    # 2 further coefficients: the gain is half chi-squared with 2 degrees of freedom, doubled: 2 on average
    assert np.mean(gains) < 5


def test_the_fit_is_where_the_likelihood_of_scipy_has_no_slope():
    X, age, cluster = crossing(n=300)
    model = own(2, tol=1e-12, max_iter=5000, labels_init=cluster).fit(X, metadata=age)

    def likelihood(change):
        coef = model.coef_ + change[:4].reshape(2, 1, 2)
        means = model.means_ + model.intercept_ + change[4:8].reshape(2, 2)
        density = sum(
            model.weights_[k]
            * multivariate_normal(np.zeros(2), model.covariances_[k] * np.exp(change[8 + k])).pdf(
                X - means[k] - age[:, None] * coef[k]
            )
            for k in range(2)
        )
        return np.log(density).mean()

    # covariances end where reg_covar is of them, hence not at 0 exactly
    for j in range(10):
        h = np.zeros(10)
        h[j] = 1e-6 if j < 4 else 1e-4
        slope = (likelihood(h) - likelihood(-h)) / (2 * h[j])
        assert abs(slope) < 2e-5, j


def rows_of(X, u):
    return ArrayRows(np.ascontiguousarray(X), np.ascontiguousarray(u))


def standard(u):
    u = u - u.mean(axis=0)
    return np.linalg.qr(u)[0] * np.sqrt(len(u))


def test_steep_effects_lose_no_digits():
    rng = np.random.default_rng(0)
    u = standard(rng.normal(size=(600, 1)))
    cluster, noise = rng.integers(0, 2, 600), rng.normal(size=(600, 2))
    slopes = 1e7 * np.array([[1.0, 2.0], [-1.0, 1.0]])
    X = slopes[cluster] * u + noise
    start = make_params(np.ones(2) / 2, np.zeros((2, 2)), np.stack([np.eye(2)] * 2), "full")
    from dataclasses import replace

    start = replace(start, coef=slopes[:, None, :].copy())
    assert steep(start)
    ended = run_em(MixtureEM(rows_of(X, u), 0.0), start, tol=0.0, max_iter=3).params
    left = [noise[cluster == k] for k in range(2)]
    for k, rest in enumerate(left):
        v = np.column_stack([u[cluster == k], np.ones(len(rest))])
        rest = rest - v @ np.linalg.lstsq(v, rest, rcond=None)[0]
        assert_allclose(ended.covariances[k], rest.T @ rest / len(rest), rtol=2e-6)


def test_rows_taken_one_by_one_say_what_the_loops_say(monkeypatch):
    X, age, cluster = crossing(n=300)
    plain = own(2, max_iter=30, tol=0, labels_init=cluster).fit(X, metadata=age)
    monkeypatch.setattr("residmix.mixture.given.by_component.STEEP", 0.0)
    apart = own(2, max_iter=30, tol=0, labels_init=cluster).fit(X, metadata=age)
    assert_allclose(apart.lower_bounds_, plain.lower_bounds_, rtol=1e-10)
    assert_allclose(apart.coef_, plain.coef_, atol=1e-8)


@pytest.mark.parametrize("options", [{"noise": True}, {"distribution": "t"}, {"missing_features": "em"}])
def test_noise_tails_and_missing_values_go_with_it(options):
    X, age, cluster = crossing(n=300)
    rng = np.random.default_rng(1)
    if "noise" in options:
        X[:50] = rng.uniform(-20, 20, (50, 2))
    if "missing_features" in options:
        X[rng.random(X.shape) < 0.1] = np.nan
    model = own(2, labels_init=cluster, **options).fit(X, metadata=age)
    assert np.diff(model.lower_bounds_).min(initial=0) >= -1e-9
    assert_allclose(model.score(X, metadata=age), model.lower_bound_, rtol=1e-9)
    clean = slice(50, None)
    found = model.predict(X, metadata=age)[clean]
    assert adjusted_rand_score(cluster[clean], found) > 0.75
    order = np.argsort(-model.coef_[:, 0, 0])
    assert_allclose(model.coef_[order, 0], SLOPES, atol=0.05)
    residual = model.residuals(X, metadata=age)
    assert (np.isnan(residual) == np.isnan(X)).all()
    if "missing_features" in options:
        filled = model.impute(X, metadata=age)
        there = ~np.isnan(X)
        assert_allclose(filled[there], X[there])
        truth = crossing(n=300)[0]
        assert np.std((filled - truth)[~there]) < 0.8 * np.std((np.nanmean(X, axis=0) - truth)[~there])
    drawn, labels = model.sample(metadata=age)
    assert drawn.shape == X.shape and set(labels) <= {-1, 0, 1}


def test_neither_reference_level_nor_unit_changes_what_is_left():
    X, site, cluster = sites(n=500)
    renamed = np.array([{"a": "z", "b": "b", "c": "c"}[s] for s in site])
    one = own(3, labels_init=cluster).fit(X, metadata=site)
    two = own(3, labels_init=cluster).fit(1000.0 * X, metadata=renamed)
    assert_allclose(two.residuals(1000.0 * X, metadata=renamed) / 1000, one.residuals(X, metadata=site), atol=1e-6)
    assert_allclose(two.residual_means_ / 1000, one.residual_means_, atol=1e-6)
    assert np.abs(two.means_ / 1000 - one.means_).max() > 0.1  # the control: these are of the reference level


def test_weights_equal_repeated_rows():
    X, site, labels = sites(n=400)
    times = np.random.default_rng(0).integers(1, 4, 400)
    options = {"tol": 0, "max_iter": 15, "gating": "metadata"}
    weighted = own(3, labels_init=labels, **options).fit(X, metadata=site, sample_weight=times)
    repeated = own(3, labels_init=np.repeat(labels, times), **options)
    repeated.fit(np.repeat(X, times, axis=0), metadata=np.repeat(site, times))
    assert_allclose(weighted.coef_, repeated.coef_, atol=1e-8)
    assert_allclose(weighted.lower_bounds_, repeated.lower_bounds_, rtol=1e-10)


def test_labels_are_regressed_one_by_one():
    X, site, cluster = sites(n=500)
    model = own(3, labels_init=cluster, max_iter=0, tol=0).fit(X, metadata=site)
    A = np.column_stack([site == "b", site == "c", np.ones(500)]).astype(float)
    for k in range(3):
        theta = np.linalg.lstsq(A[cluster == k], X[cluster == k], rcond=None)[0]
        assert_allclose(model.coef_[k], theta[:2], atol=1e-7)
        assert_allclose(model.intercept_ + model.means_[k], theta[2], atol=1e-7)


@pytest.mark.filterwarnings("ignore::residmix.errors.LeakageWarning")
def test_a_component_that_a_site_lacks_keeps_the_least_squares_effect_there_and_is_told():
    X, site, cluster = sites(n=900, scale=0.3)
    X += 60 * np.array([[0, 0], [1, 0], [0, 1]])[cluster]  # far apart, so no row of b has a share in component 2
    lacks = ~((site == "b") & (cluster == 2))
    X, site, cluster = X[lacks], site[lacks], cluster[lacks]
    with pytest.warns(DesignWarning, match=r"instead: 2 \(.*b.*\)"):
        model = own(3, labels_init=cluster, gating="metadata").fit(X, metadata=site)
    noted = [note["figures"] for note in model.notes_ if note["kind"] == "effects-not-estimated"]
    assert noted[0]["effects"].keys() == {"2"}
    assert np.isfinite(model.coef_).all()
    # what c's rows say of component 2 stays what they say
    means = model.intercept_ + model.means_[2] + np.array([[0, 0], [0, 1]]) @ model.coef_[2]
    assert_allclose(means[0], X[(site == "a") & (cluster == 2)].mean(axis=0), atol=1e-6)
    assert_allclose(means[1], X[(site == "c") & (cluster == 2)].mean(axis=0), atol=1e-6)


def test_a_dead_component_is_revived_with_the_effects_of_the_heaviest():
    from dataclasses import replace

    X, age, _ = crossing(n=300)
    u = standard(age[:, None])
    start = make_params(np.array([0.5, 0.5]), np.array([[0.0, 0.0], [1e4, 1e4]]), np.stack([np.eye(2)] * 2), "full")
    em = MixtureEM(rows_of(X - X.mean(axis=0), u), 1e-6)
    start = replace(start, coef=np.zeros((2, 1, 2)))
    _, following = em(start)
    assert em.revived == [[1]]
    assert_allclose(following.coef[1], following.coef[0])
    assert np.isfinite(em(following)[0])


def test_it_comes_back_from_a_file(tmp_path):
    X, site, cluster = sites(n=300)
    model = own(3, gating="metadata", labels_init=cluster).fit(X, metadata=site)
    rm.save(model, tmp_path / "m.safetensors")
    again = rm.load(tmp_path / "m.safetensors")
    assert (again.score_samples(X, metadata=site) == model.score_samples(X, metadata=site)).all()
    assert (again.residuals(X, metadata=site) == model.residuals(X, metadata=site)).all()
    assert again.effects == "by-component" and again.coef_.shape == (3, 2, 2)


@pytest.mark.slow
def test_files_and_arrays_have_the_same_bits(tmp_path):
    X, site, _ = sites(n=700)
    table = pd.DataFrame({"x": X[:, 0], "y": X[:, 1], "site": site})
    table.to_parquet(tmp_path / "t.parquet", row_group_size=100)
    options = {"formula": "C(site)", "features": ["x", "y"]}
    one = own(3, **options).fit(table)
    two = own(3, **options).fit(rm.scan(tmp_path / "t.parquet"))
    assert (one.coef_ == two.coef_).all() and one.lower_bound_ == two.lower_bound_
    left = two.residuals(rm.scan(tmp_path / "t.parquet"), out=tmp_path / "left.parquet")
    assert (pd.read_parquet(left).to_numpy() == one.residuals(table)).all()


@pytest.mark.filterwarnings("ignore:there is nothing to remove")
def test_without_anything_that_varies_it_is_a_plain_mixture():
    X, _, _ = sites(n=300)
    model = own(2, formula="1", features=["x", "y"]).fit(pd.DataFrame(X, columns=["x", "y"]))
    assert model.coef_.shape == (2, 0, 2)
    plain = rm.ResidualMixture(2, random_state=0).fit(X)
    assert_allclose(model.lower_bound_, plain.lower_bound_, rtol=1e-6)


def test_preserved_effects_and_levels_without_columns_are_refused():
    X, site, _ = sites(n=300)
    table = pd.DataFrame({"x": X[:, 0], "y": X[:, 1], "site": site})
    with pytest.raises(ValueError, match="preserve"):
        own(2, formula="x", preserve="C(site)", features=["y"]).fit(table)


def test_an_own_effect_goes_on_from_a_shared_fit_but_not_back():
    X, site, _ = sites(n=300)
    begin = 6.0 * np.array([[0, 0], [1, 0], [0, 1]]) - X.mean(axis=0)
    model = rm.ResidualMixture(3, estimation="joint", warm_start=True, means_init=begin).fit(X, metadata=site)
    before = model.lower_bound_
    model.set_params(effects="by-component").fit(X, metadata=site)
    assert model.coef_.shape == (3, 2, 2) and model.lower_bound_ >= before
    with pytest.raises(ValueError, match="warm_start"):
        model.set_params(effects="shared").fit(X, metadata=site)


def test_components_given_shares_effects_too():
    X, site, cluster = sites(n=300)
    model = rm.ResidualMixture(3, estimation="joint", gating="metadata", labels_init=cluster).fit(X, metadata=site)
    given = components_given(model, site[:7])
    at = [model.at(site[i : i + 1]) for i in range(7)]
    assert_allclose(given.means, [one.means_ for one in at], atol=1e-12)
    assert_allclose(np.exp(given.log_weights), [one.weights_ for one in at], atol=1e-12)
    assert given.covariances.shape == (1, 3, 2, 2) and (given.group == 0).all()
