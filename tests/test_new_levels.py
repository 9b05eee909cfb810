"""Levels that fit didn't see: their expected effects, and effects learned from a few rows."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import residmix as rm
from residmix.new_levels import level_prior


def sites(n_sites, rows, *, spread=1.0, noise=1.0, seed=0, first=0, d=3):
    """Return a table of sites whose effects are normal, and the effects."""
    rng = np.random.default_rng(seed)
    rows = np.broadcast_to(rows, n_sites)
    effects = spread * rng.normal(size=(n_sites, d))
    site = np.repeat(np.arange(n_sites), rows)
    age = rng.normal(50, 10, len(site))
    X = effects[site] + 0.1 * age[:, None] + noise * rng.normal(size=(len(site), d))
    names = [f"x{j}" for j in range(d)]
    table = pd.DataFrame(X, columns=names)
    table["site"], table["age"] = [f"s{s + first}" for s in site], age
    return table, effects


def applied(model, level, like):
    """What transform takes from a row of `level`, beyond what it takes from one of the average level."""
    one = like.assign(site=level)
    everyone = [like.assign(site=known) for known in model.design_.terms[0].levels]
    average = np.mean([row[list(model.features_)].to_numpy() - model.transform(row) for row in everyone], axis=0)
    return (one[list(model.features_)].to_numpy() - model.transform(one) - average)[0]


def test_the_prior_solves_its_equation_and_finds_the_truth():
    rng = np.random.default_rng(0)
    L, tau, sigma = 400, np.array([0.5, 2.0, 0.0]), 1.5
    rows = rng.integers(2, 40, L)[:, None] * np.ones(3)
    effects = 3.0 + tau * rng.normal(size=(L, 3)) + sigma / np.sqrt(rows) * rng.normal(size=(L, 3))
    prior = level_prior(effects, rows, np.full(3, sigma**2))
    found = sigma**2 / prior.ratio
    assert_allclose(found[:2], tau[:2] ** 2, rtol=0.2)
    assert found[2] < 0.02
    weight = 1 / (found + sigma**2 / rows)
    assert_allclose(prior.mean, (weight * effects).sum(axis=0) / weight.sum(axis=0), rtol=1e-12)
    q = (weight * (effects - prior.mean) ** 2).sum(axis=0)
    assert_allclose(q[:2], L - 1, rtol=1e-9)


def test_levels_that_differ_by_noise_alone_have_no_variance_of_their_own():
    rows = np.array([[5.0], [10.0], [20.0]])
    prior = level_prior(np.array([[0.01], [-0.01], [0.0]]), rows, np.ones(1))
    assert np.isinf(prior.ratio[0])
    assert_allclose(prior.mean, rows[:, 0] @ [0.01, -0.01, 0.0] / 35)


def test_shrink_gives_an_unseen_level_the_precision_weighted_mean_of_the_known():
    table, _ = sites(6, [3, 4, 5, 200, 300, 400], noise=3.0)
    mean = rm.Residualizer("site", features=["x0", "x1", "x2"], on_unknown="mean").fit(table)
    shrink = rm.Residualizer("site", features=["x0", "x1", "x2"], on_unknown="shrink").fit(table)
    like = table[:1]
    groups = table.groupby("site")[["x0", "x1", "x2"]]
    effects = groups.mean().to_numpy() - groups.mean().to_numpy().mean(axis=0)
    rows = groups.count().to_numpy(float)
    noise = ((table[["x0", "x1", "x2"]] - groups.transform("mean")) ** 2).sum().to_numpy() / (len(table) - 6)
    assert_allclose(applied(shrink, "new", like), level_prior(effects, rows, noise).mean, atol=1e-9)
    assert_allclose(applied(mean, "new", like), 0.0, atol=1e-9)
    assert np.abs(applied(shrink, "new", like)).max() > 0.05
    # known levels are as ever
    assert_allclose(shrink.transform(table), mean.transform(table), atol=1e-12)


@pytest.mark.parametrize("n_sites", [12, 300])  # with columns, and absorbed
def test_adapting_goes_from_the_expected_effect_to_the_mean_of_the_rows(n_sites):
    table, _ = sites(n_sites, 40)
    names = ["x0", "x1", "x2"]
    new, _ = sites(1, 100_000, seed=5, first=9000)
    model = rm.Residualizer("site + age", features=names, on_unknown="shrink").fit(table)
    expected = model.new_levels_["site"].effects(shrink=True)[-2]
    deviations = {}
    for rows in (1, 20, 100_000):
        adapted = rm.Residualizer("site + age", features=names).fit(table).adapt(new[:rows])
        levels = adapted.new_levels_["site"]
        assert levels.labels == ("s9000",)
        assert_allclose(levels.weight, rows)
        effects, ratio = levels.effects(shrink=False), levels.prior.ratio
        assert_allclose(effects[0] - expected, rows / (rows + ratio) * (levels.mean[0] - expected), atol=1e-10)
        assert_allclose(effects[1:], 0.0)
        deviations[rows] = np.abs(adapted.transform(new).mean(axis=0)).max()
    assert deviations[100_000] < 1e-3 < deviations[1]


def test_adapted_effects_are_closer_to_the_truth_than_either_extreme():
    names = ["x0", "x1", "x2"]
    table, known = sites(30, 25, noise=2.0)
    model = rm.Residualizer("site + age", features=names).fit(table)
    centre = known.mean(axis=0)
    errors = {"adapted": [], "rows alone": [], "average": []}
    for seed in range(100):
        new, effect = sites(1, 4, noise=2.0, seed=100 + seed, first=9000)
        one = rm.Residualizer("site + age", features=names).fit(table) if seed == 0 else model
        one.new_levels_ = {}
        levels = one.adapt(new).new_levels_["site"]
        truth = effect[0] - centre
        errors["adapted"].append((levels.effects(shrink=True)[0] - truth) ** 2)
        errors["rows alone"].append((levels.mean[0] - truth) ** 2)
        errors["average"].append(truth**2)
    loss = {name: np.mean(values) for name, values in errors.items()}
    assert loss["adapted"] < 0.8 * min(loss["rows alone"], loss["average"])


def test_rows_of_a_new_level_may_come_in_any_number_of_calls_and_with_gaps():
    names = ["x0", "x1", "x2"]
    table, _ = sites(10, 20)
    new, _ = sites(2, 9, seed=3, first=50)
    new.loc[4, "x1"] = np.nan
    weight = np.linspace(0.5, 2, len(new))
    whole = rm.Residualizer("site + age", features=names).fit(table).adapt(new, sample_weight=weight)
    parts = rm.Residualizer("site + age", features=names).fit(table)
    for part in (slice(0, 5), slice(5, 12), slice(12, 18)):
        parts.adapt(new[part], sample_weight=weight[part])
    assert_allclose(parts.transform(new), whole.transform(new), atol=1e-12)
    assert_allclose(
        whole.new_levels_["site"].weight[0], [weight[:9].sum(), weight[:9].sum() - weight[4]] + [weight[:9].sum()]
    )
    # beside rows of known levels, which count for nothing
    mixed = rm.Residualizer("site + age", features=names).fit(table)
    mixed.adapt(pd.concat([table[:30], new]), sample_weight=np.r_[np.ones(30), weight])
    assert_allclose(mixed.transform(new), whole.transform(new), atol=1e-12)


def test_an_adapted_model_is_inverted_saved_and_still_refuses_other_levels(tmp_path):
    names = ["x0", "x1", "x2"]
    table, _ = sites(10, 20)
    new, _ = sites(1, 9, seed=3, first=50)
    model = rm.Residualizer("site + age", features=names).fit(table).adapt(new)
    residual = model.transform(new)
    back = model.inverse_transform(pd.DataFrame(residual, columns=names).assign(site=new["site"], age=new["age"]))
    assert_allclose(back, new[names], atol=1e-10)
    rm.save(model, tmp_path / "model.safetensors")
    assert np.array_equal(rm.load(tmp_path / "model.safetensors").transform(new), residual)
    with pytest.raises(ValueError, match=r"levels that fit did not see: 's77', in 1 row"):
        model.transform(pd.concat([new, new[:1].assign(site="s77")]))
    with pytest.raises(ValueError, match="adapt last"):
        model.partial_fit(table)


def test_random_effects_adapt_about_their_own_mean():
    names = ["x0", "x1", "x2"]
    table, _ = sites(10, 20)
    new, _ = sites(1, 6, seed=3, first=50)
    model = rm.Residualizer("site + age", features=names, shrinkage={"site": "blup"}).fit(table).adapt(new)
    levels, ratio = model.new_levels_["site"], model.random_effects_["site"].ratio
    assert_allclose(levels.effects(shrink=True)[0], 6 / (6 + ratio) * levels.mean[0])


def test_preserved_effects_are_not_taken_for_the_new_levels():
    names = ["x0", "x1", "x2"]
    table, _ = sites(10, 200, noise=0.1)
    new, effect = sites(1, 2000, noise=0.1, seed=3, first=50)
    for part, share in ((table, 0.5), (new, 0.9)):
        part["sick"] = np.random.default_rng(7).random(len(part)) < share
        part[names] += 5.0 * part[["sick"]].to_numpy()
    model = rm.Residualizer("site + age", preserve="sick", features=names).fit(table).adapt(new)
    _, known = sites(10, 200, noise=0.1)
    assert_allclose(model.new_levels_["site"].effects(shrink=True)[0], effect[0] - known.mean(axis=0), atol=0.05)


def test_what_cannot_be_adapted_is_said():
    names = ["x0", "x1", "x2"]
    table, _ = sites(10, 20)
    model = rm.Residualizer("site + age", features=names).fit(table)
    with pytest.raises(ValueError, match="all levels of 'site' here are known"):
        model.adapt(table)
    with pytest.raises(ValueError, match="no factor is removed"):
        rm.Residualizer("age", features=names).fit(table).adapt(table)
    with pytest.raises(ValueError, match="pooled over features"):
        rm.Residualizer("site", features=names, scale=True, shrinkage="eb").fit(table).adapt(table)
    table["scanner"] = np.resize(["a", "b", "c"], len(table))
    two = rm.Residualizer("site + scanner", features=names).fit(table)
    strange = table[:3].assign(site="new", scanner=["a", "z", "b"])
    with pytest.raises(ValueError, match="row 1 has new levels of two factors"):
        two.adapt(strange)


def test_files_adapt_and_are_transformed_as_tables_are(tmp_path):
    names = ["x0", "x1", "x2"]
    table, _ = sites(10, 20)
    new, _ = sites(3, 9, seed=3, first=50)
    new.to_parquet(tmp_path / "new.parquet")
    memory = rm.Residualizer("site + age", features=names, on_unknown="shrink").fit(table).adapt(new)
    streamed = rm.Residualizer("site + age", features=names, on_unknown="shrink").fit(table)
    source = rm.scan(tmp_path / "new.parquet", batch_rows=10)
    streamed.adapt(source)
    assert np.array_equal(streamed.transform(source), memory.transform(new))
