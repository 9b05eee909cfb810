"""Empirical Bayes and limma: parity with R on bladderbatch (tests/fixtures has the recipe)."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from residmix import Residualizer
from residmix.effects.pooled.posterior import posterior, posterior_shift
from residmix.errors import DesignWarning

GENES = 80
# sva stops when no estimate moves by more than 1e-4 of itself; iterated further it agrees to rounding (below).
SVA_STOPS = 1e-4


@pytest.fixture(scope="module")
def bladder():
    return pd.read_csv(Path(__file__).parents[2] / "fixtures" / "bladderbatch.csv.gz")


def matrix(bladder, name):
    return bladder[[f"{name}.{j}" for j in range(1, GENES + 1)]].to_numpy()


def fitted(bladder, formula="C(batch)", **options):
    X = matrix(bladder, "x")
    model = Residualizer(formula, **options)
    metadata = bladder[["batch", "cancer", "position"]]
    return model, model.fit_transform(X, metadata=metadata), X, metadata


@pytest.mark.parametrize(
    ("preserve", "reference", "tolerance"),
    [
        (None, "combat", SVA_STOPS),
        ("cancer", "combat_cancer", SVA_STOPS),
        ("cancer", "combat_cancer_converged", 1e-11),
    ],
)
def test_combat_equals_sva(bladder, preserve, reference, tolerance):
    _, residual, X, _ = fitted(bladder, preserve=preserve, scale=True, shrinkage="eb")
    expected = matrix(bladder, reference)
    assert_allclose(residual + X.mean(axis=0), expected, atol=tolerance)
    _, plain, _, _ = fitted(bladder, preserve=preserve)
    assert np.abs(plain + X.mean(axis=0) - expected).max() > 0.1


@pytest.mark.parametrize(("preserve", "reference"), [(None, "combat_location"), ("cancer", "combat_cancer_location")])
def test_one_row_a_batch_is_svas_mean_only(bladder, preserve, reference):
    _, residual, X, _ = fitted(bladder, preserve=preserve, shrinkage="eb-one-row")
    assert_allclose(residual + X.mean(axis=0), matrix(bladder, reference), atol=1e-11)
    _, counted, _, _ = fitted(bladder, preserve=preserve, shrinkage="eb")
    assert np.abs(counted - residual).max() > 0.1


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"scale": True, "shrinkage": "eb"}, "combat_reference"),
        ({"scale": True, "shrinkage": "eb", "preserve": "cancer"}, "combat_cancer_reference"),
        ({"shrinkage": "eb-one-row"}, "combat_location_reference"),
    ],
)
def test_a_reference_batch_stays_as_it_is_and_the_others_become_svas(bladder, options, reference):
    model, residual, X, metadata = fitted(bladder, reference=3, **options)
    at_reference = model.inverse_transform(residual, metadata=metadata.assign(batch=3))
    assert_allclose(at_reference, matrix(bladder, reference), atol=1e-11)
    own = bladder["batch"] == 3
    assert_allclose(at_reference[own], X[own], atol=1e-11)
    assert np.abs(at_reference - X).max() > 0.5
    with pytest.raises(ValueError, match=r"reference=9 is not a level of C\(batch\).*there are: 1, 2, 3, 4, 5"):
        fitted(bladder, reference=9, **options)


@pytest.mark.parametrize("coding", ["C(batch, contr.sum)", "C(batch, contr.treatment(base=3))"])
def test_combat_does_not_depend_on_the_coding(bladder, coding):
    _, residual, _, _ = fitted(bladder, scale=True, shrinkage="eb")
    _, other, _, _ = fitted(bladder, coding, scale=True, shrinkage="eb")
    assert_allclose(other, residual, atol=1e-11)


def test_location_only_shrinkage_is_svas_with_the_rows_counted(bladder):
    """sva's mean.only takes each batch for a single row; with n = 1 our posterior is its posterior."""
    model, _, X, _ = fitted(bladder)
    batch = bladder["batch"].to_numpy()
    levels, n = np.unique(batch, return_counts=True)
    pooled = np.sqrt(model.fit_.rss / len(X))
    gamma = np.array([X[batch == k].mean(axis=0) for k in levels]) - X.mean(axis=0)
    gamma /= pooled
    for rows, expected in (
        (np.ones((5, 1)), matrix(bladder, "combat_location")),
        (n[:, None], fitted(bladder, shrinkage="eb")[1] + X.mean(axis=0)),
    ):
        shift = posterior_shift(gamma, np.ones_like(gamma), rows) * pooled
        assert_allclose(X - shift[np.searchsorted(levels, batch)], expected, atol=1e-11)


@pytest.mark.parametrize(
    ("formula", "preserve", "reference"),
    [
        ("C(batch)", None, "limma"),
        ("C(batch)", "cancer", "limma_cancer"),
        ("C(batch) + position", "cancer", "limma_position"),
    ],
)
def test_location_only_equals_limma(bladder, formula, preserve, reference):
    """limma puts the average batch and a covariate of 0 back: average inverse_transform over these profiles."""
    model, residual, _, metadata = fitted(bladder, formula, preserve=preserve)
    profiles = [metadata.assign(batch=level, position=0.0) for level in np.unique(metadata["batch"])]
    back = np.mean([model.inverse_transform(residual, metadata=profile) for profile in profiles], axis=0)
    assert_allclose(back, matrix(bladder, reference), atol=1e-10)


@pytest.mark.parametrize("preserve", [None, "cancer"])
def test_combat_is_undone_by_inverse_transform(bladder, preserve):
    model, residual, X, metadata = fitted(bladder, preserve=preserve, scale=True, shrinkage="eb")
    assert_allclose(model.inverse_transform(residual, metadata=metadata), X, atol=1e-11)
    assert_allclose(model.transform(X, metadata=metadata), residual, atol=1e-12)


def test_canonical_correlations_of_two_factors_are_those_of_their_spaces(bladder):
    model, _, _, _ = fitted(bladder, preserve="cancer")
    spaces = []
    for column in ("batch", "cancer"):
        dummies = pd.get_dummies(bladder[column]).to_numpy(float)[:, 1:]
        spaces.append(np.linalg.qr(dummies - dummies.mean(axis=0))[0])
    expected = np.linalg.svd(spaces[0].T @ spaces[1], compute_uv=False)
    assert_allclose(model.canonical_correlations_, expected, atol=1e-12)


def test_rows_one_at_a_time_equal_the_batch(bladder):
    model, residual, X, metadata = fitted(bladder, scale=True, shrinkage="eb")
    single = [model.transform(X[i : i + 1], metadata=metadata.iloc[i : i + 1]) for i in range(5)]
    assert_allclose(np.vstack(single), residual[:5], atol=1e-12)


def test_more_rows_shrink_less_and_equal_features_shrink_wholly():
    rng = np.random.default_rng(0)
    gamma, delta = rng.normal(size=(2, 50)), rng.gamma(5, 0.2, size=(2, 50))
    few, many = (posterior(gamma, delta, np.full((2, 50), n)) for n in (4.0, 4e6))
    assert_allclose(many[0], gamma, atol=1e-4)
    assert_allclose(many[1], delta, rtol=1e-4)
    assert np.all(few[0].std(axis=1) < gamma.std(axis=1))
    assert np.all(few[1].std(axis=1) < delta.std(axis=1))
    assert_allclose(posterior(gamma, np.full((2, 50), 2.0), np.full((2, 50), 1e6))[1], 2.0, rtol=1e-4)


@pytest.mark.parametrize("options", [{"scale": True, "shrinkage": "eb"}, {"shrinkage": "eb-one-row"}])
@pytest.mark.parametrize("preserve", [None, "cancer"])
def test_features_that_do_not_vary_in_a_batch_stay_as_they_are_in_every_batch(bladder, options, preserve):
    """As in sva, which takes such genes out of the matrix, adjusts the others, and puts them back."""
    X = matrix(bladder, "x").copy()
    X[bladder["batch"] == 2, 3] = 5.0
    metadata, others = bladder[["batch", "cancer"]], np.delete(np.arange(GENES), 3)
    model = Residualizer("C(batch)", preserve=preserve, **options)
    with pytest.warns(
        DesignWarning, match=r"1 of 80 features .*\('x3' at C\(batch\)=2\): as in sva, they are not adjusted"
    ):
        residual = model.fit_transform(X, metadata=metadata)
    (note,) = [note for note in model.notes_ if note["kind"] == "constant-in-level"]
    assert note["figures"] == {"features": ["x3"], "levels": ["C(batch)=2"]}
    assert_allclose(residual[:, 3] + X[:, 3].mean(), X[:, 3], atol=1e-12)
    alone = Residualizer("C(batch)", preserve=preserve, **options).fit_transform(X[:, others], metadata=metadata)
    assert_allclose(residual[:, others], alone, atol=1e-12)
    assert_allclose(model.inverse_transform(residual, metadata=metadata.assign(batch=1))[:, 3], X[:, 3], atol=1e-11)
    later = metadata.assign(batch=9)
    later_rows = np.random.default_rng(0).normal(size=X.shape)
    model.adapt(later_rows, metadata=later)
    assert_allclose(model.transform(later_rows, metadata=later)[:, 3] + X[:, 3].mean(), later_rows[:, 3], atol=1e-12)


@pytest.mark.parametrize(("preserve", "reference"), [(None, "combat"), ("cancer", "combat_cancer")])
@pytest.mark.filterwarnings("ignore:1 of 80 features are constant")
def test_with_a_gene_of_one_value_in_a_batch_it_is_what_sva_returns(bladder, preserve, reference):
    X = matrix(bladder, "x").copy()
    X[bladder["batch"] == 2, 3] = 5.0
    expected = matrix(pd.read_csv(Path(__file__).parents[2] / "fixtures" / "bladderbatch_constant.csv.gz"), reference)
    model = Residualizer("C(batch)", preserve=preserve, scale=True, shrinkage="eb")
    residual = model.fit_transform(X, metadata=bladder[["batch", "cancer"]])
    assert_allclose(residual + X.mean(axis=0), expected, atol=1e-11)


@pytest.mark.parametrize("options", [{"scale": True, "shrinkage": "eb"}, {"shrinkage": "eb"}])
@pytest.mark.filterwarnings("ignore:there is nothing to remove")
def test_a_single_batch_stays_as_it_is(options):
    """There is nothing to harmonize, and sqrt((n - 1) / n) is no effect of a batch."""
    X = np.random.default_rng(6).normal(size=(20, 6))
    metadata = pd.DataFrame({"site": ["A"] * 20, "age": np.arange(20.0)})
    residual = Residualizer("site", **options).fit_transform(X, metadata=metadata)
    assert_allclose(residual, X - X.mean(axis=0), atol=1e-14)
    kept = Residualizer("site", preserve="age", **options).fit_transform(X, metadata=metadata)
    assert_allclose(kept, X - X.mean(axis=0), atol=1e-13)


def test_spreads_within_batches_do_not_depend_on_an_offset():
    """Squares are summed about the mean: an offset of 1e7 sd leaves the digits that the data have."""
    rng = np.random.default_rng(1)
    metadata = pd.DataFrame({"site": rng.choice(list("abc"), 300)})
    X = rng.normal(size=(300, 5)) * np.where(metadata["site"] == "a", 2.0, 1.0)[:, None]
    model = Residualizer("site", scale=True, shrinkage="eb")
    there, here = model.fit_transform(X + 1e7, metadata=metadata), model.fit_transform(X, metadata=metadata)
    assert_allclose(there, here, atol=1e-7)  # eps * 1e7 a value, some hundred values


def test_what_cannot_be_shrunk_is_told(bladder):
    with pytest.raises(ValueError, match="the formula removes 0"):
        fitted(bladder, "position", shrinkage="eb")
    with pytest.raises(ValueError, match="the formula removes 2"):
        fitted(bladder, "C(batch) + cancer", shrinkage="eb")
    with pytest.raises(ValueError, match="1 of 1 vary"):
        pooled = Residualizer("C(batch)", shrinkage="eb")
        pooled.fit(matrix(bladder, "x")[:, :1], metadata=bladder[["batch"]])
    with pytest.raises(ValueError, match="reference= needs shrinkage='eb'"):
        fitted(bladder, reference=3)
    with pytest.raises(ValueError, match="adjusts means only"):
        fitted(bladder, shrinkage="eb-one-row", scale=True)
    with pytest.raises(ValueError, match="needs a factor"):
        Residualizer(shrinkage="eb").fit(matrix(bladder, "x"))


def test_a_feature_without_values_does_no_harm(bladder):
    X = matrix(bladder, "x").copy()
    X[:, 3] = np.nan
    others = np.delete(np.arange(GENES), 3)
    model = Residualizer("C(batch)", scale=True, shrinkage="eb")
    with (
        pytest.warns(DesignWarning, match="1 of 80 features"),
        pytest.warns(DesignWarning, match="are left unchanged: x3"),
    ):
        residual = model.fit_transform(X, metadata=bladder[["batch"]])
    alone = model.fit_transform(X[:, others], metadata=bladder[["batch"]])
    assert_allclose(residual[:, others], alone, atol=1e-11)
    assert np.isnan(residual[:, 3]).all()


@pytest.mark.parametrize("reference", [1, 3, 5])
@pytest.mark.parametrize("options", [{"scale": True, "shrinkage": "eb"}, {"shrinkage": "eb-one-row"}])
def test_batches_apart_from_the_reference_add_up_to_the_fit_of_all_rows(bladder, reference, options):
    X, batch = matrix(bladder, "x"), bladder[["batch"]]
    formula = "C(batch, levels=[1, 2, 3, 4, 5])"
    options = {**options, "reference": reference, "check_leakage": False}
    expected = Residualizer(formula, **options).fit_transform(X, metadata=batch)
    parts = []
    for own in range(1, 6):
        at = (batch["batch"] == own).to_numpy()
        parts.append(Residualizer(formula, **options).fit(X[at], metadata=batch[at]))
    told = ["reference" in [note["kind"] for note in part.notes_] for part in parts]
    assert told == [own != reference for own in range(1, 6)]
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    assert_allclose(whole.transform(X, metadata=batch), expected, atol=1e-11)


@pytest.mark.filterwarnings("ignore::residmix.errors.RareLevelWarning")
def test_a_reference_of_one_row_is_refused(bladder):
    some = np.r_[0, np.flatnonzero(bladder["batch"] != bladder["batch"][0])]
    X, batch = matrix(bladder, "x")[some], bladder[["batch"]].iloc[some]
    with pytest.raises(ValueError, match=r"reference=3 has rows of weight 1, within which no feature varies"):
        Residualizer("C(batch)", scale=True, shrinkage="eb", reference=3, check_leakage=False).fit(X, metadata=batch)


@pytest.mark.parametrize("scale", [False, True])
def test_a_level_that_its_own_lines_fit_exactly_is_told_whatever_the_order_of_rows(scale):
    # what is left there is 0, of which sums of squares keep rounding, above or below 0
    rng = np.random.default_rng(0)
    n, site = 60, np.repeat(["a", "b", "c"], 20)
    metadata = pd.DataFrame({"site": site, "age": rng.uniform(20, 80, n)})
    X = rng.normal(size=(n, 9)) + (site == "b")[:, None] + 0.05 * metadata[["age"]].to_numpy()
    X[np.flatnonzero(site == "c")[2:], :4] = np.nan  # two rows for a line
    found = []
    for order in [np.arange(n), *(rng.permutation(n) for _ in range(5))]:
        model = Residualizer("site*age", shrinkage={"site": "eb"}, scale=scale)
        with pytest.warns(DesignWarning, match=r"4 of 9 features \('x0', 'x1', 'x2', 'x3'\) are constant within"):
            residual = model.fit_transform(X[order], metadata=metadata.iloc[order])
        found.append(residual[np.argsort(order)])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["eb", "eb-one-row", "eb-nonparametric", "eb-robust"])
@pytest.mark.parametrize("scale", [False, True])
def test_features_without_values_in_a_batch_say_nothing_of_the_others_there(kind, scale):
    if scale and kind == "eb-one-row":
        return
    rng = np.random.default_rng(0)
    metadata = pd.DataFrame({"site": np.repeat(["a", "b", "c"], 20), "age": rng.normal(size=60)})
    X = rng.normal(size=(60, 8)) * rng.uniform(0.5, 2.0, 8) + np.outer(metadata["site"] == "b", rng.normal(1, 0.5, 8))
    X[40:, 6:] += 50.0
    X[:20, 6:] = np.nan
    options = {"shrinkage": {"site": kind}, "scale": scale, "check_leakage": False}
    with pytest.warns(DesignWarning, match="no values"):
        found = Residualizer("site + age", **options).fit_transform(X, metadata=metadata)
    expected = Residualizer("site + age", **options).fit_transform(X[:, :6], metadata=metadata)
    assert_allclose(found[:20, :6], expected[:20], rtol=0, atol=1e-10)
    assert np.isfinite(found[20:]).all()
    metadata["site"] = metadata["site"].map({"a": "z", "b": "m", "c": "b"})
    with pytest.warns(DesignWarning, match="no values"):
        renamed = Residualizer("site + age", **options).fit_transform(X, metadata=metadata)
    assert_allclose(renamed, found, rtol=0, atol=1e-8)


def test_ratios_of_single_values_say_nothing_of_the_others():
    rng = np.random.default_rng(0)
    gamma, delta = rng.normal(size=(1, 9)), rng.gamma(5.0, 0.2, (1, 9))
    n = np.array([[20.0] * 6 + [1.0] * 3])
    delta[n < 2] = 0.0  # of a value about itself
    shifts, ratios = posterior(gamma, delta, n)
    # Johnson et al. (2007), by hand: moments of the prior over six ratios, all nine shifts, and the fixed point
    mean, vary = delta[0, :6].mean(), delta[0, :6].var(ddof=1)
    shape, rate = 2.0 + mean**2 / vary, mean * (vary + mean**2) / vary
    spread = gamma.var(ddof=1)
    at = 20.0 * spread * gamma[0, :6] + ratios[0, :6] * gamma.mean()
    assert_allclose(shifts[0, :6], at / (20.0 * spread + ratios[0, :6]), rtol=1e-12)
    squares = 19.0 * delta[0, :6] + 20.0 * (gamma[0, :6] - shifts[0, :6]) ** 2
    assert_allclose(ratios[0, :6], (0.5 * squares + rate) / (10.0 + shape - 1.0), rtol=1e-12)
    assert_allclose(ratios[0, 6:], 1.0)


@pytest.mark.parametrize("how", ["eb", "eb-nonparametric", "eb-one-row", "eb-robust"])
def test_a_site_alone_in_which_nothing_varies_stays_as_it_is(how):
    formula = "C(site, levels=['a', 'b'])"
    model = Residualizer(formula, shrinkage=how, scale=how != "eb-one-row", check_leakage=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one site, and of constant features
        residual = model.fit_transform(np.ones((3, 3)), metadata=pd.DataFrame({"site": list("aaa")}))
    assert_allclose(residual, 0.0, rtol=0, atol=1e-14)
