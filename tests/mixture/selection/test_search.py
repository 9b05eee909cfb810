"""Choosing families and numbers of components: mclust's choices, what counts, and what is never chosen."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.mixture.families.family import FAMILIES
from residmix.mixture.params import make_params
from residmix.mixture.selection.search import is_spike

REFERENCE = json.loads((Path(__file__).parents[2] / "fixtures" / "mclust.json").read_text())
# which mclust 6.0.0 chooses of its fourteen families and one to nine components, and its BIC when run to the end
CHOSEN = {"iris": ("VEV", 2, 561.728462), "faithful": ("EEE", 3, 2314.29567838), "diabetes": ("VVV", 3, 4751.30896485)}


def three_clusters(n=600, seed=0):
    rng = np.random.default_rng(seed)
    means = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    return means[rng.integers(0, 3, n)] + rng.normal(size=(n, 2))


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.slow
def test_auto_chooses_what_mclust_chooses(name):
    X, (family, K, bic) = np.array(REFERENCE[name]["X"]), CHOSEN[name]
    model = rm.GaussianMixture("auto", covariance_type="auto", random_state=0).fit(X)
    assert (model.covariance_type_, model.n_components_) == (family, K)
    assert model.bic(X) == pytest.approx(bic, abs=0.02)  # reg_covar, and tol, are not zero here
    found = model.selection_
    assert list(found) == [
        *("covariance_type", "n_components", "log_likelihood", "n_parameters", "bic", "icl", "aic", "converged")
    ]
    assert {len(column) for column in found.values()} == {14 * 9}
    assert set(found["covariance_type"]) == set(FAMILIES)
    assert min(found["bic"]) == pytest.approx(model.bic(X), rel=1e-9)
    json.dumps(found)  # plain values
    # the same rows in another order are the same rows
    again = rm.GaussianMixture("auto", covariance_type=[family, "VVV"], random_state=0).fit(X[::-1])
    assert (again.covariance_type_, again.n_components_) == (family, K)


@pytest.mark.parametrize("criterion", ["bic", "icl", "aic"])
def test_the_table_holds_the_criteria_of_each_fit(criterion):
    X = three_clusters()
    model = rm.GaussianMixture([1, 2, 3], covariance_type=["full", "EEI"], criterion=criterion, random_state=0).fit(X)
    assert model.selection_["covariance_type"] == ["VVV"] * 3 + ["EEI"] * 3
    best = int(np.argmin(model.selection_[criterion]))
    assert model.selection_["n_components"][best] == model.n_components_ == 3
    for name in ("bic", "icl", "aic"):
        assert model.selection_[name][best] == pytest.approx(getattr(model, name)(X), rel=1e-9)
    alone = rm.GaussianMixture(2, covariance_type="EEI", random_state=0).fit(X)
    assert model.selection_["log_likelihood"][4] == pytest.approx(alone.lower_bound_ * len(X), rel=1e-6)
    assert model.predict(X).max() == 2
    assert model.covariances_.shape == (3, 2, 2)


def test_the_cross_validated_likelihood_is_of_rows_that_were_left_out():
    X = three_clusters(300)
    model = rm.GaussianMixture([1, 3, 6], criterion="cv", random_state=0).fit(X)
    assert model.n_components_ == 3
    held = 0.0
    for fold in range(5):
        inside = np.arange(len(X)) % 5 == fold
        setting = {"weights_init": model.weights_, "means_init": model.means_, "precisions_init": model.precisions_}
        held += rm.GaussianMixture(3, **setting).fit(X[~inside]).score(X[inside]) * inside.sum()
    assert model.selection_["cv"][1] == pytest.approx(-2 * held, rel=1e-4)
    # the likelihood of the rows that were fitted always favours more components
    assert np.argmax(model.selection_["log_likelihood"]) == 2


def test_weights_count_rows_in_the_choice():
    X = three_clusters(300)
    weight = np.arange(300) % 3
    setting = {"n_components": [1, 2, 3, 4], "covariance_type": ["VVI", "EII"], "random_state": 0}
    one = rm.GaussianMixture(**setting).fit(X, sample_weight=weight).selection_
    two = rm.GaussianMixture(**setting).fit(np.repeat(X, weight, axis=0)).selection_
    np.testing.assert_allclose(one["bic"][:3], two["bic"][:3], rtol=1e-5)


def test_equal_rows_are_never_chosen_and_noted():
    X = three_clusters(200)
    X[:12] = X[0]  # a spike: its density has no upper bound
    # labels that no start would choose: equal rows by themselves
    labels = np.minimum(rm.GaussianMixture(3, random_state=0).fit(X).predict(X), 2)
    labels[:12] = 3
    spiked = rm.GaussianMixture(4, reg_covar=1e-10, labels_init=labels, covariance_type=["full"])
    with pytest.raises(ValueError, match="none of the 1 candidates"):
        spiked.fit(X)
    model = rm.GaussianMixture([1, 2, 3, 4, 5], reg_covar=1e-10, random_state=0).fit(X)
    assert model.n_components_ == 3
    # the control: the likelihood, and with it the criterion, would have chosen it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = rm.GaussianMixture(4, reg_covar=1e-10, labels_init=labels).fit(X)
    assert alone.bic(X) < min(model.selection_["bic"])
    assert [note["kind"] for note in alone.notes_] == ["spike"] and alone.notes_[0]["figures"]["count"] == 12


def test_a_spike_is_one_of_few_rows_or_little_variance():
    means, unit = np.zeros((2, 2)), np.eye(2)
    for scale, weight, spike in [(1.0, 0.5, False), (1e-3, 0.5, False), (1e-6, 0.5, True), (1.0, 0.02, True)]:
        weights = np.array([1 - weight, weight])
        params = make_params(weights, means, np.stack([unit, np.diag([1.0, scale])]), "full")
        assert is_spike(params, 100) == spike
    assert not is_spike(make_params(np.array([0.99, 0.01]), means, unit, "tied"), 100)


def test_the_largest_size_is_noted_when_it_is_chosen():
    model = rm.GaussianMixture([1, 2], random_state=0).fit(three_clusters())
    assert [note["kind"] for note in model.notes_] == ["largest-size-chosen"]
    assert rm.GaussianMixture([1, 3, 4], random_state=0).fit(three_clusters()).notes_ == []


@pytest.mark.parametrize("options", [{}, {"estimation": "joint", "gating": "metadata"}])
@pytest.mark.slow
def test_given_metadata_the_residual_is_searched_and_all_parameters_count(options):
    rng = np.random.default_rng(1)
    site = rng.choice(list("abc"), 600)
    X = three_clusters() + np.array([[0, 0], [9, 4], [-5, 8]])[pd.factorize(site, sort=True)[0]]
    model = rm.ResidualMixture([1, 2, 3, 4], covariance_type=["EII", "VVV"], formula=None, random_state=0, **options)
    model.fit(X, metadata=site)
    assert (model.covariance_type_, model.n_components_) == ("EII", 3)
    best = int(np.argmin(model.selection_["bic"]))
    assert model.selection_["bic"][best] == pytest.approx(model.bic(X, metadata=site), rel=1e-9)
    gate = 2 * 2 if options else 0
    assert model.selection_["n_parameters"][best] == 1 + 3 * 2 + 2 + 2 * 2 + gate  # volume, means, weights, site
    # the control: without metadata nine clusters are more than three
    assert rm.GaussianMixture([1, 2, 3, 4, 5, 6], covariance_type="EII", random_state=0).fit(X).n_components_ > 3


def test_a_choice_survives_saving_and_goes_on_with_a_stream(tmp_path):
    X = three_clusters()
    model = rm.GaussianMixture([1, 3], covariance_type=["EEI", "VVV"], random_state=0).fit(X)
    rm.save(model, tmp_path / "model")
    again = rm.load(tmp_path / "model")
    assert again.selection_ == model.selection_
    assert np.array_equal(again.predict(X), model.predict(X))
    again.partial_fit(X[:100])
    assert (again.n_batches_, again.n_components_) == (2, 3)
    model.set_params(n_components=2, covariance_type="full").fit(X)
    assert not hasattr(model, "selection_")
    assert (model.n_components_, model.covariance_type_) == (2, "full")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_components": [0, 1]}, "positive whole number"),
        ({"n_components": []}, "positive whole number"),
        ({"n_components": [1, 2.5]}, "positive whole number"),
        ({"covariance_type": ["full", "VVW"]}, "did you mean"),
        ({"n_components": [1, 2], "means_init": np.zeros((2, 2))}, "means_init needs a single n_components"),
        ({"n_components": [1, 2], "warm_start": True}, "warm_start needs a single n_components"),
        ({"n_components": [1, 2], "labels_init": [0, 1]}, "labels_init needs a single n_components"),
        ({"n_components": [1, 601]}, "n_components = 601"),
    ],
)
def test_what_cannot_be_searched_is_one_clear_error(setting, message):
    with pytest.raises(ValueError, match=message):
        rm.GaussianMixture(**setting).fit(three_clusters())


def test_the_whole_search_on_few_rows_imports_no_compiler():
    script = (
        "import sys, warnings; import numpy as np; import residmix as rm; warnings.simplefilter('ignore')\n"
        "X = np.random.default_rng(0).normal(size=(150, 4)); X[::2] += 4\n"
        "rm.GaussianMixture('auto', covariance_type=['EVE', 'VVE', 'VVV', 'VEI'], random_state=0).fit(X)\n"
        "assert 'numba' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
