"""GaussianMixture beyond scikit-learn's own tests: parity, weights, monotone likelihood, hard data."""

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture as Reference

from residmix import GaussianMixture, ResidualMixture
from residmix.errors import ScaleWarning
from residmix.mixture.iteration.vector import pack, unpack
from residmix.mixture.params import make_params

FAMILIES = ["full", "tied", "diag", "spherical"]
IRIS = load_iris().data


def given(family, X=IRIS, K=3):
    covariance = np.cov(X.T)
    precision = np.linalg.inv(covariance)
    precisions = {
        "full": np.stack([precision] * K),
        "tied": precision,
        "diag": np.tile(1 / X.var(axis=0), (K, 1)),
        "spherical": np.full(K, 1 / X.var()),
    }[family]
    means = X[np.linspace(0, len(X) - 1, K).astype(int)]
    return {"weights_init": np.full(K, 1 / K), "means_init": means, "precisions_init": precisions}


def overlapping(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    return np.vstack([rng.normal(size=(3 * n // 4, 2)), rng.normal(size=(n // 4, 2)) + [2, 0]])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_fifty_iterations_are_scikit_learns(family):
    setting = {"n_components": 3, "covariance_type": family, "tol": 0, "max_iter": 50, **given(family)}
    ours, theirs = GaussianMixture(**setting).fit(IRIS), Reference(**setting).fit(IRIS)
    for name in ("weights_", "means_", "covariances_", "precisions_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-11)
    assert ours.lower_bound_ == pytest.approx(theirs.score(IRIS), rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_accelerated_fit_never_loses_likelihood_and_needs_fewer_iterations(family):
    X = overlapping()
    setting = {"n_components": 2, "covariance_type": family, "tol": 1e-9, "max_iter": 5000, **given(family, X, 2)}
    plain = GaussianMixture(accelerate=False, **setting).fit(X)
    quick = GaussianMixture(**setting).fit(X)
    assert np.diff(quick.lower_bounds_).min() >= 0
    assert quick.lower_bound_ >= plain.lower_bound_ - 1e-7
    assert 2 * quick.n_iter_ < plain.n_iter_


@pytest.mark.parametrize("family", FAMILIES)
def test_integer_weights_are_repeated_rows(family):
    weight = np.arange(150) % 3
    setting = {"n_components": 3, "covariance_type": family, **given(family)}
    weighted = GaussianMixture(**setting).fit(IRIS, sample_weight=weight)
    repeated = GaussianMixture(**setting).fit(np.repeat(IRIS, weight, axis=0))
    np.testing.assert_allclose(weighted.means_, repeated.means_, rtol=1e-9)
    np.testing.assert_allclose(weighted.covariances_, repeated.covariances_, rtol=1e-8)


def test_rows_of_weight_zero_leave_no_trace():
    X = np.vstack([IRIS, np.full((5, 4), 1e9)])
    weight = np.r_[np.ones(150), np.zeros(5)]
    setting = {"n_components": 3, **given("full")}
    kept, alone = GaussianMixture(**setting).fit(X, sample_weight=weight), GaussianMixture(**setting).fit(IRIS)
    np.testing.assert_allclose(kept.means_, alone.means_, rtol=1e-10)


def test_bad_weights_are_one_clear_error():
    with pytest.raises(ValueError, match=r"0 for all 150 rows|at least one non-zero"):
        GaussianMixture().fit(IRIS, sample_weight=np.zeros(150))
    with pytest.raises(ValueError, match="Negative values"):
        GaussianMixture().fit(IRIS, sample_weight=np.full(150, -1.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_weights_count_as_their_proportions_do(family):
    # importance weights are known up to a factor; 1e-30 is below what is left out of a row of weight 1
    weight = np.random.default_rng(0).uniform(0.1, 1, 150)
    setting = {"n_components": 3, "covariance_type": family, "tol": 1e-9, **given(family)}
    tiny = GaussianMixture(**setting).fit(IRIS, sample_weight=weight * 2.0**-300)
    plain = GaussianMixture(**setting).fit(IRIS, sample_weight=weight)
    np.testing.assert_allclose(tiny.covariances_, plain.covariances_, rtol=1e-9)
    assert tiny.lower_bound_ == pytest.approx(plain.lower_bound_, rel=1e-12)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.zeros(150), "0 for every row"),
        (np.ones(3), r"each of the 150 rows; got shape \(3,\)"),
        (-IRIS[:, 0], "row 0"),
    ],
)
def test_scores_check_their_weights_as_fits_do(weight, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(random_state=0).fit(IRIS).score(IRIS, sample_weight=weight)
    with pytest.raises(ValueError, match=message):
        ResidualMixture(1, random_state=0).fit(IRIS).score(IRIS, sample_weight=weight)


@pytest.mark.parametrize(
    ("changed", "columns"), [({"n_components": 3}, 4), ({"covariance_type": "diag"}, 4), ({}, 3)], ids=str
)
def test_a_fit_goes_on_only_with_a_model_of_its_own_size_and_family(changed, columns):
    model = GaussianMixture(2, warm_start=True, random_state=0).fit(IRIS).set_params(**changed)
    with pytest.raises(ValueError, match=r"warm_start continues .* means of shape \(2, 4\).*clone"):
        model.fit(IRIS[:, :columns])
    if changed:
        with pytest.raises(ValueError, match="partial_fit continues the last fit"):
            model.partial_fit(IRIS)


def test_an_iterator_that_can_be_read_once_is_refused_by_fit():
    with pytest.raises(TypeError, match=r"pass a function .* or use partial_fit"):
        GaussianMixture(2).fit(iter([IRIS[:100], IRIS[100:]]))


@pytest.mark.parametrize("seed", range(5))
def test_the_default_start_finds_the_best_known_maximum_on_iris(seed):
    # -180.185477 is what R's mclust 6.0.0 reaches for VVV, 3 (converged), from its own hierarchical start
    model = GaussianMixture(3, random_state=seed, tol=1e-9, reg_covar=0).fit(IRIS)
    assert model.lower_bound_ * 150 >= -180.1855


@pytest.mark.filterwarnings("ignore::residmix.errors.ResidmixWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "case", ["outlier", "duplicates", "constant", "n<d", "K=n", "float32", "equal", "mixed scales"]
)
def test_hard_data_give_finite_answers(case, family):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    K = 3
    if case == "outlier":
        X[0] = 1e9
    elif case == "duplicates":
        X = np.repeat(X[:4], 15, axis=0)
    elif case == "constant":
        X[:, 1] = 7.0
    elif case == "n<d":
        X = rng.normal(size=(8, 20))
    elif case == "K=n":
        X, K = X[:6], 6
    elif case == "float32":
        X = (X + 1e4).astype(np.float32)
    elif case == "equal":
        X = np.ones((20, 3))
    else:
        X = X * [1e-3, 1.0, 1e6]
    before = X.copy()
    model = GaussianMixture(K, covariance_type=family, random_state=0).fit(X)
    assert np.array_equal(X, before)
    for value in (model.weights_, model.means_, model.covariances_, model.score_samples(X), model.lower_bound_):
        assert np.isfinite(value).all()
    assert np.allclose(model.predict_proba(X).sum(axis=1), 1)


def test_reg_covar_that_drowns_the_data_is_said_so():
    with pytest.warns(ScaleWarning, match=r"reg_covar=1e-06 is more than a tenth"):
        GaussianMixture(2, random_state=0).fit(IRIS * 1e-12)


def test_tiny_units_change_nothing_when_reg_covar_is_zero():
    setting = {"n_components": 2, "reg_covar": 0, "random_state": 0}
    small, plain = GaussianMixture(**setting).fit(IRIS * 2.0**-40), GaussianMixture(**setting).fit(IRIS)
    assert np.array_equal(small.predict(IRIS * 2.0**-40), plain.predict(IRIS))
    np.testing.assert_allclose(small.means_ * 2.0**40, plain.means_, rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_is_undone_by_unpacking(family):
    model = GaussianMixture(3, covariance_type=family, random_state=0).fit(IRIS)
    params = make_params(model.weights_, model.means_, model.covariances_, family)
    again = unpack(pack(params, params), params)
    np.testing.assert_allclose(again.covariances, params.covariances, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(again.weights, params.weights, rtol=1e-12)


@pytest.mark.parametrize("threads", ["2", "3"])
def test_a_fit_has_the_same_bits_with_any_number_of_threads(threads, monkeypatch):
    X = overlapping(40_000)
    monkeypatch.setenv("RESIDMIX_NUM_THREADS", "1")
    one = GaussianMixture(2, random_state=0, max_iter=20, tol=1e-3).fit(X)
    monkeypatch.setenv("RESIDMIX_NUM_THREADS", threads)
    many = GaussianMixture(2, random_state=0, max_iter=20, tol=1e-3).fit(X)
    assert np.array_equal(one.means_, many.means_) and np.array_equal(one.covariances_, many.covariances_)


def test_masked_values_are_missing_values(rng):
    X = rng.normal(size=(200, 2))
    hidden = np.ma.array(X, mask=rng.random(X.shape) < 0.1)
    with pytest.raises(ValueError, match="NaN"):
        GaussianMixture(2).fit(hidden)
    gaps = np.where(hidden.mask, np.nan, X)
    one, two = (GaussianMixture(2, missing="em", random_state=0).fit(each) for each in (hidden, gaps))
    np.testing.assert_array_equal(one.means_, two.means_)
    np.testing.assert_array_equal(one.score_samples(hidden), two.score_samples(gaps))


def test_a_model_from_before_a_parameter_was_there_fits_again(rng):
    model, X = GaussianMixture(2, random_state=0), rng.normal(size=(60, 2))
    expected = model.fit(X).means_
    del model.__dict__["cells"], model.__dict__["search"]
    np.testing.assert_array_equal(model.fit(X).means_, expected)
