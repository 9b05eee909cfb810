"""Levels that fit didn't see: their expected effects, and effects learned from a few rows."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import residmix as rm
from residmix.effects.pooled.posterior import posterior, posterior_shift
from residmix.effects.unseen.priors import level_prior


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


def mean_squared_errors(trial, n_trials):
    """Return the mean squared error of each estimate, by name, over ``trial(seed) -> (truth, estimates)``."""
    trials = [trial(seed) for seed in range(n_trials)]
    return {name: np.mean([(made[name] - truth) ** 2 for truth, made in trials]) for name in trials[0][1]}


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


@pytest.mark.parametrize("unit", [1e-20, 1e-8, 1e12])
def test_the_prior_does_not_depend_on_the_unit(unit):
    rng = np.random.default_rng(0)
    effects, rows, noise = rng.normal(size=(6, 3)), np.full((6, 3), 10.0), np.array([0.0, 0.3, 1e-9])
    prior, other = level_prior(effects, rows, noise), level_prior(unit * effects, rows, noise * unit**2)
    assert_allclose(other.mean, unit * prior.mean, rtol=1e-12)
    assert_allclose(other.ratio[1:], prior.ratio[1:], rtol=1e-12)
    # without noise the levels keep their own estimates
    assert max(prior.ratio[0], other.ratio[0]) < 1e-25


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

    def trial(seed):
        new, effect = sites(1, 4, noise=2.0, seed=100 + seed, first=9000)
        model.new_levels_ = {}
        levels = model.adapt(new).new_levels_["site"]
        estimates = {"adapted": levels.effects(shrink=True)[0], "rows alone": levels.mean[0], "average": 0.0}
        return effect[0] - centre, estimates

    loss = mean_squared_errors(trial, 100)
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
    with pytest.raises(ValueError, match="fit saw all levels of 'site' in these rows"):
        model.adapt(table)
    with pytest.raises(ValueError, match="no factor is removed"):
        rm.Residualizer("age", features=names).fit(table).adapt(table)
    with pytest.raises(ValueError, match=r"doesn't work with shrinkage='eb'.*call adapt"):
        rm.Residualizer("site", features=names, shrinkage="eb", on_unknown="shrink").fit(table)
    table["scanner"] = np.resize(["a", "b", "c"], len(table))
    two = rm.Residualizer("site + scanner", features=names).fit(table)
    strange = table[:3].assign(site="new", scanner=["a", "z", "b"])
    with pytest.raises(ValueError, match="row 1 has new levels of two factors"):
        two.adapt(strange)


def spread_sites(n_sites, rows, *, seed=0, first=0, d=3, tau=0.4):
    """Return a table of sites whose log standard deviations are normal, and these, for an age that widens them too."""
    rng = np.random.default_rng(seed)
    log_sd = tau * rng.normal(size=(n_sites, d))
    site = np.repeat(np.arange(n_sites), rows)
    age = rng.normal(50, 10, len(site))
    noise = rng.normal(size=(len(site), d)) * np.exp(log_sd[site] + 0.02 * (age - 50)[:, None])
    table = pd.DataFrame(rng.normal(size=(n_sites, d))[site] + noise, columns=[f"x{j}" for j in range(d)])
    table["site"], table["age"] = [f"s{s + first}" for s in site], age
    return table, log_sd


def test_adapting_learns_the_spread_as_a_fit_with_all_rows_does():
    names = ["x0", "x1", "x2"]
    table, _ = spread_sites(20, 400)
    new, _ = spread_sites(1, 1000, seed=1, first=90, tau=1.0)
    early, late = new[:500], new[500:]
    model = rm.Residualizer("site + age", features=names, scale=True)
    before = rm.Residualizer("site + age", features=names, scale=True, on_unknown="mean").fit(table)
    adapted = rm.Residualizer("site + age", features=names, scale=True).fit(table).adapt(early)
    whole = model.fit(pd.concat([table, early]))
    unit, expected = [np.sqrt(fit.fit_.rss / fit.fit_.residual_degrees) for fit in (before, whole)]
    # each in its own unit, which is the pooled spread
    difference = adapted.transform(late) / unit - whole.transform(late) / expected
    assert np.sqrt(np.mean(difference**2)) < 0.02
    assert_allclose(adapted.transform(late).std(axis=0), unit, rtol=0.1)
    assert np.sqrt(np.mean((before.transform(late) / unit - whole.transform(late) / expected) ** 2)) > 0.5
    back = rm.Residualizer("site + age", features=names, scale=True).fit(table).adapt(new)
    frame = pd.DataFrame(back.transform(new), columns=names).assign(site="s90", age=new["age"])
    assert_allclose(back.inverse_transform(frame), new[names], atol=1e-10)


@pytest.mark.slow
def test_an_adapted_spread_is_closer_to_the_truth_than_the_rows_or_the_average():
    names = ["x0", "x1", "x2"]
    table, known = spread_sites(40, 60)
    model = rm.Residualizer("site + age", features=names, scale=True, on_unknown="shrink").fit(table)
    unseen = model.new_levels_
    prior = unseen["site"].spread.prior
    assert_allclose(1 / np.sqrt(prior.ratio), 0.4, rtol=0.35)  # of 40 draws

    def trial(seed):
        new, log_sd = spread_sites(1, 8, seed=500 + seed, first=90)
        model.new_levels_ = unseen
        levels = model.adapt(new).new_levels_["site"]
        alone = 0.5 * np.log(levels.totals.within[0] / 7 / levels.spread.variance)
        estimates = {"adapted": levels.spreads(shrink=True)[0], "rows alone": alone, "average": 0.0}
        return log_sd[0] - known.mean(axis=0), estimates

    loss = mean_squared_errors(trial, 150)
    assert loss["adapted"] < 0.75 * min(loss["rows alone"], loss["average"])


def test_a_spread_is_not_told_from_one_row_and_never_from_a_constant():
    names = ["x0", "x1", "x2"]
    table, _ = spread_sites(20, 100)
    model = rm.Residualizer("site + age", features=names, scale=True).fit(table)
    new, _ = spread_sites(1, 6, seed=1, first=90)
    assert_allclose(model.adapt(new[:1]).new_levels_["site"].spreads(shrink=False)[1:], 0.0)
    one = model.new_levels_["site"]
    assert_allclose(one.spreads(shrink=False)[0], one.spread.prior.mean)
    new["x1"] = model.inverse_transform(np.zeros((6, 3)), metadata=new.assign(site="s0"))[:, 1]
    model = rm.Residualizer("site + age", features=names, scale=True).fit(table).adapt(new)
    spread = model.new_levels_["site"].spreads(shrink=False)[0]
    assert_allclose(spread[1], model.new_levels_["site"].spread.prior.mean[1])
    assert np.isfinite(model.transform(new)).all()


def batches(sizes, *, seed=0, d=60, first=0):
    """Return features of batches that ComBat's model makes, and their shifts and standard deviations."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(size=(len(sizes), 1)) + 0.3 * rng.normal(size=(len(sizes), d))
    sd = np.sqrt(np.exp(0.3 * rng.normal(size=(len(sizes), 1))) * 9 / rng.gamma(10, size=(len(sizes), d)))
    batch = np.repeat(np.arange(len(sizes)), sizes)
    age = rng.normal(size=len(batch))
    X = shift[batch] + 0.3 * age[:, None] + sd[batch] * rng.normal(size=(len(batch), d))
    return X, pd.DataFrame({"batch": [f"b{k + first}" for k in batch], "age": age}), shift, sd


@pytest.mark.parametrize(
    "options",
    [
        {"shrinkage": "eb"},
        {"shrinkage": "eb", "scale": True},
        {"shrinkage": "eb-one-row"},
        {"shrinkage": "eb", "scale": True, "reference": "b1"},
    ],
    ids=str,
)
def test_a_later_batch_gets_what_combat_gives_it_with_everything_else_frozen(options):
    X, metadata, _, _ = batches([30, 40, 50])
    new, later, _, _ = batches([12], seed=1, first=7)
    model = rm.Residualizer("batch", preserve="age", **options).fit(X, metadata=metadata)
    model.adapt(new, metadata=later)
    # by hand: least squares, pooled standard deviation, posterior of the standardised rows
    onehot = pd.get_dummies(metadata["batch"]).to_numpy(float)
    beta, rss, _, _ = np.linalg.lstsq(np.column_stack([onehot, metadata["age"]]), X, rcond=None)
    grand, pooled = onehot.mean(axis=0) @ beta[:3], np.sqrt(rss / len(X))
    if "reference" in options:
        own = onehot[:, 1] == 1
        left = X - np.column_stack([onehot, metadata["age"]]) @ beta
        grand, pooled = beta[1], np.sqrt(np.mean(left[own] ** 2, axis=0))
    age = later["age"].to_numpy()[:, None] * beta[3]
    z = (new - grand - age) / pooled
    n = np.full((1, X.shape[1]), 1.0 if options["shrinkage"] == "eb-one-row" else 12.0)
    if "scale" in options:
        gamma, delta = posterior(z.mean(axis=0)[None], z.var(axis=0, ddof=1)[None], n)
    else:
        gamma, delta = posterior_shift(z.mean(axis=0)[None], np.ones_like(n), n), np.ones_like(n)
    expected = (z - gamma) / np.sqrt(delta) * pooled + age - metadata["age"].mean() * beta[3]
    residual = model.transform(new, metadata=later)
    assert_allclose(residual, expected, atol=1e-10)
    assert_allclose(model.inverse_transform(residual, metadata=later), new, atol=1e-10)


def test_a_later_batch_is_adjusted_as_by_a_combat_of_all_batches(tmp_path):
    X, metadata, _, _ = batches([200, 200, 200, 200])
    new, later, _, _ = batches([20], seed=1, first=7)
    options = {"formula": "batch", "preserve": "age", "scale": True, "shrinkage": "eb"}
    adapted = rm.Residualizer(**options).fit(X, metadata=metadata).adapt(new, metadata=later)
    everything = (np.vstack([X, new]), pd.concat([metadata, later]))
    whole = rm.Residualizer(**options).fit(everything[0], metadata=everything[1])
    mean = rm.Residualizer(**options, on_unknown="mean").fit(X, metadata=metadata)
    expected = whole.transform(new, metadata=later) + everything[0].mean(axis=0)
    got = adapted.transform(new, metadata=later) + X.mean(axis=0)
    # the fit of all moves the mean by 20 of 820 rows of a batch that is a standard deviation away
    assert np.sqrt(np.mean((got - expected) ** 2)) < 0.05
    unadapted = mean.transform(new, metadata=later) + X.mean(axis=0)
    assert np.sqrt(np.mean((unadapted - expected) ** 2)) > 0.3
    assert_allclose(adapted.transform(X, metadata=metadata), mean.transform(X, metadata=metadata), atol=1e-12)
    # in two calls, and from a file
    twice = rm.Residualizer(**options).fit(X, metadata=metadata)
    twice.adapt(new[:5], metadata=later[:5]).adapt(new[5:], metadata=later[5:])
    assert_allclose(twice.transform(new, metadata=later) + X.mean(axis=0), got, atol=1e-10)
    rm.save(twice, tmp_path / "m.safetensors")
    again = rm.load(tmp_path / "m.safetensors").transform(new, metadata=later)
    assert np.array_equal(again, twice.transform(new, metadata=later))


def test_a_later_batch_pooled_over_features_is_closer_to_the_truth_than_its_rows():
    X, metadata, shift, sd = batches([300, 300, 300, 300])
    model = rm.Residualizer("batch", preserve="age", scale=True, shrinkage="eb").fit(X, metadata=metadata)
    loss = {"adapted": [], "rows alone": []}
    for seed in range(30):
        new, later, own, own_sd = batches([6], seed=100 + seed, first=7)
        model.new_levels_ = {}
        found = model.adapt(new, metadata=later).new_levels_["batch"]
        centre, log_sd = shift.mean(axis=0), np.log(sd).mean(axis=0)
        alone = 0.5 * np.log(found.totals.within[0] / 5) - np.log(found.frozen.pooled) - found.frozen.log_sd
        for name, effect, spread in (
            ("adapted", found.effects()[0], found.spreads()[0]),
            ("rows alone", found.totals.mean[0], alone),
        ):
            errors = (effect - own[0] + centre) ** 2, (spread - np.log(own_sd[0]) + log_sd) ** 2
            loss[name].append([np.mean(error) for error in errors])
    adapted, rows = (np.mean(loss[name], axis=0) for name in ("adapted", "rows alone"))
    assert np.all(adapted < 0.6 * rows)


def test_later_batches_without_variance_lose_their_mean_only():
    X, metadata, _, _ = batches([30, 40, 50])
    new, later, _, _ = batches([12], seed=1, first=7)
    new[:, 4] = 2.0
    model = rm.Residualizer("batch", preserve="age", scale=True, shrinkage="eb").fit(X, metadata=metadata)
    later["age"] = metadata["age"].mean()
    residual = model.adapt(new, metadata=later).transform(new, metadata=later)
    assert_allclose(residual[:, 4], 0.0, atol=1e-12)
    assert np.isfinite(residual).all()


def test_missing_values_as_a_level_are_no_known_level():
    names = ["x0", "x1", "x2"]
    table, _ = sites(6, 50)
    table.loc[:20, "site"] = None
    model = rm.Residualizer("site", features=names, missing="indicator", on_unknown="shrink").fit(table)
    effects = table.dropna().groupby("site")[names].mean()
    noise = model.fit_.rss / model.fit_.residual_degrees
    rows = table.dropna().groupby("site")[names].count().to_numpy(float)
    expected = level_prior((effects - effects.mean()).to_numpy(), rows, noise).mean
    assert_allclose(model.new_levels_["site"].prior.mean, expected, atol=1e-10)


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
