"""Tables of levels and of effects, against what the rows themselves say."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from numpy.testing import assert_allclose

import residmix as rm


def table(n=2400, K=8, d=10, odd=None, seed=0):
    rng = np.random.default_rng(seed)
    site, age = rng.integers(0, K, n), rng.uniform(20, 80, n)
    shift, spread = rng.normal(0, 0.3, (K, d)), np.exp(rng.normal(0, 0.05, (K, 1)))
    if odd == "shift":
        shift[3] += 2.0
    if odd == "spread":
        spread[3] *= 2.0
    X = shift[site] + 0.03 * age[:, None] + spread[site] * rng.normal(size=(n, d))
    return pd.DataFrame(X, columns=[f"f{j}" for j in range(d)]).assign(site=[f"s{k}" for k in site], age=age)


@pytest.mark.parametrize("options", [{"shrinkage": "eb", "scale": True}, {"scale": True}, {"shrinkage": "eb"}], ids=str)
def test_levels_are_described_as_their_rows_are(options):
    data = table(odd="spread").drop(columns="age")
    found = rm.Residualizer("site", **options).fit(data).level_table("site")
    X, groups = data.filter(like="f"), data.groupby("site")
    n = groups.size()
    inside = X - groups[list(X)].transform("mean")
    sd = np.sqrt((inside**2).sum() / (len(X) - len(n)))
    gamma = (groups[list(X)].mean() - X.mean()) / sd
    delta = groups[list(X)].var() / sd**2
    assert found["level"].tolist() == sorted(n.index)
    assert_allclose(found["rows"], n)
    assert_allclose(found["shift"], np.sqrt((gamma**2).mean(axis=1)), rtol=1e-9)
    expected = np.exp(0.5 * np.log(delta).mean(axis=1))
    if options == {"scale": True}:  # relative to the spread over all rows after it was evened out
        assert_allclose(found["spread"] / found["spread"][0], expected / expected.iloc[0], rtol=1e-6)
    else:
        assert_allclose(found["spread"], expected, rtol=1e-9)
        divergence = 0.5 * (delta + gamma**2 - 1 - np.log(delta)).mean(axis=1)
        assert_allclose(found["distance"], divergence, rtol=1e-9)


@pytest.mark.parametrize("what", ["shift", "spread"])
def test_a_level_unlike_the_others_is_odd_and_others_are_not(what):
    told = []
    for seed in range(10):
        data = table(odd=what, seed=seed)
        found = rm.Residualizer("site", preserve="age", scale=True, shrinkage="eb").fit(data).level_table("site")
        told += found.loc[found["odd"], "level"].tolist()
        found = rm.Residualizer("site", preserve="age", shrinkage="eb").fit(table(K=3, seed=seed)).level_table("site")
        assert not found["odd"].any()
    assert told.count("s3") == 10
    assert len(told) <= 14  # of 70 others; the deviation of eight levels is known roughly


def test_levels_without_known_spread_and_without_columns():
    data = table()
    found = rm.Residualizer("site", preserve="age").fit(data).level_table("site")
    assert found["spread"].isna().all() and found["distance"].isna().all()
    many = table(K=300, n=6000)
    found = rm.Residualizer("site").fit(many).level_table("site")
    assert_allclose(found["rows"], many.groupby("site").size())
    with pytest.raises(ValueError, match="'age' is preserved"):
        rm.Residualizer("site", preserve="age").fit(data).level_table("age")
    with pytest.raises(ValueError, match="unknown term 'sight' - did you mean 'site'"):
        rm.Residualizer("site").fit(data).level_table("sight")


@pytest.mark.parametrize("term", ["age", "bs(age, df=4)"])
def test_effects_along_a_variable_are_those_of_a_linear_model_with_its_bands(term):
    data = table()
    model = rm.Residualizer("site", preserve=term).fit(data)
    at = [25.0, 50.0, 75.0]
    found = model.effect("age", at=at)
    assert list(found) == ["at", "feature", "estimate", "lower", "upper"]
    one = found[found["feature"] == "f2"]
    # differences from the mean are contrasts of the design
    basis = model.design_.matrix(data, preserved=True).dense[:, -model.design_.n_preserved :]
    there = model.design_.matrix(pd.DataFrame({"age": at, "site": "s0"}), preserved=True).dense
    names = [f"b{j}" for j in range(basis.shape[1])]
    frame = data.assign(**dict(zip(names, basis.T, strict=True)))
    fit = smf.ols(f"f2 ~ site + {' + '.join(names)}", frame).fit()
    for value, low, high, row in zip(one["estimate"], one["lower"], one["upper"], there, strict=True):
        step = row[-len(names) :] - basis.mean(axis=0)
        told = fit.t_test(np.r_[np.zeros(len(fit.params) - len(names)), step])
        assert_allclose([value, low, high], [told.effect[0], *told.conf_int()[0]], atol=1e-8)
    assert (one["upper"] - one["lower"]).iloc[1] < (one["upper"] - one["lower"]).iloc[0]


def test_effects_of_a_factor_are_at_its_levels():
    data = table()
    found = rm.Residualizer("site").fit(data).effect("site")
    means = data.groupby("site")["f1"].mean() - data["f1"].mean()
    assert_allclose(found[found["feature"] == "f1"].set_index("at")["estimate"], means, atol=1e-10)


def test_what_has_no_effect_of_its_own_is_told():
    data = table()
    model = rm.Residualizer("site + age + site:age").fit(data)
    with pytest.raises(ValueError, match="no effect of 'age' alone: site:age uses other columns as well"):
        model.effect("age", at=[50])
    with pytest.raises(ValueError, match="no term uses it - did you mean 'age'"):
        rm.Residualizer("site + age").fit(data).effect("agee", at=[1])
    with pytest.raises(ValueError, match=r"effect\('age'\) needs at="):
        rm.Residualizer("site + age").fit(data).effect("age")


def test_the_spread_of_a_level_is_that_at_the_mean_of_the_other_metadata():
    data = table(odd="spread")
    model = rm.Residualizer("site + age", scale=True, check_leakage=False).fit(data)
    found = model.level_table("site").set_index("level")
    at = pd.DataFrame({"site": found.index, "age": data["age"].mean()})
    factor = model.scale_.factor(model.design_.matrix(at, preserved=True).dense)
    assert_allclose(found["spread"], np.exp(np.log(factor).mean(axis=1)), rtol=1e-9)
    other = rm.Residualizer("site + age", scale=True, check_leakage=False).fit(data.assign(age=data["age"] / 7 - 500))
    assert_allclose(other.level_table("site")["distance"], found["distance"], rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"scale": True}, {"shrinkage": {"site": "eb"}, "scale": True}], ids=str)
@pytest.mark.parametrize(("formula", "preserve"), [("site*sex", None), ("site", "sex + site:sex"), ("site*age", None)])
def test_levels_and_shares_beside_interactions_depend_on_no_reference_level(options, formula, preserve):
    data = table(n=900)
    data["sex"] = np.random.default_rng(1).choice(["f", "m"], len(data), p=[0.3, 0.7])
    data["f0"] += 2.0 * ((data["site"] == "s1") & (data["sex"] == "m"))
    names = {f"s{k}": f"s{7 - k}" for k in range(8)}
    other = data.assign(site=data["site"].map(names), sex=data["sex"].map({"f": "z", "m": "a"}), age=data["age"] - 500)
    how = {"features": [f"f{j}" for j in range(10)], "preserve": preserve, "check_leakage": False, **options}
    models = [rm.Residualizer(formula, **how).fit(one) for one in (data, other)]
    one, two = (model.level_table("site") for model in models)
    two = two.set_index("level").loc[[names[level] for level in one["level"]]]
    for column in ("shift", "spread", "distance"):
        assert_allclose(one[column], two[column], rtol=1e-4, err_msg=column)
    assert_allclose(models[0].variance_shares()["share"], models[1].variance_shares()["share"], atol=1e-8)
    # by hand: effects of the additive model, in residual standard deviations of the one with interactions
    beside = "sex" if "sex" in f"{formula}{preserve}" else "age"
    shifts = []
    for name in how["features"]:
        additive = smf.ols(f"{name} ~ C(site) + {beside}", data).fit()
        effects = np.array([additive.params.get(f"C(site)[T.{level}]", 0.0) for level in one["level"]])
        full = smf.ols(f"{name} ~ C(site) * {beside}", data).fit()
        shifts.append((effects - np.average(effects, weights=one["rows"])) / np.sqrt(full.scale))
    assert_allclose(one["shift"], np.sqrt(np.mean(np.square(shifts), axis=0)), rtol=1e-7)
