"""What a fit should make its user look at."""

import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from residmix import GaussianMixture, ResidualMixture
from residmix.errors import DegenerateComponentWarning, MissingCodeWarning
from residmix.mixture.doubts import floor
from residmix.mixture.doubts.floor import overwhelmed_columns
from residmix.rows.rows import ArrayRows


@pytest.mark.filterwarnings("ignore")
def test_a_code_that_repeats_far_outside_is_named_with_its_column_and_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    X[:7, 1], X[100:104, 2] = -999, 9999
    with pytest.warns(MissingCodeWarning, match="-999 in column 1 .7 rows., 9999 in column 2 .4 rows."):
        model = GaussianMixture(3, random_state=0).fit(X)
    told = next(note for note in model.notes_ if note["kind"] == "missing-code")
    assert told["figures"]["values"] == [
        {"column": 1, "value": -999.0, "rows": 7},
        {"column": 2, "value": 9999.0, "rows": 4},
    ]


@pytest.mark.parametrize("kind", ["normal", "counts", "heavy", "clusters"])
def test_ordinary_columns_hold_no_codes(kind):
    rng = np.random.default_rng(1)
    X = {
        "normal": rng.normal(size=(300, 2)),
        "counts": rng.poisson(2.0, size=(300, 2)) + 0.0,
        "heavy": rng.standard_t(3, size=(300, 2)),
        "clusters": np.repeat([0.0, 50.0], 150)[:, None] + rng.normal(size=(300, 2)),
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", MissingCodeWarning)
        GaussianMixture(2, random_state=0).fit(X)


def test_a_component_on_a_few_equal_rows_is_named_with_them():
    rng = np.random.default_rng(7)
    x = np.r_[rng.normal(50, 4, 150), rng.normal(62, 4, 100)][:, None]
    x[[3, 30, 77, 120]] = 42.0
    start = {"means_init": [[42.0], [50.0], [62.0]], "precisions_init": [[[1e6]], [[0.06]], [[0.06]]]}
    with pytest.warns(DegenerateComponentWarning, match="component 0 sits on 4 nearly equal rows"):
        model = GaussianMixture(3, weights_init=[0.02, 0.58, 0.4], **start).fit(x)
    told = [note for note in model.notes_ if note["kind"] == "spike"]
    assert told[0]["figures"]["rows"] == [3, 30, 77, 120]


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
@pytest.mark.parametrize("rows", ["as many as components", "two, repeated", "three of positive weight"])
def test_no_more_distinct_rows_than_components_are_told(rows, kind):
    rng = np.random.default_rng(0)
    X, weight = rng.normal(size=(3, 2)), None
    if rows == "two, repeated":
        X = np.repeat(X[:2], 20, axis=0)
    elif rows == "three of positive weight":
        X, weight = np.vstack([X, rng.normal(size=(40, 2))]), np.r_[np.ones(3), np.zeros(40)]
    with pytest.warns(DegenerateComponentWarning, match="no more distinct rows than components: each of the 3"):
        GaussianMixture(3, covariance_type=kind, random_state=0).fit(X, sample_weight=weight)


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_rows_that_are_all_equal_are_told_once(kind):
    X = np.full((50, 3), 2.5)
    with pytest.warns(DegenerateComponentWarning, match="all rows are equal, so the 2 components") as told:
        model = GaussianMixture(2, covariance_type=kind, random_state=0).fit(X)
    assert len(told) == 1
    assert [note["kind"] for note in model.notes_] == ["equal-rows"]
    # the controls: rows of weight 0 don't count, and one that differs by little does
    other = np.vstack([X, [[0.0, 1.0, 2.0]]])
    with pytest.warns(DegenerateComponentWarning, match="all rows are equal"):
        GaussianMixture(2, covariance_type=kind, random_state=0).fit(other, sample_weight=np.r_[np.ones(50), 0.0])
    X[7, 1] += 1e-5
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        GaussianMixture(2, covariance_type=kind, random_state=0).fit(X)
    assert not any("all rows are equal" in str(warning.message) for warning in told)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_rows_that_differ_are_more_than_components(scale):
    X = scale * np.random.default_rng(0).normal(size=(60, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", DegenerateComponentWarning)
        GaussianMixture(3, random_state=0).fit(X)


def test_a_component_on_one_rounded_value_is_named_though_the_ridge_makes_it_wider():
    rng = np.random.default_rng(0)
    X = np.vstack([0.2 * rng.normal(size=(150, 2)), np.full((40, 2), 1.0)])
    # standard deviations of a 60th of the other component's, all of which is the ridge
    with pytest.warns(DegenerateComponentWarning, match="sits on 40 nearly equal rows"):
        GaussianMixture(2, random_state=0, reg_covar=1e-5).fit(X)
    # the control: rows that have a spread as wide are no spike
    X[150:] += 3e-3 * rng.normal(size=(40, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DegenerateComponentWarning)
        GaussianMixture(2, random_state=0, reg_covar=1e-5).fit(X)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimation", ["two-stage", "joint"])
def test_a_mixture_given_metadata_names_codes_and_components_on_few_rows_as_one_without_does(estimation):
    rng = np.random.default_rng(0)
    site, X = rng.integers(0, 2, 240), rng.normal(size=(240, 2))
    X[:4] = [6.0, 6.0]
    X[10:14, 1] = -999.0
    labels = np.select([np.arange(240) < 4, X[:, 1] == -999.0], [0, 1], 2)
    site[:14] = 0
    table = {"a": X[:, 0], "b": X[:, 1], "site": site.astype(str)}
    model = ResidualMixture(3, formula="site", estimation=estimation, labels_init=labels)
    with (
        pytest.warns(MissingCodeWarning, match="-999 in column 'b' .4 rows."),
        pytest.warns(DegenerateComponentWarning, match="component 0 sits on 4 nearly equal rows .rows 0, 1, 2, 3."),
    ):
        model.fit(pd.DataFrame(table))
    assert {"missing-code", "spike"} <= {note["kind"] for note in model.notes_}


def test_starts_without_spikes_are_preferred_where_values_are_rounded():
    rng = np.random.default_rng(7)
    x = np.round(np.r_[rng.normal(50, 4, 150), rng.normal(62, 4, 100)])[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GaussianMixture(3, random_state=7).fit(x)
    assert model.covariances_.min() > 1e-3


def test_values_whose_squares_overflow_are_the_reason_given():
    X = np.random.default_rng(0).normal(size=(100, 2)) * 1e155
    with pytest.raises(ValueError, match=r"too large .*squares overflow"):
        GaussianMixture(2, random_state=0).fit(X)


def test_a_row_whose_square_overflows_belongs_to_the_widest_component():
    X = np.r_[np.random.default_rng(0).normal(size=(200, 2)), 10 + 3 * np.random.default_rng(1).normal(size=(200, 2))]
    model = GaussianMixture(2, random_state=0).fit(X)
    wide = int(np.argmax(model.covariances_[:, 0, 0]))
    for far in ([[1e160, 0.0]], [[-1e300, 1e300]], [[1e100, 1e100]]):
        np.testing.assert_array_equal(model.predict_proba(far)[0], np.eye(2)[wide])
        assert model.predict(far) == [wide]
    assert model.score_samples([[1e160, 0.0]]) == -np.inf


def test_a_constant_share_follows_a_stream_that_drifts():
    def batch(rng, shift):
        return (np.where(rng.random(400) < 0.3, 5, 0) + rng.normal(size=400) + shift)[:, None]

    rng = np.random.default_rng(5)
    batches = [batch(rng, 0.1 * b) for b in range(60)]
    off = {}
    for forgetting in (0.5, None):
        model = GaussianMixture(2, random_state=0, forgetting=forgetting)
        for X in batches:
            model.partial_fit(X)
        off[forgetting] = np.abs(np.sort(model.means_[:, 0]) - [5.9, 10.9]).max()
    assert off[0.5] < 0.5 < 2 < off[None]


@pytest.mark.parametrize("missing", [False, True])
def test_the_sieve_for_columns_that_the_floor_overwhelms_passes_the_right_ones(rng, monkeypatch, missing):
    X = rng.normal(size=(5000, 6)) * [1.0, 1e-2, 4e-3, 3e-3, 1e-4, 0.0]
    X[:, 0] *= rng.uniform(size=5000) < 0.01
    if missing:
        X[::7] = np.nan
    found = [overwhelmed_columns(ArrayRows(X), added).tolist() for added in (0.0, 1e-9, 1e-6, 2e-5, 1e-1)]
    assert found[:1] + found[2:] == [[], [3, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4]]
    monkeypatch.setattr(floor, "SIEVED", 1)  # a single row has no range
    assert [overwhelmed_columns(ArrayRows(X), added).tolist() for added in (0.0, 1e-9, 1e-6, 2e-5, 1e-1)] == found


def test_rows_that_overflow_go_to_the_heavier_tail():
    # far out t densities fall as the power -(nu + d) of the distance
    model = GaussianMixture(2, distribution="t", covariance_type="diag", random_state=0)
    model.fit(np.random.default_rng(0).standard_t(3, size=(200, 2)) + np.repeat([[0.0], [30.0]], 100, axis=0))
    model.dof_, model.covariances_ = np.array([4.0, 4.0]), np.array([[1.0, 1.0], [4.0, 4.0]])
    model.precisions_cholesky_, model.weights_ = 1 / np.sqrt(model.covariances_), np.array([0.5, 0.5])
    # equal tails: density w |S|^-1/2 (x' S^-1 x)^-(nu + d)/2, so 1 to 4^-1 4^3
    assert_allclose(model.predict_proba([[1e200, 0.0], [1e160, -1e170]]), [[1 / 17, 16 / 17]] * 2, rtol=1e-9)
    assert_allclose(model.predict_proba([[1e100, 0.0]]), [[1 / 17, 16 / 17]], rtol=1e-9)
    model.dof_ = np.array([3.0, 9.0])
    assert_allclose(model.predict_proba([[1e200, 0.0]]), [[1.0, 0.0]], atol=1e-300)
