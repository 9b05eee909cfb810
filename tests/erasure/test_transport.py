"""Transports: what a forest reads is gone, clusters and protected columns stay, and everything can be undone."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import r2_score, roc_auc_score

import residmix as rm
from residmix.anndata import from_anndata
from residmix.errors import CertificateWarning

ROWS = 4000


def two_sites(seed, n=ROWS):
    """Two sites that differ in proportions, location, spread, shape and correlation; the cluster of each row."""
    rng = np.random.default_rng(seed)
    site = rng.integers(2, size=n)
    kind = rng.random(n) < np.where(site == 0, 0.65, 0.4)
    x = rng.normal(size=(n, 3))
    x[:, 0] += np.where(kind, 3, -2) + 0.8 * site
    x[:, 1] *= np.where(site == 0, 1, 1.7) * np.where(kind, 1, 0.6)
    x[:, 2] += np.where(site == 0, 0.7, -0.5) * x[:, 1] + np.where(kind & (site == 1), 1.2, 0)
    table = pd.DataFrame(x @ np.array([[1, 0.3, 0], [-0.2, 1, 0.5], [0.4, 0, 1]]), columns=["x", "y", "z"])
    return table.assign(site=np.where(site, "B", "A")), kind


def reads(features, target):
    half = len(features) // 2
    forest = RandomForestClassifier(50, min_samples_leaf=5, random_state=0).fit(features[:half], target[:half])
    return roc_auc_score(target[half:], forest.predict_proba(features[half:])[:, 1])


@pytest.fixture(scope="module")
def sites():
    return two_sites(0)


@pytest.fixture(scope="module")
def later():
    return two_sites(1)


@pytest.fixture(scope="module")
def full(sites):
    return rm.Eraser("C(site)", method="full", n_components=2).fit(sites[0])


def test_after_a_full_transport_a_forest_reads_nothing_of_later_rows_and_least_squares_leaves_it(sites, later, full):
    table, _ = later
    site = (table["site"] == "B").to_numpy()
    linear = rm.Eraser("C(site)").fit(sites[0])
    assert reads(full.transform(table), site) < 0.55
    assert reads(linear.transform(table), site) > 0.7
    assert full.certificate_.passed


@pytest.mark.slow
def test_component_leaves_what_proportions_say_and_clusters_as_they_are(sites, later):
    table, kind = later
    site = (table["site"] == "B").to_numpy()
    moved = rm.Eraser("C(site)", method="component", n_components=2).fit(sites[0]).transform(table)
    proportions = max(roc_auc_score(site, kind), roc_auc_score(site, ~kind))
    assert abs(reads(moved, site) - proportions) < 0.03
    before = reads(table[["x", "y", "z"]].to_numpy(), kind)
    assert reads(moved, kind) > before - 0.005


@pytest.mark.slow
def test_a_model_that_is_too_small_fails_its_certificate_and_says_so(sites):
    with pytest.warns(CertificateWarning, match="failed a check on held-out rows"):
        spread = rm.Eraser("C(site)", method="spread").fit(sites[0])
    assert not spread.certificate_.passed
    assert any("forest" in failure for failure in spread.certificate_.failures)
    assert any(note["kind"] == "certificate" for note in spread.notes_)


@pytest.mark.slow
def test_the_number_of_components_is_the_one_of_the_most_likely_held_out_rows(sites):
    chosen = rm.Eraser("C(site)", method="full").fit(sites[0]).certificate_
    scores = {row["n_components"]: row["log_likelihood"] for row in chosen.candidates}
    assert chosen.n_components == 2
    assert scores[2] > scores[1] + 0.1


def test_the_inverse_is_exact_for_rows_of_any_site(later, full):
    table, _ = later
    moved = table.assign(**dict(zip("xyz", full.transform(table).T, strict=True)))
    assert np.abs(full.inverse_transform(moved) - table[["x", "y", "z"]].to_numpy()).max() < 1e-8
    far = table[:20].assign(x=1e6)
    assert np.isfinite(full.transform(far)).all()


@pytest.mark.slow
def test_all_rows_are_brought_to_the_site_that_is_named_and_its_own_rows_stay(sites, later):
    table, _ = later
    at = rm.Eraser("C(site)", method="full", n_components=2, reference={"site": "A"}).fit(sites[0])
    moved = at.transform(table)
    here = (table["site"] == "A").to_numpy()
    values = table[["x", "y", "z"]].to_numpy()
    assert np.abs(moved[here] - values[here]).max() < 1e-8
    # the rows of B have the quantiles of A's
    for j in range(3):
        q = [0.1, 0.5, 0.9]
        assert np.abs(np.quantile(moved[~here, j], q) - np.quantile(values[here, j], q)).max() < 0.25
        assert np.abs(np.quantile(values[~here, j], q) - np.quantile(values[here, j], q)).max() > 0.3


@pytest.mark.slow
def test_along_age_location_spread_and_shape_are_taken_out(rng):
    n = 6000
    age = rng.uniform(20, 80, n)
    t = (age - 50) / 30
    kind = rng.random(n) < 0.5 + 0.2 * t
    x = rng.normal(size=(n, 2)) * np.exp(0.7 * t)[:, None] + np.where(kind, 3.0, -3.0)[:, None] * [1, 0.5]
    x[:, 1] += 0.8 * t
    table = pd.DataFrame(x, columns=["x", "y"]).assign(age=age)

    def r2(features):
        half = n // 2
        forest = RandomForestRegressor(50, min_samples_leaf=10, random_state=0).fit(features[:half], t[:half])
        return r2_score(t[half:], forest.predict(features[half:]))

    eraser = rm.Eraser("age", method="full", n_components=2).fit(table)
    assert r2(rm.Eraser("age").fit_transform(table)) > 0.02
    assert r2(eraser.transform(table)) < 0.02


@pytest.mark.slow
def test_a_protected_column_is_still_there(rng):
    n = 6000
    ill = rng.random(n) < 0.5
    site = np.where(rng.random(n) < np.where(ill, 0.7, 0.3), "A", "B")
    x = (
        rng.normal(size=(n, 2)) * np.where(site == "A", 1, 1.8)[:, None]
        + (site == "A")[:, None] * [1, 0]
        + ill[:, None] * [0.3, 1]
    )
    table = pd.DataFrame(x, columns=["x", "y"]).assign(site=site, ill=ill.astype(float))
    linear = rm.Eraser("C(site)", preserve="ill").fit_transform(table)
    moved = rm.Eraser("C(site)", preserve="ill", method="full", n_components=1).fit(table).transform(table)
    assert reads(moved, ill) > reads(linear, ill) - 0.01
    # given the illness nothing of the site is left, which the linear one leaves in the spread
    well = ~ill
    assert reads(moved[well], site[well] == "A") < 0.56
    assert reads(linear[well], site[well] == "A") > 0.6


def test_arrays_tables_files_and_saved_models_give_the_same(later, full, tmp_path):
    table, _ = later
    expected = full.transform(table)
    table.to_parquet(tmp_path / "t.parquet")
    path = full.transform(rm.scan(tmp_path / "t.parquet"), out=tmp_path / "moved.parquet")
    assert np.array_equal(pd.read_parquet(path).to_numpy(), expected)
    rm.save(full, tmp_path / "e.safetensors")
    assert np.array_equal(rm.load(tmp_path / "e.safetensors").transform(table), expected)
    assert full.transform(table[:9].astype({"x": "f4", "y": "f4", "z": "f4"})).dtype == np.float32


@pytest.mark.slow
def test_weights_of_zero_are_rows_that_are_not_there(sites):
    table = sites[0]
    junk = table[:500].assign(x=50.0)
    weight = np.r_[np.ones(len(table)), np.zeros(500)]
    with_junk = rm.Eraser("C(site)", method="full", n_components=2).fit(pd.concat([table, junk]), sample_weight=weight)
    without = rm.Eraser("C(site)", method="full", n_components=2).fit(table)
    assert np.array_equal(with_junk.transform(table), without.transform(table))


@pytest.mark.slow
def test_unseen_levels_are_an_error_or_moved_as_the_average(sites, full):
    other = sites[0][:5].assign(site="C")
    with pytest.raises(ValueError, match="'C'"):
        full.transform(other)
    average = rm.Eraser("C(site)", method="full", n_components=2, on_unknown="mean").fit(sites[0])
    moved = average.transform(other)
    assert np.isfinite(moved).all()
    # the law of an average row, whose components the groups' own lie about
    assert np.abs(moved - other[["x", "y", "z"]].to_numpy()).max() < 1.5


def test_what_has_no_effect_or_no_meaning_is_refused(sites, full):
    table = sites[0]
    with pytest.raises(ValueError, match="reference= has no effect"):
        rm.Eraser("C(site)", reference={"site": "A"}).fit(table)
    with pytest.raises(ValueError, match="reference must have a value"):
        rm.Eraser("C(site)", method="full", reference={"scanner": "A"}).fit(table)
    with pytest.raises(ValueError, match="no metadata to erase"):
        rm.Eraser(method="full").fit(table[["x", "y"]])
    with pytest.raises(ValueError, match="partial_fit needs method='linear'"):
        rm.Eraser("C(site)", method="full").partial_fit(table)
    with pytest.raises(ValueError, match="merge needs method='linear'"):
        full.merge(full)
    assert not hasattr(rm.Eraser("C(site)"), "inverse_transform")


def test_pure_noise_gains_nothing(rng):
    site = np.repeat(["A", "B"], 2000)
    noise = pd.DataFrame(rng.normal(size=(4000, 3)), columns=list("xyz")).assign(site=site)
    noise = noise.sample(frac=1, random_state=0).reset_index(drop=True)
    moved = rm.Eraser("C(site)", method="full", n_components=1).fit(noise[:2000]).transform(noise)
    assert reads(moved[2000:], (noise["site"] == "B").to_numpy()[2000:]) < 0.55


@pytest.mark.slow
def test_clusters_arrays_and_anndata_give_what_one_table_does(sites):
    dd, anndata = pytest.importorskip("dask.dataframe"), pytest.importorskip("anndata")
    table = sites[0][:900]
    eraser = rm.Eraser("C(site)", method="spread")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CertificateWarning)  # one Gaussian isn't enough, which doesn't matter here
        expected = eraser.fit(table).transform(table)
        parts = dd.from_pandas(table, npartitions=3)
        assert np.array_equal(rm.Eraser("C(site)", method="spread").fit(parts).transform(parts), expected)
        x, site = table[["x", "y", "z"]].to_numpy(), table[["site"]]
        arrays = rm.Eraser("C(site)", method="spread").fit(x, metadata=site)
        assert np.array_equal(arrays.transform(x, metadata=site), expected)
        adata = anndata.AnnData(x, obs=site.set_index(np.arange(len(x)).astype(str)))
        rows = from_anndata(adata, "C(site)")
        assert np.array_equal(rm.Eraser("C(site)", method="spread").fit(rows).transform(rows), expected)
    assert np.abs(arrays.inverse_transform(expected, metadata=site) - x).max() < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("method", ["component", "full"])
def test_features_in_any_units_are_carried_alike(method):
    table, _ = two_sites(2, 600)

    def carried(units):
        scaled = table.assign(**{name: table[name] * unit for name, unit in zip("xyz", units, strict=True)})
        return rm.Eraser("C(site)", method=method, n_components=2).fit_transform(scaled) / units

    expected = carried(np.ones(3))
    for units in (np.full(3, 1e-30), np.full(3, 1e-4), np.full(3, 1e30)):
        np.testing.assert_allclose(carried(units), expected, atol=1e-6)
    # what is added to covariances is a millionth of the smallest variance
    np.testing.assert_allclose(carried(np.array([1e-4, 1.0, 1e4])), expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::residmix.errors.CertificateWarning")  # of few rows
def test_constant_features_stay_as_they_are_and_take_no_part(sites):
    table, names = sites[0][:1500], ["x", "y", "z"]
    weight = np.full(len(table), 0.3)  # with which the mean of a constant is a rounding away from it
    with_constants = table.assign(low=0.1, none=0.0)[["low", *names, "none", "site"]]
    one = rm.Eraser("C(site)", method="full", n_components=2).fit(with_constants, sample_weight=weight)
    two = rm.Eraser("C(site)", method="full", n_components=2).fit(table, sample_weight=weight)
    moved = one.transform(with_constants)
    assert np.array_equal(moved[:, 1:4], two.transform(table))
    assert np.array_equal(moved[:, [0, 4]], with_constants[["low", "none"]])
    assert any(note["kind"] == "constant" and note["figures"]["features"] == ["low", "none"] for note in one.notes_)
    back = one.inverse_transform(moved, metadata=table[["site"]])
    assert np.abs(back - with_constants.drop(columns="site").to_numpy()).max() < 1e-8
    with pytest.raises(ValueError, match=r"all features are constant \(low, none\)"):
        rm.Eraser("C(site)", method="full").fit(with_constants[["low", "none", "site"]])


@pytest.mark.parametrize("method", ["linear", "spread", "component"])
@pytest.mark.filterwarnings("ignore::residmix.errors.CertificateWarning")
def test_fit_and_transform_in_one_call_take_metadata_beside_an_array(method, rng):
    site = pd.DataFrame({"site": rng.choice(["a", "b"], 200)})
    X = rng.normal(size=(200, 2)) + 2.0 * (site["site"] == "a").to_numpy()[:, None]
    eraser = rm.Eraser(method=method, n_components=1)
    found = eraser.fit_transform(X, metadata=site)
    np.testing.assert_array_equal(found, eraser.transform(X, metadata=site))
    assert np.abs(found - X).max() > 0.5


@pytest.mark.parametrize("formula", ["C(site) * C(sex)", "C(site):C(sex)"])
def test_a_combination_of_levels_without_rows_is_refused_or_an_average_row(formula):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(300, 2)), columns=["x", "y"])
    table["site"], table["sex"] = rng.choice(list("ABC"), 300), rng.choice(list("FM"), 300)
    table.loc[table.site == "C", "sex"] = "F"
    table["x"] += 3 * (table.site == "C")
    other = table.iloc[:1].assign(site="C", sex="M")
    eraser = rm.Eraser(formula, method="spread").fit(table)
    assert np.isfinite(eraser.transform(table)).all()
    with pytest.raises(ValueError, match=r"row 0 has a combination of levels .* treat the row as an average one"):
        eraser.transform(other)
    averaged = rm.Eraser(formula, method="spread", on_unknown="mean").fit(table)
    moved = averaged.transform(other)
    np.testing.assert_allclose(
        averaged.inverse_transform(other.assign(x=moved[:, 0], y=moved[:, 1])), other[["x", "y"]]
    )
    # It doesn't matter which levels come first.
    turned = {"site": {"A": "C", "B": "B", "C": "A"}, "sex": {"F": "M", "M": "F"}}
    named = rm.Eraser(formula, method="spread", on_unknown="mean").fit(table.replace(turned))
    np.testing.assert_allclose(named.transform(other.replace(turned)), moved, atol=1e-9)
