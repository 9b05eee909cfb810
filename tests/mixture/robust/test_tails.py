"""Noise and Student-t components: the likelihood by scipy, its maximum, and what outliers do."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_t
from sklearn.metrics import adjusted_rand_score

import residmix as rm
from residmix.errors import DeadComponentWarning

FAMILIES = ["full", "tied", "diag", "spherical", "EVE", "VEE"]
MEANS = np.array([[0.0, 0.0], [7.0, 0.0], [0.0, 7.0]])


def noisy(n=600, share=0.1, seed=0):
    """Three clusters amid uniform noise; labels -1 for noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    X = MEANS[labels] + rng.normal(size=(n, 2))
    labels[: int(share * n)] = -1
    X[labels < 0] = rng.uniform(-25, 30, size=((labels < 0).sum(), 2))
    return X, labels


def heavy(n=800, dof=2.5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    away = rng.normal(size=(n, 2)) / np.sqrt(rng.chisquare(dof, (n, 1)) / dof)
    return MEANS[labels] + away, labels


def by_scipy(model, X):
    """The density by its definition."""
    full = rm.GaussianMixture._made(model._model(), None)._model().full_covariances()
    dof = getattr(model, "dof_", np.full(len(full), np.inf))
    parts = [
        np.log(weight) + multivariate_t(mean, scale, df=nu).logpdf(X)
        for weight, mean, scale, nu in zip(model.weights_, model.means_, full, dof, strict=True)
    ]
    if hasattr(model, "noise_weight_"):
        volume = np.prod(model.noise_box_[1] - model.noise_box_[0])
        parts.append(np.full(len(X), np.log(model.noise_weight_ / volume)))
    return logsumexp(parts, axis=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"noise": True}, {"distribution": "t"}, {"noise": True, "distribution": "t"}])
def test_the_density_is_scipys_and_the_likelihood_never_falls(family, options):
    X, _ = noisy() if "noise" in options else heavy()
    model = rm.GaussianMixture(2, covariance_type=family, random_state=0, reg_covar=0, **options).fit(X)
    assert_allclose(model.score_samples(X), by_scipy(model, X), rtol=1e-9)
    assert_allclose(model.lower_bound_, by_scipy(model, X).mean(), rtol=1e-10)
    assert np.diff(model.lower_bounds_).min() > -1e-11
    share = model.predict_proba(X)
    assert share.shape == (len(X), 2 + ("noise" in options))
    assert_allclose(share.sum(axis=1), 1)
    labels = model.predict(X)
    assert set(labels) == ({-1, 0, 1} if "noise" in options else {0, 1})
    assert_allclose(model.weights_.sum() + getattr(model, "noise_weight_", 0.0), 1)


@pytest.mark.parametrize("options", [{"noise": True}, {"distribution": "t"}])
def test_no_optimiser_finds_a_likelier_mixture_nearby(options):
    X, _ = noisy(300) if "noise" in options else heavy(300)
    model = rm.GaussianMixture(2, covariance_type="diag", random_state=0, tol=1e-13, reg_covar=0, **options).fit(X)

    def cost(change):
        moved = rm.GaussianMixture._made(model._model(), None)
        logs = np.log(model.weights_) + [change[0], -change[0]]
        kept = 1 - getattr(model, "noise_weight_", 0.0) * np.exp(change[1])
        moved.weights_ = kept * np.exp(logs) / np.exp(logs).sum()
        moved.means_ = model.means_ + change[2:6].reshape(2, 2)
        moved.covariances_ = model.covariances_ * np.exp(change[6:10].reshape(2, 2))
        moved.precisions_cholesky_ = 1 / np.sqrt(moved.covariances_)
        if "noise" in options:
            moved.noise_weight_ = 1 - kept
        else:
            moved.dof_ = model.dof_ * np.exp(change[10:])
        return -by_scipy(moved, X).mean()

    found = minimize(cost, np.full(12, 1e-3), method="BFGS", options={"gtol": 1e-9})
    assert -found.fun <= model.lower_bound_ + 1e-8
    assert -found.fun >= model.lower_bound_ - 1e-8


def test_noise_leaves_the_clusters_as_they_are():
    X, labels = noisy()
    clean = labels >= 0
    robust = rm.GaussianMixture(3, noise=True, random_state=0).fit(X)
    assert adjusted_rand_score(labels[clean], robust.predict(X)[clean]) >= 0.95
    assert robust.noise_weight_ == pytest.approx(0.1, abs=0.03)
    assert (robust.predict(X)[~clean] == -1).mean() > 0.8
    assert_allclose(robust.means_[np.argsort(robust.means_ @ [1, 2])], MEANS, atol=0.3)
    plain = rm.GaussianMixture(3, random_state=0).fit(X)
    assert adjusted_rand_score(labels[clean], plain.predict(X)[clean]) < 0.8
    assert robust.bic(X) < plain.bic(X)
    assert robust._n_parameters() == plain._n_parameters() + 1


@pytest.mark.slow
def test_tails_are_estimated_and_means_hold_out_against_them():
    X, labels = heavy(4000)
    model = rm.GaussianMixture(2, distribution="t", random_state=0).fit(X)
    assert_allclose(model.dof_, 2.5, atol=0.5)
    assert_allclose(model.means_[np.argsort(model.means_[:, 0])], MEANS[:2], atol=0.2)
    assert adjusted_rand_score(labels, model.predict(X)) > 0.9
    normal = rm.GaussianMixture(2, distribution="t", random_state=0)
    normal.fit(MEANS[labels] + np.random.default_rng(1).normal(size=X.shape))
    assert normal.dof_.min() > 20


def test_weights_are_repeated_rows_and_files_keep_everything(tmp_path):
    X, _ = noisy(300)
    weight = 1 + np.arange(300) % 2
    setting = {"noise": True, "distribution": "t", "labels_init": (X[:, 0] > 3).astype(int), "tol": 0, "max_iter": 20}
    one = rm.GaussianMixture(2, **setting).fit(X, sample_weight=weight)
    setting["labels_init"] = np.repeat(setting["labels_init"], weight)
    two = rm.GaussianMixture(2, **setting).fit(np.repeat(X, weight, axis=0))
    rm.save(one, tmp_path / "one")
    again = rm.load(tmp_path / "one")
    assert np.array_equal(again.score_samples(X), one.score_samples(X))
    assert np.array_equal(again.predict_proba(X), one.predict_proba(X))
    assert one.score(X, sample_weight=weight) == pytest.approx(one.score(np.repeat(X, weight, axis=0)), rel=1e-12)
    assert one.lower_bound_ == pytest.approx(two.lower_bound_, abs=1e-3)


@pytest.mark.slow
def test_draws_have_the_densitys_moments_and_parts_multiply():
    X, _ = noisy(2000)
    model = rm.GaussianMixture(3, noise=True, distribution="t", random_state=0).fit(X)
    drawn, labels = model.sample(20_000)
    assert (labels == -1).mean() == pytest.approx(model.noise_weight_, abs=0.01)
    assert_allclose(np.median(drawn[labels == 0], axis=0), model.means_[0], atol=0.1)
    for row in X[:5]:
        both = model.marginal([1]).score_samples([[row[1]]]) + model.condition({1: row[1]}).score_samples([[row[0]]])
        assert_allclose(both, model.score_samples([row]), rtol=1e-9)


@pytest.mark.filterwarnings("ignore::residmix.errors.DeadComponentWarning")
@pytest.mark.parametrize("options", [{}, {"estimation": "joint", "gating": "metadata"}])
@pytest.mark.slow
def test_metadata_and_noise_and_tails_go_together(options):
    X, labels = noisy(900)
    site = np.random.default_rng(5).choice(list("ab"), 900)
    X = X + np.where(site == "a", 4.0, 0.0)[:, None]
    model = rm.ResidualMixture(3, noise=True, distribution="t", random_state=0, **options).fit(X, metadata=site)
    clean = labels >= 0
    assert adjusted_rand_score(labels[clean], model.predict(X, metadata=site)[clean]) > 0.9
    assert np.diff(model.lower_bounds_).min() > -1e-9
    at = model.at(site[:1])
    assert_allclose(at.score_samples(X[:1]), model.score_samples(X[:1], metadata=site[:1]), rtol=1e-9)
    drawn, drawn_labels = model.sample(metadata=site)
    assert set(drawn_labels) == {-1, 0, 1, 2}
    assert np.isfinite(drawn).all()
    if options:  # a shift that noise doesn't blur
        assert_allclose(model.coef_[0], [-4.0, -4.0], atol=0.5)


@pytest.mark.slow
def test_a_stream_goes_on_with_noise_and_a_search_counts_it():
    X, labels = noisy(900)
    model = rm.GaussianMixture([2, 3, 4], covariance_type=["EII", "VVV"], noise=True, random_state=0).fit(X)
    assert model.n_components_ == 3
    stream = rm.GaussianMixture(3, noise=True, random_state=0)
    for part in np.split(X[np.random.default_rng(0).permutation(900)], 3):
        stream.partial_fit(part)
    assert stream.noise_weight_ == pytest.approx(0.1, abs=0.05)
    clean = labels >= 0
    assert adjusted_rand_score(labels[clean], stream.predict(X)[clean]) > 0.95


def test_noise_in_a_constant_feature_has_no_volume():
    X, _ = noisy(100)
    with pytest.raises(ValueError, match=r"columns \[1\] are constant"):
        rm.GaussianMixture(2, noise=True).fit(X * [1, 0])


def test_frames_name_the_noise(tmp_path):
    X, _ = noisy(200)
    model = rm.GaussianMixture(2, noise=True, random_state=0).fit(X)
    model.predict_proba(X, out=tmp_path / "shares.parquet")
    shares = pd.read_parquet(tmp_path / "shares.parquet")
    assert list(shares.columns) == ["probability_0", "probability_1", "probability_noise"]


def test_noise_that_takes_most_rows_or_all_is_told():
    even = np.random.default_rng(1).uniform(size=(300, 2))
    model = rm.GaussianMixture(1, noise=True, random_state=0).fit(even)
    (told,) = [one for one in model.notes_ if one["kind"] == "mostly-noise"]
    assert told["figures"]["share"] == model.noise_weight_ > 0.9
    with pytest.warns(DeadComponentWarning, match="all rows are noise"):
        rm.GaussianMixture(1, noise=True, prior={"scale": 1e4 * np.eye(2), "dof": 50.0}).fit(even)
    two = np.concatenate([even + [[10.0, 10.0]], np.random.default_rng(0).normal(size=(320, 2))])
    assert not rm.GaussianMixture(1, noise=True, random_state=0).fit(two).notes_


def test_a_start_that_loses_every_row_to_the_noise_is_no_division_by_zero():
    # filterwarnings makes numpy's "invalid value" an error
    X = np.random.default_rng(0).normal(size=(300, 1)) + np.repeat([0.0, 8.0], 150)[:, None]
    X = np.hstack([X, X + np.random.default_rng(1).normal(size=X.shape)])
    with pytest.warns(DeadComponentWarning):
        model = rm.GaussianMixture(2, noise=True, distribution="t", covariance_type="tied", random_state=0).fit(X)
    assert_allclose(np.sort(model.weights_), [0.5, 0.5], atol=0.01)
