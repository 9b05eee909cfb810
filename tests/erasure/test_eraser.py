"""Eraser: what is claimed of LEACE and SPLINCE, as theorems; each with a control that fails without the code."""

import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from residmix import Eraser
from residmix.errors import DesignWarning, EntangledEffectsWarning
from residmix.moments.erase import TangledError, erasure
from residmix.moments.scatter import Scatter, joint_scatter
from residmix.rows.rows import ArrayRows

# class labels are erased as numbers on purpose
pytestmark = pytest.mark.filterwarnings("ignore:metadata column 'm0' holds only .* distinct integers")


def labelled(classes, n=2048, d=24, seed=0):
    """Features whose class means differ in all directions, as scikit-learn's make_classification has them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    spread = rng.normal(size=(d, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)) @ spread + rng.normal(size=(classes, d))[labels], labels


def correlation(A, B):
    A, B = A - A.mean(axis=0), B - B.mean(axis=0)
    return np.abs(A.T @ B) / np.outer(np.linalg.norm(A, axis=0), np.linalg.norm(B, axis=0))


def covariance(A, B):
    return (A - A.mean(axis=0)).T @ (B - B.mean(axis=0)) / len(A)


def one_hot(labels):
    return (labels[:, None] == np.unique(labels)).astype(float)


def unpenalised_coefficients(X, labels):
    """Largest coefficient of logistic regression without penalty, on centred features of unit variance before."""
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    return np.abs(model.fit(X - X.mean(axis=0), labels).coef_).max()


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 20])
def test_unpenalised_logistic_regression_finds_nothing(classes):
    X, labels = labelled(classes)
    erased = Eraser("C(label)").fit(X, metadata=pd.DataFrame({"label": labels})).transform(X)
    assert unpenalised_coefficients(X, labels) > 0.05
    assert unpenalised_coefficients(erased, labels) < 1e-8


def test_least_squares_on_continuous_metadata_finds_nothing():
    rng = np.random.default_rng(1)
    Z = rng.normal(size=(2000, 3))
    X = rng.normal(size=(2000, 12))
    X[:, :5] += Z @ rng.normal(size=(3, 5))
    erased = Eraser().fit(X, metadata=Z).transform(X)
    assert np.abs(LinearRegression().fit(X, Z).coef_).max() > 0.05
    # The erased features have rank 9: take the directions that vary, or least squares divides rounding by rounding.
    left, values, _ = np.linalg.svd(erased - erased.mean(axis=0), full_matrices=False)
    assert (values > 1e-10 * values[0]).sum() == 9
    assert np.abs(LinearRegression().fit(left[:, :9], Z).coef_).max() < 1e-8


@pytest.mark.parametrize("classes", [2, 5, 20])
def test_rank_idempotence_and_means(classes):
    X, labels = labelled(classes)
    eraser = Eraser("C(label)").fit(X, metadata=pd.DataFrame({"label": labels}))
    erased, P = eraser.transform(X), eraser.projection_
    assert eraser.rank_ == classes - 1 == np.linalg.matrix_rank(X - erased, tol=1e-8)
    assert_allclose(P @ P, P, atol=1e-12 * np.abs(P).max() ** 2)
    assert_allclose(eraser.transform(erased), erased, atol=1e-10)
    assert_allclose(erased.mean(axis=0), X.mean(axis=0), atol=1e-12)
    means = np.array([erased[labels == k].mean(axis=0) for k in range(classes)])
    assert np.ptp(means, axis=0).max() < 1e-12
    assert np.ptp([X[labels == k].mean(axis=0) for k in range(classes)], axis=0).max() > 0.5


def stationarity(P, S_xx, S_constraint, metric):
    """Gradient of the squared change in a metric, along all maps that keep P S_constraint as it is."""
    left, values, _ = np.linalg.svd(S_constraint)
    free = left[:, (values > 1e-9 * values[0]).sum() :]
    gradient = metric @ (P - np.eye(len(P))) @ S_xx @ free
    return np.abs(gradient).max() / np.abs(metric @ S_xx).max()


@pytest.mark.parametrize("kept", [0, 2])
def test_no_other_map_with_the_same_covariances_changes_less_in_a_random_metric(kept):
    X, labels = labelled(4, seed=3)
    rng = np.random.default_rng(4)
    Y = X[:, 5 : 5 + kept] + rng.normal(size=(len(X), kept))
    Z = one_hot(labels)[:, 1:]
    metadata = pd.DataFrame({"label": labels, **{f"y{j}": Y[:, j] for j in range(kept)}})
    eraser = Eraser("C(label)", preserve=" + ".join(f"y{j}" for j in range(kept)) or None).fit(X, metadata=metadata)
    S_xx, fixed = covariance(X, X), np.hstack([covariance(X, Z), covariance(X, Y)])
    root = rng.normal(size=(X.shape[1],) * 2)
    assert stationarity(eraser.projection_, S_xx, fixed, root @ root.T) < 1e-10
    # Control: the orthogonal projection erases as well, but isn't the least change.
    basis = np.linalg.qr(covariance(X, Z))[0]
    orthogonal = np.eye(X.shape[1]) - basis @ basis.T
    assert stationarity(orthogonal, S_xx, covariance(X, Z), root @ root.T) > 1e-3


def test_agrees_with_the_published_formula():
    X, labels = labelled(3, d=8, seed=5)
    eraser = Eraser("C(label)").fit(X, metadata=pd.DataFrame({"label": labels}))
    values, vectors = np.linalg.eigh(covariance(X, X))
    W = vectors / np.sqrt(values) @ vectors.T
    Q, _ = np.linalg.qr(W @ covariance(X, one_hot(labels)[:, 1:]))
    published = X - (X - X.mean(axis=0)) @ (np.linalg.inv(W) @ Q @ Q.T @ W).T
    assert_allclose(eraser.transform(X), published, atol=1e-10)


def test_preserved_covariance_is_kept_exactly():
    X, labels = labelled(3, seed=6)
    rng = np.random.default_rng(7)
    age = X[:, 0] + 0.5 * labels + rng.normal(size=len(X))
    metadata = pd.DataFrame({"site": labels.astype(str), "age": age})
    keeping = Eraser("site", preserve="age").fit(X, metadata=metadata).transform(X)
    plain = Eraser("site").fit(X, metadata=metadata).transform(X)
    before = covariance(X, age[:, None])
    assert_allclose(covariance(keeping, age[:, None]), before, atol=1e-12 * np.abs(before).max())
    assert np.abs(covariance(plain, age[:, None]) - before).max() > 0.05
    assert correlation(keeping, one_hot(labels)).max() < 1e-12


SPREADS = [1e-12, 1e-6, 0.01, 1.0, 1e6, 1e12]


@pytest.mark.parametrize("sd", SPREADS)
def test_metadata_of_any_scale_are_erased_alike(sd):
    rng = np.random.default_rng(8)
    z = rng.normal(size=1500)
    X = rng.normal(size=(1500, 6)) + np.outer(z, [3, 1, 0, 0, 2, 0])
    reference = Eraser().fit(X, metadata=z).transform(X)
    erased = Eraser().fit(X, metadata=z * sd).transform(X)
    assert correlation(X, z[:, None]).max() > 0.9
    assert correlation(erased, z[:, None]).max() < 1e-12
    assert_allclose(erased, reference, atol=1e-11)


@pytest.mark.parametrize("sd", SPREADS)
def test_features_of_any_scale_are_erased_alike(sd):
    rng = np.random.default_rng(9)
    z = rng.normal(size=1500)
    X = (rng.normal(size=(1500, 4)) + np.outer(z, [3, 1, 0, 2])) * [1, sd, 1, sd]
    erased = Eraser().fit(X, metadata=z).transform(X)
    assert correlation(erased, z[:, None]).max() < 1e-12


def test_a_level_of_five_rows_in_a_thousand_is_erased():
    rng = np.random.default_rng(10)
    rare = (np.arange(4000) % 200 == 0).astype(float)
    X = rng.normal(size=(4000, 6)) + np.outer(rare, [25, 3, 0, 0, 0, 1])
    erased = Eraser().fit(X, metadata=rare).transform(X)
    assert correlation(X, rare[:, None]).max() > 0.8
    assert correlation(erased, rare[:, None]).max() < 1e-12


def test_collinear_metadata_and_repeated_features_cost_nothing():
    rng = np.random.default_rng(11)
    z = rng.normal(size=(1500, 2))
    X = rng.normal(size=(1500, 5))
    X[:, :2] += z
    near = z[:, 0] * (1 + 1e-9 * rng.normal(size=1500))
    collinear = np.column_stack([z, 2 * z[:, 1], z.sum(axis=1), np.full(1500, 7.0), near])
    wide = np.column_stack([X, X[:, 0], np.full(1500, 1e8)])
    eraser = Eraser().fit(wide, metadata=collinear)
    erased = eraser.transform(wide)
    assert_allclose(erased[:, :5], Eraser().fit(X, metadata=z).transform(X), atol=1e-9)
    assert_array_equal(erased[:, 6], wide[:, 6])
    # near - z[:, 0] is rounding, so what is left of its direction can't be told; of the column itself nothing is.
    assert correlation(erased[:, :6], collinear[:, [0, 1, 2, 3, 5]]).max() < 1e-9


def test_batches_and_halves_give_what_all_rows_give():
    X, labels = labelled(3, seed=12)
    metadata = pd.DataFrame({"label": labels})
    whole = Eraser("C(label)").fit(X, metadata=metadata)
    stream = Eraser("C(label)")
    for rows in np.array_split(np.arange(len(X)), 11):
        before = getattr(stream, "left_", None)
        stream.partial_fit(X[rows], metadata=metadata.iloc[rows])
        assert before is None or np.abs(before - stream.left_).max() > 1e-6  # each batch moved it
    first, second = (
        Eraser("C(label)").fit(X[part], metadata=metadata[part]) for part in (slice(900), slice(900, None))
    )
    for other in (stream, first.merge(second)):
        assert_allclose(other.projection_, whole.projection_, atol=1e-11)
        assert_allclose(other.mean_, whole.mean_, atol=1e-13)


def test_merging_other_designs_is_refused():
    X, labels = labelled(3, d=4)
    one = Eraser().fit(X, metadata=labels)
    with pytest.raises(ValueError, match="designs differ"):
        one.merge(Eraser("C(m0)").fit(X, metadata=labels))
    with pytest.raises(ValueError, match="features differ"):
        one.merge(Eraser().fit(X[:, :3], metadata=labels))


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    X, labels = labelled(3, n=40_000, d=8, seed=13)
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("RESIDMIX_NUM_THREADS", threads)
        found.append(Eraser().fit(X, metadata=labels).projection_)
    assert_array_equal(*found)


def test_weights_count_rows():
    X, labels = labelled(3, n=600, d=5, seed=14)
    weight = np.random.default_rng(0).integers(0, 4, 600)
    again = np.repeat(np.arange(600), weight)
    weighted = Eraser().fit(X, metadata=labels, sample_weight=weight)
    assert_allclose(weighted.projection_, Eraser().fit(X[again], metadata=labels[again]).projection_, atol=1e-12)
    assert np.abs(weighted.projection_ - Eraser().fit(X, metadata=labels).projection_).max() > 1e-4


def test_a_table_in_and_no_metadata_to_transform():
    X, labels = labelled(3, n=300, d=4)
    table = pd.DataFrame(X, columns=["a", "b", "c", "d"]).assign(site=labels.astype(str), age=np.arange(300.0))
    eraser = Eraser("site + age").fit(table)
    assert list(eraser.features_) == ["a", "b", "c", "d"] == list(eraser.get_feature_names_out())
    erased = eraser.transform(table[["c", "a", "d", "b"]])
    assert_allclose(erased, Eraser("site + age").fit(X, metadata=table[["site", "age"]]).transform(X), atol=1e-12)
    assert_array_equal(eraser.transform(table), erased)
    frame = (
        Eraser("site + age").set_output(transform="polars").fit(pl.from_pandas(table)).transform(pl.from_pandas(table))
    )
    assert isinstance(frame, pl.DataFrame)
    assert frame.columns == ["a", "b", "c", "d"]
    assert_allclose(frame.to_numpy(), erased, atol=1e-12)


def test_in_a_pipeline_new_rows_need_no_metadata():
    X, labels = labelled(2, n=400, d=5)
    table = pd.DataFrame(X, columns=list("abcde")).assign(site=labels.astype(str))
    pipeline = make_pipeline(Eraser("site"), StandardScaler(), LogisticRegression()).fit(table, labels)
    assert len(pipeline.predict(table[list("abcde")])) == 400


def test_float32_in_float32_out():
    X, labels = labelled(3, n=500, d=6)
    low = X.astype(np.float32)
    erased = Eraser().fit(low, metadata=labels).transform(low)
    assert erased.dtype == np.float32
    # Moments are float64; what is left is the rounding of the output, about 6e-8 of it.
    assert correlation(erased.astype(float), labels[:, None].astype(float)).max() < 1e-6
    assert_allclose(erased, Eraser().fit(X, metadata=labels).transform(X), atol=1e-5)


def test_inputs_stay_as_they_were():
    X, labels = labelled(3, n=200, d=4)
    X.setflags(write=False)
    metadata = labels.astype(float)
    metadata.setflags(write=False)
    Eraser().fit(X, metadata=metadata).transform(X)


def test_what_cannot_be_told_apart_is_an_error_and_what_hardly_can_a_warning():
    rng = np.random.default_rng(15)
    z = rng.normal(size=400)
    own = rng.normal(size=400)
    X = rng.normal(size=(400, 4)) + z[:, None]
    X[:, 0] += 0.5 * own
    metadata = pd.DataFrame({"site": z, "twin": -2 * z, "near": z + 0.2 * own})
    with pytest.raises(TangledError, match=r"canonical correlation 1\.000000 in 4 dimensions"):
        Eraser("site", preserve="twin").fit(X, metadata=metadata)
    with pytest.warns(EntangledEffectsWarning, match=r"canonical correlation 0\.\d{4}"):
        Eraser("site", preserve="near").fit(X, metadata=metadata)


def test_nothing_to_erase_and_nothing_left_are_told():
    rng = np.random.default_rng(16)
    X = rng.normal(size=(100, 2))
    with pytest.warns(DesignWarning, match="nothing is erased"):
        assert_array_equal(Eraser().fit(X).transform(X), X)
    with pytest.warns(DesignWarning, match="all 2 directions"):
        left = Eraser().fit(X, metadata=rng.normal(size=(100, 3))).transform(X)
    assert_allclose(left, np.broadcast_to(X.mean(axis=0), X.shape), atol=1e-12)


def test_noise_and_already_erased_features_lose_no_direction():
    X, labels = labelled(4, seed=17)
    metadata = pd.DataFrame({"label": labels})
    erased = Eraser("C(label)").fit(X, metadata=metadata).transform(X)
    assert Eraser("C(label)").fit(erased, metadata=metadata).rank_ == 0


def test_moments_of_a_far_away_column_keep_their_digits():
    rng = np.random.default_rng(18)
    X = rng.normal(size=(5000, 3))
    moments = joint_scatter(ArrayRows(X + 1e8, block_rows=700))
    assert_allclose(moments.covariance, np.cov((X + 1e8).T, ddof=0), rtol=1e-9, atol=1e-9)
    empty = Scatter(0, 0.0, np.zeros(3), np.zeros(3), np.zeros((3, 3)))
    assert_allclose(empty.merge(moments).mean, moments.mean)
    assert_allclose(moments.merge(empty).scatter, moments.scatter)
    assert empty.merge(empty).weight == 0


def test_pure_function_erases_from_moments_alone():
    rng = np.random.default_rng(19)
    rows = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    found = erasure(rows.mean(axis=0), np.cov(rows.T, ddof=0), 1, 1)
    erased = found(rows[:, 2:])
    assert correlation(erased, rows[:, :1]).max() < 1e-12
    assert_allclose(covariance(erased, rows[:, 1:2]), covariance(rows[:, 2:], rows[:, 1:2]), atol=1e-12)


def test_survives_pickling():
    X, labels = labelled(3, n=200, d=4)
    eraser = Eraser().fit(X, metadata=labels)
    assert_array_equal(pickle.loads(pickle.dumps(eraser)).transform(X), eraser.transform(X))


def test_wrong_input_is_told():
    X, labels = labelled(3, n=50, d=4)
    eraser = Eraser().fit(X, metadata=labels)
    with pytest.raises(ValueError, match="3 features"):
        eraser.transform(X[:, :3])
    with pytest.raises(ValueError, match="needs metadata"):
        Eraser("site").fit(X)
    with pytest.raises(ValueError, match="preserve= needs something"):
        Eraser(preserve="age").fit(X)
    with pytest.raises(ValueError, match="'missing' parameter of Eraser must be a str among"):
        Eraser(missing="drop").fit(X, metadata=labels)
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        Eraser().fit(X, metadata=labels)


@pytest.mark.filterwarnings("ignore:there is no metadata:residmix.errors.DesignWarning")
@parametrize_with_checks([Eraser()])
def test_scikit_learn_estimator_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="there is no metadata")
        check(estimator)


@pytest.mark.parametrize("metadata", [pd.DataFrame({"site": ["a"] * 50}), np.ones(50)], ids=["one level", "constant"])
def test_metadata_that_do_not_vary_are_told(metadata):
    X = np.random.default_rng(20).normal(size=(50, 3))
    with pytest.warns(DesignWarning, match=r"nothing is erased, because these metadata are constant: '(site|m0)'"):
        eraser = Eraser().fit(X, metadata=metadata)
    assert_array_equal(eraser.transform(X), X)


def test_a_column_that_varies_by_its_rounding_alone_is_a_constant(rng):
    X, age = rng.normal(size=(500, 4)), rng.normal(size=500)
    X[:, 0] += age
    rounding = np.where(rng.random(500) < 0.5, 0.3, 0.1 * 3)  # one in the last bit apart
    assert len(np.unique(rounding)) == 2
    one = Eraser().fit(X, metadata=age).transform(X)
    both = Eraser().fit(X, metadata=np.column_stack([age, rounding])).transform(X)
    assert_allclose(both, one, atol=1e-9)
    with pytest.warns(DesignWarning, match="metadata are constant"):
        Eraser().fit(X, metadata=rounding)


def test_a_covariance_larger_than_the_machine_is_refused_before_it_is_taken(monkeypatch):
    X = np.random.default_rng(0).normal(size=(40, 300))
    monkeypatch.setattr("residmix.erasure.eraser.machine_bytes", lambda: 1e6)
    with pytest.raises(ValueError, match=r"the covariance of 300 features takes 1\.45 MB, and this machine has 1 MB"):
        Eraser().fit(X, metadata=np.arange(40.0))
