"""Levels that may be one, or none: told with what to do, and left as they are."""

import warnings

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.errors import DesignWarning

N = 120


def told_of(levels, formula="site", **options):
    rng = np.random.default_rng(0)
    data = pd.DataFrame(rng.normal(size=(N, 2)), columns=["x", "y"]).assign(site=np.resize(levels, N))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = rm.Residualizer(formula, features=["x", "y"], **options).fit(data)
    assert len(model.design_.terms[0].levels) == len(set(levels))
    return [str(one.message) for one in told if issubclass(one.category, DesignWarning)]


@pytest.mark.parametrize("formula", ["site", "C(site)", "C(site, contr.sum)"])
@pytest.mark.parametrize("shrinkage", [None, "eb"])
@pytest.mark.parametrize(
    ("levels", "pairs"),
    [
        (["Berlin", "Köln", "berlin "], "'Berlin' and 'berlin '"),
        (["New York", "New  York", "Rome"], "'New  York' and 'New York'"),
        (["Ko\u0308ln", "K\u00f6ln", "Bonn"], "'Ko\u0308ln' and 'K\u00f6ln'"),
    ],
)
def test_levels_that_differ_only_in_case_spaces_or_encoding_are_named(formula, shrinkage, levels, pairs):
    (message,) = told_of(levels, formula, shrinkage=shrinkage)
    assert message.startswith(f"levels of metadata column 'site' differ only in case or spaces, and each has an effect "
                              f"of its own: {pairs}. ")  # fmt: skip


@pytest.mark.parametrize("level", ["", " ", "NA", "n/a", "NaN", "<NA>", "null"])
def test_levels_that_read_as_missing_values_are_named(level):
    (message,) = told_of(["a", "b", level])
    assert f"looks like missing values, and counts as a level: {level!r} (40 rows)" in message


@pytest.mark.parametrize("levels", [["a", "b"], ["none", "mild", "severe"], ["unknown", "a"], ["x1", "x2"], ["é", "e"]])
def test_ordinary_levels_say_nothing(levels):
    assert told_of(levels) == []
