"""What a fitted Residualizer tells of itself: attributes, tables, and that there was nothing to do."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import residmix as rm
from residmix.errors import DesignWarning, RareLevelWarning


def table(n=300, d=6, seed=0):
    rng = np.random.default_rng(seed)
    site = rng.choice(list("abcd"), n, p=[0.5, 0.3, 0.15, 0.05])
    age = rng.uniform(20, 80, n)
    shift = pd.DataFrame(rng.normal(size=(4, d)), index=list("abcd")).loc[site].to_numpy()
    X = shift + 0.02 * age[:, None] + rng.normal(size=(n, d))
    return pd.DataFrame(X, columns=[f"f{j}" for j in range(d)]).assign(site=site, age=age)


SHRUNK = [
    {"shrinkage": "eb"},
    {"shrinkage": "eb", "scale": True},
    {"shrinkage": "eb-one-row"},
    {"shrinkage": {"site": "blup"}},
]


@pytest.mark.parametrize("options", SHRUNK, ids=str)
def test_tidy_shows_what_is_applied_and_the_unshrunk_beside_it(options):
    data = table()
    model, plain = rm.Residualizer("site", preserve="age", **options).fit(data), rm.Residualizer("site", preserve="age")
    shown, before = model.tidy(), plain.fit(data).tidy()
    assert list(shown) == [*before, "unshrunk"]
    coef = shown.set_index(["feature", "term"])["estimate"].unstack()
    assert_allclose(coef[model.design_columns_], model.coef_.T, atol=1e-12)
    # of the whole prediction, while residuals keep the preserved effect about its mean
    kept = data["age"].mean() * model.preserved_coef_[0]
    assert_allclose(coef["Intercept"], model.intercept_ - kept, atol=1e-12)
    assert np.abs(shown["estimate"] - shown["unshrunk"]).max() > 1e-3
    assert_allclose(shown["unshrunk"], before["estimate"], atol=1e-10)
    for name in ("std_error", "statistic", "p_value", "partial_r2"):
        assert_allclose(shown[name], before[name], rtol=1e-7)


def test_tidy_of_least_squares_has_no_further_column():
    assert "unshrunk" not in rm.Residualizer("site").fit(table()).tidy()


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: rm.Residualizer().fit(table().drop(columns="site")), "there is no metadata, so only the means"),
        (lambda: rm.Residualizer().fit(table()[["f0", "f1"]].to_numpy(), np.arange(300)), "The second argument of fit"),
        (lambda: rm.Residualizer("site").fit(table().assign(site="a")), r"'site' has one level only \('a'\)"),
        (lambda: rm.Residualizer("1", preserve="age").fit(table().drop(columns="site")), "no term is named"),
        (
            lambda: rm.ResidualMixture(2, random_state=0).fit(table().drop(columns="site")),
            "there is no metadata, so only the means",
        ),
        (
            lambda: rm.ResidualMixture(2, random_state=0).fit(table()[["f0", "f1"]].to_numpy(), np.arange(300)),
            "The second argument of fit",
        ),
    ],
)
def test_a_fit_with_nothing_to_remove_says_so_once(fit, message):
    with pytest.warns(DesignWarning, match=message) as told:
        model = fit()
    assert len(told) == 1
    assert [note["kind"] for note in model.notes_] == ["nothing-removed"]


@pytest.mark.parametrize("preserved", [False, True])
def test_a_factor_of_one_level_among_others_is_noted(preserved):
    one = table().assign(scanner="b")
    options = {"preserve": "scanner"} if preserved else {}
    model = rm.Residualizer("site" if preserved else "site + scanner", **options).fit(one)
    (note,) = model.notes_
    assert note["kind"] == "one-level"
    assert note["figures"] == {"term": "scanner", "level": "b"}
    assert f"nothing to be {'kept' if preserved else 'removed'} for it" in note["message"]
    # the control: two levels
    one.loc[::2, "scanner"] = "c"
    assert rm.Residualizer("site" if preserved else "site + scanner", **options).fit(one).notes_ == []


def test_features_alone_are_noted_and_not_warned_of():
    X = table()[["f0", "f1"]].to_numpy()
    model = rm.Residualizer().fit(X)
    assert [note["kind"] for note in model.notes_] == ["nothing-removed"]
    assert rm.Residualizer().fit(X, metadata=table()["age"]).notes_ == []


def test_a_fit_of_folds_keeps_its_notes_to_itself():
    data = table()
    data.loc[data["site"] == "d", "site"] = ["d1", *["d2"] * (data["site"] == "d").sum()][: (data["site"] == "d").sum()]
    model = rm.Residualizer("site", residuals="cross-fitted", on_unknown="mean")
    with pytest.warns(RareLevelWarning):
        model.fit_transform(data)
    assert len([note for note in model.notes_ if note["kind"] == "rare-level"]) == 1


def test_attributes_are_derived_and_absent_before_fit():
    model = rm.Residualizer("site", preserve="age")
    for name in ("coef_", "intercept_", "r2_", "rank_", "estimator_", "scale_"):
        assert not hasattr(model, name)
    model.fit(table())
    assert_array_equal(model.coef_, model.fit_.coef[:3])
    assert_array_equal(model.preserved_coef_, model.fit_.coef[3:])
    assert not hasattr(model, "estimator_")
    assert model.scale_ is None


def test_entangled_effects_are_refused_where_that_is_asked_for():
    rng = np.random.default_rng(0)
    site = np.repeat(["a", "b"], 100)
    case = np.where(site == "a", "case", "control")
    case[:1] = "control"
    X, metadata = rng.normal(size=(200, 3)), pd.DataFrame({"site": site, "case": case})
    with pytest.raises(ValueError, match=r"canonical correlation 0\.99\d+, more than 0\.95\), as with a site"):
        rm.Residualizer("site", preserve="case", on_entangled="error").fit(X, metadata=metadata)
    metadata["case"] = rng.permutation(case)
    rm.Residualizer("site", preserve="case", on_entangled="error").fit(X, metadata=metadata)
