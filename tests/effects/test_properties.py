"""What holds for every value, level and cut: features of one value somewhere, and fits of parts."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from residmix import Residualizer
from residmix.errors import ResidmixWarning

LEVELS = list("abcd")
FORMULA = "C(site, levels=['a', 'b', 'c', 'd'])"


def table(seed, n=160, d=5):
    rng = np.random.default_rng(seed)
    site, age = rng.permutation(np.arange(n) % 4), rng.uniform(20, 80, n)
    X = rng.normal(size=(4, d))[site] + 0.02 * age[:, None]
    X += np.exp(rng.normal(0, 0.4, 4))[site][:, None] * rng.normal(size=(n, d))
    return X, pd.DataFrame({"site": np.array(LEVELS)[site], "age": age})


def quietly(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResidmixWarning)
        return function()


OPTIONS = [{"scale": True}, {"shrinkage": "eb"}, {"shrinkage": "eb", "scale": True}, {"shrinkage": "eb-one-row"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("preserve", [None, "age"])
@given(st.integers(0, 2**32 - 1), st.sampled_from(LEVELS), st.floats(-1e6, 1e6))
@settings(max_examples=8, deadline=None)
def test_a_feature_of_one_value_at_a_level_keeps_one_value_there(options, preserve, seed, level, value):
    X, metadata = table(seed)
    there = (metadata["site"] == level).to_numpy()
    X[there, 2] = value
    model = Residualizer(FORMULA, preserve=preserve, check_leakage=False, **options)
    residual = quietly(lambda: model.fit_transform(X, metadata=metadata))
    size = max(abs(value), 1.0)
    assert np.ptp(residual[there, 2]) <= 1e-11 * size
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-10 * size)
    (note,) = [note for note in model.notes_ if note["kind"] == "constant-in-level"]
    assert note["figures"]["features"] == ["x2"]
    if "shrinkage" in options:
        # as in sva, the others are what they are without it, and it is what it was
        others = [0, 1, 3, 4]
        alone = quietly(
            lambda: Residualizer(FORMULA, preserve=preserve, **options).fit_transform(X[:, others], metadata=metadata)
        )
        assert_allclose(residual[:, others], alone, atol=1e-11)
        assert_allclose(residual[:, 2], X[:, 2] - X[:, 2].mean(), atol=1e-11 * size)


COUNTED = [
    ("site + age", {}),
    ("site + age", {"alpha": 3.0}),
    ("site + age", {"scale": True}),
    ("site", {"scale": True}),
    ("site", {"shrinkage": "eb", "preserve": "age"}),
    ("site", {"shrinkage": "eb", "scale": True, "preserve": "age"}),
    ("site", {"shrinkage": "eb", "scale": "site + age", "preserve": "age"}),
    ("site", {"shrinkage": "eb", "scale": True, "reference": "b"}),
    ("site", {"shrinkage": "eb-one-row"}),
    ("site", {"shrinkage": "eb-nonparametric", "scale": True}),
    ("site", {"shrinkage": "eb-robust", "scale": True}),
    ("site + scanner", {"shrinkage": {"site": "eb", "scanner": "eb"}, "scale": True}),
    ("site", {"shrinkage": "eb", "scale": True, "covariance": True}),
    ("site", {"shrinkage": "eb", "scale": True, "covariance": "scores"}),
]


@pytest.mark.parametrize(("formula", "options"), COUNTED, ids=str)
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=4, deadline=None)
def test_a_row_of_weight_two_is_two_rows(formula, options, seed):
    X, metadata = table(seed)
    metadata["scanner"] = np.random.default_rng(seed).choice(["p", "q"], len(X))
    weight = np.random.default_rng(seed).integers(0, 4, len(X))
    times = np.repeat(np.arange(len(X)), weight)
    new = lambda: Residualizer(formula, check_leakage=False, **options)  # noqa: E731
    weighted = quietly(lambda: new().fit(X, metadata=metadata, sample_weight=weight.astype(float)))
    repeated = quietly(lambda: new().fit(X[times], metadata=metadata.iloc[times].reset_index(drop=True)))
    seen = np.unique(times)
    found = weighted.transform(X[seen], metadata=metadata.iloc[seen])
    # log variances settle to about 1e-8
    assert_allclose(found, repeated.transform(X[seen], metadata=metadata.iloc[seen]), atol=1e-7)
    plain = quietly(lambda: new().fit(X, metadata=metadata))
    assert np.abs(plain.transform(X[seen], metadata=metadata.iloc[seen]) - found).max() > 1e-3


DIVIDED = [
    ("site + age", {"shrinkage": {"site": "blup"}}),
    ("site + s(age)", {}),
    ("age + site + age:site", {"shrinkage": {"site": "blup", "age:site": "blup"}}),
]


@pytest.mark.parametrize(("formula", "options"), DIVIDED, ids=str)
def test_of_random_effects_and_curves_only_ratios_of_weights_matter(formula, options):
    """The noise variance of a row is a common factor over its weight, and the factor is estimated."""
    X, metadata = table(3)
    weight = np.random.default_rng(3).uniform(0.5, 2.0, len(X))
    found = [
        Residualizer(formula, check_leakage=False, **options)
        .fit(X, metadata=metadata, sample_weight=own)
        .transform(X, metadata=metadata)
        for own in (weight, 7.0 * weight, np.ones(len(X)))
    ]
    assert_allclose(found[0], found[1], atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 1e-3


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 159), min_size=1, max_size=4, unique=True), st.booleans())
@settings(max_examples=8, deadline=None)
def test_however_the_rows_are_cut_parts_add_up(options, seed, cuts, by_site):
    X, metadata = table(seed)
    order = np.argsort(metadata["site"].to_numpy(), kind="stable") if by_site else np.arange(len(X))
    preserve = None if options == {"scale": True} else "age"
    new = lambda: Residualizer(FORMULA, preserve=preserve, check_leakage=False, **options)  # noqa: E731
    whole = quietly(lambda: new().fit(X, metadata=metadata)).transform(X, metadata=metadata)
    stream = new()
    for part in np.split(order, sorted(cuts)):
        if not hasattr(stream, "coef_") and "shrinkage" in options and len(part) < 40:
            return  # too few rows to pool anything alone
        quietly(lambda part=part: stream.partial_fit(X[part], metadata=metadata.iloc[part]))
    assert_allclose(stream.transform(X, metadata=metadata), whole, atol=1e-10)
