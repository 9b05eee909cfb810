"""Residuals that give metadata back to trees: what is found, what isn't made a fuss of, and where it is looked for."""

import copy
import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.svm import SVR

import residmix as rm
from residmix.errors import CollinearityWarning, LeakageWarning
from residmix.removal.lattices import few_valued
from residmix.rows.block import Block
from residmix.rows.sampled import Sample

N, D = 1000, 10


def zero_inflated(rng, site):
    """Expression after a logarithm: many zeros, and positive values that a site shifts."""
    positive = np.exp(0.6 * rng.normal(size=(N, D)) + 0.4 * site[:, None] * rng.normal(size=D))
    return positive * (rng.random((N, D)) < 0.6)


def censored(rng, site):
    """A detection limit, below which 5 to 10 % of the values lie."""
    return np.maximum(rng.normal(size=(N, D)) + 0.7 * site[:, None] * rng.normal(size=D), -1.5)


def counts(rng, site):
    """Counts of mean 100 that vary more than their mean: they know nothing of the site."""
    return rng.poisson(rng.gamma(0.3, 100 / 0.3, size=(N, D))).astype(float)


def differences(rng, site):
    """Counts beyond an expected number of 5, which look like no counts."""
    return counts(rng, site) - 5.0


def heavy_tailed(rng, site):
    """Continuous values that know nothing of the site."""
    return np.exp(2.0 * rng.normal(size=(N, D)))


def gaussian(rng, site):
    return rng.normal(size=(N, D)) + 0.7 * site[:, None] * rng.normal(size=D)


def told(fit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    return [str(warning.message) for warning in caught if issubclass(warning.category, LeakageWarning)]


def forest_auc(X, site):
    forest = RandomForestClassifier(50, min_samples_leaf=2, random_state=0)
    return roc_auc_score(site, cross_val_predict(forest, X, site, cv=3, method="predict_proba")[:, 1])


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (
            zero_inflated,
            r"features with repeated values \('x\d'.*0\.8\d in cross-validation, and 0\.0\d with the values spread out",
        ),
        (
            censored,
            r"repeated values \('x\d'.*0\.4\d in cross-validation, and 0\.\d\d with the values spread out",
        ),
        (
            differences,
            r"features \('x\d', .*0\.8\d in cross-validation, and 0\.0\d from the original features.*logarithms",
        ),
        (heavy_tailed, r"features \('x\d', .*0\.9\d in cross-validation, and 0\.0\d from the original features"),
    ],
)
def test_what_a_forest_reads_from_residuals_is_told_with_its_cause(kind, match):
    rng = np.random.default_rng(0)
    site = rng.integers(0, 2, N)
    X = kind(rng, site)
    with pytest.warns(LeakageWarning, match=match):
        residual = rm.Residualizer().fit_transform(X, metadata=site.astype(float))
    assert forest_auc(residual, site) > 0.9


def test_of_counts_it_is_noted_and_not_warned_of():
    """It is so of nearly all counts: a warning would come with every such table."""
    rng = np.random.default_rng(0)
    site = rng.integers(0, 2, N)
    model, X = rm.Residualizer(), counts(rng, site)
    assert told(lambda: model.fit(X, metadata=site.astype(float))) == []
    (note,) = model.notes_
    assert re.search(r"predicts 'm0' from residuals of counts \('x\d', .* 0\.8\d in cross.*ComBat-seq", note["message"])
    assert note["kind"] == "leakage"
    assert note["figures"]["features"][0] in [f"x{j}" for j in range(D)]
    assert forest_auc(model.transform(X, metadata=site.astype(float)), site) > 0.9


def test_the_search_can_be_switched_off():
    rng = np.random.default_rng(0)
    site = rng.integers(0, 2, N).astype(float)
    X = censored(rng, site)
    assert len(told(lambda: rm.Residualizer().fit(X, metadata=site))) == 1
    model = rm.Residualizer(check_leakage=False)
    assert told(lambda: model.fit(X, metadata=site).partial_fit(X, metadata=site)) == []
    assert model.notes_ == []
    assert told(lambda: rm.Residualizer(estimator=SVR(C=0.1), check_leakage=False).fit(X[:, :1], metadata=site)) == []


def test_of_gaussian_features_a_forest_reads_nothing_and_nothing_is_told():
    rng = np.random.default_rng(0)
    site = rng.integers(0, 2, N)
    X = gaussian(rng, site)
    assert told(lambda: rm.Residualizer().fit(X, metadata=site.astype(float))) == []
    residual = rm.Residualizer().fit_transform(X, metadata=site.astype(float))
    assert forest_auc(X, site) > 0.9
    assert forest_auc(residual, site) < 0.55


@pytest.mark.parametrize("kind", ["gaussian", "t5", "spread", "rounded", "float32", "missing"])
def test_no_false_alarms_on_random_tables(kind):
    """Of 200 tables of each kind none was told of; here are 25 of them."""
    rng = np.random.default_rng(1)
    for _ in range(25):
        n, d, L = int(rng.choice([60, 100, 300, 1000])), int(rng.integers(1, 41)), int(rng.integers(2, 9))
        site, age = rng.integers(0, L, n), rng.uniform(20, 80, n)
        noise = rng.standard_t(5, (n, d)) if kind == "t5" else rng.normal(size=(n, d))
        if kind == "spread":
            noise *= np.exp(0.3 * rng.normal(size=(L, d)))[site] * np.exp(0.01 * (age - 50))[:, None]
        X = noise @ (rng.normal(size=(d, d)) / np.sqrt(d) + np.eye(d))
        X += rng.normal(size=(L, d))[site] * rng.choice([0, 0.5, 2]) + 0.02 * age[:, None] * rng.normal(size=d)
        if kind == "rounded":
            X = np.round(X, 2)
        if kind == "float32":
            X = (X + 1000).astype(np.float32)
        if kind == "missing":
            X[rng.random(X.shape) < 0.1] = np.nan
        metadata = pd.DataFrame({"site": [f"s{k}" for k in site], "age": age})
        assert told(lambda: rm.Residualizer().fit(X, metadata=metadata)) == []  # noqa: B023


def test_missing_values_hide_no_lattice():
    rng = np.random.default_rng(2)
    site = rng.integers(0, 2, N)
    X = rng.poisson(3.0 + site[:, None], size=(N, 40)) - 5.0
    X[rng.random(X.shape) < 0.1] = np.nan  # complete rows: 1 %
    (message,) = told(lambda: rm.Residualizer().fit(X, metadata=site.astype(float)))
    assert re.search(r"repeated values.* 0\.7\d in cross-validation, and 0\.0\d with the values spread out", message)


def test_a_lattice_far_from_zero_and_rounding_errors_are_told_apart():
    rng = np.random.default_rng(3)
    age = rng.uniform(20, 80, N)
    # Residuals that are nothing but rounding, which depends on the age: a tree would find it.
    steps = np.round(age)
    X = np.column_stack([np.full(N, 0.1) + 0.0 * age, 0.1 * np.cos(steps) + steps / 3, rng.normal(size=N)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollinearityWarning)
        M = np.column_stack([np.cos(steps), steps, steps + np.cos(steps)])
        assert told(lambda: rm.Residualizer().fit(X, metadata=M)) == []
    site = rng.integers(0, 2, N)
    # the residuals of the second row are finite, but not in the single precision of scikit-learn's trees
    X = np.column_stack([rng.poisson(3.0 + site) - 5.0, np.where(np.arange(N) == 1, 1e150, rng.normal(size=N))])
    assert len(told(lambda: rm.Residualizer().fit(X, metadata=site.astype(float)))) == 1


def test_piled_up_values_make_a_feature_few_valued_and_a_lattice_has_no_piles():
    rng = np.random.default_rng(4)
    limit = np.maximum(rng.normal(size=500), -1.5)
    assert few_valued(np.column_stack([rng.normal(size=500), limit])).tolist() == [1]
    limit[::7] = np.nan
    assert few_valued(np.column_stack([limit, rng.normal(size=500)])).tolist() == [0]
    assert few_valued(np.full((50, 2), np.nan)).tolist() == []


def lattice(n=6000, seed=0):
    rng = np.random.default_rng(seed)
    site = rng.choice(["a", "b", "c"], n)
    return pd.DataFrame({"x": rng.poisson(3.0, n) - 5.0 + 1.0 * (site == "b"), "y": rng.normal(size=n), "site": site})


def smooth(n=6000, seed=1):
    table = lattice(n, seed)
    return table.assign(x=table["x"] + np.random.default_rng(9).uniform(-0.5, 0.5, n))


def test_later_batches_are_looked_at_and_told_of_once():
    model = rm.Residualizer("site")
    batches = [smooth(300, seed) for seed in range(3)]
    assert told(lambda: [model.partial_fit(batch) for batch in batches]) == []
    later = [told(lambda batch=batch: model.partial_fit(batch)) for batch in [lattice(300, s) for s in range(3, 20)]]
    assert sum(map(len, later)) == 1
    assert re.search(
        r"'site\[T\.[bc]\]' from residuals of features with repeated values \('x'\)", next(t[0] for t in later if t)
    )
    assert model._watch.sample.n_rows == 20 * 300
    assert model._watch.sample.block.n_rows == 1000
    # every row had the same chance: 150 of 1000 would be of the first three batches, which are smooth
    assert 110 < np.sum(model._watch.sample.block.X[:, 0] % 1 != 0) < 190


def test_merged_models_are_looked_at():
    one, two = rm.Residualizer("site").fit(smooth(300)), rm.Residualizer("site")
    assert len(told(lambda: two.fit(lattice()))) == 1
    assert len(told(lambda: one.merge(two))) == 1
    assert told(lambda: rm.Residualizer("site").fit(smooth(300)).merge(rm.Residualizer("site").fit(smooth()))) == []


def test_a_stream_of_small_batches_is_looked_at_once_it_is_long_enough():
    data = lattice(400)
    model = rm.Residualizer("site")
    batches = [data[start : start + 20] for start in range(0, 400, 20)]
    assert len(told(lambda: [model.partial_fit(batch) for batch in batches])) == 1


def test_rows_that_are_kept_to_look_at_are_neither_saved_nor_pickled(tmp_path):
    data = smooth(300)
    data.loc[:, "x"] += 123456.789
    model = rm.Residualizer("site").fit(data)
    assert model._watch.sample.block.n_rows == 300
    assert copy.deepcopy(model)._watch.sample.block.n_rows == 300
    rm.save(model, tmp_path / "m.safetensors")
    for again in (pickle.loads(pickle.dumps(model)), rm.load(tmp_path / "m.safetensors")):
        assert again._watch.sample.block is None
        assert_array_equal(again.transform(data), model.transform(data))
        again.partial_fit(data)  # and goes on
        assert again._watch.sample.n_rows == 300
    row = data[["x", "y"]].to_numpy()[17].tobytes()
    assert row not in pickle.dumps(model)
    assert row not in (tmp_path / "m.safetensors").read_bytes()


def test_samples_of_parts_are_a_sample_of_the_whole():
    parts = [Sample(), *(Sample.of(block(k, 200), n, seed=k) for k, n in ((1, 200), (2, 1000), (3, 2000)))]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merged(part, 200)
    assert whole.n_rows == 3200
    share = np.bincount(whole.block.X[:, 0].astype(int), minlength=4)[1:] / 200
    # 200 draws: standard errors of at most 0.035
    assert_allclose(share, np.array([200, 1000, 2000]) / 3200, atol=0.1)


def block(value, n):
    return Block(0, np.full((n, 1), float(value)), np.zeros((n, 1)))


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": True}, {"scale": True, "preserve": "y"}, {"formula": "day + z"}],
    ids=["mean", "scale", "preserve", "absorbed"],
)
def test_residuals_of_some_features_are_those_of_all(options):
    rng = np.random.default_rng(5)
    data = smooth(900)
    data["day"] = [f"d{k}" for k in rng.permutation(np.arange(900) % 300)]
    data["z"], data["u"], data["v"] = rng.normal(size=(3, 900))
    model = rm.Residualizer(**{"formula": "site + z", "features": ["x", "u", "v"]} | options).fit(data)
    sample = model._watch.sample.block
    some = np.array([0, 2])
    narrow = model._remover().select(some)(Block(0, sample.X[:, some], sample.design, sample.codes))
    assert_allclose(narrow, model._remover()(sample)[:, some], atol=1e-13)


def test_only_the_features_that_are_looked_at_are_kept():
    rng = np.random.default_rng(6)
    site = rng.integers(0, 2, 200)
    X = rng.normal(size=(200, 1000))
    X[:, 999] = rng.poisson(3 + site) - 5
    model = rm.Residualizer()
    assert "'x999'" in told(lambda: model.fit(X, metadata=site.astype(float)))[0]
    assert model._watch.sample.block.X.shape == (200, 256)


def test_a_regressor_that_leaves_effects_is_told_of():
    rng = np.random.default_rng(0)
    site, age = rng.integers(0, 3, 400), rng.uniform(20, 80, 400)
    data = pd.DataFrame({"site": np.array(["a", "b", "c"])[site], "age": age, "v": 4.0 * site - 0.3 * age})
    data["v"] += rng.normal(size=400)
    message = r"predicts 'site\[T\.c\]' from residuals of features \('v'\): .*check whether the estimator fits"
    with pytest.warns(LeakageWarning, match=message):
        rm.Residualizer("site + age", estimator=SVR(C=0.1)).fit(data)
    assert told(lambda: rm.Residualizer("site + age").fit(data)) == []


def test_files_and_clusters_are_warned_of_leakage_as_memory_is_without_a_pass_of_its_own(tmp_path):
    dd = pytest.importorskip("dask.dataframe")
    counts = lattice()[["x", "site"]]
    expected = told(lambda: rm.Residualizer("site").fit(counts))
    assert len(expected) == 1 and re.search(r"a decision tree predicts .*'x'", expected[0])
    counts.to_parquet(tmp_path / "x.parquet")
    source = rm.scan(tmp_path / "x.parquet", batch_rows=500)
    passes = []
    pieces = type(source).pieces
    source.pieces = lambda *arguments: passes.append(arguments) or pieces(source, *arguments)
    assert told(lambda: rm.Residualizer("site").fit(source)) == expected
    features = [columns for columns, _ in passes if columns is None or "x" in columns]
    assert len(features) == 1  # the moments' own
    frame = dd.from_pandas(counts, npartitions=4, sort=False)
    assert told(lambda: rm.Residualizer("site").fit(frame)) == expected


def patients(kind, n=20_000, levels=300, d=6, seed=0):
    """Features that know nothing of the patient, who has too many levels for columns."""
    rng = np.random.default_rng(seed)
    patient = np.r_[np.arange(levels), rng.integers(0, levels, n - levels)]
    z = rng.normal(size=(n, d))
    X = {
        "gaussian": lambda: z,
        "t5": lambda: rng.standard_t(5, (n, d)),
        "spread": lambda: z * np.exp(0.3 * rng.normal(size=(levels, d)))[patient],
        "rounded": lambda: np.round(z + rng.normal(size=(levels, d))[patient], 2),
        "float32": lambda: (z + 1000).astype(np.float32),
        "missing": lambda: np.where(rng.random((n, d)) < 0.1, np.nan, z),
        "counts": lambda: rng.poisson(3.0, (n, d)) - 5.0,
        "binary": lambda: (z > 0).astype(float),
        "heavy-tailed": lambda: np.exp(2 * z),
    }[kind]()
    return pd.DataFrame(X, columns=[f"x{j}" for j in range(d)]).assign(patient=[f"p{k}" for k in patient])


@pytest.mark.parametrize(
    ("kind", "n", "levels", "match"),
    [
        (
            "counts",
            20_000,
            300,
            r"effect of 'patient' on 'x\d' from .*repeated values.* 0\.\d\d with the values spread out",
        ),
        (
            "binary",
            3000,
            300,
            r"effect of 'patient' on 'x\d' from .*repeated values.* 0\.\d\d with the values spread out",
        ),
        # ten rows a level: one that lies far out moves the mean, and with it the residuals of the nine others
        ("heavy-tailed", 3000, 300, r"effect of 'patient' on 'x\d' from .* 0\.\d\d from the original features"),
    ],
)
@pytest.mark.slow
def test_effects_of_a_factor_without_columns_that_residuals_give_back_are_told(kind, n, levels, match):
    data = patients(kind, n, levels)
    model = rm.Residualizer("patient")
    (message,) = told(lambda: model.fit(data))
    assert re.search(match, message)
    assert model.design_columns_ == []
    # a label that each patient has once and for all is read by a forest, though no feature knew it
    residual, features = model.transform(data)[-3000:], data.drop(columns="patient").to_numpy()[-3000:]
    label = model.effects_["patient"][model.design_.matrix(data[-3000:]).codes[0], 0] > 0
    assert forest_auc(residual, label) > 0.85
    assert forest_auc(features, label) < 0.65


@pytest.mark.parametrize("kind", ["gaussian", "t5", "spread", "rounded", "float32", "missing"])
def test_no_false_alarms_of_factors_without_columns(kind):
    """Of 200 tables of each kind none was told of; here are some of them."""
    for seed, (n, levels) in enumerate([(600, 250), (1000, 210), (3000, 1000), (8000, 300)]):
        data = patients(kind, n, levels, seed=seed)
        assert told(lambda: rm.Residualizer("patient").fit(data)) == []  # noqa: B023


def test_a_factor_without_columns_is_looked_at_beside_columns_and_in_later_batches():
    counts, smooth_ones = patients("counts"), patients("gaussian")
    beside = counts.assign(age=np.random.default_rng(8).uniform(20, 80, len(counts)))
    (message,) = told(lambda: rm.Residualizer("patient + age").fit(beside))
    assert "the effect of 'patient'" in message
    model = rm.Residualizer("patient")
    assert told(lambda: model.partial_fit(smooth_ones)) == []
    assert len(told(lambda: [model.partial_fit(patients("counts", seed=s)) for s in (1, 2, 3, 4)])) == 1
