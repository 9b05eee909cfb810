"""Settings of a fit: what doesn't go together, floors in the data's units, and starts that fail."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import residmix as rm


def clusters(n=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return rng.normal(size=(n, 3)) + 5.0 * labels[:, None], labels


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"trim": 0.1, "noise": True}, ("trim=0.1", "noise=True")),
        ({"n_factors": 2}, ("n_factors=2", "covariance_type")),
        ({"covariance_type": "factor", "n_factors": 2}, ("n_factors=2", "3 features")),
        ({"eigenvalue_ratio": 5.0, "covariance_type": "VEV"}, ("eigenvalue_ratio=5", "covariance_type")),
        ({"eigenvalue_ratio": 5.0, "covariance_type": "auto"}, ("eigenvalue_ratio=5", "VEE, EVE")),
        ({"prior": "mclust", "distribution": "t"}, ("prior", "distribution")),
        ({"prior": {"mena": 1}}, ("'mena' - did you mean 'mean'",)),
        ({"prior": {"dof": 1.0}}, ("prior's dof must be more than 2",)),
    ],
)
def test_settings_that_contradict_each_other_are_one_clear_error(setting, words):
    X, _ = clusters()
    for model in (rm.GaussianMixture(2, **setting), rm.ResidualMixture(2, formula=None, **setting)):
        with pytest.raises(ValueError, match=r"did you mean|needs|can't be combined|must be|too many") as caught:
            model.fit(X) if isinstance(model, rm.GaussianMixture) else model.fit(X, metadata=np.arange(200.0))
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_errors_of_t_components_are_refused():
    X, _ = clusters()
    with pytest.raises(ValueError, match="error_covariance= needs distribution"):
        rm.GaussianMixture(2, distribution="t").fit(X, error_covariance=np.ones(X.shape))


@pytest.mark.parametrize("setting", [{"trim": 0.1}, {"prior": "mclust"}, {"eigenvalue_ratio": 9.0}])
def test_streams_refuse_what_needs_all_rows(setting):
    X, _ = clusters()
    model = rm.GaussianMixture(2, **setting).partial_fit(X)
    with pytest.raises(ValueError, match=f"partial_fit doesn't work with {next(iter(setting))}="):
        model.partial_fit(X)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_a_relative_floor_follows_the_units(unit):
    X, labels = clusters()
    model = rm.GaussianMixture(2, reg_covar="relative", random_state=0).fit(unit * X)
    assert adjusted_rand_score(labels, model.predict(unit * X)) == 1
    assert model.reg_covar_ == pytest.approx(1e-6 * X.var(axis=0).min() * unit**2, rel=1e-9)
    assert not model.notes_
    plain = rm.GaussianMixture(2, reg_covar="relative", random_state=0).fit(X)
    np.testing.assert_allclose(model.covariances_ / unit**2, plain.covariances_, rtol=1e-6)


# whether a component on equal rows is singular, dies or stays is a matter of rounding
@pytest.mark.filterwarnings("ignore::residmix.errors.ResidmixWarning")
def test_starts_that_fail_are_left_out_with_one_note():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(size=(30, 2)), np.repeat([[8.0, 8.0]], 6, axis=0)])
    found = {}
    for seed in range(20):
        model = rm.GaussianMixture(2, n_init=8, init_params="random_from_data", reg_covar=0.0, random_state=seed)
        try:
            model.fit(X)
        except ValueError:
            continue
        told = [note for note in model.notes_ if note["kind"] == "failed-starts"]
        found[seed] = told[0]["figures"]["count"] if told else 0
        assert len(told) <= 1
        assert not told or "left out" in told[0]["message"]
    assert max(found.values()) > 0
    clean = rm.GaussianMixture(2, n_init=3, random_state=0).fit(clusters()[0])
    assert not clean.notes_


def test_standard_errors_refuse_what_the_information_does_not_know():
    X, _ = clusters()
    model = rm.GaussianMixture(2, random_state=0, trim=0.1).fit(X)
    with pytest.raises(ValueError, match="standard_errors doesn't work with trim"):
        model.standard_errors(X)


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 1e8 + 0.1])
def test_the_relative_floor_is_not_of_a_constant_column(constant):
    # whose variance by rounding was 1e-33, so that the floor was 1e-39
    X = np.random.default_rng(0).normal(size=(300, 2))
    weight = np.random.default_rng(1).integers(0, 3, 300).astype(float)
    for w in (None, weight):
        model = rm.GaussianMixture(1, reg_covar="relative").fit(np.c_[X, np.full(300, constant)], sample_weight=w)
        mean = np.average(X, axis=0, weights=w)
        assert model.reg_covar_ == pytest.approx(1e-6 * np.average((X - mean) ** 2, axis=0, weights=w).min())
