"""Answers depend on what the metadata span: not on means, units, names, or the order of levels, columns and rows."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import residmix as rm

pytestmark = pytest.mark.filterwarnings("ignore::residmix.errors.ResidmixWarning")

N = 240
NAMES = {"s0": "z", "s1": "m", "s2": "a", "s3": "y"}


def data(seed=0):
    """Sites with their field strength, an age, and four features in two clusters."""
    rng = np.random.default_rng(seed)
    site, cluster = rng.integers(0, 4, N), rng.integers(0, 2, N)
    frame = pd.DataFrame(
        {
            "site": [f"s{k}" for k in site],
            "tesla": np.where(site < 2, 3.0, 1.5),
            "age": rng.normal(50.0, 10.0, N),
            "sick": rng.integers(0, 2, N).astype(float),
        }
    )
    X = rng.normal(size=(N, 4)) @ rng.normal(size=(4, 4)) + 8.0 * cluster[:, None] * [1, -1, 0, 1]
    return frame, X + site[:, None] * [0.5, 0.0, -1.0, 1.0] + 0.02 * frame[["age"]].to_numpy()


def changed(frame, X, constant, unit, seed):
    """The same data with everything else that shouldn't matter; `back` undoes the order of rows."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(N), rng.permutation(4)
    other = frame.assign(site=frame["site"].map(NAMES), tesla=frame["tesla"] * unit, age=frame["age"] / unit + 7.0)
    return other.iloc[rows].reset_index(drop=True), (X + constant)[rows][:, columns], rows, columns


CHANGES = {
    "constant": st.floats(-1e4, 1e4),
    "unit": st.sampled_from([1e-4, 1.0, 1e4]),
    "seed": st.integers(0, 1000),
}
MODELS = {
    "least squares": (lambda f, p: rm.Residualizer(f, preserve=p), 1e-8),
    "ridge": (lambda f, p: rm.Residualizer(f, preserve=p, alpha={"site": 5.0}), 1e-8),
    "blup": (lambda f, p: rm.Residualizer(f, preserve=p, shrinkage={"site": "blup"}), 1e-5),
    "two-stage": (lambda f, p: rm.ResidualMixture(2, formula=f, preserve=p, random_state=0), 1e-8),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("formula", "preserve"), [("site + tesla + age", "sick"), ("site + age", "tesla + sick")])
@settings(max_examples=8, deadline=None)
@given(**CHANGES)
def test_residuals_of_aliased_metadata(name, formula, preserve, constant, unit, seed):
    make, atol = MODELS[name]
    frame, X = data()
    other, Y, rows, columns = changed(frame, X, constant, unit, seed)
    method = "residuals" if name == "two-stage" else "transform"
    one = getattr(make(formula, preserve).fit(X, metadata=frame), method)(X, metadata=frame)
    two = getattr(make(formula, preserve).fit(Y, metadata=other), method)(Y, metadata=other)
    np.testing.assert_allclose(one[rows][:, columns], two, atol=atol)


@settings(max_examples=8, deadline=None)
@given(**CHANGES)
def test_terms_of_one_part_in_another_order_when_they_can_be_estimated(constant, unit, seed):
    frame, X = data()
    other, Y, rows, columns = changed(frame, X, constant, unit, seed)
    one = rm.Residualizer("site + age", preserve="sick").fit(X, metadata=frame)
    two = rm.Residualizer("age + site", preserve="sick").fit(Y, metadata=other)
    np.testing.assert_allclose(
        one.transform(X, metadata=frame)[rows][:, columns], two.transform(Y, metadata=other), atol=1e-8
    )
    tables = [model.tidy().set_index(["term", "feature"]) for model in (one, two)]
    for new, old in enumerate(columns):
        for term in ("age", "sick"):
            first, second = (t.loc[(term, f"x{j}")] for t, j in zip(tables, (old, new), strict=True))
            for column in ("statistic", "p_value", "partial_r2"):
                np.testing.assert_allclose(first[column], second[column], rtol=1e-6, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(**CHANGES)
def test_erasers_of_aliased_metadata(constant, unit, seed):
    frame, X = data()
    other, Y, rows, columns = changed(frame, X, constant, unit, seed)
    one = rm.Eraser("site + tesla + age").fit(X, metadata=frame).transform(X)
    two = rm.Eraser("tesla + age + site").fit(Y, metadata=other).transform(Y)
    np.testing.assert_allclose(one[rows][:, columns] + constant, two, atol=1e-6)


@settings(max_examples=4, deadline=None)
@given(**CHANGES)
@pytest.mark.slow
def test_shares_of_variance_of_aliased_metadata(constant, unit, seed):
    frame, X = data()
    other, Y, _, columns = changed(frame, X, constant, unit, seed)
    found = []
    for metadata, features, formula in ((frame, X, "site + tesla + age"), (other, Y, "age + tesla + site")):
        table = rm.association(features, metadata, formula=formula, n_permutations=19, max_rows=50)
        found.append(table.where(measure="r2").to_frame().set_index(["metadata", "feature"]))
    for term in ("(all)", "site", "tesla", "age"):
        for new, old in enumerate(columns):
            one, two = found[0].loc[(term, f"x{old}")], found[1].loc[(term, f"x{new}")]
            for column in ("in_sample", "in_sample_low", "in_sample_high", "in_sample_p"):
                np.testing.assert_allclose(one[column], two[column], rtol=1e-6, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, N - 1), min_size=1, max_size=4, unique=True))
def test_residuals_of_aliased_metadata_in_parts(cuts):
    frame, X = data()
    whole = rm.Residualizer("site + age", preserve="tesla").fit(X, metadata=frame)
    parts = rm.Residualizer("site + age", preserve="tesla")
    parts.partial_fit(X, metadata=frame)  # levels are learned from the first part
    ends = [0, *sorted(cuts), N]
    for start, stop in pairwise(ends):
        parts.partial_fit(X[start:stop], metadata=frame.iloc[start:stop])
    np.testing.assert_allclose(whole.transform(X, metadata=frame), parts.transform(X, metadata=frame), atol=1e-8)


@pytest.mark.parametrize("options", [{"alpha": {"site": 3.0}}, {"shrinkage": {"site": "blup"}}])
def test_beside_penalties_a_preserved_copy_of_what_is_removed_keeps_nothing(options):
    frame, X = data()
    frame["months"] = 12.0 * frame["age"] + 1.0
    one = rm.Residualizer("site + age", **options).fit_transform(X, metadata=frame)
    two = rm.Residualizer("site + age", preserve="months", **options).fit_transform(X, metadata=frame)
    np.testing.assert_allclose(one, two, atol=1e-8)


def agreed(formula, names):
    """A formula whose levels all parts know, whatever their rows."""
    levels = sorted(names.get(f"s{k}", f"s{k}") for k in range(4))
    return formula.replace("site", f"C(site, levels={levels})")


def merged(formula, preserve, frame, X, part):
    """The merge of fits to parts of the rows."""
    fits = [rm.Residualizer(formula, preserve=preserve).fit(X[part == k], metadata=frame[part == k]) for k in range(3)]
    return fits[0].merge(fits[1]).merge(fits[2])


def assert_same_table(one, two, by, rtol=1e-5):
    one, two = (table.set_index(by).sort_index() for table in (one, two))
    for column in one:
        np.testing.assert_allclose(one[column], two[column], rtol=rtol, atol=1e-7)


@pytest.mark.parametrize(("formula", "preserve"), [("site + tesla + age", "sick"), ("site + age", "tesla + sick")])
@settings(max_examples=8, deadline=None)
@given(**CHANGES)
def test_merged_fits_of_aliased_metadata_are_the_pooled_one_and_depend_on_spans_only(
    formula, preserve, constant, unit, seed
):
    frame, X = data()
    part = np.random.default_rng(seed).integers(0, 3, N)
    if seed % 2:  # as where each part is a site of its own: tesla doesn't vary within one
        part = frame["site"].map({"s0": 0, "s1": 1, "s2": 2, "s3": 2}).to_numpy()
    one = merged(agreed(formula, {}), preserve, frame, X, part)
    pooled = rm.Residualizer(agreed(formula, {}), preserve=preserve).fit(X, metadata=frame)
    np.testing.assert_allclose(one.transform(X, metadata=frame), pooled.transform(X, metadata=frame), atol=1e-8)
    assert_same_table(one.tidy(), pooled.tidy(), ["feature", "term"])
    assert one.tidy()["estimate"].isna().any()
    other, Y, rows, columns = changed(frame, X, constant, unit, seed)
    two = merged(agreed(formula, NAMES), preserve, other, Y, part[rows])
    np.testing.assert_allclose(
        one.transform(X, metadata=frame)[rows][:, columns], two.transform(Y, metadata=other), atol=1e-7
    )
    tables = [model.tidy().set_index(["term", "feature"]) for model in (one, two)]
    for new, old in enumerate(columns):  # what doesn't depend on the coding can be compared by name
        for term in ("age", "sick"):
            first, second = (t.loc[(term, f"x{j}")] for t, j in zip(tables, (old, new), strict=True))
            for column in ("statistic", "p_value", "partial_r2"):
                np.testing.assert_allclose(first[column], second[column], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("formula", ["site + subject + age", "subject + site + tesla"])
def test_merged_fits_of_nested_factors_without_columns_are_the_pooled_one(formula):
    rng = np.random.default_rng(0)
    subject = np.r_[np.tile(np.arange(420), 3), rng.integers(0, 420, 900)]
    frame = pd.DataFrame({"subject": subject, "site": subject % 210}).astype(str)
    frame["tesla"], frame["age"] = subject % 2 + 1.5, rng.normal(size=len(subject))
    X = rng.normal(size=(len(subject), 2)) + subject[:, None] % 7
    part = np.r_[np.repeat(np.arange(3), 420), rng.integers(0, 3, 900)]
    one = merged(formula, None, frame, X, part)
    pooled = rm.Residualizer(formula).fit(X, metadata=frame)
    np.testing.assert_allclose(one.transform(X, metadata=frame), pooled.transform(X, metadata=frame), atol=1e-9)
    for name, effects in pooled.effects_.items():
        np.testing.assert_allclose(one.effects_[name], effects, atol=1e-8)
    assert_same_table(one.tidy(), pooled.tidy(), ["feature", "term"])
    assert one.rank_ == pooled.rank_
    # another name for each level, so another order; and a constant
    named = frame.assign(subject=frame["subject"].str[::-1] + "x", site="z" + frame["site"].str[::-1])
    two = merged(formula, None, named, X + 1e3, part)
    np.testing.assert_allclose(one.transform(X, metadata=frame), two.transform(X + 1e3, metadata=named), atol=1e-8)
