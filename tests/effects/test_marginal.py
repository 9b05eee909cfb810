"""What is shrunk beside an interaction depends neither on reference levels nor on where a number is 0."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from residmix import Residualizer, load, save
from residmix.effects.marginal import marginal, marginal_moments

SHRUNK = [
    {"shrinkage": {"site": "blup"}},
    {"shrinkage": {"site": "eb"}, "scale": True},
    {"shrinkage": {"site": "eb-one-row"}},
    {"shrinkage": {"site": "eb-robust"}},
]


@pytest.fixture
def table(rng):
    n = 240
    site, sex = rng.choice(list("ABCDEF"), n, p=[0.3, 0.25, 0.2, 0.15, 0.07, 0.03]), rng.choice(["f", "m"], n)
    age = rng.uniform(20, 80, n)
    X = rng.normal(size=(n, 3)) * [1, 5, 0.1] + (site == "B")[:, None] * [1, 2, 0.1]
    X += ((site == "C") & (sex == "m"))[:, None] * [2, 0, 0.3] + np.outer(age, [0.02, 0.1, 0.0])
    return X, pd.DataFrame({"site": site, "sex": sex, "age": age})


def renamed(metadata):
    """Other levels come first."""
    sites, sexes = dict(zip("ABCDEF", "fedcba", strict=True)), {"f": "z", "m": "a"}
    return metadata.assign(site=metadata["site"].map(sites), sex=metadata["sex"].map(sexes))


def residuals(formula, how, X, metadata):
    return Residualizer(formula, **how).fit_transform(X, metadata=metadata) / X.std(axis=0)


FORMULAS = ["site*sex", "site*age", "site*sex + site:age"]
PENALISED = [{"alpha": 3.0}, {"alpha": {"site": 3.0}}]


@pytest.mark.parametrize(
    ("formula", "how"),
    [(formula, how) for formula in FORMULAS for how in SHRUNK + PENALISED] + [("site*sex*age", how) for how in SHRUNK],
    ids=str,
)
def test_names_of_levels_change_nothing(table, formula, how):
    X, metadata = table
    expected = residuals(formula, how, X, metadata)
    # the smallest site has seven rows for two lines
    assert_allclose(residuals(formula, how, X, renamed(metadata)), expected, rtol=0, atol=1e-7)
    assert np.abs(expected - residuals(formula, {}, X, metadata)).max() > 1e-3  # something is shrunk


@pytest.mark.parametrize("how", SHRUNK, ids=str)
def test_where_a_number_is_zero_changes_nothing(table, how):
    X, metadata = table
    later = metadata.assign(age=metadata["age"] + 1000)
    assert_allclose(residuals("site*age", how, X, later), residuals("site*age", how, X, metadata), rtol=0, atol=1e-8)


@pytest.mark.parametrize("formula", ["site*age", "sex*age", "site + site:age", "age*bmi", "site*age + sex*age"])
@pytest.mark.parametrize("how", PENALISED, ids=str)
def test_where_a_number_is_zero_changes_no_penalty(table, formula, how, rng):
    X, metadata = table
    if "site" not in formula and isinstance(how["alpha"], dict):
        how = {"alpha": {"age": 3.0}}
    metadata = metadata.assign(bmi=rng.normal(25, 3, len(X)))
    later = metadata.assign(age=metadata["age"] + 300, bmi=metadata["bmi"] - 25)
    assert_allclose(residuals(formula, how, X, later), residuals(formula, how, X, metadata), rtol=0, atol=1e-7)


def test_a_penalty_beside_a_number_is_that_of_the_levels_at_its_mean(table):
    X, metadata = table
    sites = np.unique(metadata["site"])
    one = (metadata["site"].to_numpy()[:, None] == sites).astype(float)
    age = metadata["age"].to_numpy() - metadata["age"].mean()
    less = np.sqrt(3.0) * (np.eye(len(sites)) - 1 / len(sites))
    none = np.zeros_like(less)
    # an intercept and a slope for each site, whose spread is penalised, and the mean slope
    lines = np.hstack([one, one * age[:, None]])
    mean_slope = np.r_[np.zeros(len(sites)), np.full(len(sites), np.sqrt(3.0) / len(sites))]
    rows = np.vstack([lines, np.hstack([less, none]), np.hstack([none, less]), mean_slope])
    found = np.linalg.lstsq(rows, np.vstack([X, np.zeros((len(rows) - len(X), 3))]), rcond=None)[0]
    expected = X - lines @ found
    got = residuals("site*age", {"alpha": 3.0}, X, metadata) * X.std(axis=0)
    assert_allclose(got - got.mean(axis=0), expected - expected.mean(axis=0), rtol=0, atol=1e-8)


def test_without_an_interaction_nothing_is_to_do(table):
    X, metadata = table
    model = Residualizer("site + sex + sex:age").fit(X, metadata=metadata)
    (site,) = (term for term in model.design_.terms if term.name == "site")
    assert marginal(model.design_, model.moments_.linear, [site]) is None


def test_coefficients_and_moments_are_those_of_columns_less_what_others_explain(table):
    """Against columns made by hand, and a fit of these by numpy."""
    X, metadata = table
    model = Residualizer("site*sex + age").fit(X, metadata=metadata)
    design, linear = model.design_, model.moments_.linear
    terms = {term.name: term for term in design.terms}
    changed = marginal(design, linear, [terms["site"]])
    moments = marginal_moments(linear, changed)
    A = _columns(metadata, design.column_names)
    own = terms["site:sex"].columns
    others = np.column_stack([np.ones(len(A)), A[:, terms["site"].columns], A[:, terms["sex"].columns]])
    left = A.copy()
    left[:, own] -= others @ np.linalg.lstsq(others, A[:, own], rcond=None)[0]
    expected = np.linalg.lstsq(np.column_stack([left, np.ones(len(A))]), X, rcond=None)[0][:-1]
    assert_allclose(changed[0] @ model._linear.applied.coef, expected, atol=1e-10)
    centred = left - left.mean(axis=0)
    assert_allclose(moments.s_aa[0], centred.T @ centred, atol=1e-9)
    assert_allclose(moments.s_ax, centred.T @ (X - X.mean(axis=0)), atol=1e-8)
    # a constant goes with the others' means
    assert_allclose(moments.mean_a[0], (A @ np.linalg.inv(changed[0])).mean(axis=0), atol=1e-10)


def _columns(metadata, names):
    """Return the design with treatment coding, written out."""
    made = {"age": metadata["age"].to_numpy(float), "sex[T.m]": (metadata["sex"] == "m").to_numpy(float)}
    for level in "BCDEF":
        made[f"site[T.{level}]"] = (metadata["site"] == level).to_numpy(float)
        made[f"site[T.{level}]:sex[T.m]"] = made[f"site[T.{level}]"] * made["sex[T.m]"]
    return np.column_stack([made[name] for name in names])


@pytest.mark.filterwarnings("ignore::residmix.errors.RareLevelWarning")
def test_features_with_gaps_are_shrunk_as_if_each_were_alone_with_its_rows(table):
    # features without gaps share sums; the others have their own
    X, metadata = table
    X[:80, 2] = np.nan
    X[(metadata["site"] == "A") & (metadata["sex"] == "f"), 2] = np.nan
    how = {"shrinkage": {"site": "blup"}}
    together = Residualizer("site*sex", **how).fit_transform(X, metadata=metadata)
    for j in range(X.shape[1]):
        have = ~np.isnan(X[:, j])
        alone = Residualizer("site*sex", **how).fit_transform(X[have, j : j + 1], metadata=metadata[have])
        assert_allclose(together[have, j] / X[have, j].std(), alone[:, 0] / X[have, j].std(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("formula", "preserve", "main"),
    [
        ("site", "sex + site:sex", "sex"),
        ("site", "site:sex", None),
        ("site + age", "site:age", None),
        ("sex", "site*age + sex:site:age", "site*age"),
    ],
)
@pytest.mark.parametrize("gaps", [False, True])
def test_a_preserved_interaction_changes_nothing_of_the_main_effects_that_are_removed(
    table, formula, preserve, main, gaps, tmp_path
):
    # what main effects explain beside it is what they explain alone: not the differences at a reference level
    X, metadata = table
    metadata = metadata[metadata["site"] != "F"].reset_index(drop=True)
    X = X[table[1]["site"] != "F"]
    if gaps:
        X[::3, 1] = np.nan
    model = Residualizer(formula, preserve=preserve, check_leakage=False)
    found = model.fit_transform(X, metadata=metadata)
    expected = Residualizer(formula, preserve=main, check_leakage=False).fit_transform(X, metadata=metadata)
    assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert_allclose(X - model.intercept_ - design_of(formula, metadata, model.design_columns_) @ model.coef_, found)
    assert_allclose(model.inverse_transform(found, metadata=metadata), X, rtol=1e-12)
    save(model, tmp_path / "model")
    assert_allclose(load(tmp_path / "model").transform(X, metadata=metadata), found, rtol=0, atol=0)


def design_of(formula, metadata, names):
    made = {"age": metadata["age"].to_numpy(), "sex[T.m]": (metadata["sex"] == "m").to_numpy(float)}
    made |= {f"site[T.{level}]": (metadata["site"] == level).to_numpy(float) for level in "BCDE"}
    return np.column_stack([made[name] for name in names])


@pytest.mark.parametrize("how", [{}, {"scale": True}, {"shrinkage": {"site": "blup"}}, {"shrinkage": {"site": "eb"}}])
@pytest.mark.filterwarnings("ignore::residmix.errors.RareLevelWarning")
def test_beside_preserved_interactions_names_and_origins_change_nothing(table, how):
    X, metadata = table
    other = renamed(metadata).assign(age=metadata["age"] - 500)
    models = [
        Residualizer("site + age", preserve="sex + site:sex + site:age", check_leakage=False, **how).fit(
            X, metadata=one
        )
        for one in (metadata, other)
    ]
    one, two = models[0].transform(X, metadata=metadata), models[1].transform(X, metadata=other)
    assert_allclose(one / X.std(axis=0), two / X.std(axis=0), rtol=0, atol=1e-6)
    assert_allclose(models[0].inverse_transform(one, metadata=metadata), X, rtol=1e-9)


def test_left_out_rows_cannot_have_what_a_preserved_interaction_shares(table):
    X, metadata = table
    model = Residualizer("site", preserve="sex + site:sex", residuals="loo", check_leakage=False)
    with pytest.raises(ValueError, match=r"loo.* preserved interaction that holds a removed term; use .*cross-fitted"):
        model.fit_transform(X[metadata["site"] != "F"], metadata=metadata[metadata["site"] != "F"])


@pytest.mark.parametrize("formula", ["site*sex", "site*age"])
def test_spreads_of_random_effects_depend_on_no_names_or_origins_either(table, formula):
    X, metadata = table
    how = {"shrinkage": {"site": "blup"}, "scale": True, "check_leakage": False}
    one = residuals(formula, how, X, metadata)
    two = residuals(formula, how, X, renamed(metadata).assign(age=metadata["age"] - 500))
    assert_allclose(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shrinkage", [{"site": "blup"}, {"site": "blup", "sex": "blup"}])
@pytest.mark.filterwarnings("ignore::residmix.errors.ResidmixWarning")
def test_where_combinations_are_empty_what_is_left_of_their_columns_is_no_effect(shrinkage):
    # a column of the interaction that is its site's: less what the site explains it is rounding
    how = {"shrinkage": shrinkage, "check_leakage": False}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        metadata = pd.DataFrame({"site": rng.choice(list("ABCDE"), 25), "sex": rng.choice(["f", "m"], 25)})
        metadata.loc[metadata["site"].isin(["A", "C"]), "sex"] = "m"
        weight, X = rng.integers(1, 4, 25), rng.normal(size=(25, 1))
        model = Residualizer("site*sex", **how)
        found = model.fit_transform(X, metadata=metadata, sample_weight=weight)
        assert np.abs(model.coef_).max() < 1e3
        assert_allclose(model.inverse_transform(found, metadata=metadata), X, rtol=0, atol=1e-12)
        other = Residualizer("site*sex", **how).fit_transform(X, metadata=renamed(metadata), sample_weight=weight)
        assert_allclose(found, other, rtol=0, atol=1e-6)
