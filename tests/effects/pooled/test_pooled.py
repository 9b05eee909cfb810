"""Pooled effects of several factors, beside random ones, and from the moments of parts."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from numpy.testing import assert_allclose
from statsmodels.regression.mixed_linear_model import MixedLM

from residmix import Residualizer
from residmix.errors import ResidmixWarning

SITES, SCANNERS = list("abcd"), ["p", "q", "r"]


def sites(n=600, d=12, seed=0):
    """Sites and scanners with shifts and spreads of their own, an age that they differ in, and subjects seen thrice."""
    rng = np.random.default_rng(seed)
    site, scanner = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]), rng.choice(3, n)
    age = rng.uniform(20, 60, n) + 5.0 * site
    spread = np.exp(np.array([0.0, 0.5, -0.4, 0.3])[site] + np.array([0.0, 0.4, -0.3])[scanner])
    X = rng.normal(0.5, 1.0, (4, d))[site] + rng.normal(-0.3, 0.5, (3, d))[scanner] + 0.03 * age[:, None]
    X += spread[:, None] * rng.normal(size=(n, d))
    metadata = pd.DataFrame({"site": np.array(SITES)[site], "scanner": np.array(SCANNERS)[scanner], "age": age})
    return X, metadata


def columns(model, name):
    return model.coef_[[column.startswith(name) for column in model.design_columns_]]


@pytest.mark.parametrize("kind", ["eb", "eb-one-row"])
def test_each_of_several_factors_is_pooled_as_by_a_combat_that_has_the_other_as_a_covariate(kind):
    X, metadata = sites()
    both = Residualizer("site + scanner", preserve="age", shrinkage={"site": kind, "scanner": kind}).fit(
        X, metadata=metadata
    )
    for name, other in (("site", "scanner"), ("scanner", "site")):
        alone = Residualizer(name, preserve=f"{other} + age", shrinkage=kind).fit(X, metadata=metadata)
        assert_allclose(columns(both, name), columns(alone, name), atol=1e-12)
        beside = Residualizer("site + scanner", preserve="age", shrinkage={name: kind}).fit(X, metadata=metadata)
        assert_allclose(columns(beside, name), columns(alone, name), atol=1e-12)
        plain = Residualizer("site + scanner", preserve="age").fit(X, metadata=metadata)
        assert_allclose(columns(beside, other), columns(plain, other), atol=1e-12)
        assert np.abs(columns(plain, name) - columns(alone, name)).max() > 1e-3


def test_spreads_of_several_factors_multiply_and_none_is_left():
    X, metadata = sites(n=6000)
    options = {"preserve": "age", "scale": True}
    model = Residualizer("site + scanner", shrinkage={"site": "eb", "scanner": "eb"}, **options)
    residual = model.fit_transform(X, metadata=metadata)
    rest = residual - model.preserved_coef_[0] * (metadata["age"] - metadata["age"].mean()).to_numpy()[:, None]
    for name in ("site", "scanner"):
        left = pd.DataFrame(rest).groupby(metadata[name].to_numpy()).std().to_numpy()
        assert_allclose(left / left.mean(axis=0), 1.0, atol=0.08)  # 400 rows at least: standard errors of 0.035
    one = Residualizer("site", shrinkage="eb", **options).fit_transform(X, metadata=metadata)
    left = pd.DataFrame(one).groupby(metadata["scanner"].to_numpy()).std().mean(axis=1)
    assert left.max() / left.min() > 1.5
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-11)
    turned = Residualizer("scanner + site", shrinkage={"scanner": "eb", "site": "eb"}, **options)
    assert_allclose(turned.fit_transform(X, metadata=metadata), residual, atol=1e-7)
    pooled = np.sqrt(np.mean(rest**2, axis=0)) / np.sqrt(model.fit_.rss / len(X))
    assert_allclose(pooled, 1.0, atol=1e-3)  # but for what shrinkage leaves of the shifts


def long_combat(x, batch, covariate, subject):
    """Longitudinal ComBat of a matrix by its published steps (Beer et al. 2020), with statsmodels' mixed models."""
    levels, n = np.unique(batch, return_counts=True)
    dummies = (batch[:, None] == levels[1:]).astype(float)
    design = sm.add_constant(np.column_stack([dummies, covariate]))
    sigma, gamma, predicted = np.empty(x.shape[1]), np.empty((len(levels), x.shape[1])), np.empty(x.shape)
    for j, column in enumerate(x.T):
        found = MixedLM(column, design, groups=subject).fit(reml=True)
        sigma[j], predicted[:, j] = np.sqrt(found.scale), found.fittedvalues
        effects = np.r_[0.0, found.fe_params[1 : len(levels)]]
        gamma[:, j] = effects - n @ effects / len(x)
    own = np.searchsorted(levels, batch)
    z = (x - predicted + gamma[own]) / sigma
    hat = np.array([z[batch == k].mean(axis=0) for k in levels])
    delta = np.array([z[batch == k].var(axis=0, ddof=1) for k in levels])
    adjusted = np.empty_like(x)
    for k in range(len(levels)):
        bar, tau2 = hat[k].mean(), hat[k].var(ddof=1)
        mean, var = delta[k].mean(), delta[k].var(ddof=1)
        shape, rate = (mean**2 + 2 * var) / var, (mean**3 + mean * var) / var
        g, s2 = hat[k], delta[k]
        for _ in range(200):
            g = (n[k] * tau2 * hat[k] + s2 * bar) / (n[k] * tau2 + s2)
            s2 = (rate + 0.5 * ((z[own == k] - g) ** 2).sum(axis=0)) / (n[k] / 2 + shape - 1)
        adjusted[own == k] = sigma / np.sqrt(s2) * (z[own == k] - g) + predicted[own == k] - gamma[own][own == k]
    return adjusted


def test_beside_random_subjects_it_is_longitudinal_combat():
    rng = np.random.default_rng(2)
    subject = np.repeat(np.arange(60), 4)
    metadata = pd.DataFrame(
        {"subject": [f"s{k:02d}" for k in subject], "scanner": rng.choice(SCANNERS, 240), "time": np.tile(range(4), 60)}
    )
    scanner = np.searchsorted(SCANNERS, metadata["scanner"])
    X = (
        rng.normal(size=(60, 6))[subject] * 1.5
        + rng.normal(size=(3, 6))[scanner]
        + 0.2 * metadata["time"].to_numpy()[:, None]
    )
    X += np.array([1.0, 1.6, 0.7])[scanner][:, None] * rng.normal(size=X.shape)
    model = Residualizer(
        "scanner", preserve="I(time) + subject", scale=True, shrinkage={"scanner": "eb", "subject": "blup"}
    )
    residual = model.fit_transform(X, metadata=metadata)
    expected = long_combat(X, metadata["scanner"].to_numpy(), metadata["time"].to_numpy(), subject)
    # statsmodels' optimiser stops at 1e-5 of its parameters
    assert_allclose(residual - residual.mean(axis=0), expected - expected.mean(axis=0), atol=2e-3)
    plain = Residualizer("scanner", preserve="I(time) + subject", scale=True, shrinkage="eb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResidmixWarning)
        other = plain.fit_transform(X, metadata=metadata)
    assert np.abs(other - residual).max() > 0.05
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-10)


POOLED = [
    ({"shrinkage": "eb"}, "site", "age"),
    ({"shrinkage": "eb", "scale": True}, "site", "age"),
    ({"shrinkage": "eb", "scale": True, "reference": "b"}, "site", "age + scanner"),
    ({"shrinkage": "eb-one-row"}, "site + age", None),
    ({"shrinkage": {"site": "eb", "scanner": "eb"}}, "site + scanner", "age"),
    ({"shrinkage": {"site": "eb", "scanner": "eb"}, "scale": True}, "scanner + site", "age"),
    ({"shrinkage": {"site": "eb", "scanner": "blup"}}, "site", "scanner"),
    ({"scale": True}, "site", None),
]


@pytest.mark.parametrize(("options", "formula", "preserve"), POOLED, ids=str)
@pytest.mark.parametrize("gaps", [False, True])
def test_fits_of_parts_add_up_to_the_fit_of_all_rows(options, formula, preserve, gaps):
    X, metadata = sites()
    X += 1e4
    if gaps:
        X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    metadata = metadata.sort_values("site").reset_index(drop=True)  # so that parts don't have all sites
    parts = [slice(0, 250), slice(250, 480), slice(480, None)]
    formula = formula.replace("site", "C(site, levels=['a', 'b', 'c', 'd'])").replace(
        "scanner", "C(scanner, levels=['p', 'q', 'r'])"
    )
    whole = Residualizer(formula, preserve=preserve, check_leakage=False, **options).fit(X, metadata=metadata)
    expected = whole.transform(X, metadata=metadata)
    mixed = np.random.default_rng(0).permutation(len(X))
    stream = Residualizer(formula, preserve=preserve, check_leakage=False, **options)
    for part in parts:
        stream.partial_fit(X[mixed[part]], metadata=metadata.iloc[mixed[part]])
    assert_allclose(stream.transform(X, metadata=metadata), expected, atol=1e-8)  # the offset has taken four digits
    if options.get("reference") or "scanner" in str(preserve):
        return
    # whole sites apart: what a site lacks is neither an error nor a warning
    own = [(metadata["site"] == site).to_numpy() for site in SITES]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "removed and preserved effects")
        models = [
            Residualizer(formula, preserve=preserve, check_leakage=False, **options).fit(
                X[rows], metadata=metadata[rows]
            )
            for rows in own
        ]
    assert {note["kind"] for model in models for note in model.notes_} == {"levels-without-rows"}
    assert np.nanmax(np.abs(models[1].intercept_ - whole.intercept_)) > 1e-3
    for other in models[1:]:
        models[0].merge(other)
    assert_allclose(models[0].transform(X, metadata=metadata), expected, atol=1e-8)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_spreads_of_several_factors_are_the_same_from_sums_by_combination_and_from_the_rows(
    gaps, weighted, monkeypatch
):
    X, metadata = sites()
    metadata.loc[metadata["site"] == "d", "scanner"] = "p"  # not all combinations occur
    if gaps:
        X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    weight = np.arange(600) % 3 + 0.5 if weighted else None
    formula = "C(site, levels=['a', 'b', 'c', 'd', 'none']) + scanner"
    found = []
    for most in (512, 14):
        monkeypatch.setattr("residmix.effects.pooled.together.MOST_CELLS", most)
        model = Residualizer(formula, preserve="age", scale=True, shrinkage={formula[:-10]: "eb", "scanner": "eb"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResidmixWarning)
            found.append(model.fit(X, metadata=metadata, sample_weight=weight).transform(X, metadata=metadata))
    assert_allclose(found[0], found[1], atol=1e-12)


def test_what_is_not_in_the_moments_refuses_to_go_on(monkeypatch):
    X, metadata = sites()
    monkeypatch.setattr("residmix.effects.pooled.together.MOST_CELLS", 11)
    for formula, options in (
        ("site + age", {"scale": True}),
        ("site + scanner", {"scale": True, "shrinkage": {"site": "eb", "scanner": "eb"}}),
    ):
        with pytest.raises(ValueError, match="don't work with scale=True and this design"):
            Residualizer(formula, **options).partial_fit(X, metadata=metadata)
        model = Residualizer(formula, **options).fit(X, metadata=metadata)
        with pytest.raises(ValueError, match="don't work with scale=True and this design"):
            model.merge(model)


def test_weighted_spreads_of_sites_add_up_too():
    X, metadata = sites()
    weight = np.random.default_rng(0).uniform(0.5, 3.0, len(X))
    formula = "C(site, levels=['a', 'b', 'c', 'd'])"
    parts = [np.arange(600) < 300, np.arange(600) >= 300]
    new = lambda: Residualizer(formula, scale=True, check_leakage=False)  # noqa: E731
    models = [new().fit(X[at], metadata=metadata[at], sample_weight=weight[at]) for at in parts]
    whole = new().fit(X, metadata=metadata, sample_weight=weight)
    merged = models[0].merge(models[1])
    assert_allclose(
        merged.transform(X, metadata=metadata), whole.transform(X, metadata=metadata), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_spreads_of_levels_are_the_sample_variances_however_they_are_found(weighted, monkeypatch):
    X, metadata = sites()
    weight = np.arange(600) % 3 + 1.0 if weighted else np.ones(600)

    def factor():
        model = Residualizer("site", scale=True).fit(X, metadata=metadata, sample_weight=weight)
        return model.scale_.factor(model.design_.matrix(pd.DataFrame({"site": SITES})).dense)

    times = np.repeat(np.arange(600), weight.astype(int))
    spread = pd.DataFrame(X[times]).groupby(metadata["site"].to_numpy()[times]).std().to_numpy()
    found = factor()
    assert_allclose(found / found[0], spread / spread[0], rtol=1e-12)
    # the model of log variances, climbed in passes over the rows
    monkeypatch.setattr("residmix.effects.spread.spread._only_a_factor", lambda design: False)
    again = factor()
    assert_allclose(again / again[0], spread / spread[0], rtol=1e-7)
    assert not np.array_equal(again, found)


@pytest.mark.parametrize(
    ("formula", "options"), [("site", {}), ("site + age", {}), ("site", {"shrinkage": "eb"})], ids=str
)
def test_weights_too_light_to_tell_a_spread_are_told(formula, options):
    X, metadata = sites()
    with pytest.warns(ResidmixWarning, match="weights of 600 rows sum to 1, which"):
        Residualizer(formula, scale=True, **options).fit(X, metadata=metadata, sample_weight=np.full(600, 1 / 600))


def test_what_cannot_be_pooled_is_told():
    X, metadata = sites()
    for formula, preserve, shrinkage, match in (
        ("site", "scanner", {"scanner": "eb"}, "'scanner' is preserved"),
        ("site + age", None, {"age": "eb"}, "'age' is numeric"),
        ("site", None, {"sight": "eb"}, "unknown term 'sight' - did you mean 'site'"),
        ("site", None, {"site": "ebb"}, "must be 'blup', .* or 'eb-robust', not 'ebb'"),
    ):
        with pytest.raises(ValueError, match=match):
            Residualizer(formula, preserve=preserve, shrinkage=shrinkage).fit(X, metadata=metadata)
    with pytest.raises(ValueError, match="reference= works with one pooled factor, but 2 are pooled"):
        Residualizer("site + scanner", shrinkage={"site": "eb", "scanner": "eb"}, reference="a").fit(
            X, metadata=metadata
        )
