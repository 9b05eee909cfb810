"""The fourteen families beside mclust: same rows, same start partition, both run to the end."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy

from residmix import GaussianMixture
from residmix.mixture.families.family import FAMILIES

# made by mclust.R beside it
REFERENCE = json.loads((Path(__file__).parents[1] / "fixtures" / "mclust.json").read_text())
# where mclust's own M-step for common axes stops short of a maximum, from which EM climbs on: ours ends above it
HIGHER = {"VVE", "EVE"}


@pytest.mark.filterwarnings("ignore::residmix.errors.DegenerateComponentWarning")  # mclust's partition has a spike
@pytest.mark.parametrize("name", ["iris", "faithful", "diabetes"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_em_from_the_same_partition_ends_at_the_same_likelihood_or_a_higher_one(family, name):
    X = np.array(REFERENCE[name]["X"])
    for K, run in REFERENCE[name]["runs"].items():
        if run["log_likelihood"][family] is None:  # iris, K=5, VEE and EVV: a component becomes singular in either
            continue
        setting = {"covariance_type": family, "labels_init": run["labels"], "reg_covar": 0.0}
        model = GaussianMixture(int(K), tol=1e-15, max_iter=20_000, **setting).fit(X)
        reached, expected = model.score(X) * len(X), run["log_likelihood"][family]
        assert model.converged_
        assert model._n_parameters() == run["n_parameters"][family]
        assert reached >= expected - 1e-6, (K, reached, expected)
        if family not in HIGHER:
            assert reached <= expected + 1e-6, (K, reached, expected)


def test_criteria_are_mclusts():
    # published: iris VEV,2 and diabetes VVV,3 with mclust's sign, larger is better
    for name, family, K, bic in [("iris", "VEV", 2, -561.728462), ("diabetes", "VVV", 3, -4751.30896485)]:
        X, run = np.array(REFERENCE[name]["X"]), REFERENCE[name]["runs"][str(K)]
        model = GaussianMixture(K, covariance_type=family, labels_init=run["labels"], reg_covar=0, tol=1e-12).fit(X)
        assert -model.bic(X) == pytest.approx(bic, abs=1e-5)
        # an entropy is never negative, and clusters that don't overlap have none
        assert 0 <= model.icl(X) - model.bic(X) == pytest.approx(2 * entropy(model.predict_proba(X).T).sum(), abs=1e-9)
        assert model.aic(X) == pytest.approx(-2 * run["log_likelihood"][family] + 2 * run["n_parameters"][family])


def test_labels_may_be_any_and_weights_count_rows():
    X, labels = np.array(REFERENCE["faithful"]["X"]), np.array(REFERENCE["faithful"]["runs"]["2"]["labels"])
    weight = np.arange(len(X)) % 3
    names = np.array(["short", "long"])[labels]
    once = GaussianMixture(2, labels_init=np.repeat(names, weight), max_iter=3, tol=0).fit(np.repeat(X, weight, axis=0))
    model = GaussianMixture(2, labels_init=names, max_iter=3, tol=0).fit(X, sample_weight=weight)
    np.testing.assert_allclose(model.means_, once.means_, rtol=1e-12)
    np.testing.assert_allclose(model.covariances_, once.covariances_, rtol=1e-11)
    for criterion in ("bic", "aic", "icl"):
        weighted = getattr(model, criterion)(X, sample_weight=weight)
        assert weighted == pytest.approx(getattr(once, criterion)(np.repeat(X, weight, axis=0)), rel=1e-12)
        assert weighted != pytest.approx(getattr(model, criterion)(X), rel=1e-3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"labels_init": [0, 1, 2] * 90}, "one label for each of the 272 rows, but has 270"),
        ({"labels_init": ["a"] * 272}, r"n_components=2 distinct labels, but has 1 \(a\)"),
        ({"labels_init": [0, 1] * 136, "means_init": np.zeros((2, 2))}, "can't be combined with weights_init"),
    ],
)
def test_wrong_labels_are_one_clear_error(setting, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(2, **setting).fit(np.array(REFERENCE["faithful"]["X"]))
