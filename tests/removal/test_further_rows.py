"""Rows that come later are taken as the first ones were, or refused."""

import numpy as np
import pandas as pd
import pytest

import residmix as rm

RNG = np.random.default_rng(0)
X, AGE = RNG.normal(size=(100, 2)), RNG.normal(size=100)
WEIGHT = RNG.uniform(0.5, 2.0, 100)


@pytest.mark.parametrize("weighted_first", [True, False])
def test_weights_may_come_with_some_of_the_parts_only(weighted_first):
    parts = [(X[:60], AGE[:60], WEIGHT[:60]), (X[60:], AGE[60:], None)]
    model = rm.Residualizer()
    for part, age, weight in parts if weighted_first else parts[::-1]:
        model.partial_fit(part, metadata=age, sample_weight=weight)
    whole = rm.Residualizer().fit(X, metadata=AGE, sample_weight=np.r_[WEIGHT[:60], np.ones(40)])
    np.testing.assert_allclose(model.coef_, whole.coef_, rtol=1e-12)


def test_models_with_and_without_weights_merge():
    one = rm.Residualizer().fit(X, metadata=AGE, sample_weight=WEIGHT)
    both = one.merge(rm.Residualizer().fit(X, metadata=AGE))
    np.testing.assert_allclose(
        both.coef_, rm.Residualizer().fit(X, metadata=AGE, sample_weight=WEIGHT + 1).coef_, rtol=1e-12
    )


@pytest.mark.parametrize("kind", [rm.Residualizer, rm.Eraser])
@pytest.mark.filterwarnings("ignore:there is no metadata")
def test_metadata_that_come_with_some_of_the_parts_only_are_refused(kind):
    with pytest.raises(ValueError, match=r"metadata= is given, but this .* was fitted without it"):
        kind().partial_fit(X).partial_fit(X, metadata=AGE)
    for rows in (X, pd.DataFrame(X)):
        with pytest.raises(ValueError, match=r"metadata is needed: this .* was fitted with metadata="):
            kind().partial_fit(rows, metadata=AGE).partial_fit(rows)


@pytest.mark.parametrize("kind", [rm.Residualizer, rm.Eraser])
@pytest.mark.filterwarnings("ignore:there is no metadata")
def test_transform_takes_metadata_that_nothing_is_taken_out_by(kind):
    """So that one call serves every transformer, whether or not it needs them."""
    model = kind().fit(X)
    np.testing.assert_array_equal(model.transform(X, metadata=AGE), model.transform(X))


def test_an_eraser_ignores_metadata_in_transform():
    model = rm.Eraser().fit(X, metadata=AGE)
    np.testing.assert_array_equal(model.transform(X, metadata=AGE), model.transform(X))


def test_batches_bring_their_own_metadata_to_further_rows():
    batches = [(X[:50], AGE[:50]), (X[50:], AGE[50:])]
    model = rm.Residualizer().partial_fit(iter(batches)).partial_fit(iter(batches))
    np.testing.assert_allclose(model.coef_, rm.Residualizer().fit(X, metadata=AGE).coef_, rtol=1e-12)


@pytest.mark.parametrize("on_unknown", ["error", "mean", "shrink"])
@pytest.mark.parametrize("formula", ["site", "age + site"])
def test_further_rows_of_a_level_that_the_first_ones_lack_are_refused(on_unknown, formula):
    # as by fit of C(site, levels=["a", "b"]): on_unknown is about new rows, and none of the known effects is theirs
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"site": np.repeat(["a", "b", "c"], 10), "age": rng.normal(size=30), "x": rng.normal(size=30)})
    model = rm.Residualizer(formula, on_unknown=on_unknown, check_leakage=False).partial_fit(frame[:20])
    before = model.coef_.copy()
    with pytest.raises(ValueError, match=r"did not see: 'c', in 10 rows .*write all levels .* C\(site, levels="):
        model.partial_fit(frame[20:])
    with pytest.raises(ValueError, match="did not see: 'c'"):
        model.forget(frame[15:25])
    np.testing.assert_array_equal(model.coef_, before)


@pytest.mark.parametrize("on_unknown", ["error", "mean"])
@pytest.mark.parametrize("formula", ["site", "site*sex"])
def test_rows_without_weight_at_a_level_of_their_own_are_as_new_ones(on_unknown, formula):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"site": np.repeat(["a", "b", "c"], 12), "sex": ["f", "m"] * 18, "x": rng.normal(size=36)})
    weight = np.repeat([1.0, 2.0, 0.0], 12)
    model = rm.Residualizer(formula, on_unknown=on_unknown, check_leakage=False)
    found = model.fit_transform(frame, sample_weight=weight)
    np.testing.assert_array_equal(found, model.transform(frame))
    assert np.isnan(found[24:]).all() == (on_unknown == "error")
    known = rm.Residualizer(formula, check_leakage=False).fit_transform(frame[:24], sample_weight=weight[:24])
    np.testing.assert_allclose(found[:24], known, atol=1e-12)
