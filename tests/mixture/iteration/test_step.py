"""Mixtures that follow a stream."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning

import residmix as rm
from residmix.mixture.iteration.estep import mixture_block
from residmix.mixture.iteration.mstep import m_step
from residmix.mixture.iteration.stepwise import stepwise
from residmix.mixture.params import make_params

FAMILIES = ["full", "tied", "diag", "spherical"]


def overlapping(n, seed=0):
    rng = np.random.default_rng(seed)
    means = np.array([[0.0, 0.0], [2.5, 0.0], [0.0, 3.0]])
    labels = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    return means[labels] + rng.normal(size=(n, 2)) * np.array([1.0, 0.7, 1.3])[labels][:, None]


def params_of(family, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"full": np.stack([np.eye(2)] * 3), "tied": np.eye(2), "diag": np.ones((3, 2)), "spherical": np.ones(3)}
    return make_params(np.array([0.5, 0.3, 0.2]), rng.normal(size=(3, 2)), 1.2 * shapes[family], family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_share_of_one_is_an_em_step_and_of_zero_is_none(family):
    X, params = overlapping(500), params_of(family)
    moments = mixture_block(X, params)
    whole = m_step(moments, params, reg_covar=1e-3)
    step = stepwise(params, moments, 1.0, reg_covar=1e-3, n_rows=500)
    still = stepwise(params, moments, 0.0, reg_covar=1e-3, n_rows=500)
    for name in ("weights", "means", "covariances"):
        assert_allclose(getattr(step, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
        assert_allclose(getattr(still, name), getattr(params, name), rtol=1e-12, atol=1e-12)


def test_moments_of_two_samples_blend_to_those_of_both():
    # with one component responsibilities are 1, so a share of 1/2 must give the mean and covariance of all rows
    one, two = overlapping(400), 1e6 + overlapping(400, seed=1)
    params = make_params(np.ones(1), one.mean(axis=0)[None], np.cov(one.T, bias=True)[None], "full")
    both = stepwise(params, mixture_block(two, params), 0.5, reg_covar=0.0, n_rows=800)
    X = np.concatenate([one, two])
    assert_allclose(both.means[0], X.mean(axis=0), rtol=1e-12)
    assert_allclose(both.covariances[0], np.cov(X.T, bias=True), rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_comes_near_the_optimum_of_all_its_rows(family):
    X = overlapping(40_000)
    batch = rm.GaussianMixture(3, covariance_type=family, random_state=0).fit(X)
    stream = rm.GaussianMixture(3, covariance_type=family, random_state=0)
    for part in np.split(X, 80):
        stream.partial_fit(part)
    first = rm.GaussianMixture(3, covariance_type=family, random_state=0).fit(X[:500])
    gap, before = batch.score(X) - stream.score(X), batch.score(X) - first.score(X)
    assert gap < 1e-3
    assert gap < 0.5 * before
    assert (stream.n_batches_, stream.n_samples_seen_) == (80, 40_000)


def test_a_decaying_share_settles_where_a_constant_one_does_not():
    X = overlapping(60_000)
    params = {"decaying": None, "constant": None}
    start = rm.GaussianMixture(3, random_state=0).fit(X[:600])._model()
    for kind in params:
        now = start
        for t, part in enumerate(np.split(X[600:], 99), 2):
            moments = mixture_block(part, now)
            now = stepwise(now, moments, t**-0.7 if kind == "decaying" else 0.6, reg_covar=1e-6, n_rows=600 * t)
        params[kind] = now
    best = rm.GaussianMixture(3, random_state=0).fit(X)
    gap = {k: best.score(X) - mixture_block(X, p).log_likelihood / len(X) for k, p in params.items()}
    assert gap["decaying"] < 0.2 * gap["constant"]


def test_sources_frames_and_iterators_give_the_steps_of_their_batches(tmp_path):
    X = overlapping(6000)
    expected = rm.GaussianMixture(3, random_state=0)
    for part in np.split(X, 6):
        expected.partial_fit(part)
    pd.DataFrame(X, columns=["a", "b"]).to_parquet(tmp_path / "x.parquet")
    scanned = rm.GaussianMixture(3, random_state=0).partial_fit(rm.scan(tmp_path / "x.parquet", batch_rows=1000))
    drawn = rm.GaussianMixture(3, random_state=0).partial_fit(iter(np.split(X, 6)))
    for model in (scanned, drawn):
        assert model.n_batches_ == 6
        assert np.array_equal(model.means_, expected.means_)


def test_a_small_batch_counts_for_little_and_a_weight_of_two_is_a_row_twice():
    X = overlapping(3000)
    model = rm.GaussianMixture(3, random_state=0).fit(X)
    before = model.means_.copy()
    far = X[:1] + 5.0
    model.partial_fit(far)
    # one row among 3001, two batches: a share of 2**-0.7 / 1500.5 of a component that holds a fifth of the rows
    assert 0 < np.abs(model.means_ - before).max() < 5e-3 * np.abs(far - before).max()
    weight = np.arange(50) % 4.0
    once = rm.GaussianMixture(3, random_state=0).fit(X).partial_fit(X[:50], sample_weight=weight)
    twice = rm.GaussianMixture(3, random_state=0).fit(X).partial_fit(np.repeat(X[:50], weight.astype(int), axis=0))
    assert_allclose(once.means_, twice.means_, rtol=1e-12)
    # by weight, as one component's mean shows
    one = rm.GaussianMixture(1).fit(X).partial_fit(X[:50], sample_weight=weight)
    share = 2**-0.7 * weight.sum() / ((3000 + weight.sum()) / 2)
    mean = (1 - share) * X.mean(axis=0) + share * np.average(X[:50], axis=0, weights=weight)
    assert_allclose(one.means_[0], mean, rtol=1e-12)


def test_a_stream_goes_on_after_saving_and_fit_begins_anew(tmp_path):
    X = overlapping(4000)
    model = rm.GaussianMixture(3, random_state=0).partial_fit(X[:1000]).partial_fit(X[1000:2000])
    rm.save(model, tmp_path / "model.safetensors")
    resumed = rm.load(tmp_path / "model.safetensors")
    model.partial_fit(X[2000:])
    resumed.partial_fit(X[2000:])
    assert np.array_equal(model.means_, resumed.means_)
    fresh = rm.GaussianMixture(3, random_state=0).fit(X)
    assert np.array_equal(model.fit(X).means_, fresh.means_)
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, :1])


def test_the_first_batch_warns_where_partial_fit_is_called():
    with pytest.warns(ConvergenceWarning) as caught:
        rm.GaussianMixture(3, max_iter=1, random_state=0).partial_fit(overlapping(500))
    assert caught[0].filename == __file__
