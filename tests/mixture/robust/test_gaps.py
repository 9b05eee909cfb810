"""Missing values: the likelihood of what is there, its maximum, and what is made of the rest."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

import residmix as rm
from residmix.mixture.iteration.estep import Problem
from residmix.mixture.params import make_params, marginal
from residmix.mixture.robust.tails import tail_joint

FIXTURES = Path(__file__).parents[2] / "fixtures"
IRIS = np.array(json.loads((FIXTURES / "mclust.json").read_text())["iris"]["X"])
SPECIES = np.repeat([0, 1, 2], 50)


def with_gaps(X=IRIS, share=0.2, seed=0):
    gone = np.random.default_rng(seed).random(X.shape) < share
    return np.where(gone, np.nan, X)


def likelihood(X, weights, means, covariances):
    """Log-density of each row's values that are there, one row after the other."""
    found = np.zeros(len(X))
    for i, row in enumerate(X):
        o = np.flatnonzero(~np.isnan(row))
        if len(o):
            parts = [
                np.log(w) + multivariate_normal(m[o], S[np.ix_(o, o)]).logpdf(row[o])
                for w, m, S in zip(weights, means, covariances, strict=True)
            ]
            found[i] = logsumexp(parts)
    return found


@pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical", "VEE", "EVE"])
@pytest.mark.slow
def test_the_density_is_of_what_is_there_and_the_likelihood_never_falls(family):
    X = with_gaps()
    X[7] = np.nan  # a row that says nothing
    model = rm.GaussianMixture(3, covariance_type=family, missing="em", random_state=0, reg_covar=0).fit(X)
    full = model._model().full_covariances()
    assert_allclose(model.score_samples(X), likelihood(X, model.weights_, model.means_, full), rtol=1e-9, atol=1e-9)
    assert_allclose(model.lower_bound_, model.score_samples(X).mean(), rtol=1e-10)
    assert np.diff(model.lower_bounds_).min() > -1e-11
    assert_allclose(model.predict_proba(X).sum(axis=1), 1)
    assert_allclose(model.predict_proba(X)[7], model.weights_)


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.slow
def test_em_ends_where_an_independent_gradient_is_zero(K):
    X = with_gaps(IRIS[:, :3])
    labels = np.minimum(SPECIES, K - 1)
    model = rm.GaussianMixture(K, missing="em", labels_init=labels, reg_covar=0, tol=1e-14, max_iter=5000).fit(X)
    roots = np.linalg.cholesky(model.covariances_)

    def value(change):
        weights = model.weights_ * np.exp(change[:K])
        means = model.means_ + change[K : 4 * K].reshape(K, 3)
        moved = roots + np.tril(change[4 * K :].reshape(K, 3, 3))
        return likelihood(X, weights / weights.sum(), means, moved @ moved.swapaxes(1, 2)).mean()

    h = 1e-5
    gradient = [(value(h * e) - value(-h * e)) / (2 * h) for e in np.eye(13 * K)]
    assert np.abs(gradient).max() < 1e-6
    # the control: means and covariances of the complete rows are no maximum
    complete = X[~np.isnan(X).any(axis=1)]
    assert (
        likelihood(X, [1.0], complete.mean(axis=0)[None], np.cov(complete.T)[None]).mean() < model.lower_bound_ - 1e-3
    )


def test_without_gaps_it_is_the_plain_fit():
    setting = {"n_components": 3, "labels_init": SPECIES, "tol": 1e-10}
    plain, open_ = rm.GaussianMixture(**setting).fit(IRIS), rm.GaussianMixture(missing="em", **setting).fit(IRIS)
    assert_allclose(open_.means_, plain.means_, rtol=1e-6)
    assert open_.bic(IRIS) == pytest.approx(plain.bic(IRIS), rel=1e-8)


@pytest.mark.slow
def test_clusters_and_values_are_found_with_a_fifth_of_iris_gone():
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    setting = {"covariance_type": "tied", "random_state": 0}
    whole = rm.GaussianMixture(3, **setting).fit(IRIS)
    expected = adjusted_rand_score(SPECIES, whole.predict(IRIS))
    wrong = {"mixture": [], "means": [], "chained": []}
    for seed in range(3):
        X = with_gaps(seed=seed)
        model = rm.GaussianMixture(3, missing="em", **setting).fit(X)
        assert adjusted_rand_score(SPECIES, model.predict(IRIS)) > expected - 0.05
        # rows with nothing but a sepal left can't be told, whatever the parameters
        at_best = rm.GaussianMixture._made(whole._model(), None).set_params(missing="em").predict(X)
        assert adjusted_rand_score(SPECIES, model.predict(X)) > adjusted_rand_score(SPECIES, at_best) - 0.05
        gone = np.isnan(X)
        filled = model.impute(X)
        assert np.array_equal(filled[~gone], X[~gone])
        for name, values in [
            ("mixture", filled),
            ("means", np.where(gone, np.nanmean(X, axis=0), X)),
            ("chained", IterativeImputer(max_iter=50, random_state=0, tol=1e-2).fit_transform(X)),
        ]:
            wrong[name].append(np.sqrt(np.mean((values[gone] - IRIS[gone]) ** 2)))
    assert np.mean(wrong["mixture"]) < np.mean(wrong["chained"]) < np.mean(wrong["means"])


def test_weights_are_repeated_rows():
    X, weight = with_gaps(), 1 + np.arange(150) % 3
    setting = {"missing": "em", "tol": 0, "max_iter": 10, "weights_init": np.full(2, 0.5), "means_init": IRIS[[0, 120]]}
    setting["precisions_init"] = np.stack([np.eye(4)] * 2)
    one = rm.GaussianMixture(2, **setting).fit(X, sample_weight=weight)
    two = rm.GaussianMixture(2, **setting).fit(np.repeat(X, weight, axis=0))
    assert_allclose(one.means_, two.means_, rtol=1e-11)
    assert_allclose(one.covariances_, two.covariances_, rtol=1e-10, atol=1e-12)
    assert one.bic(X, sample_weight=weight) == pytest.approx(two.bic(np.repeat(X, weight, axis=0)))


@pytest.mark.filterwarnings("ignore::residmix.errors.DeadComponentWarning")
@pytest.mark.slow
def test_gaps_go_with_noise_tails_search_streams_and_files(tmp_path):
    X = with_gaps(share=0.1)
    model = rm.GaussianMixture(
        [1, 2], covariance_type=["VEV", "EEE"], missing="em", noise=True, distribution="t", random_state=0
    ).fit(X)
    assert model.n_components_ >= 2
    assert np.isfinite(model.score_samples(X)).all()
    rm.save(model, tmp_path / "model")
    assert np.array_equal(rm.load(tmp_path / "model").impute(X), model.impute(X))
    stream = rm.GaussianMixture(2, missing="em", random_state=0)
    for part in np.split(X[np.random.default_rng(1).permutation(150)], 3):
        stream.partial_fit(part)
    assert np.isfinite(stream.means_).all()
    table = pd.DataFrame(X, columns=list("abcd"))
    table.to_parquet(tmp_path / "x.parquet")
    setting = {"missing": "em", "random_state": 0}
    scanned = rm.GaussianMixture(2, **setting).fit(rm.scan(tmp_path / "x.parquet"))
    assert_allclose(scanned.means_, rm.GaussianMixture(2, **setting).fit(table).means_, rtol=1e-9)


def test_what_nobody_knows_is_one_clear_error():
    X = with_gaps()
    with pytest.raises(ValueError, match="NaN"):
        rm.GaussianMixture(2).fit(X)
    with pytest.raises(ValueError, match="impute needs missing"):
        rm.GaussianMixture(2, random_state=0).fit(IRIS).impute(X)
    X[:, 2] = np.nan
    with pytest.raises(ValueError, match=r"columns \[2\] have only missing values"):
        rm.GaussianMixture(2, missing="em").fit(X)
    with pytest.raises(ValueError, match="infinity"):
        rm.GaussianMixture(2, missing="em").fit(np.where(np.isnan(X), np.inf, X))


@pytest.mark.parametrize("options", [{}, {"estimation": "joint"}, {"estimation": "joint", "gating": "metadata"}])
def test_given_metadata_features_may_be_missing_too(options):
    rng = np.random.default_rng(0)
    site, age = rng.choice(["a", "b"], 150), rng.normal(size=150)
    X = with_gaps(IRIS + np.where(site == "a", 3.0, 0.0)[:, None] + age[:, None] * [1.0, 0.5, 0.0, 0.0], 0.1)
    M = pd.DataFrame({"site": site, "age": age})
    setting = {"covariance_type": "tied", "random_state": 0, "missing_features": "em", **options}
    model = rm.ResidualMixture(3, **setting).fit(X, metadata=M)
    assert np.diff(model.lower_bounds_).min() > -1e-11
    assert model.score(X, metadata=M) == pytest.approx(model.lower_bound_, rel=1e-9)
    # one row after the other, by the mixture at its metadata
    at = [model.at(M[i : i + 1])._model() for i in range(10)]
    expected = [likelihood(X[i : i + 1], p.weights, p.means, p.full_covariances())[0] for i, p in enumerate(at)]
    assert_allclose(model.score_samples(X[:10], metadata=M[:10]), expected, rtol=1e-8)
    filled, gone = model.impute(X, metadata=M), np.isnan(X)
    assert np.array_equal(filled[~gone], X[~gone])
    truth = IRIS + np.where(site == "a", 3.0, 0.0)[:, None] + age[:, None] * [1.0, 0.5, 0.0, 0.0]
    means = np.where(gone, np.nanmean(X, axis=0), X)
    assert np.square(filled - truth)[gone].mean() < 0.3 * np.square(means - truth)[gone].mean()
    with pytest.raises(ValueError, match="NaN"):
        rm.ResidualMixture(3, covariance_type="tied").fit(X, metadata=M)


def test_one_component_is_lavaans_full_information_likelihood():
    reference = json.loads((FIXTURES / "lavaan.json").read_text())  # made by lavaan.R beside it
    i, j = np.arange(1, 151)[:, None], np.arange(1, 5)
    X = np.where((7 * i + 13 * j + 3 * i * j + i * i) % 5 == 0, np.nan, IRIS)
    model = rm.GaussianMixture(1, missing="em", reg_covar=0, tol=1e-14, max_iter=5000).fit(X)
    assert model.lower_bound_ * 150 == pytest.approx(reference["log_likelihood"], abs=1e-6)
    # where lavaan's optimiser stops; the likelihood is flat there
    assert_allclose(model.means_[0], reference["means"], atol=1e-5)
    assert_allclose(model.covariances_[0].ravel(), reference["covariances"], atol=1e-4)


def test_few_patterns_at_a_time_are_the_same_fit(monkeypatch):
    X = with_gaps(share=0.4)
    options = {"n_components": 2, "missing": "em", "means_init": IRIS[[0, 100]], "max_iter": 5, "tol": 1e-12}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = rm.GaussianMixture(**options).fit(X)
        monkeypatch.setattr("residmix.mixture.robust.gaps.CHUNK", 5 * 2 * 16)  # five patterns of at most 16
        monkeypatch.setattr("residmix.mixture.robust.gaps.CACHED", 3 * 2 * 16)
        parts = rm.GaussianMixture(**options).fit(X)
        assert_allclose(parts.impute(X), whole.impute(X), atol=1e-12)
    assert_allclose(parts.covariances_, whole.covariances_, rtol=1e-11)
    assert_allclose(parts.score_samples(X), whole.score_samples(X), atol=1e-12)


def test_a_row_with_gaps_weighs_what_it_weighs_in_the_marginal_mixture_of_what_it_has(rng):
    root = rng.normal(size=(2, 3, 5))
    params = make_params(np.array([0.3, 0.7]), rng.normal(size=(2, 3)), root @ root.swapaxes(1, 2), "full")
    params = replace(params, dof=np.array([2.5, 8.0]), missing=True)
    X, none, prior = 3 * rng.normal(size=(40, 3)), np.empty((40, 0)), params.log_weights
    for known in ([0], [2], [0, 1], [0, 2]):
        gaps = np.full_like(X, np.nan)
        gaps[:, known] = X[:, known]
        joint, u, *_ = tail_joint(Problem.of(params), gaps, prior, none)
        part = marginal(params, known)
        expected, pull, *_ = tail_joint(Problem.of(part), X[:, known], prior, none)
        assert_allclose(joint, expected, rtol=1e-9)
        assert_allclose(u, pull, rtol=1e-9)
        # a t distribution is a normal one whose precision has this expectation given the row
        x = X[:, known] - part.means[1]
        distance = np.einsum("ij,ij->i", x @ np.linalg.inv(part.full_covariances()[1]), x)
        assert_allclose(u[:, 1], (8.0 + len(known)) / (8.0 + distance), rtol=1e-9)


def test_no_component_sits_on_one_rounded_value_where_values_are_missing():
    X, rng = IRIS.copy(), np.random.default_rng(16)
    rows = rng.choice(150, 30, replace=False)
    X[rows, rng.integers(0, 4, 30)] = np.nan
    model = rm.GaussianMixture(3, missing="em", random_state=0).fit(X)
    # petal widths of .2 alone have a variance of 1e-6, what is added, over the share of them that is there
    assert np.linalg.eigvalsh(model.covariances_).min() > 1e-3
    assert not model.notes_
