"""Combinations of levels that no row has: named, never a number, and the same whatever the coding."""

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.errors import DesignWarning


def data(*lost, n=500, seed=0):
    """Rows of three sites and three scanners, all combinations but those lost."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"site": rng.choice(list("abc"), n), "scanner": rng.choice(list("uvw"), n)})
    frame["age"] = rng.normal(size=n)
    shift = {cell: rng.normal(size=2) * 3.0 for cell in frame.groupby(["site", "scanner"]).groups}
    X = rng.normal(size=(n, 2)) + [shift[cell] for cell in zip(frame["site"], frame["scanner"], strict=True)]
    kept = [cell not in lost for cell in zip(frame["site"], frame["scanner"], strict=True)]
    return frame[kept].reset_index(drop=True), X[kept]


def sum_of_levels(frame, X, cell):
    """The sum of effects of levels that fits the means of the combinations that there are, at one of them."""
    means = pd.DataFrame(X).groupby([frame["site"].to_numpy(), frame["scanner"].to_numpy()]).mean()
    coded = pd.get_dummies(pd.DataFrame([*means.index, cell])).to_numpy(float)
    design = np.column_stack([np.ones(len(coded)), coded])
    return design[-1] @ np.linalg.lstsq(design[:-1], means.to_numpy(), rcond=None)[0]


FORMULAS = ["C(site)*C(scanner)", "C(site):C(scanner)", "scanner + C(site, contr.sum):scanner", "site*scanner"]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("lost", [("c", "v"), ("a", "u"), ("b", "u")], ids="-".join)  # a and u are the reference
def test_later_rows_are_nan_or_the_sum_of_what_their_levels_do_and_it_is_told_once(formula, lost):
    frame, X = data(lost)
    with pytest.warns(DesignWarning, match="^no rows where") as told:
        strict = rm.Residualizer(formula).fit(X, metadata=frame)
    assert len(told) == 1
    (note,) = strict.notes_
    assert note["kind"] == "unmeasured-combination"
    ((cell,), features) = note["figures"]["combinations"], note["figures"]["features"]
    assert sorted(cell.values()) == sorted(lost)
    assert features == ["x0", "x1"]
    with pytest.warns(DesignWarning, match="new rows get the sum"):
        lenient = rm.Residualizer(formula, on_unknown="mean").fit(X, metadata=frame)
    new = pd.DataFrame({"site": [lost[0], "b"], "scanner": [lost[1], "w"], "age": 0.0})
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    there = (frame["site"] == "b") & (frame["scanner"] == "w")
    known = values[1] - X[there].mean(axis=0)
    np.testing.assert_allclose(strict.transform(values, metadata=new), [[np.nan, np.nan], known], atol=1e-10)
    wanted = [values[0] - sum_of_levels(frame, X, lost), known]
    np.testing.assert_allclose(lenient.transform(values, metadata=new), wanted, atol=1e-10)
    np.testing.assert_allclose(lenient.inverse_transform(wanted, metadata=new), values, atol=1e-10)
    table = strict.tidy().set_index("term")
    assert table["estimate"].isna().any()
    np.testing.assert_array_equal(table["estimate"].isna(), table["p_value"].isna())
    assert "not estimated: no rows where" in str(strict.summary())


def test_with_every_combination_nothing_is_told_and_nothing_is_nan():
    frame, X = data()
    model = rm.Residualizer("site*scanner").fit(X, metadata=frame)
    assert model.notes_ == []
    assert not model.tidy().isna().any(axis=None)
    assert "not estimated" not in str(model.summary())


@pytest.mark.parametrize("options", [{}, {"alpha": 2.0}, {"scale": True}])
def test_names_of_levels_and_a_constant_change_nothing(options):
    lost = ("a", "u"), ("c", "w")
    frame, X = data(*lost)
    new = pd.DataFrame({"site": ["a", "c", "b"], "scanner": ["u", "w", "w"], "age": [0.0, 1.0, 2.0]})
    found = []
    for site, scanner, constant in (({}, {}, 0.0), ({"a": "z"}, {"u": "x", "w": "a"}, 1e3)):
        model = rm.Residualizer("site*scanner + age", on_unknown="mean", **options)
        names = {"site": site, "scanner": scanner}
        if "alpha" in options:  # a penalty on coefficients of interactions knows the coding
            names = {}
        with pytest.warns(DesignWarning, match="no rows where"):
            model.fit(X + constant, metadata=frame.replace(names))
        found.append(model.transform(np.full((3, 2), constant), metadata=new.replace(names)))
    np.testing.assert_allclose(*found, atol=1e-5 if "scale" in options else 1e-8)


def test_a_level_that_one_feature_was_not_measured_at_is_told_as_a_level():
    frame, X = data()
    X[frame["site"] == "a", 1] = np.nan
    X[(frame["site"] == "c") & (frame["scanner"] == "v"), 1] = np.nan
    with pytest.warns(DesignWarning) as told:
        model = rm.Residualizer("site*scanner", on_unknown="mean").fit(X, metadata=frame)
    kinds = {note["kind"]: note["figures"] for note in model.notes_}
    assert set(kinds) == {"unmeasured-level", "unmeasured-combination"}
    assert len(told) == 2
    assert kinds["unmeasured-combination"]["combinations"] == [{"site": "c", "scanner": "v"}]
    assert kinds["unmeasured-combination"]["features"] == ["x1"]
    # the other feature has all of them
    alone = rm.Residualizer("site*scanner").fit(X[:, :1], metadata=frame)
    new = pd.DataFrame({"site": ["a", "c"], "scanner": ["w", "v"]})
    both = model.transform(np.zeros((2, 2)), metadata=new)
    np.testing.assert_allclose(both[:, 0], alone.transform(np.zeros((2, 1)), metadata=new)[:, 0], atol=1e-10)
    # of a level without any values the average of the others at this scanner
    means = [X[(frame["site"] == site) & (frame["scanner"] == "w"), 1].mean() for site in "bc"]
    have = ~np.isnan(X[:, 1])
    wanted = [-np.mean(means), -sum_of_levels(frame[have], X[have, 1:], ("c", "v"))[0]]
    np.testing.assert_allclose(both[:, 1], wanted, atol=1e-8)


def test_in_parts_merged_and_reloaded_it_is_the_same(tmp_path):
    frame, X = data(("c", "v"))
    with pytest.warns(DesignWarning):
        whole = rm.Residualizer("site*scanner").fit(X, metadata=frame)
    parts = [rm.Residualizer("site*scanner") for _ in range(2)]
    for k, part in enumerate(parts):
        with pytest.warns(DesignWarning):
            part.fit(X[k::2], metadata=frame[k::2])
    with pytest.warns(DesignWarning):
        merged = parts[0].merge(parts[1])
    rm.save(merged, tmp_path / "m.rmx")
    everything = pd.DataFrame({"site": list("aabbcc"), "scanner": list("uvwuvw"), "age": 0.0})
    one = whole.transform(np.ones((6, 2)), metadata=everything)
    assert np.isnan(one[4]).all()
    assert np.isfinite(np.delete(one, 4, axis=0)).all()
    for other in (merged, rm.load(tmp_path / "m.rmx")):
        np.testing.assert_allclose(one, other.transform(np.ones((6, 2)), metadata=everything), atol=1e-9)


def test_a_mixture_refuses_such_rows_unless_told_otherwise():
    frame, X = data(("c", "v"))
    new = pd.DataFrame({"site": ["b", "c"], "scanner": ["w", "v"]})
    with pytest.warns(DesignWarning):
        strict = rm.ResidualMixture(1, formula="site*scanner").fit(X, metadata=frame)
    with pytest.raises(ValueError, match="row 1 has a combination of levels in 'site:scanner' that had no rows in fit"):
        strict.score_samples(np.zeros((2, 2)), metadata=new)
    assert np.isfinite(strict.score_samples(np.zeros((1, 2)), metadata=new[:1])).all()
    with pytest.warns(DesignWarning):
        lenient = rm.ResidualMixture(1, formula="site*scanner", on_unknown="mean").fit(X, metadata=frame)
    assert np.isfinite(lenient.score_samples(np.zeros((2, 2)), metadata=new)).all()
