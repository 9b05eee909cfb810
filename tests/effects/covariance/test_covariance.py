"""Covariances of levels brought to the pooled one: CovBat's update, shrinkage, parts, later rows."""

import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import residmix.effects.covariance.sums
import residmix.moments.by_level
from residmix import Residualizer, load, save, scan
from residmix.effects.covariance.distances import even
from residmix.effects.covariance.shrinkage import divergence, shrunk, unit_map
from residmix.errors import ResidmixWarning

SIZES = {"a": 300, "b": 200, "c": 120, "d": 60, "e": 10, "f": 3}
COMBAT = {"preserve": "age", "scale": True, "shrinkage": "eb", "check_leakage": False}
SITES = f"C(site, levels={list(SIZES)})"


def root(matrix, power):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T


def covariances(d, rng):
    """A common covariance of five factors, and that of each site: two directions of its own, and another strength."""
    common = np.corrcoef(rng.normal(size=(d, 5)) @ rng.normal(size=(5, 20)) + rng.normal(size=(d, 20)))
    found = {}
    for site, strength in zip(SIZES, (1.0, 0.5, 0.8, 0.6, 0.9, 0.7), strict=True):
        turn = np.linalg.qr(rng.normal(size=(d, 2)))[0]
        own = strength * common + (1 - strength) * np.eye(d) + turn @ np.diag([3.0, 2.0]) @ turn.T
        found[site] = own / np.sqrt(np.outer(np.diag(own), np.diag(own)))
    return found


def sites(d=8, seed=0, sizes=SIZES):
    rng = np.random.default_rng(seed)
    of_site, site = covariances(d, np.random.default_rng(5)), np.repeat(list(sizes), list(sizes.values()))
    age = rng.uniform(20, 60, len(site))
    X = np.concatenate([rng.multivariate_normal(np.zeros(d), of_site[s], size=n) for s, n in sizes.items()])
    effects = np.random.default_rng(6).normal(size=(len(SIZES), d))
    X *= np.exp(0.3 * effects[::-1])[np.searchsorted(list(SIZES), site)]
    X += effects[np.searchsorted(list(SIZES), site)] + 0.03 * age[:, None]
    return X, pd.DataFrame({"site": site, "age": age})


def rest(model, residual, metadata):
    """Residuals less the effect that is preserved."""
    return residual - np.outer(metadata["age"] - 0.0, model.preserved_coef_[0])


def covbat(residual, site):
    """CovBat's second step as published (Chen et al. 2022): rows after ComBat, without covariates."""
    centre, sd = residual.mean(axis=0), residual.std(axis=0, ddof=1)
    z = (residual - centre) / sd
    _, values, axes = np.linalg.svd(z, full_matrices=False)
    share = np.cumsum(values**2) / np.sum(values**2)
    size = int(np.flatnonzero(share > 0.95)[0]) + 1
    scores = z @ axes.T
    levels = np.unique(site)
    own = scores[:, :size].copy()
    pooled = np.sqrt(np.mean(np.concatenate([own[site == k] - own[site == k].mean(axis=0) for k in levels]) ** 2, 0))
    new = own.copy()
    for k in levels:
        rows = own[site == k]
        new[site == k] = (rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1) * pooled + own.mean(axis=0)
    return (z + (new - own) @ axes[:size]) * sd + centre


def test_scores_are_covbat_as_published():
    X, metadata = sites()
    model = Residualizer(SITES, covariance="scores", **COMBAT)
    residual = rest(model, model.fit_transform(X, metadata=metadata), metadata)
    before = Residualizer(SITES, **COMBAT)
    combat = rest(before, before.fit_transform(X, metadata=metadata), metadata)
    assert_allclose(residual, covbat(combat, metadata["site"].to_numpy()), atol=1e-10)
    assert np.abs(combat - residual).max() > 0.3


def left(model, X, metadata, sizes=("a", "b", "c", "d")):
    """Mean divergence of the sites' true covariances, as the fit maps them, from their mean: nats per direction."""
    known, d = covariances(X.shape[1], np.random.default_rng(5)), X.shape[1]
    mapped = {}
    for site in sizes:
        at = pd.DataFrame({"site": [site] * (d + 1), "age": 40.0})
        # the map is affine in the rows of a site: its matrix from where it takes the axes
        base = model.inverse_transform(np.zeros((d + 1, d)), metadata=at)
        spread = np.exp(0.3 * np.random.default_rng(6).normal(size=(len(SIZES), d))[::-1])[list(SIZES).index(site)]
        step = np.vstack([np.zeros(d), np.diag(spread)])
        out = model.transform(base + step, metadata=at)
        turn = (out[1:] - out[0]).T
        mapped[site] = turn @ known[site] @ turn.T
    mean = np.mean(list(mapped.values()), axis=0)
    white = root(mean, -0.5)
    return np.mean([divergence(white @ own @ white) for own in mapped.values()])


def test_large_sites_lose_most_of_their_difference_and_small_ones_are_left_alone():
    X, metadata = sites()
    kinds = {kind: Residualizer(SITES, covariance=kind, **COMBAT).fit(X, metadata=metadata) for kind in (False, True)}
    kinds["scores"] = Residualizer(SITES, covariance="scores", **COMBAT).fit(X, metadata=metadata)
    share = {kind: left(model, X, metadata) for kind, model in kinds.items()}
    assert share[True] < 0.25 * share[False]
    assert share["scores"] > 0.5 * share[False]  # directions of a site's own aren't the pooled ones
    found = kinds[True]._found.covariance
    assert_allclose(found.maps[-1], np.eye(found.maps.shape[1]), atol=0.02)  # three rows vouch for nothing
    stretched = kinds["scores"]._found.covariance.maps[-1]
    assert np.abs(np.diag(stretched) - 1.0).max() > 0.5


def test_it_is_undone_and_rows_that_come_later_are_as_those_of_the_fit():
    X, metadata = sites()
    model = Residualizer(SITES, covariance=True, **COMBAT).fit(X, metadata=metadata)
    residual = model.transform(X, metadata=metadata)
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-11)
    some = np.random.default_rng(0).permutation(len(X))[:50]
    assert_allclose(model.transform(X[some], metadata=metadata.iloc[some]), residual[some], atol=1e-11)
    single = model.transform(X.astype(np.float32), metadata=metadata)
    assert single.dtype == np.float32
    assert_allclose(single, residual, atol=1e-4)


def test_a_level_that_fit_did_not_see_keeps_its_covariance():
    X, metadata = sites()
    known = metadata["site"] != "e"
    options = {**COMBAT, "on_unknown": "mean"}
    model = Residualizer("site", covariance=True, **options).fit(X[known], metadata=metadata[known])
    plain = Residualizer("site", **options).fit(X[known], metadata=metadata[known])
    later = X[~known], metadata[~known]
    for fitted in (model, plain):
        fitted.adapt(later[0][:6], metadata=later[1][:6])
    assert_allclose(model.transform(later[0], metadata=later[1]), plain.transform(later[0], metadata=later[1]))
    a = metadata["site"] == "a"
    assert np.abs(model.transform(X[a], metadata=metadata[a]) - plain.transform(X[a], metadata=metadata[a])).max() > 0.3


@pytest.mark.parametrize("kind", ["shrunk", "scores"])
@pytest.mark.parametrize("preserve", [None, "age"])
@pytest.mark.parametrize("shrinkage", [None, "eb"])
@pytest.mark.slow
def test_fits_of_sites_add_up_to_the_fit_of_all_rows(kind, preserve, shrinkage):
    if shrinkage is None and preserve is not None:
        return  # a spread that has other columns beside the factor's needs the rows
    X, metadata = sites()
    X += 1e4
    options = {**COMBAT, "preserve": preserve, "shrinkage": shrinkage, "covariance": kind}
    whole = Residualizer(SITES, **options).fit(X, metadata=metadata)
    expected = whole.transform(X, metadata=metadata)
    models = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResidmixWarning)  # of a site of three rows
        for site in SIZES:
            own = (metadata["site"] == site).to_numpy()
            models.append(Residualizer(SITES, **options).fit(X[own], metadata=metadata[own]))
    for other in models[1:]:
        models[0].merge(other)
    assert_allclose(models[0].transform(X, metadata=metadata), expected, atol=1e-8)  # the offset has taken four digits
    stream = Residualizer(SITES, **options)
    mixed = np.random.default_rng(0).permutation(len(X) - 13)
    for part in (np.r_[mixed[:300], 680:693], mixed[300:500], mixed[500:]):
        stream.partial_fit(X[part], metadata=metadata.iloc[part])
    assert_allclose(stream.transform(X, metadata=metadata), expected, atol=1e-8)
    without = Residualizer(SITES, **{**options, "covariance": False}).fit_transform(X, metadata=metadata)
    assert np.abs(without - expected).max() > 0.3


@pytest.mark.parametrize("kind", ["shrunk", "scores"])
@pytest.mark.parametrize("d", [8, 40])
def test_rows_and_moments_give_the_same_also_with_more_features_than_rows(kind, d, monkeypatch):
    sizes = dict(zip(SIZES, (9, 8, 7, 6, 5, 3), strict=True)) if d == 40 else SIZES
    X, metadata = sites(d, sizes=sizes)
    options = {**COMBAT, "covariance": kind}
    expected = Residualizer(SITES, **options).fit_transform(X, metadata=metadata)
    monkeypatch.setattr(residmix.moments.by_level, "MOST_FEATURES", 2)
    model = Residualizer(SITES, **options)
    assert_allclose(model.fit_transform(X, metadata=metadata), expected, atol=1e-9)
    with pytest.raises(ValueError, match="can't be updated by partial_fit or merge"):
        model.merge(model)
    assert np.isfinite(expected).all()
    assert np.abs(Residualizer(SITES, **COMBAT).fit_transform(X, metadata=metadata) - expected).max() > 1e-3


@pytest.mark.parametrize("weighted", [False, True])
def test_products_of_scores_from_rows_are_those_from_moments(weighted, monkeypatch):
    sizes = dict(zip(SIZES, (40, 30, 20, 12, 8, 6), strict=True))
    X, metadata = sites(30, sizes=sizes)
    X += 1e3
    weight = np.random.default_rng(0).integers(1, 4, len(X)).astype(float) if weighted else None
    options = {**COMBAT, "covariance": True}
    assert len(X) < len(SIZES) * X.shape[1]
    passes = []
    scores = residmix.effects.covariance.sums._centred_products
    monkeypatch.setattr(
        residmix.effects.covariance.sums, "_centred_products", lambda *given: passes.append(1) or scores(*given)
    )
    by_rows = Residualizer(SITES, **options).fit(X, metadata=metadata, sample_weight=weight)
    assert passes
    halves = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResidmixWarning)  # of small sites
        for part in (slice(None, None, 2), slice(1, None, 2)):
            own = None if weight is None else weight[part]
            halves.append(Residualizer(SITES, **options).fit(X[part], metadata=metadata[part], sample_weight=own))
    passes.clear()
    by_moments = halves[0].merge(halves[1])
    assert not passes
    assert_allclose(by_rows._found.covariance.maps, by_moments._found.covariance.maps, atol=1e-8)
    assert np.abs(by_rows._found.covariance.maps[0] - np.eye(by_rows._found.covariance.maps.shape[1])).max() > 0.1


def test_of_several_factors_one_is_named_and_its_spread_may_depend_on_other_columns():
    X, metadata = sites()
    metadata["scanner"] = np.random.default_rng(3).choice(["p", "q"], len(X))
    with pytest.raises(ValueError, match=r"2 are removed .* name the factor, as in covariance="):
        Residualizer("site + scanner", scale=True, covariance=True).fit(X, metadata=metadata)
    options = {"scale": True, "check_leakage": False}
    model = Residualizer("site + scanner", covariance={"site": "shrunk"}, preserve="age", **options)
    residual = model.fit_transform(X, metadata=metadata)
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-11)
    plain = Residualizer("site + scanner", preserve="age", **options).fit_transform(X, metadata=metadata)
    a, b = (metadata["site"] == "a").to_numpy(), (metadata["site"] == "b").to_numpy()

    def apart(found):
        return np.linalg.norm(np.corrcoef(found[a].T) - np.corrcoef(found[b].T))

    assert apart(residual) < 0.6 * apart(plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": True}, "needs scale=True"),
        ({"covariance": True, "scale": True, "shrinkage": "eb", "reference": "a"}, "doesn't work with reference="),
        ({"covariance": {"site": "full"}, "scale": True}, "must be 'shrunk' or 'scores', not 'full'"),
        ({"covariance": {"age": "shrunk"}, "scale": True}, "'age' is numeric"),
        ({"covariance": True, "scale": True, "residuals": "loo"}, "covariance=, shrinkage= or estimator="),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    X, metadata = sites()
    with pytest.raises(ValueError, match=message):
        Residualizer("site + age", **options).fit(X, metadata=metadata)


def test_the_table_of_levels_tells_how_far_covariances_lie_before_and_after():
    X, metadata = sites()
    found = Residualizer(SITES, covariance=True, **COMBAT).fit(X, metadata=metadata).level_table(SITES)
    assert (found["covariance_after"] < 0.2 * found["covariance"])[:4].all()
    assert found["covariance"].iloc[-1] < 0.05 * found["covariance"].iloc[0]  # three rows vouch for nothing
    assert "covariance" not in Residualizer(SITES, **COMBAT).fit(X, metadata=metadata).level_table(SITES)


def test_rows_with_gaps_are_refused_by_name():
    X, metadata = sites()
    model = Residualizer(SITES, covariance=True, **COMBAT).fit(X, metadata=metadata)
    X[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 of 8 features have some \('x2'\); fill them"):
        Residualizer(SITES, covariance=True, **COMBAT).fit(X, metadata=metadata)
    with pytest.raises(ValueError, match=r"1 rows have some \(the first is row 4\); fill them"):
        model.transform(X, metadata=metadata)


def test_files_models_and_any_chunks_give_the_same(tmp_path):
    X, metadata = sites()
    table = pd.DataFrame(X, columns=[f"x{j}" for j in range(8)]).assign(**metadata)
    table.to_parquet(tmp_path / "rows.parquet", row_group_size=100)
    model = Residualizer(SITES, covariance=True, **COMBAT).fit(table)
    from_file = Residualizer(SITES, covariance=True, **COMBAT).fit(scan(tmp_path / "rows.parquet"))
    expected = model.transform(table)
    assert np.array_equal(from_file.transform(table), expected)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert np.array_equal(again.transform(table), expected)
    again.merge(model)  # the moments are there too


def test_the_estimate_is_positive_definite_and_nears_the_sample_with_many_rows():
    rng = np.random.default_rng(0)
    truth = np.diag([4.0, 1.0, 0.5, 1.0]) + 0.3
    for n in (2, 3, 5, 20):
        rows = rng.multivariate_normal(np.zeros(4), truth, size=n)
        assert np.linalg.eigvalsh(shrunk(np.cov(rows.T), n - 1.0)).min() > 0.05
    rows = rng.multivariate_normal(np.zeros(4), truth, size=100_000)
    assert_allclose(shrunk(np.cov(rows.T), 99_999.0), np.cov(rows.T), atol=0.01)
    assert_allclose(shrunk(np.zeros((4, 4)), 0.0), np.eye(4))


def test_distances_after_are_those_of_the_products_that_the_maps_make():
    """A Z A by one product, from what A makes of the shrunk covariance, against the two products that say it."""
    rng = np.random.default_rng(4)
    for n, d in ((30, 12), (200, 12), (2000, 5)):
        X = rng.normal(size=(n, d)) @ (np.eye(d) + 0.4 * rng.normal(size=(d, d)))
        products = (X - X.mean(axis=0)).T @ (X - X.mean(axis=0))
        change = unit_map(shrunk(products / (n - 1), n - 1))
        assert_allclose(even(products, change, n - 1.0), change @ products @ change.T, rtol=1e-9, atol=1e-9 * n)


def test_the_shrunk_covariance_becomes_the_pooled_one_by_a_map_that_is_triangular_along_the_axes():
    X, metadata = sites()
    model = Residualizer(SITES, covariance=True, **COMBAT).fit(X, metadata=metadata)
    found, combat = model._found.covariance, Residualizer(SITES, **COMBAT)
    even_spread = rest(combat, combat.fit_transform(X, metadata=metadata), metadata)
    site = metadata["site"].to_numpy()
    centred = even_spread - pd.DataFrame(even_spread).groupby(site).transform("mean").to_numpy()
    scores = centred / found.sd @ found.axes
    pooled = np.sum(scores**2, axis=0) / (len(X) - len(SIZES))
    for k, name in enumerate(SIZES):
        assert_allclose(np.triu(found.maps[k], 1), 0.0, atol=0)
        own = scores[site == name]
        estimate = shrunk(own.T @ own / (len(own) - 1) / np.sqrt(np.outer(pooled, pooled)), len(own) - 1.0)
        brought = found.maps[k] @ (estimate * np.sqrt(np.outer(pooled, pooled))) @ found.maps[k].T
        assert_allclose(brought, np.diag(pooled), atol=1e-11 * pooled.max())


def test_distances_are_the_same_from_moments_from_rows_and_after_a_file(monkeypatch, tmp_path):
    X, metadata = sites()
    for kind in (True, "scores"):
        model = Residualizer(SITES, covariance=kind, **COMBAT).fit(X, metadata=metadata)
        table = model.level_table(SITES)
        assert np.ptp(table["covariance"]) > 0.01
        save(model, tmp_path / "model.safetensors")
        pd.testing.assert_frame_equal(load(tmp_path / "model.safetensors").level_table(SITES), table)
        with monkeypatch.context() as patch:
            patch.setattr(residmix.moments.by_level, "MOST_FEATURES", 4)
            by_rows = Residualizer(SITES, covariance=kind, **COMBAT).fit(X, metadata=metadata)
        assert by_rows._found.covariance.distances is not None
        pd.testing.assert_frame_equal(by_rows.level_table(SITES), table, rtol=1e-9)


def test_variances_and_correlations_keep_what_is_more_than_their_sampling_error():
    nu, sample = 40.0, np.array([[2.5, 0.2, -0.1], [0.2, 0.3, 0.15], [-0.1, 0.15, 1.6]])

    def kept(places):
        # of normal rows the entries of a covariance have such variances
        noise = sum(sample[k, k] * sample[l, l] + sample[k, l] ** 2 for k, l in places) / nu
        return 1 - min(1.0, noise / sum((sample[k, l] - (k == l)) ** 2 for k, l in places))

    pairs = [(k, l) for k in range(3) for l in range(3)]
    of_variances, of_others = kept([(k, k) for k in range(3)]), kept([(k, l) for k, l in pairs if k != l])
    assert 0 < of_variances < 1 and of_others < of_variances
    expected = np.eye(3) + of_variances * (np.diag(np.diag(sample)) - np.eye(3))
    expected += of_others * (sample - np.diag(np.diag(sample)))
    assert_allclose(shrunk(sample, nu), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("columns", "named"), [([1], "1 of 3 features have some"), ([0, 1, 2], "3 of 3 features have")]
)
def test_gaps_are_refused_with_the_features_that_have_them(columns, named, rng):
    X, site = rng.normal(size=(60, 3)), np.repeat(["a", "b"], 30)
    X[np.ix_([4, 40], columns)] = np.nan
    model = Residualizer("site", scale=True, covariance=True, check_leakage=False)
    with pytest.raises(ValueError, match=f"allows no missing values, but {named}"):
        model.fit(X, metadata=pd.DataFrame({"site": site}))
