"""The forest of probes: its trees are those of scikit-learn for features of any scale, and it reads as much."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from residmix.diagnostics import forest
from residmix.diagnostics.forest import Forest
from residmix.kernels.pairs import split_nodes


@pytest.fixture
def one_tree(monkeypatch):
    """A forest of a single tree that grows on all rows and tries every feature."""
    monkeypatch.setattr(forest, "TREES", 1)
    monkeypatch.setattr(forest, "SHARE", 1.0)
    monkeypatch.setattr(forest, "_tries", lambda d, classifies: d)


def rows(n=500, d=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, X[:, 0] ** 2 + X[:, 1] * (X[:, -1] > 0) + 0.3 * rng.normal(size=n)


def test_a_tree_for_numbers_is_scikit_learns(one_tree):
    X, y = rows()
    ours = Forest(classifies=False).fit(X, y)
    codes = ours._codes(X).T.astype(float)
    theirs = DecisionTreeRegressor(min_samples_leaf=5, random_state=0).fit(codes, y)
    # numbers are rounded to a millionth of the largest
    np.testing.assert_allclose(ours.predict(X), theirs.predict(codes), atol=1e-5)
    assert r2_score(y, ours.predict(X)) > 0.8


def test_a_tree_for_classes_leaves_as_little_impurity_as_scikit_learns(one_tree):
    X, y = rows()
    y = np.digitize(y, [0.0, 1.0])
    ours = Forest(classifies=True).fit(X, y)
    codes = ours._codes(X).T.astype(float)
    theirs = DecisionTreeClassifier(min_samples_leaf=5, random_state=0).fit(codes, y)
    first = ours._codes(X)[ours._feature[0]] <= ours._cut[0]
    root = theirs.tree_
    np.testing.assert_array_equal(first, codes[:, root.feature[0]] <= root.threshold[0])
    # below the root, cuts may be equally good
    shares = ours.predict_proba(X)
    assert abs(np.square(shares).sum(axis=1).mean() - np.square(theirs.predict_proba(codes)).sum(axis=1).mean()) < 0.01
    assert ours._value.shape == (len(ours._cut), 3) and ours.classes_.tolist() == [0, 1, 2]
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)


def test_leaves_keep_five_rows(one_tree):
    X, y = rows()
    ours = Forest(classifies=False).fit(X, y)
    _, sizes = np.unique(np.round(ours.predict(X), 9), return_counts=True)
    assert sizes.min() >= 5 and sizes.max() < 100


@pytest.mark.parametrize("classifies", [True, False])
def test_predictions_depend_on_the_order_of_a_features_values_only(classifies):
    X, y = rows()
    y = (y > 0).astype(int) if classifies else y
    plain = Forest(classifies=classifies).fit(X, y)._means(X)
    for other in (1e9 + X, np.exp(X), np.round(X, 12) * 1e-12):
        np.testing.assert_array_equal(Forest(classifies=classifies).fit(other, y)._means(other), plain)


@pytest.mark.parametrize("classifies", [True, False])
def test_compiled_or_not_the_trees_are_the_same(classifies, monkeypatch):
    X, y = rows(300)
    y = (y > 0).astype(int) if classifies else y
    found = []
    for plain in (True, False):
        monkeypatch.setattr(forest, "small", lambda *size, plain=plain: plain)
        found.append(Forest(classifies=classifies).fit(X, y)._means(X))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("plain", [True, False])
def test_columns_of_one_value_cost_no_try(plain):
    y = np.arange(40, dtype=np.int64) % 2
    codes = np.array([np.full(40, 7), np.full(40, 9), y], dtype=np.uint8)
    target, every = (y, np.ones(40, dtype=np.int64), 2), np.arange(40)
    for order, found in (([0, 1, 2], 2), ([2, 0, 1], 2)):
        split = split_nodes(codes, every, np.array([40]), np.array([order]), target, 1, 5, plain=plain)
        assert split[0].tolist() == [found] and split[2].tolist() == [20]
    codes[0] = np.arange(40) // 20  # says nothing, but is one to try
    split = split_nodes(codes, every, np.array([40]), np.array([[0, 1, 2]]), target, 1, 5, plain=plain)
    assert split[0].tolist() == [-1]


def test_nothing_to_learn_is_the_mean():
    X, y = rows(40)
    np.testing.assert_allclose(Forest(classifies=False).fit(X, np.full(40, 3.5)).predict(X), 3.5)
    np.testing.assert_allclose(Forest(classifies=True).fit(X, np.full(40, 2)).predict_proba(X), 1.0)
    np.testing.assert_allclose(
        Forest(classifies=False).fit(np.ones((40, 2)), y).predict(np.ones((3, 2))), y.mean(), atol=0.3
    )


@pytest.mark.slow
@pytest.mark.parametrize("what", ["spread", "interaction", "correlation"])
def test_it_reads_as_much_as_a_forest_of_unbinned_features(what):
    ours, theirs = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(1500, 8)), rng.integers(2, size=1500)
        if what == "spread":
            X[:, 0] *= np.where(y == 1, 1.5, 1)
        elif what == "interaction":
            X[:, 0] = np.abs(X[:, 0]) * np.sign(X[:, 1]) * np.where(y ^ (rng.random(1500) < 0.2), 1, -1)
        else:
            X[:, 1] += np.where(y == 1, 0.8, 0) * X[:, 0]
        sets = slice(0, 1200), slice(1200, None)
        for learner, scores in (
            (Forest(classifies=True), ours),
            (RandomForestClassifier(50, min_samples_leaf=5, random_state=0), theirs),
        ):
            said = learner.fit(X[sets[0]], y[sets[0]]).predict_proba(X[sets[1]])[:, 1]
            scores.append(roc_auc_score(y[sets[1]], said))
    # An AUC of 300 rows has a standard error of .03; the difference of two on the same rows, over four seeds, below .01
    assert np.mean(ours) > np.mean(theirs) - 0.02
    assert np.mean(theirs) > 0.55
