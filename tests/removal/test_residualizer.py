"""What Residualizer promises, on arrays and on tables."""

import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import residmix
from residmix import Eraser, Residualizer
from residmix.errors import (
    CollinearityWarning,
    DesignWarning,
    EntangledEffectsWarning,
    LeakageWarning,
    ManyColumnsWarning,
    RareLevelWarning,
    ResidmixWarning,
)

RNG = np.random.default_rng(0)
N, P, D = 300, 3, 4
M = RNG.normal(size=(N, P))
X = M @ RNG.normal(size=(P, D)) + RNG.normal(size=(N, D)) + 5.0


def table(n=N, seed=0):
    """Return a frame with a factor, a number, a group to preserve, and two features that depend on all of them."""
    rng = np.random.default_rng(seed)
    site = rng.integers(0, 3, n)
    age = rng.uniform(20, 80, n)
    group = (rng.random(n) < 0.3 + 0.1 * site).astype(float)
    effect = np.array([0.0, 2.0, -1.0])[site]
    return pd.DataFrame(
        {
            "site": np.array(["A", "B", "C"])[site],
            "age": age,
            "group": group,
            "thickness": effect + 0.05 * age + 1.5 * group + rng.normal(size=n),
            "volume": 3 * effect - 0.02 * age - group + rng.normal(size=n),
        }
    )


def largest_correlation(residual, design):
    r = residual - residual.mean(axis=0)
    a = design - design.mean(axis=0)
    return np.abs((a.T @ r) / np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(r, axis=0))).max()


def textbook(M, X):
    Z = np.column_stack([M, np.ones(len(M))])
    return np.linalg.lstsq(Z, X, rcond=None)[0]


# ---- least squares ---------------------------------------------------------------------------------------------------


def test_coefficients_and_residuals_are_those_of_textbook_least_squares():
    model = Residualizer().fit(X, metadata=M)
    beta = textbook(M, X)
    np.testing.assert_allclose(model.coef_, beta[:-1], atol=1e-13)
    np.testing.assert_allclose(model.intercept_, beta[-1], atol=1e-13)
    np.testing.assert_allclose(model.transform(X, metadata=M), X - np.column_stack([M, np.ones(N)]) @ beta, atol=1e-12)


def test_residuals_of_new_rows_use_the_training_fit():
    model = Residualizer().fit(X[:200], metadata=M[:200])
    beta = textbook(M[:200], X[:200])
    expected = X[200:] - np.column_stack([M[200:], np.ones(100)]) @ beta
    np.testing.assert_allclose(model.transform(X[200:], metadata=M[200:]), expected, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e160, 1e300])
@pytest.mark.parametrize("n", [100, 40_000])
def test_metadata_whose_squares_are_no_numbers_are_refused_by_name(scale, n):
    rng = np.random.default_rng(0)
    metadata, x = rng.normal(size=(n, 2)) * [1.0, scale], rng.normal(size=(n, 3))
    table = pd.DataFrame(x, columns=list("xyz")).assign(dose=metadata[:, 1], group=(np.arange(n) % 300).astype(str))
    message = r"design column '(m1|dose|age:dose)' has a standard deviation of \de[+-]\d+ or more, .* divide the column"
    calls = [
        lambda: Residualizer().fit(x, metadata=metadata),
        lambda: Residualizer().partial_fit(x, metadata=metadata),
        lambda: Residualizer(alpha=1.0).fit(x, metadata=metadata),
        lambda: Eraser().fit(x, metadata=metadata),
        lambda: residmix.association(x, metadata),
        lambda: residmix.ResidualMixture(2, estimation="joint").fit(x, metadata=metadata),
        lambda: Residualizer("dose", features=list("xyz")).fit(table),
        lambda: Residualizer("age:dose", features=list("xyz")).fit(table.assign(age=1.0 + metadata[:, 0])),
    ]
    if n > 300:
        calls.append(lambda: Residualizer("dose + group", features=list("xyz")).fit(table))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e160, 1e300])
@pytest.mark.parametrize(
    "options", [{}, {"scale": True}, {"alpha": 1.0}, {"shrinkage": "eb"}, {"shrinkage": {"C(site)": "blup"}}], ids=str
)
def test_features_whose_squares_are_no_numbers_are_refused_by_name(scale, options):
    # they passed for constants, and pooled the others' effects with infinite ones
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(100, 3)), columns=list("xyz")).assign(site=np.arange(100) % 4)
    table["y"] = (table["y"] + table["site"]) * scale
    with pytest.raises(ValueError, match=r"feature 'y' has a standard deviation of \de[+-]\d+ or more, .* divide"):
        Residualizer("C(site)", **options).fit(table)


def test_features_of_any_size_whose_squares_are_numbers_and_tiny_constants_are_no_error():
    rng = np.random.default_rng(0)
    M, x = rng.normal(size=(500, 2)), rng.normal(size=(500, 4))
    units = np.array([1e-140, 1e140, 1.0, 0.0])
    x[:, 3] = 1e-200
    expected = Residualizer().fit_transform(x[:, :3], metadata=M)
    residual = Residualizer().fit_transform(x * np.where(units > 0, units, 1.0), metadata=M)
    np.testing.assert_allclose(residual[:, :3] / units[:3], expected, atol=1e-12)
    np.testing.assert_array_equal(residual[:, 3], 0.0)


def test_huge_and_tiny_metadata_whose_squares_are_numbers_are_removed_and_constants_are_aliased():
    rng = np.random.default_rng(0)
    M, x = rng.normal(size=(500, 2)), rng.normal(size=(500, 3))
    for units in ([1e-12, 1e12], [1e-140, 1e140]):
        residual = Residualizer().fit_transform(x + M @ np.ones((2, 3)), metadata=M * units)
        assert np.abs(np.corrcoef(np.hstack([residual, M]).T)[:3, 3:]).max() < 1e-12
    for constant in (0.0, 1e-200, 1e200):
        with pytest.warns(CollinearityWarning, match="'m0' is determined by the intercept"):
            Residualizer().fit(x, metadata=np.full(500, constant))


@pytest.mark.parametrize("offset", [0.0, 1e8])
@pytest.mark.parametrize("scale_x", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("scale_m", [1e-12, 1.0, 1e12])
def test_residuals_are_uncorrelated_with_the_design_at_any_scale_and_offset(scale_m, scale_x, offset):
    metadata, features = (M + offset) * scale_m, (X + offset) * scale_x
    residual = Residualizer().fit_transform(features, metadata=metadata)
    assert largest_correlation(features, metadata) > 0.1  # there was something to remove
    assert largest_correlation(residual, metadata) <= 1e-10


def test_columns_of_very_different_scale_in_one_design_are_all_removed():
    metadata = M * [1e-12, 1.0, 1e12] + [0.0, 1e8, 0.0]
    assert largest_correlation(Residualizer().fit_transform(X, metadata=metadata), metadata) <= 1e-10


@given(st.integers(0, 2**32 - 1), st.floats(-12, 12), st.floats(-12, 12))
def test_residuals_follow_the_features_scale_and_ignore_the_metadatas(seed, log_x, log_m):
    rng = np.random.default_rng(seed)
    metadata, features = rng.normal(size=(40, 2)), rng.normal(size=(40, 3))
    plain = Residualizer().fit_transform(features, metadata=metadata)
    scaled = Residualizer().fit_transform(features * 10**log_x, metadata=metadata * 10**log_m)
    np.testing.assert_allclose(scaled / 10**log_x, plain, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_residuals_ignore_offsets(seed, offset_x, offset_m):
    rng = np.random.default_rng(seed)
    metadata, features = rng.normal(size=(40, 2)), rng.normal(size=(40, 3))
    plain = Residualizer().fit_transform(features, metadata=metadata)
    moved = Residualizer().fit_transform(features + offset_x, metadata=metadata + offset_m)
    # the sums x + offset round at 1e6 * 2^-53 = 1e-10
    np.testing.assert_allclose(moved, plain, atol=2e-9)


@given(st.integers(0, 2**32 - 1), st.permutations(range(3)), st.randoms(use_true_random=False))
def test_order_of_rows_and_of_columns_makes_no_difference(seed, order, random):
    rng = np.random.default_rng(seed)
    metadata, features = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    rows = list(range(40))
    random.shuffle(rows)
    plain = Residualizer().fit(features, metadata=metadata)
    other = Residualizer().fit(features[rows], metadata=metadata[rows][:, order])
    np.testing.assert_allclose(other.coef_, plain.coef_[list(order)], atol=1e-12)


def test_sample_weight_equals_repeated_rows_and_weight_zero_equals_absence():
    weight = RNG.integers(0, 4, N)
    model = Residualizer().fit(X, metadata=M, sample_weight=weight)
    repeated = Residualizer().fit(np.repeat(X, weight, axis=0), metadata=np.repeat(M, weight, axis=0))
    np.testing.assert_allclose(model.coef_, repeated.coef_, atol=1e-13)
    np.testing.assert_allclose(model.intercept_, repeated.intercept_, atol=1e-12)
    np.testing.assert_allclose(model.r2_, repeated.r2_, atol=1e-13)


def test_a_row_of_weight_zero_with_an_absurd_value_changes_nothing():
    far = np.vstack([X, np.full((1, D), 1e300)])
    model = Residualizer().fit(far, metadata=np.vstack([M, M[:1]]), sample_weight=np.append(np.ones(N), 0.0))
    np.testing.assert_allclose(model.coef_, Residualizer().fit(X, metadata=M).coef_, atol=1e-13)


def test_a_float32_matrix_gives_float32_residuals_from_float64_moments():
    single = X.astype(np.float32)
    residual = Residualizer().fit_transform(single, metadata=M)
    assert residual.dtype == np.float32
    exact = Residualizer().fit_transform(single.astype(np.float64), metadata=M)
    np.testing.assert_array_equal(residual, exact.astype(np.float32))


def test_input_is_never_changed_and_may_be_read_only_or_strided():
    features, metadata = X.copy(), M.copy()
    features.setflags(write=False)
    metadata.setflags(write=False)
    expected = Residualizer().fit_transform(features, metadata=metadata)
    np.testing.assert_array_equal(features, X)
    wide = np.zeros((N, 2 * D))
    wide[:, ::2] = X
    for other in (np.asfortranarray(X), wide[:, ::2]):
        np.testing.assert_array_equal(Residualizer().fit_transform(other, metadata=np.asfortranarray(M)), expected)


def test_one_dimensional_metadata_is_one_column():
    np.testing.assert_array_equal(
        Residualizer().fit_transform(X, metadata=M[:, 0]), Residualizer().fit_transform(X, metadata=M[:, :1])
    )


def test_without_metadata_features_are_centred():
    np.testing.assert_allclose(Residualizer().fit_transform(X), X - X.mean(axis=0), atol=1e-13)


# ---- collinear, saturated, ill-conditioned ---------------------------------------------------------------------------


def test_of_collinear_columns_the_earlier_ones_have_the_effect_and_the_later_ones_are_named():
    design = np.column_stack([M, M[:, 0] + 2 * M[:, 1], np.full(N, 3.0)])
    with pytest.warns(
        CollinearityWarning, match=r"'m3' is determined by 'm0' and 'm1'; 'm4' is determined by the inter"
    ):
        model = Residualizer().fit(X, metadata=design)
    beta = textbook(M, X)
    np.testing.assert_allclose(model.coef_, [*beta[:-1], np.zeros(D), np.zeros(D)], atol=1e-12)
    np.testing.assert_allclose(model.intercept_, beta[-1], atol=1e-12)
    assert model.rank_ == 3
    table, alone = model.tidy(), Residualizer().fit(X, metadata=M).tidy()
    for name in ("estimate", "std_error", "statistic", "p_value", "partial_r2"):
        found = table.pivot(index="term", columns="feature", values=name)
        assert found.loc[["m3", "m4"]].isna().all(axis=None)
        right = alone.pivot(index="term", columns="feature", values=name)
        np.testing.assert_allclose(found.drop(["m3", "m4"]), right, rtol=1e-9, atol=1e-12)


def test_a_near_duplicate_column_is_removed_too():
    # scanpy's regress_out leaves correlation 0.86 here: its singularity test is det != 0
    near = np.column_stack([M[:, 0], M[:, 0] * (1 + 1e-9 * RNG.normal(size=N))])
    residual = Residualizer().fit_transform(X, metadata=near)
    assert largest_correlation(residual, near) < 1e-7


def test_more_metadata_columns_than_rows_leave_nothing():
    wide = RNG.normal(size=(20, 50))
    with pytest.warns(ManyColumnsWarning, match="in-sample residuals keep only 0%"), pytest.warns(CollinearityWarning):
        model = Residualizer().fit(X[:20], metadata=wide)
    np.testing.assert_allclose(model.transform(X[:20], metadata=wide), 0.0, atol=1e-12)
    beta = textbook(wide[:, :19], X[:20])
    np.testing.assert_allclose(model.coef_, np.vstack([beta[:-1], np.zeros((31, D))]), atol=1e-9)


def test_columns_close_in_number_to_rows_are_warned_about_with_what_is_left():
    with pytest.warns(ManyColumnsWarning, match="30 design columns for 40 rows.* keep only 22%"):
        Residualizer().fit(RNG.normal(size=(40, 2)), metadata=RNG.normal(size=(40, 30)))


def test_equal_rows_and_constant_features_stay_finite():
    same = np.ones((10, 3))
    with pytest.warns(CollinearityWarning):
        model = Residualizer().fit(same, metadata=np.ones(10))
    np.testing.assert_array_equal(model.transform(same, metadata=np.ones(10)), 0.0)
    np.testing.assert_array_equal(model.r2_, 0.0)


# ---- peers' silent failures, where we are right ----------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.05, 0.01, 1e-6])
def test_a_metadata_column_of_small_variance_is_removed(spread):
    # concept-erasure's absolute tolerances leave correlations of 0.75 to 0.93 here
    small = spread * M[:, :1]
    features = X + 10 * M[:, :1]
    assert largest_correlation(Residualizer().fit_transform(features, metadata=small), small) < 1e-10


def test_a_rare_level_is_removed():
    level = np.array(["common"] * 997 + ["rare"] * 3)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(1000, 2)) + 5.0 * (level == "rare")[:, None]
    residual = Residualizer().fit_transform(features, metadata=pd.DataFrame({"level": level}))
    assert np.abs(residual[level == "rare"].mean(axis=0)).max() < 1e-12


def test_a_confound_far_from_zero_is_removed():
    # without an intercept (scikit-lego, nilearn) correlations of 0.87 to 0.88 stay; float32 designs leave 0.49
    year = 2000.0 + np.round(3 * M[:, :1])
    features = X + 2 * (year - 2000)
    assert largest_correlation(Residualizer().fit_transform(features, metadata=year), year) < 1e-10
    assert largest_correlation(Residualizer().fit_transform(features.astype(np.float32), metadata=year), year) < 1e-6


def test_any_mix_and_order_of_categorical_and_numeric_columns_works():
    # scanpy raises for ["batch", "x"], and otherwise for ["x", "batch"]
    data = table()
    one = Residualizer("site + age").fit_transform(data[["site", "age", "thickness", "volume"]])
    two = Residualizer("age + site").fit_transform(data[["site", "age", "thickness", "volume"]])
    np.testing.assert_allclose(one, two, atol=1e-12)


def test_a_refit_forgets_the_first_fit():
    # photonai's remover appends to its scalers
    model = Residualizer().fit(X * 100, metadata=M)
    np.testing.assert_array_equal(model.fit(X, metadata=M).coef_, Residualizer().fit(X, metadata=M).coef_)


def test_rows_one_at_a_time_equal_the_batch():
    model = Residualizer().fit(X, metadata=M)
    singly = np.vstack([model.transform(X[i : i + 1], metadata=M[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(singly, model.transform(X[:20], metadata=M[:20]), atol=1e-13)


def test_new_data_need_not_show_every_level():
    # neuroHarmonize fails if a training site is absent from the new rows
    data = table()
    model = Residualizer("site").fit(data[["site", "thickness"]])
    only = data[data["site"] == "B"]
    np.testing.assert_allclose(
        model.transform(only[["site", "thickness"]])[:, 0],
        only["thickness"] - data.loc[data["site"] == "B", "thickness"].mean(),
        atol=1e-12,
    )


# ---- missing values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 7])
def test_each_feature_is_fitted_on_the_rows_that_it_has(block, monkeypatch):
    if block:  # several blocks, so that moments with and without gaps meet in merges
        monkeypatch.setattr("residmix.removal.transformer.linear_block_rows", lambda d, q: block)
    gappy = X.copy()
    gappy[RNG.random(X.shape) < 0.2] = np.nan
    gappy[:21] = X[:21]
    model = Residualizer().fit(gappy, metadata=M)
    residual = model.transform(gappy, metadata=M)
    np.testing.assert_array_equal(np.isnan(residual), np.isnan(gappy))
    for j in range(D):
        has = ~np.isnan(gappy[:, j])
        alone = Residualizer().fit(gappy[has][:, [j]], metadata=M[has])
        np.testing.assert_allclose(model.coef_[:, [j]], alone.coef_, atol=1e-13)
        np.testing.assert_allclose(model.r2_[j], alone.r2_[0], atol=1e-13)
        np.testing.assert_allclose(
            residual[has, j], alone.transform(gappy[has][:, [j]], metadata=M[has])[:, 0], atol=1e-12
        )


def test_gaps_and_collinear_metadata_together_give_each_feature_its_own_solution():
    design = np.column_stack([M, M[:, 0] - M[:, 1]])
    gappy = X.copy()
    gappy[RNG.random(X.shape) < 0.2] = np.nan
    with pytest.warns(CollinearityWarning):
        model = Residualizer().fit(gappy, metadata=design)
    for j in range(D):
        has = ~np.isnan(gappy[:, j])
        right = textbook(M[has], gappy[has, j])[:-1]
        np.testing.assert_allclose(model.coef_[:, j], [*right, 0.0], atol=1e-12)


def test_a_feature_without_any_value_harms_no_other():
    gappy = X.copy()
    gappy[:, 1] = np.nan
    with pytest.warns(DesignWarning, match="without any value are left unchanged: x1"):
        residual = Residualizer().fit_transform(gappy, metadata=M)
    assert np.isnan(residual[:, 1]).all()
    np.testing.assert_allclose(residual[:, 2], Residualizer().fit_transform(X, metadata=M)[:, 2], atol=1e-12)


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_one_table_equals_arrays_with_metadata():
    data = table()
    dummies = np.column_stack([data["site"] == "B", data["site"] == "C", data["age"]]).astype(float)
    features = data[["thickness", "volume"]].to_numpy()
    whole = Residualizer("C(site) + age", features=["thickness", "volume"]).fit(data)
    np.testing.assert_allclose(whole.coef_, Residualizer().fit(features, metadata=dummies).coef_, atol=1e-12)
    assert whole.design_columns_ == ["C(site)[T.B]", "C(site)[T.C]", "age"]


def test_pandas_polars_and_pyarrow_give_the_same_bits():
    data = table()
    formula = "site * age + bs(age, df=4)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollinearityWarning)  # a spline of age spans age
        model = Residualizer(formula, features=["thickness", "volume"])
        expected = model.fit_transform(data)
        for other in (pl.from_pandas(data), pa.Table.from_pandas(data)):
            np.testing.assert_array_equal(model.fit_transform(other), expected)


def test_metadata_as_a_frame_beside_an_array_equals_one_table():
    data = table()
    features = data[["thickness", "volume"]].to_numpy()
    apart = Residualizer("site + age").fit_transform(features, metadata=data[["site", "age"]])
    np.testing.assert_array_equal(apart, Residualizer("site + age").fit_transform(data.drop(columns="group")))


def test_set_output_gives_the_features_columns_and_index():
    data = table().set_index(np.arange(N) + 1000).drop(columns="group")
    out = Residualizer("site + age").set_output(transform="pandas").fit_transform(data)
    assert list(out.columns) == ["thickness", "volume"]
    assert out.index[0] == 1000
    out = Residualizer("site + age").set_output(transform="polars").fit_transform(pl.from_pandas(data))
    assert out.columns == ["thickness", "volume"]


def test_a_column_of_the_table_can_hold_the_weights():
    data = table().drop(columns="group").assign(w=RNG.integers(1, 4, N).astype(float))
    named = Residualizer("site").fit(data, sample_weight="w")
    assert list(named.features_) == ["age", "thickness", "volume"]
    np.testing.assert_array_equal(
        named.coef_, Residualizer("site").fit(data.drop(columns="w"), sample_weight=data["w"]).coef_
    )


# ---- preserve, ridge -------------------------------------------------------------------------------------------------


def test_preserved_effects_are_estimated_beside_and_kept():
    data = table()
    model = Residualizer("site + age", preserve="group").fit(data)
    full = np.column_stack([data["site"] == "B", data["site"] == "C", data["age"], data["group"]]).astype(float)
    features = data[["thickness", "volume"]].to_numpy()
    beta = textbook(full, features)
    np.testing.assert_allclose(model.coef_, beta[:3], atol=1e-12)
    np.testing.assert_allclose(model.preserved_coef_, beta[3:4], atol=1e-12)
    residual = model.transform(data.drop(columns="group"))  # its column isn't needed any more
    removed = features - full[:, :3] @ beta[:3]
    np.testing.assert_allclose(residual, removed - removed.mean(axis=0), atol=1e-12)


def test_nearly_collinear_removed_and_preserved_effects_are_warned_about_with_the_number():
    data = table()
    data["scanner"] = (data["site"] == "B") * 1.0 + 0.05 * RNG.normal(size=N)
    with pytest.warns(EntangledEffectsWarning, match=r"canonical correlation 0\.99\d\d"):
        model = Residualizer("site", preserve="scanner", features=["thickness", "volume"]).fit(data)
    site = np.column_stack([data["site"] == "B", data["site"] == "C"]).astype(float)
    r2 = LinearRegression().fit(site, data["scanner"]).score(site, data["scanner"])
    np.testing.assert_allclose(model.canonical_correlations_, [np.sqrt(r2)], atol=1e-12)


@pytest.mark.parametrize(
    ("category", "parent"),
    [
        (EntangledEffectsWarning, CollinearityWarning),
        (ManyColumnsWarning, DesignWarning),
        (RareLevelWarning, ResidmixWarning),
    ],
)
def test_each_warning_can_be_filtered_alone(category, parent):
    assert issubclass(category, parent)
    data = table(40)
    data["scanner"] = (data["site"] == "B") * 1.0 + 0.01 * RNG.normal(size=40)
    data.loc[[0, 1], "site"] = "rare"
    for j in range(25):
        data[f"m{j}"] = RNG.normal(size=40)
    formula = "site + " + " + ".join(f"m{j}" for j in range(25))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=category)
        Residualizer(formula, preserve="scanner", features=["thickness", "volume"]).fit(data)
    everything = {EntangledEffectsWarning, ManyColumnsWarning, RareLevelWarning}
    assert {warning.category for warning in told} == everything - {category}
    assert all(any(figure.isdigit() for figure in str(warning.message)) for warning in told)


def test_ridge_equals_scikit_learns():
    model = Residualizer(alpha=7.0).fit(X, metadata=M)
    reference = Ridge(alpha=7.0, solver="svd").fit(M, X)
    np.testing.assert_allclose(model.coef_, reference.coef_.T, atol=1e-13)
    np.testing.assert_allclose(model.intercept_, reference.intercept_, atol=1e-12)


def test_ridge_of_a_factor_shrinks_to_the_mean_of_the_levels_whatever_the_reference():
    data = table().drop(columns=["age", "group"])
    model = Residualizer("site", alpha=50.0).fit(data)
    dummies = pd.get_dummies(data["site"]).to_numpy(float)
    features = data[["thickness", "volume"]].to_numpy()
    reference = Ridge(alpha=50.0, solver="svd").fit(dummies, features)
    np.testing.assert_allclose(model.transform(data), features - reference.predict(dummies), atol=1e-12)


def test_ridge_per_term_touches_only_that_term():
    data = table().drop(columns="group")
    model = Residualizer("site + age", alpha={"site": 1e12}).fit(data)
    features = data[["thickness", "volume"]].to_numpy()
    np.testing.assert_allclose(model.coef_[:2], 0.0, atol=1e-7)
    np.testing.assert_allclose(model.coef_[2], textbook(data[["age"]].to_numpy(), features)[0], atol=1e-7)


# ---- streams and merging ---------------------------------------------------------------------------------------------


def test_partial_fit_and_merge_equal_one_fit():
    whole = Residualizer().fit(X, metadata=M)
    stream, other = Residualizer(), Residualizer().fit(X[170:], metadata=M[170:])
    for part in (slice(0, 50), slice(50, 120), slice(120, 170)):
        stream.partial_fit(X[part], metadata=M[part])
    stream.merge(other)
    np.testing.assert_allclose(stream.coef_, whole.coef_, atol=1e-13)
    np.testing.assert_allclose(stream.intercept_, whole.intercept_, atol=1e-12)
    np.testing.assert_allclose(stream.r2_, whole.r2_, atol=1e-13)


def test_merging_different_designs_is_refused():
    data = table().drop(columns="group")
    with pytest.raises(ValueError, match="the designs differ"):
        Residualizer("site").fit(data).merge(Residualizer("site").fit(data[data["site"] != "A"]))
    with pytest.raises(ValueError, match="the features differ"):
        Residualizer().fit(X).merge(Residualizer().fit(X[:, :2]))


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_number_of_threads_does_not_change_a_bit(threads, monkeypatch):
    rng = np.random.default_rng(2)
    metadata, features = rng.normal(size=(20_000, 5)), rng.normal(size=(20_000, 12))
    monkeypatch.setenv("RESIDMIX_NUM_THREADS", threads)
    model = Residualizer().fit(features, metadata=metadata)
    monkeypatch.setenv("RESIDMIX_NUM_THREADS", "1")
    np.testing.assert_array_equal(model.coef_, Residualizer().fit(features, metadata=metadata).coef_)


# ---- inverse ---------------------------------------------------------------------------------------------------------


def test_inverse_transform_undoes_transform():
    model = Residualizer().fit(X, metadata=M)
    np.testing.assert_allclose(model.inverse_transform(model.transform(X, metadata=M), metadata=M), X, atol=1e-12)


def test_inverse_transform_at_another_profile_moves_everybody_there():
    data = table().drop(columns="group")
    model = Residualizer("site + age").fit(data)
    residual = model.transform(data)
    there = data[["site", "age"]].assign(site="B")
    moved = model.inverse_transform(residual, metadata=there)
    at_b = (data["site"] == "B").to_numpy()
    np.testing.assert_allclose(moved[at_b], data.loc[at_b, ["thickness", "volume"]], atol=1e-12)
    np.testing.assert_allclose(model.transform(moved, metadata=there), residual, atol=1e-12)


# ---- scikit-learn ----------------------------------------------------------------------------------------------------


def test_the_one_table_form_works_in_pipelines_and_searches():
    data = table(600)
    pipe = make_pipeline(Residualizer("site + age", features=["thickness", "volume"]), LinearRegression())
    assert cross_val_score(pipe, data, data["group"], cv=3).mean() > 0.2
    search = GridSearchCV(
        pipe, {"residualizer__alpha": [0.0, 1.0], "residualizer__formula": ["site", "site + age"]}, cv=3
    )
    search.fit(data, data["group"])
    assert search.best_params_["residualizer__formula"] == "site + age"


def test_metadata_is_routed_through_pipelines():
    import sklearn

    with sklearn.config_context(enable_metadata_routing=True):
        pipe = make_pipeline(Residualizer(), LinearRegression()).fit(X, X[:, 0], metadata=M)
    expected = LinearRegression().fit(Residualizer().fit_transform(X, metadata=M), X[:, 0])
    np.testing.assert_allclose(pipe[-1].coef_, expected.coef_, atol=1e-10)


def test_it_can_be_cloned_and_pickled():
    model = clone(Residualizer("site", features=["thickness", "volume"])).fit(table())
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(table()), model.transform(table()))


# ---- inference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_tidy_agrees_with_statsmodels(weighted):
    weight = RNG.uniform(0.5, 2, N) if weighted else None
    tidy = Residualizer().fit(X, metadata=M, sample_weight=weight).tidy()
    assert list(tidy.columns) == ["feature", "term", "estimate", "std_error", "statistic", "p_value", "partial_r2"]
    for j in range(D):
        own = tidy[tidy["feature"] == f"x{j}"]
        assert list(own["term"]) == ["m0", "m1", "m2", "Intercept"]
        Z = np.column_stack([M, np.ones(N)])
        reference = sm.WLS(X[:, j], Z, weights=weight).fit() if weighted else sm.OLS(X[:, j], Z).fit()
        np.testing.assert_allclose(own["estimate"], reference.params, rtol=1e-10)
        np.testing.assert_allclose(own["std_error"], reference.bse, rtol=1e-10)
        np.testing.assert_allclose(own["statistic"], reference.tvalues, rtol=1e-10)
        np.testing.assert_allclose(own["p_value"], reference.pvalues, rtol=1e-8, atol=1e-300)
        t2 = reference.tvalues**2
        np.testing.assert_allclose(own["partial_r2"], t2 / (t2 + reference.df_resid), rtol=1e-10)


def test_r2_is_that_of_scikit_learn():
    np.testing.assert_allclose(
        Residualizer().fit(X, metadata=M).r2_,
        [LinearRegression().fit(M, X[:, j]).score(M, X[:, j]) for j in range(D)],
        atol=1e-13,
    )


def test_summary_tells_terms_rank_and_shares(capsys):
    data = table()
    print(Residualizer("site + age", preserve="group").fit(data).summary())
    text = capsys.readouterr().out
    assert "2 features on 4 design columns, 300 rows" in text
    assert "rank 4 of 4" in text
    assert "group" in text and "(preserved)" in text
    # partial R2 of a term is 1 - RSS(full) / RSS(without it)
    full = Residualizer("site + age + group", features=["thickness", "volume"]).fit(data)
    without = Residualizer("age + group", features=["thickness", "volume"]).fit(data)
    share = 1 - (1 - full.r2_) / (1 - without.r2_)
    assert f"{np.median(share):.3f}" in text and f"{share.max():.3f}" in text


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Residualizer().fit(X, metadata=M[:-1]), "300 rows but metadata has 299"),
        (lambda: Residualizer().fit(np.where(X > 8, np.inf, X), metadata=M), "infinity"),
        (lambda: Residualizer().fit(X, metadata=np.where(M > 2, np.nan, M)), "missing value"),
        (lambda: Residualizer().fit(X, metadata=np.where(M > 2, np.inf, M)), "infinite value"),
        (lambda: Residualizer().fit(X[:, 0], metadata=M), "Expected 2D array"),
        (lambda: Residualizer().fit(X[:0], metadata=M[:0]), "0 sample"),
        (lambda: Residualizer().fit([["a"], ["b"]]), "could not convert|numeric|numbers"),
        (lambda: Residualizer("sight").fit(table()), "did you mean 'site'"),
        (lambda: Residualizer("site").fit(X), "needs metadata"),
        (lambda: Residualizer(preserve="group").fit(table()), "preserve= needs something to remove"),
        (lambda: Residualizer("site", features=["thicknes"]).fit(table()), "did you mean 'thickness'"),
        (lambda: Residualizer("site", alpha={"sit": 1.0}).fit(table()), "did you mean 'site'"),
        (lambda: Residualizer(alpha=-1.0).fit(X, metadata=M), "'alpha' parameter of Residualizer must be .* Got -1.0"),
        (lambda: Residualizer(on_unknown="eror").fit(X, metadata=M), "'on_unknown' parameter .* Got 'eror'"),
        (
            lambda: Residualizer(missing="drop").fit(X, metadata=M),
            "'missing' parameter of .* must be a str among",
        ),
        (lambda: Residualizer().fit(X, metadata=M, sample_weight=-np.ones(N)), "negative"),
        (lambda: Residualizer().fit(X, metadata=M, sample_weight=np.zeros(N)), "0 for every row"),
        (lambda: Residualizer().fit(X, metadata=M, sample_weight=np.ones(3)), "sample_weight must be one number for"),
        (lambda: Residualizer().transform(X), "not fitted"),
        (lambda: Residualizer().fit(X, metadata=M).transform(X), "metadata is needed"),
        (
            lambda: Residualizer().fit(X, metadata=M).transform(X[:, :2], metadata=M),
            "2 features, but Residualizer is exp",
        ),
        (lambda: Residualizer().fit(X, metadata=M).transform(X, metadata=M[:, :2]), "2 columns, but it had 3 in fit"),
        (lambda: Residualizer("__import__('os').system('true')").fit(table()), "formula"),
        (
            lambda: Residualizer("site", features=["volume"]).fit(table()).transform(table().assign(site="D")),
            "did not see: 'D'",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises((ValueError, TypeError, AttributeError), match=message):
        call()


def test_levels_seen_in_few_rows_are_warned_about():
    data = table().drop(columns="group")
    data.loc[0, "site"] = "D"
    with pytest.warns(RareLevelWarning):
        Residualizer("site").fit(data)


def test_an_unseen_level_can_get_the_average_effect_of_the_known_ones():
    data = table().drop(columns=["age", "group"])
    model = Residualizer("site", on_unknown="mean").fit(data)
    known = [model.transform(data.assign(site=s).iloc[:5]) for s in "ABC"]
    np.testing.assert_allclose(model.transform(data.assign(site="new").iloc[:5]), np.mean(known, axis=0), atol=1e-12)


@pytest.mark.parametrize("far", [1e9, 1e150])
def test_far_outliers_give_finite_residuals_and_are_told_to_give_metadata_back(far):
    features = X.copy()
    features[3, 1] = far
    with pytest.warns(LeakageWarning, match=r"features \('x1'.*heavy-tailed"):
        assert np.isfinite(Residualizer().fit_transform(features, metadata=M)).all()


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 1e6 + 0.1, -7.7e-9])
@pytest.mark.parametrize(
    "options", [{}, {"scale": True}, {"alpha": 1.0}, {"residuals": "loo"}, {"shrinkage": {"site": "blup"}}], ids=str
)
def test_a_constant_feature_has_no_effects_of_rounding(constant, options):
    # A scaler divides by the spread: residuals of 1e-59 that differ by site would become the site itself.
    data = table()
    data["thickness"] = constant
    formula = "site" if "shrinkage" in options else "site + age"
    model = Residualizer(formula, features=["thickness", "volume"], **options)
    residual = model.fit_transform(data)
    assert len(np.unique(residual[:, 0])) == 1
    assert np.all(model.coef_[:, 0] == 0.0)
    assert np.ptp(StandardScaler().fit_transform(residual)[:, 0]) == 0.0
    if not options:
        model.partial_fit(data)
        assert len(np.unique(model.transform(data)[:, 0])) == 1
        data.loc[::7, "thickness"] = np.nan
        assert len(np.unique(model.fit_transform(data)[:, 0])) == 2  # and NaN


def test_integers_and_single_rows_are_fine():
    with pytest.warns(DesignWarning, match=r"2 of 2 features are determined exactly by the design \('x0', 'x1'\)"):
        residual = Residualizer().fit_transform(np.arange(12).reshape(6, 2), metadata=np.arange(6))
    np.testing.assert_allclose(residual, 0.0, atol=1e-13)
    np.testing.assert_array_equal(Residualizer().fit_transform([[1.0, 2.0]]), [[0.0, 0.0]])


def test_only_another_residualizer_is_merged():
    data = table()
    model = Residualizer("site", features=["thickness"]).fit(data)
    with pytest.raises(TypeError, match="merge takes another Residualizer, not Eraser"):
        model.merge(Eraser("age", features=["thickness", "volume"]).fit(data))
    with pytest.raises(TypeError, match="merge takes another Eraser, not Residualizer"):
        Eraser("age", features=["thickness", "volume"]).fit(data).merge(model)


def test_metadata_given_in_the_place_of_the_target_are_told():
    rng = np.random.default_rng(0)
    X, age = rng.normal(size=(50, 2)), rng.normal(size=50)
    for call in (Residualizer().fit, Residualizer().fit_transform):
        with pytest.warns(DesignWarning, match="The second argument of fit is an ignored target"):
            call(X, age)
    Residualizer().fit(X)  # without metadata on purpose
    Residualizer().fit(X, age > 0, metadata=age)


def test_the_summary_says_that_absorbed_levels_count_in_the_rank(capsys):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(900, 2)), columns=["x", "age"]).assign(g=[f"g{i % 300}" for i in range(900)])
    print(Residualizer("g + age", features=["x"]).fit(table).summary())
    assert "rank 300 of 1 and the levels of absorbed factors, condition" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::residmix.errors.DesignWarning")
@pytest.mark.parametrize("gap", ["none", "some", "all"])
@pytest.mark.parametrize("lacking", [0, 2])
def test_entangled_effects_are_told_whichever_feature_lacks_values(gap, lacking):
    rng = np.random.default_rng(0)
    site = np.arange(100) % 2
    table = pd.DataFrame({"site": np.where(site == 1, "b", "a"), "age": 50 + 10 * site + rng.normal(0, 0.5, 100)})
    features = rng.normal(size=(100, 3))
    features[{"none": slice(0, 0), "some": site == 1, "all": slice(None)}[gap], lacking] = np.nan
    expected = np.corrcoef(site, table["age"])[0, 1]
    with pytest.warns(residmix.errors.EntangledEffectsWarning, match=f"canonical correlation {expected:.4f}"):
        model = Residualizer("site", preserve="age").fit(features, metadata=table)
    np.testing.assert_allclose(model.canonical_correlations_, [expected], atol=1e-10)
    with pytest.raises(ValueError, match="collinear"):
        Residualizer("site", preserve="age", on_entangled="error").fit(features, metadata=table)
