"""Mixtures from parameters, of some features, and given others."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.stats import multivariate_normal

import residmix as rm
from residmix.mixture.families.family import ALIASES, FAMILIES

IRIS = np.array(json.loads((Path(__file__).parents[2] / "fixtures" / "mclust.json").read_text())["iris"]["X"])
NAMES = ["length", "width", "petal length", "petal width"]


@pytest.fixture(params=[*ALIASES, *FAMILIES])
def model(request):
    return rm.GaussianMixture(3, covariance_type=request.param, random_state=0).fit(pd.DataFrame(IRIS, columns=NAMES))


def test_a_joint_density_is_a_marginal_one_times_a_conditional_one(model):
    marginal = model.marginal(["petal width", 1])
    for row in IRIS[[3, 70, 149]]:
        given = model.condition({"petal width": row[3], 1: row[1]})
        assert list(given.feature_names_in_) == ["length", "petal length"]
        both = marginal.score_samples(pd.DataFrame([row[[3, 1]]], columns=["petal width", "width"]))
        rest = given.score_samples(pd.DataFrame([row[[0, 2]]], columns=["length", "petal length"]))
        whole = model.score_samples(pd.DataFrame([row], columns=NAMES))
        assert_allclose(both + rest, whole, rtol=1e-10)


def test_a_conditional_density_is_scipys_joint_one_over_its_integral():
    model = rm.GaussianMixture(2, random_state=0).fit(IRIS[:, :2])

    def joint(x):
        parts = zip(model.weights_, model.means_, model.covariances_, strict=True)
        return sum(w * multivariate_normal(mean, cov).pdf([x, 3.1]) for w, mean, cov in parts)

    given, total = model.condition({1: 3.1}), quad(joint, 0, 15, limit=200)[0]
    for x in (4.5, 5.8, 7.0):
        assert_allclose(np.exp(given.score_samples([[x]])[0]), joint(x) / total, rtol=1e-8)


def test_values_far_from_everything_still_give_a_mixture(model):
    given = model.condition({0: 1e4})
    assert np.isfinite(given.means_).all()
    assert_allclose(given.weights_.sum(), 1.0)


def test_a_mixture_from_its_parameters_is_the_same(model, tmp_path):
    made = rm.GaussianMixture.from_parameters(model.weights_, model.means_, model.covariances_, model.covariance_type_)
    assert_allclose(made.score_samples(IRIS), model.score_samples(pd.DataFrame(IRIS, columns=NAMES)), rtol=1e-10)
    assert made.bic(IRIS) == pytest.approx(model.bic(pd.DataFrame(IRIS, columns=NAMES)))
    assert made.sample(5)[0].shape == (5, 4)
    rm.save(made, tmp_path / "made")
    assert np.array_equal(rm.load(tmp_path / "made").predict(IRIS), made.predict(IRIS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.condition({"lenght": 1.0}), "unknown feature 'lenght' - did you mean 'length'"),
        (lambda m: m.condition({4: 1.0}), "feature 4 doesn't exist; the indices are 0 to 3"),
        (lambda m: m.condition({0: 1.0, "length": 2.0}), "must be distinct"),
        (lambda m: m.condition(dict.fromkeys(range(4), 1.0)), "leave at least one feature out"),
        (lambda m: m.condition({0: np.nan}), "NaN"),
        (lambda m: m.marginal([]), "features is empty"),
        (lambda m: m.from_parameters([0.5, 0.6], np.zeros((2, 1)), np.ones((2, 1, 1))), "normalized"),
        (lambda m: m.from_parameters([1.0], np.zeros((1, 2)), np.ones((2, 2))), r"must have shape \(1, 2, 2\)"),
        (lambda m: m.from_parameters([1.0], np.zeros((1, 2)), np.ones((1, 2, 2))), r"\[0\] aren't positive definite"),
        (lambda m: m.from_parameters([1.0], np.zeros((1, 2)), [[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
    ],
)
def test_what_makes_no_sense_is_one_clear_error(call, message):
    model = rm.GaussianMixture(2, random_state=0).fit(pd.DataFrame(IRIS, columns=NAMES))
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize("options", [{}, {"estimation": "joint", "gating": "metadata"}])
def test_given_metadata_the_density_at_a_row_is_the_models(options):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(IRIS, columns=list("abcd")).assign(site=rng.choice(["x", "y"], 150), age=rng.normal(size=150))
    table["a"] += 3.0 * (table["site"] == "x") + table["age"]
    model = rm.ResidualMixture(2, formula="C(site) + age", random_state=0, **options).fit(table)
    whole = model.score_samples(table[:3])
    for i in range(3):
        row = table[i : i + 1]
        at = model.at(row)
        assert_allclose(at.score_samples(row[list("abcd")]), whole[i], rtol=1e-9)
        given = model.condition({"a": row["a"].item()}, metadata=row)
        alone = model.marginal(["a"], metadata=row)
        assert_allclose(given.score_samples(row[list("bcd")]) + alone.score_samples(row[["a"]]), whole[i], rtol=1e-9)
    with pytest.raises(ValueError, match="metadata= is needed"):
        model.at()
    with pytest.raises(ValueError, match="one row, not 2"):
        model.at(table[:2])


def test_a_mixture_from_parameters_has_a_summary_and_a_component_of_weight_0_no_rows():
    model = rm.GaussianMixture.from_parameters([1.0, 0.0], [[0.0, 0.0], [9.0, 9.0]], [np.eye(2)] * 2)
    assert "made from parameters" in model.summary()
    far = model.predict_proba([[1e200, 0.0], [-1e200, 1e180], [9.0, 9.0]])
    assert_allclose(far, np.tile([1.0, 0.0], (3, 1)))
