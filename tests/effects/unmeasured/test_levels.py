"""A feature that was never measured at a site: no name and no order of levels decides what later rows there get."""

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.errors import DesignWarning


def data(lost, levels=4, n=400, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.permutation(n) % levels
    site = np.array([f"s{k:03d}" for k in codes])
    X = rng.normal(size=(n, 3)) + codes[:, None] % 5
    X[codes == lost, 1] = np.nan
    return pd.DataFrame({"site": site, "age": rng.normal(size=n)}), X


@pytest.mark.parametrize("levels", [4, 210], ids=["columns", "absorbed"])
@pytest.mark.parametrize("lost", [0, 1, 3])  # the first level is the reference
def test_later_rows_of_a_level_without_values_are_nan_or_average_and_it_is_told(lost, levels):
    frame, X = data(lost, levels, n=1500)
    told = f"no values of 'x1' where 'site' is 's{lost:03d}'"
    with pytest.warns(DesignWarning, match=told) as once:
        strict = rm.Residualizer("site + age").fit(X, metadata=frame)
    assert len(once) == 1  # that columns of the level are aliased in the rows of the feature is the same thought
    (note,) = strict.notes_
    assert note["kind"] == "unmeasured-level"
    figures = note["figures"]
    assert (figures["term"], figures["level"], figures["features"]) == ("site", f"s{lost:03d}", ["x1"])
    with pytest.warns(DesignWarning, match=told):
        lenient = rm.Residualizer("site + age", on_unknown="mean").fit(X, metadata=frame)
    new = pd.DataFrame({"site": [f"s{lost:03d}", "s002"], "age": [0.5, -1.0]})
    values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    # each feature by itself, on the rows that it has: level means and a slope, by least squares with indicators
    have = ~np.isnan(X[:, 1])
    D = pd.get_dummies(frame["site"][have]).astype(float)
    effects = np.linalg.lstsq(np.column_stack([D, frame["age"][have]]), X[have, 1], rcond=None)[0]
    average = 2.0 - effects[:-1].mean() - 0.5 * effects[-1]
    known = 5.0 - effects[list(D.columns).index("s002")] + effects[-1]
    np.testing.assert_allclose(strict.transform(values, metadata=new)[:, 1], [np.nan, known], atol=1e-10)
    np.testing.assert_allclose(lenient.transform(values, metadata=new)[:, 1], [average, known], atol=1e-10)
    assert np.isfinite(strict.transform(values, metadata=new)[:, [0, 2]]).all()
    np.testing.assert_allclose(
        lenient.inverse_transform(lenient.transform(values, metadata=new), metadata=new), values, atol=1e-10
    )
    assert np.isnan(strict.inverse_transform(values, metadata=new)[0, 1])
    unseen = new.assign(site="elsewhere")
    np.testing.assert_allclose(lenient.transform(values, metadata=unseen)[0, 1], average, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"alpha": 3.0}, {"scale": True}])
def test_names_of_levels_change_nothing(options):
    frame, X = data(0)
    new = pd.DataFrame({"site": ["s000", "s001", "s003"], "age": [0.0, 1.0, 2.0]})
    found = []
    for names in ({}, {"s000": "z", "s003": "a"}):
        model = rm.Residualizer("site + age", on_unknown="mean", **options)
        with pytest.warns(DesignWarning, match="no values"):
            model.fit(X, metadata=frame.replace({"site": names}))
        found.append(model.transform(np.ones((3, 3)), metadata=new.replace({"site": names})))
    # log variances are iterated until they move by less than 1e-6
    np.testing.assert_allclose(*found, atol=1e-5 if "scale" in options else 1e-9)


def test_in_parts_and_merged_it_is_the_same():
    frame, X = data(1)
    with pytest.warns(DesignWarning, match="no values"):
        whole = rm.Residualizer("site + age").fit(X, metadata=frame)
    parts = rm.Residualizer("site + age")
    for piece in (slice(0, 200), slice(200, None)):
        with pytest.warns(DesignWarning, match="no values"):
            parts.partial_fit(X[piece], metadata=frame[piece])
    full = np.where(np.isnan(X), np.random.default_rng(1).normal(size=X.shape), X)
    np.testing.assert_allclose(whole.transform(full, metadata=frame), parts.transform(full, metadata=frame), atol=1e-9)
    assert np.isnan(parts.transform(full, metadata=frame)[frame["site"] == "s001", 1]).all()
    # values that come later are learned from
    parts.partial_fit(full, metadata=frame)
    assert np.isfinite(parts.transform(full, metadata=frame)).all()
