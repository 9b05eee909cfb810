"""Medians by level: few odd rows at a site don't move what is taken from the others."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from residmix import Residualizer
from residmix.effects.pooled import robust
from residmix.errors import DesignWarning
from residmix.moments.by_level import Grouping


def sites(odd=0, seed=0):
    rng = np.random.default_rng(seed)
    site = np.repeat(list("abcd"), 100)
    X = rng.normal(size=(400, 20)) + rng.normal(size=(4, 20))[np.searchsorted(list("abcd"), site)]
    X[:odd] += 40.0
    return X, pd.DataFrame({"site": site})


def test_odd_rows_do_not_move_the_others():
    clean, metadata = sites()
    dirty, _ = sites(odd=8)
    moved = {}
    for kind in ("eb", "eb-robust"):
        options = {"scale": True, "shrinkage": kind, "check_leakage": False}
        before = Residualizer("site", **options).fit_transform(clean, metadata=metadata)
        after = Residualizer("site", **options).fit_transform(dirty, metadata=metadata)
        # the mean of all rows is moved in any case
        moved[kind] = np.abs((after - before)[8:100].mean(axis=0) - (after - before)[100:].mean(axis=0)).mean()
    assert moved["eb-robust"] < 0.2
    assert moved["eb"] > 5 * moved["eb-robust"]


def test_on_normal_rows_it_agrees_with_the_moments_to_sampling_error():
    X, metadata = sites()
    found = [
        Residualizer("site", scale=True, shrinkage=kind, check_leakage=False).fit_transform(X, metadata=metadata)
        for kind in ("eb", "eb-robust")
    ]
    assert np.abs(found[0] - found[1]).mean() < 0.1
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_level_medians_and_deviations_are_those_of_the_rows(monkeypatch):
    X, metadata = sites(odd=8)
    X[3, 4] = np.nan
    X[200:300, 5] = np.nan
    model = Residualizer("site", check_leakage=False, on_unknown="mean")
    with pytest.warns(DesignWarning, match="no values of 'x5'"):
        model.fit(X, metadata=metadata)
    rows = model.rows_of(model.open_rows(X, metadata), preserved=True, allow_nan=True)
    (term,) = model.design_.terms
    group = Grouping("site", term.columns, model.design_.level_rows(term))
    residual = model.transform(X, metadata=metadata)
    expected = pd.DataFrame(residual).groupby(metadata["site"].to_numpy()).median().fillna(0.0)
    n, middle, squares = robust.robust_sums(rows, model._linear.everything(), group)
    assert_allclose(middle, expected, atol=1e-12)
    assert n[0, 4] == 99
    assert squares[2, 5] == n[2, 5] == 0
    monkeypatch.setattr(robust, "_VALUES", 400 * 7)
    assert_allclose(robust.robust_sums(rows, model._linear.everything(), group)[1], middle)


def test_it_refuses_to_merge_and_to_adapt():
    X, metadata = sites()
    model = Residualizer("site", shrinkage="eb-robust", on_unknown="mean", check_leakage=False).fit(
        X, metadata=metadata
    )
    with pytest.raises(ValueError, match="don't work with shrinkage='eb-robust'"):
        model.merge(model)
    with pytest.raises(ValueError, match="needs medians; call fit on all rows"):
        model.adapt(X[:5], metadata=pd.DataFrame({"site": ["e"] * 5}))
